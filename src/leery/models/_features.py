"""The last hidden layer of any module, read off while the model runs once in eval mode."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from leery._checks import check_batch_size, check_images
from leery.errors import InputError, UnknownLayerError
from leery.models._guest import device_of, guest, run_fast, run_model
from leery.models._layout import WHOLE_MODEL

__all__ = [
    "INPUT_OF",
    "check_layer",
    "extract_features",
    "forward",
    "last_hidden_layer",
    "predict",
]

INPUT_OF = "input of "
"""What a feature layer's name starts with where it is the input of the submodule named after it."""


def check_layer(model: nn.Module, layer: str) -> None:
    """Refuse a layer name that the model does not have.

    Args:
        model: any module.
        layer: the name of a submodule, whose output is meant, or "input of " and such a name.

    Raises:
        UnknownLayerError: with the names there are.
    """
    names = [name for name, _ in model.named_modules() if name]
    if layer.removeprefix(INPUT_OF) not in names:
        message = (
            f"expected the name of a submodule as feature layer, got {layer!r}; "
            f"the model has: {', '.join(names) or 'none'}"
        )
        raise UnknownLayerError(message)


def last_hidden_layer(model: nn.Module, images: Tensor) -> str:
    """The name of the default feature layer: the input of the last linear layer that runs.

    Args:
        model: returns logits ``(N, classes)``; it is left as it was.
        images: ``(N, ...)``; the first two are shown to the model.

    Returns:
        "input of " and the name of an ``nn.Linear``.

    Raises:
        UnknownLayerError: when the model runs none.
        InputError: when the images do not fit.
    """
    check_images(images)
    seen: list[str] = []
    linear = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)
    }
    hooks = [
        module.register_forward_hook(lambda *_, name=name: seen.append(name))
        for name, module in linear.items()
    ]
    try:
        with guest(model), torch.no_grad():
            run_model(model, images[:2].to(device_of(model)))
    finally:
        for hook in hooks:
            hook.remove()
    if not seen:
        message = (
            "expected a model whose last layer is an nn.Linear, got one that runs none; name the "
            "feature layer: a submodule, or 'input of ' and a submodule"
        )
        raise UnknownLayerError(message)
    return INPUT_OF + seen[-1]


def extract_features(
    model: nn.Module, images: Tensor, layer: str, *, batch_size: int = WHOLE_MODEL
) -> tuple[Tensor, Tensor]:
    """The output of a layer and the logits, with dropout off; the model is left as it was.

    Args:
        model: returns logits ``(N, classes)``.
        images: ``(N, ...)``.
        layer: a name out of ``model.named_modules()``, whose output is meant, or "input of " and
            such a name; flattened to one vector an image. A layer that runs several times gives
            its last output.
        batch_size: how many images are worked on at once.

    Returns:
        Features ``(N, D)`` and logits ``(N, classes)``, on the images' device.

    Raises:
        UnknownLayerError: when the model has no such layer or did not run it.
        InputError: when the images do not fit or the layer gives no tensor.
        UnsupportedModelError: when the model does not return logits ``(N, classes)``.
    """
    check_images(images)
    check_batch_size(batch_size)
    device = device_of(model)
    features, logits = [], []
    with guest(model), torch.no_grad():
        for batch in images.split(batch_size):
            found = forward(model, batch.to(device), layer)
            logits.append(found[0].to(images.device))
            features.append(found[1].to(images.device))
    return torch.cat(features), torch.cat(logits)


def predict(model: nn.Module, images: Tensor, *, batch_size: int = WHOLE_MODEL) -> Tensor:
    """The classes that a model gives with dropout off; the model is left as it was.

    Args:
        model: returns logits ``(N, classes)``.
        images: ``(N, ...)``.
        batch_size: how many images are worked on at once.

    Returns:
        int64 ``(N,)``, on the images' device.

    Raises:
        InputError: when the images do not fit.
        UnsupportedModelError: when the model does not return logits ``(N, classes)``.
    """
    check_images(images)
    check_batch_size(batch_size)
    device = device_of(model)
    with guest(model), torch.no_grad():
        parts = [
            run_fast(model, batch.to(device)).argmax(1).to(images.device)
            for batch in images.split(batch_size)
        ]
    return torch.cat(parts)


def forward(model: nn.Module, batch: Tensor, layer: str) -> tuple[Tensor, Tensor]:
    """Logits ``(N, classes)`` and features ``(N, D)`` of a batch on the model's device.

    Modes and gradients are the caller's business.

    Raises:
        UnknownLayerError, InputError, UnsupportedModelError: as :func:`extract_features`.
    """
    check_layer(model, layer)
    with _reading(model, layer) as seen:
        logits = run_fast(model, batch)
    if not seen:
        message = (
            f"expected layer {layer!r} to run in the forward pass, but it did not; "
            "name a layer that does"
        )
        raise UnknownLayerError(message)
    return logits, seen[-1]


@contextmanager
def _reading(model: nn.Module, layer: str) -> Iterator[list[Tensor]]:
    """The layer's value of each run, flattened to ``(N, D)``; the last one at the end."""
    seen: list[Tensor] = []

    def keep(value: object) -> None:
        if not isinstance(value, Tensor):
            message = (
                f"expected layer {layer!r} to give one tensor, got {type(value).__name__}; "
                "name a layer whose output is a tensor"
            )
            raise InputError(message)
        # A copy: an in-place activation behind the layer would write over it.
        seen[:] = [value.flatten(1).clone()]

    module = model.get_submodule(layer.removeprefix(INPUT_OF))
    hook = (
        module.register_forward_pre_hook(
            lambda _module, args, kwargs: keep([*args, *kwargs.values(), None][0]),
            with_kwargs=True,
        )
        if layer.startswith(INPUT_OF)
        else module.register_forward_hook(lambda _module, _inputs, output: keep(output))
    )
    try:
        yield seen
    finally:
        hook.remove()
