"""Planted sinks are what their truth says, by eager attention maps, edited copies and NumPy; and the scripts find
them, and nothing else."""

import copy
import functools

import numpy as np
import pytest
import torch

import check_controls
from lib.model import models
from lib.planted import blank, planting, sinks
from lib.run.cli import Options
from tests.conftest import exhaustive_unless, save
from tests.planted.test_planted import block_outputs, blocks, massive_places

pytestmark = pytest.mark.slow
OF_SINKS = sinks.KINDS | sinks.WITH_POSITIONS | sinks.WITH_QUERY_BIAS | sinks.ALL_LOOK
EVERY = [(architecture, kind) for architecture, of in planting.KINDS.items() for kind in of if kind in OF_SINKS]
AT_FIRST = "no_op", "broadcast", "mixed_sinks", "all_look"

build = functools.cache(planting.build)  # no test here changes a model but in a copy


def of(*kinds):
    settings = [setting for setting in EVERY if setting[1] in kinds]
    return pytest.mark.parametrize(("architecture", "kind"), settings, ids=[" ".join(setting) for setting in settings])


def of_one_architecture_each():
    """Every kind of OF_SINKS, in one of its architectures; in the others it is exhaustive."""
    cases = []
    for i, kind in enumerate(OF_SINKS):
        architectures = [architecture for architecture, of in EVERY if of == kind]
        kept = architectures[i % len(architectures)]
        cases += [exhaustive_unless(architecture == kept, architecture, kind) for architecture in architectures]
    return pytest.mark.parametrize(("architecture", "kind"), cases)


@pytest.fixture
def planted(architecture, kind):
    """(model, ids, sinks of the truth)."""
    built = build(architecture, kind, 0)
    return built.lm.model, built.windows.ids, built.truth.attention


def maps_of(model, ids):
    """(layers, windows, heads, queries, keys)."""
    model = copy.deepcopy(model)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return torch.stack(model(ids, use_cache=False, output_attentions=True).attentions).double().numpy()


def means_of(maps):
    """(layers, heads, keys) mean over windows, and over the queries that see a key."""
    return maps.mean(1).sum(2) / np.arange(maps.shape[3], 0, -1)


def heads_at(maps, key):
    """{(layer, head)} of those with over 0.3 of their attention on a key, by every window alone."""
    means = maps[..., key].sum(3) / (maps.shape[3] - key)
    return {(int(i), int(h)) for i, h in np.argwhere((means > 0.3).all(1))}


def projections(model, layer):
    """{name: (weight of (out, in), bias or None)} views of what queries, keys and values are made by."""
    block = blocks(model)[layer]
    if model.config.model_type == "gpt2":
        fused = block.attn.c_attn
        parts = zip(fused.weight.data.T.split(blank.HIDDEN), fused.bias.data.split(blank.HIDDEN), strict=True)
        return dict(zip("qkv", parts, strict=True))
    own = block.self_attn
    linears = {"q": own.q_proj, "k": own.k_proj, "v": own.v_proj}
    return {name: (linear.weight.data, linear.bias) for name, linear in linears.items()}


def rows_of(model, layer, head, name):
    """A head's rows; of keys and values those that it shares with others."""
    n = len(projections(model, layer)[name][0]) // blank.HEAD_DIM
    first = head // (blank.HEADS // n) * blank.HEAD_DIM
    return slice(first, first + blank.HEAD_DIM)


def watching_values(model, layer, head, see):
    """Call `see` with the (windows, seq, channels) view of the values that a head finds, before they are used."""
    block = blocks(model)[layer]
    reads = block.attn.c_attn if model.config.model_type == "gpt2" else block.self_attn.v_proj
    n, rows = len(projections(model, layer)["v"][0]), rows_of(model, layer, head, "v")

    def hook(_module, _args, output):
        see(output[..., -n:][..., rows])

    return reads.register_forward_hook(hook)


