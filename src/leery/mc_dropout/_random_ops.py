"""Random operations that a pass can fix: what each draws, and its result for a given draw.

One table serves both ways of running a model. In a captured graph dropout is one call; in a plain
forward pass it is decomposed into the calls that draw the noise.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

__all__ = ["IN_PLACE", "RANDOM", "Kind", "RandomOp", "is_random"]

Kind = Literal["keep", "uniform", "normal"]
"""What is drawn: a keep mask, uniform in [0, 1), or standard normal."""

_ATEN = torch.ops.aten


@dataclass(frozen=True)
class RandomOp:
    """Description of a random operation by functions that take the operation's arguments.

    Attributes:
        kind: kind of draw.
        shape: shape of the draw.
        compute: result for a given draw, the first argument, which broadcasts with ``shape``.
        mean: result when nothing is dropped, as in eval mode; None if unknown.
        rate: the probability of dropping a unit; None unless units are kept or dropped.
    """

    kind: Kind
    shape: Callable[..., Sequence[int]]
    compute: Callable[..., Any]
    mean: Callable[..., Any] | None
    rate: Callable[..., float] | None = None

    def is_active(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """True unless the operation returns its input unchanged."""
        return self.rate is None or self.rate(*args, **kwargs) > 0

    def draws(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """True if the result is random."""
        return self.rate is None or 0 < self.rate(*args, **kwargs) < 1


def is_random(operation: object) -> bool:
    """True if an operation may draw from a random generator."""
    if not isinstance(operation, torch._ops.OpOverload):  # noqa: SLF001 - the type of ATen calls
        return False
    return operation in RANDOM or torch.Tag.nondeterministic_seeded in operation.tags


def _first(x: Tensor, *_args: object, **_kwargs: object) -> Tensor:
    return x


def _size(x: Tensor, *_args: object, **_kwargs: object) -> Sequence[int]:
    return x.shape


def _asked(size: Sequence[int], **_kwargs: object) -> Sequence[int]:
    return size


def _channels(x: Tensor, *_args: object) -> Sequence[int]:
    return (*x.shape[:2], *(1 for _ in x.shape[2:]))


def _train_rate(_x: Tensor, p: float, train: bool | None = True) -> float:
    return float(p) if train is not False else 0.0


def _dropped(kept: Tensor, x: Tensor, p: float, _train: object = None) -> Tensor:
    return x * kept.to(x.dtype).mul(1 / (1 - p))


def _native_dropped(kept: Tensor, x: Tensor, p: float, _train: object) -> tuple[Tensor, Tensor]:
    return _dropped(kept, x, p), kept.expand(x.shape)


def _alpha_dropped(kept: Tensor, x: Tensor, p: float, _train: object) -> Tensor:
    """Dropped units take SELU's negative limit; mean and variance are preserved.

    Source: Klambauer et al. (2017), arXiv:1706.02515, "self-normalizing neural networks".
    """
    limit = -1.7580993408473766
    scale = 1 / math.sqrt((limit**2 * p + 1) * (1 - p))
    kept = kept.to(x.dtype)
    return x * (kept * scale) + (1 - kept) * (limit * scale) - limit * scale * p


def _attention_shape(
    query: Tensor, key: Tensor, *_args: object, **_kwargs: object
) -> Sequence[int]:
    return (*query.shape[:-1], key.shape[-2])


def _attention_rate(
    _query: Tensor,
    _key: Tensor,
    _value: Tensor,
    _mask: Tensor | None = None,
    dropout_p: float = 0.0,
    *_args: object,
    **_kwargs: object,
) -> float:
    return float(dropout_p)


def _attended(
    kept: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention as defined in torch's documentation, with dropout on its weights."""
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = (part.repeat_interleave(groups, -3) for part in (key, value))
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = (query * scale) @ key.transpose(-2, -1)
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
    weights = scores.softmax(-1) if mask is None else _masked_softmax(scores, mask)
    return _dropped(kept, weights, dropout_p) @ value


