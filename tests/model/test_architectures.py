"""Every supported architecture, as transformers builds it, against that model's own outputs and zeroed copies of it."""

import gc
from contextlib import ExitStack
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
import transformers
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode
from transformers.integrations import sdpa_attention
from transformers.pytorch_utils import Conv1D

from experiments.mlp_internal import measure
from lib.core import mlp
from lib.model import arch, attention, edits, families, hooks
from lib.model.models import LanguageModel, load
from lib.model.parts import is_projection
from lib.model.trace import Call
from lib.run.cli import Options, UserError
from tests import architectures
from tests.cases import LAYER, SEQUENCES, build, by_hand, captured, close, configuration, run, some, without
from tests.conftest import save
from tests.reference import matrix


def same(case, got, expected):
    """`got` is of run(), `expected` of observe(), and not what the whole model does."""
    logits, hidden = got
    close(logits, expected.logits)
    for mine, real in zip(hidden, expected.hidden[1:], strict=True):
        close(mine, real)
    assert (logits - case.real.logits).abs().max() > 1e-2


def test_block_outputs_are_the_hidden_states(case):
    logits, hidden = run(case)
    assert torch.equal(logits, case.real.logits)
    for mine, real in zip(hidden, case.real.hidden[1:], strict=True):
        close(mine, real)


def test_head_off_is_a_zero_slice_of_the_projection(case):
    same(case, run(case, edits.heads_off(case.lm.arch, case.heads)), without(case, heads=case.heads))


def test_attention_off_is_a_zero_projection(case):
    same(case, run(case, edits.attention_off(case.lm.arch, [0, 2])), without(case, attentions=[0, 2]))


def test_mlp_off_is_a_zero_projection(case):
    same(case, run(case, edits.mlps_off(case.lm.arch, [0, 2])), without(case, mlps=[0, 2]))


EVERY_LAYER = range(architectures.LAYERS)
PARTS_OFF = {  # part: (hooks.* that turns it off in these layers, role of the module, its side, what is zeroed there)
    "heads": (
        lambda view, layers: edits.heads_off(view, [(layer, head) for layer in layers for head in range(view.n_heads)]),
        ("head_projection", hooks.watch_inputs),
    ),
    "attention": (edits.attention_off, ("attention_write", hooks.watch_outputs)),
    "mlps": (edits.mlps_off, ("mlp_write", hooks.watch_outputs)),
}


def zeroed(view, part, layers):
    """The part runs and is then multiplied by zero."""
    role, watch = PARTS_OFF[part][1]
    return watch(view, role, lambda _layer, value: value * 0, layers)


@pytest.mark.parametrize("part", PARTS_OFF)
@pytest.mark.parametrize("layers", [[1], EVERY_LAYER], ids=["one", "every"])
def test_off_is_bit_for_bit_what_zeroing_gives(case, part, layers):
    view = case.lm.arch
    got, expected = run(case, PARTS_OFF[part][0](view, layers)), run(case, zeroed(view, part, layers))
    assert torch.equal(got[0], expected[0])
    for mine, theirs in zip(got[1], expected[1], strict=True):
        assert torch.equal(mine, theirs)


def operations(case, *watchers):
    """Floating-point operations of the matrix products, attention among them, of one pass through the blocks."""
    with ExitStack() as stack:
        for watcher in watchers:
            stack.enter_context(watcher)
        counter = stack.enter_context(FlopCounterMode(display=False))
        hooks.forward(case.lm, case.ids)
    return counter.get_total_flops()


def test_off_is_not_computed(case):
    """Nothing that multiplies matrices is left; one part alone leaves what is the other's, in one layer its share."""
    view = case.lm.arch
    heads, attention, mlps = (part[0] for part in PARTS_OFF.values())
    outside = operations(case, attention(view, EVERY_LAYER), mlps(view, EVERY_LAYER))
    assert operations(case, heads(view, EVERY_LAYER), mlps(view, EVERY_LAYER)) == outside
    everything = operations(case) - outside
    no_attention, no_mlps = (operations(case, off(view, EVERY_LAYER)) - outside for off in (attention, mlps))
    assert no_attention + no_mlps == everything
    assert min(no_attention, no_mlps) > 0
    assert outside <= everything / 10
    for off, all_of_it in ((heads, no_mlps), (attention, no_mlps), (mlps, no_attention)):
        assert operations(case, off(view, [1])) - outside == everything - all_of_it / architectures.LAYERS
    assert len(case.ids) == 2  # one of each version
    half = everything - no_attention / architectures.LAYERS / 2
    assert operations(case, mlps(view, [1], [])) - outside == half


