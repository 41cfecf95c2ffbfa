"""The planted models are what their truth says, by weights set to zero, copies, and hooks of this file alone; and
check_controls.py tells right from wrong."""

import copy
import dataclasses
import functools
import json
from contextlib import ExitStack

import pytest
import torch
import transformers

import check_controls
from lib.model import edits, models
from lib.planted import blank, planting
from lib.planted import kinds as planted_kinds
from lib.planted import truth as planted_truth
from lib.run.cli import Options
from tests.conftest import by_turns, exhaustive_unless, save

pytestmark = pytest.mark.slow
SEEDS = (0, 1234)
MASSIVE_KINDS = [kind for kind in planted_kinds.KINDS if kind not in ("sinks", "none")]
REDUNDANT_KINDS = ("redundant", "repair", "partial")
READ_KINDS = [kind for kind in MASSIVE_KINDS if kind not in ("content", "half", "unread")]
SETTINGS = [
    exhaustive_unless(kept, (architecture, seed))
    for architecture, first in zip(blank.ARCHITECTURES, SEEDS, strict=True)
    for seed, kept in ((seed, seed == first) for seed in SEEDS)
]
BY_TURNS = by_turns(blank.ARCHITECTURES, planted_kinds.KINDS)

build = functools.cache(planting.build)  # no test here changes a model but in a copy


def blocks(model):
    return model.transformer.h if model.config.model_type == "gpt2" else model.model.layers


