"""The cost of a model, counted in multiplications."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

__all__ = ["multiplications"]

_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # noqa: SLF001 - torch's
"""Attention on a CPU, which torch's own registry lacks."""


class _Products(TorchDispatchMode):
    """Counts the multiplications of this thread.

    torch's own ``FlopCounterMode`` also registers hooks for all threads and modules, which break
    models that compute gradients themselves.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total: int = 0

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - torch's
        types: Any,  # noqa: ANN401 - torch's
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - torch's
        del types
        found = func(*args, **(kwargs or {}))
        kind = func.overloadpacket
        if kind is _ATTENTION:
            self.total += sdpa_flop_count(*(each.shape for each in args[:3])) // 2
        elif kind in flop_registry:
            self.total += flop_registry[kind](*args, **(kwargs or {}), out_val=found) // 2
        return found


def multiplications(model: nn.Module, images: Tensor) -> int:
    """Multiplications per image of a forward pass, in convolutions, linear layers and attention.

    Args:
        model: the module; the caller sets its modes. It is run once, on a copy of the images, with
            gradients, because torch fuses transformer layers without them and cannot count those.
        images: float ``(N, ...)``, on the model's device.

    Returns:
        The number; too small if the model multiplies in other layers.
    """
    batch = images.clone().requires_grad_()
    products = _Products()
    with torch.enable_grad(), products:
        model(batch)
    return products.total // len(images)
