"""What stands above every TXT."""

from types import SimpleNamespace

import numpy as np
import pytest

from lib.core import stats
from lib.report import tables


def header(**data):
    data = {"windows": 8, "seqlen": 16, "dataset": "a.txt", "bos": False, "documents_effective": 1.0, **data}
    model = {"name": "m", "type": "gpt2"}
    run = {"dtype": "float32", "device": "cpu", "seed": 0, "time": "now", "command": "python"}
    return tables.header(SimpleNamespace(provenance={"model": model, "data": data, **run}), "Title")


@pytest.mark.parametrize(
    ("documents", "windows", "said"),
    [
        (2, 8, "2 documents are few: their 95% intervals of means hold 50% at most"),
        (5, 8, "5 documents are few: their 95% intervals of means hold 94% at most"),
        (1, 3, "3 windows are few: their 95% intervals of means hold 75% at most"),
        (6, 8, None),
        (1, 30, None),
        (1, 1, None),
        (None, 1, None),
    ],
)
def test_intervals_of_few_documents(documents, windows, said):
    line = header(documents_drawn=documents, windows=windows)
    assert said in line if said else " few: " not in line


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_intervals_hold_no_more_than_is_said(n):
    values = np.random.default_rng(0).standard_normal((n, 1000))
    intervals = [average.ci95 for average in stats.independent(n).averages(values)]
    held = np.mean([low < 0 < high for low, high in intervals])
    assert held < 1 - 2 ** (1 - n) + 0.03
