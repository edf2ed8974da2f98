"""The sentinel: a small classifier trained so that bounds on its logits over boxes are tight."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init

from leery._checks import Bounds, bounds_like, check_count
from leery.errors import InputError
from leery.intervals import Box, Ramp, interval_bounds, margin_bounds
from leery.models import keep_freed_memory
from leery.training._auxiliary import TrainingSet, draw_weights

__all__ = ["SentinelNetwork", "SentinelRecipe", "train_sentinel"]

_NEARLY_BINARY = 0.25
"""Largest fraction of grey pixels in images that count as nearly binary."""

_GREY = (0.1, 0.9)
"""Range of grey pixels, on a scale from 0 for black to 1 for white."""

_LOOKED_AT = 1000
"""Number of images from which missing settings are chosen."""

_EPOCHS_OF_A_PART = 5
"""Number of epochs after which an interrupted training can be resumed."""

_DROPS = (0.65, 0.85, 0.95)
"""Completed fractions of the training at which the learning rate drops to about a third."""

Part = Callable[[Iterable[str], object, Callable[[], Mapping[str, Tensor]]], Mapping[str, Tensor]]
"""Function that returns computed tensors, or stored ones; see :class:`leery.training.FitParts`."""


class SentinelNetwork(nn.Module):
    """Two strided convolutions and two linear layers, on rescaled pixels.

    Args:
        shape: shape of one image, (channels, height, width).
        classes: the number of classes.
        pixels: the lowest and highest pixel value, or a pair per channel, mapped to [0, 1] first.
        ramp: True to pass the pixels through a steep ramp next, for nearly binary images.
        width: number of channels of the first convolution; the second has twice as many.
        hidden: number of units of the hidden layer.

    Weights are uninitialised until :meth:`initialise` or ``load_state_dict`` is called.

    Attributes:
        classes: the number of classes.
        ramp: True if there is a ramp.
        width: number of channels of the first convolution.
        hidden: number of units of the hidden layer.
        layers: the layers after the rescaling, an ``nn.Sequential`` that has interval bounds.

    Shape:
        float ``(N, channels, height, width)`` -> logits ``(N, classes)``.

    Source:
        The architecture follows the small network of Gowal et al. (2018), arXiv:1810.12715, table
        1. Departure: both convolutions have stride 2 and are padded by one pixel.
    """

    low: Tensor
    span: Tensor

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        *,
        pixels: Bounds = (0.0, 1.0),
        ramp: bool = False,
        width: int = 16,
        hidden: int = 100,
    ) -> None:
        super().__init__()
        channels, height, length = shape
        low, high = bounds_like(pixels, torch.empty(1, *shape))
        for name, value in (("low", low), ("span", high - low)):
            each = value.broadcast_to(1, channels, 1, 1).reshape(channels, 1, 1)
            self.register_buffer(name, each.clone(memory_format=torch.contiguous_format))
        self.classes, self.ramp, self.width, self.hidden = classes, ramp, width, hidden
        flat = 2 * width * (height // 4) * (length // 4)
        self.layers = nn.Sequential(
            Ramp() if ramp else nn.Identity(),
            skip_init(nn.Conv2d, channels, width, 4, stride=2, padding=1),
            nn.ReLU(),
            skip_init(nn.Conv2d, width, 2 * width, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            skip_init(nn.Linear, flat, hidden),
            nn.ReLU(),
            skip_init(nn.Linear, hidden, classes),
        )

    def initialise(self, generator: torch.Generator) -> Self:
        """Draw weights from the default distributions of torch's layers.

        Args:
            generator: random generator on the CPU; no other random state is used.
        """
        draw_weights(self, generator)
        return self

    def scaled(self, images: Tensor) -> Tensor:
        """Map the pixels of images from their bounds to [0, 1]."""
        return (images - self.low) / self.span

    def forward(self, images: Tensor) -> Tensor:
        """Logits of a batch of images."""
        logits: Tensor = self.layers(self.scaled(images))
        return logits

    def quick(self, images: Tensor) -> Tensor:
        """Logits of a batch of images, without gradients; on a CPU in less time.

        oneDNN's own layout of the activations is kept between the convolutions, which otherwise
        convert it twice each. The logits are those of :meth:`forward`, up to rounding.
        """
        inner = self.layers[0](self.scaled(images))
        if _takes_blocks(inner):
            first, second = self.layers[1], self.layers[3]
            inner = second(first(inner.to_mkldnn()).relu_()).relu_().to_dense()
        else:
            inner = self.layers[1:5](inner)
        logits: Tensor = self.layers[5:](inner)
        return logits

    def margins(self, box: Box, labels: Tensor) -> Tensor:
        """Lower bounds of the label's logit minus each other logit over a box of images.

        They hold for the logits that this network computes in the type of its weights, rounding
        errors included, and for their computed differences.

        Args:
            box: images, in the units of their pixels.
            labels: int64 ``(N,)``.

        Returns:
            ``(N, classes)``, of the weights' type; infinite in the column of the label.
        """
        return margin_bounds(self.layers, self.scaled_box(box), labels, rounding=self.rounding)

    def scaled_box(self, box: Box) -> Box:
        """The box of the rescaled pixels, of the weights' type."""
        # Rounding and rescaling do not decrease, so that the ends stay the ends.
        return Box(*(self.scaled(end.to(self.low.dtype)) for end in (box.lower, box.upper)))

    @property
    def rounding(self) -> float:
        """Unit roundoff of the weights' type."""
        return torch.finfo(self.low.dtype).eps / 2


