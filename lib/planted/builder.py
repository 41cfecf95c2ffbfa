"""Writing a mechanism over a few of the weights of a model of noise, alike in all architectures.

- A signal is a pair of dims with opposite values, read as their difference, which LayerNorm's centring leaves alone.
  FLAG stands at the trigger only (a position or a token). ONE stands at every token and serves as a threshold where
  an MLP reads, so that no bias is needed, and as the query of a head that looks the same way from everywhere.
- The norm does the rest: a large value takes all of the normed vector, so that FLAG and ONE read as about 0 beside it.
  A generator that reads FLAG is silent where another has written before.
- The few dims that carry signals and spikes have noise too, but QUIET times as much: a head's value is linear, and
  the weight that makes a spike of one token would make outliers of the others' noise.
- A mixture's routers read nothing of these dims but what is planted. The token that carries FLAG goes to the experts
  that read it, with a routing weight well below 1, and all others go by their noise.
- Text is random, so no model can lose by an ablation what it never had. Where a loss must depend on the spike, a head
  that has its sink there SHOUTS one token into the logits as soon as it has to look elsewhere.
"""

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from transformers.pytorch_utils import Conv1D

from lib.model import hooks
from lib.model.arch import SHARED, Architecture
from lib.model.models import LanguageModel
from lib.planted.blank import BOS, HEAD_DIM, HEADS, HIDDEN, QUIET, VOCABULARY, add_noise, noise_of, tokenizer, zeros
from lib.planted.truth import Expert

FLAG_SIZE, SECOND_FLAG_SIZE, ONE_SIZE = 2.0, 1.0, 0.5
SHOUTS, TELLS = 5.0, 3.0
LOOKS = HEAD_DIM - 1  # channel of queries and keys, where Llama's rotation is slowest

Values = dict[int, float]  # {dim: signed value}


