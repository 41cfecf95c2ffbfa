"""The ledger adds up in every architecture, each entry is what removing its part takes away, and the rule names what
was planted."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import exp3_lifecycle_ledger
from experiments.ledger import judge, measure
from experiments.ledger.results import NamedWrite, Peak, Results
from lib.core import attribution, data, place
from lib.core.ablation import Condition
from lib.core.attribution import Ledger, Write
from lib.core.evidence import CANNOT_TELL
from lib.core.stats import independent
from lib.planted import blank, kinds, planting
from lib.report.upgrades import upgraded
from tests.cases import close, without
from tests.conftest import (
    MASSIVE_DIM,
    SPIKE_TOKEN,
    by_turns,
    language_model,
    planted_model,
    save,
    tiny_model,
    token_ids,
)
from tests.core.test_sweep import DIM, fixed_place, windows_of
from tests.partial import partial
from tests.reference import matrix, silence
from tests.scripts.test_scripts import run

NOTHING = Condition("nothing", "nothing off")
POSITIONS = [5, 9]
CONDITIONS = ("nothing", "some", "everything")


def parts_off(case, off):
    """Keywords of ablation.Condition."""
    architecture = case.lm.arch
    layers = tuple(range(architecture.n_layers))
    every_head = tuple((layer, head) for layer in layers for head in range(architecture.n_heads))
    return {
        "nothing": {},
        "some": {"heads": ((0, 1), (2, 3)), "mlps": (1,), "attention": (1,)},
        "everything": {"heads": every_head, "mlps": layers},
    }[off]


def of_case(case, condition=NOTHING, batch_size=2):
    at = fixed_place(POSITIONS, case.lm.arch.n_layers)
    return attribution.measure(case.lm, windows_of(case.ids), at, condition, batch_size)


def at_place(hidden):
    """(windows, layers) of a list of (windows, seq, hidden)."""
    return torch.stack([h[torch.arange(2), torch.tensor(POSITIONS), DIM] for h in hidden], 1)


@pytest.mark.parametrize("off", CONDITIONS)
def test_adds_up_to_the_models_own_hidden_states(case, off):
    kwargs = parts_off(case, off)
    found = of_case(case, Condition(off, off, **kwargs), batch_size=1 if off == "some" else 2)
    check = found.check()
    assert check.relative_error < 1e-5
    assert check.sum == pytest.approx(check.residual, abs=1e-4)
    names = {"heads": "heads", "mlps": "mlps", "attention": "attentions"}
    hidden = without(case, **{names[key]: of for key, of in kwargs.items()}).hidden if kwargs else case.real.hidden
    close(torch.from_numpy(found.place.values).float(), at_place(hidden[1:]))
    medians = torch.stack([h.abs().flatten(1).median(1).values for h in hidden[1:]], 1)
    close(torch.from_numpy(found.place.medians).float(), medians)
    start = sum(write.values for write in found.writes if write.layer is None)
    close(torch.from_numpy(start).float(), at_place(hidden[:1])[:, 0])


def test_a_dropped_component_shows(case):
    found = of_case(case)
    components = dict.fromkeys(write.kind for write in found.writes)
    for kind in components:
        largest = max(
            (write for write in found.writes if write.kind == kind), key=lambda write: np.abs(write.values).max()
        )
        writes = [write for write in found.writes if write is not largest]
        assert replace(found, writes=writes).check().relative_error > 1e-4
    has_bias = matrix_bias(case) is not None
    assert ("attention bias" in components) == has_bias
    assert ("position embedding" in components) == (case.family in ("gpt2", "gpt_neo", "opt"))


def matrix_bias(case):
    blocks = case.lm.model.get_submodule(case.tested.blocks)
    return blocks[0].get_submodule(case.tested.attention_out).bias


def test_a_head_writes_what_its_removal_takes_from_the_attention(case):
    """Input and scale of the layer stay as they are: one slice of one projection's input is zero."""
    found = of_case(case)
    written = {(write.layer, write.kind, write.head): write.values for write in found.writes}
    blocks = case.lm.model.get_submodule(case.tested.blocks)
    for layer, head in case.heads:
        seen = {}
        module = blocks[layer].get_submodule(case.tested.attention_out)
        with module.register_forward_hook(lambda _m, args, out, seen=seen: seen.update(input=args[0], output=out)):
            case.lm.model(case.ids, use_cache=False)
        off = seen["input"].clone()
        width = off.shape[-1] // case.lm.model.config.num_attention_heads
        off[..., head * width : (head + 1) * width] = 0
        share = (seen["output"] - module(off)) * norm_factor(case, blocks[layer], seen["output"])
        share = share * getattr(case.lm.model.config, "residual_multiplier", 1)
        expected = at_place([share.view(2, -1, share.shape[-1])])[:, 0]
        assert written[layer, "head", head] == pytest.approx(expected.numpy(), rel=1e-3, abs=1e-5)
        assert expected.abs().max() > 1e-3


