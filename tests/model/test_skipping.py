"""What lib/model/skipping.py takes from PyTorch: whether a module has hooks."""

import pytest
import torch

from lib.model.skipping import input_is_seen, output_is_seen


@pytest.mark.parametrize(
    ("register", "is_seen", "other"),
    [
        ("register_forward_pre_hook", input_is_seen, output_is_seen),
        ("register_forward_hook", output_is_seen, input_is_seen),
    ],
)
@pytest.mark.parametrize("how", [{}, {"prepend": True}, {"with_kwargs": True}])
def test_a_hook_is_noticed_as_long_as_it_is_there(register, is_seen, other, how):
    module, called = torch.nn.Linear(2, 2), []
    assert not is_seen(module)
    handle = getattr(module, register)(lambda *_: called.append(1), **how)
    module(torch.ones(2))
    assert called
    assert is_seen(module)
    assert not other(module)
    handle.remove()
    assert not is_seen(module)
