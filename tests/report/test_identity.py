"""Models are told apart by their weights and dtype: nothing of another is overwritten, GPT-2 is not a folder's name."""

import json
import shutil
from contextlib import nullcontext

import pytest

import test_head_pruning_on_massive
from experiments.head_pruning import measure
from lib import experiment
from lib.core import data
from lib.report import identity
from lib.run.errors import UserError
from tests.conftest import language_model, make_tokenizer, save, save_gguf, tiny_model, token_ids
from tests.scripts.test_scripts import SAMPLE, files, run

TWELVE = {"n_layer": 12, "n_head": 12, "n_embd": 24}
COMMIT, OTHER = "a" * 40, "b" * 40
SAFETENSORS, BIN = sorted(identity.GPT2_WEIGHTS)


def provenance(dtype="float32", **source):
    return {"model": {"name": "x", "type": "gpt2", **source}, "dtype": dtype}


def folder(sha="1", config="2", name="toy"):
    return {"folder": name, "weights_sha256": {"model.safetensors": sha * 64}, "config_sha256": config * 64}


SAME = [
    (provenance(hub_id="gpt2", revision=COMMIT), provenance(hub_id="openai-community/gpt2", revision=COMMIT)),
    (provenance(hub_id="org/Toy", revision=COMMIT), provenance(hub_id="org/toy", revision=COMMIT)),
    (provenance(**folder(name="a")), provenance(**folder(name="b"))),
    (provenance(package="x", gguf_sha256="3" * 64), provenance(gguf="y.gguf", gguf_sha256="3" * 64)),
]
DIFFERENT = [
    (provenance(hub_id="gpt2", revision=COMMIT), provenance(hub_id="gpt2", revision=OTHER)),
    (provenance(hub_id="gpt2", revision=COMMIT), provenance(hub_id="gpt2-medium", revision=COMMIT)),
    (provenance(hub_id="gpt2", revision=COMMIT), provenance(**folder(name="gpt2"))),
    (provenance(**folder("1")), provenance(**folder("3"))),
    (provenance(**folder(config="2")), provenance(**folder(config="3"))),
    (provenance(gguf="m.gguf", gguf_sha256="1" * 64), provenance(gguf="m.gguf", gguf_sha256="2" * 64)),
    (provenance(**folder()), provenance("bfloat16", **folder())),
    (provenance(hub_id="gpt2", revision=COMMIT), provenance("float16", hub_id="gpt2", revision=COMMIT)),
]
GPT2 = [
    {"hub_id": "gpt2", "revision": COMMIT},
    {"hub_id": "openai-community/gpt2", "revision": OTHER},
    {"folder": "anything", "weights_sha256": {"model.safetensors": SAFETENSORS}},
    {"folder": "gpt2", "weights_sha256": {"model.safetensors": SAFETENSORS, "pytorch_model.bin": BIN}},
]
NOT_GPT2 = [
    {"hub_id": "gpt2-medium", "revision": COMMIT},
    {"hub_id": "someone/gpt2", "revision": COMMIT},
    {"hub_id": "distilbert/distilgpt2", "revision": COMMIT},
    {"folder": "gpt2", "weights_sha256": {"model.safetensors": "1" * 64}},
    {"folder": "gpt2", "weights_sha256": {"model.safetensors": "1" * 64, "pytorch_model.bin": BIN}},
    {"folder": "gpt2", "weights_sha256": {}},
    {"gguf": "gpt2.gguf", "gguf_sha256": "1" * 64},
    {},
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_the_same_model(one, other):
    assert identity.of(one) == identity.of(other)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_different_models(one, other):
    assert identity.of(one) != identity.of(other)
    assert identity.described(one) != identity.described(other)


@pytest.mark.parametrize(("weights", "same"), [("0", True), ("9", False)])
def test_an_older_result_without_a_configuration_is_of_the_model_with_its_weights(weights, same, tmp_path):
    older = folder(sha=weights)
    del older["config_sha256"]
    path = tmp_path / "exp3_results.json"
    path.write_text(json.dumps({"provenance": provenance(**older)}))
    with nullcontext() if same else pytest.raises(UserError, match="another model"):
        identity.require_same(path, provenance(**folder(sha="0")))


COURSE = provenance(hub_id="org/toy")


@pytest.mark.parametrize(
    ("course", "models", "which"),
    [
        (COURSE, [provenance(hub_id="org/toy", revision=COMMIT)], 0),
        (COURSE, [provenance(hub_id="org/toy", revision=COMMIT)] * 2, 0),
        (COURSE, [provenance(hub_id="org/toy", revision=revision) for revision in (COMMIT, OTHER)], None),
        (COURSE, [provenance(hub_id="org/other", revision=COMMIT)], None),
        (
            provenance(folder="toy", config_sha256="2" * 64),
            [provenance(**folder("1")), provenance(**folder("1", "3"))],
            0,
        ),
        (provenance(folder="toy"), [provenance(**folder())], None),
        (COURSE, [], None),
    ],
)
def test_a_course_goes_with_the_only_model_that_it_may_lead_to(course, models, which):
    *of_models, found = identity.of_each([*models, course], [False] * len(models) + [True])
    assert of_models == [identity.of(model) for model in models]
    assert found == identity.of(course if which is None else models[which])
    *_models, found = identity.of_each([*models, course | {"dtype": "bfloat16"}], [False] * len(models) + [True])
    assert found[1] == "bfloat16"


@pytest.mark.parametrize("source", GPT2)
def test_gpt2(source):
    assert identity.is_gpt2(provenance(**source))
    assert "seed study" in chosen_sets(source)


@pytest.mark.parametrize("source", NOT_GPT2)
def test_not_gpt2(source):
    assert not identity.is_gpt2(provenance(**source))
    assert chosen_sets(source) == "this model's ranking on these windows"


def chosen_sets(source, **shape):
    """Where head pruning takes its sets from, for a model of GPT-2's number of layers and heads."""
    lm = language_model(tiny_model("gpt2", **TWELVE | shape))
    object.__setattr__(lm, "source", source)
    windows = data.Windows(token_ids(2, 8), 2, False, "ids")
    return measure.choose_sets(lm, windows, test_head_pruning_on_massive.Options(model="gpt2", batch_size=2))[0].source


def test_the_head_sets_need_gpt2s_layers_and_heads():
    """Under HF_ENDPOINT, `gpt2` may be anything."""
    assert chosen_sets(GPT2[0], n_layer=6) == "this model's ranking on these windows"


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """Folders and GGUF files of one name and different weights, or one configuration value apart."""
    root, tokenizer = tmp_path_factory.mktemp("toys"), make_tokenizer()
    for seed, of in enumerate("ab"):
        save(root / of / "toy", tiny_model("gpt2", seed), tokenizer)
        save_gguf(root / of / "toy.gguf", tiny_model("llama", seed), tokenizer)
    shutil.copytree(root / "a" / "toy", root / "copy" / "toy")
    shutil.copytree(root / "a" / "toy", root / "configured" / "toy")
    config = root / "configured" / "toy" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"layer_norm_epsilon": 0.1}))
    save(root / "a" / "other", tiny_model("gpt2", 2), tokenizer)
    return root


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Names of the experiments that were measured."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    names, run_experiment = [], experiment._run

    def recorded(of, *args):
        names.append(of.name)
        return run_experiment(of, *args)

    monkeypatch.setattr(experiment, "_run", recorded)
    return names