def norm_factor(case, block, output):
    """What the RMS norm after attention multiplies by, by hand; 1 where there is none."""
    if "gemma" not in case.family and case.family != "olmo2":
        return 1
    norm = block.post_attention_layernorm
    epsilon = getattr(norm, "eps", None) or norm.variance_epsilon
    return (norm.weight + ("gemma" in case.family)) / (output.pow(2).mean(-1, keepdim=True) + epsilon).sqrt()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_parts_are_those_of_the_weights(family):
    """Embeddings, biases, and blocks run again on the same input with one head or the MLP silent."""
    lm = language_model(tiny_model(family))
    ids = token_ids(2, 16)
    found = attribution.measure(lm, windows_of(ids), fixed_place(POSITIONS, 3), NOTHING, 2)
    written = {(write.layer, write.kind, write.head): write.values for write in found.writes}
    index = torch.arange(2), torch.tensor(POSITIONS)
    inner = lm.model.transformer if family == "gpt2" else lm.model.model
    blocks = inner.h if family == "gpt2" else inner.layers
    assert np.allclose(written[None, "embedding", None], lm.model.get_input_embeddings().weight[ids[index], DIM])
    if family == "gpt2":
        assert np.allclose(written[None, "position embedding", None], inner.wpe.weight[POSITIONS, DIM])
        for layer in range(3):
            assert np.allclose(written[layer, "attention bias", None], blocks[layer].attn.c_proj.bias[DIM])
    for layer, head in ((0, 1), (1, 0), (2, 3)):
        block, kept = blocks[layer], {}
        with block.register_forward_pre_hook(
            lambda _m, args, kwargs, kept=kept: kept.update(args=args, kwargs=kwargs), with_kwargs=True
        ):
            lm.model(ids, use_cache=False)
        projection, down = (block.attn.c_proj, block.mlp.c_proj) if family == "gpt2" else (
            block.self_attn.o_proj, block.mlp.down_proj
        )  # fmt: skip
        weights = {module: {k: v.clone() for k, v in module.state_dict().items()} for module in (projection, down)}

        def again(kept=kept, block=block):
            output = block(*kept["args"], **kept["kwargs"])
            return (output[0] if isinstance(output, tuple) else output)[(*index, DIM)]

        whole = again()
        silence(down)  # so that no MLP answers to the head
        no_mlp = again()
        matrix(projection)[:, head * 8 : (head + 1) * 8] = 0
        no_head = again()
        for module, state in weights.items():
            module.load_state_dict(state)
        assert written[layer, "mlp", None] == pytest.approx((whole - no_mlp).numpy(), abs=1e-5)
        assert written[layer, "head", head] == pytest.approx((no_mlp - no_head).numpy(), abs=1e-5)


def conclude(built, condition=NOTHING):
    at = place.find(built.lm, built.windows, 8)
    found = attribution.measure(built.lm, built.windows, at, condition, 8)
    assert found.check().relative_error < 1e-5
    return judged(found)


def judged(found):
    """The conclusion on a Ledger."""
    return judge.judge(partial(Results, {"writes": found.listed(), "profile": found.profile()}))


