"""The kinds of models whose weights tell of a massive activation that the model does not have, in which no token
carries what would wake it; with another one beside it, or with none.
"""

from collections.abc import Callable

from lib.planted.builder import FLAG_SIZE, Builder, Values
from lib.planted.truth import Fields
from lib.planted.visible import signed

LARGER = 4.0  # times the value that the model has


def _unwoken(b: Builder) -> Fields:
    """Neurons of an MLP would write it where a token had the flag that they read."""
    layer = b.layers(1, before=b.n_layers)[0]
    return {"generator": "none", "foreseen": _asleep(b, layer, b.values)}


def _unforeseen(b: Builder) -> Fields:
    """As "mlp", and in another layer neurons asleep with larger weights, to another dim: the weights tell of these."""
    layer, other = b.rng.permutation(b.n_layers - 1)[:2].tolist()
    neurons = b.neurons_write(layer, b.flag - b.one, b.values)
    readers = b.readers(layer + 1, b.n_layers - 1)
    foreseen = _asleep(b, other, {b.spare_dims.pop(): b.sign() * LARGER * abs(b.values[b.largest])})
    return {
        "generator": "mlp",
        "layer": layer,
        "neurons": neurons,
        "values": b.values,
        "readers": readers,
        "foreseen": foreseen,
    }


def _asleep(b: Builder, layer: int, values: Values) -> str:
    """Let an MLP write values where a token has a flag (and nothing at the first, where SiLU would leave some), and
    take that flag from it; returns what is foreseen."""
    token, flag = b.add_second_token(FLAG_SIZE)
    b.neurons_write(layer, flag - b.one - b.flag, values, ids=[1, token])
    b.embedding[token] -= FLAG_SIZE * flag
    b.second_token = None
    dim = max(values, key=lambda dim: abs(values[dim]))
    return f"mlp {layer} {signed([(dim, values[dim])])[0]}"


KINDS: dict[str, Callable[[Builder], Fields]] = {"unwoken": _unwoken, "unforeseen": _unforeseen}
