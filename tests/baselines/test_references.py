"""Every baseline against an independent computation with NumPy, SciPy and scikit-learn."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import median_filter
from scipy.special import expit, softmax
from scipy.stats import wasserstein_distance
from sklearn.covariance import OAS
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KernelDensity, NearestNeighbors
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from leery import MCDropout
from leery.attacks import BIM, FGSM, gaussian_noise
from leery.baselines import (
    BASELINES,
    DeepNeighbours,
    DeepNeighboursBaseline,
    DetectorSubnetwork,
    FeatureSqueezing,
    KernelDensityUncertainty,
    LaterMetrics,
    LayerMahalanobis,
    LocalIntrinsicDimensionality,
    Odds,
)
from leery.errors import InputError, NotFittedError
from leery.models import content_hashes, predict, submodules_of_images
from leery.names import SUPERVISED_BASELINES
from leery.observation import Scorer, View

Batch = tuple[Tensor, Tensor]

LAYERS = ("convolutions.0", "hidden.0", "hidden.1")


@pytest.fixture(scope="module")
def train(training_digits: Batch) -> Batch:
    return training_digits[0][:1500], training_digits[1][:1500]


@pytest.fixture(scope="module")
def clean(digits: Batch) -> Batch:
    return digits[0][:150], digits[1][:150]


@pytest.fixture(scope="module")
def shown(digits: Batch) -> Tensor:
    return digits[0][500:540]


def layers_of(model: nn.Module, images: Tensor, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Outputs of layers by hooks of the test's own."""
    found: dict[str, np.ndarray] = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: found.__setitem__(
                name, output.numpy().copy()
            )
        )
        for name in names
    ]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return found


def probabilities(model: nn.Module, images: Tensor) -> np.ndarray:
    with torch.no_grad():
        found: np.ndarray = softmax(model(images).double().numpy(), axis=1)
    return found


def versions(model: nn.Module, clean: Batch, attack: Any) -> tuple[Tensor, np.ndarray]:
    """Clean, noisy and successfully attacked images, and which are adversarial."""
    images, labels = clean
    right = predict(model, images) == labels
    images, labels = images[right], labels[right]
    attacked = attack(model, images, labels)
    wrong = predict(model, attacked) != labels
    moved = (attacked - images)[wrong].flatten(1).norm(dim=1).mean()
    noisy = gaussian_noise(images, float(moved) / 28)
    every = torch.cat([images, noisy, attacked[wrong]])
    return every, np.arange(len(every)) >= 2 * len(images)