def _masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the keys that each query may attend to; zeros for a query with no keys."""
    chooses = mask.dtype is torch.bool
    seen = scores.masked_fill(~mask, -math.inf) if chooses else scores + mask
    nowhere = (seen == -math.inf).all(-1, keepdim=True)
    return seen.softmax(-1).masked_fill(nowhere, 0.0)


def _attended_without(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    _dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, mask, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa
    )


def _constant(x: Tensor, p: float = 0.5, **_kwargs: object) -> Tensor:
    return torch.full_like(x, p)


def _kept(kept: Tensor, x: Tensor, _p: float = 0.5, **_kwargs: object) -> Tensor:
    return kept.to(x.dtype).expand(x.shape)


def _below(uniform: Tensor, probs: Tensor, **_kwargs: object) -> Tensor:
    return (uniform < probs).to(probs.dtype)


def _below_given(uniform: Tensor, x: Tensor, probs: Tensor, **_kwargs: object) -> Tensor:
    return (uniform < probs).to(x.dtype).expand(x.shape)


def _between(
    uniform: Tensor, x: Tensor, low: float = 0, high: float = 1, **_kwargs: object
) -> Tensor:
    return (low + (high - low) * uniform).to(x.dtype).expand(x.shape)


def _spread(
    normal: Tensor, x: Tensor, mean: float = 0, std: float = 1, **_kwargs: object
) -> Tensor:
    return (mean + std * normal).to(x.dtype).expand(x.shape)


def _of_size(
    draw: Tensor,
    size: Sequence[int],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    **_kwargs: object,
) -> Tensor:
    dtype = dtype or torch.get_default_dtype()
    return draw.to(device or draw.device, dtype).expand(tuple(size))


def _of_kind(
    draw: Tensor, x: Tensor, *, dtype: torch.dtype | None = None, **_kwargs: object
) -> Tensor:
    return draw.to(x.device, dtype or x.dtype).expand(x.shape)


def _keeps(
    compute: Callable[..., Any],
    shape: Callable[..., Sequence[int]] = _size,
    mean: Callable[..., Any] = _first,
    rate: Callable[..., float] = _train_rate,
) -> RandomOp:
    return RandomOp("keep", shape, compute, mean, rate)


RANDOM: Mapping[Any, RandomOp] = {
    _ATEN.dropout.default: _keeps(_dropped),
    _ATEN.feature_dropout.default: _keeps(_dropped, _channels),
    _ATEN.alpha_dropout.default: _keeps(_alpha_dropped),
    _ATEN.feature_alpha_dropout.default: _keeps(_alpha_dropped, _channels),
    _ATEN.native_dropout.default: _keeps(
        _native_dropped, mean=lambda x, *_args: (x, torch.ones_like(x, dtype=torch.bool))
    ),
    _ATEN.scaled_dot_product_attention.default: _keeps(
        _attended, _attention_shape, _attended_without, _attention_rate
    ),
    _ATEN.bernoulli.p: _keeps(
        _kept, mean=_constant, rate=lambda _x, p=0.5, **_kwargs: round(1 - float(p), 12)
    ),
    _ATEN.bernoulli.default: RandomOp("uniform", _size, _below, _first),
    _ATEN.bernoulli.Tensor: RandomOp(
        "uniform", _size, _below_given, lambda x, probs, **_kwargs: probs.to(x.dtype).expand_as(x)
    ),
    _ATEN.uniform.default: RandomOp("uniform", _size, _between, None),
    _ATEN.rand.default: RandomOp("uniform", _asked, _of_size, None),
    _ATEN.rand_like.default: RandomOp("uniform", _size, _of_kind, None),
    _ATEN.normal_functional.default: RandomOp(
        "normal", _size, _spread, lambda x, mean=0.0, *_args, **_kwargs: torch.full_like(x, mean)
    ),
    _ATEN.randn.default: RandomOp("normal", _asked, _of_size, torch.zeros),
    _ATEN.randn_like.default: RandomOp(
        "normal", _size, _of_kind, lambda x, **_options: torch.zeros_like(x)
    ),
}
"""Random operations by their functional form."""

IN_PLACE: Mapping[Any, Any] = {
    _ATEN.bernoulli_.float: _ATEN.bernoulli.p,
    _ATEN.bernoulli_.Tensor: _ATEN.bernoulli.Tensor,
    _ATEN.uniform_.default: _ATEN.uniform.default,
    _ATEN.normal_.default: _ATEN.normal_functional.default,
}
"""Functional form of each in-place operation whose functional form has another name."""
