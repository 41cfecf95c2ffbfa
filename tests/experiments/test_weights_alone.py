"""What the weights alone forecast: against NumPy, neuron by neuron; on planted models; judged in every direction."""

import dataclasses
import weakref

import numpy as np
import pytest
import torch
from msgspec import UNSET

import exp12_weights_alone
from experiments.weights_alone import figures, judge, measure, screen, text
from experiments.weights_alone.results import ERASER, GENERATOR, Results
from lib import catalogue
from lib.core.evidence import CANNOT_TELL, NONE_FOUND, Average
from lib.model.arch import Architecture
from lib.planted import planting
from lib.report.result_files import Result
from lib.run.errors import UserError
from tests import every_type, mixtures
from tests.conftest import HIDDEN, language_model, tiny_model
from tests.partial import partial


def run(built, **flags):
    """As it is stored and read again."""
    options = exp12_weights_alone.Options(batch_size=3, **flags)
    results = exp12_weights_alone.run(built.lm, built.windows, options)
    return catalogue.typed("exp12", catalogue.judged("exp12", results))


def arrays(model):
    """{name: float64 array} of the parameters."""
    return {name: value.detach().double().numpy() for name, value in model.named_parameters()}


def forms(down, first, second):
    """(dims, hidden, hidden) of a gated MLP: a loop over dims and neurons."""
    made = np.zeros((len(down), first.shape[1], first.shape[1]))
    for dim, row in enumerate(down):
        for neuron, weight in enumerate(row):
            u = weight * np.outer(first[neuron], second[neuron])
            made[dim] += (u + u.T) / 2
    return made


def check_gated(found, down, first, second):
    expected = forms(down, first, second)
    norms = np.linalg.norm(expected, axis=(1, 2))
    assert found.norms == pytest.approx(norms, rel=1e-4)
    assert [*found.dims] == [*np.argsort(-norms)[: screen.DIMS]]
    for i, dim in enumerate(found.dims):
        values, vectors = np.linalg.eigh(expected[dim])
        largest = np.abs(values).argmax()
        assert found.values[i] == pytest.approx(values[largest], rel=1e-3)
        vector = vectors[:, largest]
        if np.sort(np.abs(values))[-2] < 0.98 * abs(values[largest]):  # else two directions are as good
            assert abs(vector @ found.directions[i]) == pytest.approx(1, abs=0.01)
        v = found.directions[i].astype(float)
        shares = [down[dim, n] * (first[n] @ v) * (second[n] @ v) / found.values[i] for n in range(len(first))]
        assert [*found.neurons[i]] == [*np.argsort(-np.array(shares))[: screen.NEURONS]]
        assert found.shares[i] == pytest.approx(np.sort(shares)[::-1][: screen.NEURONS], rel=1e-3, abs=1e-4)
        assert sum(shares) == pytest.approx(1, rel=1e-3)
        assert first[found.neurons[i, 0]] @ v >= 0
    left, singular, right = np.linalg.svd(down)
    assert found.singular == pytest.approx(singular[: screen.VALUES], rel=1e-3)
    assert abs(found.left[0] @ left[:, 0]) == pytest.approx(1, abs=0.01)
    assert found.right[0] == np.abs(right[0]).argmax()