def _takes_blocks(images: Tensor) -> bool:
    """Whether oneDNN computes convolutions of these images, in its own layout."""
    mkldnn = torch.backends.mkldnn
    here = images.device.type == "cpu" and images.dtype == torch.float32
    return here and bool(mkldnn.is_available() and mkldnn.enabled)


@dataclass(frozen=True)
class SentinelRecipe:
    r"""Settings for training a sentinel: Adam on a mixture of two cross-entropies.

    .. math:: \kappa\, L(a(x)) + (1 - \kappa)\, L(-m(x, \epsilon))

    with the logits a, the lower bounds m of the margins (0 for the true class) over the box of
    radius epsilon, and the cross-entropy L of the true class.

    Attributes:
        epsilon: radius of the boxes, as a fraction of the pixel range; None to let
            :meth:`suited_to` choose.
        ramp: True to pass the pixels through a steep ramp (:class:`leery.certify.Ramp`), which
            nearly binarises them; None to let :meth:`suited_to` choose.
        width: number of channels of the first convolution.
        hidden: number of units of the hidden layer; those that no training box activates are
            removed after the training.
        epochs: number of epochs.
        warmup_epochs: number of epochs during which epsilon grows from 0.
        batch_size: images per step.
        learning_rate: learning rate until 65 % of the steps; it drops to a third there, to a tenth
            at 85 % and to a thirtieth at 95 %.
        clean_weight: the weight kappa of the cross-entropy on clean images, in [0, 1].
        fixed_fraction: fraction of the pixels that are fixed at a random end of their interval, in
            [0, 1).
        shift: largest random shift of a training image, in pixels and in each direction.

    Raises:
        InputError: when a setting is outside its range.

    Source:
        The mixture and the growth of epsilon: Gowal et al. (2018), arXiv:1810.12715. Training on
        parts of the ball: in the spirit of Mueller et al. (2022), arXiv:2210.04871. Departure:
        instead of a smaller box around an adversarial example, a random fraction of the pixels is
        fixed at an end of the interval.
    """

    epsilon: float | None = None
    ramp: bool | None = None
    width: int = 16
    hidden: int = 200
    epochs: int = 80
    warmup_epochs: int = 5
    batch_size: int = 128
    learning_rate: float = 1e-3
    clean_weight: float = 0.7
    fixed_fraction: float = 0.3
    shift: int = 1

    def __post_init__(self) -> None:
        """Raise if a setting is outside its range."""
        for name in ("width", "hidden", "epochs", "warmup_epochs", "batch_size"):
            check_count(getattr(self, name), name)
        check_count(self.shift, "shift", least=0)
        if self.epsilon is not None and not 0 < self.epsilon < 1:
            message = (
                f"expected an epsilon between 0 and 1, a fraction of the pixel range, got "
                f"{self.epsilon}; correct it"
            )
        elif not (
            self.learning_rate > 0 and 0 <= self.clean_weight <= 1 and 0 <= self.fixed_fraction < 1
        ):
            message = (
                "expected a learning_rate above 0, a clean_weight in [0, 1] and a fixed_fraction "
                f"in [0, 1), got {self.learning_rate}, {self.clean_weight} and "
                f"{self.fixed_fraction}; correct them"
            )
        else:
            return
        raise InputError(message)

    def suited_to(self, images: Tensor, pixels: Bounds = (0.0, 1.0)) -> Self:
        """Fill in the settings that are None, to suit the training images.

        Images count as nearly binary if at most a quarter of their pixels are grey, between 10 %
        and 90 %. They get a ramp and an epsilon of 0.3; others get no ramp and an epsilon of 0.05.

        Args:
            images: float ``(N, channels, height, width)``; the first 1,000 are looked at.
            pixels: lowest and highest pixel value, or a pair per channel.
        """
        dark, bright = _GREY
        ramp = self.ramp
        if ramp is None:
            few = images[:_LOOKED_AT]
            low, high = bounds_like(pixels, few)
            scaled = (few - low) / (high - low)
            grey = float(((scaled > dark) & (scaled < bright)).double().mean())
            ramp = grey <= _NEARLY_BINARY
        epsilon = self.epsilon if self.epsilon is not None else 0.3 if ramp else 0.05
        return replace(self, ramp=ramp, epsilon=epsilon)


