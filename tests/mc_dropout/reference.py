"""The plain loop, independent of leery's: torch's random functions replaced by given draws."""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from leery.mc_dropout import MCDropout

LSTM_FORWARD = nn.LSTM.forward
SELU_LIMIT = -1.0507009873554805 * 1.6732632423543772


def plain_loop(sampler: MCDropout, images: Tensor) -> Tensor:
    """Every pass through the whole model, float ``(passes, N, classes)``."""
    (prepared,) = sampler._prepared.values()
    drawn = list(zip(prepared.loop.sites, prepared.masks.draws, strict=True))
    before = [(module, module.training) for module in sampler.model.modules()]
    for module, _ in before:
        module.training = not isinstance(module, nn.modules.batchnorm._BatchNorm)
    passes = []
    for index in range(sampler.passes):
        draws = iter(
            [
                whole(draw[index], site.dimension, len(images), interleaved=site.interleaved)
                for site, draw in drawn
            ]
        )
        with Given(draws).installed(), torch.no_grad():
            out: Any = sampler.model(images.clone())
        assert next(draws, None) is None, "a draw was not used"
        logits: Tensor = out[0] if isinstance(out, tuple) else out
        passes.append(logits.softmax(-1, torch.promote_types(logits.dtype, torch.float32)))
    for module, mode in before:
        module.training = mode
    return torch.stack(passes)


def whole(draw: Tensor, dimension: int | None, count: int, *, interleaved: bool) -> Tensor:
    """The draw of one image repeated for each: image by image, or row by row."""
    if dimension is None:
        return draw
    rows = draw.unbind(dimension)
    if interleaved:
        return torch.stack([row for row in rows for _ in range(count)], dimension)
    return torch.stack([row for _ in range(count) for row in rows], dimension)


@dataclass
class Given:
    """torch's random functions as they would be if chance gave these draws."""

    draws: Iterator[Tensor]

    def installed(self) -> ExitStack:
        stack = ExitStack()
        fakes: dict[str, Callable[..., Any]] = {
            "torch.nn.functional.alpha_dropout": self.alpha,
            "torch.nn.functional.feature_alpha_dropout": self.alpha,
            "torch.nn.functional.scaled_dot_product_attention": self.attention,
            "torch.nn.functional.batch_norm": running_batch_norm,
            "torch.bernoulli": lambda probs: (next(self.draws) < probs).to(probs.dtype),
            "torch.Tensor.bernoulli_": lambda x, _p: x.copy_(next(self.draws)),
            "torch.rand": lambda _shape, **_options: next(self.draws),
            "torch.rand_like": lambda _x: next(self.draws),
            "torch.nn.LSTM.forward": lambda module, x: self.lstm(module, x),  # noqa: PLW0108 - bound
        }
        for dimensions in ("", "1d", "2d", "3d"):
            fakes[f"torch.nn.functional.dropout{dimensions}"] = self.plain
        for name, fake in fakes.items():
            stack.enter_context(mock.patch(name, fake))
        return stack

    def plain(
        self,
        x: Tensor,
        p: float = 0.5,
        training: bool = True,
        inplace: bool = False,
    ) -> Tensor:
        if not training or p == 0:
            return x
        found = x * next(self.draws).to(x.dtype) / (1 - p)
        return x.copy_(found) if inplace else found

    def alpha(self, x: Tensor, p: float, training: bool, inplace: bool = False) -> Tensor:
        assert training
        assert not inplace
        kept = next(self.draws).expand(x.shape)
        a = 1 / math.sqrt((1 - p) * (1 + p * SELU_LIMIT**2))
        return a * torch.where(kept, x, torch.tensor(SELU_LIMIT)) - a * p * SELU_LIMIT

    def attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
    ) -> Tensor:
        assert attn_mask is None
        scores = query @ key.transpose(-2, -1) * (scale or query.shape[-1] ** -0.5)
        if is_causal:
            later = torch.ones(scores.shape[-2:]).triu(1).bool()
            scores = scores.masked_fill(later, -torch.inf)
        return self.plain(scores.softmax(-1), dropout_p) @ value

    def lstm(self, module: nn.LSTM, x: Tensor) -> tuple[Tensor, None]:
        """Layers by hand, with dropout between them."""
        for layer in range(module.num_layers):
            x = self.plain(x, module.dropout) if layer else x
            one = nn.LSTM(x.shape[2], module.hidden_size)
            names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            one.load_state_dict(
                {f"{name}_l0": getattr(module, f"{name}_l{layer}") for name in names}
            )
            x = LSTM_FORWARD(one, x)[0]
        return x, None


def running_batch_norm(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor,
    bias: Tensor,
    training: bool,  # noqa: ARG001
    momentum: float = 0.1,  # noqa: ARG001
    eps: float = 1e-5,
) -> Tensor:
    """Batch norm by its running statistics, whatever the mode."""
    shape = (1, -1, *(1 for _ in x.shape[2:]))
    standard = (x - mean.view(shape)) / (var.view(shape) + eps).sqrt()
    return standard * weight.view(shape) + bias.view(shape)
