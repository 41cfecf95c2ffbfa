"""What is massive by other definitions, and the rules that positions follow, against NumPy."""

import numpy as np
import pytest
import torch

import main_llm
from experiments.layerwise import measure, text
from experiments.layerwise.results import DEVIATION, FEW_DIMS, LASTING_DIMS, SUN, TOKEN, Results, Where
from experiments.layerwise.rules import Massive, masked
from experiments.layerwise.variants import Variants, compared
from lib.core.data import Windows
from lib.core.results import MassiveActivation
from lib.model import hooks
from lib.planted import planting
from lib.report.masks import FIRST, FIRST_OF, NO_RULE, TOKENS
from lib.report.result_files import Result
from tests import mixtures, reference
from tests.conftest import SPIKE_TOKEN, language_model, planted_model, save, tiny_model, token_ids
from tests.scripts.test_scripts import run


def lower_median(values, axis=None):
    """torch.median's: of an even number the lower of the two."""
    flat = np.sort(values, axis=axis) if axis is not None else np.sort(values.ravel())
    return np.take(flat, (flat.shape[-1] - 1) // 2, axis=-1)


def found_by_hand(hidden):
    """{definition: {(layer, position, dim)}} of the three that need the values, of [(windows, seq, dims)] by layer."""
    found = {SUN: set(), TOKEN: set(), DEVIATION: set()}
    for layer, windows in enumerate(hidden):
        for window in np.abs(windows):
            median = lower_median(window)
            deviation = lower_median(np.abs(window - median))
            passing = {
                SUN: window > 1000 * median,
                TOKEN: window > 1000 * lower_median(window, axis=1)[:, None],
                DEVIATION: window - median > 1000 * deviation,
            }
            for name, here in passing.items():
                found[name] |= {(layer, *at) for at in np.argwhere(here & (window > 100)).tolist()}
    return found


def measured(hidden, tokenizer, batch_size=2):
    """Variants of [(windows, seq, dims)] values, as if they were the outputs of the first layers of a model."""
    lm = language_model(tiny_model("gpt2"), tokenizer)
    statistics = Variants(lm.arch, tokenizer)
    for start in range(0, len(hidden[0]), batch_size):
        batch = [torch.from_numpy(windows[start : start + batch_size]) for windows in hidden]

        def forward(batch=batch):
            for layer, values in enumerate(batch):
                statistics.update(layer, values)

        statistics.run(token_ids(len(batch[0]), batch[0].shape[1]), forward)
    statistics.gather()
    return statistics


def places(statistics):
    """{definition: {(layer, position, dim)}}."""
    found = {SUN: {(e.layer, e.position, e.dim) for e in statistics.massive()}}
    return found | {
        name: {(p.layer, p.position, p.dim) for p in statistics.places[name]} for name in statistics.MEASURES
    }


def noise(windows, seq, seed=0):
    return np.random.default_rng(seed).standard_normal((windows, seq, 32)).astype(np.float32)


def test_each_definition_alone_finds_what_the_others_do_not(tokenizer):
    """One value just for each of them, beside one that none of them finds."""
    hidden = noise(3, 40)
    size = float(lower_median(np.abs(hidden[0])))
    hidden[0, 5] *= 0.01
    hidden[0, 5, 3] = 150  # a quiet token: over 1,000 x its own median alone
    hidden[1, 7] *= 3
    hidden[1, 7, 4] = -1200 * size  # a loud one: not with its own
    hidden[2, 9, 6] = 800 * size  # over 1,000 deviations, which are smaller than the median
    hidden[2, 11, 8] = 90
    by_hand = found_by_hand([hidden])
    assert by_hand[TOKEN] - by_hand[SUN] - by_hand[DEVIATION] == {(0, 5, 3)}
    assert by_hand[SUN] - by_hand[TOKEN] == {(0, 7, 4)}
    assert by_hand[DEVIATION] - by_hand[SUN] == {(0, 9, 6)}
    assert places(measured([hidden], tokenizer)) == by_hand


def test_deviations_are_counted_from_the_median(tokenizer):
    """A thousand of them and half a median are not enough, a thousand and one and a half are."""
    hidden = np.concatenate([noise(1, 40)] * 2)
    hidden[:, 9, 6] = 1000  # as what stands there below, above both medians
    median = float(lower_median(np.abs(hidden[0])))
    deviation = float(lower_median(np.abs(np.abs(hidden[0]) - median)))
    hidden[:, 9, 6] = [1000 * deviation + 0.5 * median, -1000 * deviation - 1.5 * median]
    assert measured([hidden], tokenizer).places[DEVIATION] == {Where(0, 9, 6): 1}


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("seq", [1, 2, 40])
def test_any_values_as_numpy_has_them(seq, batch_size, tokenizer):
    """Of all sizes, so that each definition finds some, and more than there is room for in the first pass."""
    rng = np.random.default_rng(seq)
    hidden = [noise(4, seq, layer) * 10 ** rng.uniform(-3, 4, (4, seq, 32)).astype(np.float32) for layer in range(3)]
    by_hand = found_by_hand(hidden)
    assert all(map(len, by_hand.values()))
    assert seq < 40 or max(len(found) for found in by_hand.values()) > 100
    assert places(measured(hidden, tokenizer, batch_size)) == by_hand


@pytest.mark.parametrize("dims", [1, 2])
def test_more_than_there_is_room_for_of_what_sun_et_al_do_not_find(dims, tokenizer):
    """Quiet tokens, so many that all that is kept in the first pass is theirs."""
    hidden = noise(1, 100)
    hidden[0, :20] *= 0.01
    hidden[0, :20, :dims] = 150
    by_hand = found_by_hand([hidden])
    assert [len(by_hand[name]) for name in (SUN, TOKEN)] == [0, 20 * dims]
    assert places(measured([hidden], tokenizer)) == by_hand


def test_nothing_but_zeros(tokenizer):
    hidden = np.zeros((1, 4, 32), dtype=np.float32)
    statistics = measured([hidden], tokenizer)
    assert [(found.places, found.jaccard, found.more) for found in statistics.compared()] == [(0, None, [])] * 5
    hidden[0, 2, 5] = -200
    assert places(measured([hidden], tokenizer)) == {name: {(0, 2, 5)} for name in (SUN, TOKEN, DEVIATION)}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_half_precision(dtype, tokenizer):
    lm = language_model(tiny_model("gpt2"), tokenizer)
    hidden = torch.from_numpy(noise(1, 20)).to(dtype)
    hidden[0, 3, 4] = -2000
    statistics = Variants(lm.arch, tokenizer)
    statistics.run(token_ids(1, 20), lambda: statistics.update(0, hidden))
    assert places(statistics) == found_by_hand([hidden.float().numpy()])


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_of_a_model(family, tokenizer):
    lm, ids = language_model(planted_model(family), tokenizer), token_ids(5, 16)
    ids[torch.arange(5), torch.tensor([4, 5, 11, 7, 2])] = SPIKE_TOKEN
    statistics = Variants(lm.arch, tokenizer)
    statistics.run(ids, lambda: hooks.forward(lm, ids))
    by_hand = found_by_hand([layer.numpy() for layer in reference.observe(lm.model, ids).hidden])
    assert by_hand[SUN]
    assert places(statistics) == by_hand


def entry(layer, dim, value, position=0):
    return MassiveActivation(layer, position, "", dim, value, None, 1)


def of(listed, *keys):
    return [tuple(getattr(where, key) for key in keys) for where in listed]


def test_few_dims_and_lasting_dims():
    """Dims 1 and 2 in four of 16 layers, 3 and 4 in fewer; layer 1 has four dims, of which one is the smallest at its
    first position and not at its second."""
    massive = [entry(layer, dim, 1000.0) for layer in range(4) for dim in (1, 2)]
    massive += [entry(1, 3, -300.0), entry(1, 4, 200.0), entry(1, 4, -400.0, position=7), entry(2, 4, 200.0)]
    found = {one.name: one for one in compared(massive, {}, 16)}
    assert list(found) == [SUN, FEW_DIMS, LASTING_DIMS]
    assert (found[SUN].places, found[SUN].jaccard, found[SUN].layers) == (12, 1.0, [0, 1, 2, 3])
    assert of(found[FEW_DIMS].fewer, "layer", "dim") == [(1, 3)]
    assert (found[FEW_DIMS].shared, found[FEW_DIMS].jaccard) == (11, 11 / 12)
    assert (found[LASTING_DIMS].dims, found[LASTING_DIMS].places) == ([1, 2], 8)
    assert {one.name: one.dims for one in compared(massive, {}, 17)}[LASTING_DIMS] == []
    assert not [one for one in found.values() if one.more]


def test_what_only_one_of_them_finds():
    (_sun, token, *_rest) = compared([entry(0, 1, 1.0), entry(0, 2, 1.0)], {TOKEN: [Where(0, 0, 1), Where(3, 4, 5)]}, 8)
    assert (token.places, token.shared, token.jaccard) == (2, 1, 1 / 3)
    assert (token.more, token.fewer) == ([Where(3, 4, 5)], [Where(0, 0, 2)])
    assert (token.layers, token.dims) == ([0, 3], [1, 5])


# rules

LOW, FULL_STOP, NEWLINE, OTHER = 100, 1, 2, 3


def windows_with(where, n=20, seq=30):
    """(n, seq) ids from LOW on, all different, with {(window, position): token} in them."""
    ids = np.arange(LOW, LOW + n * seq).reshape(n, seq)
    for at, token in where.items():
        ids[at] = token
    return ids


def ruled(ids, where, value=5.0):
    """{rule: (ids, massive, checked, held)} of dim 1 after layer 0, massive at {(window, position)}."""
    found = masked(ids, [Massive(window, 0, position, 1, value) for window, position in where], str)
    assert all((place.layer, place.dim, place.value) == (0, 1, value) for place in found)
    assert all(place.tokens == [*map(str, place.ids)] for place in found)
    assert sum(place.massive for place in found) == len({*where})
    return {place.rule: (sorted(place.ids), place.massive, place.checked, place.held) for place in found}


def test_the_first_position():
    every = {(window, 0) for window in range(20)}
    assert ruled(windows_with({}), every) == {FIRST: ([], 20, 10, 10)}
    assert ruled(windows_with({}), every - {(1, 0)}) == {FIRST: ([], 19, 10, 9)}
    assert ruled(windows_with({}), every - {(1, 0), (3, 0)}) == {NO_RULE: ([], 18, 0, 0)}


def test_tokens_wherever_they_are():
    where = {(window, position): FULL_STOP for window in range(20) for position in (window % 7 + 2, 20)}
    first = {(window, 0) for window in range(20)}
    ids = windows_with(where)
    assert ruled(ids, [*where, *first]) == {FIRST: ([], 20, 10, 10), TOKENS: ([FULL_STOP], 40, 20, 20)}
    ids[:, 25] = FULL_STOP  # which is not massive there
    assert NO_RULE in ruled(ids, where)


def test_the_first_of_several_tokens():
    """Of a full stop and a newline whichever comes first, as in Llama 2; neither does alone."""
    rng = np.random.default_rng(0)
    both = {}
    for window in range(20):
        one, other = rng.permutation([FULL_STOP, NEWLINE]).tolist()
        both |= {(window, 4 + window % 3): one, (window, 12): other, (window, 20): FULL_STOP, (window, 1): OTHER}
    massive = [(window, 4 + window % 3) for window in range(20)]
    assert ruled(windows_with(both), massive) == {FIRST_OF: ([FULL_STOP, NEWLINE], 20, 10, 10)}
    astray = [*massive[2:], (0, 1), (2, 1)]  # twice at a token that is massive nowhere else
    assert ruled(windows_with(both), astray)[FIRST_OF] == ([FULL_STOP, NEWLINE], 18, 10, 9)


def test_what_other_windows_do_not_confirm_is_no_rule():
    """Tokens that stand once each, and one that is massive in the windows that propose alone."""
    everywhere = [(window, 3 + window % 11) for window in range(20)]
    assert ruled(windows_with({}), everywhere) == {NO_RULE: ([], 20, 0, 0)}
    ids = windows_with(dict.fromkeys(everywhere, FULL_STOP))
    assert ruled(ids, everywhere[::2]) == {NO_RULE: ([], 10, 0, 0)}


def test_each_token_is_confirmed_by_itself():
    """One that is often massive does not make up for one that is not, where it is checked."""
    often = {(window, position): FULL_STOP for window in range(20) for position in (5, 9)}
    seldom = dict.fromkeys([(0, 15), (2, 15), (4, 15), (1, 15)], NEWLINE)
    found = ruled(windows_with(often | seldom), [*often, (0, 15), (2, 15), (4, 15)])
    assert found == {TOKENS: ([FULL_STOP], 40, 20, 20), NO_RULE: ([], 3, 0, 0)}


def test_one_window_confirms_nothing():
    assert ruled(windows_with({}, n=1), [(0, 0)]) == {NO_RULE: ([], 1, 0, 0)}


def test_dims_and_layers_apart():
    found = masked(
        windows_with({}),
        [Massive(w, layer, 0, dim, layer + dim + w) for w in range(20) for layer in (2, 0) for dim in (9, 4)],
        str,
    )
    assert [(place.layer, place.dim, place.rule, place.value) for place in found] == [
        (layer, dim, FIRST, layer + dim + 9.5) for layer in (0, 2) for dim in (4, 9)
    ]
    assert masked(windows_with({}), [], str) == []


@pytest.mark.parametrize("kind", ["mlp", "content", "several"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_planted_triggers_come_out_as_their_rule(architecture, kind):
    built = planting.build(architecture, kind, 0)
    results = measure.run(built.lm, built.windows, main_llm.Options(batch_size=3))
    rules = {(place.dim, place.rule, *place.tokens) for place in results.masked}
    truth = built.truth
    first = {(dim, FIRST) for dim in truth.values}
    later = truth.later or {"token": truth.tokens[-1] if truth.tokens else None, "values": truth.values}
    token = {(dim, TOKENS, later["token"]) for dim in later["values"]}
    assert rules == {"mlp": first, "content": token, "several": first | token}[kind]
    assert {place.layer for place in results.masked} == {entry.layer for entry in results.massive}
    assert results.hidden_size == built.lm.arch.hidden_size


def test_a_mixture_has_them_too():
    built = mixtures.planted()
    results = measure.run(built.lm, built.windows, main_llm.Options(batch_size=3))
    assert {place.dim for place in results.masked} == {entry.dim for entry in results.massive}
    assert results.compared[0].places == len(results.massive) > 0


def test_the_text_says_what_each_is_and_where(tokenizer):
    lm, ids = language_model(planted_model("gpt2"), tokenizer), token_ids(6, 16)
    ids[:, 3] = SPIKE_TOKEN
    results = measure.run(lm, Windows(ids, 6, 0, "test"), main_llm.Options(batch_size=2))
    provenance = {
        "model": {"name": "tiny", "type": "gpt2"},
        "data": {"windows": 6, "seqlen": 16, "dataset": "test", "bos": False},
        **dict.fromkeys(("dtype", "device", "seed", "time", "command"), "x"),
    }
    result = Result("layerwise", provenance, {}, results, None, {})
    printed = text.summarise(result)
    for name in (SUN, TOKEN, DEVIATION, FEW_DIMS, LASTING_DIMS):
        assert f"\n{name}  " in printed
        assert f"\n{name}: " in printed
    spike = tokenizer.decode([SPIKE_TOKEN])
    assert f"tokens: {spike!r}" in printed
    assert max(map(len, printed.splitlines()[10:])) < 700
    older = Results(results.definition, results.layers, results.massive)
    assert "other definitions" not in text.summarise(Result("layerwise", provenance, {}, older, None, {}))


def test_activations_that_are_all_zero(tokenizer, text_file, tmp_path, capsys):
    """A median of zero has no multiple."""
    model = tiny_model("llama")
    for weight in model.parameters():
        weight.zero_()
    save(tmp_path / "zero", model, tokenizer)
    flags = ["--model", tmp_path / "zero", "--dataset", text_file, "--nsamples", "2", "--seqlen", "8"]
    assert run("main_llm.py --exp1 --exp2 --layer_id 0", *flags, "--savedir", tmp_path / "out") == 0
    assert "divide" not in capsys.readouterr().err