WATCHED = [  # (role, side) of what lib's watchers see of the parts
    *(("head_projection", watch) for watch in (hooks.watch_inputs, hooks.watch_outputs)),
    *(("down", watch) for watch in (hooks.watch_inputs, hooks.watch_outputs)),
    *((role, hooks.watch_outputs) for role in ("attention_write", "mlp_write", "up", "gate", "activation")),
]


def test_watchers_see_of_what_is_off_what_they_would_see_if_it_ran(case):
    """The probabilities on the first token as well."""
    compare_watchers(case, entered="before")


@some
def test_watchers_that_are_entered_after_a_part_is_off_see_the_same(case):
    compare_watchers(case, entered="after")


def compare_watchers(case, entered):
    view = case.lm.arch

    def seen_under(off, wanted):
        seen = {}
        watchers = [
            watch(view, role, lambda layer, value, key=(role, watch): seen.update({(*key, layer): value.clone()}))
            for role, watch in wanted
        ]
        run(case, *([*watchers, off] if entered == "before" else [off, *watchers]))
        return seen

    every = [(role, watch) for role, watch in WATCHED if role != "gate" or view.is_gated(0)]
    for part, (turn_off, _where) in PARTS_OFF.items():
        expected = seen_under(zeroed(view, part, [0, 2]), every)
        got = {}
        for one in every:
            got |= seen_under(turn_off(view, [0, 2]), [one])
        assert got.keys() == expected.keys()
        assert [key for key in expected if not torch.equal(got[key], expected[key])] == [], part
        probabilities = [{}, {}]
        for into, off in zip(probabilities, (turn_off(view, [0, 2]), zeroed(view, part, [0, 2])), strict=True):
            watched = attention.watch_first_token(case.lm, lambda layer, p, _v, into=into: into.update({layer: p}))
            run(case, off, watched)
        assert list(probabilities[0]) == [0, 1, 2]
        assert all(torch.equal(probabilities[0][layer], probabilities[1][layer]) for layer in range(3))


@pytest.mark.parametrize("off", ["heads", "attentions"])
def test_tokens_meet_in_attention_only(case, off):
    """With no attention anywhere, one token's outputs do not depend on the tokens before."""
    architecture = case.lm.arch
    layers, heads = range(architecture.n_layers), range(architecture.n_heads)
    every_head = [(layer, head) for layer in layers for head in heads]
    changed = SimpleNamespace(**vars(case))
    changed.ids = case.ids.clone()
    changed.ids[:, :-1] = (case.ids[:, :-1] + 1) % architectures.TOKENS["vocab_size"]

    def last(of):
        if off == "heads":
            return run(of, edits.heads_off(architecture, every_head))[0][:, -1]
        return run(of, edits.attention_off(architecture, layers))[0][:, -1]

    close(last(changed), last(case))
    assert (run(changed)[0][:, -1] - run(case)[0][:, -1]).abs().max() > 1e-2


def test_heads_are_in_the_order_of_their_maps(case):
    """A head whose attention weights are all zero, by PyTorch's own functions, is a head that is off."""
    layer, head = case.heads[-1]

    def no_output(function):
        def call(*args, **kwargs):
            value = function(*args, **kwargs)
            calls.append(1)
            if len(calls) == layer + 1:
                value = value.clone()
                value[:, head] = 0
            return value

        return call

    calls, name = [], "scaled_dot_product_attention"
    if case.lm.model.config._attn_implementation == "eager":
        name = "softmax"
    with mock.patch.object(torch.nn.functional, name, no_output(getattr(torch.nn.functional, name))):
        expected = run(case)[0]
    assert len(calls) == architectures.LAYERS
    close(run(case, edits.heads_off(case.lm.arch, [(layer, head)]))[0], expected)


