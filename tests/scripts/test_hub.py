"""Loading from the hub, with a hub of our own on this machine in its place: what its users meet, in order."""

import json
import os
import subprocess
import sys

import pytest

from lib.run import checkout
from tests import hub as our_hub
from tests.conftest import TEXT, save, tiny_model

pytestmark = pytest.mark.slow
NOWHERE = "http://127.0.0.1:1"


@pytest.fixture(scope="module")
def hub(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("hub")
    first, second = (save(folder / str(seed), tiny_model("gpt2", seed), tokenizer) for seed in (0, 1))
    plain = folder / "plain"
    plain.mkdir()
    (plain / "train.txt").write_text(TEXT)
    repository = our_hub.Repository({"main": first, "step1000": second, "v1.0": first})
    course = our_hub.Repository({"main": second, "step90": first, "step1000": second, "v1.0": first})
    with our_hub.Hub(
        {
            "models/org/tiny": repository,
            "models/org/course": course,
            "models/org/gated": our_hub.Repository({"main": first}, gated=True),
            "datasets/Salesforce/wikitext": our_hub.Repository({"main": our_hub.wikitext(folder / "wikitext", TEXT)}),
            "datasets/org/plain": our_hub.Repository({"main": plain}),
        },
        moved={"tiny": "org/tiny"},
    ) as served:
        yield served


def layerwise(out, *flags):
    return ["main_llm.py", "--exp2", "--nsamples", "2", "--seqlen", "16", *map(str, flags), "--savedir", str(out)]


def model_of(out):
    return json.loads((out / "tiny_layerwise.json").read_text())["provenance"]["model"]


def test_models_data_sets_and_revisions(hub, text_file, tmp_path, monkeypatch):
    """Then the same from the local cache alone, with --offline and where the hub is not well; without a network see the
    checkpoints below."""
    tiny, plain = ("--model", "org/tiny"), ("--dataset", "org/plain")
    commits = hub.repositories["models/org/tiny"].commits
    of_revision = {None: commits["main"], "main": commits["main"], "v1.0": commits["main"]}
    of_revision |= dict.fromkeys(("step1000", commits["step1000"]), commits["step1000"])
    lines = [layerwise(tmp_path / str(name), *tiny, *(["--revision", name] if name else [])) for name in of_revision]
    lines.append(layerwise(tmp_path / "moved", "--model", "tiny", *plain, "--split", "train"))
    named = ("--dataset", "Salesforce/wikitext", "--config", "wikitext-2-raw-v1", "--split", "validation")
    lines.append(layerwise(tmp_path / "named", *tiny, *named))
    refused = {
        "model 'org/tiny': it has no revision 'step9'": (*tiny, "--revision", "step9"),
        "unknown model 'org/nowhere'": ("--model", "org/nowhere"),
        "model 'org/gated': it is gated": ("--model", "org/gated"),
        "Available: ['wikitext-2-raw-v1']": (*tiny, "--config", "wikitext-9"),
        "Should be one of ['test', 'train', 'validation']": (*tiny, "--split", "dev"),
        "Should be one of ['train']": (*tiny, *plain),
        "unknown dataset 'org/nowhere'": (*tiny, "--dataset", "org/nowhere"),
        "dataset 'wikitext': no column 'texts'; it has: text": (*tiny, "--text_column", "texts"),
    }
    lines += [layerwise(tmp_path / "refused", *flags) for flags in refused.values()]
    # results of another revision are not overwritten, whatever else is as it was
    into = tmp_path / "moved"
    lines += [layerwise(into, *tiny, "--revision", "step1000"), layerwise(into, *tiny, "--seed", "1")]
    done = our_hub.in_order(lines, tmp_path, hub.environment(tmp_path / "home"))

    for name, commit in of_revision.items():
        assert done.pop(0).code == 0, name
        source = {"hub_id": "org/tiny", "revision": commit}
        assert model_of(tmp_path / str(name)) == {"name": "org/tiny", "type": "gpt2", **source}
    for name in ("moved", "named"):
        ended = done.pop(0)
        assert ended.code == 0, ended.error
        assert model_of(tmp_path / name)["revision"] == commits["main"]
    for expected in refused:
        ended = done.pop(0)
        assert ended.code == 2
        assert ended.error.startswith("error: ")
        assert ended.error.count("\n") == 1
        assert expected in ended.error
    assert not (tmp_path / "refused").exists()
    another, again = done
    assert another.code == 2
    assert commits["main"][:12] in another.error
    assert commits["step1000"][:12] in another.error
    assert again.code == 0, again.error

    asked = len(hub.requests)
    lines = [
        layerwise(tmp_path / "again", *tiny, "--offline"),
        layerwise(tmp_path / "x", "--model", "org/gated", "--offline"),
    ]
    cached, missing = our_hub.in_order(lines, tmp_path, hub.environment(tmp_path / "home"))
    assert cached.code == 0, cached.error
    assert model_of(tmp_path / "again")["revision"] == commits["main"]
    assert missing.code == 2
    assert "to run without it: --model smollm2-135m --dataset python-docs" in missing.error
    assert len(hub.requests) == asked

    monkeypatch.setattr(hub, "status", 503)
    lines = [layerwise(tmp_path / "x", "--dataset", text_file, "--model", name) for name in ("org/tiny", "org/course")]
    cached, without = our_hub.in_order(lines, tmp_path, hub.environment(tmp_path / "home"))
    assert (cached.code, without.code) == (0, 2), cached.error
    assert without.error.startswith("error: unknown model 'org/course'")
    assert "we cannot reach the Hugging Face hub (it answers 503)" in without.error
    assert without.error.count("\n") == 1


def trained(out, *flags):
    short = ["--nsamples", "2", "--seqlen", "16", "--model", "org/course"]
    return ["exp14_training.py", *short, *map(str, flags), "--savedir", str(out)]


def test_checkpoints_by_name_and_all_of_them(hub, tmp_path):
    """Then the same from the local cache alone: nothing is asked of the hub, and nothing is measured again."""
    lines = [
        trained(tmp_path / "named", "--revisions", "step1000", "step90"),
        trained(tmp_path / "all", "--revisions", "all"),
        trained(tmp_path / "none"),
        trained(tmp_path / "missing", "--revisions", "step90", "step8"),
        trained(tmp_path / "no step", "--revisions", "main"),
        trained(tmp_path / "one", "--revision", "step90"),
    ]
    environment = hub.environment(tmp_path / "home") | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    named, every, *refused = our_hub.in_order(lines, tmp_path, environment)
    assert (named.code, every.code) == (0, 0), (named.error, every.error)
    results = [json.loads((tmp_path / of / "exp14_results.json").read_text()) for of in ("named", "all")]
    assert results[0]["results"] == results[1]["results"]
    commits = hub.repositories["models/org/course"].commits
    steps = results[0]["results"]["steps"]
    assert [(step["step"], step["source"]["revision"]) for step in steps] == [
        (90, commits["step90"]),
        (1000, commits["step1000"]),
    ]
    assert results[0]["provenance"]["model"] == {"name": "org/course", "type": "gpt2", "hub_id": "org/course"}
    expected = (
        "name checkpoints",
        "step8: cannot load model",
        "no step in the name main",
        "--revision would do nothing",
    )
    for ended, message in zip(refused, expected, strict=True):
        assert ended.code == 2
        assert message in ended.error.splitlines()[-1]
    assert not {"none", "missing", "no step", "one"} & {path.name for path in tmp_path.iterdir()}

    asked = len(hub.requests)
    environment |= {"HF_ENDPOINT": NOWHERE}
    lines = [trained(tmp_path / "cached", "--revisions", "all"), layerwise(tmp_path / "x", "--model", "org/gated")]
    cached, never_seen = our_hub.in_order(lines, tmp_path, environment)
    assert cached.code == 0, cached.error
    assert never_seen.code == 2
    assert "to run without it: --model smollm2-135m --dataset python-docs" in never_seen.error
    assert json.loads((tmp_path / "cached" / "exp14_results.json").read_text())["results"] == results[0]["results"]
    assert len(hub.requests) == asked
    assert "step90 ..." not in cached.out


def test_retries_are_silent_unless_they_wait_long(hub, monkeypatch, caplog):
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "status", 503)
    with pytest.raises(Exception, match="503"):
        _http.http_backoff("HEAD", hub.endpoint, max_retries=1, base_wait_time=0)
    _http.logger.warning("Rate limited. Waiting 170.0s before retry [Retry 1/5].")
    assert [of.getMessage()[:12] for of in caplog.records] == ["Rate limited"]


def test_offline_holds_for_datasets_without_importing_it():
    code = (
        "import sys\nfrom lib.model import hub\nhub.go_offline()\nassert 'datasets' not in sys.modules\n"
        "import datasets\nassert datasets.config.HF_HUB_OFFLINE\n"
        "datasets.config.HF_HUB_OFFLINE = False\nhub.go_offline()\nassert datasets.config.HF_HUB_OFFLINE\n"
    )
    online = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=checkout.ROOT, env=online)
