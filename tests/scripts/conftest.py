"""A planted model, and where else it runs."""

from contextlib import contextmanager, nullcontext

import pytest
import torch

from tests import golden


@pytest.fixture(scope="module", params=golden.MODELS)
def planted(request):
    return golden.build(request.param)


@pytest.fixture(scope="module")
def text(planted, tmp_path_factory):
    return golden.write_text(planted, tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="session")
def elsewhere(request):
    """A context manager that yields the device of pytest's --device, which can be used inside."""
    name = request.config.getoption("--device")
    return _pretended if name == "pretend" else lambda: nullcontext(torch.device(name))


@contextmanager
def _pretended():
    from tests import pretend  # torch cannot take it back: not where a real device is asked for

    with pretend.device():
        yield pretend.DEVICE