def name_of(layer, head):
    return f"mlp {layer}" if head is None else f"head {layer}.{head}"


@pytest.mark.parametrize(("architecture", "kind"), by_turns(blank.ARCHITECTURES, kinds.KINDS))
def test_names_what_was_planted(architecture, kind):
    built = planting.build(architecture, kind, 2)
    truth, found = built.truth, conclude(built)
    values = found.values
    if truth.generator == "none":
        assert found.verdict == "none found"
        assert [values.birth, values.generators, values.erasers, values.plateau] == [None, [], [], None]
        return
    assert found.verdict == name_of(truth.layer, truth.head) == values.birth.name
    second = truth.second_generator or {"share": 0}
    others = [f"mlp {second['layer']}"] if second["share"] else []
    assert [write.name for write in values.generators] == [values.birth.name, *others]
    written = (1 - second["share"]) * max(truth.values.values(), key=abs)
    assert values.birth.value == pytest.approx(written, rel=0.25)
    eraser = truth.eraser and name_of(truth.eraser["layer"], truth.eraser.get("head"))
    assert [write.name for write in values.erasers] == ([eraser] if eraser else [])
    last = truth.eraser["layer"] - 1 if eraser else built.lm.arch.n_layers - 1
    assert values.plateau == (truth.layer, last)


def test_the_second_generator_shows_without_the_first():
    built = planting.build("gpt2", "redundant", 0)
    first, second = built.truth.layer, built.truth.second_generator["layer"]
    assert conclude(built, Condition("first", "", mlps=(first,))).verdict == f"mlp {second}"
    assert conclude(built, Condition("both", "", mlps=(first, second))).verdict == "none found"


def by_hand(residual, writes, scales=(1, 1, 1), medians=1.0):
    """A Ledger of windows that are alike but for their scale: {(layer, component): value}."""
    scales = np.array(scales, dtype=float)
    values = scales[:, None] * np.array(residual, dtype=float)
    positions = np.zeros(len(scales), dtype=int)
    at = place.Place(0, positions, "", values, np.full_like(values, medians), positions, independent(len(scales)))
    return Ledger(at, [Write(layer, *part(name), scales * float(value)) for (layer, name), value in writes.items()])


def part(name):
    """(kind, head) of "head 3" and the like."""
    kind, _space, head = name.rpartition(" ")
    return (kind, int(head)) if head.isdigit() else (name, None)


def test_rule():
    residual = [-9_000, -50_000, -100_000, -60_000, -60_000]
    writes = {
        (None, "embedding"): -9_999,  # below a tenth of the peak
        (0, "mlp"): 20_000,  # along the other sign, before the birth
        (0, "attention bias"): -11_000,  # before the birth, and smaller
        (1, "head 3"): -40_000,
        (1, "mlp"): 15_000,  # in the layer of the birth
        (2, "attention bias"): -10_000,
        (2, "mlp"): 10_000,
        (3, "head 0"): 40_000,
        (4, "mlp"): -30_000,  # after the peak
        (4, "head 1"): 9_999,
    }
    found = judged(by_hand(residual, writes))
    values = found.values
    assert found.verdict == "head 1.3"
    assert values.birth == NamedWrite(1, "head", 3, "head 1.3", -40_000)
    assert [w.name for w in values.generators] == ["head 1.3", "attention bias 0"]
    assert [w.name for w in values.erasers] == ["head 3.0"]
    exactly_a_tenth = ["attention bias 2", "mlp 2"]
    assert [w.name for w in values.cannot_tell] == exactly_a_tenth
    assert values.plateau == (1, 4)
    assert values.peak == Peak(2, -100_000)
    medians = [[1, 1, 1, 1, 100]] * 3  # its last value is massive no more
    assert judged(by_hand(residual, writes, medians=medians)).values.plateau == (1, 3)


