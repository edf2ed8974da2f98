"""Random draws of the passes, fixed by a seed: T passes are T fixed sub-networks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from leery.errors import InputError, UnsupportedModelError
from leery.mc_dropout._random_ops import Kind

__all__ = ["MaskSource", "Masks", "Site", "draw_masks"]

MaskSource = Literal["fixed", "fresh"]

MAX_DRAWS = 2**28
"""Maximum number of drawn elements, so that an untrusted file cannot exhaust memory."""


@dataclass(frozen=True)
class Site:
    """A random operation in the forward pass of a model.

    Attributes:
        name: name of the innermost submodule that draws; "" for the model itself.
        kind: kind of draw.
        rate: the probability of dropping a unit, in (0, 1); None unless units are dropped.
        shape: shape of the draw of a pass, which all its images share. In the batch dimension it is
            the number of rows per image, mostly 1.
        dimension: index of the batch dimension; None if the draw is for a parameter.
        interleaved: True if the images vary fastest along that dimension, False if the rows of an
            image do.
    """

    name: str
    kind: Kind
    rate: float | None
    shape: tuple[int, ...]
    dimension: int | None
    interleaved: bool = False

    @classmethod
    def between(
        cls, name: str, kind: Kind, rate: float | None, *, shapes: Sequence[Sequence[int]]
    ) -> "Site":
        """Infer a site from the shapes of its draws for two images and for three.

        Raises:
            UnsupportedModelError: when they do not show which dimension is the batch dimension.
        """
        two, three = (tuple(shape) for shape in shapes)
        counting = [place for place, (a, b) in enumerate(zip(two, three, strict=False)) if a != b]
        if len(two) != len(three) or len(counting) > 1:
            raise _no_counting_dimension(name, two, three)
        if not counting:
            return cls(name, kind, rate, two, None)
        place = counting[0]
        rows = three[place] - two[place]
        if two[place] != 2 * rows:
            raise _no_counting_dimension(name, two, three)
        return cls(name, kind, rate, (*two[:place], rows, *two[place + 1 :]), place)

    @property
    def folds(self) -> bool:
        """True if the batch dimension also holds several rows per image."""
        return self.dimension is not None and self.shape[self.dimension] > 1

    def flipped(self) -> "Site":
        """The same site with the other order of images and rows, if they share a dimension."""
        return replace(self, interleaved=not self.interleaved) if self.folds else self

    def fits(self, shape: Sequence[int], count: int) -> bool:
        """True if ``shape`` is that of a draw for ``count`` images."""
        sizes = list(self.shape)
        if self.dimension is not None:
            sizes[self.dimension] *= count
        return tuple(sizes) == tuple(shape)

    def spread(self, draw: Tensor, count: int) -> Tensor:
        """Expand the draw of a pass to ``count`` images; it broadcasts with the activation."""
        if self.dimension is None or not self.folds:
            return draw
        if self.interleaved:
            return draw.repeat_interleave(count, self.dimension)
        repeats = [1] * draw.ndim
        repeats[self.dimension] = count
        return draw.repeat(repeats)


@dataclass(frozen=True)
class Masks:
    """The draws of every site and pass.

    Attributes:
        draws: one tensor ``(passes, *site.shape)`` for each site, in the order of the calls; bool
            (kept or not) where units are dropped, else float32.
    """

    draws: tuple[Tensor, ...]
    _cache: dict[object, tuple[Tensor, ...]] = field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        """The number of passes."""
        return len(self.draws[0])

    def to(self, device: torch.device) -> "Masks":
        """The same masks on a device."""
        if all(draw.device == device for draw in self.draws):
            return self
        return Masks(tuple(draw.to(device) for draw in self.draws))

    def factors(self, site: int, rate: float, dtype: torch.dtype) -> Tensor:
        """Factors by which a dropout multiplies units, ``(passes, units)``: 0 or 1 / (1 - rate)."""
        key = "factors", site, dtype
        if key not in self._cache:
            self._cache[key] = (self.draws[site].flatten(1).to(dtype).mul(1 / (1 - rate)),)
        return self._cache[key][0]

    def first(self, count: int) -> "Masks":
        """The masks of the first ``count`` passes."""
        return Masks(tuple(draw[:count] for draw in self.draws))

    def kept(self, site: int) -> tuple[Tensor, ...]:
        """The flat indices of the units that a dropout keeps, int64, for each pass."""
        if site not in self._cache:
            draws = self.draws[site].flatten(1)
            self._cache[site] = tuple(draw.nonzero().squeeze(1) for draw in draws)
        return self._cache[site]


def draw_masks(sites: Sequence[Site], passes: int, seed: int, draw: int = 0) -> Masks:
    """Draw masks that are independent between passes and shared by the images of a pass.

    They are drawn on the CPU, each site from its own stream, so that they depend only on the seed
    and the index of the draw, not on the device, the batch size or the other sites.

    Source:
        Kirsch, van Amersfoort, Gal (2019), "BatchBALD", section 3.1: consistent MC dropout.
    """
    drawn = []
    if passes * sum(math.prod(site.shape) for site in sites) > MAX_DRAWS:
        message = (
            f"expected at most {MAX_DRAWS} random draws in all passes, got {passes} passes of "
            f"{sum(math.prod(site.shape) for site in sites)}; lower passes"
        )
        raise InputError(message)
    for index, site in enumerate(sites):
        state = np.random.SeedSequence([seed, draw, index]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(state[0]) >> 1)
        sample = torch.randn if site.kind == "normal" else torch.rand
        numbers = sample(
            (passes, *site.shape), generator=generator, dtype=torch.float32, device="cpu"
        )
        drawn.append(numbers if site.rate is None else numbers >= site.rate)
    return Masks(tuple(drawn))


def _no_counting_dimension(
    name: str, two: tuple[int, ...], three: tuple[int, ...]
) -> UnsupportedModelError:
    return UnsupportedModelError(
        "expected dropout on activations with one batch dimension, got shape "
        f"{two} for two images and {three} for three in {name or 'the model'!r}; apply dropout "
        "where every image has the same number of units"
    )
