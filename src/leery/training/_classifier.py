"""Seeded training of classifiers."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from leery._checks import check_batch_size, check_count
from leery._progress import progress_bars
from leery.errors import InputError
from leery.training._hardening import HARDENINGS, Hardening, Strength

__all__ = ["Recipe", "run_epochs"]

Optimiser = Literal["adam", "sgd"]


@dataclass(frozen=True)
class Recipe:
    """Settings for training a classifier on the cross-entropy; the defaults are the paper's.

    Attributes:
        epochs: number of passes over the training images.
        batch_size: images per step.
        learning_rate: constant learning rate of Adam, or peak of SGD's one-cycle schedule.
        dropout: probability of dropping a unit.
        optimiser: "adam", or "sgd" with Nesterov momentum 0.9 and a one-cycle schedule.
        weight_decay: weight decay.
        label_smoothing: share of the target probability that is spread over all classes.
        shift: largest random shift of an image along each axis, in pixels; 0 fills the gap.
        mirror: True to mirror each image from left to right with probability 0.5.
        half: True to round the trained weights to half precision.
        cycle: True for a one-cycle schedule with Adam, whose peak is the learning rate.
        hardening: "none", or what the training does against attacks: "adversarial" trains on
            attacked images, "interval" on bounds of the logits, "distillation" on the softmax of
            another network of the same kind.
        epsilon: L-infinity radius of the hardening, in pixels of [0, 1].
        warmup: fraction of the training during which epsilon grows from 0.
        attack_steps: steps of the attack in adversarial training.
        temperature: divisor of the logits before the softmax.

    Raises:
        InputError: when a setting is outside its range.

    Source:
        Adam: Tuna, Catak, Eskil (2020), table 2. SGD: Smith and Topin (2019), arXiv:1708.07120.
        Hardening: Madry et al. (2018), arXiv:1706.06083; Gowal et al. (2018), arXiv:1810.12715;
        Papernot et al. (2016), arXiv:1511.04508.
    """

    epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 0.001
    dropout: float = 0.5
    optimiser: Optimiser = "adam"
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    shift: int = 0
    mirror: bool = False
    half: bool = False
    cycle: bool = False
    hardening: Hardening = "none"
    epsilon: float = 0.0
    warmup: float = 0.0
    attack_steps: int = 1
    temperature: float = 1.0

    def __post_init__(self) -> None:
        """Raise if a setting is outside its range."""
        check_batch_size(self.batch_size)
        check_count(self.shift, "a shift", least=0)
        if self.epochs < 1:
            message = f"expected at least 1 epoch, got {self.epochs}; pass a larger number"
            raise InputError(message)
        if not self.learning_rate > 0:
            message = f"expected a learning rate above 0, got {self.learning_rate}; correct it"
            raise InputError(message)
        if not 0 <= self.dropout < 1:
            message = f"expected a dropout probability in [0, 1), got {self.dropout}; correct it"
            raise InputError(message)
        if self.optimiser not in get_args(Optimiser):
            message = f'expected optimiser "adam" or "sgd", got {self.optimiser!r}; choose one'
            raise InputError(message)
        if not (self.weight_decay >= 0 and 0 <= self.label_smoothing < 1):
            message = (
                "expected a weight decay of at least 0 and a label smoothing in [0, 1), got "
                f"{self.weight_decay} and {self.label_smoothing}; correct them"
            )
            raise InputError(message)
        self._check_hardening()

    def _check_hardening(self) -> None:
        check_count(self.attack_steps, "attack steps")
        if self.hardening not in get_args(Hardening):
            message = (
                f"expected one of the hardenings {', '.join(get_args(Hardening))}, got "
                f"{self.hardening!r}; choose one"
            )
            raise InputError(message)
        if self.hardening in HARDENINGS and (self.label_smoothing or self.temperature != 1):
            message = (
                "expected no label smoothing and no temperature with hardening "
                f"{self.hardening!r}, got {self.label_smoothing} and {self.temperature}; leave "
                "them out"
            )
            raise InputError(message)
        if not (0 <= self.epsilon < 1 and 0 <= self.warmup <= 1 and self.temperature > 0):
            message = (
                "expected an epsilon in [0, 1), a warmup in [0, 1] and a temperature above 0, got "
                f"{self.epsilon}, {self.warmup} and {self.temperature}; correct them"
            )
            raise InputError(message)

    def strength(self, done: float) -> Strength:
        """How hard a step is after a fraction of the training, in [0, 1]."""
        growth = min(1.0, done / self.warmup) if self.warmup else 1.0
        return Strength(self.epsilon, growth, self.attack_steps)


def run_epochs(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    title: str,
    *,
    progress: bool,
) -> None:
    """Train a model in place, with torch's global random state, and leave it in eval mode.

    Args:
        model: returns logits ``(N, classes)``.
        images: float ``(N, channels, height, width)``.
        labels: int64 ``(N,)``, or the probabilities of all classes, float ``(N, classes)``.
        recipe: settings.
        title: title of the progress bar.
        progress: show a bar on standard error.
    """
    steps = recipe.epochs * -(-len(images) // recipe.batch_size)
    optimiser, schedule = _optimiser(model, recipe, steps)
    model.train()
    step = 0
    with progress_bars(enabled=progress) as bars:
        task = bars.add_task(title, total=recipe.epochs * len(images))
        for _ in range(recipe.epochs):
            for rows in torch.randperm(len(images)).split(recipe.batch_size):
                batch = _augmented(images[rows], recipe)
                loss = _loss(model, batch, labels[rows], recipe, step / steps)
                step += 1
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                if schedule is not None:
                    schedule.step()
                bars.advance(task, len(rows))
    model.eval()
    if recipe.half:
        # Only stored tensors are rounded; the constructor makes the other buffers.
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.copy_(value.half())


def _loss(model: nn.Module, images: Tensor, labels: Tensor, recipe: Recipe, done: float) -> Tensor:
    """The mean loss of a batch after a fraction of the training."""
    if recipe.hardening in HARDENINGS:
        hardened = HARDENINGS[recipe.hardening]
        return hardened(model, images, labels, recipe.strength(done))
    logits = model(images) / recipe.temperature
    return functional.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)


def _optimiser(
    model: nn.Module, recipe: Recipe, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler | None]:
    if recipe.optimiser == "adam":
        adam = torch.optim.Adam(
            model.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        if not recipe.cycle:
            return adam, None
        return adam, torch.optim.lr_scheduler.OneCycleLR(
            adam, recipe.learning_rate, total_steps=steps
        )
    sgd = torch.optim.SGD(
        model.parameters(),
        recipe.learning_rate,
        momentum=0.9,
        nesterov=True,
        weight_decay=recipe.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        sgd, recipe.learning_rate, total_steps=steps, cycle_momentum=False
    )
    return sgd, schedule


def _augmented(images: Tensor, recipe: Recipe) -> Tensor:
    """Mirrored and shifted images, as the recipe says."""
    if recipe.mirror:
        turned = torch.rand(len(images)) < 0.5  # noqa: PLR2004 - a half
        images = torch.where(turned.view(-1, 1, 1, 1), images.flip(-1), images)
    if recipe.shift:
        height, width = images.shape[2:]
        wide = functional.pad(images, (recipe.shift,) * 4)
        down, right = torch.randint(2 * recipe.shift + 1, (2, len(images)))
        rows = down.unsqueeze(1) + torch.arange(height)
        columns = right.unsqueeze(1) + torch.arange(width)
        every = torch.arange(len(images)).view(-1, 1, 1)
        # Index tensors on both sides of a slice move its dimension, the channels, to the end.
        images = wide[every, :, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)
    return images
