"""Quantised activations against NumPy, PyTorch's own fake quantisation and copies whose projections are wrapped here;
planted spikes; the verdict in every direction."""

import copy
import dataclasses
import functools
import re

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers.pytorch_utils import Conv1D

import exp13_quantisation
from experiments.quantisation import changes, figures, judge, schemes, text
from experiments.quantisation.results import (
    AS_IT_IS,
    ATTENTION_OUT,
    BLOCKS,
    CLAMPED,
    EXPERTS,
    KEPT,
    MEAN,
    PREFIX,
    PROJECTIONS,
    REMEDIES,
    SCHEMES,
    WHERE,
    Results,
    Scheme,
    name_of,
)
from experiments.quantisation.sites import find, left_out
from lib import catalogue
from lib.core.data import Windows
from lib.core.definitions import COST
from lib.core.evidence import CANNOT_TELL, NONE_FOUND
from lib.model import next_token, verify
from lib.model.arch import Architecture
from lib.model.models import LanguageModel
from lib.report.result_files import Result
from lib.run.errors import UserError
from tests import every_type, mixtures
from tests.cases import firsts
from tests.conftest import SPIKE_TOKEN, exhaustive_unless, language_model, planted_model, tiny_model, token_ids
from tests.core.test_sweep import windows_of
from tests.partial import partial

pytestmark = pytest.mark.usefixtures("few_draws")
CALIBRATE, MEASURE = [0, 4], [1, 2, 3, 5]
STREAM = ("c_attn", "c_fc", "q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
LABELS = [scheme.name for scheme in SCHEMES]


def run(lm, windows, batch_size=2):
    """As it is stored and read again."""
    results = exp13_quantisation.run(lm, windows, exp13_quantisation.Options(batch_size=batch_size))
    return catalogue.typed("exp13", catalogue.judged("exp13", results))


def stored(results):
    told = ("dtype", "device", "seed", "time", "command")
    data = {"windows": 6, "seqlen": 16, "dataset": "test", "bos": 0}
    origin = {"model": {"name": "tiny", "type": ""}, "data": data} | dict.fromkeys(told, "")
    return Result("exp13", origin, {"model_name": "tiny"}, results, judge.judge(results), {})


# Quantised by hand


def whole_numbers(x, levels, largest):
    step = largest / levels
    return np.clip(np.rint(x / step), -levels, levels) * step if step else 0 * x


def by_hand(x, scheme, static):
    """A (seq, width) array; static: the largest |value| of calibration."""
    if scheme.format == "float16":
        with np.errstate(over="ignore"):
            return x.astype(np.float32).astype(np.float16).astype(x.dtype)  # PyTorch, too, by way of float32
    levels = {"int8": 127, "int4": 7}[scheme.format]
    if scheme.scaling == "static":
        return whole_numbers(x, levels, static)
    if scheme.scaling == "dynamic":
        return whole_numbers(x, levels, np.abs(x).max())
    width = next(n for n in range(min(128, x.shape[1]), 0, -1) if x.shape[1] % n == 0)
    step = {"token": x.shape[1], "group": width}[scheme.scaling]
    made = np.empty_like(x)
    for row in range(len(x)):
        for start in range(0, x.shape[1], step):
            part = x[row, start : start + step]
            made[row, start : start + step] = whole_numbers(part, levels, np.abs(part).max())
    return made


@pytest.mark.parametrize("scheme", SCHEMES, ids=LABELS)
def test_values_are_those_of_numpy(scheme):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 5, 320)) * np.exp(rng.standard_normal((3, 5, 1)))
    x[0, 0, :6] = 127, 0.5, 1.5, 2.5, -0.5, -1.5  # halves of a step
    x[1, 2] = 0
    x[2, 4, 7] = 70_000
    got = schemes.quantised(torch.from_numpy(x), scheme, 100.0).numpy()
    np.testing.assert_allclose(got, [by_hand(window, scheme, 100.0) for window in x], rtol=1e-12)


