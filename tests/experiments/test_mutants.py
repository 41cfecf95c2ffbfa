"""Mistakes that were published or that we made, put back into our code: each must make a named check fail.

A mutant that survives is a hole in the checks. Every witness passes on the real code: it is a test of its own, or the
diagnosis of a planted model, which is right here. It must fail by an assertion: a crash would say nothing of what the
check sees.
"""

import copy
import functools
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

import check_controls
from experiments.census import judge, measure
from experiments.head_sweep import judge as head_sweep_judge
from experiments.head_sweep import measure as head_sweep_measure
from experiments.interventions.changes import Intervention
from experiments.interventions.sites import Sites
from experiments.mlp_internal import measure as mlp_internal_measure
from experiments.quantisation import changes as changes_of_quantisation
from experiments.quantisation import measure as quantisation_measure
from experiments.quantisation import schemes
from experiments.training_course import judge as training_judge
from experiments.training_course import measure as training_measure
from lib.core import ablation, attribution, data, keys, measurements, neurons, place, sinks, stats, sweep
from lib.core.keys import SPLIT
from lib.model import arch, attention, attention_rows, edits, experts, hooks
from lib.planted import planting
from tests import architectures, cases, every_type, reference
from tests.conftest import exhaustive_unless, language_model, planted_model, tiny_model
from tests.core import test_capture, test_experts, test_keys, test_sinks, test_sweep
from tests.experiments import (
    test_ablation,
    test_census,
    test_expert_neurons,
    test_heads,
    test_interventions,
    test_ledger,
    test_neurons,
    test_quantisation,
)

pytestmark = pytest.mark.slow
WATCH_OUTPUTS = hooks.watch_outputs
WEIGHTED, WRITES, WITHOUT = experts.weighted, experts.writes, experts.without


def head_slice_after_the_projection(patch):
    """Zeroes residual coordinates 64h..64h+63 and calls them head h."""

    def heads_off(view, heads):
        def zero(layer, value):
            value = value.clone()
            for _layer, head in (pair for pair in heads if pair[0] == layer):
                value[..., head * view.head_dims[layer] : (head + 1) * view.head_dims[layer]] = 0
            return value

        return WATCH_OUTPUTS(view, "head_projection", zero, {layer for layer, _head in heads})

    patch.setattr(edits, "heads_off", heads_off)


def weight_along_the_wrong_axis(patch):
    """Reads a row of Conv1D's (in, out) weight where a column is meant; zeros fill up what the row lacks."""

    def weight(self, layer, role):
        stored = self.module(layer, role).weight
        wrong = torch.zeros_like(stored.T)
        rows, columns = (min(pair) for pair in zip(wrong.shape, stored.shape, strict=True))
        wrong[:rows, :columns] = stored[:rows, :columns]
        return wrong

    patch.setattr(arch.Architecture, "weight", weight)


def weight_without_activation(patch):
    """Ranks neurons by their weight to the dim."""
    means = mlp_internal_measure.Internals._means
    patch.setattr(
        mlp_internal_measure.Internals,
        "_means",
        lambda self, dim: {name: torch.ones_like(x) for name, x in means(self, dim).items()},
    )


def largest_value_over_layers(patch):
    """Compares the largest value over layers and places of one run with that of the other."""
    compared = measurements.Spike.compared

    def largest(self, baseline, here, draws):
        before, after = (run.layers.rows.array[:, :, 0].max(1) for run in (baseline, here))
        return replace(compared(self, baseline, here, draws), retained=draws.averages(after / before))

    patch.setattr(measurements.Spike, "compared", largest)


def first_item_of_the_batch(patch):
    """Takes `output[0]` of a block that returns a tensor."""

    def watch_outputs(view, role, see, layers=None):
        return WATCH_OUTPUTS(view, role, lambda layer, value: see(layer, value[0].expand_as(value)), layers)

    patch.setattr(hooks, "watch_outputs", watch_outputs)


