"""Where one block keeps its parts."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Layer:
    """Where one block keeps its parts: paths of modules in the block, None for what it does not have."""

    attention_module: str | None = None
    """The module that computes attention."""
    n_heads: int = 0
    head_projection: str | None = None
    """Attention's output projection; its input is the heads' outputs side by side."""
    heads: str | None = None
    """Why its heads are not known, where they are not."""
    attention_write: str | None = None
    """The module whose output attention adds to the residual stream: that projection, or a norm after it. In a block
    without attention, that of what mixes tokens in its place: a state space, a recurrence, linear attention."""
    attention_returns: Returns | None = None
    """What the attention module gives, where it is the projection's output, alone or with the residual stream."""
    others: tuple[str, ...] = ()
    """What else writes into the residual stream."""
    mlp_write: str | None = None
    """The module whose output the MLP adds to the residual stream: the down projection, a norm after it, or experts."""
    down: str | None = None
    """Last projection of the MLP; its input is the activation of every neuron."""
    up: str | None = None
    """First projection of the MLP (of a gated MLP: the one without the activation function)."""
    gate: str | None = None
    """Projection that enters the activation function in a gated MLP; None in a plain one."""
    activation: str | None = None
    """The MLP's activation function, where it is a module."""
    function: str | None = None
    """Its name in FUNCTIONS, where it is none."""
    mlp_norm: str | None = None
    """The norm before the MLP, whose input is the residual stream; None where its first projection reads that itself,
    or is not known."""
    keep: float = 1.0
    """What the residual stream is multiplied by before the writes are added."""
    experts: str | None = None
    """The experts of a mixture: a module that lib/model/experts.py knows."""
    experts_sum: str | None = None
    """The module whose output is the sum of the experts and of the shared expert beside them."""
    shared_expert: str | None = None
    """The module of that expert, whose output may be multiplied by a number for each token."""
    shared: Layer | None = None
    """Where that expert has its parts, as an MLP; None where its neurons are not known."""
    scales: dict[str, float] = field(default_factory=dict)
    """What a write is multiplied by before it is added, by its path; 1 where it is not here."""
    slices: dict[str, slice] = field(default_factory=dict)
    """Which part of its module's output a role is, where one projection is two."""
    transposed: frozenset[str] = frozenset()
    """Roles whose weight is (in, out)."""
    inner: str | None = None
    """Why the MLP's neurons are not known, where they are not."""


@dataclass(frozen=True)
class Returns:
    """What an attention module gives. others: how many values beside the first, maps of attention or None; None: it
    gives a tensor. adds: whether the first is the sum with the residual stream."""

    others: int | None
    adds: bool