def test_contributions_add_up(case):
    scale = getattr(case.lm.model.config, "residual_multiplier", 1)
    attention, mlps = captured(case, "attention_write"), captured(case, "mlp_write")
    for layer, (before, after) in enumerate(zip(case.real.hidden[:-1], case.real.hidden[1:], strict=True)):
        close(before + scale * (attention[layer] + mlps[layer]), after)
        assert min(attention[layer].abs().max(), mlps[layer].abs().max()) > 1e-2


def test_probabilities_are_those_of_the_maps(case, kernel):
    seen, visible = {}, {}

    def see(layer, probability, sees_first):
        seen[layer], visible[layer] = probability, sees_first

    close(run(case, attention.watch_first_token(case.lm, see))[0], case.real.logits)
    windows = 0
    for layer, maps in enumerate(case.real.maps):
        first = maps[..., 0]
        assert_close(seen[layer], first, rtol=0, atol=1e-5)
        assert torch.equal(visible[layer].expand_as(first), first > 0)
        windows += not visible[layer].all()
    assert (windows > 0) == ("sliding" in case.variant or "local" in case.variant)


@pytest.mark.parametrize("grouped", [True, False])
def test_probability_of_a_single_token_is_one(case, kernel, grouped):
    """Also where transformers does not leave the grouping of queries to PyTorch, as for heads wider than 256."""
    seen = {}
    with (
        mock.patch.object(sdpa_attention, "use_gqa_in_sdpa", return_value=grouped),
        attention.watch_first_token(case.lm, lambda layer, probability, _visible: seen.update({layer: probability})),
    ):
        hooks.forward(case.lm, case.ids[:, :1])
    rounding = 4e-6 if kernel == "log sum exp" else 0  # of float32 logits of up to 16, in the exponent
    for layer in range(architectures.LAYERS):
        expected = torch.ones(SEQUENCES, case.lm.arch.n_heads, 1)
        assert_close(seen[layer], expected, rtol=0, atol=rounding)


def test_everything_is_restored(case):
    class Broken(Exception):  # noqa: N818
        pass

    def fail(layer, *_):
        if layer == LAYER:
            raise Broken

    implementation = case.lm.model.config._attn_implementation
    architecture = case.lm.arch
    for watcher in (
        edits.heads_off(architecture, case.heads),
        edits.attention_off(architecture, [LAYER]),
        edits.mlps_off(architecture, [LAYER]),
        attention.watch_first_token(case.lm, lambda *_: None),
        edits.activation_replaced(architecture, LAYER, torch.relu),
    ):
        run(case, watcher)
    for watcher in (attention.watch_first_token(case.lm, fail), hooks.watch_outputs(architecture, "down", fail)):
        with pytest.raises(Broken):
            run(case, watcher)
    assert torch.equal(run(case)[0], case.real.logits)
    assert case.lm.model.config._attn_implementation == implementation


def test_mlp_checkpoints_equal_a_hand_made_mlp(case):
    architecture = case.lm.arch
    got = {}
    for name, _label, role, side in mlp.checkpoints_of(architecture, LAYER):
        watch = hooks.watch_inputs if side == "input" else hooks.watch_outputs
        got[name] = captured(case, role, watch)[LAYER]
    scale = getattr(case.lm.model.config, "residual_multiplier", 1)
    after_attention = case.real.hidden[LAYER] + scale * captured(case, "attention_write")[LAYER]
    close(got["residual"], case.real.hidden[LAYER] if "parallel" in case.variant else after_attention)
    gate, up, inner, output = by_hand(case, got.get("mlp_input", got["residual"]))
    if gate is not None:
        close(got["gate"], gate)
        close(got["after_activation"], case.tested.act(gate), 1e-4)
    close(got["up" if case.tested.gated else "after_linear1"], up)
    close(got["product" if case.tested.gated else "after_activation"], inner, 1e-4)
    close(got["mlp_output"], output, 1e-4)
    written = captured(case, "mlp_write")[LAYER]
    has_norm = "gemma" in case.family or case.family == "olmo2"
    assert ("mlp_write" in got) == has_norm == (not torch.allclose(written, output, atol=1e-2))
    close(got.get("mlp_write", written), written)
    close(got["block_output"], case.real.hidden[LAYER + 1])