def last_layer_after_the_final_norm(patch):
    """Reads the last layer where Hugging Face's hidden_states[-1] has it."""

    def watch_outputs(view, role, see, layers=None):
        def normed(layer, value):
            last = role == "block" and layer == view.n_layers - 1
            return see(layer, torch.nn.functional.layer_norm(value, value.shape[-1:]) if last else value)

        return WATCH_OUTPUTS(view, role, normed, layers)

    patch.setattr(hooks, "watch_outputs", watch_outputs)


def unsigned_comparison(patch):
    """Compares magnitudes."""
    split = ablation.by_sequence
    patch.setattr(ablation, "by_sequence", lambda *args: [abs(values) for values in split(*args)])


def hooks_left_behind(patch):
    """Does not remove the hooks."""

    @contextmanager
    def registered(view, role, layers, register):
        for layer in range(view.n_layers) if layers is None else layers:
            register(layer, view.module(layer, role))
        yield

    patch.setattr(hooks, "_registered", registered)


def masked_queries_counted(patch):
    """Averages over queries that cannot see the first token, too."""
    not_masked = attention._not_masked
    patch.setattr(attention, "_not_masked", lambda *args: torch.ones_like(not_masked(*args)))


def padding_in_the_statistics(patch):
    """Pads the windows and counts the padding."""
    batches = data.Windows.batches
    patch.setattr(
        data.Windows,
        "batches",
        lambda self, size: [(rows, torch.nn.functional.pad(ids, (0, 5))) for rows, ids in batches(self, size)],
    )


def resumed_after_the_change(patch):
    """Starts a changed version one block too late, so that the change of its first block is lost."""
    resume_at = hooks.resume_at
    patch.setattr(hooks, "resume_at", lambda view, layer, kept: resume_at(view, min(layer + 1, len(kept)), kept))


def swept_one_position_early(patch):
    """Measures a sweep's values at the token before the place."""
    see = sweep._Column.see

    def early(self, layer, hidden):
        see(self, layer, hidden.roll(1, dims=1))

    patch.setattr(sweep._Column, "see", early)


def norm_after_the_projection_ignored(patch):
    """Takes what the attention's projection gives for what attention writes."""
    gather = attribution._Seen.gather

    def projected(self, own):
        gather(self, own)
        self.attention = self.projected

    patch.setattr(attribution._Seen, "gather", projected)


def a_write_left_out(patch):
    """Forgets one MLP in the ledger."""
    measure = attribution.measure

    def incomplete(*args):
        found = measure(*args)
        return replace(found, writes=[write for write in found.writes if (write.layer, write.kind) != (1, "mlp")])

    patch.setattr(attribution, "measure", incomplete)


def writes_of_the_next_head(patch):
    """Takes the next head's slice for a head's."""
    survey = head_sweep_measure.survey

    def shifted(*args):
        found = survey(*args)
        return replace(found, writes=np.roll(found.writes, 1, axis=2))

    patch.setattr(head_sweep_measure, "survey", shifted)


def mean_over_heads(patch):
    """Sets a head to the mean of all heads of its layer instead of its own over tokens."""
    survey = head_sweep_measure.survey

    def averaged(*args):
        found = survey(*args)
        return replace(found, outputs=[heads.mean(0, keepdim=True).expand_as(heads) for heads in found.outputs])

    patch.setattr(head_sweep_measure, "survey", averaged)


def kept_and_removed_exchanged(patch):
    """Turns off the neurons that are to be kept, and keeps those to be removed."""

    def others_off(self, view, _rows=None):
        every = range(view.weight(self.layer, "down").shape[1])
        return edits.neurons_off(view, self.layer, [n for n in every if n not in self.neurons])

    patch.setattr(neurons.NeuronsOff, "hooks", others_off)


def neurons_one_position_early(patch):
    """Reads activations at the token before the place."""
    at_place = neurons.checkpoints_at_place

    def early(lm, windows, found, *args):
        return at_place(lm, replace(windows, ids=windows.ids.roll(1, dims=1)), found, *args)

    patch.setattr(neurons, "checkpoints_at_place", early)


