"""Metrics of distance against scikit-learn and scipy, closed forms, laws and limits."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist, mahalanobis
from sklearn.covariance import OAS
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn

from leery import Detector
from leery.errors import InputError, NotFittedError
from leery.metrics import IMAGE, Mahalanobis, Metric, NearestNeighbours
from leery.observation import HEAD, Observation

Batch = tuple[Tensor, Tensor]


def points(count: int = 300, width: int = 6, seed: int = 0) -> Batch:
    """Correlated features of three classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    mixed = torch.randn(width, width, generator=torch.Generator().manual_seed(9))
    rows = torch.randn(count, width, generator=generator) @ mixed + 2.0 * labels.unsqueeze(1)
    return rows, labels


def seen(features: Tensor, classes: Tensor) -> Observation:
    logits = torch.nn.functional.one_hot(classes, 3).float()
    return Observation(features, logits, lambda images: images, layers={HEAD: features})


def fitted(metric: Metric, data: Batch, parts: Sequence[int] = ()) -> Metric:
    """The metric fitted in parts, each by an instance of its own, then merged."""
    sizes = [*parts, len(data[0]) - sum(parts)]
    cuts = [part.split(sizes) for part in data]
    for number, (rows, labels) in enumerate(zip(*cuts, strict=True)):
        other = metric if number == 0 else type(metric)(**metric.options())
        other.update(seen(rows, labels), labels)
        if number:
            metric.merge(other)
    metric.finish()
    return metric


def values(metric: Metric, features: Tensor, classes: Tensor) -> np.ndarray:
    found: np.ndarray = metric(seen(features, classes)).numpy()
    return found


def test_neighbours_are_scikit_learn_s_of_the_predicted_class() -> None:
    (train, labels), (rows, classes) = points(), points(40, seed=1)
    found = values(fitted(NearestNeighbours(5), (train, labels)), rows, classes)
    for label in range(3):
        rival = NearestNeighbors(n_neighbors=5).fit(train[labels == label])
        own = classes == label
        assert np.allclose(found[own], rival.kneighbors(rows[own])[0].mean(1), rtol=1e-5)


def test_a_class_of_fewer_points_than_neighbours_uses_all() -> None:
    train, labels = torch.tensor([[0.0], [2.0], [9.0], [9.0]]), torch.tensor([0, 0, 1, 2])
    metric = fitted(NearestNeighbours(10), (train, labels))
    assert values(metric, torch.tensor([[1.0], [5.0]]), torch.tensor([0, 1])).tolist() == [1, 4]


def test_parts_of_the_data_give_the_same_as_the_whole() -> None:
    data, (rows, classes) = points(), points(40, seed=1)
    for whole, parts in (
        (NearestNeighbours(5, references=20), NearestNeighbours(5, references=20)),
        (Mahalanobis(), Mahalanobis()),
        (Mahalanobis("relative"), Mahalanobis("relative")),
        (Mahalanobis("closest"), Mahalanobis("closest")),
    ):
        one, other = fitted(whole, data), fitted(parts, data, (50, 120))
        assert np.allclose(values(one, rows, classes), values(other, rows, classes), rtol=1e-9)


def test_mahalanobis_is_scipy_s_with_scikit_learn_s_shrinkage() -> None:
    (train, labels), (rows, classes) = points(), points(40, seed=1)
    wide = train.double().numpy()
    centres = np.stack([wide[labels == label].mean(0) for label in range(3)])
    centred = wide - centres[labels]
    scale = np.sqrt((centred**2).mean(0))
    shrunk = OAS(assume_centered=True).fit(centred / scale)
    inverse = np.linalg.inv(shrunk.covariance_)
    found = values(fitted(Mahalanobis(), (train, labels)), rows, classes)
    for row, label, value in zip(rows.double().numpy(), classes.tolist(), found, strict=True):
        expected = mahalanobis(row / scale, centres[label] / scale, inverse) ** 2
        # scikit-learn's OAS has the numerator of a variant: the shrinkages differ by under 1 %.
        assert value == pytest.approx(expected, rel=0.02)


def test_one_feature_is_the_squared_standard_score() -> None:
    train = torch.tensor([[1.0], [3.0], [10.0], [14.0]])
    metric = fitted(Mahalanobis(), (train, torch.tensor([0, 0, 1, 1])))
    # Variance within classes: (1 + 1 + 4 + 4) / 4.
    found = values(metric, torch.tensor([[7.0], [12.0]]), torch.tensor([0, 1]))
    assert found == pytest.approx([25 / 2.5, 0])


