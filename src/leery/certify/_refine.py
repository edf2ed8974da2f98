"""Refinement of certificates by branch and bound: boxes are split until each one is certified."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from leery.intervals import Box, interval_bounds, margin_bounds
from leery.training import SentinelNetwork

__all__ = ["certified_by_splitting"]


@torch.inference_mode(mode=False)
@torch.no_grad()
def certified_by_splitting(
    network: SentinelNetwork, box: Box, labels: Tensor, least: Tensor, boxes: int
) -> Tensor:
    """Whether every margin exceeds its threshold everywhere in a box, by splitting the box.

    All open boxes of an image are split in the middle of the pixel that weakens their bound most.
    An image is given up when a point is found at which a margin does not exceed its threshold, or
    when it would have more open boxes than allowed.

    Args:
        network: the network, in eval mode.
        box: the images, in the units of their pixels.
        labels: int64 ``(N,)``.
        least: float64 ``(classes,)``, threshold of the label's logit minus that of each class.
        boxes: maximum number of open boxes per image.

    Returns:
        bool ``(N,)``; False means that nothing was proved.
    """
    # Tensors of a caller's inference mode cannot be differentiated.
    labels, least = labels.clone(), least.clone()
    # The first layer acts on single pixels: boxes are split behind it.
    first, *rest = network.layers
    body = nn.Sequential(*rest)
    inner = interval_bounds(first, network.scaled_box(box), rounding=network.rounding)
    found = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
    waiting = _Boxes(inner, labels, torch.arange(len(labels), device=labels.device))
    given_up = found.clone()
    while len(waiting):
        gaps, pixels, refuted = _examined(body, waiting, least, network.rounding)
        given_up[waiting.owners[refuted]] = True
        # Not "gaps <= 0": a box whose bound is not a number stays open.
        unproved = ~(gaps > 0)
        waiting, pixels = waiting.rows(unproved), pixels[unproved]
        counts = torch.bincount(waiting.owners, minlength=len(labels))
        found |= (counts == 0) & ~given_up
        given_up |= found | (2 * counts > boxes)
        kept = ~given_up[waiting.owners]
        waiting = waiting.rows(kept).split(pixels[kept])
    return found


@dataclass(frozen=True)
class _Boxes:
    """Boxes that are still open.

    Attributes:
        box: the boxes, float64 ``(B, ...)``.
        labels: int64 ``(B,)``.
        owners: int64 ``(B,)``, the index of each box's image.
    """

    box: Box
    labels: Tensor
    owners: Tensor

    def __len__(self) -> int:
        return len(self.owners)

    def rows(self, kept: Tensor) -> "_Boxes":
        """Some of the boxes."""
        return _Boxes(self.box.rows(kept), self.labels[kept], self.owners[kept])

    def split(self, pixels: Tensor) -> "_Boxes":
        """Both halves of each box, split in the middle of one pixel, given by its flat index."""
        lower, upper = (end.flatten(1).clone() for end in (self.box.lower, self.box.upper))
        rows = torch.arange(len(self), device=pixels.device)
        middle = (lower[rows, pixels] + upper[rows, pixels]) / 2
        above, below = lower.clone(), upper.clone()
        above[rows, pixels], below[rows, pixels] = middle, middle
        shape = self.box.lower.shape[1:]
        ends = [torch.cat(pair).unflatten(1, shape) for pair in ((lower, above), (below, upper))]
        return _Boxes(Box(*ends), self.labels.repeat(2), self.owners.repeat(2))


def _examined(
    body: nn.Sequential, open_boxes: _Boxes, least: Tensor, rounding: float
) -> tuple[Tensor, ...]:
    """The smallest lower bound above the thresholds, where to split, and which are refuted.

    Returns:
        float64 ``(B,)``; int64 ``(B,)``, the flat index of a pixel; bool ``(B,)``.
    """
    labels, box = open_boxes.labels, open_boxes.box
    with torch.enable_grad():
        ends = Box(box.lower.detach().requires_grad_(), box.upper.detach().requires_grad_())
        margins = margin_bounds(body, ends, labels, rounding=rounding).double()
        gaps = (margins - least).amin(1)
        below, above = torch.autograd.grad(gaps.sum(), (ends.lower, ends.upper))
    weakening = ((below - above) * box.radius).flatten(1)
    point = Box(box.centre, box.centre)
    refuted = ~((margin_bounds(body, point, labels).double() - least).amin(1) > 0)
    return gaps.detach(), weakening.argmax(1), refuted
