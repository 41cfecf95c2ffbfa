"""Every fixed word of the page: what is not said by a result. Another language is another module like this one."""

from typing import NamedTuple

LANGUAGE = "en"
TITLE = "Massive activations of {names}"
IN_SHORT = "In short"
ANSWERS = "What each experiment says"
CLAIMS, EVERY_CLAIM = "What becomes of published claims", "Every claim, with the numbers it rests on"
EXPERIMENTS_HEADING = "The experiments"
SKIP = "Skip to the verdicts"
SHOWS, CANNOT_SHOW = "Shows", "Cannot show"
PROVENANCE, DETAILS = "Provenance", "Layer by layer"
QUESTION, ANSWER, EXPERIMENT = "question", "answer", "experiment"
ROW, VERDICT, CLAIM, NUMBERS = "row", "verdict", "claim", "rests on"
NO_VERDICT = "measured; no verdict"
COUNTED = (
    "{counts}. Each is judged by its own rule. What cannot be told has no result here, or an interval that holds a "
    "threshold. What does not hold here may hold elsewhere."
)
COUNT = "{verdict}: {n}"
NOT_GPT2 = "Results of this model do not refute the seed study's figures, which are of GPT-2."
WARNING = "Warning: {warning}"
AXES_3D = "dim", "token", "|activation|"
PICTURE = "As a picture"
HOVER, TURN = "Hover for numbers.", "Hover for numbers, drag to turn, scroll to zoom."
LARGEST_DIMS = "The {shown} dims with the largest values, of {width}."
MODEL, TEXT, WINDOWS, PRECISION, MEASURED = "Model", "Text", "Windows", "Precision", "Measured"
OF_WINDOWS = "{windows} of {tokens} tokens"
TO = "{first} to {last}"
FOOTER = "Made of stored results by page.py; the JSON beside each figure has every number. Verdicts by today's rules."
AND = ", "
LAST_AND = " and "

NOTHING = "Nothing is massive here: the dim with the largest value, {dim}, reaches {value}."
WHERE = "Massive activations are largest in dim {dim}, at {position}: {value} in layer {layer}{ratio}; {plateau}."
POSITION, POSITIONS = "position {position}", "several positions, most often {position}"
RATIO = ", {ratio} x the median there"
PLATEAU, ONE_LAYER = "half of it or more is kept from layer {first} to {last}", "no other layer keeps half of it"
WRITES = "{birth} writes it"
WRITER_UNKNOWN = "Who writes it cannot be told"
NO_WRITER = "No single component writes it"
ERASES, ERASE = "{erasers} takes it away", "{erasers} take it away"
NO_ERASER = "no component is sure to take it away"
WRITE = "{name} ({value})"
WITHOUT = "Without any {part} {it} {fate}"
UNKNOWN_FATE = "What becomes of {it} without any {part} cannot be told"
IT, AGAIN = "the massive activation", "it"
LEFT = ", {left} of it left"
ATTENTION_HEAD, MLP = "attention head", "MLP"
FATES = {
    "persists": "persists",
    "reduced": "is reduced",
    "collapses": "collapses",
    "grows": "grows",
    "reverses": "reverses its sign",
}
NEEDED = "Whether the model needs it: {verdict}. Without what writes it the loss changes by {loss} nats a token."


class Said(NamedTuple):
    """Of an experiment: what it asks, shows and cannot show, in the README's words."""

    asks: str
    shows: str
    cannot_show: str


EXPERIMENTS = {
    "layerwise": Said(
        "Where is it, and how large?",
        "size and identity of every massive activation",
        "what causes them, or whether position 0 matters for its place or for its token",
    ),
    "sentence": Said(
        "What does one sentence look like?",
        "one sentence in 3D",
        "what causes them, or whether position 0 matters for its place or for its token",
    ),
    "head_analysis": Said("Which heads look at the first token?", "where heads look", "what is written"),
    "head_pruning": Said(
        "What is it without the heads that look most, or least?",
        "what a few heads do, beside all (or 200 random) other sets of the same layers",
        "more than causality allows: heads that run after the birth could have changed nothing before it",
    ),
    "exp1": Said(
        "What is left without any head?",
        "whether the values stay where they were",
        "which head or MLP matters: a model without any is far from the one that was trained",
    ),
    "exp2a": Said(
        "What is left without any MLP?",
        "whether the values stay where they were",
        "which head or MLP matters: a model without any is far from the one that was trained",
    ),
    "exp2b": Said(
        "Which layer does it need?",
        "which MLPs and attention blocks are necessary, sufficient, redundant, and whether what is removed is rebuilt",
        "interactions of three and more, but for those along the two cumulative orders",
    ),
    "exp2c": Said(
        "Which neurons make it, inside one MLP?",
        "which neurons make the value, exactly: activation \u00d7 weight",
        "why they fire",
    ),
    "compare_3d": Said(
        "What changes in one sentence without a head?", "one sentence, later layers included", "any other"
    ),
    "exp3": Said(
        "Who writes it, and who takes it away?",
        "what the embedding and every head, attention bias and MLP write into the place, exactly",
        "what one would do if another were gone",
    ),
    "exp4": Said(
        "Which of its neurons carry it?",
        "by runs whether the fewest neurons that give 95 % of the MLP's output carry the value, and which dims they "
        "read",
        "what wrote those dims",
    ),
    "exp5": Said(
        "Does the model need it?",
        "whether the model needs the values, and as what: not written, at their mean, at zero",
        "what they are needed for",
    ),
    "intervention": Said(
        "What does it cost to set it to something else?",
        "one of these changes as in Sun et al.'s code",
        "what they are needed for",
    ),
    "exp6": Said(
        "What triggers it?",
        "what the spike hangs on: the share of all tokens that spike as the first, and of these elsewhere",
        "contexts that were not tried",
    ),
    "exp7": Said(
        "What does each head do to it, alone and together?",
        "what each head does to the place and the loss, by intervals for all heads together",
        "what pairs of heads do, but for those removed together here",
    ),
    "exp8": Said(
        "Which experts make it?",
        "which experts of a mixture make the value, each off and each alone",
        "why they do",
    ),
    "exp9": Said(
        "Where does attention go?",
        "which keys take the attention, in text, in random tokens and in repeated ones, and whose value is next to "
        "nothing (no-op)",
        "what the model would lose without them",
    ),
    "exp10": Said(
        "Is its sink needed?",
        "what the model loses without the edge to the sink, beside as many other edges, and where attention goes then",
        "what was written where attention goes",
    ),
    "exp11": Said(
        "What holds the sink there?",
        "which parameters carry the sink at the first position, each beside a control that changes as much elsewhere",
        "why training put it there",
    ),
    "exp12": Said(
        "Do the weights alone foretell it?",
        "what the weights forecast before the model has run, beside what is then measured",
        "what inputs do that were not run",
    ),
    "exp13": Said(
        "What does it cost where activations are quantised?",
        "the loss with activations rounded to int8, int4 and float16, as it is and with each remedy",
        "what rounded weights cost, or other remedies",
    ),
    "exp14": Said(
        "When was it born?",
        "from which checkpoint on there are massive activations and sinks, and who writes most at each",
        "what lies between two checkpoints, or why it came",
    ),
    "attention_logits": Said(
        "What are the attention logits of one layer?",
        "the logits of one sentence, as the softmax takes them",
        "any other sentence",
    ),
}