def test_neurons_add_up_to_the_mlp_output(case):
    internals = measure.Internals(case.lm, LAYER, position=5, dim=3)
    internals.measure(slice(0, len(case.ids)), case.ids)
    _gate, _up, inner, output = by_hand(case, captured(case, "up", hooks.watch_inputs)[LAYER])
    contributions = internals.contributions(3)
    weight = matrix(case.lm.model.get_submodule(case.tested.blocks)[LAYER].get_submodule(case.tested.mlp_out))
    by_neuron = {row.neuron: row.contribution for row in contributions}
    expected = (inner[:, 5] * weight[3]).mean(0)
    close(torch.tensor([by_neuron[n] for n in range(len(expected))]), expected, 1e-4)
    check = internals.check(3, contributions)
    assert check.output == pytest.approx(output[:, 5, 3].mean().item(), rel=1e-3)
    assert check.relative_error < 1e-3
    checkpoints = {row.name: row for row in internals.checkpoints()}
    assert checkpoints["mlp_output"].max == pytest.approx(output.abs().max().item(), rel=1e-4)


def test_neurons_replaced(case):
    """With ReLU for the activation function, the MLP is the hand-made one with ReLU."""
    replaced = SimpleNamespace(**vars(case))
    replaced.tested = SimpleNamespace(**{**vars(case.tested), "act": torch.relu})
    values = {}
    with hooks.watch_inputs(case.lm.arch, "up", lambda _la, value: values.update(mlp_input=value.clone()), [LAYER]):
        run(
            case,
            edits.activation_replaced(case.lm.arch, LAYER, torch.relu),
            hooks.watch_outputs(case.lm.arch, "down", lambda _la, value: values.update(out=value.clone()), [LAYER]),
        )
    close(values["out"], by_hand(replaced, values["mlp_input"])[3], 1e-4)


def test_projections_are_those_of_the_model(case):
    block = case.lm.model.get_submodule(case.tested.blocks)[LAYER]
    first = [block.get_submodule(path) for path in case.tested.mlp_in]
    roles = ("gate", "up") if case.tested.gated else ("up",)
    weights = torch.cat([case.lm.arch.weight(LAYER, role) for role in roles])
    assert torch.equal(weights, torch.cat([matrix(module) for module in first]))
    biases = [case.lm.arch.bias(LAYER, role) for role in roles]
    if biases[0] is None:
        assert all(module.bias is None for module in first)
    else:
        assert torch.equal(torch.cat(biases), torch.cat([module.bias for module in first]))
    for role, path in (("head_projection", case.tested.attention_out), ("down", case.tested.mlp_out)):
        assert torch.equal(case.lm.arch.weight(LAYER, role), matrix(block.get_submodule(path)))


def test_dimensions(case):
    architecture, config = case.lm.arch, case.lm.model.config
    assert architecture.n_layers == architectures.LAYERS
    assert architecture.n_heads == case.real.maps[0].shape[1]
    assert architecture.hidden_size == case.real.hidden[0].shape[-1]
    width = getattr(config, "head_dim", None) or architecture.hidden_size // architecture.n_heads
    assert set(architecture.head_dims.values()) == {width}
    assert architecture.n_positions == (None if config.model_type == "bloom" else 64)


@pytest.mark.parametrize("family", ["gpt_neo", "gptj", "bloom", "mpt", "gemma2"])
def test_maps_are_not_kept(family):
    """As many (seq, seq) tensors are alive in the last layer as in the third."""
    layers = "num_layers" if family == "gpt_neo" else "num_hidden_layers"
    changes = {"attention_types": [[["global"], 6]]} if family == "gpt_neo" else {"layer_types": None}
    length = 37
    model = build(configuration(family, {layers: 6, **changes}))
    lm = LanguageModel(model, arch.Architecture(model), None, {})
    alive = []
    gc.freeze()  # what is there before is not counted

    def see(layer, _probability, _visible):
        if layer >= 2:
            tensors = (x for x in gc.get_objects() if type(x) is torch.Tensor)
            alive.append(sum(x.shape[-2:] == (length, length) for x in tensors))

    with attention.watch_first_token(lm, see):
        hooks.forward(lm, torch.ones(1, length, dtype=torch.long))
    assert len(alive) == 4
    assert max(alive) == alive[0] > 0