@pytest.mark.parametrize(("format", "levels"), [("int8", 127), ("int4", 7)])
def test_a_linear_is_that_of_pytorchs_own_quantisation(format, levels):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 6, 48, generator=generator)
    linear = torch.nn.Linear(48, 8)
    with torch.no_grad():
        whole = torch.fake_quantize_per_tensor_affine(x, x.abs().max().item() / levels, 0, -levels, levels)
        rows = x[0].abs().amax(1) / levels
        tokens = torch.fake_quantize_per_channel_affine(
            x[0], rows, torch.zeros(6, dtype=torch.int32), 0, -levels, levels
        )
        for scaling, expected in (("dynamic", whole), ("token", tokens[None])):
            got = schemes.quantised(x, Scheme(format, scaling), 0.0)
            torch.testing.assert_close(linear(got), linear(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("width", "group"), [(576, 96), (1536, 128), (64, 64), (131, 1), (128, 128), (896, 128)])
def test_groups_are_of_the_largest_divisor(width, group):
    assert schemes.group_of(width) == group


# A whole model, by copies whose projections are wrapped


class Wrapped(torch.nn.Module):
    """Gives a projection what `change` makes of its input."""

    def __init__(self, inner, change):
        super().__init__()
        self.inner, self.change = inner, change

    def forward(self, x):
        return self.inner(self.change(x))


def blocks_of(model):
    return next(m for m in model.base_model.modules() if isinstance(m, torch.nn.ModuleList))


def projections(model):
    """{(layer, path): module} of all in the blocks."""
    return {
        (layer, path): module
        for layer, block in enumerate(blocks_of(model))
        for path, module in block.named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D))
    }


def with_change(model, where, change):
    """A copy in which `change(key, (1, seq, width) tensor)` takes the place of what projections read, or blocks give;
    key: (layer, path), of blocks (layer, None)."""
    model = copy.deepcopy(model)
    for layer, block in enumerate(blocks_of(model)):
        if where == BLOCKS:
            block.register_forward_hook(
                lambda _m, _args, out, layer=layer: (
                    (change((layer, None), out[0]), *out[1:]) if isinstance(out, tuple) else change((layer, None), out)
                )
            )
    for (layer, path), module in projections(model).items() if where == PROJECTIONS else ():
        parent, _dot, name = path.rpartition(".")
        wrapped = Wrapped(module, lambda x, key=(layer, path): change(key, x))
        setattr(blocks_of(model)[layer].get_submodule(parent), name, wrapped)
    return model


def loss(model, window):
    with torch.no_grad():
        logits = model(window[None], use_cache=False).logits[0, :-1]
    return cross_entropy(logits.float(), window[1:]).item()


def observed(model, ids):
    """{key: [(seq, width) array of each window]}."""
    seen = {}

    def keep(key, x):
        seen.setdefault(key, []).append(x.reshape(-1, x.shape[-1]).numpy().copy())
        return x

    for where in WHERE:
        changed = with_change(model, where, keep)
        for window in ids:
            loss(changed, window)
    return seen


