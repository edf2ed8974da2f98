"""The auxiliary network: a small classifier trained separately, on clean images only."""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init

from leery._checks import Bounds, bounds_like, check_count
from leery.errors import InputError
from leery.models import content_hashes, device_of, isolated, multiplications, predict
from leery.training._augmentation import Augmentation
from leery.tuning import WHOLE_MODEL

__all__ = [
    "MAX_PIXELS",
    "AuxiliaryNetwork",
    "AuxiliaryRecipe",
    "TrainingSet",
    "draw_weights",
    "train_auxiliary",
]

MAX_PIXELS = 64
"""The largest height and width of images for which an auxiliary network is trained by default."""

_SMALLEST_MAP = 4
"""Smallest height and width to which the network halves the image."""

_STAGES = 2
"""Smallest number of stages."""

_WIDTHS = (48, 32, 24, 16)
"""Numbers of channels of the first convolution that a recipe chooses from."""

_MOST_PRODUCTS = 36_000_000
"""Maximum cost of a chosen network, in multiplications per image."""

_TRIED = 1000
"""Maximum number of training images on which the classifier is tried."""

_LOSS = 0.05
"""Largest loss of accuracy on mirror images at which they are still used in training."""

_MAX_ELEMENTS = 2**29
"""Maximum number of elements of training images in memory (2 GiB)."""


class AuxiliaryNetwork(nn.Module):
    """A small residual network: a strided convolution, at least two stages, and a linear layer.

    Each stage is a convolution that doubles the channels, maximum pooling unless the map is smaller
    than 7 pixels, and a residual block of one convolution. The linear layer gets the maximum of
    each channel.

    Args:
        shape: shape of one image, (channels, height, width).
        classes: the number of classes.
        pixels: the lowest and highest pixel value, or a pair per channel, mapped to [0, 1] first.
        width: number of channels of the first convolution.

    Weights are uninitialised until :meth:`initialise` or ``load_state_dict`` is called.

    Shape:
        float ``(N, channels, height, width)`` -> logits ``(N, classes)``.

    Source:
        Residual connections: He et al. (2015), arXiv:1512.03385.
    """

    low: Tensor
    span: Tensor

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        *,
        pixels: Bounds = (0.0, 1.0),
        width: int = 16,
    ) -> None:
        super().__init__()
        channels, height, length = shape
        low, high = bounds_like(pixels, torch.empty(1, *shape))
        each = (channels, 1, 1)
        self.register_buffer("low", low.broadcast_to(1, *each)[0].clone())
        self.register_buffer("span", (high - low).broadcast_to(1, *each)[0].clone())
        layers: list[nn.Module] = [_convolution(channels, width, 5, stride=2), nn.ReLU()]
        side, stages = (min(height, length) + 1) // 2, 0
        while side >= 2 * _SMALLEST_MAP - 1 or stages < _STAGES:
            layers.append(_convolution(width, 2 * width))
            if side >= 2 * _SMALLEST_MAP - 1:
                layers.append(nn.MaxPool2d(2, ceil_mode=True))
                side = (side + 1) // 2
            layers += [nn.ReLU(), _Residual(2 * width)]
            width, stages = 2 * width, stages + 1
        self.features = nn.Sequential(*layers)
        self.classify = skip_init(nn.Linear, width, classes)

    def initialise(self, generator: torch.Generator) -> Self:
        """Draw weights from the default distributions of torch's layers.

        Args:
            generator: random generator on the CPU; no other random state is used.
        """
        draw_weights(self, generator)
        return self

    def scaled(self, images: Tensor) -> Tensor:
        """Map the pixels of images to [0, 1]."""
        return (images - self.low) / self.span

    def forward(self, images: Tensor) -> Tensor:
        """Logits of a batch of images."""
        return self.of_scaled(self.scaled(images))

    def of_scaled(self, images: Tensor) -> Tensor:
        """Logits of images whose pixels are already in [0, 1]."""
        maps = self.features(images)
        # AdaptiveMaxPool2d has no deterministic gradient on a GPU.
        logits: Tensor = self.classify(functional.max_pool2d(maps, maps.shape[2:]).flatten(1))
        return logits


def draw_weights(network: nn.Module, generator: torch.Generator) -> None:
    """Draw convolutions' and linear layers' weights from the default distributions of torch."""
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_uniform_(layer.weight, math.sqrt(5), generator=generator)
            if layer.bias is not None:
                bound = 1 / math.sqrt(layer.weight[0].numel())
                nn.init.uniform_(layer.bias, -bound, bound, generator=generator)


