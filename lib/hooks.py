"""Capture, ablate and stop a forward pass. Every context manager here restores the model, also after an error.

A watcher is called as `see(layer, value)`; a tensor that it returns takes the value's place.
"""

from contextlib import ExitStack, contextmanager, suppress

import torch

from lib.cli import UserError


class _Stop(Exception):  # noqa: N818 (not an error)
    pass


def forward(lm, ids):
    """Run the blocks (no LM head) on (batch, seq) token ids; watchers do the measuring."""
    with torch.inference_mode(), suppress(_Stop):
        lm.model.base_model(input_ids=ids.to(lm.device), use_cache=False)


def token_losses(lm, ids, chunk=256):
    """(batch, seq - 1) next-token losses in nats; the logits are taken to float32 `chunk` positions at a time."""
    ids = ids.to(lm.device)
    with torch.inference_mode():
        logits = lm.model(input_ids=ids, use_cache=False).logits[:, :-1]
        losses = [
            torch.nn.functional.cross_entropy(part.transpose(1, 2).float(), target, reduction="none")
            for part, target in zip(logits.split(chunk, dim=1), ids[:, 1:].split(chunk, dim=1), strict=True)
        ]
        return torch.cat(losses, dim=1)


def require_finite(layer, value):
    """Raise UserError if a (batch, ...) tensor of `layer` holds inf or nan."""
    if not value.isfinite().all():
        raise UserError(
            f"non-finite values at layer {layer}; float16 ends at 65,504, which massive activations can pass: "
            "try --dtype bfloat16 or float32"
        )


@contextmanager
def watch_inputs(arch, role, see, layers=None):
    """Call `see` with the first argument of each layer's `role` module."""

    def register(layer, module):
        def hook(_module, args):
            new = see(layer, args[0])
            return None if new is None else (new, *args[1:])

        return module.register_forward_pre_hook(hook)

    with _registered(arch, role, layers, register):
        yield


@contextmanager
def watch_outputs(arch, role, see, layers=None):
    """Call `see` with `role`'s part of each layer's module output (of the first, where it returns several)."""

    def register(layer, module):
        def hook(_module, _args, output):
            if isinstance(output, tuple):
                new = see(layer, output[0])
                return None if new is None else (new, *output[1:])
            return see(layer, arch.part(role, output))

        return module.register_forward_hook(hook)

    with _registered(arch, role, layers, register):
        yield


@contextmanager
def _registered(arch, role, layers, register):
    handles = []
    try:
        for layer in range(arch.n_layers) if layers is None else layers:
            handles.append(register(layer, arch.module(layer, role)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def stop_after(arch, layer):
    """End `forward` once block `layer` has its output; enter it last, so that watchers see that output first."""

    def stop(_layer, _hidden):
        raise _Stop

    return watch_outputs(arch, "block", stop, [layer])


@contextmanager
def keep_block_outputs(arch, kept):
    """Put what each block returns, as it is, into the dict `kept`."""
    with ExitStack() as stack:
        for layer, block in enumerate(arch.blocks):
            handle = block.register_forward_hook(lambda _m, _args, out, layer=layer: kept.update({layer: out}))
            stack.callback(handle.remove)
        yield


@contextmanager
def resume_at(arch, layer, before):
    """Start at block `layer`: the blocks before it do not run, and all return `before`, block `layer - 1`'s output."""
    with ExitStack() as stack:
        for block in arch.blocks[:layer]:
            stack.enter_context(_forward_replaced(block, lambda *_args, **_kwargs: before))
        yield


@contextmanager
def _forward_replaced(module, function):
    own = vars(module).get("forward")  # accelerate puts one there
    module.forward = function
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def heads_off(arch, heads):
    """Zero each (layer, head)'s slice of the input of the attention output projection; the bias stays."""
    return heads_set(arch, dict.fromkeys(heads, 0.0))


def heads_set(arch, outputs):
    """Put constants in the place of heads' outputs, before the attention output projection.

    outputs: {(layer, head): (head_dim,) tensor, or a number}.
    """
    off, instead = {}, {}
    for (layer, head), output in outputs.items():
        arch.check_head(layer, head)
        mask = off.setdefault(layer, torch.zeros(arch.n_heads, arch.head_dim, dtype=torch.bool))
        mask[head] = True
        instead.setdefault(layer, torch.zeros(arch.n_heads, arch.head_dim))[head] = output

    def replace(layer, value):
        mask, new = (x[layer].flatten().to(value.device) for x in (off, instead))
        return torch.where(mask, new.to(value.dtype), value)

    return watch_inputs(arch, "head_projection", replace, off)


def neurons_off(arch, layer, neurons):
    """Zero these neurons of one layer's MLP: their activation, which is the input of the down projection."""
    arch.check_layer(layer)
    off = torch.zeros(arch.weight(layer, "down").shape[1], dtype=torch.bool)
    off[list(neurons)] = True
    return watch_inputs(arch, "down", lambda _layer, value: value.masked_fill(off.to(value.device), 0), [layer])


def attention_off(arch, layers):
    """Zero everything that these layers' attention adds to the residual stream, bias included."""
    return _write_off(arch, "attention_write", layers)


def mlps_off(arch, layers):
    """Zero everything that these layers' MLPs add to the residual stream, bias included."""
    return _write_off(arch, "mlp_write", layers)


def _write_off(arch, role, layers):
    for layer in layers:
        arch.check_layer(layer)
    return watch_outputs(arch, role, lambda _layer, value: torch.zeros_like(value), layers)


@contextmanager
def position_embeddings_swapped(arch, one, other):
    """Give position `one` the learned position embedding of `other`, and the other way round."""

    def swap(_module, _args, output):  # (1 or batch, seq, hidden)
        order = torch.arange(output.shape[1], device=output.device)
        order[[one, other]] = order[[other, one]]
        return output[:, order]

    handle = arch.position_embedding.register_forward_hook(swap)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def activation_replaced(arch, layer, function):
    """Put `function` in the place of the activation function of one layer's MLP."""
    handle = arch.module(layer, "activation").register_forward_hook(lambda _module, args, _output: function(args[0]))
    try:
        yield
    finally:
        handle.remove()