def screened(model, layer):
    return [*screen.screened(screen.mlps(Architecture(model), layer))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gated_as_numpy(dtype):
    """An RMS norm, whose weights are folded in; computed in float32 whatever the weights' type."""
    model = tiny_model("llama").to(dtype)
    weights = arrays(model.model.layers[1])
    norm = weights["post_attention_layernorm.weight"]
    first, second = (weights[f"mlp.{name}_proj.weight"] * norm for name in ("gate", "up"))
    (found,) = screened(model, 1)
    assert (found.layer, found.expert, found.gated, bool(found.centred)) == (1, None, True, False)
    check_gated(found, weights["mlp.down_proj.weight"], first, second)


def test_pairs_of_neurons_come_in_blocks(monkeypatch):
    model = tiny_model("llama")
    (whole,) = screened(model, 0)
    monkeypatch.setattr(screen, "BLOCK", 7)
    (found,) = screened(model, 0)
    assert found.norms == pytest.approx(whole.norms, rel=1e-5)


def test_the_weights_of_a_norm_after_it_count():
    """Gemma's norms multiply by 1 + weight."""
    model = tiny_model("gemma3_text")
    weights = arrays(model.model.layers[0])
    before, after = (1 + weights[f"{name}_feedforward_layernorm.weight"] for name in ("pre", "post"))
    first, second = (weights[f"mlp.{name}_proj.weight"] * before for name in ("gate", "up"))
    check_gated(screened(model, 0)[0], after[:, None] * weights["mlp.down_proj.weight"], first, second)


def test_fused_as_numpy():
    """Gate and up in one projection."""
    model = every_type.build("phi3")
    weights = arrays(model.model.layers[0])
    assert Architecture(model).layers[0].slices
    first, second = np.split(weights["mlp.gate_up_proj.weight"] * weights["post_attention_layernorm.weight"], 2)
    check_gated(screened(model, 0)[0], weights["mlp.down_proj.weight"], first, second)


def test_plain_as_numpy():
    """A LayerNorm takes the mean away, and its bias says where the slope is taken. GPT-2's weights are (in, out)."""
    model = tiny_model("gpt2")
    weights = arrays(model.transformer.h[1])
    up, down = weights["mlp.c_fc.weight"].T, weights["mlp.c_proj.weight"].T
    entered = up @ weights["ln_2.bias"] + weights["mlp.c_fc.bias"]
    inner = np.sqrt(2 / np.pi) * (entered + 0.044715 * entered**3)
    slope = (1 + np.tanh(inner)) / 2 + entered / 2 * (1 - np.tanh(inner) ** 2) * np.sqrt(2 / np.pi) * (
        1 + 3 * 0.044715 * entered**2
    )
    first = slope[:, None] * up * weights["ln_2.weight"]
    first -= first.mean(1, keepdims=True)
    linear = sum(np.outer(down[:, neuron], first[neuron]) for neuron in range(len(first)))
    norms = np.linalg.norm(linear, axis=1)
    (found,) = screened(model, 1)
    assert (found.gated, bool(found.centred)) == (False, True)
    assert found.norms == pytest.approx(norms, rel=1e-4)
    assert [*found.dims] == [*np.argsort(-norms)[: screen.DIMS]]
    for i, dim in enumerate(found.dims):
        v = found.directions[i].astype(float)
        assert linear[dim] @ v == pytest.approx(found.values[i], rel=1e-4)
        assert abs(found.values[i]) == pytest.approx(norms[dim], rel=1e-4)
        shares = down[dim] * (first @ v) / found.values[i]
        assert [*found.neurons[i]] == [*np.argsort(-shares)[: screen.NEURONS]]
        assert first[found.neurons[i, 0]] @ v > 0


@pytest.mark.parametrize("model_type", ["mixtral", "qwen2_moe", "gpt_oss"])
def test_experts_as_numpy(model_type):
    """One at a time, whichever way they are stored; the shared one at last."""
    model = every_type.build(model_type)
    arch = Architecture(model)
    layer = arch.with_role("experts")[0]
    block = model.model.layers[layer]
    weights = arrays(block)
    norm = weights["post_attention_layernorm.weight"]
    found = screened(model, layer)
    gate_up, down = weights["mlp.experts.gate_up_proj"], weights["mlp.experts.down_proj"]
    for expert, (fused, last) in enumerate(zip(gate_up, down, strict=True)):
        if model_type == "gpt_oss":  # (in, out), and gate and up in turns
            first, second, last = fused.T[::2] * norm, fused.T[1::2] * norm, last.T
        else:
            first, second = np.split(fused * norm, 2)
        assert found[expert].expert == expert
        check_gated(found[expert], last, first, second)
    if model_type == "qwen2_moe":
        first, second = (weights[f"mlp.shared_expert.{name}_proj.weight"] * norm for name in ("gate", "up"))
        assert found[-1].expert == "shared"
        check_gated(found[-1], weights["mlp.shared_expert.down_proj.weight"], first, second)
    assert len(found) == len(down) + (model_type == "qwen2_moe")


def test_one_mlp_is_held_at_a_time(monkeypatch):
    """The last is gone before the next is made."""
    held, make = [], screen._made

    def watched(*args):
        assert all(reference() is None for reference in held)
        made = make(*args)
        held.append(weakref.ref(made.down))
        return made

    monkeypatch.setattr(screen, "_made", watched)
    built = mixtures.planted()
    measure.foresee(built.lm)
    assert len(held) > built.lm.arch.n_layers


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_tokens_point_along_the_direction_before_any_block(family):
    model = tiny_model(family)
    lm = language_model(model, mixtures.tokenizer())
    best = measure.foresee(lm).best[:3]
    embedding = model.get_input_embeddings().weight.double().numpy()
    if family == "gpt2":
        embedding = embedding + model.transformer.wpe.weight[0].double().numpy()
        embedding = embedding - embedding.mean(1, keepdims=True)
    embedding = embedding[: len(lm.tokenizer)]
    for one, told in zip(best, measure.pointing(lm, best), strict=True):
        cosines = embedding @ one.direction / np.linalg.norm(embedding, axis=1)
        assert [row.cosine for row in told] == pytest.approx(np.sort(cosines)[::-1][: measure.TOKENS], abs=1e-5)
        assert told[0].token == f"t{cosines.argmax()}"


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        ("gpt2", "mlp"),
        ("llama", "mlp"),
        ("gpt2", "mlp_eraser"),
        ("llama", "mlp_eraser"),
        ("qwen2_moe", "shared_expert"),
    ],
)
def test_a_planted_spike_is_forecast(architecture, kind):
    built = planting.build(architecture, kind, 0)
    results = run(built)
    truth = built.truth
    dim = max(truth.values, key=lambda dim: abs(truth.values[dim]))
    first = judge.first_generator(results.forecast)
    assert (first.layer, first.dim, first.sign) == (truth.layer, dim, "+" if truth.values[dim] > 0 else "-")
    compared = results.measured.compared
    assert (compared.role, compared.generator, compared.overlap) == (GENERATOR, 1, 1)
    assert compared.cosine.mean > 0.3
    assert judge.judge(results).verdict == judge.HIT
    if truth.eraser:
        largest = results.forecast[0]
        assert (largest.layer, largest.dim, largest.role) == (truth.eraser["layer"], dim, ERASER)