def block_outputs(model, ids):
    """Per layer (batch, seq, hidden)."""
    seen = []
    handles = [block.register_forward_hook(lambda _m, _args, output: seen.append(output)) for block in blocks(model)]
    with torch.no_grad():
        model(ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


def first_token_attention(model, ids):
    """{(layer, head): mean probability on the first token, over all queries but the first}, from attention maps."""
    model = copy.deepcopy(model)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        maps = model(ids, use_cache=False, output_attentions=True).attentions
    means = [of[:, :, 1:, 0].mean((0, 2)).tolist() for of in maps]
    return {(layer, head): mean for layer, row in enumerate(means) for head, mean in enumerate(row)}


def down(model, layer):
    """(out, in) view of the last projection of an MLP."""
    mlp = blocks(model)[layer].mlp
    return mlp.c_proj.weight.data.T if model.config.model_type == "gpt2" else mlp.down_proj.weight.data


def head_columns(model, layer, head):
    """View of the attention output projection's weights that take the output of one head."""
    block = blocks(model)[layer]
    weight = (
        block.attn.c_proj.weight.data.T if model.config.model_type == "gpt2" else block.self_attn.o_proj.weight.data
    )
    return weight[:, head * blank.HEAD_DIM : (head + 1) * blank.HEAD_DIM]


def without(model, *parts):
    """A copy in which parts, {"layer", "neurons" or "head"}, write nothing."""
    model = copy.deepcopy(model)
    for part in parts:
        if part.get("neurons"):
            down(model, part["layer"])[:, list(part["neurons"])] = 0
        else:
            head_columns(model, part["layer"], part["head"]).zero_()
    return model


def generator(truth):
    return {"layer": truth.layer, "neurons": truth.neurons, "head": truth.head}


def massive_places(hidden):
    """[{(position, dim): value}] of each window of a (batch, seq, hidden) block output."""
    places = []
    for window in hidden:
        median = window.abs().flatten().sort().values[(window.numel() - 1) // 2]
        large = ((window.abs() > 100) & (window.abs() > 1000 * median)).nonzero().tolist()
        places.append({(position, dim): window[position, dim].item() for position, dim in large})
    return places


def all_massive(model, ids):
    """[layers with a massive value]."""
    return [layer for layer, hidden in enumerate(block_outputs(model, ids)) if any(massive_places(hidden))]


@pytest.fixture(params=SETTINGS, ids=lambda setting: f"{setting[0]}-{setting[1]}")
def setting(request):
    return request.param


@pytest.fixture
def of_kind(setting):
    """kind -> (model, ids, truth)."""

    def of(kind):
        built = build(setting[0], kind, setting[1])
        return built.lm.model, built.windows.ids, built.truth

    return of


@pytest.mark.parametrize(("architecture", "kind"), BY_TURNS)
def test_saved_and_reloaded(tmp_path, architecture, kind):
    built = build(architecture, kind, 0)
    folder = save(tmp_path / "model", built.lm.model, built.lm.tokenizer)
    classes = {"gpt2": transformers.GPT2LMHeadModel, "llama": transformers.LlamaForCausalLM}
    assert type(built.lm.model) is classes[architecture]
    lm = models.load(Options(model=str(folder), device="cpu", offline=True))
    with torch.no_grad():
        expected, logits = (m(built.windows.ids, use_cache=False).logits for m in (built.lm.model, lm.model))
    assert torch.equal(logits, expected)
    text = lm.tokenizer.decode(built.windows.ids[0].tolist())
    assert lm.tokenizer(text, add_special_tokens=False)["input_ids"] == built.windows.ids[0].tolist()
    truth = json.loads(json.dumps(dataclasses.asdict(built.truth)))
    assert (truth["kind"], truth["layer"]) == (kind, built.truth.layer)


def token_of(text):
    return blank.BOS if text == blank.BOS_TEXT else int(text.removeprefix("t"))


def expected_places(window, truth, layer, n_layers):
    """{(position, dim): value} that the truth says of one window, after one layer."""
    if not truth.layer <= layer < (truth.eraser or {"layer": n_layers})["layer"]:
        return {}
    tokens = [token_of(text) for text in truth.tokens]
    anywhere = truth.trigger.startswith("token")
    where = [p for p, t in enumerate(window) if t in tokens and (anywhere or p == 0)] if tokens else [0]
    second = truth.second_generator
    share = 1 - second["share"] if second and layer < second["layer"] else 1
    expected = {(p, dim): share * value for p in where for dim, value in truth.values.items()}
    if truth.later:
        later = [p for p, t in enumerate(window) if t == token_of(truth.later["token"])]
        expected |= {(p, dim): value for p in later for dim, value in truth.later["values"].items()}
    if truth.informed and window[0] == token_of(truth.informed["token"]):
        expected |= {(0, dim): value for dim, value in truth.informed["values"].items()}
    return expected


@pytest.mark.parametrize("kind", MASSIVE_KINDS)
def test_massive_where_and_as_large_as_the_truth_says(of_kind, kind):
    model, ids, truth = of_kind(kind)
    outputs = block_outputs(model, ids)
    # of "informed", the second token's flag takes its part of the normed vector
    near = {"noisy": 0.25, "informed": 0.25}.get(kind, 0.05)
    spiking, positions = set(), set()
    for layer, hidden in enumerate(outputs):
        for i, (window, places) in enumerate(zip(ids.tolist(), massive_places(hidden), strict=True)):
            expected = expected_places(window, truth, layer, len(outputs))
            assert places == pytest.approx(expected, rel=near)
            spiking |= {i} if places else set()
            positions |= {position for position, _dim in places}
    assert truth.share == len(spiking) / len(ids) == (0.5 if kind == "half" else 1)
    assert truth.positions == tuple(sorted(positions))


@pytest.mark.parametrize(
    "kind", [kind for kind in MASSIVE_KINDS if kind not in (*REDUNDANT_KINDS, "several", "informed")]
)
def test_gone_without_the_generating_part(of_kind, kind):
    model, ids, truth = of_kind(kind)
    assert all_massive(model, ids)[0] == truth.layer
    off = without(model, generator(truth))
    assert all_massive(off, ids) == []
    dims = list(truth.values)
    assert block_outputs(off, ids)[truth.layer][:, :, dims].abs().max() < 1


def test_each_named_neuron_takes_part(of_kind):
    model, ids, truth = of_kind("mlp")
    dim = max(truth.values, key=lambda d: abs(truth.values[d]))
    for neuron in truth.neurons:
        off = without(model, {"layer": truth.layer, "neurons": [neuron]})
        value = block_outputs(off, ids)[truth.layer][:, 0, dim]
        assert (value / truth.values[dim] < 0.85).all()


def test_head_generator_needs_no_mlp(of_kind):
    model, ids, truth = of_kind("head")
    width = down(model, 0).shape[1]
    off = without(model, *({"layer": layer, "neurons": range(width)} for layer in range(len(blocks(model)))))
    assert all_massive(off, ids) == all_massive(model, ids) != []
    others = [
        {"layer": layer, "head": head}
        for layer in range(len(blocks(model)))
        for head in range(blank.HEADS)
        if (layer, head) != (truth.layer, truth.head)
    ]
    assert all_massive(without(model, *others), ids) == all_massive(model, ids)


def test_mlp_that_needs_a_head(of_kind):
    model, ids, truth = of_kind("needs_head")
    ((early, value),) = truth.outliers.items()
    first = truth.first_step
    assert first["layer"] < truth.layer
    assert 15 < abs(value) < 100
    before = block_outputs(model, ids)[first["layer"]]
    assert before[:, 0, early].numpy() == pytest.approx(value, rel=0.1)
    assert before[:, 1:, early].abs().max() < 1
    assert all_massive(without(model, first), ids) == []


@pytest.mark.parametrize("kind", ["head_eraser", "mlp_eraser"])
def test_survives_without_the_eraser(of_kind, kind):
    model, ids, truth = of_kind(kind)
    assert ("head" in truth.eraser) == (kind == "head_eraser")
    layers, erased = len(blocks(model)), truth.eraser["layer"]
    assert all_massive(model, ids) == list(range(truth.layer, erased))
    assert all_massive(without(model, truth.eraser), ids) == list(range(truth.layer, layers))


def test_second_step_needs_the_first(of_kind):
    model, ids, truth = of_kind("two_steps")
    ((early, value),) = truth.outliers.items()
    between = block_outputs(model, ids)[truth.first_step["layer"]]
    assert 15 < abs(value) < 100
    assert between[:, 0, early].numpy() == pytest.approx(value, rel=0.1)
    assert all_massive(without(model, truth.first_step), ids) == []


@pytest.mark.parametrize("kind", REDUNDANT_KINDS)
def test_what_either_of_two_generators_leaves(of_kind, kind):
    model, ids, truth = of_kind(kind)
    first, second = generator(truth), truth.second_generator
    ((dim, value),) = truth.values.items()
    names = {f"mlp {part['layer']}": part for part in (first, second)}
    for name, part in names.items():
        alone = without(model, part)
        assert all_massive(alone, ids)[0] == next(other["layer"] for other in names.values() if other is not part)
        left = truth.retained.get(name, 1.0)  # a part that does not write is no loss
        assert block_outputs(alone, ids)[-1][:, 0, dim].numpy() == pytest.approx(left * value, rel=0.05)
        written = {first["layer"]: 1 - second["share"], second["layer"]: second["share"]}[part["layer"]]
        if name in truth.repair:
            assert truth.repair[name] == pytest.approx((left - (1 - written)) / written)
    assert all_massive(without(model, first, second), ids) == []
    expected = {"redundant": (1, 0), "partial": (0.6, 0.4)}
    if kind == "repair":
        assert 0.3 < truth.retained[f"mlp {first['layer']}"] < 0.7
    else:
        assert (truth.retained[f"mlp {first['layer']}"], second["share"]) == expected[kind]


def test_ten_neurons_of_which_nine_give_nine_tenths(of_kind):
    model, ids, truth = of_kind("ten")
    dim = max(truth.values, key=lambda d: abs(truth.values[d]))
    shares = {}
    for neuron in truth.neurons:
        off = without(model, {"layer": truth.layer, "neurons": [neuron]})
        shares[neuron] = 1 - (block_outputs(off, ids)[truth.layer][:, 0, dim] / truth.values[dim]).mean().item()
    assert len(shares) == 10
    largest = sorted(shares, key=shares.get, reverse=True)
    assert set(truth.most) == set(largest[:9])
    assert sum(shares[n] for n in largest[:8]) < 0.88
    assert 0.9 < sum(shares[n] for n in largest[:9]) < 0.945


def test_noise_is_a_tenth_of_the_signal(of_kind):
    model, ids, truth = of_kind("noisy")
    dim = max(truth.values, key=lambda d: abs(truth.values[d]))
    values = block_outputs(model, ids)
    spread = values[truth.layer][:, 0, dim].std() / abs(truth.values[dim])
    assert 0.01 < spread < 0.1
    for part in truth.noise:
        assert 0.02 <= abs(part["size"]) <= 0.05
        off = block_outputs(without(model, part), ids)[part["layer"]][:, 0, dim]
        took = ((values[part["layer"]][:, 0, dim] - off) / truth.values[dim]).mean()
        assert took == pytest.approx(part["size"], abs=0.01)


def losses(model, ids):
    """(windows,) mean loss in nats a token."""
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").mean(1)


def with_values(model, truth, values):
    """A copy whose layer of birth, and all later ones, have {(window, position, dim): value} in their output."""

    def put(_module, _args, output):
        output = output.clone()
        for at, value in values.items():
            output[at] = value
        return output

    model = copy.deepcopy(model)
    for block in list(blocks(model))[truth.layer :]:
        block.register_forward_hook(put)
    return model


@pytest.mark.parametrize("kind", [kind for kind in MASSIVE_KINDS if kind not in REDUNDANT_KINDS])
def test_what_the_loss_needs(of_kind, kind):
    """Without the generator; and with a constant, the same in all windows, in the place of the massive values."""
    model, ids, truth = of_kind(kind)
    cost = (losses(without(model, generator(truth)), ids) - losses(model, ids)).mean()
    if truth.need == "not needed":
        assert abs(cost) < 0.03
        return
    assert cost > 1
    more = (truth.informed or {"values": {}})["values"]
    held = {(i, 0, dim): value for i in range(len(ids)) for dim, value in (truth.values | more).items()}
    cost = (losses(with_values(model, truth, held), ids) - losses(model, ids)).mean()
    assert cost < 0.02 if truth.need == planted_truth.CONSTANT else cost > 0.2


def test_informed_windows_are_of_two_halves_of_the_vocabulary(of_kind):
    _model, ids, truth = of_kind("informed")
    told = ids[:, 0] == token_of(truth.informed["token"])
    assert told.sum() == len(ids) / 2
    assert not set(ids[told, 1:].flatten().tolist()) & set(ids[~told, 1:].flatten().tolist())


@pytest.mark.parametrize("kind", ["needs_head", "informed", "mlp"])
def test_costly_heads(of_kind, kind):
    model, ids, truth = of_kind(kind)
    before = losses(model, ids)
    heads = [(layer, head) for layer in range(len(blocks(model))) for head in range(blank.HEADS)]
    costs = {(i, h): (losses(without(model, {"layer": i, "head": h}), ids) - before).mean() for i, h in heads}
    assert {head for head, cost in costs.items() if cost > 0.15} == set(truth.costly)
    assert all(cost < 0.03 for head, cost in costs.items() if head not in truth.costly)


def test_other_spikes_have_another_size_and_sign(of_kind):
    _model, _ids, truth = of_kind("several")
    (one, first), (other, second) = truth.values.items()
    assert (one, other) == tuple(truth.later["values"])
    assert truth.later["values"][one] / first == pytest.approx(0.3)
    assert truth.later["values"][other] / second == pytest.approx(-0.5 / 0.8)


def test_decoy_neurons_have_the_largest_weights_and_no_effect(of_kind):
    model, ids, truth = of_kind("decoy")
    dim = max(truth.values, key=lambda d: abs(truth.values[d]))
    order = down(model, truth.layer)[dim].abs().argsort(descending=True).tolist()
    assert set(order[: len(truth.decoy_neurons)]) == set(truth.decoy_neurons)
    off = without(model, {"layer": truth.layer, "neurons": truth.decoy_neurons})
    before, after = (block_outputs(m, ids)[truth.layer][:, 0, dim] for m in (model, off))
    assert after.numpy() == pytest.approx(before.numpy(), rel=1e-3)


def test_decoy_head_attends_most_writes_nothing_and_reads_no_spike(of_kind):
    model, ids, truth = of_kind("decoy")
    attention = first_token_attention(model, ids)
    assert max(attention, key=attention.get) == truth.decoy_head
    layer, head = truth.decoy_head
    off = without(model, {"layer": layer, "head": head})
    change = (block_outputs(off, ids)[-1] - block_outputs(model, ids)[-1])[:, 1:].abs().max()
    assert 0 < change < 1e-3  # a noise head: about 0.1
    without_spike = first_token_attention(without(model, generator(truth)), ids)
    assert without_spike[truth.decoy_head] > 0.9


@pytest.mark.parametrize("kind", planted_kinds.KINDS)
def test_sinks_and_those_that_read_the_spike(of_kind, kind):
    model, ids, truth = of_kind(kind)
    attention = first_token_attention(model, ids)
    assert {head for head, mean in attention.items() if mean > 0.3} == set(truth.sinks)
    assert all(attention[head] > 0.9 for head in truth.sinks)
    assert set(truth.readers) <= set(truth.sinks)
    assert bool(truth.readers) == (kind in READ_KINDS)
    if truth.readers:
        parts = [generator(truth), *([truth.second_generator] if truth.second_generator else [])]
        off = first_token_attention(without(model, *parts), ids)
        assert all(off[head] < 0.2 for head in truth.readers)


def test_position_trigger_needs_no_token_in_gpt2():
    for seed in SEEDS:
        built = planting.build("gpt2", "mlp", seed)
        every = torch.arange(blank.VOCABULARY)[:, None].expand(-1, 4)
        places = massive_places(block_outputs(built.lm.model, every)[built.truth.layer])
        assert {position for place in places for position, _dim in place} == {0}
        assert all(places)


def test_position_trigger_is_bos_in_llama():
    for seed in SEEDS:
        built = planting.build("llama", "mlp", seed)
        model, ids = built.lm.model, built.windows.ids
        assert (ids[:, 1:] != blank.BOS).all()
        assert all_massive(model, ids[:, 1:]) == []
        later = torch.cat([ids[:, 1:6], ids[:, :1]], dim=1)
        places = massive_places(block_outputs(model, later)[built.truth.layer])
        assert {position for place in places for position, _dim in place} == {5}


@pytest.mark.parametrize("kind", ["content", "half"])
def test_content_trigger_follows_the_token(of_kind, kind):
    model, ids, truth = of_kind(kind)
    token = token_of(truth.tokens[0])
    assert all_massive(model, torch.where(ids == token, ids.flatten()[ids.flatten() != token][0], ids)) == []
    for position in (0, 7, 31):
        moved = torch.where(ids == token, ids[ids != token][0], ids)
        moved[:, position] = token
        places = massive_places(block_outputs(model, moved)[truth.layer])
        assert all({p for p, _dim in place} == {position} for place in places)


def test_sinks_without_anything_massive(of_kind):
    model, ids, truth = of_kind("sinks")
    assert all_massive(model, ids) == []
    assert truth.sinks
    assert not truth.readers
    assert max(hidden.abs().max() for hidden in block_outputs(model, ids)) < 10


def test_none_has_outliers_that_are_not_massive(of_kind):
    model, ids, truth = of_kind("none")
    assert all_massive(model, ids) == []
    assert truth.layer is None
    largest = max(truth.outliers.values(), key=abs)
    assert block_outputs(model, ids)[-1].abs().max().item() == pytest.approx(abs(largest), rel=0.05)
    assert truth.sinks  # on nothing massive


def test_none_fails_either_half_of_the_definition():
    sizes = [max(map(abs, planting.build("gpt2", "none", seed).truth.outliers.values())) for seed in range(20)]
    assert min(sizes) < 100 < max(sizes)


@pytest.mark.parametrize(("architecture", "kind"), BY_TURNS)
def test_no_weight_is_zero(architecture, kind):
    for name, parameter in planting.build(architecture, kind, 3).lm.model.named_parameters():
        assert (parameter != 0).all(), name


@pytest.mark.parametrize("architecture", blank.ARCHITECTURES)
def test_seeds_decide_everything(architecture):
    truths = [planting.build(architecture, "mlp", seed).truth for seed in range(12)]
    for field in ("layer", "neurons", "readers"):
        assert len({getattr(truth, field) for truth in truths}) > 2, field
    assert len({tuple(truth.values) for truth in truths}) > 2
    assert len({tuple(truth.values.values()) for truth in truths}) == 12
    assert {value > 0 for truth in truths for value in truth.values.values()} == {True, False}
    assert {len(truth.neurons) for truth in truths} == {1, 2, 3}
    again = [planting.build(architecture, "mlp", 3) for _ in range(2)]
    assert again[0].truth == again[1].truth == truths[3]
    assert torch.equal(again[0].windows.ids, again[1].windows.ids)
    pairs = zip(*(built.lm.model.parameters() for built in again), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def check(monkeypatch, folder, *flags):
    """The exit code of check_controls.py and its JSON."""
    monkeypatch.setattr("sys.argv", ["check_controls.py", "--savedir", str(folder), *flags])
    code = 0
    try:
        check_controls.main()
    except SystemExit as error:
        code = error.code
    return code, json.loads((folder / "controls.json").read_text())


SOME = [
    ("gpt2", ("mlp_eraser", "half", "gone")),
    ("llama", ("needs_head", "none", "unwoken", "flickers")),
    ("qwen2_moe", ("two_experts",)),
    ("qwen2", ("bias_alone",)),
]
MORE = [  # with which together each field differs
    ("gpt2", ("partial", "several", "content", "fine", "coarse", "born")),
    ("llama", ("head_eraser", "two_steps", "ten", "unforeseen")),
    ("qwen2_moe", ("head",)),
    ("qwen2", ("secondary_sink", "query_bias")),
]
OTHERS = {  # fields that models of these kinds have
    **dict.fromkeys(("foreseen", "forecast"), ("llama", "unforeseen")),
    "carrier": ("gpt2", "all_look"),
    "quantised": ("gpt2", "fine"),
    **dict.fromkeys(("massive_born", "sinks_born", "last_writer"), ("llama", "born")),
    **dict.fromkeys(("made_by", "experts", "expert_writes", "expert_retained"), ("mixtral", "expert")),
    **dict.fromkeys(
        ("where", "sink_kind", "sink_heads", "sink_positions", "listed_keys", "secondary", "by_query_bias"),
        ("qwen2", "secondary_sink"),
    ),
}


@pytest.mark.parametrize(("architecture", "kinds"), [*SOME, *(exhaustive_unless(False, *of) for of in MORE)])
def test_controls_are_diagnosed_right(architecture, kinds, monkeypatch, tmp_path, capsys):
    chosen = {architecture: {kind: planting.KINDS[architecture][kind] for kind in kinds}}
    monkeypatch.setattr(planting, "KINDS", chosen)
    code, payload = check(monkeypatch, tmp_path, "--seeds", "1", "--first_seed", "77")
    printed = capsys.readouterr().out
    assert code == 0
    assert "MISS" not in printed
    assert check_controls.RULE in printed
    assert f"{len(kinds)} of {len(kinds)} diagnosed right" in (tmp_path / "controls.txt").read_text()
    assert (tmp_path / "controls.png").stat().st_size > 10_000
    truths = [model["truth"] for model in payload["results"]["models"]]
    assert [truth["kind"] for truth in truths] == [*kinds]
    assert all(truth["seed"] == 77 for truth in truths)


def test_a_field_that_were_the_same_in_every_kind_would_show_nothing():
    models = [build(architecture, kind, 0) for architecture, kinds in SOME + MORE for kind in kinds]
    visible = [check_controls.visible_of(built.truth) for built in models]
    for name in check_controls.FIELDS:
        assert len({str(fields[name]) for fields in visible if name in fields}) > 1, name


def falsified(value):
    """Another value, by little where it is a number."""
    if isinstance(value, float):
        return value + 0.1
    if not isinstance(value, list):
        return f"not {value}"
    if value and isinstance(value[0], list) and isinstance(value[0][1], float):
        return [[name, falsified(number)] for name, number in value]
    return [*value, "7"]


FALSIFIED = {}  # {(architecture, kind): fields}
for field in check_controls.FIELDS:
    FALSIFIED.setdefault(OTHERS.get(field, ("gpt2", "decoy")), []).append(field)


@pytest.mark.parametrize(("architecture", "kind"), FALSIFIED)
def test_a_false_truth_is_a_miss(monkeypatch, tmp_path, capsys, architecture, kind):
    built = build(architecture, kind, 0)
    visible = check_controls.visible_of(built.truth)
    diagnosis = check_controls.diagnose(built.lm, built.windows, visible, built.checkpoints)
    monkeypatch.setattr(check_controls, "diagnose", lambda *_model: diagnosis)
    monkeypatch.setattr(check_controls.figures, "write", lambda *_: None)
    monkeypatch.setattr(planting, "build", lambda *_which: built)
    monkeypatch.setattr(planting, "KINDS", {architecture: {kind: None}})
    for field in FALSIFIED[architecture, kind]:
        false = visible | {field: falsified(visible[field])}
        monkeypatch.setattr(check_controls, "visible_of", lambda _truth, false=false: false)
        code, payload = check(monkeypatch, tmp_path, "--seeds", "1")
        assert code == 1
        assert [model["misses"] for model in payload["results"]["models"]] == [[field]]
        assert f"MISS {field}: " in capsys.readouterr().out
        assert "0 of 1 diagnosed right" in (tmp_path / "controls.txt").read_text()


@pytest.mark.parametrize("broken", ["heads_off", "mlps_off"])
def test_an_ablation_that_does_nothing_is_a_miss(monkeypatch, tmp_path, undrawn, broken):
    """Both change nothing, so everything persists; only the models without anything massive stay right."""
    monkeypatch.setattr(check_controls, "FIELDS", ("generator",))
    monkeypatch.setattr(edits, broken, lambda arch, which: ExitStack())
    kinds = ("head", "needs_head", "none", "sinks", "mlp", "redundant", "content")
    monkeypatch.setattr(planting, "KINDS", {"llama": {kind: planted_kinds.KINDS[kind] for kind in kinds}})
    _code, payload = check(monkeypatch, tmp_path, "--seeds", "1")
    missed = {m["truth"]["kind"] for m in payload["results"]["models"] if "generator" in m["misses"]}
    by_heads, nothing = {"head", "needs_head"}, {"none", "sinks"}
    assert missed == (by_heads if broken == "heads_off" else set(kinds) - {"head"} - nothing)
