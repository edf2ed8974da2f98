"""Dropout masks drawn once from a seed: T passes are T fixed sub-networks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

__all__ = ["MaskSource", "Masks", "Site", "draw_masks"]

MaskSource = Literal["fixed", "fresh"]


@dataclass(frozen=True)
class Site:
    """A place in the model where dropout acts.

    Attributes:
        name: of the graph node.
        rate: the probability of dropping a unit, in (0, 1].
        shape: of one image's mask; it broadcasts against one image's activation.
    """

    name: str
    rate: float
    shape: tuple[int, ...]

    @property
    def scale(self) -> float:
        """What kept units are multiplied by; at rate 1 nothing is kept."""
        return 1 / (1 - self.rate) if self.rate < 1 else 0.0


@dataclass(frozen=True)
class Masks:
    """Which units are kept, for every site and pass.

    Attributes:
        kept: one bool tensor ``(passes, *site.shape)`` for each site, in graph order.
    """

    kept: tuple[Tensor, ...]

    def to(self, device: torch.device) -> "Masks":
        """The same masks on a device."""
        return Masks(tuple(mask.to(device) for mask in self.kept))


def draw_masks(sites: Sequence[Site], passes: int, seed: int, draw: int = 0) -> Masks:
    """Independent Bernoulli masks, shared by every image of a pass.

    They are drawn on the CPU, each site from its own stream, so that they depend on the seed
    and the number of the draw only, and not on the device, the batch size or the other sites.

    Source:
        Kirsch, van Amersfoort, Gal (2019), "BatchBALD", section 3.1: consistent MC dropout.
    """
    kept = []
    for index, site in enumerate(sites):
        state = np.random.SeedSequence([seed, draw, index]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(state[0]) >> 1)
        uniform = torch.rand(
            (passes, *site.shape), generator=generator, dtype=torch.float32, device="cpu"
        )
        kept.append(uniform >= site.rate)
    return Masks(tuple(kept))