@pytest.mark.parametrize(("kind", "verdict"), [("head", judge.MISS), ("none", NONE_FOUND)])
def test_what_no_mlp_makes_is_no_hit(kind, verdict):
    assert judge.judge(run(planting.build("llama", kind, 0))).verdict == verdict


def test_the_measurement_has_no_part_in_the_forecast(monkeypatch):
    built = planting.build("llama", "mlp", 0)
    before = run(built)
    find = measure.find

    def elsewhere(*args, **kwargs):
        return find(*args, **kwargs | {"dim": before.forecast[-1].dim})

    monkeypatch.setattr(measure, "find", elsewhere)
    after = run(built)
    assert after.measured != before.measured
    assert dataclasses.replace(after, measured=before.measured) == before
    assert judge.judge(after).verdict != judge.judge(before).verdict == judge.HIT


def test_the_forecast_is_made_before_the_model_runs(monkeypatch):
    """No block has run until it is there."""
    built = planting.build("gpt2", "mlp", 0)
    ran = []
    handles = [block.register_forward_hook(lambda *_args: ran.append(1)) for block in built.lm.arch.blocks]

    def stop(*_args):
        raise InterruptedError

    monkeypatch.setattr(measure, "measure", stop)
    with pytest.raises(InterruptedError):
        run(built)
    for handle in handles:
        handle.remove()
    assert not ran


