"""A training that is interrupted ends where it would have, to the bit; checkpoints are models of their own."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lib.model import models as loading
from lib.model import series, tokens
from lib.run.cli import Options, UserError
from training import small

pytestmark = pytest.mark.slow
TEXT = ["".join(f"def f{i}(x):\n    return x + {i * j % 97}\n\n" for j in range(60)) for i in range(20)]


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    few = {"vocabulary": 300, "layers": 2, "heads": 2, "hidden": 16, "seqlen": 24, "batch_size": 4, "warm_up": 5}
    monkeypatch.setattr(small, "SETTINGS", replace(small.SETTINGS, **few))


def course(folder, name="small-gpt2", text=TEXT):
    tokenizer = small.trained_tokenizer(text)
    folder.mkdir(exist_ok=True)
    return small.Course(folder / name, tokenizer, small.ids_of(tokenizer, text))


def weights(course, step):
    return load_file(course.folder / f"step{step}" / "model.safetensors")


@pytest.mark.parametrize("name", small.MODELS)
def test_gone_on_from_where_it_stopped(name, tmp_path):
    whole, parts = course(tmp_path / "whole", name), course(tmp_path / "parts", name)
    whole.train(30, 1e9)
    parts.train(30, 0)  # stops after a step
    assert sorted(path.name for path in parts.folder.glob("step*")) == ["step0", "step1"]
    course(tmp_path / "parts", name).train(20, 1e9)
    course(tmp_path / "parts", name).train(30, 1e9)
    for step in (0, 10, 20, 30):
        one, other = weights(whole, step), weights(parts, step)
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert not torch.equal(*(next(iter(weights(whole, step).values())) for step in (0, 30)))
    told = json.loads((parts.folder / "training.json").read_text())
    assert [row["step"] for row in told["log"]] == [0, 1, 10, 15, 20, 30]
    losses = [row["loss"] for row in json.loads((whole.folder / "training.json").read_text())["log"][1:]]
    assert losses[-1] < losses[0]


def test_what_is_finished_is_left_alone(tmp_path):
    done = course(tmp_path)
    done.train(10, 1e9)
    before = (done.folder / "training.json").stat().st_mtime_ns
    course(tmp_path).train(10, 1e9)
    assert (done.folder / "training.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="another text or otherwise"):
        course(tmp_path, text=TEXT[1:])


def test_a_checkpoint_is_a_model_whose_windows_begin_with_bos(tmp_path):
    done = course(tmp_path)
    done.train(10, 1e9)
    first, last = series.find(Options(model=str(done.folder)), ())
    assert (first.step, last.step) == (0, 10)
    lm = loading.load(replace(last.options, device="cpu"))
    assert lm.arch.n_layers == 2
    assert tokens.before_text(lm.tokenizer, "def f(x):") == [small.BOS]
    ids = np.array(lm.tokenizer(TEXT[0])["input_ids"])
    assert ids[0] == small.BOS
    assert lm.tokenizer.decode(ids[1:]) == TEXT[0]


def test_batches_are_of_the_text_behind_bos(tmp_path, monkeypatch):
    of, seen = course(tmp_path), []
    model = small.gpt2()
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda **given: seen.append(given) or forward(**given))
    loss = of._step(model, torch.optim.AdamW(model.parameters()), 7)
    ids = seen[0]["input_ids"].numpy()
    assert ids.shape == (4, 24)
    assert (ids[:, 0] == small.BOS).all()
    begins = np.random.default_rng([0, 7]).integers(len(of.tokens) - 24, size=4)
    assert all((row[1:] == of.tokens[begin : begin + 23]).all() for row, begin in zip(ids, begins, strict=True))
    assert loss == pytest.approx(np.log(300), rel=0.1)


def test_steps_that_are_kept_do_not_depend_on_the_last():
    first, longer = ([*small.kept_steps(last)] for last in (2000, 7000))
    assert first[:5] == [0, 10, 15, 20, 30]
    assert first == longer[: len(first)]
    assert [*small.kept_steps(60)] == [0, 10, 15, 20, 30, 50, 60]
    assert [*small.kept_steps(5)] == [0, 5]


def test_the_standard_library_is_read_without_what_is_installed():
    sources = small.standard_library()
    assert sum(map(len, sources)) > 5e6
    assert any(source.startswith('"""Random variable generators.') for source in sources)
    assert not any("class PreTrainedModel" in source for source in sources)
