"""Selection of the modules that are in train mode during passes."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from numbers import Real

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["dropout_layers", "dropout_on", "dropout_rates", "own_modules"]

_NORMS = (nn.modules.batchnorm._NormBase,)  # noqa: SLF001 - torch's own base
_LAYERS = (
    nn.modules.dropout._DropoutNd,  # noqa: SLF001 - torch's own base of its dropout layers
    nn.MultiheadAttention,
    # In eval mode these take a fused path that leaves their dropout layers out.
    nn.TransformerEncoder,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
)


def dropout_layers(model: nn.Module) -> frozenset[str]:
    """Names of torch's own layers that differ in train mode only by dropout."""
    return frozenset(
        name
        for name, module in model.named_modules()
        if isinstance(module, _LAYERS) or (isinstance(module, nn.RNNBase) and module.dropout > 0)
    )


def dropout_rates(modules: Iterable[nn.Module]) -> tuple[float, ...]:
    """Dropout rates of torch's own layers."""
    layers = (module for module in modules if isinstance(module, (*_LAYERS, nn.RNNBase)))
    rates = (getattr(layer, "p", getattr(layer, "dropout", None)) for layer in layers)
    return tuple(float(rate) for rate in rates if isinstance(rate, Real))


def own_modules(model: nn.Module) -> frozenset[str]:
    """Names of the modules that are defined outside torch, except subclasses of batch norm.

    Functional dropout uses the mode of the module that calls it.
    """
    return frozenset(
        name
        for name, module in model.named_modules()
        if not type(module).__module__.startswith("torch.") and not isinstance(module, _NORMS)
    )


@contextmanager
def dropout_on(model: nn.Module, names: frozenset[str]) -> Iterator[None]:
    """Put the named modules in train mode and all others in eval mode; use inside ``isolated``.

    Fused attention is off meanwhile, because its kernels draw dropout internally.
    """
    before = [(name, module, module.training) for name, module in model.named_modules()]
    try:
        for name, module, _ in before:
            module.training = name in names
        with ExitStack() as stack:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            if any(isinstance(module, nn.RNNBase) for _, module, _ in before):
                # cuDNN's recurrent layers also draw dropout internally.
                stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            yield
    finally:
        for _, module, mode in before:
            module.training = mode