def test_layers_without_known_neurons_are_left_out_and_said(monkeypatch):
    built = planting.build("llama", "mlp", 0)
    layer = built.truth.layer
    layers = [*built.lm.arch.layers]
    layers[layer] = dataclasses.replace(layers[layer], inner="what it reads is not known")
    monkeypatch.setattr(built.lm.arch, "layers", layers)
    results = run(built)
    assert [left.layer for left in results.left_out] == [layer]
    assert all(one.layer != layer for one in results.forecast)
    assert (results.measured.compared, judge.judge(results).verdict) == (None, judge.MISS)
    assert "left out: layer" in text.summarise(shown(results, built.windows))


@pytest.mark.parametrize(
    ("model_type", "layers", "why"),
    [
        ("axk2", [1, 2], "more than a scale and a bias"),  # a gate follows the norm
        ("arcee", [0, 1, 2], "is flat"),  # a squared ReLU, without biases
    ],
)
def test_what_weights_alone_do_not_tell_is_left_out(model_type, layers, why):
    foreseen = measure.foresee(every_type.loaded(model_type))
    assert [left.layer for left in foreseen.left_out] == layers
    assert all(why in left.why for left in foreseen.left_out)
    assert {one.layer for one in foreseen.screened} == {0, 1, 2} - {*layers}


def test_a_model_whose_mlps_tell_no_forecast_is_one_line():
    with pytest.raises(UserError, match="no MLP of this model tells a forecast: layer 0"):
        measure.run(every_type.loaded("arcee"), None, None)


def shown(results, windows):
    told = dict.fromkeys(("dtype", "device", "seed", "time", "command"), "")
    data = {"windows": len(windows.ids), "seqlen": windows.ids.shape[1], "dataset": "test", "bos": 0}
    origin = {"model": {"name": "tiny", "type": ""}, "data": data} | told
    return Result("exp12", origin, {"model_name": "tiny"}, results, judge.judge(results), {})


SURE, OPEN, SMALL = (0.8, 0.9), (0.05, 0.2), (0.01, 0.02)


def results_of(*forecast, writes=(("mlp", 3, SURE),), massive=True):
    """forecast: (layer, dim, role) each; writes: (kind, layer, interval of the share) each, into dim 5."""

    def write(kind, layer, share):
        cell = Average(sum(share) / 2, share, None, 8, share)
        return {"layer": layer, "kind": kind, "head": None, "name": f"{kind} {layer}", "share": cell}

    measured = {"place": {"dim": 5, "massive": massive, "peak_layer": 4}, "writes": [write(*one) for one in writes]}
    rows = [{"layer": layer, "dim": dim, "role": role, "expert": UNSET} for layer, dim, role in forecast]
    return partial(Results, {"forecast": rows, "measured": measured})