@of(*OF_SINKS)
def test_heads_look_where_the_truth_says(planted):
    model, ids, truth = planted
    maps = maps_of(model, ids)
    at = {key: heads_at(maps, key) for key in range(maps.shape[4])}
    assert tuple(key for key, heads in at.items() if heads) == truth.positions
    assert at[0] == {(layer, head) for layer, head, _kind in truth.heads}
    assert all(len(at[key]) >= 2 for key in truth.positions)
    if truth.positions:
        assert means_of(maps).max(2)[tuple(np.array([*at[truth.positions[0]]]).T)].min() > 0.4
    # of later queries alone
    n = maps.shape[4]
    later = np.tril(np.ones((n, n)), -1)
    means = (maps * later).sum(3)[..., :16] / later.sum(0)[:16]  # the others see fewer than 16
    assert {int(key) for key in np.argwhere((means > 0.3).all(1))[:, -1]} == {key for key, *_ in truth.keys}
    assert ((means > 0.3).any(1) == (means > 0.3).all(1)).all()


@of(*OF_SINKS)
def test_listed_keys_have_their_token_and_their_spike(planted):
    model, ids, truth = planted
    massive = [set().union(*(map(tuple, places) for places in windows)) for windows in zip(
        *(massive_places(hidden) for hidden in block_outputs(model, ids)), strict=True
    )]  # fmt: skip
    for position, token, is_massive in truth.keys:
        tokens = {blank.token_text(int(t)) for t in ids[:, position]}
        assert token is None or tokens == {token}
        assert token is not None or position == 0 or len(tokens) > 1
        assert {any(p == position for p, _dim in places) for places in massive} == {is_massive}


@of(*AT_FIRST, "secondary_sink", "like_first", "relay", "query_bias", "bias_alone")
def test_values_at_the_first_key_are_short_or_move_the_output(planted):
    model, ids, truth = planted
    before = block_outputs(model, ids)
    for layer, head, kind in truth.heads:
        norms = []

        def first_to_zero(values, norms=norms):
            norms.append(values.norm(dim=2))
            values[:, 0] = 0

        edited = copy.deepcopy(model)
        watching_values(edited, layer, head, first_to_zero)
        moved = (block_outputs(edited, ids)[layer] - before[layer])[:, 1:].norm(dim=2).mean()
        ratio, size = norms[0][:, 0] / norms[0][:, 1:].mean(1), before[layer][:, 1:].norm(dim=2).median()
        assert (ratio < 0.2).all() if kind == sinks.NO_OP else (ratio > 1.2).all()
        assert moved / size < 0.02 if kind == sinks.NO_OP else moved / size > 0.08
    kinds = [kind for *_head, kind in truth.heads]
    assert truth.kind == (kinds[0] if len({*kinds}) == 1 else sinks.MIXED)


@of("secondary_sink", "like_first")
def test_a_later_token_is_like_the_first_as_long_as_the_truth_says(planted):
    model, ids, truth = planted
    positions = [position for position, *_rest in truth.keys if position] or [*truth.ignored]
    outputs = [hidden.double().numpy() for hidden in block_outputs(model, ids)]
    like = {}
    for layer, hidden in enumerate(outputs[:-1]):
        sizes = np.linalg.norm(hidden, axis=2)
        cosine = np.einsum("wpd,wd->wp", hidden, hidden[:, 0]) / sizes / sizes[:, :1]
        assert (np.abs(np.delete(cosine, [0, positions[0]], axis=1)) < 0.9).all()
        like[layer] = (np.abs(cosine[:, positions[0]]) > 0.95).all()
        assert like[layer] or (np.abs(cosine[:, positions[0]]) < 0.8).all()
    assert np.linalg.norm(outputs[-2][:, 0], axis=1).min() > 100
    layers = [layer for layer in like if like[layer]]
    assert layers == [*range(layers[0], layers[-1] + 1)]
    if truth.secondary:
        ((token, first, n),) = truth.secondary
        assert {blank.token_text(int(t)) for t in ids[:, positions[0]]} == {token}
        assert layers == [*range(first, first + n)]