def set_one_position_early(patch):
    """Puts values at the token before their site."""
    put = Intervention.hooks

    def early(self, view, rows):
        moved = replace(self.sites, index=self.sites.index - [0, 1, 0])
        return put(replace(self, sites=moved), view, rows)

    patch.setattr(Intervention, "hooks", early)


def means_pooled_over_positions(patch):
    """One mean for a dim, whether it is massive at the first position or at others."""

    def pooled(sites):
        dims = sites.index[:, 2]
        return {pair: sites.values[dims == pair[1]].mean(0) for pair in sites.by_pair()}

    patch.setattr(Sites, "means", pooled)


def threshold_of_the_other_sign(patch):
    """Counts as spikes what is as large against the place's sign."""
    spikes = measure.Probe.spikes
    patch.setattr(measure.Probe, "spikes", lambda self, values: spikes(self, -values))


def census_one_position_early(patch):
    """Reads, of moved and repeated tokens, the value of the token before."""
    values = measure.Probe.values
    patch.setattr(measure.Probe, "values", lambda *args: np.roll(values(*args), 1, axis=1))


def mean_of_ratios(patch):
    """Averages each window's own ratio, whether or not it has the spike."""

    def ratios(self, numerators, denominators, family=False):
        numerators = np.asarray(numerators, dtype=float)
        denominators = np.asarray(denominators, dtype=float).reshape(len(numerators), *[1] * (numerators.ndim - 1))
        return self.averages(numerators / denominators, family)

    patch.setattr(place.Place, "spiking", property(lambda self: np.ones(len(self.positions), dtype=bool)))
    patch.setattr(stats.Draws, "ratios", ratios)


def sink_rate_of_the_heads_that_are_left(patch):
    """Leaves heads that are off out of the sink rate, so that its denominator changes."""
    run, off_hooks, off = measurements.Measurements.run, ablation.Condition.hooks_beside, []

    def hooks_of(self, *args):
        off[:] = self.heads
        return off_hooks(self, *args)

    def noted(self, lm, ids, see, first=0, baseline=None):
        self.heads.off = [] if baseline is None else list(off)
        return run(self, lm, ids, see, first, baseline)

    def sink_rates(self):
        keep = np.ones(self.shape, dtype=bool)
        for head in getattr(self, "off", ()):
            keep[head] = False
        return (self.window[:, keep] > sinks.SINK_EPSILON).mean(1)

    patch.setattr(ablation.Condition, "hooks_beside", hooks_of)
    patch.setattr(measurements.Measurements, "run", noted)
    patch.setattr(sinks.HeadScores, "sink_rates", sink_rates)


def only_lowering_heads_named(patch):
    """Does not name a head whose removal raises the value."""
    moves = head_sweep_judge._moves
    patch.setattr(head_sweep_judge, "_moves", lambda place: [move for move in moves(place) if move.does == "lowers"])


def position_from_two_manipulations(patch):
    """Judges by the census and the moved token alone."""
    tests, used = judge._tests, (judge.CENSUS, "moved")

    def of_two(needs, cells):
        return tests(needs, {name: cell if name in used else None for name, cell in cells.items()})

    patch.setattr(judge, "_tests", of_two)


def without_weights(of):
    return replace(of, weights=torch.ones_like(of.weights))


def of_the_next_expert(module, of):
    return replace(of, experts=(of.experts + 1) % experts.sizes(module)[0])


def weight_forgotten_in_the_ledger(patch):
    """Takes what an expert gives for what it writes."""
    patch.setattr(experts, "writes", lambda module, of, dim: WRITES(module, without_weights(of), dim))


def next_expert_in_the_ledger(patch):
    """Shifts the number of the expert by one."""
    patch.setattr(experts, "writes", lambda module, of, dim: WRITES(module, of_the_next_expert(module, of), dim))


def weight_forgotten_inside(patch):
    """Takes a neuron's activation for what enters the down projection, whatever its expert's weight."""
    patch.setattr(experts, "weighted", lambda module, of: WEIGHTED(module, without_weights(of)))


def next_expert_inside(patch):
    """Shifts the number of the neuron's expert by one."""
    patch.setattr(experts, "weighted", lambda module, of: WEIGHTED(module, of_the_next_expert(module, of)))