def test_a_plateau_of_older_results_is_as_it_was_judged():
    older = {"profile": {"size": [40, 50, 100, 60, 49]}}
    assert upgraded("exp3", 3, older)["profile"] == {"size": [40, 50, 100, 60, 49], "peak": 2, "plateau": [1, 3]}
    newer = {"profile": {"size": [40, 50, 100, 60, 49], "peak": 1, "plateau": [1, 1]}}
    assert upgraded("exp3", 3, newer) == newer


def test_rule_without_a_single_component():
    spread = {(0, f"head {head}"): 900 for head in range(12)} | {(1, "mlp"): -2_000}
    found = judged(by_hand([10_800, 8_800], spread))
    assert (found.verdict, found.values.birth) == ("no single component", None)
    assert [w.name for w in found.values.erasers] == ["mlp 1"]
    assert judged(by_hand([10, 8], spread)).verdict == "none found"
    assert by_hand([0, 0], {(None, "embedding"): 0}).check().relative_error == 0


def test_windows_without_the_spike_do_not_dilute_shares():
    """Of four windows one has the spike: a mean over all of them would lose the birth at a tenth of the peak."""
    writes = {(0, "mlp"): 15_000, (1, "mlp"): 85_000}
    found = judged(by_hand([15_000, 100_000], writes, scales=(1, 1e-4, -1e-4, 1e-4)))
    assert (found.verdict, found.values.birth) == (CANNOT_TELL, None)  # one window has no interval
    found = judged(by_hand([15_000, 100_000], writes, scales=(1, 1e-4, 1.2, 1e-4, 1e-4)))
    assert found.verdict == "mlp 1"
    assert [w.name for w in found.values.generators] == ["mlp 1", "mlp 0"]
    assert found.values.birth.value == pytest.approx(85_000 * 1.1)


def test_a_value_of_another_sign_in_other_windows():
    """Each write counts along the sign of its own window: one that writes all of it does so in every window."""
    writes = {(0, "mlp"): 10, (1, "mlp"): 99_990, (2, "head 1"): -80_000}
    scales = (1, -1.1, 0.9, -1.05, 1.2, -0.95)
    found, alike = (by_hand([10, 100_000, 20_000], writes, of) for of in (scales, tuple(map(abs, scales))))
    assert [write.share for write in found.listed()] == [write.share for write in alike.listed()]
    assert found.drop() == alike.drop()
    assert judged(found).verdict == "mlp 1"
    assert [write.name for write in judged(found).values.erasers] == ["head 2.1"]


def test_a_threshold_in_the_interval_is_no_verdict():
    scales = np.array([1.0, 1.1, 0.9, 1.05])
    found = by_hand([0, 100_000], {(0, "mlp"): 0, (1, "mlp"): 90_000, (1, "head 0"): 10_000}, scales)
    found.writes[2].values[:] = [8_000, 12_000, 9_000, 11_000]
    found = judged(found)
    assert found.verdict == "mlp 1"
    assert [w.name for w in found.values.cannot_tell] == ["head 1.0"]
    assert {"share of head 1.0": "holds it", "share of mlp 1": "above"}.items() <= {
        test.what: test.side for test in found.tests
    }.items()


def test_two_as_large_as_each_other_are_no_birth():
    found = by_hand([50_000, 100_000], {(0, "mlp"): 50_000, (1, "mlp"): 50_000}, (1, 1.1, 0.9, 1))
    found.writes[0].values[:] += [900, -1100, 1000, -1000]
    conclusion = judged(found)
    assert conclusion.verdict == "cannot tell: mlp 1 or mlp 0" or conclusion.verdict.endswith("mlp 0 or mlp 1")
    assert conclusion.values.birth is None


def test_drop():
    found = by_hand([100, -1000, -200], {(0, "mlp"): 100}, (1, 2, 3))
    assert found.drop().mean == pytest.approx(0.2)
    assert by_hand([100], {(0, "mlp"): 100}).drop() is None


