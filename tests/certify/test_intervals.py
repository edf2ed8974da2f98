"""Interval bounds enclose what the network computes, and never exceed the exact optimum."""

from collections.abc import Iterator
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor, nn

from leery.certify import Box, Ramp, interval_bounds, margin_bounds
from leery.errors import InputError, UnsupportedModelError

LAYERS = {
    "linear": (nn.Linear(12, 5), (12,)),
    "linear without bias": (nn.Linear(12, 5, bias=False), (12,)),
    "convolution": (nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2), (4, 9, 9)),
    "same padding": (nn.Conv2d(2, 3, 3, padding="same", bias=False), (2, 6, 6)),
    "batch norm": (nn.BatchNorm2d(3), (3, 4, 4)),
    "batch norm of vectors": (nn.BatchNorm1d(6, affine=False), (6,)),
    "average pooling": (nn.AvgPool2d(3, 2, padding=1), (2, 7, 7)),
    "maximum pooling": (nn.MaxPool2d(3, 2, padding=1), (2, 7, 7)),
    "adaptive pooling": (nn.AdaptiveAvgPool2d(2), (2, 7, 7)),
    "flatten": (nn.Flatten(), (2, 3, 3)),
    "ramp": (Ramp(), (1, 4, 4)),
    "in place": (nn.ReLU(inplace=True), (8,)),
    "leaky": (nn.LeakyReLU(0.2), (8,)),
    "softplus": (nn.Softplus(), (8,)),
    "tanh": (nn.Tanh(), (8,)),
    "dropout": (nn.Dropout(0.5), (8,)),
}


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def random_box(shape: tuple[int, ...], count: int = 8) -> Box:
    generator = drawn(1)
    centre, radius = (
        torch.randn(count, *shape, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    return Box(centre - radius.abs(), centre + radius.abs())


def points(box: Box, count: int) -> Tensor:
    """Random points of each box, half of them corners, ``(count, N, ...)``."""
    generator = drawn(2)
    share = torch.rand(count, *box.lower.shape, generator=generator, dtype=torch.float64)
    share[::2] = share[::2].round()
    return box.lower + share * (box.upper - box.lower)


def randomised(layer: nn.Module) -> nn.Module:
    """The layer in float64 and eval mode, with random weights of both signs."""
    generator = drawn(3)
    for tensor in layer.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
        assert layer.running_var is not None
        layer.running_var.abs_()
    return layer.double().eval()


@pytest.mark.parametrize("name", LAYERS)
def test_every_point_of_the_box_is_mapped_inside_the_bounds(name: str) -> None:
    layer, shape = LAYERS[name]
    layer, box = randomised(layer), random_box(shape)
    before = box.lower.clone()
    found = interval_bounds(layer, box)
    assert torch.equal(box.lower, before)
    assert bool((found.lower <= found.upper).all())
    for inside in points(box, 200):
        made = layer(inside.clone())
        assert bool((made >= found.lower - 1e-12).all())
        assert bool((made <= found.upper + 1e-12).all())


def test_the_bounds_of_one_linear_layer_are_attained() -> None:
    layer, box = randomised(nn.Linear(6, 4)), random_box((6,), 3)
    found = interval_bounds(layer, box)
    assert isinstance(layer, nn.Linear)
    for unit in range(4):
        positive = layer.weight[unit] > 0
        highest = layer(torch.where(positive, box.upper, box.lower))[:, unit]
        lowest = layer(torch.where(positive, box.lower, box.upper))[:, unit]
        assert torch.allclose(found.upper[:, unit], highest, atol=1e-12)
        assert torch.allclose(found.lower[:, unit], lowest, atol=1e-12)


def network(seed: int, sizes: tuple[int, ...] = (4, 6, 5, 3)) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).double()


def exact_margin(net: nn.Sequential, box: Box, label: int, other: int) -> float:
    """The smallest label logit minus other logit over one box, by mixed-integer programming.

    Variables: inputs, then for each hidden layer its outputs and a binary per unit.
    """
    linear = [layer for layer in net if isinstance(layer, nn.Linear)]
    weights = [(one.weight.detach().numpy(), one.bias.detach().numpy()) for one in linear]
    inputs = weights[0][0].shape[1]
    hidden = [len(bias) for _, bias in weights[:-1]]
    total = inputs + 2 * sum(hidden)
    low, high = np.zeros(total), np.full(total, 10.0)
    low[:inputs], high[:inputs] = box.lower[0].numpy(), box.upper[0].numpy()
    integer = np.zeros(total)
    rows, smallest, largest = [], [], []
    before, place = slice(0, inputs), inputs
    big = 10.0
    for (weight, bias), size in zip(weights[:-1], hidden, strict=True):
        own, binary = slice(place, place + size), slice(place + size, place + 2 * size)
        integer[binary], high[binary] = 1, 1
        for unit in range(size):
            above, off, on = (np.zeros(total) for _ in range(3))
            # y >= W x + b;  y <= W x + b + big (1 - z);  y <= big z
            above[own.start + unit], above[before] = 1, -weight[unit]
            off[own.start + unit], off[before], off[binary.start + unit] = 1, -weight[unit], big
            on[own.start + unit], on[binary.start + unit] = 1, -big
            rows += [above, off, on]
            smallest += [bias[unit], -np.inf, -np.inf]
            largest += [np.inf, bias[unit] + big, 0]
        before, place = own, place + 2 * size
    weight, bias = weights[-1]
    goal = np.zeros(total)
    goal[before] = weight[label] - weight[other]
    found = milp(
        goal,
        integrality=integer,
        bounds=Bounds(low, high),
        constraints=LinearConstraint(np.array(rows), np.array(smallest), np.array(largest)),
    )
    assert found.success
    return float(found.fun + bias[label] - bias[other])


@pytest.mark.parametrize("seed", range(5))
def test_the_bound_never_exceeds_the_exact_optimum(seed: int) -> None:
    net = network(seed)
    box = Box.around(torch.rand(1, 4, generator=drawn(seed)), 0.1)
    exact = [exact_margin(net, box, 0, other) for other in (1, 2)]
    sampled = net(points(box, 2000).flatten(0, 1))
    for other, optimum in zip((1, 2), exact, strict=True):
        bound = float(margin_bounds(net, box, torch.tensor([0]))[0, other])
        assert bound <= optimum + 1e-5
        # The optimum itself is one: no sample is below it, and it is not far below all.
        nearest = float((sampled[:, 0] - sampled[:, other]).min())
        assert optimum <= nearest + 1e-5
        assert nearest - optimum < 0.05


def test_differences_are_tighter_than_the_bounds_of_each_logit() -> None:
    net = network(7, (6, 20, 4))
    box = Box.around(torch.rand(20, 6, generator=drawn()), 0.1)
    labels = torch.arange(20) % 4
    each = interval_bounds(net, box)
    apart = each.lower.gather(1, labels.unsqueeze(1)) - each.upper
    folded = margin_bounds(net, box, labels)
    others = torch.arange(4) != labels.unsqueeze(1)
    assert bool((folded >= apart - 1e-12)[others].all())
    assert float((folded - apart)[others].min()) > 0.01
    assert bool((folded[~others] == float("inf")).all())


def test_a_ball_of_radius_0_gives_the_logits() -> None:
    net, images = network(3), torch.rand(5, 4, generator=drawn())
    labels = torch.tensor([0, 1, 2, 0, 1])
    logits = net(images.double())
    margins = margin_bounds(net, Box.around(images, 0.0), labels)
    expected = logits.gather(1, labels.unsqueeze(1)) - logits
    others = torch.arange(3) != labels.unsqueeze(1)
    assert torch.allclose(margins[others], expected[others], atol=1e-12)


def test_balls_are_cut_to_the_pixel_bounds() -> None:
    images = torch.tensor([[[[0.05, 0.5]], [[0.9, 0.2]]]])
    box = Box.around(images, 0.2)
    assert torch.allclose(box.lower, torch.tensor([[[[0.0, 0.3]], [[0.7, 0.0]]]]).double())
    assert torch.allclose(box.upper, torch.tensor([[[[0.25, 0.7]], [[1.0, 0.4]]]]).double())
    cut = Box.around(images, 0.2, ((0.0, 0.6), (0.0, 1.0)))
    assert float(cut.upper[0, 0].max()) == pytest.approx(0.6, abs=1e-7)
    with pytest.raises(InputError, match="bounds"):
        Box.around(images + 0.5, 0.2)
    with pytest.raises(InputError, match="a width above 0, got -0.1"):
        Ramp(width=-0.1)
    for wrong in (-0.1, float("nan"), float("inf")):
        with pytest.raises(InputError, match="a finite epsilon of at least 0, got"):
            Box.around(images, wrong)


FLOAT32 = 2.0**-24
"""Unit roundoff of float32."""


def wide() -> nn.Sequential:
    """A float32 network whose sums are long and nearly cancel."""
    layers = (nn.Conv2d(3, 40, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    net = nn.Sequential(*layers, nn.Linear(40 * 64, 30), nn.ReLU(), nn.Linear(30, 4))
    return randomised(net).float()  # type: ignore[return-value]


def other_orders(net: nn.Sequential, images: Tensor) -> Iterator[Tensor]:
    """The logits in float32, with sums in several orders."""
    yield net(images)
    yield torch.cat([net(image.unsqueeze(0)) for image in images])
    hidden, last = net[:4](images), net[4]
    assert isinstance(last, nn.Linear)
    for seed in range(5):
        order = torch.randperm(hidden.shape[1], generator=drawn(seed))
        summed = torch.nn.functional.linear(hidden[:, order], last.weight[:, order], last.bias)
        yield net[5:](summed)


def test_bounds_with_rounding_hold_for_computed_numbers_in_any_order() -> None:
    net, centre = wide(), torch.rand(40, 3, 16, 16, generator=drawn())
    labels = torch.arange(40) % 4
    point = Box(centre, centre)
    narrow, sound = (interval_bounds(net, point, rounding=unit) for unit in (0.0, FLOAT32))
    margins, safe = (margin_bounds(net, point, labels, rounding=unit) for unit in (0.0, FLOAT32))
    outside = below = 0
    for logits in other_orders(net, centre):
        assert bool((logits >= sound.lower).all())
        assert bool((logits <= sound.upper).all())
        computed = logits.gather(1, labels.unsqueeze(1)) - logits
        others = torch.arange(4) != labels.unsqueeze(1)
        assert bool((computed >= safe)[others].all())
        outside += int(((logits < narrow.lower) | (logits > narrow.upper)).sum())
        below += int((computed < margins)[others].sum())
    # Bounds that ignore rounding errors do not hold.
    assert outside > 10
    assert below > 10
    # And little is given away, beside the size of the logits.
    scale = float(net(centre).abs().mean())
    assert float((sound.upper - narrow.upper).max()) < 0.1 * scale
    assert bool((sound.upper > narrow.upper).all())


def test_bounds_with_rounding_in_float32_enclose_those_of_exact_arithmetic() -> None:
    net, centre = wide(), torch.rand(20, 3, 16, 16, generator=drawn())
    box = Box((centre - 0.1).clamp_min(0), (centre + 0.1).clamp_max(1))
    short = interval_bounds(net, box, rounding=FLOAT32)
    exact = interval_bounds(net.double(), Box(box.lower.double(), box.upper.double()))
    assert bool((short.lower < exact.lower).all())
    assert bool((short.upper > exact.upper).all())
    plain = interval_bounds(net.float(), box)
    # Without the rounding errors the two kinds of bounds differ in both directions.
    assert bool((plain.lower > exact.lower).any())
    assert bool((plain.lower < exact.lower).any())


def test_what_has_no_bounds_of_its_rounding_errors_is_refused() -> None:
    box = Box.around(torch.rand(2, 4), 0.1)
    with pytest.raises(UnsupportedModelError, match=r"rounding errors .*, got Tanh \(0\)"):
        interval_bounds(nn.Sequential(nn.Tanh()).eval(), box, rounding=FLOAT32)
    with pytest.raises(UnsupportedModelError, match="at most 2 inputs of a unit, got 4"):
        interval_bounds(nn.Linear(4, 2), box, rounding=0.004)
    short = Box(box.lower.float(), box.upper.float())
    for bounded in (interval_bounds, partial(margin_bounds, labels=torch.zeros(2).long())):
        with pytest.raises(
            InputError, match="its unit roundoff, got torch.float32, whose roundoff is 5.96e-08"
        ):
            bounded(nn.Sequential(nn.Linear(4, 2)), short, rounding=2.0**-53)


def test_bounds_are_not_computed_in_a_caller_s_shorter_type() -> None:
    net, centre = wide(), torch.rand(20, 3, 16, 16, generator=drawn())
    box, labels = Box(centre, centre), torch.arange(20) % 4
    expected = interval_bounds(net, box), margin_bounds(net, box, labels)
    with torch.autocast("cpu"):
        found = interval_bounds(net, box), margin_bounds(net, box, labels)
    assert torch.equal(found[0].lower, expected[0].lower)
    assert torch.equal(found[1], expected[1])


def test_balls_of_short_types_hold_every_pixel_of_that_type_within_the_bounds() -> None:
    bounds = -0.4242, 2.8215
    images = torch.tensor(bounds).half().view(1, 1, 1, 2)
    assert float(images[0, 0, 0, 0]) < bounds[0]
    box = Box.around(images, 0.1, bounds)
    assert bool((box.lower <= images.double()).all())
    assert bool((box.upper >= images.double()).all())


class Doubled(nn.Linear):
    """A layer that computes something else than its class."""

    def forward(self, images: Tensor) -> Tensor:
        return 2 * super().forward(images)


def hooked(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda *seen: 2 * seen[2])
    return layer


@pytest.mark.parametrize(
    ("layer", "named"),
    [
        (nn.GELU(), r"GELU \(1.0\)"),
        (Doubled(4, 4), r"Doubled \(1.0\)"),
        (hooked(nn.Linear(4, 4)), r"Linear \(1.0\)"),
        (hooked(nn.Sequential(nn.Linear(4, 4))), r"Sequential \(1.0\)"),
        (nn.AvgPool2d(2, divisor_override=-4), r"AvgPool2d \(1.0\)"),
        (nn.LeakyReLU(-0.1), r"LeakyReLU \(1.0\)"),
        (nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"), r"Conv2d \(1.0\)"),
        (nn.BatchNorm1d(4, track_running_stats=False), r"BatchNorm1d \(1.0\)"),
        (nn.Dropout(), r"Dropout \(1.0\) in eval mode, got train mode; call eval\(\)"),
        (nn.ModuleList(), r"ModuleList \(1.0\)"),
    ],
)
def test_a_layer_without_bounds_is_refused_by_name(layer: nn.Module, named: str) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Sequential(layer), nn.Linear(4, 2))
    if not isinstance(layer, nn.Dropout):
        net.eval()
    box = Box.around(torch.rand(2, 4), 0.1)
    with pytest.raises(UnsupportedModelError, match=named):
        interval_bounds(net, box)
    with pytest.raises(UnsupportedModelError, match=named):
        margin_bounds(net, box, torch.tensor([0, 1]))


def test_a_network_that_does_not_end_with_linear_has_no_margins() -> None:
    net = nn.Sequential(nn.Linear(4, 2), nn.ReLU())
    with pytest.raises(UnsupportedModelError, match=r"Linear as the last layer, got ReLU \(1\)"):
        margin_bounds(net, Box.around(torch.rand(2, 4), 0.1), torch.tensor([0, 1]))


def test_the_ramp_is_steep_forward_and_the_identity_backward() -> None:
    images = torch.tensor([0.0, 0.4, 0.49, 0.5, 0.6], requires_grad=True)
    with torch.enable_grad():
        made = Ramp()(images)
    assert torch.allclose(made, torch.tensor([0.0, 0.0, 0.3, 0.5, 1.0]), atol=1e-6)
    assert torch.allclose(Ramp()(images.detach()), made.detach(), atol=1e-6)
    made.backward(torch.ones(5))
    assert images.grad is not None
    assert torch.equal(images.grad, torch.ones(5))
