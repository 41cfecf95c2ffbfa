"""What cannot be measured."""

import numpy as np
from torch import Tensor

from lib.run.errors import UserError


def require_finite(layer: int, value: Tensor | np.ndarray) -> None:
    """Raise UserError if (batch, ...) values of `layer` hold inf or nan."""
    if not (np.isfinite(value) if isinstance(value, np.ndarray) else value.isfinite()).all():
        raise UserError(
            f"non-finite values at layer {layer}; float16 ends at 65,504, which massive activations can pass: "
            "try --dtype bfloat16 or float32"
        )