def test_the_relative_distance_takes_off_that_to_all_training_data() -> None:
    train = torch.tensor([[1.0], [3.0], [9.0], [11.0]])
    data = train, torch.tensor([0, 0, 1, 1])
    found = values(fitted(Mahalanobis("relative"), data), torch.tensor([[6.0]]), torch.tensor([0]))
    # Of class 0: 16 / 1; of all: mean 6, so 0.
    assert found == pytest.approx([16.0])


def test_the_closest_distance_is_the_smallest_over_the_classes() -> None:
    data, (rows, _) = points(), points(40, seed=1)
    own = [
        values(fitted(Mahalanobis(), data), rows, torch.full((40,), label)) for label in range(3)
    ]
    found = values(fitted(Mahalanobis("closest"), data), rows, torch.zeros(40, dtype=torch.int64))
    assert np.allclose(found, np.min(own, 0), rtol=1e-12)


def test_pooled_maps_are_the_means_over_their_positions() -> None:
    (train, labels), (rows, classes) = points(), points(40, seed=1)
    spread = torch.tensor([[1.0, -1.0], [2.0, -2.0]])
    maps, shown = (part[:, :, None, None] + spread for part in (train, rows))
    plain = values(fitted(Mahalanobis(), (train, labels)), rows, classes)
    found = values(fitted(Mahalanobis(pooled=True), (maps, labels)), shown, classes)
    assert np.allclose(found, plain, rtol=1e-4)
    flat = values(fitted(Mahalanobis(pooled=True), (train, labels)), rows, classes)
    assert np.array_equal(flat, plain)


@pytest.mark.parametrize("kind", ["class", "relative", "closest"])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_scale_and_dead_features_do_not_matter(kind: str, scale: float) -> None:
    (train, labels), (rows, classes) = points(), points(40, seed=1)
    plain = values(fitted(Mahalanobis(kind), (train, labels)), rows, classes)  # type: ignore[arg-type]
    dead = torch.full((1, 1), 3.0 * scale)
    wide, other = (
        torch.cat([scale * part, dead.expand(len(part), 1)], 1) for part in (train, rows)
    )
    found = values(fitted(Mahalanobis(kind), (wide, labels)), other, classes)  # type: ignore[arg-type]
    assert np.isfinite(found).all()
    assert np.allclose(found, plain, rtol=1e-3, atol=1e-3)


def test_more_features_than_images_still_give_a_distance() -> None:
    data, (rows, classes) = points(12, width=40), points(9, width=40, seed=1)
    found = values(fitted(Mahalanobis(), data), rows, classes)
    assert np.isfinite(found).all()
    assert (found > values(fitted(Mahalanobis(), data), *data)[:9]).mean() > 0.5


def test_the_pixels_can_stand_for_a_layer_and_both_come_back_from_a_file(
    digit_net: nn.Module, digits: Batch, training_digits: Batch, tmp_path: object
) -> None:
    metrics: list[str | Metric] = [NearestNeighbours(3, layer=IMAGE), "mahalanobis"]
    metrics.append("relative_mahalanobis")
    train, labels = (part[:500] for part in training_digits)
    detector = Detector(digit_net, metrics=metrics).fit(train, labels)
    images = digits[0][:20]
    table = detector.measure(images)
    assert table.names[0] == "nearest_neighbours_image"
    distances = cdist(images.flatten(1).double(), train.flatten(1).double())
    distances[table.predicted[:, None] != labels.numpy()] = np.inf
    expected = np.sort(distances, axis=1)[:, :3].mean(1)
    assert np.allclose(table.values[:, 0], expected, rtol=1e-5)
    detector.save(f"{tmp_path}/guard.leery")
    loaded = Detector.load(f"{tmp_path}/guard.leery", digit_net)
    assert np.array_equal(loaded.measure(images).values, table.values)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(NotFittedError, match="fitted NearestNeighbours"):
        NearestNeighbours().score(torch.zeros(2, 3), torch.tensor([0, 1]))
    with pytest.raises(InputError, match='kind "class", "relative" or "closest", got'):
        Mahalanobis("all")  # type: ignore[arg-type]
    metric = Mahalanobis()
    with pytest.raises(InputError, match="at most 4096 features"):
        metric.update(seen(torch.zeros(3, 5000), torch.arange(3)), torch.arange(3))
    with pytest.raises(InputError, match="all 4 classes, got 3 of 3"):
        fitted(Mahalanobis(), points()).check_classes(4)
    state = fitted(Mahalanobis(), points()).state_dict()
    with pytest.raises(InputError, match="of one width"):
        Mahalanobis().restore({**state, "shift": torch.zeros(2, dtype=torch.float64)})