def test_the_place_is_that_of_the_model_as_it_is(tokenizer):
    lm = language_model(planted_model("gpt2"), tokenizer)
    ids = token_ids(2, 16)
    ids[:, 4] = SPIKE_TOKEN
    options = exp3_lifecycle_ledger.Options(mlps_off=("1", "2"), batch_size=1)
    result = measure.run(lm, windows_of(ids), options)
    assert (result.place.dim, result.place.positions) == (MASSIVE_DIM, {4: 2})
    assert result.condition.mlps_off == [1, 2]
    assert judge.judge(result).verdict == "none found"
    assert abs(result.place.values[1].mean) > 1000 > abs(result.residual[1].mean)
    assert [w.value for w in result.writes if w.layer in (1, 2) and w.kind == "mlp"] == [0, 0]


def test_script_names_the_head_of_a_model_without_mlps(tmp_path):
    """A local checkpoint whose attention is real and whose MLPs write nothing."""
    built = planting.build("gpt2", "head", 3)
    for block in built.lm.model.transformer.h:
        silence(block.mlp.c_proj)
    folder = save(tmp_path / "no-mlps", built.lm.model, built.lm.tokenizer)
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"t{token}" for token in built.windows.ids.flatten().tolist()))
    arguments = ["--model", folder, "--dataset", text, "--nsamples", "4", "--seqlen", "32", "--offline"]
    out = tmp_path / "out"
    assert run("exp3_lifecycle_ledger.py", *arguments, "--savedir", out) == 0
    results = json.loads((out / "exp3_results.json").read_text())["results"]
    head = f"head {built.truth.layer}.{built.truth.head}"
    value = max(built.truth.values.values(), key=abs)
    assert results["conclusion"]["verdict"] == head
    assert results["conclusion"]["values"]["birth"]["value"] == pytest.approx(value, rel=0.25)
    assert results["check"]["relative_error"] < 1e-5
    assert all(w["value"] == 0 for w in results["writes"] if w["kind"] == "mlp")
    text = (out / "EXPERIMENT_3_SUMMARY.txt").read_text()
    assert f"Conclusion: {head}\n" in text
    assert "below 1e-04" in text
    assert run("exp3_lifecycle_ledger.py", *arguments, "--heads_off", "all", "--mlps_off", "all", "--savedir", out) == 0
    results = json.loads((out / "exp3_results.json").read_text())["results"]
    assert results["conclusion"]["verdict"] == "none found"
    components = {w["kind"] for w in results["writes"] if w["value"]}
    assert components == {"embedding", "position embedding", "attention bias"}
    assert results["check"]["relative_error"] < 1e-5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mlps_off", "first"], "'first' is not a layer"),
        (["--mlps_off", "3"], "layers 0 to 2"),
        (["--heads_off", "1.4"], "heads 0 to 3"),
        (["--heads_off", "1"], "write layer.head"),
        (["--dim", "32"], "dims 0 to 31"),
        (["--position", "32"], "0 to 31"),
    ],
)
def test_bad_input(arguments, message, tiny_gpt2_folder, text_file, tmp_path, capsys):
    shared = ["--model", tiny_gpt2_folder, "--dataset", text_file, "--nsamples", "1", "--seqlen", "32"]
    assert run("exp3_lifecycle_ledger.py", *shared, *arguments, "--savedir", tmp_path / "out") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.real
def test_smollm2(smollm2):
    """Independent figures: MLP 11 writes about +23,500 into dim 507, MLPs 28 and 29 take 14,250 and 5,800 away."""
    options = exp3_lifecycle_ledger.Options(
        model="smollm2-135m", dataset="python-docs", nsamples=6, seqlen=96, batch_size=1
    )
    result = measure.run(smollm2, data.load(options, smollm2), options)
    conclusion = judge.judge(result)
    values = conclusion.values
    assert result.check.relative_error < 1e-4
    assert (result.place.dim, conclusion.verdict, values.plateau) == (507, "mlp 11", (11, 27))
    assert values.birth.value == pytest.approx(23_540, rel=0.1)
    assert [w.name for w in values.erasers] == ["mlp 28", "mlp 29"]
    assert [w.value for w in values.erasers] == pytest.approx([-14_253, -5_798], rel=0.1)