@of("like_first", "ignored")
def test_nobody_looks_at_the_largest(planted):
    model, ids, truth = planted
    ((position, token),) = truth.ignored.items()
    assert {blank.token_text(int(t)) for t in ids[:, position]} == {token}
    largest = [hidden.norm(dim=2) for hidden in block_outputs(model, ids)]
    assert any((norms[:, position] > 50 * norms.median()).all() for norms in largest)
    assert means_of(maps_of(model, ids))[:, :, position].max() < 0.15


@of("query_bias", "bias_alone", *AT_FIRST)
def test_sinks_of_the_query_bias_go_with_it(planted):
    model, ids, truth = planted
    edited = copy.deepcopy(model)
    for layer in range(len(blocks(model))):
        bias = projections(edited, layer)["q"][1]
        if bias is not None:
            bias.data.zero_()
    maps = maps_of(edited, ids)
    left, means = heads_at(maps, 0), means_of(maps)
    assert {(layer, head) for layer, head, _kind in truth.heads} - left == {*truth.by_bias}
    assert all(means[layer, head, 0] < 0.2 for layer, head in truth.by_bias)
    assert bool(left) == (len(truth.by_bias) < len(truth.heads))


@of("later_sink")
def test_a_later_sink_goes_with_its_token(planted):
    model, ids, truth = planted
    (position,) = truth.positions
    without = ids.clone()
    without[:, position] = ids[:, position + 1]
    maps = maps_of(model, without)
    assert not any(heads_at(maps, key) for key in range(ids.shape[1]))


@of("later_position")
def test_a_later_position_is_a_sink_whatever_stands_there(planted):
    model, ids, truth = planted
    (position,) = truth.positions
    moved = ids.roll(1, dims=1)
    assert heads_at(maps_of(model, moved), position) == heads_at(maps_of(model, ids), position) != set()


@of_one_architecture_each()
def test_saved_and_reloaded_without_a_zero_weight(tmp_path, architecture, kind):
    built = build(architecture, kind, 0)
    folder = save(tmp_path / "model", built.lm.model, built.lm.tokenizer)
    lm = models.load(Options(model=str(folder), device="cpu", offline=True))
    with torch.no_grad():
        expected, logits = (m(built.windows.ids, use_cache=False).logits for m in (built.lm.model, lm.model))
    assert torch.equal(logits, expected)
    for name, parameter in built.lm.model.named_parameters():
        assert (parameter != 0).all(), name


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen2"])
def test_seeds_decide_everything(architecture):
    truths = [build(architecture, "secondary_sink", seed).truth.attention for seed in range(4)]
    for field in ("heads", "positions", "secondary"):
        assert len({getattr(truth, field) for truth in truths}) > 2, field
    later = [build(architecture, "later_sink", seed).truth.attention for seed in range(6)]
    assert {truth.where for truth in later} == {sinks.ELSEWHERE, sinks.NONE}
    again = planting.build(architecture, "secondary_sink", 0)
    assert again.truth.attention == truths[0]
    pairs = zip(
        again.lm.model.parameters(), build(architecture, "secondary_sink", 0).lm.model.parameters(), strict=True
    )
    assert all(torch.equal(a, b) for a, b in pairs)


def test_grouped_heads_share_keys():
    model = build("qwen2", "mixed_sinks", 0).lm.model
    assert model.config.num_key_value_heads == 2 < model.config.num_attention_heads == 4
    assert blocks(model)[0].self_attn.q_proj.bias is not None


@of_one_architecture_each()
def test_the_scripts_find_them_and_nothing_else(architecture, kind):
    built = build(architecture, kind, 0)
    before = [parameter.clone() for parameter in built.lm.model.parameters()]
    visible = check_controls.visible_of(built.truth)
    assert check_controls.diagnose(built.lm, built.windows, visible) == visible
    assert all(torch.equal(a, b) for a, b in zip(built.lm.model.parameters(), before, strict=True))