def contents(out):
    return {name: (out / name).read_bytes() for name in files(out)}


ANOTHER = {  # what is there, what is asked for
    "other weights": (["a/toy"], ["b/toy"]),
    "other configuration": (["a/toy"], ["configured/toy"]),
    "other dtype": (["a/toy"], ["a/toy", "--dtype", "bfloat16"]),
    "other quantised file": (["a/toy.gguf"], ["b/toy.gguf"]),
    "a file after a folder": (["a/toy"], ["a/toy.gguf"]),
}


@pytest.mark.parametrize("case", ANOTHER)
def test_results_of_another_model_are_not_overwritten(case, toys, measured, text_file, tmp_path, capsys):
    first, second = ([str(toys / name), *flags] for name, *flags in ANOTHER[case])
    shared = ["--dataset", text_file, *SAMPLE, "--savedir", tmp_path / "out"]
    assert run("main_llm.py --exp2 --model", *first, *shared) == 0
    before = contents(tmp_path / "out")
    assert measured == ["layerwise"]
    capsys.readouterr()
    assert run("main_llm.py --exp2 --model", *second, *shared) == 2
    printed = capsys.readouterr().err.splitlines()
    [error] = [line for line in printed if line.startswith("error: ")]
    for told in ("toy_layerwise.json is of another model", first[0], second[0], "--savedir", "remove it"):
        assert told in error
    assert measured == ["layerwise"]
    assert contents(tmp_path / "out") == before


