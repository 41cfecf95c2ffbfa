"""An accelerator that does not exist, to test device code without one: its tensors are computed on the CPU.

They mix with no others, there is no float64 and nothing that PyTorch has no kernel for on MPS, and what the host reads
is counted:

    with pretend.device() as transfers:
        model.to(pretend.DEVICE)(ids.to(pretend.DEVICE)).logits.argmax(-1).tolist()
    transfers  # Counter({"copy": 1})
"""

from collections import Counter
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from unittest import mock

import torch
import torchgen
import yaml
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend("pretend")  # torch cannot take it back: it stays until the process ends
DEVICE, CPU = torch.device("pretend:0"), torch.device("cpu")
COPIES = ("_to_copy", "copy_")
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")
# the host waits for these: their values decide on a shape, or on what Python does next
AWAITED = ("nonzero", "masked_select", "equal", "_unique2", "unique_dim", "unique_consecutive")


@contextmanager
def device(float64=False):
    """Tensors can be on DEVICE while it lasts; yields the Counter of transfers from there to the host, by kind.

    float64: whether DEVICE has it, as CUDA does. torch.inference_mode, which no subclass of tensors can live in, is
    torch.no_grad here.
    """
    with (
        mock.patch.object(torch, "inference_mode", torch.no_grad),
        mock.patch.object(Tensor, "has_float64", float64),
        _Device() as seen,
    ):
        yield seen.transfers


class Tensor(torch.Tensor):
    """A tensor on DEVICE; `host`, on the CPU, has its values. Raises TypeError for float64, unless `has_float64`."""

    has_float64 = False
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, host):
        if host.dtype == torch.float64 and not cls.has_float64:
            raise TypeError(f"{DEVICE} has no float64")
        memory = {"strides": host.stride(), "storage_offset": host.storage_offset()}
        tensor = torch.Tensor._make_wrapper_subclass(cls, host.shape, dtype=host.dtype, device=DEVICE, **memory)
        tensor.host = host
        return tensor

    @classmethod
    def __torch_dispatch__(cls, operation, *_args):
        raise RuntimeError(f"{operation} on {DEVICE}, outside of pretend.device()")

    def __repr__(self):
        return f"{self.host!r} on {DEVICE}"

    def tolist(self):  # torch's own refuses subclasses
        return self.cpu().tolist()


class _Device(TorchDispatchMode):
    """Does what is asked of tensors on DEVICE with their hosts.

    transfers: {kind: number}, from DEVICE to the host.
    """

    def __init__(self):
        super().__init__()
        self.transfers = Counter()

    def __torch_dispatch__(self, operation, _types, args=(), kwargs=None):
        tensors = []
        hosts, options = _each_tensor((args, kwargs or {}), lambda tensor: tensors.append(tensor) or _host(tensor))
        ours = {id(tensor.host): tensor for tensor in tensors if isinstance(tensor, Tensor)}
        name = operation.overloadpacket.__name__
        if ours and not Tensor.has_float64 and not _has_kernel(operation.name().removeprefix("aten::")):
            raise NotImplementedError(f"{operation} has no kernel for MPS")
        target = args[0].device if name == "copy_" else options.get("device") or (DEVICE if ours else CPU)
        if ours:
            _require_together(name, tensors)
            self.transfers.update(_transfers(name, tensors, target))
        if options.get("device") == DEVICE:
            options["device"] = CPU
        result = operation(*hosts, **options)
        if target != DEVICE:
            return result
        # what works in place returns the very tensor that it got
        return _each_tensor(result, lambda host: ours[id(host)] if id(host) in ours else Tensor(host))


@cache
def _kernels():
    """{operation: (types of devices that have a kernel of its own, the operation that is run in its place or None)}."""
    listed = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
    functions = yaml.load(listed.read_text(), yaml.CSafeLoader)
    return {
        function["func"].partition("(")[0]: (
            {kind for kinds in function.get("dispatch", ()) for kind in kinds.split(", ")},
            function.get("structured_delegate"),
        )
        for function in functions
    }


@cache
def _has_kernel(name):
    """Whether MPS has one of this operation, if the CPU has; what is made of other operations has none of its own."""
    kinds, instead = _kernels()[name]
    if instead is not None:
        return _has_kernel(instead)
    if not kinds & {"CPU", "MPS"}:  # perhaps it only makes room for its result, for another of the same name to fill
        own = f"{name.partition('.')[0]}."
        named = [kinds for other, (kinds, _instead) in _kernels().items() if f"{other}.".startswith(own)]
        kinds = set().union(*(kinds for kinds in named if "CPU" in kinds))
    return "CPU" not in kinds or bool(kinds & {"MPS", "CompositeExplicitAutograd"})


def _each_tensor(value, change):
    """`value` with change(tensor) for each tensor in its tuples, lists and dicts."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, (tuple, list)):
        return type(value)(_each_tensor(item, change) for item in value)
    if isinstance(value, dict):
        return {key: _each_tensor(item, change) for key, item in value.items()}
    return value


def _host(tensor):
    return tensor.host if isinstance(tensor, Tensor) else tensor


def _require_together(name, tensors):
    """Raise RuntimeError if some are on the CPU; one number may be, in a tensor of no dimensions.

    Indices on the CPU are no mistake on real devices, which then copy them: here they are.
    """
    if name not in COPIES and any(tensor.ndim and not isinstance(tensor, Tensor) for tensor in tensors):
        raise RuntimeError(f"{name}: expected all tensors on {DEVICE}, but some are on {CPU}")


def _transfers(name, tensors, target):
    """The kinds of an operation's transfers, none or one."""
    if name in COPIES:
        return ["copy"] if target == CPU else []
    if name == "_local_scalar_dense":
        return ["item"]
    if name in INDEXING and any(tensor.dtype == torch.bool for tensor in tensors[1:]):
        return ["boolean index"]
    return [name] if name in AWAITED else []


_operations = torch.library.Library("aten", "IMPL")  # asked for below any mode, for a tensor of Python's numbers


@torch.library.impl(_operations, "empty_strided", "PrivateUse1")
def _empty_strided(size, stride, dtype=None, **_options):
    return Tensor(torch.empty_strided(size, stride, dtype=dtype, device=CPU))


@torch.library.impl(_operations, "_copy_from", "PrivateUse1")
def _copy_from(source, target, _non_blocking=False):
    target.host.copy_(source)
    return target