def next_expert_off(patch):
    """Turns off the next expert."""
    patch.setattr(edits, "without", lambda of, off, renormalised: WITHOUT(of, off.roll(1, dims=1), renormalised))


def renormalised_for_as_it_was(patch):
    """Has the experts that are left make good for the weight of those that are off."""
    patch.setattr(edits, "without", lambda of, off, renormalised: WITHOUT(of, off, torch.ones_like(renormalised)))


def every_query_counted(patch):
    """Averages over queries that cannot see the key, too."""
    reduced = keys.reduced

    def counted(attended):
        seen = reduced(attended)
        return seen._replace(counts=torch.full_like(seen.counts, attended.shape[2]))

    patch.setattr(keys, "reduced", counted)


def softmax_over_masked_keys(patch):
    """Leaves keys that a query cannot see among those over which it takes softmax."""
    computed = attention_rows.computed

    def over_all(given, output):
        right = computed(given, output)
        n = given.query.shape[2]
        unmasked = computed(given._replace(attn_mask=torch.ones(1, 1, n, n, dtype=torch.bool)), output)

        def rows_of(first, last):
            return right.rows_of(first, last)._replace(
                probability=unmasked.rows_of(0, n).probability[:, :, first:last, :last]
            )

        return replace(right, rows_of=rows_of)

    patch.setattr(attention_rows, "computed", over_all)