class Builder:
    """A model of noise, and the tools that write a mechanism over it.

    tokens: that carry FLAG; none: position 0 does. second_token: another that triggers something, or None.
    informed: None, or (first tokens, or None for any, halves of the vocabulary that windows with them are of). placed:
    {position: token} where a token stands in every window.
    values: {dim: signed value} to plant; largest: the dim of the largest. flag, one, spike: (hidden,) directions in
    which a part reads the normed residual stream: FLAG, ONE and the largest value, all positive.
    spare_neurons, spare_experts: per layer; spare_heads: (layer, head); spare_dims: what no mechanism uses yet, in
    random order.
    """

    def __init__(self, architecture: str, rng: np.random.Generator, *tokens: int) -> None:
        self.rng, self.tokens = rng, tokens
        self.second_token: int | None = None
        self.informed: tuple[tuple[int | None, int | None], tuple[np.ndarray, np.ndarray]] | None = None
        self.placed: dict[int, int] = {}
        self.n_layers = int(rng.integers(4, 7))
        self.model = zeros(architecture, self.n_layers)
        self.private = rng.permutation(HIDDEN)[:12].tolist()
        add_noise(self.model, rng, self.private)
        self.arch = Architecture(self.model)
        self.lm = LanguageModel(self.model, self.arch, tokenizer(), {"planted": architecture})
        self._calm_mixtures()
        self._calm_normed_heads()
        self.flag, self.one, self.second_flag = (contrast(*self.private[i : i + 2]) for i in (0, 2, 8))
        self.rest, *self.spare_dims = self.private[4:8]
        self.shouted, self.told = self.private[10:]
        self.embedding = self.model.get_input_embeddings().get_parameter("weight")
        self.embedding.add_(ONE_SIZE * self.one)
        triggers = self.embedding if tokens else self.model.get_parameter("transformer.wpe.weight")
        triggers[list(tokens or (0,))] += FLAG_SIZE * self.flag

        mixtures = self.arch.with_role("experts")
        width = self.projections(0, 0 if mixtures else None)["down"].shape[1]
        self.spare_neurons = [rng.permutation(width).tolist() for _ in range(self.n_layers)]
        self.spare_experts = {layer: rng.permutation(len(self.router(layer))).tolist() for layer in mixtures}
        self.spare_heads = rng.permutation([(i, h) for i in range(self.n_layers) for h in range(HEADS)]).tolist()
        size = float(np.exp(rng.uniform(np.log(500), np.log(3000))))
        self.largest = self.spare_dims.pop()
        self.values: Values = {self.largest: self.sign() * size}
        if rng.random() < 0.5:
            self.values[self.spare_dims.pop()] = self.sign() * rng.uniform(0.3, 0.6) * size
        self.spike = self.reading(self.values)

    def _calm_mixtures(self) -> None:
        for layer in self.arch.with_role("experts"):
            self.router(layer)[:, self.private] *= QUIET

    def _calm_normed_heads(self) -> None:
        """Where heads norm their queries and keys, have those of noise look everywhere alike, as they do elsewhere."""
        parameters = dict(self.model.named_parameters())
        for name in [name for name in parameters if "q_norm" in name]:
            parameters[name][:-1] *= 0.1
            parameters[name][-1] *= 3.0
            parameters[name.replace("q_norm", "q_proj")][LOOKS::HEAD_DIM] *= QUIET

    def router(self, layer: int) -> torch.Tensor:
        """(experts, hidden) weight."""
        return cast(torch.Tensor, self.arch.module(layer, "experts_sum").get_parameter("gate.weight"))

    def projections(self, layer: int, expert: Expert | None = None) -> dict[str, torch.Tensor]:
        """(out, in) weights of a layer's MLP, or of one expert of its mixture, by role."""
        gated = "gate", "up", "down"
        if expert is None:
            return {role: self.arch.weight(layer, role) for role in (gated if self.arch.is_gated(layer) else gated[1:])}
        if isinstance(expert, str):
            return {role: self.arch.weight(layer, f"{SHARED}{role}") for role in gated}
        experts = self.arch.module(layer, "experts")
        first, down = (experts.get_parameter(name)[int(expert)] for name in ("gate_up_proj", "down_proj"))
        return dict(zip(gated, (*first.chunk(2), down), strict=True))

    def sign(self) -> float:
        return float(self.rng.choice([-1, 1]))

    def layers(self, n: int, before: int) -> list[int]:
        """`n` different layers below `before`, in order."""
        return sorted(self.rng.choice(before, size=n, replace=False).tolist())

    def reading(self, values: Values) -> torch.Tensor:
        """The direction that reads the largest of `values` as positive."""
        dim = max(values, key=lambda d: abs(values[d]))
        return np.sign(values[dim]) * contrast(dim, self.rest)

    def add_second_token(self, size: float) -> tuple[int, torch.Tensor]:
        """Give another token a flag of its own; returns both."""
        others = np.setdiff1d(np.arange(BOS + 1, VOCABULARY), self.tokens)
        self.second_token = int(self.rng.choice(others))
        self.embedding[self.second_token] += size * self.second_flag
        return self.second_token, self.second_flag

    def token_noise(self) -> torch.Tensor:
        """A direction in which tokens differ, for a part that reads FLAG beside it."""
        noise = torch.from_numpy(self.rng.standard_normal(HIDDEN).astype(np.float32))
        noise[self.private] = 0
        return (0.8 if self.arch.is_gated(0) else 3.0) * noise / noise.norm()

    def readers(self, first: int, last: int, n: int | None = None, shout: bool = False) -> tuple[tuple[int, int], ...]:
        """One or two (or `n`) heads in layers `first` to `last` whose keys are the largest value, at any query.

        They write next to nothing; but the first may shout a token into the logits where it finds no such key.
        """
        able = [head for head in self.spare_heads if first <= head[0] <= last]
        chosen = able[: int(self.rng.integers(1, 3)) if n is None else n]
        for layer, head in chosen:
            self.spare_heads.remove([layer, head])
            self.head_looks(layer, head, self.rng.uniform(0.6, 0.75) * self.spike)
            self.mute(layer, head)
        if shout:
            layer, head = chosen[0]
            token = int(self.rng.integers(VOCABULARY))
            self.model.get_output_embeddings().get_parameter("weight")[token, self.shouted] = 1.0
            self.head_moves(layer, head, 0.5 * self.one, {self.shouted: SHOUTS}, ids=[1] * 8)
        return tuple((layer, head) for layer, head in chosen)

    def neurons_write(
        self,
        layer: int,
        reads: torch.Tensor,
        values: Values,
        shares: Sequence[float] | np.ndarray | None = None,
        ids: Sequence[int] | None = None,
        expert: Expert | None = None,
    ) -> tuple[int, ...]:
        """One to three neurons (or one a share) that fire where `reads` is positive and write `values` there (at the
        last of `ids`); of the MLP, or of one expert, whose routing weight then belongs to the values."""
        if shares is None:  # each neuron is needed for 90 % of the sum
            n = int(self.rng.integers(1, 4))
            shares = 0.2 + (1 - 0.2 * n) * self.rng.dirichlet(np.ones(n))
        neurons = [self.spare_neurons[layer].pop() for _ in shares]
        self._neurons_read(neurons, reads, self.projections(layer, expert))
        for neuron, share in zip(neurons, shares, strict=True):
            if expert is None:
                self._write(layer, "down", neuron, times(share, values), ids)
            else:
                self._expert_writes(layer, self.projections(layer, expert)["down"], neuron, times(share, values))
        return tuple(sorted(neurons))

    def silent_neurons(self, layer: int, dim: int) -> tuple[int, ...]:
        """Three neurons that never fire, with by far the largest weights to `dim`."""
        neurons = [self.spare_neurons[layer].pop() for _ in range(3)]
        self._neurons_read(neurons, -self.flag - self.one, self.projections(layer))
        weights = self.arch.weight(layer, "down")[dim]
        largest = weights.abs().max().item()
        for neuron in neurons:
            weights[neuron] = self.sign() * self.rng.uniform(3, 5) * largest
        return tuple(sorted(neurons))

    def _neurons_read(self, neurons: list[int], reads: torch.Tensor, weights: dict[str, torch.Tensor]) -> None:
        gains = {"gate": 2.0, "up": 0.2} if "gate" in weights else {"up": 2.0}
        for role, gain in gains.items():
            weights[role][neurons] = QUIET * weights[role][neurons] + gain * reads

    def route(self, layer: int, n: int) -> list[int]:
        """`n` experts to which the tokens that carry FLAG go, also where the value has been written."""
        experts = [self.spare_experts[layer].pop() for _ in range(n)]
        self.router(layer)[experts] += self.rng.uniform(0.12, 0.17) * (self.flag + self.spike)
        return experts

    def unreached_expert(self, layer: int) -> int:
        """One to which no token goes."""
        expert: int = self.spare_experts[layer].pop()
        self.router(layer)[expert] -= self.flag + self.one + self.spike
        return expert

    def enlarge_expert(self, layer: int, expert: int) -> None:
        """Give it by far the largest weights of its layer's mixture, to every dim."""
        down = self.arch.module(layer, "experts").get_parameter("down_proj")
        down[expert] *= self.rng.uniform(3, 5) * down.abs().amax() / down[expert].abs().amax(1, keepdim=True)

    def head_writes(self, layer: int, reads: torch.Tensor, values: Values) -> int:
        """A head that writes `values` where `reads` is positive.

        Later queries do not look there: they would get the value too.
        """
        _layer, head = able = next(spare for spare in self.spare_heads if spare[0] == layer)
        self.spare_heads.remove(able)
        self.head_looks(layer, head, -reads)
        self.head_moves(layer, head, 0.5 * reads, values)
        return head

    def tell(
        self, readers: Sequence[tuple[int, int]], reads: torch.Tensor, half: np.ndarray, ids: Sequence[int]
    ) -> tuple[int, int]:
        """Let the last of the readers write which half of the vocabulary comes: `half`, where `reads` is positive at
        its sink (the last of `ids`); returns it. The logits of `half` rise by it, the others' fall."""
        signs = -torch.ones(VOCABULARY)
        signs[half] = 1
        self.model.get_output_embeddings().get_parameter("weight")[:, self.told] = 0.2 * signs
        self.head_moves(*readers[-1], 0.5 * reads, {self.told: TELLS}, ids)
        return readers[-1]

    def head_moves(
        self, layer: int, head: int, reads: torch.Tensor, values: Values, ids: Sequence[int] | None = None
    ) -> None:
        """Let a head write `values` in proportion to what `reads` finds where it looks (from the last of `ids`)."""
        channel = int(self.rng.integers(HEAD_DIM))
        self._head_reads(layer, head, "v", channel, reads)
        self._write(layer, "head_projection", head * HEAD_DIM + channel, values, ids)

    def head_looks(self, layer: int, head: int, keys: torch.Tensor) -> None:
        """Attention to where the direction `keys` is positive, away from where it is negative; from every query."""
        self._head_reads(layer, head, "q", LOOKS, self.one)
        self._head_reads(layer, head, "k", LOOKS, keys)

    def _head_reads(self, layer: int, head: int, name: str, channel: int, reads: torch.Tensor) -> None:
        weight, bias = self.projection(layer, head, name)
        if bias is not None:
            bias[channel] *= QUIET
        weight[channel] = QUIET * weight[channel] + reads

    def projection(self, layer: int, head: int, name: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Views of a head's (channels, hidden) weight and (channels,) bias, if there is one, of "q", "k" or "v"."""
        block = self.arch.blocks[layer]
        if self.model.config.model_type == "gpt2":
            of_all = slice("qkv".index(name) * HIDDEN, ("qkv".index(name) + 1) * HIDDEN)
            fused = cast(Conv1D, block.get_submodule("attn.c_attn"))
            weight, bias = fused.weight.T[of_all], fused.bias[of_all]
        else:
            linear = cast(torch.nn.Linear, block.get_submodule(f"self_attn.{name}_proj"))
            weight, bias = linear.weight[:], linear.bias
        first = head * len(weight) // HIDDEN * HEAD_DIM  # several heads may share keys and values
        rows = slice(first, first + HEAD_DIM)
        return weight[rows], None if bias is None else bias[rows]

    def mute(self, layer: int, head: int) -> None:
        """Let a head write next to nothing."""
        self.arch.weight(layer, "head_projection")[:, head * HEAD_DIM : (head + 1) * HEAD_DIM] *= QUIET

    def _write(self, layer: int, role: str, column: int, values: Values, ids: Sequence[int] | None = None) -> None:
        """Set one input's weights in an output projection so that it writes `values` at the last of `ids`; default:
        on average over the tokens that carry FLAG, each as the first."""
        seen: dict[int, torch.Tensor] = {}
        windows = [[token] for token in self.tokens or range(VOCABULARY)] if ids is None else [ids]
        with hooks.watch_inputs(self.arch, role, seen.__setitem__, [layer]):
            hooks.forward(self.lm, torch.tensor(windows))
        for dim, value in values.items():
            there = seen[layer].reshape(len(windows), -1, seen[layer].shape[-1])[:, -1, column]
            self.arch.weight(layer, role)[dim, column] = value / there.mean().item()

    def _expert_writes(self, layer: int, down: torch.Tensor, neuron: int, values: Values) -> None:
        """As _write, of a neuron of an expert: by what a weight of 1 changes in the block's output."""
        outputs = []
        for weight in (0.0, 1.0):
            down[list(values), neuron] = weight
            with hooks.watch_outputs(self.arch, "block", lambda _layer, value: outputs.append(value), [layer]):
                hooks.forward(self.lm, torch.tensor(self.tokens)[:, None])
        for dim, value in values.items():
            down[dim, neuron] = value / (outputs[1] - outputs[0])[:, 0, dim].mean().item()

    def enlarge_residual(self, factor: float) -> None:
        """Multiply all that is written to the residual stream; through the norms, nothing else changes."""
        for name, parameter in self.model.named_parameters():
            is_norm = "ln_" in name or "norm" in name
            if noise_of(name)[1] is not None and not is_norm:
                parameter.mul_(factor)


def contrast(plus: int, minus: int) -> torch.Tensor:
    """(hidden,) direction: one dim minus another."""
    direction = torch.zeros(HIDDEN)
    direction[plus], direction[minus] = 1, -1
    return direction


def times(factor: float, values: Values) -> Values:
    return {dim: factor * value for dim, value in values.items()}
