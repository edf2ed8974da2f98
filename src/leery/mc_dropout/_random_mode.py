"""Forward passes whose random operations use given draws."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from leery.errors import UnsupportedModelError
from leery.mc_dropout._random_ops import IN_PLACE, RANDOM, RandomOp, is_random

__all__ = ["RandomCall", "RandomOpMode"]

_ATEN = torch.ops.aten
_BATCH_NORMS = (_ATEN.native_batch_norm.default, _ATEN.cudnn_batch_norm.default)
_RUNNING_MEAN, _TRAINING = 3, 5


class RandomCall:
    """A random operation that was intercepted in a forward pass.

    Attributes:
        operation: description of the operation.
        shape: shape of the draw.
        rate: the probability of dropping a unit; None unless units are dropped.
    """

    def __init__(self, operation: RandomOp, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self.operation = operation
        self.shape = tuple(operation.shape(*args, **kwargs))
        self.rate = operation.rate(*args, **kwargs) if operation.rate else None
        self._call = args, kwargs

    def with_draw(self, draw: Tensor) -> Any:  # noqa: ANN401 - whatever the operation returns
        """Result of the operation for a draw that broadcasts with ``shape``."""
        args, kwargs = self._call
        return self.operation.compute(draw, *args, **kwargs)

    def without_dropping(self) -> Any:  # noqa: ANN401 - whatever the operation returns
        """Result of the operation when nothing is dropped; None if unknown."""
        args, kwargs = self._call
        return self.operation.mean(*args, **kwargs) if self.operation.mean else None


class RandomOpMode(TorchDispatchMode):
    """Dispatch mode in which ``decide`` computes the result of every random operation.

    Batch norm in train mode uses its running statistics and does not update them.

    Args:
        decide: takes each operation in turn and returns its result.
    """

    def __init__(self, decide: Callable[[RandomCall], Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self._decide = decide

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - torch's own signature
        types: Any,  # noqa: ANN401
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Called by torch for each ATen operation.

        Raises:
            UnsupportedModelError: for a random operation that is not used by dropout.
        """
        kwargs = kwargs or {}
        if func in _BATCH_NORMS and args[_RUNNING_MEAN] is not None:
            args = (*args[:_TRAINING], False, *args[_TRAINING + 1 :])
        operation = RANDOM.get(IN_PLACE.get(func, func))
        if operation is not None and operation.draws(args, kwargs):
            found = self._decide(RandomCall(operation, args, kwargs))
            return args[0].copy_(found) if func in IN_PLACE else found
        if operation is None and is_random(func):
            message = (
                f"expected only random operations that dropout uses, got {func} in "
                "the model's forward; replace it by a dropout layer"
            )
            raise UnsupportedModelError(message)
        return func(*args, **kwargs)