def test_attention_that_cannot_be_watched_is_an_error(monkeypatch):
    model = build(configuration("llama", {}))
    lm = LanguageModel(model, arch.Architecture(model), None, {})
    every = transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS
    monkeypatch.setitem(every, "sdpa", lambda _module, query, *_a, **_k: (query.transpose(1, 2), None))
    with (
        pytest.raises(UserError, match="cannot watch"),
        attention.watch_first_token(lm, lambda *_: None),
    ):
        hooks.forward(lm, torch.ones(1, 4, dtype=torch.long))


@pytest.mark.parametrize("family", architectures.TESTED)
def test_loads_as_it_was_saved(family, tokenizer, tmp_path):
    model = build(configuration(family, {"vocab_size": 320}))
    loaded = load(Options(model=str(save(tmp_path / "model", model, tokenizer)), device="cpu", offline=True))
    assert loaded.model.config._attn_implementation == model.config._attn_implementation
    ids = torch.arange(12)[None]
    assert torch.equal(loaded.model(ids, use_cache=False).logits, model(ids, use_cache=False).logits)


@pytest.mark.parametrize(("family", "changes", "message"), architectures.REFUSED)
def test_variant_refused(family, changes, message, tokenizer, tmp_path):
    model = build(configuration(family, {"vocab_size": 320, **changes}))
    with pytest.raises(UserError, match=message):
        load(Options(model=str(save(tmp_path / "model", model, tokenizer)), device="cpu", offline=True))


@pytest.mark.parametrize(("family", "changes", "message"), architectures.BUILT_WRONGLY)
def test_variant_that_transformers_builds_wrongly_is_refused(family, changes, message):
    families.require_right(configuration(family, {}))
    with pytest.raises(UserError, match=f"unsupported variant of '{family}': .*{message}"):
        families.require_right(configuration(family, changes))


def test_eager_falcon_with_alibi_is_refused():
    model = build(configuration("falcon", {"alibi": True}))
    assert arch.Architecture(model)
    model.config._attn_implementation = "eager"
    with pytest.raises(UserError, match="adds ALiBi twice"):
        arch.Architecture(model)


@pytest.mark.parametrize("n", [384, 4096])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_projection_of_one_large_value_is_one(n, transposed):
    """What a norm gives of a massive activation: it is added first, and each further term is rounded at its size."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, n, generator=generator) / 50
    taken = torch.randn(16, n, generator=generator) / 20
    taken[:, 0] = n**0.5
    summed = np.cumsum((taken[:, None] * weight).numpy(), axis=2, dtype=np.float32)[..., -1]
    given = torch.from_numpy(summed)[None]
    module = Conv1D(48, n) if transposed else torch.nn.Linear(n, 48)
    module.weight.data, module.bias.data = weight.T if transposed else weight, torch.zeros(48)

    def is_one(output):
        return is_projection(Call("down", module, taken[None], output))

    assert is_one(given) == ("in, out" if transposed else "out, in")
    assert is_one(given * (1 + 1e-3)) is None
    assert is_one(given.roll(1, 1)) is None


@pytest.mark.parametrize(
    "config",
    [
        transformers.GPT2Config(n_embd=768, n_layer=2, n_head=12, vocab_size=500),
        transformers.LlamaConfig(
            hidden_size=768, intermediate_size=2048, num_hidden_layers=2, num_attention_heads=12, vocab_size=500
        ),
    ],
    ids=lambda config: config.model_type,
)
def test_massive_activations_hide_no_part(config):
    """At the width of GPT-2: of a small model's values the rounding does not show."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    ordinary = arch.Architecture(model).layers
    with torch.no_grad():
        model.get_input_embeddings().weight[:, 7] += 5000
    assert arch.Architecture(model).layers == ordinary
    assert all(layer.down and layer.up and layer.head_projection for layer in ordinary)
