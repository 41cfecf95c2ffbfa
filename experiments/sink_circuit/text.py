"""The TXT of the parameters behind the sink."""

from experiments.sink_circuit.results import FIRST_POSITION, QUERY_BIAS, Dose, Edit, Logits, Measured, Results, Stored
from lib.core.evidence import Average
from lib.report import tables

DOSED = {QUERY_BIAS: "query bias", FIRST_POSITION: "position 0's embedding"}


def summarise(result: Stored) -> str:
    results = result.results
    baseline = results.baseline
    return "\n".join(
        [
            tables.header(result, "Experiment 11: the parameters behind the attention sink"),
            "Attention: mean probability on position 0 from the queries of the second half of each window that see it,",
            f"over all heads of layers {tables.spans(results.layers)} (of GPT-2's 12: 3-10, as in arXiv 2604.14722).",
            "EPE p: what block 0 gives for position embedding p alone, its attention off: that, and what the MLP makes",
            "of it. Swapped: what the stream has along one position's vector becomes as much along the other's. Each",
            "edit has a control: the same, or as much, elsewhere. left: of the baseline's attention. Changes: paired.",
            *_dims(results),
            "",
            f"Baseline: attention {tables.interval(baseline.attention)} (evenly: {tables.number(baseline.evenly)}), "
            f"loss {tables.interval(baseline.loss)} nats a token",
            _edits(results.edits),
            *(f"Times a factor: {DOSED[name]}\n{_doses(of_edit)}" for name, of_edit in results.doses.items()),
            _logits(results.logits, results.why_no_bias),
            tables.conclusion_text(result.conclusion),
        ]
    )


def _dims(results: Results) -> list[str]:
    if results.dims is None or results.random_dims is None:
        return []
    largest, others = (" ".join(map(str, dims)) for dims in (results.dims, results.random_dims))
    return [f"Largest dims of EPE 0: {largest}; random ones: {others}"]


def _edits(edits: dict[str, Edit]) -> str:
    rows = []
    for edit in edits.values():
        if edit.control is not None:
            rows += [_row(edit.label, edit), _row(f"- {edit.control.label}", edit.control)]
    absent = "".join(f"Not there: {edit.label}: {edit.why}\n" for edit in edits.values() if not edit.there)
    return tables.table(["edit, and - its control", "attention", "left", "change", "of the loss"], rows) + absent


def _row(label: str, one: Edit | Measured) -> list[str]:
    return [
        label,
        tables.interval(one.attention),
        "-" if one.left is None else tables.number(one.left.mean),
        tables.interval(one.change, True),
        tables.interval(one.loss_change, True),
    ]


def _doses(of_edit: list[Dose]) -> str:
    rows = [
        [f"{dose.factor:g}", tables.interval(dose.attention), tables.interval(dose.loss_change, True)]
        for dose in of_edit
    ]
    return tables.table(["factor", "attention", "change of the loss"], rows)


def _logits(logits: list[Logits], why_no_bias: str | None) -> str:
    text = (
        "Mean logits, over each layer's heads and the same queries, at key 0 and at the other keys they see: what the\n"
        "query bias gives, and all else (the query's content, position biases)\n"
    )
    if why_no_bias:
        text += f"The query bias has no part of its own: {why_no_bias}\n"
    rows = [
        [layer.layer, *map(_signed, (layer.bias, layer.bias_others, layer.content, layer.content_others))]
        for layer in logits
    ]
    return text + tables.table(["layer", "bias, key 0", "others", "all else, key 0", "others "], rows)


def _signed(cell: Average | None) -> str:
    return tables.interval(cell, True)
