"""Each edit behind the sink is that of a copy with edited weights, by eager attention; what a model lacks is not there;
and the rule comes out in every direction."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

import exp11_sink_circuit
from experiments.sink_circuit import changes, figures, judge
from experiments.sink_circuit.results import (
    CANDIDATES,
    EPES,
    FIRST_POSITION,
    FIRST_TOKEN,
    KEY_COLUMNS,
    MLPS,
    POSITIONS,
    QUERY_BIAS,
    RAW,
    Results,
)
from lib import catalogue
from lib.core.evidence import CANNOT_TELL, NONE_FOUND, Average
from lib.model import queries
from lib.model.arch import Architecture
from lib.model.attention_rows import Parts
from lib.model.models import LanguageModel
from lib.planted import planting
from lib.report import result_files
from lib.run.checkout import ROOT
from lib.run.errors import UserError
from tests import architectures, cases, every_type, reference
from tests.core.test_sweep import windows_of
from tests.partial import partial

LENGTH, HIDDEN, HEADS, LAYERS = 16, 32, 4, 2  # the first LAYERS of three are the middle
WINDOW = 12  # of GPT-Neo's local attention
TOKENS = (62, 63)  # at positions 0 and 5, and nowhere else
CONTROLLED = 5
OF_POSITIONS = (FIRST_POSITION, EPES, RAW, POSITIONS, KEY_COLUMNS)


def gpt2_bias(block):
    return block.attn.c_attn.bias.data[:HIDDEN]


def opt_bias(block):
    return block.self_attn.q_proj.bias.data


# name: (family, how many positions the table is ahead, a view of the query bias, (in, out) keys, the MLP)
MODELS = {
    "gpt2": ("gpt2", 0, gpt2_bias, lambda b: b.attn.c_attn.weight.data[:, HIDDEN : 2 * HIDDEN]),
    "opt": ("opt", 2, opt_bias, lambda b: b.self_attn.k_proj.weight.data.T),
    "gpt_neo": ("gpt_neo", 0, None, lambda b: b.attn.attention.k_proj.weight.data.T),
    "qwen2": ("qwen2", None, opt_bias, None),
    "llama": ("llama", None, None, None),
}


def built(name):
    """A tiny model of a family with its windows: lm, ids, blocks of a model, views of its weights."""
    family, ahead, bias, keys = MODELS[name]
    model = cases.build(cases.configuration(family, {"window_size": WINDOW} if family == "gpt_neo" else {}))
    ids = torch.randint(min(TOKENS), (3, LENGTH), generator=torch.Generator().manual_seed(1))
    ids[:, 0], ids[:, CONTROLLED] = TOKENS
    lm = LanguageModel(model, Architecture(model), None, {})
    tested = architectures.TESTED[family]
    return SimpleNamespace(name=name, lm=lm, ids=ids, tested=tested, ahead=ahead, bias=bias, keys=keys)


def measured(lm, ids, **flags):
    """As it is stored and read again."""
    options = exp11_sink_circuit.Options(**{"batch_size": 2} | flags)
    return catalogue.typed("exp11", catalogue.judged("exp11", exp11_sink_circuit.run(lm, windows_of(ids), options)))


def table(of, model):
    """The (positions, hidden) embeddings, a view."""
    path = "model.decoder.embed_positions" if of.ahead else "transformer.wpe"
    return model.get_submodule(path).weight.data[of.ahead :]


def as_mlp_makes_it(of, model, vectors):
    """EPEs, by hand."""
    block = model.get_submodule(of.tested.blocks)[0]
    if of.ahead:
        return vectors + block.fc2(torch.relu(block.fc1(block.final_layer_norm(vectors))))
    return vectors + block.mlp(block.ln_2(vectors))


def swapped(hidden, vectors, position):
    """In NumPy, float64."""
    new = hidden.double().numpy().copy()
    one, other = (v / np.linalg.norm(v) for v in vectors[position : position + 2].double().numpy())
    for at, own, its in ((position, one, other), (position + 1, other, one)):
        along = new[:, at] @ own
        new[:, at] += along[:, None] * (its - own)
    return torch.from_numpy(new).to(hidden)


def edited(of, name, control):
    """A copy of the model with edited weights, or with a hook of its own where weights cannot do it."""
    model = copy.deepcopy(of.lm.model)
    if model.config.tie_word_embeddings:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.data.clone())
    blocks = model.get_submodule(of.tested.blocks)
    at = CONTROLLED if control else 0
    if name == QUERY_BIAS:
        for block in blocks:
            of.bias(block).zero_()
    elif name == FIRST_POSITION:
        table(of, model)[at] = table(of, model)[at + 1].clone()
    elif name == POSITIONS:
        table(of, model)[int(control) :] = 0
    elif name == FIRST_TOKEN:
        model.get_input_embeddings().weight.data[TOKENS[int(control)]] = 0
    elif name == KEY_COLUMNS:
        for block in blocks:
            of.keys(block)[of.dims["random" if control else "largest"]] = 0
    elif name in (EPES, RAW):
        raw = table(of, model)[:LENGTH].clone()
        vectors = as_mlp_makes_it(of, model, raw) if name == EPES else raw
        blocks[0].register_forward_hook(
            lambda _m, _a, out: (
                (swapped(out[0], vectors, at), *out[1:]) if isinstance(out, tuple) else swapped(out, vectors, at)
            )
        )
    else:
        assert name == MLPS
        for block in blocks:
            last = block.get_submodule(of.tested.mlp_out)
            if control:
                last.register_forward_hook(lambda _m, _a, out: out.view(-1, LENGTH, HIDDEN)
                                           .index_fill(1, torch.arange(1, LENGTH), 0).view(out.shape))  # fmt: skip
            else:
                reference.silence(last)
    return model


def observed(of, model):
    """(mean attention, mean loss) of eager attention, in which a query that cannot see token 0 is left out."""
    real = cases.observe(of.tested, model, of.ids)
    kinds = getattr(model.config, "attention_layers", ["global"] * LAYERS)
    by_layer = []
    for kind, maps in zip(kinds, real.maps[:LAYERS], strict=False):
        seen = [q for q in range(LENGTH // 2, LENGTH) if kind == "global" or q < WINDOW]
        if seen:
            by_layer.append(maps[:, :, seen, 0].mean())
    loss = [reference.loss(logits, ids) for logits, ids in zip(real.logits, of.ids, strict=True)]
    return torch.stack(by_layer).mean().item(), np.mean(loss)


def there(name):
    """The edits that a family has the parts for."""
    _family, ahead, bias, _keys = MODELS[name]
    absent = [QUERY_BIAS] * (bias is None) + [*OF_POSITIONS] * (ahead is None)
    return [edit for edit in changes.LABELS if edit not in absent]


@pytest.mark.parametrize("name", MODELS)
def test_every_edit_is_that_of_a_copy_with_edited_weights(name):
    of = built(name)
    before = cases.observe(of.tested, of.lm.model, of.ids)
    results = measured(of.lm, of.ids)
    assert [edit for edit, found in results.edits.items() if found.there] == there(name)
    assert (results.dims is None) is (of.ahead is None)
    if results.dims:
        epe = as_mlp_makes_it(of, of.lm.model, table(of, of.lm.model)[:1])[0]
        assert results.dims == sorted(np.argsort(-epe.abs().numpy())[:3].tolist())
        assert not {*results.dims} & {*results.random_dims}
        of.dims = {"largest": results.dims, "random": results.random_dims}
    attention, loss = observed(of, of.lm.model)
    assert results.baseline.attention.mean == pytest.approx(attention, rel=1e-4)
    assert results.baseline.loss.mean == pytest.approx(loss, rel=1e-4)
    for edit in there(name):
        for control in (False, True):
            if edit == QUERY_BIAS and control:
                continue  # below
            found = results.edits[edit].control if control else results.edits[edit]
            expected, its_loss = observed(of, edited(of, edit, control))
            assert found.attention.mean == pytest.approx(expected, rel=1e-3), (edit, control)
            assert found.change.mean == pytest.approx(expected - attention, abs=1e-4), (edit, control)
            assert found.left.mean == pytest.approx(expected / attention, rel=1e-3)
            assert found.loss_change.mean == pytest.approx(its_loss - loss, abs=2e-3), (edit, control)
            assert abs(expected - attention) > 1e-5, f"{edit}: nothing changed"
    assert torch.equal(cases.observe(of.tested, of.lm.model, of.ids).logits, before.logits)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in of.lm.model.modules())


@pytest.mark.parametrize("name", ["gpt2", "opt", "qwen2"])
def test_the_control_of_the_query_bias_is_as_long_in_each_head(name):
    of = built(name)
    circuit = changes.find(of.lm, LENGTH, 0)
    turned = changes.turned(circuit, circuit.biases, 0)
    model = copy.deepcopy(of.lm.model)
    for layer, block in enumerate(model.get_submodule(of.tested.blocks)):
        own = of.bias(block).view(HEADS, -1)
        added = turned[layer].view(HEADS, -1) - own
        torch.testing.assert_close(added.norm(dim=1), own.norm(dim=1))
        assert (torch.cosine_similarity(added, own, dim=1).abs() < 0.99).all()
        of.bias(block)[:] = turned[layer]
    expected, _loss = observed(of, model)
    assert measured(of.lm, of.ids).edits[QUERY_BIAS].control.attention.mean == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", ["gpt2", "opt", "qwen2", "gpt_neo"])
def test_doses(name):
    of = built(name)
    results = measured(of.lm, of.ids, factors=(0.5, 1.5, 1.0))
    assert [*results.doses] == [edit for edit in (QUERY_BIAS, FIRST_POSITION) if edit in there(name)]
    for edit, doses in results.doses.items():
        assert [dose.factor for dose in doses] == [0.5, 1.0, 1.5]
        assert doses[1].attention == results.baseline.attention
        for dose in doses:
            model = copy.deepcopy(of.lm.model)
            if edit == QUERY_BIAS:
                for block in model.get_submodule(of.tested.blocks):
                    of.bias(block).mul_(dose.factor)
            else:
                table(of, model)[0] *= dose.factor
            assert dose.attention.mean == pytest.approx(observed(of, model)[0], rel=1e-3)


def queries_and_keys(of, block, stream):
    """(what the bias gives, what the content gives, keys), (batch, heads, seq, width), of one block."""
    if of.name == "gpt2":
        taken, weight = block.ln_1(stream), block.attn.c_attn.weight
        content, key = taken @ weight[:, :HIDDEN], block.attn.c_attn(taken)[..., HIDDEN : 2 * HIDDEN]
    else:
        norm = block.self_attn_layer_norm if of.name == "opt" else block.input_layernorm
        taken = norm(stream)
        content, key = taken @ block.self_attn.q_proj.weight.T, block.self_attn.k_proj(taken)
    width = HIDDEN // HEADS
    every = (of.bias(block).expand(content.shape), content, key)
    bias, content, key = (x.unflatten(-1, (-1, width)).transpose(1, 2) for x in every)
    if of.name == "qwen2":
        turn = of.lm.model.model.rotary_emb(stream, torch.arange(LENGTH)[None])
        (bias, _key), (content, key) = (apply_rotary_pos_emb(query, key, *turn) for query in (bias, content))
    return bias, content, key.repeat_interleave(HEADS // key.shape[1], dim=1)


def by_hand(of):
    """(bias, all else) x (key 0, the other keys seen): mean logits of the layers, from hidden states."""
    hidden = cases.observe(of.tested, of.lm.model, of.ids).hidden
    sees = torch.ones(LENGTH, LENGTH).tril().bool()[LENGTH // 2 :, 1:]
    rows = []
    for block, stream in zip(of.lm.model.get_submodule(of.tested.blocks), hidden[:-1], strict=True):
        bias, content, key = queries_and_keys(of, block, stream)
        rows.append([])
        for query in (bias, content):
            logits = (query @ key.mT / (HIDDEN // HEADS) ** 0.5)[:, :, LENGTH // 2 :]
            rows[-1] += [logits[..., 0].mean().item(), logits[..., 1:][:, :, sees].mean().item()]
    return rows


@pytest.mark.parametrize("name", ["gpt2", "opt", "qwen2"])
def test_logits_are_split_into_bias_and_content(name):
    of = built(name)
    results = measured(of.lm, of.ids)
    assert results.why_no_bias is None
    found = [
        [cell.mean for cell in (layer.bias, layer.bias_others, layer.content, layer.content_others)]
        for layer in results.logits
    ]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(by_hand(of)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("model_type", "why"),
    [("qwen3", "its queries have no bias"), ("llama", "its queries have no bias")],
)
def test_without_a_bias_all_of_the_logits_is_content(model_type, why):
    lm = every_type.loaded(model_type)
    results = measured(lm, torch.randint(3, 100, (2, LENGTH), generator=torch.Generator().manual_seed(0)))
    assert results.why_no_bias == why
    assert all(layer.bias is None and layer.content is not None for layer in results.logits)
    edit = results.edits[QUERY_BIAS]
    assert (edit.there, edit.why, edit.attention, edit.control) == (False, why, None, None)
    assert judge.judge(results).values.absent == [QUERY_BIAS, FIRST_POSITION]


FUSED = {  # outputs of the queries, from transformers' source
    "gpt2": ("attn.c_attn", "attn.c_attn", [*range(64)], [*range(64, 128)]),
    "gpt_neox": (
        "attention.query_key_value",
        "attention.query_key_value",
        [48 * head + i for head in range(4) for i in range(16)],
        [48 * head + 16 + i for head in range(4) for i in range(16)],
    ),
    "phi3": ("self_attn.qkv_proj", "self_attn.qkv_proj", [*range(64)], [*range(64, 96)]),
    "gpt_oss": ("self_attn.q_proj", "self_attn.k_proj", [*range(64)], [*range(32)]),
    "opt": ("self_attn.q_proj", "self_attn.k_proj", [*range(64)], [*range(64)]),
    "mpt": ("attn.Wqkv", "attn.Wqkv", [*range(64)], [*range(64, 128)]),
}


@pytest.mark.parametrize("model_type", FUSED)
def test_the_outputs_that_are_queries_and_keys_are_found(model_type):
    for found in queries.find(every_type.loaded(model_type)).values():
        told = (found.query.path, found.key.path, found.query.outputs.tolist(), found.key.outputs.tolist())
        assert told == FUSED[model_type]
        assert found.additive


def test_what_a_norm_follows_is_not_additive_and_latent_keys_are_not_known():
    assert not any(found.additive for found in queries.find(every_type.loaded("qwen3")).values())
    for found in queries.find(every_type.loaded("deepseek_v3")).values():
        assert found.query.path == "self_attn.q_b_proj"
        assert found.key == "are not the outputs of one projection"
    for layer, found in queries.find(every_type.loaded("jetmoe")).items():
        assert isinstance(found.query, str), layer


@pytest.mark.parametrize(
    ("query", "key", "value", "known"),
    [
        ([1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], (True, True)),
        ([1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0], (True, False)),  # keys are values
        ([1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1], (False, False)),
        ([1, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1], (False, False)),  # more outputs than heads have
    ],
)
def test_outputs_of_which_something_else_is_made_are_not_told_apart(query, key, value, known):
    """Four groups of one projection, and which of them two heads of queries, one of keys and one of values hang on."""
    groups = [queries._Group("qkv", slice(4 * i, 4 * i + 4)) for i in range(4)]
    two, one = torch.zeros(1, 2, 4, 4), torch.zeros(1, 1, 4, 4)
    stored = {"qkv": queries._Stored(transposed=False, takes=8, gives=16)}
    found = queries._found(groups, stored, Parts(two, one, one, two), [*query, *key, *value], additive=True)
    assert tuple(isinstance(part, queries.Projection) for part in (found.query, found.key)) == known


def test_zeros_in_a_projection_hide_nothing():
    lm = every_type.loaded("gpt2")
    lm.model.get_submodule("transformer.h")[1].attn.c_attn.weight.data.zero_()
    assert queries.find(lm)[1].query.outputs.tolist() == [*range(64)]


def cell(low, high):
    return Average((low + high) / 2, (low, high), None, 8, (low, high))


GONE, STAYS, UNCLEAR = (0.1, 0.2), (0.9, 1.1), (0.4, 0.6)
CARRIED, CONTROL_TOO, KEPT = (GONE, STAYS), (GONE, GONE), (STAYS, STAYS)


def judged(attention=(0.4, 0.5), **left):
    """left: of the edit and its control, by candidate; where it is not given it is not there."""
    edits = {}
    for name in CANDIDATES:
        if name not in left:
            edits[name] = {"label": name, "there": False, "left": None, "control": None}
            continue
        edit, control = left[name]
        edits[name] = {"label": name, "left": cell(*edit), "control": {"label": "", "left": cell(*control)}}
    baseline = {"attention": cell(*attention), "evenly": 0.03}
    return judge.judge(partial(Results, {"baseline": baseline, "edits": edits}))


@pytest.mark.parametrize(
    ("left", "verdict"),
    [
        ({QUERY_BIAS: CARRIED, FIRST_POSITION: KEPT, FIRST_TOKEN: KEPT}, "carried by the query bias"),
        (
            {QUERY_BIAS: CARRIED, FIRST_POSITION: CARRIED, FIRST_TOKEN: KEPT},
            "carried by the query bias and the first position's embedding",
        ),
        ({FIRST_TOKEN: CARRIED}, "carried by the first token's embedding"),
        ({FIRST_TOKEN: CONTROL_TOO}, judge.NONE_ALONE),
        ({QUERY_BIAS: KEPT, FIRST_POSITION: KEPT, FIRST_TOKEN: KEPT}, judge.NONE_ALONE),
        ({QUERY_BIAS: (UNCLEAR, STAYS), FIRST_TOKEN: KEPT}, CANNOT_TELL),
        ({QUERY_BIAS: (GONE, UNCLEAR), FIRST_TOKEN: KEPT}, CANNOT_TELL),
        ({QUERY_BIAS: (UNCLEAR, STAYS), FIRST_TOKEN: CARRIED}, "carried by the first token's embedding"),
    ],
)
def test_the_rule_in_every_direction(left, verdict):
    assert judged(**left).verdict == verdict
    assert judged(attention=(0.03, 0.04), **left).verdict == NONE_FOUND
    assert judged(attention=(0.05, 0.07), **left).verdict == CANNOT_TELL


@pytest.mark.parametrize(
    ("architecture", "kind", "verdict"),
    [
        ("gpt2", "decoy", "carried by the first position's embedding"),
        ("llama", "decoy", "carried by the first token's embedding"),
        ("gpt2", "content", NONE_FOUND),
        ("llama", "content", NONE_FOUND),
    ],
)
def test_what_a_planted_sink_hangs_on_is_found(architecture, kind, verdict):
    """Planted readers look at what is written at position 0, which a GPT-2 tells by its embedding and a Llama by its
    token; with "content" at no fixed position."""
    built = planting.build(architecture, kind, 0)
    assert judge.judge(measured(built.lm, built.windows.ids, batch_size=8)).verdict == verdict


def test_a_planted_query_bias_is_found():
    """All that queries are is a bias that points at the key of position 0, whatever is in the windows."""
    of = built("gpt2")
    of.ids = torch.randint(min(TOKENS), (24, LENGTH), generator=torch.Generator().manual_seed(2))
    width, blocks = HIDDEN // HEADS, of.lm.model.get_submodule(of.tested.blocks)
    for layer, block in enumerate(blocks):
        block.attn.c_attn.weight.data[:, :HIDDEN] = 0
        stream = cases.observe(of.tested, of.lm.model, of.ids).hidden[layer]
        keys = block.attn.c_attn(block.ln_1(stream))[..., HIDDEN : 2 * HIDDEN].unflatten(-1, (HEADS, width))
        direction = torch.nn.functional.normalize((keys[:, 0] - keys[:, 1:].mean(1)).mean(0), dim=1)
        of.bias(block)[:] = (20 * direction).flatten()
    results = measured(of.lm, of.ids, batch_size=8)
    assert QUERY_BIAS in judge.judge(results).values.carriers
    bias = [layer.bias.mean - layer.bias_others.mean for layer in results.logits]
    content = [layer.content.mean for layer in results.logits]
    assert min(bias) > 1
    assert np.allclose(content, 0, atol=1e-4)


def test_a_model_without_attention_is_one_line():
    lm = every_type.loaded("mamba")
    with pytest.raises(UserError, match="no attention heads"):
        measured(lm, torch.zeros(2, LENGTH, dtype=torch.long))


def test_short_windows_and_windows_that_hide_the_first_token():
    of = built("gpt2")
    with pytest.raises(UserError, match="at least 3 tokens"):
        measured(of.lm, of.ids[:, :2])
    assert measured(of.lm, of.ids[:, :3]).control_positions == (1, 2)
    lm = every_type.loaded("mistral")
    with pytest.raises(UserError, match="sees the first one"):
        measured(lm, torch.zeros(2, LENGTH, dtype=torch.long))


@pytest.mark.parametrize("model", ["qwen2.5-coder-0.5b", "smollm2-135m"])
def test_the_figure_shows_what_softmax_sees(model):
    """The difference of the table's columns, whatever all keys have in common."""
    payload = result_files.load(ROOT / "results" / model / "exp11_sink_circuit" / "exp11_results.json", "exp11")
    stored = catalogue.concluded(payload)
    drawn = figures.logits(stored)
    apart = drawn.axes[-1]
    curves = {line.get_label().removeprefix("key 0 less others: "): line for line in apart.get_lines()}
    parts = {"query bias": "bias", "all else": "content"} if stored.results.doses else {"all of it": "content"}
    for label, part in parts.items():
        pairs = [[getattr(layer, name).mean for name in (part, f"{part}_others")] for layer in stored.results.logits]
        np.testing.assert_allclose(curves[label].get_ydata(), [at_0 - others for at_0, others in pairs])
        low, high = sorted(curves[label].get_ydata())[:: len(pairs) - 1]
        assert (high - low) / np.ptp(apart.get_ylim()) > 0.2
