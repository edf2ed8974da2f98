"""Distance of an input to the decision boundary, estimated by a few DeepFool steps."""

from typing import Any

import torch
from torch import Tensor

from leery._checks import check_count
from leery.metrics._base import Metric
from leery.observation import Needs, Observation

__all__ = ["BoundaryDistance"]

_OVERSHOOT = 1.02


class BoundaryDistance(Metric):
    r"""L2 norm of the perturbation by which a few DeepFool steps leave the predicted class.

    Adversarial images of minimal attacks lie closer to the boundary than clean images, and those of
    high-confidence attacks farther away; both are suspicious.

    Args:
        steps: maximum number of linearised steps.
        candidates: number of other classes that are tried, most likely first.

    Notes:
        For an image that is still in its class after the last step, the norm reached so far is
        returned. A step costs ``candidates`` backward passes.

    Source:
        Moosavi-Dezfooli, Fawzi, Frossard (2016), arXiv:1511.04599, used here as a metric of the
        starting image.
    """

    name = "boundary_distance"
    family = "boundary"
    direction = "both"
    needs = Needs(gradients=True)
    differentiable = False

    def __init__(self, steps: int = 3, *, candidates: int = 3) -> None:
        super().__init__()
        self.steps = check_count(steps, "steps")
        self.candidates = check_count(candidates, "candidates")

    def forward(self, seen: Observation) -> Tensor:
        """The norm for each image, float64 ``(N,)``, in the units of the images."""
        with torch.inference_mode(mode=False), torch.enable_grad():
            moved = start = seen.images.detach().clone()
            for _ in range(self.steps):
                moved = moved + self._step(seen, moved)
            return lengths(moved - start)

    def smooth(self, seen: Observation) -> Tensor:
        """Linear surrogate: the margin divided by the norm of its gradient, held constant."""
        top = seen.logits.double().topk(2, dim=1).values
        with torch.enable_grad():
            images = seen.images.detach().requires_grad_()
            first, second = seen.classifier(images).topk(2, dim=1).values.unbind(1)
            (gradient,) = torch.autograd.grad((first - second).sum(), images)
        return (top[:, 0] - top[:, 1]) / lengths(gradient).clamp_min(1e-12)

    def options(self) -> dict[str, Any]:
        """Constructor arguments of this metric."""
        return {"steps": self.steps, "candidates": self.candidates}

    def _step(self, seen: Observation, moved: Tensor) -> Tensor:
        """The step to the nearest boundary of the linearised classifier; zero if it is crossed."""
        images = moved.detach().requires_grad_()
        logits = seen.classifier(images)
        own = logits.gather(1, seen.predicted.unsqueeze(1)).squeeze(1)
        others = logits.scatter(1, seen.predicted.unsqueeze(1), -torch.inf)
        count = min(self.candidates, logits.shape[1] - 1)
        gaps, gradients = [], []
        for place in range(count):
            gap = own - others.topk(count, dim=1).values[:, place]
            (gradient,) = torch.autograd.grad(gap.sum(), images, retain_graph=place < count - 1)
            gaps.append(gap.detach())
            gradients.append(gradient)
        gap, gradient = torch.stack(gaps), torch.stack(gradients)
        length = gradient.flatten(2).norm(dim=2).clamp_min(torch.finfo(gap.dtype).tiny)
        nearest = (gap / length).argmin(0)
        rows = torch.arange(len(moved), device=moved.device)
        far, slope = gap[nearest, rows].clamp_min(0), length[nearest, rows]
        share = (_OVERSHOOT * far / slope.square()).nan_to_num(0.0, 0.0, 0.0)
        shaped = share.view(-1, *(1 for _ in moved.shape[1:]))
        step: Tensor = -shaped * gradient[nearest, rows]
        return step


def lengths(changes: Tensor) -> Tensor:
    """The L2 norm of each change, float64 ``(N,)``."""
    found: Tensor = changes.flatten(1).double().norm(dim=1)
    return found
