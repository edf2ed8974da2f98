"""Weak defences of a digit classifier, each with the surrogate that an attacker would use.

After the defences of the self-study course on adversarial robustness by Carlini and others, written
anew.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from leery.attacks.adaptive import Target

Score = Callable[[Tensor], Tensor]


def accepts_everything(model: nn.Module) -> Target:
    """A classifier without a detector."""
    return with_score(
        model,
        lambda images: -torch.ones(len(images)),
        lambda images: 0 * images.flatten(1).sum(1) - 1,
    )


def with_score(model: nn.Module, exact: Score, smooth: Score) -> Target:
    """A classifier that flags images whose score is above 0."""

    def judge(images: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return model(images).argmax(1), exact(images).double()

    return Target(model, smooth, judge)


class Straight(nn.Module):
    """A classifier behind a step that has no useful gradient; the backward pass skips it."""

    def __init__(self, model: nn.Module, step: Score) -> None:
        super().__init__()
        self.model, self.step = model, step

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images + (self.step(images.detach()) - images.detach()))
        return logits


def jump(model: nn.Module) -> Target:
    """Pixels jump by a checkerboard of 0.1, at every multiple of 0.02."""
    return accepts_everything(
        Straight(model, lambda images: images + 0.1 * ((images / 0.02).floor() % 2) - 0.05)
    )


def discretise(model: nn.Module) -> Target:
    """Pixels are rounded to one of six levels."""
    return accepts_everything(Straight(model, lambda images: (images * 5).round() / 5))


class Blurred(nn.Module):
    """A classifier of blurred images."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(functional.avg_pool2d(images, 3, stride=1, padding=1))
        return logits


def blur(model: nn.Module) -> Target:
    """The image is blurred; the blur is differentiable."""
    return accepts_everything(Blurred(model))


def nearest_neighbours(model: nn.Module, images: Tensor, labels: Tensor) -> Target:
    """Flags an image if the five nearest training features disagree with the predicted class."""

    def features(batch: Tensor) -> Tensor:
        return model.hidden(model.convolutions(batch))  # type: ignore[no-any-return, operator]

    with torch.no_grad():
        known = features(images)

    def exact(batch: Tensor) -> Tensor:
        nearest = torch.cdist(features(batch), known).topk(5, largest=False).indices
        votes = functional.one_hot(labels[nearest], 10).sum(1)
        disagree: Tensor = votes.argmax(1) != model(batch).argmax(1)
        return disagree.double() - 0.5

    def smooth(batch: Tensor) -> Tensor:
        squares = torch.cdist(features(batch), known).square()
        own = labels == model(batch).argmax(1, keepdim=True)
        near, far = (torch.where(side, squares, torch.inf) for side in (own, ~own))
        return near.topk(5, largest=False).values.mean(1) - far.topk(5, largest=False).values.mean(
            1
        )

    return with_score(model, exact, smooth)


def stable_prediction(model: nn.Module) -> Target:
    """Flags an image if slight noise changes the predicted class, by one of twenty fixed draws."""
    noise = 0.15 * torch.randn(20, 1, 28, 28, generator=torch.Generator().manual_seed(0))

    def lead(batch: Tensor) -> Tensor:
        """The lead of the predicted class over the best other one, in each draw."""
        predicted = model(batch).argmax(1)
        many = (batch.unsqueeze(1) + noise).clamp(0, 1).flatten(0, 1)
        logits = model(many).view(len(batch), len(noise), -1)
        own = predicted.view(-1, 1, 1).expand(-1, len(noise), 1)
        others = logits.scatter(2, own, -torch.inf).amax(2)
        return logits.gather(2, own).squeeze(2) - others  # type: ignore[no-any-return]

    def exact(batch: Tensor) -> Tensor:
        return (lead(batch) < 0).any(1).double() - 0.5

    def smooth(batch: Tensor) -> Tensor:
        return (0.1 - lead(batch)).relu().sum(1) - 1e-3

    return with_score(model, exact, smooth)
