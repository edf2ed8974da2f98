"""Insertion of dropout into a model that has none."""

import copy
from typing import Any

from torch import nn

from leery.errors import InputError, UnknownLayerError

__all__ = ["insert_dropout"]

_ATTRIBUTE = "leery_dropout"


def insert_dropout(model: nn.Module, *, before: str, p: float = 0.5) -> nn.Module:
    """A copy of a model with dropout on the input of one of its layers.

    The copy shares the model's parameters and buffers, keeps their names, and returns the same
    logits in eval mode; the model itself is not changed. The uncertainty of a model that was not
    trained with dropout is less informative; rates of 0.1 to 0.5 before the last layer are usual.

    Args:
        model: any module.
        before: name of the layer, from ``model.named_modules()``; an ``nn.Sequential`` stands for
            its first layer.
        p: the probability of dropping a unit, in (0, 1).

    Raises:
        UnknownLayerError: when the model has no such layer.
        InputError: when p is outside its range, or the layer already has an inserted dropout or is
            only a container.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
        >>> insert_dropout(model, before="1", p=0.2)[1].leery_dropout
        Dropout(p=0.2, inplace=False)
    """
    if not 0 < p < 1:
        message = f"expected a dropout rate between 0 and 1, got {p}; correct it"
        raise InputError(message)
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    copied = copy.deepcopy(model, shared)
    layers = dict(copied.named_modules())
    layer = layers.get(before) if before else None
    while isinstance(layer, nn.Sequential) and len(layer):
        layer = layer[0]
    if layer is None:
        names = ", ".join(name for name in layers if name)
        message = (
            f"expected the name of a submodule to put dropout before, got {before!r}; "
            f"the model has: {names or 'none'}"
        )
        raise UnknownLayerError(message)
    if isinstance(layer, nn.ModuleList | nn.ModuleDict):
        message = (
            f"expected a layer with its own forward, got {before!r}, which is only a container; "
            "name a layer inside it"
        )
        raise InputError(message)
    parent = layers[before.rpartition(".")[0]]
    if isinstance(parent, nn.MultiheadAttention):
        message = (
            f"expected a layer that is called, got {before!r}, whose weights its attention "
            "module reads directly; name that module"
        )
        raise InputError(message)
    if hasattr(layer, _ATTRIBUTE):
        message = (
            f"expected a layer without inserted dropout, got {before!r}, which has one; "
            "insert into the original model"
        )
        raise InputError(message)
    layer.add_module(_ATTRIBUTE, nn.Dropout(p))
    layer.register_forward_pre_hook(_drop, with_kwargs=True)
    return copied


def _drop(
    layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Pre-hook for the layer, at module level so that the model can be copied and pickled."""
    dropout = layer.get_submodule(_ATTRIBUTE)
    if args:
        return (dropout(args[0]), *args[1:]), kwargs
    name, *_ = kwargs
    return args, {**kwargs, name: dropout(kwargs[name])}