def massive_by_hand(x):
    """{(position, dim)}."""
    size = np.abs(x.astype(np.float32))
    median = np.sort(size, axis=None)[(size.size - 1) // 2]
    return {tuple(at) for at in np.argwhere((size > 100) & (size > 1000 * median)).tolist()}


class ByHand:
    """What is quantised in some windows, by the printed rules."""

    def __init__(self, model, ids):
        self.model, self.ids = model, ids
        self.seen = observed(model, ids)
        own = {key: [massive_by_hand(x) for x in windows] for key, windows in self.seen.items()}
        self.massive = {
            (layer, path): [
                own[layer, path][w].union(
                    *(own.get((at, None), [set()] * len(ids))[w] for at in (layer - 1, layer))
                    if path and path.endswith(STREAM)
                    else ()
                )
                for w in range(len(ids))
            ]
            for layer, path in self.seen
        }

    def rest(self, key, w):
        x = np.abs(self.seen[key][w].astype(np.float32))
        for at in self.massive[key][w]:
            x[at] = 0
        return float(x.max())

    def change(self, key, x, w, scheme, remedy):
        """(seq, width) of window w, quantised."""
        calibrated = CALIBRATE
        rest = max(self.rest(key, c) for c in calibrated)
        largest = max(float(np.abs(self.seen[key][c].astype(np.float32)).max()) for c in calibrated)
        later = max(float(np.abs(self.seen[key][c][1:].astype(np.float32)).max()) for c in calibrated)
        if remedy == AS_IT_IS:
            return by_hand(x, scheme, largest)
        if remedy == PREFIX:
            return np.concatenate([x[:1], by_hand(x[1:], scheme, later)])
        if remedy == CLAMPED:
            found = any(self.massive[key][c] for c in calibrated)
            return by_hand(np.clip(x, -rest, rest) if found else x, scheme, rest)
        instead = {at: x[at] for at in self.massive[key][w]}
        if remedy == MEAN:
            values = {}
            for c in calibrated:
                for position, dim in self.massive[key][c]:
                    values.setdefault((position == 0, dim), []).append(self.seen[key][c][position, dim])
            instead = {at: np.mean(values[at[0] == 0, at[1]]) for at in instead if (at[0] == 0, at[1]) in values}
        inside = x.copy()
        for at in instead:
            inside[at] = 0
        made = by_hand(inside, scheme, rest)
        for at, value in instead.items():
            made[at] = value
        return made

    def losses(self, where, scheme, remedy):
        """[loss] of the measured windows, {"error", "elsewhere"}: means over windows and sites."""
        found, sums = [], []
        for w in MEASURE:
            of_window = {}

            def change(key, x, w=w, of_window=of_window):
                before = x.reshape(-1, x.shape[-1]).numpy()
                after = self.change(key, before, w, scheme, remedy)
                elsewhere = np.ones(before.shape, dtype=bool)
                for at in self.massive[key][w]:
                    elsewhere[at] = False
                squares, whole = (after - before) ** 2, before**2
                of_window[key] = squares.sum() / whole.sum(), squares[elsewhere].sum() / whole[elsewhere].sum()
                return torch.from_numpy(after).view(x.shape)

            found.append(loss(with_change(self.model, where, change), self.ids[w]))
            sums.append(of_window)
        return found, sums


def spiked(family):
    """A planted model in float64 and six windows, with a spike at the first position or later."""
    ids = token_ids(6, 16)
    for w, position in enumerate([0, 0, 5, 0, 5, 9]):
        ids[w, position] = SPIKE_TOKEN
    model = planted_model(family).double()
    return language_model(model, None), Windows(ids, 6, 0, "test")


@functools.cache
def measured(family):
    """(the results, what is done by hand)."""
    lm, windows = spiked(family)
    return run(lm, windows), ByHand(lm.model, windows.ids)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def spiking(request):
    return measured(request.param)


def site_of(key):
    """Modules that read one tensor are one site."""
    layer, path = key
    return layer, path and re.sub("[kv]_proj", "q_proj", path).replace("up_proj", "gate_proj")


@pytest.mark.parametrize(
    ("spiking", "where", "remedy"),
    [
        exhaustive_unless((i + j + k) % 2 == 0, family, where, remedy)
        for i, family in enumerate(("gpt2", "llama"))
        for j, where in enumerate(WHERE)
        for k, remedy in enumerate(REMEDIES)
    ],
    indirect=["spiking"],
)
def test_losses_are_those_of_wrapped_copies(spiking, where, remedy):
    results, hand = spiking
    plain = [loss(hand.model, hand.ids[w]) for w in MEASURE]
    assert results.loss.mean == pytest.approx(np.mean(plain), rel=1e-6)
    for scheme in SCHEMES:
        cell = results.of(where, scheme, remedy)
        if scheme.scaling is None and remedy != AS_IT_IS:
            assert cell is None, "nothing is beyond float16"
            continue
        losses, sums = hand.losses(where, scheme, remedy)
        assert cell.loss_change.mean == pytest.approx(np.mean(losses) - np.mean(plain), abs=1e-5), scheme
        for i, average in enumerate((cell.error, cell.elsewhere)):
            of_sites = [{site_of(key): pair[i] for key, pair in of_window.items()} for of_window in sums]
            expected = [np.mean([*of_window.values()]) for of_window in of_sites]
            assert average.mean == pytest.approx(np.mean(expected), rel=1e-4, abs=1e-12), scheme


def test_conditions_that_share_a_pass_are_those_alone(monkeypatch):
    """In float64, where rounding does not make another whole number of a half."""
    alone, _hand = measured("llama")
    passes, token_losses = [], next_token.losses
    monkeypatch.setattr(next_token, "losses", lambda lm, ids: passes.append(len(ids)) or token_losses(lm, ids))
    together = run(*spiked("llama"), batch_size=12)
    n = len(MEASURE)
    assert passes[:2] == [n, 3 * n]
    assert sum(passes) == n * (1 + len(together.conditions))
    for name, one in alone.conditions.items():
        other = together.conditions[name]
        assert other.loss_change.mean == pytest.approx(one.loss_change.mean, abs=1e-9)
        errors = [(cell.error.mean, cell.elsewhere.mean, cell.final.mean) for cell in (one, other)]
        assert errors[0] == pytest.approx(errors[1], rel=1e-9, abs=1e-15)


def test_ranges_are_those_of_numpy(spiking):
    results, hand = spiking
    by_site = {}
    for site in results.ranges:
        for path in site.modules or [None]:
            by_site[site.layer, path] = site
    assert by_site.keys() == hand.seen.keys()
    for key, site in by_site.items():
        windows = [np.abs(hand.seen[key][w].astype(np.float32)) for w in MEASURE]
        assert site.width == windows[0].shape[1]
        assert site.largest == pytest.approx(max(x.max() for x in windows), rel=1e-5)
        assert site.median.mean == pytest.approx(np.mean([np.sort(x, axis=None)[(x.size - 1) // 2] for x in windows]))
        zeros = [(np.rint(x / (x.max() / 127)) == 0)[x > 0].mean() for x in windows]
        assert site.zero.mean == pytest.approx(np.mean(zeros), abs=1e-6)
        assert site.massive == np.mean([len(hand.massive[key][w]) for w in MEASURE])
        found = any(hand.massive[key][c] for c in CALIBRATE)
        assert site.limit == (pytest.approx(max(hand.rest(key, c) for c in CALIBRATE), rel=1e-5) if found else None)


def test_what_a_remedy_keeps_is_as_it_was(spiking):
    results, _hand = spiking
    for scheme in SCHEMES[:-1]:
        for where in WHERE:
            error, elsewhere = (getattr(results.of(where, scheme, KEPT), name).mean for name in ("error", "elsewhere"))
            assert error <= elsewhere


def test_text_and_figures(spiking):
    results, _hand = spiking
    result = stored(results)
    told = text.summarise(result) + text.details(result)
    assert "Windows that calibrate: 2; others, which are measured: 4;" in told
    for remedy in REMEDIES:
        assert text.NAMES[remedy] in told
    assert len(figures.remedies(result).axes) == len(figures.ranges(result).axes) == 2


def test_the_model_is_restored(monkeypatch):
    lm, windows = spiked("gpt2")
    before = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.model.modules()]
    monkeypatch.setattr(schemes, "LEVELS", {})
    with pytest.raises(KeyError):
        run(lm, windows)
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.model.modules()] == before


def test_float16_ends(tokenizer):
    """What is beyond it is lost as it is, and in no remedy."""
    lm, windows = spiked("llama")
    for block in lm.model.model.layers[1:]:
        block.mlp.down_proj.weight[:, 0] *= 100
    results = run(lm, windows)
    float16 = SCHEMES[-1]
    bare = results.of(BLOCKS, float16, AS_IT_IS)
    assert bare.overflowing == len(MEASURE)
    assert bare.loss_change is bare.perplexity is bare.error is bare.final is None
    for remedy in (KEPT, CLAMPED):
        cell = results.of(BLOCKS, float16, remedy)
        assert cell.overflowing == 0
        assert cell.loss_change is not None
        assert cell.regained is None
    result = stored(results)
    assert result.conclusion.values.costs[name_of(BLOCKS, float16, AS_IT_IS)] == "overflows"
    assert "overflows (4 windows)" in text.summarise(result)
    for ax, where in zip(figures.remedies(result).axes, results.where, strict=True):
        over = [cell for cell in results.conditions.values() if cell.where == where and cell.loss_change is None]
        at_the_edge = [line for line in ax.get_lines() if line.get_markerfacecolor() == "white"]
        assert sum(len(line.get_ydata()) for line in at_the_edge) == len(over)
        assert all(set(line.get_xdata()) == {1} and not line.get_clip_on() for line in at_the_edge)
        assert ("overflows" in ax.get_xlabel()) == bool(at_the_edge)


def test_an_error_without_end_is_none_of_the_loss(monkeypatch):
    """As where all values were zero before a mean is set."""
    lm, windows = spiked("gpt2")
    monkeypatch.setattr(changes, "errors", lambda before, *_args: before.new_full((len(before), 2), torch.inf))
    bare = run(lm, windows).of(BLOCKS, SCHEMES[0], AS_IT_IS)
    assert bare.overflowing == 0
    assert bare.error is bare.elsewhere is None
    assert bare.loss_change is not None
    assert bare.final is not None


def test_nothing_massive(tokenizer):
    """No spike token in any window: schemes are measured, and there is nothing to remedy."""
    lm = language_model(tiny_model("llama"), tokenizer)
    results = run(lm, windows_of(token_ids(6, 16)))
    assert {cell.remedy for cell in results.conditions.values()} == {AS_IT_IS}
    assert len(results.conditions) == 2 * len(SCHEMES)
    result = stored(results)
    assert result.conclusion.verdict == NONE_FOUND
    assert "none found" in text.summarise(result)
    figures.remedies(result), figures.ranges(result)


@pytest.mark.parametrize(
    ("family", "changed"),
    [
        ("gpt2", {"n_layer": 1}),
        ("llama", {"hidden_size": 36, "intermediate_size": 131, "head_dim": 6, "num_hidden_layers": 2}),
    ],
)
def test_a_window_calibrates_and_another_is_measured(family, changed, tokenizer):
    """Of two tokens each; one layer, odd widths."""
    lm = language_model(tiny_model(family, **changed), tokenizer)
    results = run(lm, windows_of(token_ids(2, 2)))
    assert (results.calibration, results.measured) == (1, 1)
    assert results.loss.ci95 is None
    assert judge.judge(results).verdict == NONE_FOUND
    text.summarise(stored(results)), figures.remedies(stored(results)), figures.ranges(stored(results))
    with pytest.raises(UserError, match="--nsamples must be at least 2"):
        run(lm, windows_of(token_ids(1, 16)))


# Other models


@pytest.mark.slow
@firsts
def test_every_projection_of_every_architecture(case):
    model = copy.deepcopy(case.lm.model).double()
    lm = LanguageModel(model, Architecture(model), case.lm.tokenizer, {})
    verify.verify(lm)
    results = run(lm, windows_of(case.ids))
    plain = loss(model, case.ids[1])
    for where in WHERE:
        for scheme in (Scheme("int8", "token"), Scheme("int4", "dynamic")):
            cell = results.of(where, scheme, AS_IT_IS)
            changed = with_change(model, where, lambda _key, x, scheme=scheme: as_numpy(x, scheme))
            assert cell.loss_change.mean == pytest.approx(loss(changed, case.ids[1]) - plain, abs=1e-5)
        assert abs(cell.loss_change.mean) > 5e-5
    assert not results.left_out


def as_numpy(x, scheme):
    return torch.from_numpy(by_hand(x.reshape(-1, x.shape[-1]).numpy(), scheme, 0.0)).view(x.shape)


def test_a_mixture_of_experts():
    """What its experts read is quantised, what its router reads is not, nor what is inside the experts."""
    built = mixtures.planted()
    model, ids, scheme = built.lm.model.double(), built.windows.ids, Scheme("int8", "token")
    results = run(built.lm, built.windows)
    changed = copy.deepcopy(model)
    for block in blocks_of(changed):
        for path, module in block.named_modules():
            if isinstance(module, torch.nn.Linear) or path.endswith("experts"):
                assert path != "mlp.gate"
                module.register_forward_pre_hook(lambda _m, args: (as_numpy(args[0], scheme), *args[1:]))
    after, before = ([loss(of, ids[w]) for w in (1, 2, 3, 5)] for of in (changed, model))
    cell = results.of(PROJECTIONS, scheme, AS_IT_IS)
    assert cell.loss_change.mean == pytest.approx(np.mean(after) - np.mean(before), abs=1e-6)
    assert [left.what for left in results.left_out] == ["inside the experts, what their last projections read"]
    assert EXPERTS in {site.kind for site in results.ranges}
    assert results.of(BLOCKS, scheme, KEPT) is not None


def test_what_attention_writes_is_no_key_where_its_heads_cannot_be_told_apart():
    sites = find(every_type.loaded("diffllama"), token_ids(1, 2) % 100)
    assert [site.kind for site in sites if "self_attn.o_proj" in site.modules] == [ATTENTION_OUT] * 3


@pytest.mark.parametrize("name", ["jamba", "mamba", "falcon_h1", "gpt_oss", "granitemoeshared", "deepseek_v3"])
def test_what_a_hybrid_lacks_is_told(name, tokenizer):
    lm = dataclasses.replace(every_type.loaded(name), tokenizer=tokenizer)
    results = run(lm, windows_of(token_ids(3, 6) % 100))
    assert results.where == ([BLOCKS] if name == "mamba" else [*WHERE])
    assert results.left_out
    result = stored(results)
    told = text.summarise(result) + text.details(result)
    assert all(left.what in told for left in results.left_out)
    figures.remedies(result), figures.ranges(result)


@pytest.mark.parametrize(("name", "told"), [("jetmoe", True), ("diffllama", False)])
def test_attention_that_writes_by_no_one_matrix_is_told(name, told):
    assert any(left.what.startswith("attention") for left in left_out(every_type.loaded(name).arch)) == told


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_of_half_precision(dtype, tokenizer):
    lm = language_model(planted_model("llama").to(dtype), tokenizer)
    results, full = run(lm, spiked("llama")[1]), measured("llama")[0]
    for name in (name_of(where, SCHEMES[0], remedy) for where in WHERE for remedy in REMEDIES):
        got, expected = results.conditions[name], full.conditions[name]
        assert got.loss_change.mean == pytest.approx(expected.loss_change.mean, abs=0.05)
        assert got.error.mean == pytest.approx(expected.error.mean, rel=0.2, abs=1e-3)


# The verdict


def cell(mean, low, high):
    return {"mean": mean, "ci95": [low, high], "family95": [low, high]}


FREE, OPEN, COSTLY = cell(0.01, 0.005, 0.02), cell(0.06, COST - 0.01, 0.1), cell(0.3, 0.2, 0.4)


def judged(spike, remedies=REMEDIES[:3], loss=COSTLY, gains=None):
    """spike: {scheme name: what is regained with the massive places kept}, FREE of all others."""
    conditions = {}
    for where in WHERE:
        for scheme in SCHEMES[:-1]:
            for remedy in remedies:
                regained = {KEPT: spike.get(scheme.name, FREE), CLAMPED: gains or FREE}.get(remedy)
                conditions[name_of(where, scheme, remedy)] = {
                    "where": where,
                    "scheme": {"format": scheme.format, "scaling": scheme.scaling},
                    "remedy": remedy,
                    "overflowing": 0,
                    "loss_change": loss,
                    "regained": regained,
                }
    return judge.judge(partial(Results, {"conditions": conditions}))


def test_verdict():
    assert judged({}).verdict == judge.NOTHING
    assert judged({"int8_static": COSTLY}).verdict == judge.COSTS
    assert judged({"int8_dynamic": COSTLY, "int8_static": OPEN}).verdict == judge.COSTS
    assert judged({"int8_dynamic": OPEN}).verdict == CANNOT_TELL
    assert judged({"int8_token": COSTLY, "int4_static": OPEN}).verdict == judge.NOTHING, "not int8 per tensor"
    assert judged({}, remedies=[AS_IT_IS]).verdict == NONE_FOUND


def test_costs_and_the_remedy_that_brings_back_most():
    name = name_of(BLOCKS, SCHEMES[0], AS_IT_IS)
    values = judged({"int8_static": cell(0.2, 0.1, 0.3)}, gains=COSTLY).values
    assert (values.costs[name], values.best[name]) == ("costs", CLAMPED)
    values = judged({"int8_static": cell(0.2, 0.1, 0.3)}, gains=cell(0.5, -0.1, 1.1)).values
    assert values.best[name] == KEPT, "another brings back more, but not surely"
    values = judged({}, gains=cell(-0.2, -0.3, -0.1)).values
    assert values.best[name] == KEPT
    assert name not in judged({}, loss=FREE).values.best
    assert judged({}, loss=OPEN).values.costs[name] == CANNOT_TELL
