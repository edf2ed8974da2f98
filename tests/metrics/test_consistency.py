"""Metrics of consistency against plain loops over the views, closed forms and laws."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import median_filter
from torch import Tensor, nn

from leery import Detector
from leery._checks import Bounds
from leery.attacks import PGD
from leery.errors import InputError
from leery.metrics import Metric, NoiseConsistency, ShiftConsistency, Squeezing
from leery.observation import Observation, Observer

Batch = tuple[Tensor, Tensor]

ALL = [
    NoiseConsistency(),
    ShiftConsistency(),
    Squeezing("bits", 2),
    Squeezing("bits", 2, measure="logits"),
    Squeezing("median", 3),
]


def observed(
    model: nn.Module, metric: Metric, images: Tensor, bounds: Bounds | None = (0.0, 1.0)
) -> Observation:
    """What the metric needs of the images."""
    return next(iter(Observer(model, metric.needs, seed=5, bounds=bounds).stream(images)))


def measured(model: nn.Module, metric: Metric, images: Tensor) -> Tensor:
    found: Tensor = metric(observed(model, metric, images))
    return found


def probs(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(images).double().softmax(1)
    return found


def test_noise_is_a_plain_loop_over_its_draws(digit_net: nn.Module, digits: Batch) -> None:
    metric, images = NoiseConsistency(0.1, draws=3), digits[0][:20]
    seen = observed(digit_net, metric, images)
    expected = []
    for row in range(20):
        own = int(seen.predicted[row])
        changes = np.zeros(10)
        for view in seen.views:
            noisy = seen.views[view].images[row : row + 1]
            with torch.no_grad():
                before, after = (
                    digit_net(part).double().numpy()[0] for part in (images[[row]], noisy)
                )
            changes += ((after - after[own]) - (before - before[own])) / 3
        expected.append(max(np.delete(changes, own)))
    assert np.allclose(metric(seen), expected, atol=1e-4)


def test_noise_has_its_standard_deviation_and_is_the_same_for_each_image(
    digit_net: nn.Module,
) -> None:
    metric, grey = NoiseConsistency(0.05, draws=4), torch.full((3, 1, 28, 28), 0.5)
    views = [seen.images - grey for seen in observed(digit_net, metric, grey).views.values()]
    assert len(views) == 4
    assert all(torch.equal(view[0], view[2]) for view in views)
    assert not torch.equal(views[0], views[1])
    # 3,136 numbers: the standard error of their deviation is 1.3 %.
    assert float(torch.stack(views)[:, 0].std()) == pytest.approx(0.05, rel=0.06)


def test_noise_is_a_share_of_the_range_of_the_pixels(digit_net: nn.Module) -> None:
    metric, images = NoiseConsistency(0.05), torch.full((1, 1, 28, 28), 5.0)
    wide = observed(digit_net, metric, images, (0.0, 10.0))
    narrow = observed(digit_net, metric, images / 10)
    for one, other in zip(wide.views.values(), narrow.views.values(), strict=True):
        assert torch.allclose(one.images / 10, other.images, atol=1e-6)


def test_a_linear_classifier_moves_by_the_projected_noise() -> None:
    """Closed form: with logits (w x, -w x) the change of the difference is -2 w n, per draw."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2, bias=False)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([torch.ones(16), -torch.ones(16)]))  # type: ignore[operator]
    metric, images = NoiseConsistency(0.1, draws=2), torch.full((1, 1, 4, 4), 0.5)
    seen = observed(model, metric, images)
    noise = torch.stack([view.images - images for view in seen.views.values()]).mean(0)
    assert float(metric(seen)) == pytest.approx(-2 * float(noise.sum()), abs=1e-5)


def test_shifts_are_the_mean_log_odds_of_four_rolls(digit_net: nn.Module, digits: Batch) -> None:
    metric, images = ShiftConsistency(2), digits[0][:10]
    seen = observed(digit_net, metric, images)
    expected = torch.zeros(10, dtype=torch.float64)
    for way in ((2, 0), (-2, 0), (0, 2), (0, -2)):
        own = probs(digit_net, images.roll(way, (2, 3))).gather(1, seen.predicted[:, None])[:, 0]
        expected += ((1 - own) / own).log() / 4
    near = expected.exp() > 1e-6
    assert torch.allclose(metric(seen)[near], expected[near], atol=1e-2)


@pytest.mark.parametrize(("bits", "levels"), [(1, 2), (3, 8)])
def test_squeezed_pixels_have_as_many_levels_as_bits_allow(
    digit_net: nn.Module, digits: Batch, bits: int, levels: int
) -> None:
    metric, images = Squeezing("bits", bits), digits[0][:10]
    (view,) = observed(digit_net, metric, images).views.values()
    assert len(view.images.unique()) == levels
    assert float((view.images - images).abs().max()) <= 0.5 / (levels - 1) + 1e-6
    expected = (probs(digit_net, images) - probs(digit_net, view.images)).abs().sum(1)
    assert torch.allclose(measured(digit_net, metric, images), expected, atol=1e-5)


