"""Bounds in float32 against sums that are computed in every way that a program may."""

from collections.abc import Callable, Iterator
from itertools import permutations, product

import numpy as np
import pytest
import torch
from numpy.random import Generator, default_rng
from torch import nn

from leery.certify import Box, interval_bounds, margin_bounds
from leery.errors import InputError

ROUNDOFF = 2.0**-24
COUNT, CLASSES = 200, 3

Array = np.ndarray
Ends = tuple[Array, Array]


def normal(drawn: Generator, inputs: int) -> Array:
    return drawn.standard_normal((COUNT, inputs))


def scaled(drawn: Generator, inputs: int, low: int, high: int) -> Array:
    made: Array = np.ldexp(normal(drawn, inputs), drawn.integers(low, high, (COUNT, inputs)))
    return made


def points(drawn: Generator, inputs: int) -> Ends:
    centre = normal(drawn, inputs)
    return centre, centre


def next_numbers(drawn: Generator, inputs: int) -> Ends:
    lower = normal(drawn, inputs).astype(np.float32)
    return lower, np.nextafter(lower, np.float32(np.inf))


def of_all_sizes(drawn: Generator, inputs: int) -> Ends:
    centre, radius = scaled(drawn, inputs, -20, 20), abs(scaled(drawn, inputs, -30, 20))
    return centre - radius, centre + radius


def around_zero(drawn: Generator, inputs: int) -> Ends:
    radius = abs(normal(drawn, inputs))
    return -radius, radius * (1 + 2.0**-23)


def nonnegative(drawn: Generator, inputs: int) -> Ends:
    return np.zeros((COUNT, inputs)), abs(normal(drawn, inputs))


def nearly_nonnegative(drawn: Generator, inputs: int) -> Ends:
    upper = abs(normal(drawn, inputs))
    return -upper * 2.0**-24, upper


def subnormal(drawn: Generator, inputs: int) -> Ends:
    upper, length = drawn.integers(0, 50, (2, COUNT, inputs)) * 2.0**-149
    return upper - length, upper


def tiny(drawn: Generator, inputs: int) -> Ends:
    upper = scaled(drawn, inputs, -126, -118)
    return upper - abs(scaled(drawn, inputs, -149, -120)), upper


BOXES: dict[str, Callable[[Generator, int], Ends]] = {
    made.__name__: made
    for made in (
        *(points, next_numbers, of_all_sizes, around_zero, nonnegative, nearly_nonnegative),
        *(subnormal, tiny),
    )
}


def weights(drawn: Generator, inputs: int) -> Iterator[Array]:
    """Weights of several kinds, float32 ``(classes, inputs)``."""
    shape = CLASSES, inputs
    plain = drawn.standard_normal(shape)
    yield plain
    yield plain[:, :1] * drawn.choice([-1, 1], shape) * (1 + 1e-6 * drawn.standard_normal(shape))
    yield plain * 2.0 ** drawn.integers(-10, 30, shape)
    # Nearly the same for all classes.
    yield 100 * plain[:1] * (1 + 2e-7 * drawn.standard_normal(shape))


def sums(weight: Array, bias: np.float32, inputs: Array) -> Iterator[Array]:
    """A unit's output in float32, ``(N,)``, in every order, with and without fused operations."""
    for order, fused, first in product(
        list(permutations(range(len(weight))))[:6], (False, True), (False, True)
    ):
        total = np.full(len(inputs), bias if first else 0, np.float32)
        for place in order:
            if fused:
                exact = np.float64(weight[place]) * inputs[:, place] + np.float64(total)
                total = exact.astype(np.float32)
            else:
                total = total + weight[place] * inputs[:, place]
        yield total if first else total + bias


def extremes(ends: Ends, weight: Array, drawn: Generator) -> Iterator[Array]:
    """Inputs at corners, and those at which a unit's output is smallest and largest."""
    lower, upper = ends
    yield from (lower, upper, np.where(drawn.random(lower.shape) < 0.5, lower, upper))
    yield from (np.where(weight > 0, *pair) for pair in ((lower, upper), (upper, lower)))


@pytest.mark.parametrize("name", BOXES)
def test_no_computed_sum_leaves_its_bounds(name: str) -> None:
    drawn = default_rng(list(BOXES).index(name))
    for inputs in (1, 1, 2, 3, 3):
        lower, upper = (end.astype(np.float32) for end in BOXES[name](drawn, inputs))
        box = Box(torch.from_numpy(lower), torch.from_numpy(upper))
        labels = torch.zeros(COUNT, dtype=torch.int64)
        for weight in weights(drawn, inputs):
            layer = nn.Linear(inputs, CLASSES).requires_grad_(requires_grad=False)
            layer.weight[:] = torch.from_numpy(weight)
            layer.bias[:] = torch.randn(CLASSES, generator=torch.Generator().manual_seed(inputs))
            layer.bias[:] *= inputs % 2
            own, bias = layer.weight.numpy(), layer.bias.numpy()
            found = interval_bounds(layer, box, rounding=ROUNDOFF)
            margins = margin_bounds(nn.Sequential(layer), box, labels, rounding=ROUNDOFF).numpy()
            for unit in range(CLASSES):
                for made in extremes((lower, upper), own[unit], drawn):
                    for computed in sums(own[unit], bias[unit], made):
                        assert (computed >= found.lower[:, unit].numpy()).all()
                        assert (computed <= found.upper[:, unit].numpy()).all()
            for unit in range(1, CLASSES):
                for made in extremes((lower, upper), own[0] - own[unit], drawn):
                    true = np.min(list(sums(own[0], bias[0], made)), axis=0)
                    other = np.max(list(sums(own[unit], bias[unit], made)), axis=0)
                    assert (true - other >= margins[:, unit]).all()


def test_types_shorter_than_float32_are_refused() -> None:
    box = Box(torch.zeros(2, 4).half(), torch.ones(2, 4).half())
    with pytest.raises(InputError, match="a box of float32 or float64 .*, got torch.float16"):
        interval_bounds(nn.Linear(4, 2).half(), box, rounding=2.0**-11)