def test_files_that_do_not_name_the_model(toys, measured, text_file, tmp_path, capsys):
    shared = ["--dataset", text_file, *SAMPLE, "--savedir", tmp_path / "out"]
    assert run("exp1_feasibility_test.py", "--model", toys / "a" / "toy", *shared) == 0
    before = contents(tmp_path / "out")
    assert run("exp1_feasibility_test.py", "--model", toys / "a" / "other", *shared) == 2
    assert "exp1_results.json is of another model" in capsys.readouterr().err
    assert contents(tmp_path / "out") == before
    # other files beside them are no reason to refuse
    assert run("main_llm.py --exp2", "--model", toys / "a" / "other", *shared) == 0


def test_the_same_model_with_other_options_overwrites(toys, measured, text_file, tmp_path):
    shared = ["--dataset", text_file, "--savedir", tmp_path]
    for flags in (SAMPLE, ["--nsamples", "2", "--seqlen", "16", "--seed", "1"]):
        assert run("main_llm.py --exp2", "--model", toys / "a" / "toy", *shared, *flags) == 0
    assert run("main_llm.py --exp2", "--model", toys / "copy" / "toy", *shared, *SAMPLE) == 0
    assert measured == ["layerwise"] * 3


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"provenance": {"model": 3}}', '{"provenance": null}'])
def test_what_is_no_result_is_overwritten(content, tmp_path):
    path = tmp_path / "x.json"
    path.write_text(content)
    identity.require_same(path, provenance(**folder()))
    identity.require_same(tmp_path / "missing.json", provenance(**folder()))


def test_figures_are_not_redrawn_over_those_of_another_model(toys, text_file, tmp_path, capsys):
    for name in ("a", "b"):
        shared = ["--dataset", text_file, *SAMPLE, "--savedir", tmp_path / name]
        assert run("main_llm.py --exp2", "--model", toys / name / "toy", *shared) == 0
    before = contents(tmp_path / "b")
    result = tmp_path / "a" / "toy_layerwise.json"
    assert run("main_llm.py", "--replot", result, "--savedir", tmp_path / "b") == 2
    assert "is of another model" in capsys.readouterr().err
    assert contents(tmp_path / "b") == before
    for into in ("a", "elsewhere"):
        assert run("main_llm.py", "--replot", result, "--savedir", tmp_path / into) == 0


def test_a_study_in_another_models_folder_measures_nothing(toys, measured, text_file, tmp_path, capsys):
    shared = ["--dataset", text_file, *SAMPLE]
    own = tmp_path / "out" / "exp3_lifecycle_ledger"
    assert run("exp3_lifecycle_ledger.py", "--model", toys / "a" / "toy", *shared, "--savedir", own) == 0
    before = contents(tmp_path / "out")
    measured.clear()
    for model in (["b/toy"], ["a/toy", "--dtype", "bfloat16"]):
        flags = ["--model", toys / model[0], *model[1:], *shared, "--savedir", tmp_path / "out", "--short"]
        capsys.readouterr()
        assert run("study.py", *flags) == 2
        error = capsys.readouterr().err
        assert "exp3_results.json is of another model" in error
        assert error.count("\n") == 1
    assert not measured
    assert contents(tmp_path / "out") == before


def test_a_folder_of_a_hub_name_is_what_it_is(tokenizer, text_file, tmp_path, monkeypatch, undrawn):
    """It comes before the hub, as everywhere in Hugging Face; what it was is recorded."""
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "openai-community" / "gpt2", tiny_model("gpt2", **TWELVE), tokenizer)
    flags = ["--model", "openai-community/gpt2", "--dataset", text_file, *SAMPLE, "--n_random", "1", "--savedir", "out"]
    assert run("test_head_pruning_on_massive.py", *flags) == 0
    payload = json.loads((tmp_path / "out" / "pruning_results.json").read_text())
    assert payload["provenance"]["model"]["folder"] == "gpt2"
    assert payload["results"]["sets"]["source"] == "this model's ranking on these windows"
