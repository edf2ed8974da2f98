"""Reading of layers, such as the last hidden layer, while a model runs in eval mode."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from leery._checks import check_batch_size, check_images
from leery.errors import InputError, UnknownLayerError
from leery.models._isolation import device_of, isolated, run_fast, run_model
from leery.models._shortcut import two_images
from leery.tuning import WHOLE_MODEL

__all__ = [
    "INPUT_OF",
    "check_layer",
    "check_recorded",
    "extract_features",
    "forward",
    "has_linear_head",
    "last_hidden_layer",
    "predict",
    "recorded_layers",
    "submodules_of_images",
]

_SHOWN = 8
"""Number of images used to find the layer that returns the logits."""

INPUT_OF = "input of "
"""Prefix of a layer name that selects the input, not the output, of the submodule."""


def check_layer(model: nn.Module, layer: str) -> None:
    """Raise if the model has no layer of that name.

    Args:
        model: any module.
        layer: name of a submodule, or "input of " followed by one.

    Raises:
        UnknownLayerError: when there is none; the message lists the names.
    """
    names = [name for name, _ in model.named_modules() if name]
    if layer.removeprefix(INPUT_OF) not in names:
        message = (
            f"expected the name of a submodule as feature layer, got {layer!r}; "
            f"the model has: {', '.join(names) or 'none'}"
        )
        raise UnknownLayerError(message)


def last_hidden_layer(model: nn.Module, images: Tensor) -> str:
    """The default feature layer: the input of the linear layer that returns the logits.

    Args:
        model: returns logits ``(N, classes)``; its state is restored.
        images: ``(N, ...)``, of which the model is run on the first few.

    Returns:
        "input of " followed by the name of an ``nn.Linear`` whose output for these images is the
        logits, up to a factor and a constant per row (such as a log softmax subtracts).

    Raises:
        UnknownLayerError: when there is no such layer.
        InputError: when the images do not fit.
    """
    head, last = _linear_head(model, images)
    if head is None:
        got = f"one whose last linear layer, {last!r}, does not" if last else "one that has none"
        message = (
            f"expected a model with a linear layer that returns its logits, got {got}; name the "
            "feature layer: a submodule, or 'input of ' followed by one"
        )
        raise UnknownLayerError(message)
    return INPUT_OF + head


def has_linear_head(model: nn.Module, images: Tensor) -> bool:
    """True if a linear layer returns the logits, which therefore are not probabilities.

    Args:
        model: returns logits ``(N, classes)``; its state is restored.
        images: ``(N, ...)``, of which the model is run on the first few.

    Raises:
        InputError: when the images do not fit.
    """
    return _linear_head(model, images)[0] is not None


def _linear_head(model: nn.Module, images: Tensor) -> tuple[str | None, str | None]:
    """The linear layer that returns the logits and the last one that runs, or None."""
    check_images(images)
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    # A few images could match by chance, and equal ones always would.
    shown = torch.cat([two_images(images), images[: _SHOWN - 2]]).to(device_of(model))
    with isolated(model, shown) as still, torch.no_grad(), recorded_layers(still, linear) as seen:
        logits = run_model(still, shown)
    heads = [name for name, value in seen.items() if _gives(value, logits)]
    return heads[-1] if heads else None, list(seen)[-1] if seen else None


def _gives(value: Tensor, logits: Tensor) -> bool:
    """True if logits equal a layer's output, up to a factor and a constant per row.

    Outputs in [0, 1] must be exactly equal, because near 0 a sigmoid is almost linear.
    """
    if value.numel() != logits.numel() or len(value) != len(logits):
        return False
    own, other = value.reshape(logits.shape).double(), logits.double()
    if float((own - other).norm()) <= 1e-5 * float(other.norm()):
        return True
    if bool((other >= 0).all()) and bool((other <= 1).all()):
        return False
    own, other = (rows - rows.mean(1, keepdim=True) for rows in (own, other))
    factor = (own * other).sum() / own.square().sum().clamp_min(torch.finfo(own.dtype).tiny)
    return bool(factor > 0) and float((own * factor - other).norm()) <= 1e-5 * float(other.norm())


def submodules_of_images(model: nn.Module, images: Tensor) -> tuple[str, ...]:
    """The direct submodules of a model that return a float tensor with one row per image.

    An ``nn.Sequential`` is replaced by the submodules inside it. Dropout, reshapes and the logits
    themselves are left out.

    Args:
        model: returns logits ``(N, classes)``; its state is restored.
        images: ``(N, ...)``, of which the model is run on the first two.

    Returns:
        Their names, in the order in which they run.

    Raises:
        UnknownLayerError: when there is none.
        InputError: when the images do not fit.
    """
    check_images(images)
    names = [name for name in _inside(model, "") if name]
    seen: dict[str, Tensor] = {}

    def keep(name: str, value: object) -> None:
        if isinstance(value, Tensor) and value.is_floating_point() and len(value) == len(pair):
            seen[name] = value

    pair = images[:2].to(device_of(model))
    with isolated(model, pair) as still, torch.no_grad():
        hooks = [
            still.get_submodule(name).register_forward_hook(
                lambda _module, _inputs, output, name=name: keep(name, output)
            )
            for name in names
        ]
        try:
            logits = run_model(still, pair)
        finally:
            for hook in hooks:
                hook.remove()
    found = tuple(name for name, value in seen.items() if value is not logits)
    if not found:
        message = (
            "expected submodules that return a tensor with a row per image, got none; name the "
            "layers in the metric's needs"
        )
        raise UnknownLayerError(message)
    return found


def _inside(module: nn.Module, prefix: str) -> Iterator[str]:
    """Names of the direct submodules; containers and wrappers are replaced by their contents."""
    children = list(module.named_children())
    for name, child in children:
        path = f"{prefix}{name}"
        # A wrapper around one submodule is not a layer, nor is a container.
        alone = len(children) == 1 and any(True for _ in child.children())
        if alone or isinstance(child, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
            yield from _inside(child, f"{path}.")
        elif not isinstance(child, (nn.Identity, nn.Flatten, nn.modules.dropout._DropoutNd)):  # noqa: SLF001 - torch's own base
            yield path


def extract_features(
    model: nn.Module, images: Tensor, layer: str, *, batch_size: int = WHOLE_MODEL
) -> tuple[Tensor, Tensor]:
    """The output of a layer and the logits, with dropout off; restores the model's state.

    Args:
        model: returns logits ``(N, classes)``.
        images: ``(N, ...)``.
        layer: a name from ``model.named_modules()``, or "input of " followed by one. The output is
            flattened to one vector per image; of a layer that runs several times, it is the last
            one.
        batch_size: number of images processed at once.

    Returns:
        Features ``(N, D)`` and logits ``(N, classes)``, on the images' device.

    Raises:
        UnknownLayerError: when the model has no such layer or did not run it.
        InputError: when the images do not fit or the layer does not return a tensor.
        UnsupportedModelError: when the model does not return logits ``(N, classes)``.
    """
    check_images(images)
    check_batch_size(batch_size)
    device = device_of(model)
    features, logits = [], []
    with isolated(model, images) as still, torch.no_grad():
        for batch in images.split(batch_size):
            found, seen = forward(still, batch.to(device), [layer])
            logits.append(found.to(images.device))
            features.append(seen[layer].flatten(1).to(images.device))
    return torch.cat(features), torch.cat(logits)


def predict(model: nn.Module, images: Tensor, *, batch_size: int = WHOLE_MODEL) -> Tensor:
    """The classes that a model predicts with dropout off; restores the model's state.

    Args:
        model: returns logits ``(N, classes)``.
        images: ``(N, ...)``.
        batch_size: number of images processed at once.

    Returns:
        int64 ``(N,)``, on the images' device.

    Raises:
        InputError: when the images do not fit.
        UnsupportedModelError: when the model does not return logits ``(N, classes)``.
    """
    check_images(images)
    check_batch_size(batch_size)
    device = device_of(model)
    with isolated(model, images) as still, torch.no_grad():
        parts = [
            run_fast(still, batch.to(device)).argmax(1).to(images.device)
            for batch in images.split(batch_size)
        ]
    return torch.cat(parts)


def forward(
    model: nn.Module, batch: Tensor, layers: Sequence[str]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits ``(N, classes)`` and layers ``(N, ...)`` of a batch on the model's device.

    The caller sets the modes and enables or disables gradients.

    Raises:
        UnknownLayerError, InputError, UnsupportedModelError: as :func:`extract_features`.
    """
    with recorded_layers(model, layers) as seen:
        logits = run_fast(model, batch)
    check_recorded(layers, seen)
    return logits, seen