@pytest.mark.parametrize(
    ("results", "verdict"),
    [
        (results_of((3, 5, GENERATOR)), judge.HIT),
        (results_of((9, 5, ERASER), (3, 5, GENERATOR)), judge.HIT),
        (results_of((3, 5, GENERATOR), writes=[("expert", 3, SURE), ("mlp", 1, SMALL)]), judge.HIT),
        (results_of((3, 6, GENERATOR), (3, 5, GENERATOR)), judge.OTHER_DIM),
        (results_of((2, 5, GENERATOR), (3, 5, GENERATOR)), judge.OTHER_SOURCE),
        (results_of((2, 6, GENERATOR), (3, 5, GENERATOR)), judge.MISS),
        (results_of((3, 5, GENERATOR), writes=[("head", 3, SURE)]), judge.OTHER_SOURCE),
        (results_of((3, 6, GENERATOR), writes=[("head", 3, SURE)]), judge.MISS),
        (results_of((3, 5, GENERATOR), writes=[("head", 3, SURE), ("mlp", 3, (0.2, 0.3))]), judge.OTHER_SOURCE),
        (results_of((3, 5, GENERATOR), writes=[("mlp", 3, SMALL)]), judge.OTHER_SOURCE),
        (results_of((3, 5, GENERATOR), writes=[("mlp", 3, OPEN)]), CANNOT_TELL),
        (results_of((3, 5, GENERATOR), writes=[("mlp", 3, SURE), ("mlp", 2, SURE)]), CANNOT_TELL),
        (results_of((3, 6, GENERATOR), writes=[("mlp", 3, SURE), ("mlp", 2, SURE)]), CANNOT_TELL),
        (results_of((1, 5, GENERATOR), writes=[("mlp", 3, SURE), ("mlp", 2, SURE)]), judge.OTHER_SOURCE),
        (results_of((1, 5, GENERATOR), writes=[("mlp", 3, OPEN), ("mlp", 1, SMALL)]), judge.OTHER_SOURCE),
        (results_of((3, 5, GENERATOR), writes=[("expert", 3, SURE), ("expert", 3, SURE)]), judge.HIT),
        (results_of((3, 5, ERASER)), judge.NOTHING),
        (results_of(), judge.NOTHING),
        (results_of((3, 5, GENERATOR), massive=False), NONE_FOUND),
    ],
)
def test_the_verdict(results, verdict):
    assert judge.judge(results).verdict == verdict


def foreseen(*of):
    """of: (layer, its scale, own, value) each, of an MLP that writes dim 0 three times as much as dim 1; own: in parts
    of an even share."""
    found = []
    for layer, scale, own, value in of:
        direction = np.zeros(HIDDEN)
        direction[[0, 1]] = np.sqrt([own / HIDDEN, 1 - own / HIDDEN])
        norms = np.zeros(HIDDEN)
        norms[[0, 1]] = [3 * scale, scale]
        empty = [np.zeros(1)] * 5
        found.append(
            screen.Screened(
                layer, None, True, *[np.ones(1)] * 2, norms, np.array([0]), np.array([value]), direction[None], *empty
            )
        )
    return measure.Foreseen(None, found, [])


@pytest.mark.parametrize(
    ("own", "value", "earlier", "role"),
    [
        (1.1, -1, 1, ERASER),
        (0.9, -1, 1, GENERATOR),  # it reads something else
        (1.1, 1, 1, GENERATOR),  # it adds to what is there
        (1.1, -1, None, GENERATOR),  # nothing is there to erase
    ],
)
def test_an_eraser_reads_its_dim_and_writes_against_an_earlier_layer(own, value, earlier, role):
    layers = [(2, 1, own, value)] + ([] if earlier is None else [(1, 1, 0, earlier), (3, 1, 0, earlier)])
    found = foreseen(*layers)
    (last,) = (one for one in found.best if one.layer == 2)
    assert found.role(last) == role


def test_layers_of_another_scale_are_compared_by_what_stands_out():
    found = foreseen((0, 1000, 0, 1), (1, 1, 0, 1))
    found.screened[1].norms[0] = 5
    assert [(one.layer, one.norm) for one in found.best] == [(1, 5), (0, 3000)]
    assert found.best[1].times_mean == 3 * HIDDEN / 4


def test_text_and_figures():
    built = planting.build("qwen2_moe", "shared_expert", 0)
    result = shown(run(built), built.windows)
    first = judge.first_generator(result.results.forecast)
    assert f"{first.layer}.shared" in text.summarise(result)
    assert "experts" in text.details(result)
    labels = figures.norms(result).axes[0].get_legend_handles_labels()[1]
    assert f"measured: dim {first.dim}, layer {first.layer}" in labels
    assert len(figures.dims(result).axes[0].patches) == 1
