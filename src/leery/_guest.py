"""The user's model is a guest: whatever is done with it, it leaves as it came."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["device_of", "guest"]


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter or buffer; the CPU for a model without any."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


@contextmanager
def guest(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode for a while; modes and random states are restored, come what may.

    The flags are set directly, not through ``model.eval()``, because models may override that
    with side effects. Random numbers that the model draws from the global generators meanwhile
    are forgotten: those generators stand afterwards where they stood before.
    """
    modes = [(module, module.training) for module in model.modules()]
    device = device_of(model)
    accelerators = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=accelerators):
        try:
            for module, _ in modes:
                module.training = False
            yield model
        finally:
            for module, mode in modes:
                module.training = mode
