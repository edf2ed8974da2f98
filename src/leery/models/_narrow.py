"""The gradient of a convolution with respect to an input of few channels, such as an image.

Libraries of convolutions fill the channels up to whole vectors; for one or three of them that is
nearly all of the work. As a matrix product and a shifted sum it takes a fifth of the time.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional
from torch.overrides import TorchFunctionMode

__all__ = ["NarrowConvolutions"]

_FEW = 3

_CONVOLUTIONS = (torch.conv2d, torch.ops.aten.conv2d.default)

_ONES = (1, (1,), (1, 1), [1], [1, 1])


class NarrowConvolutions(TorchFunctionMode):
    """While active, convolutions of few channels give the gradient of their input alone, faster.

    Of plain ones, that is: two-dimensional, on a processor, with steps of one, and with filters so
    small that the gradient needs little memory.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the function returns
        """Call the function, or its faster twin."""
        if func in _CONVOLUTIONS and (found := _narrow(*args, **(kwargs or {}))) is not None:
            return found
        return func(*args, **(kwargs or {}))


def _narrow(
    input: Tensor,  # noqa: A002 - torch's name, by which it may be passed
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,  # noqa: ANN401 - a number or several
    padding: Any = 0,  # noqa: ANN401 - a number, several, or a name
    dilation: Any = 1,  # noqa: ANN401
    groups: int = 1,
) -> Tensor | None:
    """The convolution, where it is a plain one of few channels."""
    if isinstance(padding, str) or not (stride in _ONES and dilation in _ONES and groups == 1):
        return None
    few = input.ndim == 4 and input.shape[1] <= _FEW  # noqa: PLR2004 - N, C, H, W
    if not few or input.device.type != "cpu" or not input.requires_grad:
        return None
    if _others_ask(weight, bias) or weight[0].numel() > 2 * len(weight):
        return None
    pads = (padding, padding) if isinstance(padding, int) else tuple(padding)
    return _Narrow.apply(input, weight, bias, (pads * 2)[:2])  # type: ignore[no-any-return, no-untyped-call]


def _others_ask(weight: Tensor, bias: Tensor | None) -> bool:
    """Whether more than the gradient of the input is asked for, or not in the plain way.

    The filters may themselves come from the image; types and transformations are torch's business.
    """
    computed = weight.grad_fn is not None or (bias is not None and bias.grad_fn is not None)
    transformed = torch._C._are_functorch_transforms_active()  # noqa: SLF001 - no other way
    return computed or transformed or torch.is_autocast_enabled("cpu")


class _Narrow(torch.autograd.Function):
    """A convolution through which only the gradient of the images is passed back."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        images: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        padding: tuple[int, int],
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.padding = images.shape, padding  # type: ignore[attr-defined]
        return functional.conv2d(images, weight, bias, padding=padding)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # noqa: ANN401
        (weight,) = ctx.saved_tensors
        (count, channels, height, width), (above, beside) = ctx.shape, ctx.padding
        # What each place of the output passes on to each place under the filter.
        shares = torch.einsum("ocij,nohw->cijnhw", weight, gradient)
        padded = gradient.new_zeros(channels, count, height + 2 * above, width + 2 * beside)
        high, wide = gradient.shape[2:]
        for i in range(weight.shape[2]):
            for j in range(weight.shape[3]):
                padded[:, :, i : i + high, j : j + wide] += shares[:, i, j]
        inner = padded[:, :, above : above + height, beside : beside + width]
        return inner.transpose(0, 1), None, None, None