def train_sentinel(
    data: TrainingSet,
    *,
    classes: int,
    recipe: SentinelRecipe | None = None,
    pixels: Bounds = (0.0, 1.0),
    seed: int = 0,
    device: torch.device | None = None,
    part: Part = lambda _modules, _facts, make: make(),
    progress: Callable[[float], object] = lambda _: None,
) -> SentinelNetwork:
    """Train a sentinel's network on clean labelled images.

    With the same data (from :meth:`TrainingSet.gathered`), seed and type of CPU the network is the
    same, whatever the order of the images, and also after an interruption. On a GPU, rounding
    differences may grow during the training. No global random state is used.

    Args:
        data: the training images.
        classes: the number of classes.
        recipe: training settings; by default ``SentinelRecipe()``.
        pixels: lowest and highest pixel value, or a pair per channel.
        seed: random seed of the initial weights, the image order and the boxes.
        device: device for training; by default the CPU.
        part: function that returns the state after every five epochs, from storage if an
            interrupted training is resumed.
        progress: function that is called with the completed fraction, in [0, 1].

    Returns:
        The network in eval mode, on the device, with weights rounded to half precision and without
        hidden units that are inactive in the boxes of all training images.
    """
    place = device or torch.device("cpu")
    keep_freed_memory()
    with (
        torch.inference_mode(mode=False),
        torch.enable_grad(),
        torch.autocast(place.type, enabled=False),
    ):
        channels, height, length = data.images.shape[1:]
        chosen = (recipe or SentinelRecipe()).suited_to(data.images, pixels)
        assert chosen.ramp is not None
        network = SentinelNetwork(
            (channels, height, length),
            classes,
            pixels=pixels,
            ramp=chosen.ramp,
            width=chosen.width,
            hidden=chosen.hidden,
        ).initialise(torch.Generator().manual_seed(seed))
        run = _Run(network.to(place), data, chosen, seed, progress)
        facts = [data.digest(), repr(chosen), classes, str(pixels), seed, place.type]
        for start in range(0, chosen.epochs, _EPOCHS_OF_A_PART):
            epochs = range(start, min(start + _EPOCHS_OF_A_PART, chosen.epochs))
            run.restore(part([__name__], [*facts, start], partial(run.through, epochs)))
            progress((epochs[-1] + 1) / chosen.epochs)
        network.requires_grad_(requires_grad=False)
        for parameter in network.parameters():
            parameter.copy_(parameter.half())
        assert chosen.epsilon is not None
        return without_dead_units(
            network, data.images, chosen.epsilon, batch_size=chosen.batch_size
        ).eval()


