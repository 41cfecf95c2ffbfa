"""What a diagnosis of a planted model says, field by field: by which rule, and when it agrees with the truth."""

from typing import Any

FIELDS = (
    "generator",
    "layer",
    "neurons",
    "dims",
    "trigger",
    "positions",
    "share",
    "sinks",
    "readers",
    "birth",
    "erasers",
    "eraser_neurons",
    "necessary",
    "sufficient",
    "retained",
    "repair",
    "first_step_neurons",
    "neuron_set",
    "need",
    "cause",
    "single_heads",
    "erasing_heads",
    "costly_heads",
    "pruning",
    "made_by",
    "experts",
    "expert_writes",
    "expert_retained",
    "where",
    "sink_kind",
    "sink_heads",
    "sink_positions",
    "listed_keys",
    "secondary",
    "by_query_bias",
    "foreseen",
    "forecast",
    "edge",
    "carrier",
    "quantised",
    "massive_born",
    "sinks_born",
    "last_writer",
)
NUMBERS = {
    "share": 0.0,
    **dict.fromkeys(("retained", "repair", "expert_writes", "expert_retained"), 0.05),
}  # how far a diagnosis may be from the truth
RULE = """\
generator  "mlp" if the massive activations persist or grow without heads (exp1) and collapse without MLPs (exp2a),
           "head" if the reverse, "both" if they collapse without either, "none" if neither finds any, otherwise
           unclear; they grow where less noise is in what a norm or a router takes in
layer      the first in massive[] of main_llm --exp2
dims       all in massive[], with their signs
positions  all in massive[]
neurons    of an MLP: exp2c's smallest set (90 %) at that layer, for the largest dim, at the position, if all are at one
trigger    "position 0" if every window is massive there, and of later places "token TOKEN" if they hold one token and
           are as many as the windows have of it; ", always TOKEN" if all windows begin with the same token, which then
           is as good an explanation; all places together, if one token explains them; otherwise unclear
share      of the windows that have the spike (exp2b)
sinks      heads with over 0.3 of their attention on the first token (analyze_heads_simple, without the first query)
readers    of them, those that are not over 0.3 once massive values are set to zero in every layer's output: a high
           score alone proves no reading
birth      exp3's verdict: the component that writes most of the value at the followed place
erasers    exp3's, and eraser_neurons: exp2c's smallest set in an MLP among them
necessary, sufficient  exp2b's: MLPs and attention blocks without which the value is gone, or that make it on their own;
           redundant generators are sufficient and not necessary, a first step is necessary and not sufficient
retained, repair  exp2b's, of each MLP or attention block that exp3 names as a generator: what is left of the value
           without it, and the share of its write that is made good then
first_step_neurons  exp2c's smallest set in a necessary MLP before the birth's
neuron_set of an MLP: exp4's minimal set (95 %) at that layer, if keep-only and remove-only runs confirm it
need       exp5's verdict
cause      exp6's verdict, and the tokens if it names any
single_heads, erasing_heads, costly_heads  exp7's heads whose removal lowers the value on its plateau, raises it in the
           last layer, costs loss
pruning    head pruning's verdict on the single heads, or if there is none, on the head of layer 0 that attends most to
           the first token; ", beyond the null" if no other head of the layer changes the value as much
made_by    of a mixture: exp8's verdict, and experts: those it names
expert_writes, expert_retained  exp8's, of each of these: its share of the value at the place, and what is left of the
           value without it, the other routing weights as they were
where, sink_kind, sink_heads  exp9's verdict: where sinks are, of which kind most of those at the first key are, and the
           heads that have one there, each with its kind
sink_positions  keys at which exp9's sink rate is above 5 %
listed_keys  exp9's, in all windows: tokens, or any token where it is another in each, with a massive activation or not
secondary  exp9's secondary sinks, in all windows, with their layers
by_query_bias  exp9's heads with a sink at the first key that have none there with the bias of all queries at zero
foreseen, forecast  exp12's first generator, by the weights alone, and its verdict beside what the model does
edge       exp10's verdict
carrier    exp11's verdict
quantised  exp13's verdict
massive_born, sinks_born, last_writer  exp14's verdict on the checkpoints of a training, and who writes most at the
           last"""


def agree(name: str, found: Any, true: Any) -> bool:
    """Equal; of NUMBERS as near as said there. "cannot tell" agrees with nothing but itself."""
    if name not in NUMBERS:
        return found == true
    each_found, each_true = (dict(x) if isinstance(x, list) else {None: x} for x in (found, true))
    return each_found.keys() == each_true.keys() and all(
        value is not None and abs(value - each_true[part]) <= NUMBERS[name] for part, value in each_found.items()
    )
