"""The pretended device itself, and how transfers are counted there; test_on_device.py counts those of every script."""

from contextlib import suppress

import pytest
import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from benchmarks.entries import ENTRIES, REGIME_ENTRIES
from lib.core import massive
from lib.run.cli import Options
from tests import pretend, transfers
from tests.conftest import token_ids

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("few_draws")]


@pytest.mark.parametrize("name", REGIME_ENTRIES)
def test_benchmark_entries_that_are_compared_make_one_copy_a_pass(name, tiny_llama_folder):
    """And transformers one of its own: ours has no better start than theirs."""
    with pretend.device() as transfers:
        measure = ENTRIES[name].prepare(Options(model=str(tiny_llama_folder), device=str(pretend.DEVICE), batch_size=1))
        transfers.clear()
        measure(token_ids(1, 16))
        assert transfers == {"item": 1, "copy": 1}


def test_a_value_that_a_hook_reads_is_seen(planted, text, monkeypatch):
    update = massive.LayerStatistics.update

    def reading(self, layer, hidden):
        hidden.max().item()
        update(self, layer, hidden)

    monkeypatch.setattr(massive.LayerStatistics, "update", reading)
    of = transfers.counted("main_llm.py --exp2", planted, text, batch_size=4)
    assert of.inside["item"] == of.passes * (1 + planted.lm.arch.n_layers)
    assert of.in_all.total() > 3 * of.passes


TRANSFERS = {
    "copy": [
        lambda x: x.cpu(),
        lambda x: x.to("cpu", torch.bfloat16),
        lambda x: torch.empty(3).copy_(x),
        lambda x: x.tolist(),
    ],
    "item": [lambda x: x[0].item(), lambda x: float(x.sum()), lambda x: bool((x > 2).any()), lambda x: x[x.argmax()]],
    "nonzero": [torch.nonzero, torch.where],
    "boolean index": [lambda x: x[x > 1], lambda x: x.__setitem__(x > 1, 0)],
    "equal": [lambda x: torch.equal(x, x)],
}


@pytest.mark.parametrize("kind", TRANSFERS)
def test_what_the_host_reads_is_counted(kind):
    with pretend.device() as transfers:
        x = torch.tensor([1.0, 2.0, 3.0], device=pretend.DEVICE)
        for read in TRANSFERS[kind]:
            transfers.clear()
            read(x)
            assert transfers == {kind: 1}


def test_what_stays_there_is_not_counted():
    with pretend.device() as transfers:
        x = torch.arange(6.0).to(pretend.DEVICE).view(2, 3)
        x[:, 1] = 5
        y = torch.where(x > 2, x, 0.0).mul_(x)[[1, 0]] @ torch.ones(3, 2, device=pretend.DEVICE)
        y.copy_(torch.ones(2, 2)).add_(1).topk(1)
        assert not transfers
        assert y.tolist() == [[2, 2], [2, 2]]


@pytest.mark.parametrize(
    "mix",
    [lambda x: x + torch.ones(3), lambda x: x[torch.arange(2)], lambda x: x.masked_fill_(torch.ones(3).bool(), 0)],
)
def test_devices_do_not_mix(mix):
    with pretend.device(), pytest.raises(RuntimeError, match="expected all tensors on pretend:0"):
        mix(torch.ones(3, device=pretend.DEVICE))


@pytest.mark.parametrize(
    "widen",
    [
        lambda x: x.double(),
        lambda x: x.sum(dtype=torch.float64),
        lambda x: torch.zeros_like(x, dtype=torch.float64),
        lambda _x: torch.ones(3).double().to(pretend.DEVICE),
        lambda _x: torch.tensor([1.0], dtype=torch.float64, device=pretend.DEVICE),
    ],
)
def test_there_is_no_float64(widen):
    with pretend.device(), pytest.raises(TypeError, match="pretend:0 has no float64"):
        widen(torch.ones(3, device=pretend.DEVICE))
    with pretend.device(float64=True):
        assert widen(torch.ones(3, device=pretend.DEVICE)).dtype == torch.float64


@pytest.mark.parametrize("call", [lambda x: torch.linalg.lstsq(x, x), torch.linalg.eigh, torch.frexp])
def test_what_has_no_kernel_on_mps_does_not_run(call):
    with pretend.device(), pytest.raises(NotImplementedError, match="has no kernel for MPS"):
        call(torch.eye(2, device=pretend.DEVICE))
    with pretend.device(float64=True):
        call(torch.eye(2, device=pretend.DEVICE))


def test_nothing_is_left_of_it():
    inference_mode = torch.inference_mode
    with suppress(ZeroDivisionError), pretend.device():
        x = torch.ones(3, device=pretend.DEVICE)
        raise ZeroDivisionError
    assert torch.inference_mode is inference_mode
    assert not _get_current_dispatch_mode_stack()
    with pytest.raises(RuntimeError, match=r"outside of pretend\.device"):
        x + 1
