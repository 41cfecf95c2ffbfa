"""The TXT of the forecast: what the weights say, what was measured, and every layer."""

from msgspec import UNSET

from experiments.weights_alone.judge import NOTHING, first_generator
from experiments.weights_alone.results import Compared, Forecast, Stored
from lib.report.tables import conclusion_text, fraction, header, interval, number, place_text, table

SHOWN = 12
HOW = """\
From the weights alone: norm and largest eigenvalue of the form by which an MLP writes a dim, of the normed stream
before the norm's weights, which are folded in.
Gated: S_k of arXiv 2603.05498, as if the activation function were the identity; no bias is used, nor that of a norm.
Plain: to first order around what the biases give, that of a norm included; eigenvalue: the length of the linear form.
A norm after the MLP: its weights are folded in, what it divides by is not known. Routing weights are not known.
Layers differ in the scale of what is folded in: dims are compared by how far their norms stand out of their layer's.
"""
COLUMNS = """\
x mean: the norm in parts of the mean norm of all dims of its layer, by which the forecast is ordered.
own dim: share of the direction's squared length on the dim itself, in parts of an even share (1 / hidden).
carried by: the neurons with the largest shares of the eigenvalue.
tokens: whose stream as the first token (embedding and position 0, before any block) has the largest cosines with it.
"""


def summarise(result: Stored) -> str:
    results = result.results
    forecast = results.forecast
    shown = forecast[:SHOWN]
    first = first_generator(forecast)
    if first is not None and first not in shown:
        shown.append(first)
    rows = [
        [
            forecast.index(one) + 1,
            one.mlp,
            one.dim,
            one.sign,
            one.role,
            number(one.norm),
            number(one.times_mean),
            number(one.eigenvalue, True),
            number(one.own),
            ", ".join(f"{carrier.neuron} ({carrier.share:.0%})" for carrier in one.neurons[:3]),
            " ".join(f"{token.token!r} {token.cosine:.2f}" for token in one.tokens[:2]),
        ]
        for one in shown
    ]
    heads = ["", "MLP", "dim", "sign", "role", "norm", "x mean", "eigenvalue", "own dim", "carried by", "tokens"]
    text = f"{header(result, 'Experiment 12: a forecast from the weights alone')}{HOW}\n"
    text += f"Forecast, of {results.n_forecast} dims ({results.n_generators} generators), what stands out most:\n"
    text += (table(heads, rows) + COLUMNS if rows else "none\n") + _left_out(result)
    return (
        f"{text}\n{place_text(results.measured.place)}{_measured(result, first)}\n{conclusion_text(result.conclusion)}"
    )


def _left_out(result: Stored) -> str:
    return "".join(f"left out: {left.why}\n" for left in result.results.left_out)


def _measured(result: Stored, first: Forecast | None) -> str:
    birth, dim = result.conclusion.values.birth, result.results.measured.place.dim
    compared = result.results.measured.compared
    says = NOTHING if first is None else f"dim {first.dim} in MLP {first.mlp}, {first.sign}"
    text = f"Forecast: {says}. Measured: dim {dim}; its birth by experiment 3's rule: {birth}\n"
    return text if compared is None else text + _compared(compared)


def _compared(compared: Compared) -> str:
    role = "not among the largest norms of its layer" if compared.role is None else f"forecast as {compared.role}"
    rank = "" if compared.generator is None else f", number {compared.generator} of them"
    text = (
        f"Dim {compared.dim} in the MLP of layer {compared.layer}: norm {number(compared.norm)}, "
        f"{number(compared.times_mean)} x the mean, rank {compared.rank} of all dims of all MLPs; {role}{rank}\n"
    )
    if compared.overlap is None or compared.cosine is None:
        return text
    return (
        f"{text}Its forecast neurons {', '.join(compared.neurons)}: {fraction(compared.overlap)} are among as many "
        f"with the largest contributions there ({', '.join(compared.measured)})\n"
        f"cosine of its direction with the normed stream at the place: {interval(compared.cosine, True)}\n"
    )


def details(result: Stored) -> str:
    rows = [
        [
            layer.layer,
            layer.form if layer.experts is UNSET else f"{layer.form}, {layer.experts} experts",
            number(layer.mean),
            ", ".join(f"{one.dim} ({number(one.norm)}, {one.role[0]})" for one in layer.largest[:4]),
            "; ".join(
                f"{number(one.value)}: dim {one.dim} ({one.share:.0%}), neuron {one.neuron}"
                for one in layer.singular[:2]
            ),
        ]
        for layer in result.results.layers
    ]
    heads = ["layer", "form", "mean norm", "largest norms (g generator, e eraser)", "singular values of down"]
    return (
        table(heads, rows)
        + "Singular values of the down projection, with the weights of a norm after it: the dim with "
        "most of the left vector (its share of the squared length), the neuron with most of the right one.\n"
    )
