"""Every fixed word of the page: what is not said by a result. A language but English is a JSON of the same fields."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

BRACKETS = re.compile(r" \([^()]*\)")
PLACE = re.compile(r"\\\{(\w+)\\\}")  # {name}, escaped


@dataclass(frozen=True)
class Said:
    """Of an experiment: what it asks, shows and cannot show. The README has it from here."""

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
    "head_analysis": Said(
        "Which heads look at the first token?",
        "how much each head attends to the first token, with an interval",
        "what it writes, or what the model loses without it",
    ),
    "head_pruning": Said(
        "What is left without the heads that look most, or least, at the first token?",
        "what a few heads do, beside all (or 200 random) other sets of the same layers",
        "more than causality allows: heads that run after the birth could have changed nothing before it",
    ),
    "exp1": Said(
        "What is left without any head?",
        "whether the values stay where they were",
        "which head matters: a model without any is far from the one that was trained",
    ),
    "exp2a": Said(
        "What is left without any MLP?",
        "whether the values stay where they were",
        "which MLP matters: a model without any is far from the one that was trained",
    ),
    "exp2b": Said(
        "Which layer does it need?",
        "which MLPs and attention blocks are necessary, sufficient, redundant, and whether what is removed is rebuilt",
        "interactions of three and more, but for those along the two cumulative orders",
    ),
    "exp2c": Said(
        "Inside one MLP, which neurons make its largest output?",
        "which neurons make the largest output of an MLP, exactly: activation \u00d7 weight",
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
FATES = {
    "persists": "persists",
    "reduced": "is reduced",
    "collapses": "collapses",
    "grows": "grows",
    "reverses": "reverses its sign",
}


@dataclass(frozen=True)
class Words:
    """verdicts: {a verdict as results have it: what it means}, with {places} for what differs, which may be verdicts
    themselves; claims: {a claim's text without what stands in brackets: its translation}. A verdict or a claim that is
    not there stands as it is."""

    language: str = "en"
    file: str = "index.html"
    title: str = "Massive activations of {names}"
    about: str = (
        "A massive activation is one number inside a language model that is far larger than those around it: in the "
        "vector that stands for one token after a layer, one dimension (dim) whose absolute value is above {absolute} "
        "and more than {relative} times the median of that layer (Sun et al. 2024). An attention sink is a token to "
        "which many attention heads give much of their attention."
    )
    reading: str = (
        "Layers, heads, dims and positions are counted from 0: mlp 2 is the MLP of layer 2, head 2.1 is head 1 of "
        "layer 2. A layer has attention heads and an MLP; what one of them writes is what it adds to the value. "
        "Numbers in square brackets are 95 % intervals."
    )
    in_short: str = "In short"
    answers: str = "What each experiment says"
    claims_heading: str = "What becomes of published claims"
    every_claim: str = "Every claim, with the numbers it rests on"
    experiments_heading: str = "The experiments"
    skip: str = "Skip to the verdicts"
    shows: str = "Shows"
    cannot_show: str = "Cannot show"
    stop: str = ". "
    provenance: str = "Provenance"
    details: str = "Layer by layer"
    question: str = "question"
    answer: str = "answer"
    experiment: str = "experiment"
    row: str = "row"
    verdict: str = "verdict"
    claim: str = "claim"
    numbers: str = "rests on"
    no_verdict: str = "measured; no verdict"
    not_measured: str = (
        "Not measured here: {scripts}. study.py, given the same model, text and folder, leaves alone what is there and "
        "measures what is missing, or says why it does not."
    )
    counted: str = (
        "{counts}. Each is judged by its own rule. What cannot be told has no result here, an interval that holds a "
        "threshold, or the reason that stands beside it. What does not hold here may hold elsewhere."
    )
    count: str = "{verdict}: {n}"
    not_gpt2: str = "Results of this model do not refute the seed study's figures, which are of GPT-2."
    warning: str = "Warning: {warning}"
    axes_3d: tuple[str, str, str] = ("dim", "token", "|activation|")
    picture: str = "As a picture"
    hover: str = "Hover for numbers."
    turn: str = "Hover for numbers, drag to turn, scroll to zoom."
    largest_dims: str = "The {shown} dims with the largest values, of {width}."
    model: str = "Model"
    text: str = "Text"
    windows: str = "Windows"
    precision: str = "Precision"
    measured: str = "Measured"
    of_windows: str = "{windows} of {tokens} tokens"
    to: str = "{first} to {last}"
    footer: str = (
        "Made of stored results by page.py; the JSON beside each figure has every number. Verdicts by today's rules."
    )
    list_and: str = ", "
    last_and: str = " and "
    clause: str = "; "

    nothing: str = "Nothing is massive here: the dim with the largest value, {dim}, reaches {value}."
    where: str = (
        "Massive activations are largest in dim {dim}, at {position}: {value} in layer {layer}{ratio}; {plateau}."
    )
    position: str = "position {position}"
    positions: str = "several positions, most often {position}"
    ratio: str = ", and up to {ratio} x a layer's median"
    plateau: str = "it is massive, with half of it or more, from layer {first} to {last}"
    one_layer: str = "it is massive, with half of it or more, in no other layer"
    who: str = "{writer}; {eraser}."
    writes: str = "{birth} writes it, {share} of the peak"
    writes_most: str = "{birth} writes the largest part of it, {share} of the peak"
    write_together: str = "{writers} write it, which of them most cannot be told"
    writer_unknown: str = "Who writes it cannot be told"
    no_writer: str = "No single component writes it"
    erases: str = "{erasers} takes it away"
    erase: str = "{erasers} take it away"
    no_eraser: str = "no component is sure to take it away"
    write: str = "{name} ({value})"
    without: str = "Without any {part} {it} {fate}"
    unknown_fate: str = "What becomes of {it} without any {part} cannot be told"
    it: str = "the massive activation"
    again: str = "it"
    left: str = "{fate}, {left} of it left"
    note: str = " ({note})"
    attention_head: str = "attention head"
    mlp: str = "MLP"
    fates: Mapping[str, str] = field(default_factory=lambda: FATES)
    needed: str = (
        "Whether the model needs it: {verdict}. Without {written}{left} the loss changes by {loss} nats a token{back}."
    )
    put_back: str = ", with its mean put back by {loss}"
    one_beforehand: str = ", which it is beforehand, as all windows begin with the same token"
    written_by_mlp: str = "what mlp {layer} writes there"
    written_by_neurons: str = "what {n} of the neurons of mlp {layers} write there"
    left_there: str = " ({left} of it is left)"
    trained: str = "Over training, {verdict}."

    glossed: str = "{verdict} ({meaning})"
    experiments: Mapping[str, Said] = field(default_factory=lambda: EXPERIMENTS)
    verdicts: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    claims: Mapping[str, str] = field(default_factory=dict)

    @property
    def foreign(self) -> str | bool:
        """The language of what a result says, as an attribute beside these words; False where it is the same."""
        return False if self.language == ENGLISH.language else ENGLISH.language

    def shown(self, verdict: str) -> str:
        """As it stands in the results, with its meaning."""
        meaning = self.meaning(verdict)
        return verdict if meaning is None else self.glossed.format(verdict=verdict, meaning=meaning)

    def meaning(self, verdict: str) -> str | None:
        """None where it has none but itself."""
        if verdict in self.verdicts:
            return self.verdicts[verdict]
        for shape, meaning in self.verdicts.items():
            found = "{" in shape and re.fullmatch(PLACE.sub(r"(?P<\1>.+?)", re.escape(shape)), verdict)
            if found:
                return meaning.format(**{name: self.meaning(of) or of for name, of in found.groupdict().items()})
        return None

    def noted(self, note: str | None) -> str:
        """What stands beside a verdict, in brackets; "" for None."""
        for fixed, meaning in self.notes.items():
            note = note and note.replace(fixed, meaning)
        return self.note.format(note=note) if note else ""

    def said(self, claim: str) -> str:
        """A claim in this language, what stands in brackets at its end."""
        translated = self.claims.get(BRACKETS.sub("", claim))
        return claim if translated is None else translated + "".join(BRACKETS.findall(claim))


ENGLISH = Words()
CHINESE = msgspec.json.decode((Path(__file__).parent / "chinese.json").read_bytes(), type=Words)
LANGUAGES = {words.language: words for words in (ENGLISH, CHINESE)}