def regression(values: np.ndarray, adversarial: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Log odds of a regression on standardised columns."""
    scaler = StandardScaler().fit(values)
    fitted = LogisticRegression(max_iter=1000).fit(scaler.transform(values), adversarial)
    found: np.ndarray = fitted.decision_function(scaler.transform(shown))
    return found


def kept(rows: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """Indices of the references of each class, those with the smallest hash of their features."""
    chosen = []
    for label in range(10):
        own = np.flatnonzero(labels == label)
        order = content_hashes(torch.from_numpy(rows[own]), 0).argsort().numpy()
        chosen.append(own[order[:count]])
    return np.concatenate(chosen)


def test_kernel_density_and_uncertainty(
    digit_net: nn.Module, train: Batch, clean: Batch, shown: Tensor
) -> None:
    attack = FGSM(0.3)
    baseline = KernelDensityUncertainty(digit_net, passes=20, bandwidth=1.2)
    baseline.fit(train, clean, [attack])
    features = layers_of(digit_net, train[0], ["hidden"])["hidden"]
    densities = {
        label: KernelDensity(bandwidth=1.2, leaf_size=2000).fit(features[train[1] == label])
        for label in range(10)
    }

    def measured(images: Tensor) -> np.ndarray:
        own = layers_of(digit_net, images, ["hidden"])["hidden"]
        predicted = predict(digit_net, images).tolist()
        density = [
            densities[label].score_samples(row[None])[0]
            for label, row in zip(predicted, own, strict=True)
        ]
        passes = MCDropout(digit_net, 20).sample(images).double().numpy()
        return np.stack([density, passes.var(0).mean(1)], 1)

    every, adversarial = versions(digit_net, clean, attack)
    expected = regression(measured(every), adversarial, measured(shown))
    assert np.allclose(baseline.score(shown), expected, atol=1e-4)


def test_local_intrinsic_dimensionality(
    digit_net: nn.Module, train: Batch, clean: Batch, shown: Tensor
) -> None:
    attack = BIM(0.2)
    baseline = LocalIntrinsicDimensionality(digit_net, k=15, references=8)
    baseline.fit(train, clean, [attack])
    names = submodules_of_images(digit_net, shown)
    outputs = layers_of(digit_net, train[0], names)
    rivals = {}
    for name, values in outputs.items():
        rows = values.reshape(len(values), -1)
        chosen = rows[kept(rows, train[1].numpy(), 8)]
        rivals[name] = NearestNeighbors(n_neighbors=15).fit(chosen.astype(np.float64))

    def measured(images: Tensor) -> np.ndarray:
        columns = []
        for name, values in layers_of(digit_net, images, names).items():
            rows = values.reshape(len(values), -1).astype(np.float64)
            distances = rivals[name].kneighbors(rows)[0]
            columns.append([-1 / np.mean(np.log(own / own[-1])) for own in distances])
        return np.stack(columns, 1)

    every, adversarial = versions(digit_net, clean, attack)
    expected = regression(measured(every), adversarial, measured(shown))
    assert np.allclose(baseline.score(shown), expected, atol=1e-4)


def test_mahalanobis_distances_of_layers(
    digit_net: nn.Module, train: Batch, clean: Batch, shown: Tensor
) -> None:
    attack = FGSM(0.2)
    baseline = LayerMahalanobis(digit_net).fit(train, clean, [attack])
    names = submodules_of_images(digit_net, shown)

    def pooled(images: Tensor) -> dict[str, np.ndarray]:
        return {
            name: (values.mean((2, 3)) if values.ndim == 4 else values).astype(np.float64)
            for name, values in layers_of(digit_net, images, names).items()
        }

    labels, estimates = train[1].numpy(), {}
    for name, rows in pooled(train[0]).items():
        centres = np.stack([rows[labels == label].mean(0) for label in range(10)])
        within = rows - centres[labels]
        scale = within.std(0)
        alive = within.var(0) > 1e-12 * within.var(0).max()
        estimate = OAS(assume_centered=True).fit(within[:, alive] / scale[alive])
        precision = np.linalg.inv(estimate.covariance_)
        estimates[name] = centres, scale, alive, precision, estimate.shrinkage_
    assert all(estimate[-1] > 1e-3 for estimate in estimates.values())

    def measured(images: Tensor) -> np.ndarray:
        columns = []
        for name, rows in pooled(images).items():
            centres, scale, alive, precision, _ = estimates[name]
            moved = (rows[:, None] - centres)[:, :, alive] / scale[alive]
            columns.append(np.einsum("ncd,de,nce->nc", moved, precision, moved).min(1))
        return np.stack(columns, 1)

    every, adversarial = versions(digit_net, clean, attack)
    expected = regression(measured(every), adversarial, measured(shown))
    assert np.allclose(baseline.score(shown), expected, atol=1e-4)


def test_deep_nearest_neighbours(digit_net: nn.Module, train: Batch, shown: Tensor) -> None:
    baseline = DeepNeighboursBaseline(digit_net, k=10, references=20).fit(train)
    names = submodules_of_images(digit_net, shown)
    predicted = predict(digit_net, shown).numpy()

    def rows_of(images: Tensor) -> dict[str, np.ndarray]:
        found = {}
        for name, values in layers_of(digit_net, images, names).items():
            wide = values
            while wide[0].size > 4096:
                # Means of 2 x 2 positions; at an odd edge of those that are there.
                count, channels, height, width = wide.shape
                padded = np.full((count, channels, height + height % 2, width + width % 2), np.nan)
                padded[:, :, :height, :width] = wide
                blocks = padded.reshape(count, channels, padded.shape[2] // 2, 2, -1, 2)
                wide = np.nanmean(blocks, axis=(3, 5)).astype(np.float32)
            found[name] = wide.reshape(len(wide), -1)
        return found

    shares = []
    stored, own = rows_of(train[0]), rows_of(shown)
    for name in names:
        unit = stored[name] / np.linalg.norm(stored[name], axis=1, keepdims=True)
        # The hashes of features that differ by rounding differ; those of the metric are taken.
        metric = baseline._fitted.metrics_["deep_neighbours"]
        assert isinstance(metric, DeepNeighbours)
        (points,) = [one for one in metric._each() if one.name == name]
        places = NearestNeighbors(n_neighbors=1).fit(unit).kneighbors(points.points)[1][:, 0]
        rival = NearestNeighbors(n_neighbors=10, metric="cosine").fit(stored[name][places])
        labels = train[1].numpy()[places]
        found = labels[rival.kneighbors(own[name])[1]]
        shares.append((found != predicted[:, None]).mean(1))
        assert np.bincount(labels).tolist() == [20] * 10
    assert np.allclose(baseline.score(shown), np.mean(shares, 0), atol=1e-4)


def test_feature_squeezing(digit_net: nn.Module, train: Batch, shown: Tensor) -> None:
    baseline = FeatureSqueezing(digit_net).fit(train)
    before = probabilities(digit_net, shown)
    smooth = np.stack([median_filter(one[0].numpy(), 2, mode="mirror")[None] for one in shown])
    squeezed = [(shown > 0.5).float(), torch.from_numpy(smooth)]
    changes = [np.abs(probabilities(digit_net, one) - before).sum(1) for one in squeezed]
    assert np.allclose(baseline.score(shown), np.max(changes, 0), atol=1e-4)


def test_feature_squeezing_of_colours_keeps_five_bits(train: Batch, shown: Tensor) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 5, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(576, 10))
    coloured, labels = train[0][:200].expand(-1, 3, -1, -1).contiguous(), train[1][:200]
    images = shown[:8].expand(-1, 3, -1, -1).contiguous()
    baseline = FeatureSqueezing(net).fit((coloured, labels))
    before = probabilities(net, images)
    smooth = np.stack([median_filter(one.numpy(), (1, 2, 2), mode="mirror") for one in images])
    squeezed = [(images * 31).round() / 31, torch.from_numpy(smooth)]
    changes = [np.abs(probabilities(net, one) - before).sum(1) for one in squeezed]
    assert np.allclose(baseline.score(images), np.max(changes, 0), atol=1e-4)


def test_odds_draw_images_of_all_classes_where_labels_repeat(digit_net: nn.Module) -> None:
    labels = torch.arange(50_000) % 10
    images = labels.view(-1, 1, 1, 1).expand(-1, 1, 28, 28).float() / 10
    chosen, truth = Odds(digit_net).training_part((images, labels))
    assert len(chosen) == 5000
    assert truth.bincount(minlength=10).min() > 400
    assert torch.equal((10 * chosen[:, 0, 0, 0]).round().long(), truth)


def test_odds(digit_net: nn.Module, train: Batch, shown: Tensor) -> None:
    sigmas, draws = (0.1, 0.2), 3
    baseline = Odds(digit_net, sigmas=sigmas, draws=draws, training_images=500).fit(train)
    chosen, _ = baseline.training_part(train)
    assert len(chosen) == 500

    def logits(images: Tensor) -> np.ndarray:
        with torch.no_grad():
            found: np.ndarray = digit_net(images).double().numpy()
        return found

    def moved(images: Tensor, views: Sequence[View]) -> np.ndarray:
        """Mean change of each class's logit against that of the predicted one."""
        before = logits(images)
        own = before.argmax(1)
        after = np.mean([logits(view.images(images, seed=0, bounds=(0, 1))) for view in views], 0)
        rows = np.arange(len(images))
        change = after - after[rows, own][:, None]
        found: np.ndarray = change - (before - before[rows, own][:, None])
        return found

    views = baseline._metric.needs.views
    scores = []
    for part in (views[:draws], views[draws:]):
        trained, predicted = moved(chosen, part), logits(chosen).argmax(1)
        for_shown, own = moved(shown, part), logits(shown).argmax(1)
        columns = []
        for row, label in zip(for_shown, own, strict=True):
            group = trained[predicted == label]
            columns.append((row - group.mean(0)) / np.maximum(group.std(0), 1e-6))
        scores.append(columns)
    expected = [
        np.delete(odds, label).max() for odds, label in zip(np.mean(scores, 0), own, strict=True)
    ]
    assert np.allclose(baseline.score(shown), expected, rtol=1e-4, atol=1e-4)


def test_later_metrics(digit_net: nn.Module, train: Batch, clean: Batch, shown: Tensor) -> None:
    attack = BIM(0.3)
    baseline = LaterMetrics(digit_net, passes=20).fit(train, clean, [attack])
    distance: Any = baseline._distance

    def measured(images: Tensor) -> np.ndarray:
        probs = MCDropout(digit_net, 20).sample(images).double().numpy()
        mean = probs.mean(0)
        within, between = (probs * (1 - probs)).mean((0, 2)), probs.var(0).mean(1)
        entropy = -(mean * np.log(np.maximum(mean, 1e-300))).sum(1)
        rows = layers_of(digit_net, images, ["hidden"])["hidden"]
        hidden = (rows - distance.mean.numpy()) / distance.scale.numpy()
        for layer in (0, 2, 4):
            weights = {
                name: part.numpy() for name, part in distance.network[layer].named_parameters()
            }
            hidden = hidden @ weights["weight"].T + weights["bias"]
            hidden = np.maximum(hidden, 0) if layer < 4 else hidden
        return np.stack([within, between, between / within, entropy, hidden[:, 0]], 1)

    every, adversarial = versions(digit_net, clean, attack)
    values = measured(every)
    # The network has learned what an attack is.
    odds = expit(values[:, -1])
    assert odds[adversarial].mean() > 0.9
    assert odds[~adversarial].mean() < 0.2
    expected = regression(values, adversarial, measured(shown))
    assert np.allclose(baseline.score(shown), expected, atol=1e-3)


def test_a_detector_subnetwork_on_the_pooled_maps_finds_the_attack_that_it_was_trained_on(
    digit_net: nn.Module, train: Batch, digits: Batch
) -> None:
    attack = FGSM(0.3)
    taught, fresh = (tuple(part[rows] for part in digits) for rows in (slice(400), slice(400, 600)))
    baseline = DetectorSubnetwork(digit_net, steps=120).fit(train, taught, [attack])  # type: ignore[arg-type]
    assert baseline._layer == "convolutions.3"
    made = attack(digit_net, *fresh)
    scores = [baseline.score(images) for images in (fresh[0], made)]
    assert (scores[1] > np.quantile(scores[0], 0.95)).mean() > 0.9
    again = DetectorSubnetwork(digit_net, steps=120).fit(train, taught, [attack])  # type: ignore[arg-type]
    assert np.array_equal(again.score(made), scores[1])
    assert wasserstein_distance(*scores) > 1


MAKERS: dict[str, Callable[[nn.Module], Any]] = {
    "feature_squeezing": FeatureSqueezing,
    "odds": lambda model: Odds(model, draws=2, training_images=300),
    "deep_knn": lambda model: DeepNeighboursBaseline(model, references=20),
    "kernel_density_uncertainty": lambda model: KernelDensityUncertainty(model, passes=5),
    "lid": LocalIntrinsicDimensionality,
    "layer_mahalanobis": LayerMahalanobis,
    "detector_subnetwork": lambda model: DetectorSubnetwork(model, steps=20),
    "later_metrics": lambda model: LaterMetrics(model, passes=5),
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_baseline_is_a_scorer_with_gradients_and_says_what_it_learns_from(
    name: str, digit_net: nn.Module, train: Batch, clean: Batch, shown: Tensor
) -> None:
    baseline = MAKERS[name](digit_net)
    assert type(baseline) is BASELINES[name]
    scorer: object = baseline
    assert isinstance(scorer, Scorer)
    supervised = name in SUPERVISED_BASELINES
    assert baseline.learns_from_attacks == supervised
    with pytest.raises(NotFittedError, match=f"expected a fitted {type(baseline).__name__}"):
        baseline.score(shown)
    if supervised:
        for given, what in (((train,), "no images"), ((train, clean), "no attack")):
            with pytest.raises(InputError, match=f"got {what}; pass clean="):
                baseline.fit(*given)
        with pytest.raises(InputError, match="got none in 1[0-9]+ images; pass stronger attacks"):
            baseline.fit(train, clean, [FGSM(0.0)])
    before = {key: value.clone() for key, value in digit_net.state_dict().items()}
    baseline.fit(train, clean, [FGSM(0.3)])
    images = shown.clone().requires_grad_()
    score = baseline.differentiable_score(images)
    if baseline.differentiable:
        assert np.allclose(score.detach().numpy(), baseline.score(shown), rtol=1e-3, atol=1e-3)
    (gradient,) = torch.autograd.grad(score.sum(), images)
    assert bool(gradient.isfinite().all())
    assert float(gradient.abs().sum()) > 0
    assert baseline.score(shown).shape == (40,)
    assert all(torch.equal(value, before[key]) for key, value in digit_net.state_dict().items())
    assert not digit_net.training