@torch.no_grad()
def without_dead_units(
    network: SentinelNetwork, images: Tensor, epsilon: float, *, batch_size: int
) -> SentinelNetwork:
    """Remove the hidden units that are inactive within epsilon of every image, up to rounding.

    Training with interval bounds leaves many of them. Within these boxes the logits and their
    bounds change at most by rounding; elsewhere they may change. Certificates are to be computed
    with the returned network.

    Args:
        network: the network, which is changed.
        images: float ``(N, channels, height, width)``.
        epsilon: radius of the boxes, as a fraction of the pixel range.
        batch_size: number of images whose bounds are computed at once.
    """
    place = network.low.device
    *body, last = network.layers
    hidden = network.layers[6]
    assert isinstance(hidden, nn.Linear)
    assert isinstance(last, nn.Linear)
    active = torch.zeros(network.hidden, dtype=torch.bool, device=place)
    for batch in images.split(batch_size):
        scaled = network.scaled(batch.to(place))
        box = Box((scaled - epsilon).clamp_min(0), (scaled + epsilon).clamp_max(1))
        # Not "upper > 0": of a failed training, whose bounds are no numbers, every unit stays.
        active |= ~(interval_bounds(nn.Sequential(*body), box).upper <= 0).all(0)
    # A layer has at least one unit.
    active[0] |= ~active.any()
    network.layers[6] = _linear(hidden.weight[active], hidden.bias[active])
    network.layers[8] = _linear(last.weight[:, active], last.bias)
    network.hidden = int(active.sum())
    return network


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A linear layer with these weights, which are not trained."""
    layer: nn.Linear = skip_init(nn.Linear, weight.shape[1], weight.shape[0], device=weight.device)
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer.requires_grad_(requires_grad=False)


class _Run:
    """A training that can be left and resumed between epochs."""

    def __init__(
        self,
        network: SentinelNetwork,
        data: TrainingSet,
        recipe: SentinelRecipe,
        seed: int,
        progress: Callable[[float], object],
    ) -> None:
        self._network, self._data, self._recipe = network, data, recipe
        self._seed, self._progress = seed, progress
        self._optimiser = torch.optim.Adam(network.parameters(), recipe.learning_rate)

    def through(self, epochs: Iterable[int]) -> dict[str, Tensor]:
        """Train through these epochs and return the state after them."""
        recipe, count = self._recipe, len(self._data.images)
        each = math.ceil(count / recipe.batch_size)
        for epoch in epochs:
            # Each epoch has a seed of its own, so that a resumed training draws the same numbers.
            own = np.random.SeedSequence([self._seed, epoch]).generate_state(1)
            drawn = torch.Generator().manual_seed(int(own[0]))
            order = torch.randperm(count, generator=drawn)
            for number, rows in enumerate(order.split(recipe.batch_size)):
                done = (epoch + number / each) / recipe.epochs
                self._step(rows, done, drawn)
                self._progress(done)
        return self.state()

    def state(self) -> dict[str, Tensor]:
        """The weights, and the moments of Adam, by name."""
        found = {}
        for name, parameter in self._network.named_parameters():
            found[f"weights/{name}"] = parameter.detach()
            for part, value in self._optimiser.state[parameter].items():
                found[f"{part}/{name}"] = value
        return found

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a state."""
        for name, parameter in self._network.named_parameters():
            with torch.no_grad():
                parameter.copy_(state[f"weights/{name}"])
            own = {part: state[f"{part}/{name}"] for part in ("step", "exp_avg", "exp_avg_sq")}
            for part in ("exp_avg", "exp_avg_sq"):
                own[part] = own[part].to(parameter.device)
            self._optimiser.state[parameter] = own

    def _step(self, rows: Tensor, done: float, drawn: torch.Generator) -> None:
        """One step of Adam."""
        recipe, network = self._recipe, self._network
        for group in self._optimiser.param_groups:
            group["lr"] = recipe.learning_rate * _rate(done)
        place = network.low.device
        images = _shifted(self._data.images[rows], recipe.shift, drawn)
        images = network.scaled(images.to(place))
        labels = self._data.labels[rows].to(place)
        loss = recipe.clean_weight * functional.cross_entropy(network.layers(images), labels)
        if recipe.clean_weight < 1:
            assert recipe.epsilon is not None
            grown = min(1.0, done * recipe.epochs / recipe.warmup_epochs)
            box = _box(images, recipe.epsilon * grown, recipe.fixed_fraction, drawn)
            worst = -margin_bounds(network.layers, box, labels)
            worst = worst.scatter(1, labels.unsqueeze(1), 0.0)
            loss = loss + (1 - recipe.clean_weight) * functional.cross_entropy(worst, labels)
        self._optimiser.zero_grad()
        loss.backward()
        self._optimiser.step()


def _shifted(images: Tensor, most: int, drawn: torch.Generator) -> Tensor:
    """Images on the CPU shifted at random; pixels from outside repeat the border."""
    (count, _, height, length), size = images.shape, (2, len(images), 1)
    down, right = torch.randint(-most, most + 1, size, generator=drawn)
    rows = (torch.arange(height) - down).clamp(0, height - 1).unsqueeze(2)
    columns = (torch.arange(length) - right).clamp(0, length - 1).unsqueeze(1)
    return (
        images[torch.arange(count).view(-1, 1, 1), :, rows, columns]
        .permute(0, 3, 1, 2)
        .contiguous()
    )


def _box(images: Tensor, epsilon: float, fixed: float, drawn: torch.Generator) -> Box:
    """The box around images in [0, 1], with some pixels fixed at a random end."""
    lower, upper = (images - epsilon).clamp_min(0), (images + epsilon).clamp_max(1)
    chance = torch.rand(images.shape, generator=drawn).to(images.device)
    return Box(
        torch.where(chance < fixed / 2, upper, lower),
        torch.where(chance > 1 - fixed / 2, lower, upper),
    )


def _rate(done: float) -> float:
    """The learning rate as a fraction of the first one."""
    drops = sum(done >= place for place in _DROPS)
    return (1.0, 0.3, 0.1, 0.03)[drops]
