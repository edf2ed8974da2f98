"""The last hidden layer of any module, read off while the model runs once in eval mode."""

import torch
from torch import Tensor, nn

from leery._checks import check_batch_size, check_images
from leery._guest import device_of, guest, run_model
from leery.errors import InputError, UnknownLayerError

__all__ = ["check_layer", "extract_features"]


def check_layer(model: nn.Module, layer: str) -> None:
    """Refuse a layer name that the model does not have.

    Raises:
        UnknownLayerError: with the names there are.
    """
    names = [name for name, _ in model.named_modules() if name]
    if layer not in names:
        message = (
            f"expected the name of a submodule as feature layer, got {layer!r}; "
            f"the model has: {', '.join(names) or 'none'}"
        )
        raise UnknownLayerError(message)


def extract_features(
    model: nn.Module, images: Tensor, layer: str, *, batch_size: int = 256
) -> tuple[Tensor, Tensor]:
    """The output of a layer and the logits, with dropout off; the model is left as it was.

    Args:
        model: returns logits ``(N, classes)``.
        images: ``(N, ...)``.
        layer: a name out of ``model.named_modules()``; its output is flattened to one vector an
            image. A layer that runs several times gives its last output.
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
    check_layer(model, layer)
    device = device_of(model)
    seen: dict[str, Tensor] = {}

    def keep(_module: nn.Module, _inputs: object, output: object) -> None:
        if not isinstance(output, Tensor):
            message = (
                f"expected layer {layer!r} to give one tensor, got {type(output).__name__}; "
                "name a layer whose output is a tensor"
            )
            raise InputError(message)
        # A copy: an in-place activation behind the layer would write over it.
        seen["features"] = output.flatten(1).clone()

    features, logits = [], []
    hook = model.get_submodule(layer).register_forward_hook(keep)
    try:
        with guest(model), torch.no_grad():
            for batch in images.split(batch_size):
                seen.clear()
                logits.append(run_model(model, batch.to(device)).to(images.device))
                if "features" not in seen:
                    message = (
                        f"expected layer {layer!r} to run in the forward pass, but it did not; "
                        "name a layer that does"
                    )
                    raise UnknownLayerError(message)
                features.append(seen["features"].to(images.device))
    finally:
        hook.remove()
    return torch.cat(features), torch.cat(logits)