class _Residual(nn.Module):
    """A convolution with a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.change = _convolution(width, width)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps of a batch of maps."""
        return functional.relu(maps + self.change(maps))


def _convolution(before: int, after: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """A convolution with batch normalisation."""
    return nn.Sequential(
        skip_init(nn.Conv2d, before, after, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(after),
    )


@dataclass(frozen=True)
class AuxiliaryRecipe:
    """Settings for training an auxiliary network: SGD with a one-cycle learning-rate schedule.

    Attributes:
        width: number of channels of the first convolution; None to let :meth:`suited_to` choose.
        mirror: True to mirror each image from left to right with probability 0.5; None to let
            :meth:`suited_to` choose.
        max_images: maximum number of images seen in training, counting repetitions.
        epochs: number of epochs, unless that would exceed ``max_images``.
        min_images: minimum number of images seen in training, counting repetitions; a small
            training set is repeated at most 60 times to reach it, or ``epochs`` times if that is
            more.
        batch_size: images per step.
        learning_rate: the peak of the one-cycle schedule.
        weight_decay: weight decay.
        augmentation: augmentation of the training images.

    Raises:
        InputError: when a setting is outside its range.

    Source:
        One cycle: Smith and Topin (2019), arXiv:1708.07120, as implemented in torch.
    """

    width: int | None = None
    mirror: bool | None = None
    max_images: int = 420_000
    epochs: int = 20
    min_images: int = 40_000
    batch_size: int = 128
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        """Raise if a setting is outside its range."""
        # Batch norm is undefined for a batch of one image.
        check_count(self.batch_size, "a batch size", least=2)
        for name in ("width", "max_images", "epochs", "min_images"):
            if getattr(self, name) is not None:
                check_count(getattr(self, name), name)
        if not (self.learning_rate > 0 and self.weight_decay >= 0):
            message = (
                f"expected a learning rate above 0 and a decay of at least 0, got "
                f"{self.learning_rate} and {self.weight_decay}; correct them"
            )
            raise InputError(message)

    def suited_to(
        self,
        model: nn.Module,
        data: "TrainingSet",
        *,
        classes: int,
        dtype: torch.dtype = torch.float32,
        batch_size: int = WHOLE_MODEL,
    ) -> Self:
        """Fill in the settings that are None, to suit a classifier.

        The width is the largest of 16, 24, 32 and 48 with which the network costs no more
        multiplications per image than the classifier, and at most 36 million; otherwise 16. Images
        are mirrored if the accuracy of the classifier on mirror images is at most 5 percentage
        points lower than on the images themselves.

        Args:
            model: the classifier.
            data: the training images; the first 1,000 are used.
            classes: the number of classes.
            dtype: data type of the images that the classifier accepts.
            batch_size: number of images processed at once.
        """
        some, truth = data.images[:_TRIED].to(dtype), data.labels[:_TRIED]
        width, mirror = self.width, self.mirror
        if width is None:
            products = 0
            # A classifier that cannot be counted gets the narrowest network.
            with isolated(model, some) as still, suppress(Exception):
                products = multiplications(still, some[:1].to(device_of(model)))
            channels, height, length = some.shape[1:]
            width = _largest_width((channels, height, length), classes, products)
        if mirror is None:
            views = some, some.flip(-1)
            right, turned = (
                float((predict(model, view, batch_size=batch_size) == truth).double().mean())
                for view in views
            )
            mirror = turned >= right - _LOSS
        return replace(self, width=width, mirror=mirror)

    def steps(self, count: int) -> int:
        """The number of steps for a training set of ``count`` images."""
        least = min(self.min_images, 60 * count)
        return math.ceil(min(self.max_images, max(self.epochs * count, least)) / self.batch_size)


@dataclass(frozen=True)
class TrainingSet:
    """Labelled images in an order that depends only on their content.

    Attributes:
        images: float32 ``(N, channels, height, width)``, on the CPU.
        labels: int64 ``(N,)``.
    """

    images: Tensor
    labels: Tensor

    @classmethod
    def gathered(cls, batches: Iterable[tuple[Tensor, Tensor]]) -> Self:
        """Concatenate all batches; beyond the memory limit, keep the smallest content hashes."""
        images: list[Tensor] = []
        labels: list[Tensor] = []
        hashes: list[Tensor] = []
        for batch, truth in batches:
            images.append(batch.detach().float().cpu())
            labels.append(truth.cpu().long())
            hashes.append(content_hashes(images[-1]))
            held = sum(part.numel() for part in images)
            if held > 2 * _MAX_ELEMENTS:
                _thin(images, labels, hashes)
        _thin(images, labels, hashes)
        return cls(images[0], labels[0])

    def digest(self) -> str:
        """A SHA-256 of the images and labels, as hexadecimal digits."""
        content = hashlib.sha256(str(tuple(self.images.shape)).encode())
        for part in (content_hashes(self.images), self.labels):
            content.update(part.numpy().tobytes())
        return content.hexdigest()


def _thin(images: list[Tensor], labels: list[Tensor], hashes: list[Tensor]) -> None:
    """Concatenate the parts, sort them by hash and keep at most ``_MAX_ELEMENTS`` elements."""
    order = torch.cat(hashes).argsort(stable=True)
    order = order[: max(1, _MAX_ELEMENTS // images[0][0].numel())]
    for parts in (images, labels, hashes):
        parts[:] = [torch.cat(parts)[order]]


def train_auxiliary(
    data: TrainingSet,
    *,
    classes: int,
    recipe: AuxiliaryRecipe | None = None,
    pixels: Bounds = (0.0, 1.0),
    seed: int = 0,
    device: torch.device | None = None,
    progress: Callable[[float], object] = lambda _: None,
) -> AuxiliaryNetwork:
    """Train an auxiliary network on clean labelled images.

    With the same data, seed and type of CPU the network is the same for any order of the images; on
    a GPU it is the same up to rounding. No global random state is used.

    Args:
        data: the training images.
        classes: the number of classes.
        recipe: training settings; by default ``AuxiliaryRecipe()``. A width of None is 16, and a
            mirror of None is False.
        pixels: lowest and highest pixel value, or a pair per channel.
        seed: random seed of the initial weights, the image order and the augmentation.
        device: device for training; by default the CPU.
        progress: function that is called with the completed fraction, in [0, 1].

    Returns:
        The network in eval mode, on the device.
    """
    recipe, place = recipe or AuxiliaryRecipe(), device or torch.device("cpu")
    with torch.inference_mode(mode=False), torch.enable_grad():
        channels, height, length = data.images.shape[1:]
        network = AuxiliaryNetwork(
            (channels, height, length), classes, pixels=pixels, width=recipe.width or _WIDTHS[-1]
        ).initialise(torch.Generator().manual_seed(seed))
        network = network.to(place, memory_format=torch.channels_last)  # type: ignore[call-overload]
        _run_steps(network, data, recipe, seed, progress)
    trained: AuxiliaryNetwork = network.eval()
    trained.requires_grad_(requires_grad=False)
    return trained


def _largest_width(shape: tuple[int, int, int], classes: int, products: int) -> int:
    """The largest width with which the network costs at most ``products``, or the smallest."""
    for width in _WIDTHS[:-1]:
        network = AuxiliaryNetwork(shape, classes, width=width).eval()
        cost = multiplications(network, torch.zeros(1, *shape))
        if cost <= min(products, _MOST_PRODUCTS):
            return width
    return _WIDTHS[-1]


def _run_steps(
    network: AuxiliaryNetwork,
    data: TrainingSet,
    recipe: AuxiliaryRecipe,
    seed: int,
    progress: Callable[[float], object],
) -> None:
    """Run the training steps on the device of the network."""
    place, steps = network.low.device, recipe.steps(len(data.images))
    generator = torch.Generator(place).manual_seed(seed)
    optimiser = torch.optim.SGD(
        network.parameters(),
        recipe.learning_rate,
        momentum=0.9,
        nesterov=True,
        weight_decay=recipe.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.learning_rate, total_steps=steps, cycle_momentum=False
    )
    network.train()
    order = _endless(len(data.images), recipe.batch_size, seed)
    for step, rows in enumerate(islice(order, steps)):
        scaled = network.scaled(data.images[rows].to(place))
        if recipe.mirror:
            chance = torch.rand(len(rows), 1, 1, 1, generator=generator, device=place)
            scaled = torch.where(chance < 0.5, scaled.flip(-1), scaled)  # noqa: PLR2004 - a half
        changed = recipe.augmentation(scaled, generator)
        logits = network.of_scaled(changed.contiguous(memory_format=torch.channels_last))
        loss = functional.cross_entropy(logits, data.labels[rows].to(place))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        progress((step + 1) / steps)


def _endless(count: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Endless batches of indices, shuffled anew in each epoch."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(count, generator=generator)
        # Batch norm is undefined for a batch of one image.
        yield from (rows for rows in order.split(batch_size) if len(rows) > 1 or count == 1)