def check_recorded(layers: Sequence[str], seen: Mapping[str, Tensor]) -> None:
    """Raise if a layer did not run.

    Raises:
        UnknownLayerError: when a layer did not run; the message names the first.
    """
    for layer in layers:
        if layer not in seen:
            message = (
                f"expected layer {layer!r} to run in the forward pass, got a pass without it; "
                "name another layer"
            )
            raise UnknownLayerError(message)


@contextmanager
def recorded_layers(model: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Record the outputs of layers, by name, during each run of the model.

    Of a layer that runs several times in a forward pass, the last output is kept.

    Raises:
        UnknownLayerError: when the model lacks a layer.
        InputError: when a layer does not return a tensor.
    """
    seen: dict[str, Tensor] = {}
    for layer in layers:
        check_layer(model, layer)
    hooks = [_hook(model, layer, seen) for layer in layers]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _hook(model: nn.Module, layer: str, seen: dict[str, Tensor]) -> RemovableHandle:
    def keep(value: object) -> None:
        if not isinstance(value, Tensor):
            message = (
                f"expected layer {layer!r} to return one tensor, got {type(value).__name__}; "
                "name a layer whose output is a tensor"
            )
            raise InputError(message)
        # A copy, because an in-place activation after the layer would overwrite it.
        seen.pop(layer, None)
        seen[layer] = value.clone()

    module = model.get_submodule(layer.removeprefix(INPUT_OF))
    if layer.startswith(INPUT_OF):
        return module.register_forward_pre_hook(
            lambda _module, args, kwargs: keep([*args, *kwargs.values(), None][0]),
            with_kwargs=True,
        )
    return module.register_forward_hook(lambda _module, _inputs, output: keep(output))
