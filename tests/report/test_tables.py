"""The head of a TXT."""

from types import SimpleNamespace

import pytest

from lib.core.definitions import INTERVALS
from lib.report import tables
from lib.report.result_files import Result

RUN = {"dtype": "float32", "device": "cpu", "seed": 0, "time": "now", "model": {"name": "m", "type": "gpt2"}}
DATA = {"windows": 1, "seqlen": 9, "bos": False}


def head(text, **flags):
    data = DATA | {"dataset": f"--text {text!r}"}
    provenance = RUN | {"command": f"python main_llm.py --text '{text}'", "data": data}
    return tables.header(Result("sentence", provenance, {}, None, None, {}), "Title", **flags)


@pytest.mark.parametrize("text", ["one line", "a\nb\n\nc", "long " * 4000 + "\nend"])
def test_each_thing_is_one_short_line(text):
    lines = head(text, intervals=False).splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["Title", "=====", "model", "data", "run", "command"]
    assert max(map(len, lines)) < 500
    assert lines[-1].endswith(f"{text.splitlines()[-1][-3:]}'")


def test_what_intervals_are_is_told_where_there_are_some():
    assert INTERVALS in head("text")
    assert INTERVALS not in head("text", intervals=False)


@pytest.mark.parametrize(("plateau", "said"), [((5, 5), "plateau layer 5"), ((1, 4), "plateau layers 1-4")])
def test_a_plateau_of_one_layer(plateau, said):
    assert tables.plateau_text(SimpleNamespace(plateau=plateau)) == said