def test_the_median_is_numpy_s_on_each_neighbourhood(digit_net: nn.Module, digits: Batch) -> None:
    (view,) = observed(digit_net, Squeezing("median", 3), digits[0][:3]).views.values()
    image = digits[0][1, 0].numpy()
    for row, column in ((1, 1), (10, 14), (20, 7)):
        window = image[row - 1 : row + 2, column - 1 : column + 2]
        assert float(view.images[1, 0, row, column]) == np.median(window)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_the_median_is_scipy_s_with_a_mirrored_border(
    size: int, digit_net: nn.Module, digits: Batch
) -> None:
    (view,) = observed(digit_net, Squeezing("median", size), digits[0][:3]).views.values()
    expected = [median_filter(one[0].numpy(), size, mode="mirror") for one in digits[0][:3]]
    assert np.array_equal(view.images[:, 0].numpy(), np.stack(expected))


def test_squeezing_in_logits_is_the_largest_change_and_shares_the_view(
    digit_net: nn.Module, digits: Batch
) -> None:
    metric, other = Squeezing("bits", 1, measure="logits"), Squeezing("bits", 1)
    assert metric.needs | other.needs == other.needs
    seen = observed(digit_net, metric, digits[0][:20])
    (view,) = seen.views.values()
    expected = []
    for row in range(20):
        own = int(seen.predicted[row])
        before, after = (part[row].double().numpy() for part in (seen.logits, view.logits))
        expected.append(max(np.delete((after - after[own]) - (before - before[own]), own)))
    assert np.allclose(metric(seen), expected, atol=1e-5)


def test_an_image_that_squeezing_leaves_alone_has_distance_zero(digit_net: nn.Module) -> None:
    black = torch.zeros(2, 1, 28, 28)
    assert measured(digit_net, Squeezing("bits", 1), black).tolist() == [0, 0]
    assert measured(digit_net, Squeezing("median", 3), black).tolist() == [0, 0]


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.name)
def test_a_value_does_not_depend_on_the_other_images(
    metric: Metric, digit_net: nn.Module, digits: Batch
) -> None:
    images = digits[0][:40]
    whole = measured(digit_net, metric, images)
    assert whole.dtype == torch.float64
    assert bool(whole.isfinite().all())
    order = torch.randperm(40)
    assert torch.allclose(measured(digit_net, metric, images[order]), whole[order], atol=1e-4)
    assert torch.allclose(measured(digit_net, metric, images[:3]), whole[:3], atol=1e-4)


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.name)
def test_the_derivative_or_its_stand_in_reaches_the_images(
    metric: Metric, digit_net: nn.Module, digits: Batch
) -> None:
    images = digits[0][:8].clone().requires_grad_()
    seen = Observer(digit_net, metric.needs, seed=5, bounds=(0.0, 1.0)).observe_with_gradient(
        images
    )
    value = metric.smooth(seen)
    assert torch.allclose(value.detach(), measured(digit_net, metric, digits[0][:8]), atol=1e-4)
    (gradient,) = torch.autograd.grad(value.sum(), images)
    assert bool((gradient.flatten(1).norm(dim=1) > 0).all())
    assert bool(gradient.isfinite().all())


def test_noise_moves_attacked_images_more_than_clean_ones(
    digit_net: nn.Module, digits: Batch
) -> None:
    images, labels = (part[:60] for part in digits)
    attacked = PGD(0.3)(digit_net, images, labels)
    clean, found = (measured(digit_net, NoiseConsistency(), part) for part in (images, attacked))
    assert float(found.median()) > float(clean.amax())


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(InputError, match="a sigma above 0, got -1"):
        NoiseConsistency(-1)
    with pytest.raises(InputError, match="draws"):
        NoiseConsistency(draws=0)
    with pytest.raises(InputError, match="a size as a whole number of at least 2, got 1"):
        Squeezing("median", 1)
    with pytest.raises(InputError, match='the squeezer "bits" or'):
        Squeezing("jpeg", 3)
    assert math.isclose(NoiseConsistency(0.1).options()["sigma"], 0.1)


def test_tables_and_tokens_are_refused_where_a_view_means_nothing() -> None:
    rows, labels = torch.rand(30, 64), torch.arange(30) % 2
    table = nn.Sequential(nn.Linear(64, 4), nn.Linear(4, 2)).eval()
    with pytest.raises(InputError, match="for shift_consistency, got .64,."):
        Detector(table, metrics=["shift_consistency"]).fit(rows, labels).measure(rows)
    tokens = torch.randint(0, 9, (30, 5))
    words = nn.Sequential(nn.Embedding(9, 3), nn.Flatten(), nn.Linear(15, 2)).eval()
    for name in ("noise_consistency", "squeezing_1bit_logits"):
        detector = Detector(words, metrics=[name]).fit(tokens, labels)
        with pytest.raises(
            InputError, match="floating-point inputs for consistency metrics, got torch.int64"
        ):
            detector.measure(tokens)


def test_images_with_a_side_of_one_pixel_have_medians() -> None:
    images, labels = torch.rand(60, 1, 1, 16), torch.arange(60) % 2
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).eval()
    detector = Detector(model, metrics=["squeezing_median2", "squeezing_median3_logits"])
    values = detector.fit(images, labels).measure(images).values
    assert np.isfinite(values).all()
    assert (values[:, 0] > 0).any()