def norms_before_the_grouped_heads_are_expanded(patch):
    """Takes norms of the keys and values as they are stored, and one after another for one head after another."""
    split = keys.split

    def in_turn(parts, seen):
        numbers = split(parts, seen)
        of_norms = slice(SPLIT.index("value"), SPLIT.index("query"))
        shared = parts.value.shape[1]
        numbers[of_norms] = [x[:, :: x.shape[1] // shared].repeat(1, x.shape[1] // shared) for x in numbers[of_norms]]
        return numbers

    patch.setattr(keys, "split", in_turn)


def key_and_query_swapped(patch):
    """Has keys look at queries."""
    computed = attention_rows.computed

    def swapped(given, output):
        groups = given.query.shape[1] // given.key.shape[1]
        key = given.key.repeat_interleave(groups, dim=1)
        return computed(given._replace(query=key, key=given.query), output)

    patch.setattr(attention_rows, "computed", swapped)


def secondary_by_the_cosine_alone(patch):
    """Calls a token a secondary sink that no head looks at."""
    end_batch = keys.LikeFirst.end_batch
    patch.setattr(keys.LikeFirst, "end_batch", lambda self, ids, taken, listed: end_batch(self, ids, taken, listed + 1))


def scale_along_the_wrong_axis(patch):
    """Has the tokens of a dim share a scale, and not the dims of a token."""
    scale = schemes._scale
    patch.setattr(schemes, "_scale", lambda value, dims, levels: scale(value, 1 if dims == 2 else dims, levels))


def calibrated_on_what_is_measured(patch):
    """Takes static scales, limits and means from all windows."""
    calibrate = quantisation_measure.calibrate

    def on_all(lm, windows, _chosen, *args):
        return calibrate(lm, windows, np.arange(len(windows.ids)), *args)

    patch.setattr(quantisation_measure, "calibrate", on_all)


def a_scale_of_each_token(patch):
    """Has each token a scale of its own where all of a tensor share one."""
    rounded = schemes._rounded
    patch.setattr(
        schemes, "_rounded", lambda value, _scale, levels: rounded(value, schemes._scale(value, 2, levels), levels)
    )


def born_at_first_sight(patch):
    """Takes the first step at which something is there for the one from which on it is."""
    birth = training_judge.birth

    def first(steps, what, cell, threshold):
        there = [i for i, step in enumerate(steps) if cell(step).mean > threshold]
        return birth(steps[: there[0] + 1] if there else steps, what, cell, threshold)

    patch.setattr(training_judge, "birth", first)


def one_checkpoint_for_all(patch):
    """Tells of every step what the last one shows."""
    join = training_measure.join
    patch.setattr(
        training_measure, "join", lambda series: join([(at, source, series[-1][2]) for at, source, _results in series])
    )


def spike_in_the_scale(patch):
    """Keeps massive places as they are, but not out of the scale."""
    remedied = changes_of_quantisation.Quantised._remedied

    def with_spike(self, value, known, rows):
        after = remedied(replace(self, remedy="as_it_is"), value, known, rows)
        index = changes_of_quantisation.at(known.massive, rows, value.device)
        return after.index_put(index, value[index]) if self.remedy == "kept" else remedied(self, value, known, rows)

    patch.setattr(changes_of_quantisation.Quantised, "_remedied", with_spike)


def planted_reference(tokenizer):
    """What the fixture `planted` of test_ablation gives: a model and its naive results."""
    lm = language_model(planted_model("gpt2"), tokenizer)
    return lm, reference.compare(lm.model, test_ablation.windows().ids, test_ablation.CONDITIONS)


build = functools.cache(planting.build)
DIAGNOSED = {}  # {(architecture, kind): fields} that are witnesses


@functools.cache
def case(family):
    """What the fixture `case` gives, of a family's first variant."""
    return cases.case_of(family, next(iter(architectures.TESTED[family].variants)))


@functools.cache
def zeroed():
    """What the fixture `zeroed` of test_sweep gives."""
    changes = test_sweep.changes_of(case("gpt2"))
    return {name: cases.without(case("gpt2"), **off) for name, (_condition, off) in changes.items()}


@pytest.fixture(autouse=True)
def _built_by_the_real_code(monkeypatch):
    for architecture, kind in DIAGNOSED:
        build(architecture, kind, 3)
    for family in ("gpt2", "olmo2"):
        case(family)
    zeroed()
    monkeypatch.setattr(stats, "RESAMPLES", 200)


def diagnosed(kind, *fields, architecture="gpt2"):
    """check_controls on these fields of one planted model, as an assertion."""
    built = copy.deepcopy(build(architecture, kind, 3))
    visible = check_controls.visible_of(built.truth)
    diagnosis = check_controls.diagnose(built.lm, built.windows, fields, built.checkpoints)
    assert [name for name in fields if not check_controls.agree(name, diagnosis[name], visible[name])] == []


def swept(_tokenizer):
    test_sweep.test_sweep_equals_zeroed_copies(case("gpt2"), zeroed(), 2)


def neurons_run(_tokenizer):
    with pytest.MonkeyPatch.context() as patch:
        test_neurons.test_runs_equal_zeroed_copies(case("gpt2"), patch)


def writes_of_a_mixture(_tokenizer):
    test_experts.test_writes_of_a_mixture_add_up(every_type.loaded("mixtral"), "mixtral")


def attention_to_every_key(_tokenizer):
    test_keys.test_means_equal_those_of_eager_maps(case("gpt2"), None)


def of_the_first_key(_tokenizer):
    test_keys.test_split_of_the_first_key("llama", None)


def inside_a_mixture(_tokenizer):
    test_expert_neurons.test_contributions_are_products("mixtral", torch.float32, "eager")


def quantised(remedy):
    return lambda _tokenizer: test_quantisation.test_losses_are_those_of_wrapped_copies(
        test_quantisation.measured.__wrapped__("gpt2"), "projections", remedy
    )


def off_equals_zero_weights(family, which):
    return lambda _tokenizer: test_ablation.test_off_equals_zero_weights(language_model(tiny_model(family)), which)


def diagnosis(kind, field, architecture="gpt2"):
    DIAGNOSED.setdefault((architecture, kind), []).append(field)
    return {f"{architecture} {kind}, {field}": lambda _tokenizer: diagnosed(kind, field, architecture=architecture)}


MUTANTS = {  # mutant: {name of the check that must fail: the check, which is given a tokenizer}
    head_slice_after_the_projection: {"test_off_equals_zero_weights": off_equals_zero_weights("gpt2", "some heads")},
    weight_along_the_wrong_axis: {
        "test_contributions_add_up_to_the_mlp_output": lambda tokenizer: (
            test_capture.test_contributions_add_up_to_the_mlp_output(language_model(tiny_model("gpt2")))
        ),
        **diagnosis("decoy", "neurons"),
    },
    weight_without_activation: diagnosis("decoy", "neurons") | diagnosis("decoy", "neurons", "llama"),
    largest_value_over_layers: {
        "test_compare_places": lambda tokenizer: test_ablation.test_compare_places(planted_reference(tokenizer)),
    },
    first_item_of_the_batch: {
        "test_off_equals_zero_weights": off_equals_zero_weights("gpt2", "some heads"),
        **diagnosis("content", "positions"),
    },
    last_layer_after_the_final_norm: {"test_off_equals_zero_weights": off_equals_zero_weights("gpt2", "some heads")},
    unsigned_comparison: {
        "test_compare_conditions": lambda tokenizer: test_ablation.test_compare_conditions(
            planted_reference(tokenizer)
        ),
    },
    hooks_left_behind: {"test_off_equals_zero_weights": off_equals_zero_weights("llama", "one MLP")},
    masked_queries_counted: {
        "test_only_queries_that_can_see_the_first_token_count": lambda tokenizer: (
            test_sinks.test_only_queries_that_can_see_the_first_token_count(language_model(tiny_model("gemma3_text")))
        ),
    },
    padding_in_the_statistics: {
        "test_compare_conditions": lambda tokenizer: test_ablation.test_compare_conditions(
            planted_reference(tokenizer)
        ),
    },
    # sweep
    resumed_after_the_change: {"test_sweep_equals_zeroed_copies": swept},
    swept_one_position_early: {"test_sweep_equals_zeroed_copies": swept, **diagnosis("content", "necessary")},
    # ledger
    norm_after_the_projection_ignored: {
        "test_adds_up_to_the_models_own_hidden_states": lambda tokenizer: (
            test_ledger.test_adds_up_to_the_models_own_hidden_states(case("olmo2"), "nothing")
        )
    },
    a_write_left_out: {
        "test_adds_up_to_the_models_own_hidden_states": lambda tokenizer: (
            test_ledger.test_adds_up_to_the_models_own_hidden_states(case("gpt2"), "nothing")
        )
    },
    # heads
    writes_of_the_next_head: {
        "test_survey_in_every_family": lambda tokenizer: test_heads.test_survey_in_every_family(case("gpt2"))
    },
    mean_over_heads: {
        "test_survey_in_every_family": lambda tokenizer: test_heads.test_survey_in_every_family(case("gpt2")),
    },
    # neurons
    kept_and_removed_exchanged: {"test_runs_equal_zeroed_copies": neurons_run, **diagnosis("mlp", "neuron_set")},
    neurons_one_position_early: {
        "test_reads_add_up_to_a_hand_made_pre_activation": lambda tokenizer: (
            test_neurons.test_reads_add_up_to_a_hand_made_pre_activation(case("gpt2"))
        ),
        **diagnosis("content", "neuron_set"),
    },
    # experts
    weight_forgotten_in_the_ledger: {
        "test_writes_of_a_mixture_add_up": writes_of_a_mixture,
        **diagnosis("expert", "expert_writes", "qwen2_moe"),
    },
    next_expert_in_the_ledger: {
        "test_writes_of_a_mixture_add_up": writes_of_a_mixture,
        **diagnosis("expert", "birth", "qwen2_moe"),
    },
    weight_forgotten_inside: {
        "test_contributions_are_products": inside_a_mixture,
        **diagnosis("two_experts", "neuron_set", "qwen2_moe"),
    },
    next_expert_inside: {
        "test_contributions_are_products": inside_a_mixture,
        **diagnosis("expert", "neuron_set", "qwen2_moe"),
    },
    next_expert_off: diagnosis("expert", "made_by", "qwen2_moe"),
    renormalised_for_as_it_was: diagnosis("two_experts", "expert_retained", "qwen2_moe"),
    # interventions
    set_one_position_early: {
        "test_equals_a_forward_with_hooks_of_its_own": lambda tokenizer: (
            test_interventions.test_equals_a_forward_with_hooks_of_its_own("gpt2", tokenizer)
        ),
        **diagnosis("several", "need"),
    },
    means_pooled_over_positions: {
        "test_spikes_of_different_size_have_means_of_their_own": lambda tokenizer: (
            test_interventions.test_spikes_of_different_size_have_means_of_their_own("gpt2", tokenizer)
        ),
        **diagnosis("several", "need"),
    },
    # census
    threshold_of_the_other_sign: {
        "test_tokens_behind_text": lambda tokenizer: test_census.test_tokens_behind_text("gpt2", 0, tokenizer),
        **diagnosis("content", "cause"),
    },
    census_one_position_early: {
        "test_tokens_behind_text": lambda tokenizer: test_census.test_tokens_behind_text("gpt2", 0, tokenizer),
        **diagnosis("content", "cause"),
    },
    # sinks
    every_query_counted: {
        "test_means_equal_those_of_eager_maps": attention_to_every_key,
        **diagnosis("later_sink", "sink_positions", "llama"),
    },
    softmax_over_masked_keys: {
        "test_means_equal_those_of_eager_maps": attention_to_every_key,
        **diagnosis("relay", "where", "llama"),
    },
    norms_before_the_grouped_heads_are_expanded: {
        "test_split_of_the_first_key": of_the_first_key,
        **diagnosis("mixed_sinks", "sink_heads", "qwen2"),
    },
    key_and_query_swapped: {
        "test_means_equal_those_of_eager_maps": attention_to_every_key,
        **diagnosis("later_sink", "sink_positions", "llama"),
    },
    # quantisation
    scale_along_the_wrong_axis: {
        "test_values_are_those_of_numpy": lambda _tokenizer: test_quantisation.test_values_are_those_of_numpy(
            schemes.Scheme("int8", "token")
        ),
        "test_losses_are_those_of_wrapped_copies": quantised("as_it_is"),
    },
    calibrated_on_what_is_measured: {"test_losses_are_those_of_wrapped_copies": quantised("mean")},
    spike_in_the_scale: {
        "test_losses_are_those_of_wrapped_copies": quantised("kept"),
        **diagnosis("fine", "quantised"),
    },
    a_scale_of_each_token: {
        "test_losses_are_those_of_wrapped_copies": quantised("as_it_is"),
        **diagnosis("fine", "quantised"),
    },
    # courses of training
    born_at_first_sight: diagnosis("flickers", "massive_born") | diagnosis("flickers", "sinks_born"),
    one_checkpoint_for_all: diagnosis("born", "massive_born"),
    # rules that once were ours
    secondary_by_the_cosine_alone: diagnosis("like_first", "secondary", "llama"),
    mean_of_ratios: diagnosis("half", "necessary"),
    sink_rate_of_the_heads_that_are_left: {
        "test_sink_rate_cannot_rise_when_the_count_does_not": lambda tokenizer: (
            test_ablation.test_sink_rate_cannot_rise_when_the_count_does_not(language_model(tiny_model("gpt2")))
        ),
    },
    only_lowering_heads_named: diagnosis("head_eraser", "erasing_heads"),
    position_from_two_manipulations: diagnosis("head", "cause"),
}
CASES = [(mutant, name) for mutant, witnesses in MUTANTS.items() for name in witnesses]
IDS = [f"{mutant.__name__}: {name}" for mutant, name in CASES]


FIRST = {mutant: next(iter(witnesses)) for mutant, witnesses in MUTANTS.items()}


@pytest.mark.parametrize(("mutant", "name"), [exhaustive_unless(FIRST[of[0]] == of[1], *of) for of in CASES], ids=IDS)
def test_mutant_is_caught(mutant, name, tokenizer, monkeypatch):
    mutant(monkeypatch)
    with pytest.raises(AssertionError):
        MUTANTS[mutant][name](tokenizer)


@pytest.mark.parametrize(("architecture", "kind"), DIAGNOSED)
def test_diagnoses_are_right_on_the_real_code(architecture, kind):
    diagnosed(kind, *DIAGNOSED[architecture, kind], architecture=architecture)
