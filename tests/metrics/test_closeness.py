"""Kernel density against scikit-learn's, KL against scipy's; limits and refusals."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy
import sklearn.neighbors
import torch
from torch import Tensor, nn

from leery.attacks import FGSM
from leery.errors import InputError, NotFittedError
from leery.metrics import ClassKL, KernelDensity
from leery.metrics import closeness as module
from leery.models import extract_features
from tests.conftest import Batch

Make = Callable[[], KernelDensity | ClassKL]


def sample(count: int, width: int = 6, classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    features = torch.randn((count, width), generator=generator) * 2 + labels[:, None]
    return features, labels


@pytest.mark.parametrize("bandwidth", [0.3, 1.0, 1.7, 20.0])
@pytest.mark.parametrize("width", [1, 6, 128])
def test_the_density_equals_scikit_learns(bandwidth: float, width: int) -> None:
    features, labels = sample(300, width)
    queries, classes = sample(50, width, seed=1)
    found = KernelDensity(bandwidth).fit(features, labels).score(queries, classes)
    assert found.dtype == torch.float64
    for label in range(3):
        expected = peer_density(features[labels == label], queries[classes == label], bandwidth)
        assert np.allclose(found[classes == label].numpy(), expected, atol=1e-4, rtol=0)


def peer_density(reference: Tensor, queries: Tensor, bandwidth: float) -> np.ndarray:
    """scikit-learn's, with all points in one leaf: bounds between leaves lose the far tails."""
    peer = sklearn.neighbors.KernelDensity(bandwidth=bandwidth, leaf_size=len(reference))
    found: np.ndarray = peer.fit(reference.double().numpy()).score_samples(queries.double().numpy())
    return found


def test_the_density_equals_scikit_learns_on_the_last_hidden_layer_of_digits(
    digit_net: nn.Module, digits: Batch, training_digits: Batch
) -> None:
    images, labels = training_digits
    features, _ = extract_features(digit_net, images, "hidden")
    adversarial = FGSM(0.3)(digit_net, digits[0][:60], digits[1][:60])
    queries, logits = extract_features(
        digit_net, torch.cat([digits[0][:60], adversarial]), "hidden"
    )
    classes = logits.argmax(1)
    found = KernelDensity(1.7).fit(features, labels).score(queries, classes)
    for label in classes.unique().tolist():
        rows = classes == label
        expected = peer_density(features[labels == label], queries[rows], 1.7)
        assert np.allclose(found[rows].numpy(), expected, atol=1e-4, rtol=0)


def test_the_density_of_far_points_and_large_features_keeps_its_digits() -> None:
    features, labels = sample(200, 64)
    far = 1000 + features
    queries = far[:20] + 30
    found = KernelDensity(1.0).fit(far, labels).score(queries, labels[:20])
    for row in range(20):
        distances = (far[labels == labels[row]].double() - queries[row].double()).square().sum(1)
        expected = torch.logsumexp(-distances / 2, 0) - math.log(int((labels == labels[row]).sum()))
        expected = expected - 32 * math.log(2 * math.pi)
        assert float(found[row]) == pytest.approx(float(expected), abs=1e-4)
        assert float(found[row]) < -1000


def test_a_density_integrates_to_one() -> None:
    features, labels = sample(40, 1, classes=1)
    grid = torch.linspace(-30, 30, 6001).unsqueeze(1)
    density = KernelDensity(0.8).fit(features, labels)
    log = density.score(grid, torch.zeros(6001, dtype=torch.int64))
    assert float(log.exp().sum() * 0.01) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("resident", [0, 2**27])
def test_blocks_do_not_change_the_density(resident: int, monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = sample(200)
    queries, classes = sample(70, seed=3)
    density = KernelDensity(1.0).fit(features, labels)
    whole = density.score(queries, classes)
    monkeypatch.setattr(module, "MAX_RESIDENT", resident)
    monkeypatch.setattr(module, "REFERENCES", 7)
    monkeypatch.setattr(module, "CONVERTED", 4)
    monkeypatch.setattr(module, "QUERIES", 3)
    cut = KernelDensity(1.0).fit(features, labels)
    assert torch.allclose(cut.score(queries, classes), whole, atol=1e-12, rtol=0)
    alone = [cut.score(queries[i : i + 1], classes[i : i + 1]) for i in range(70)]
    assert torch.allclose(torch.cat(alone), whole, atol=1e-12, rtol=0)


def test_a_query_on_its_only_reference_is_as_dense_as_can_be() -> None:
    """Rounding does not put it nearer than that, however narrow the kernel is."""
    point = torch.tensor([[1e3, 1.0, -7.0]])
    density = KernelDensity(1e-9).fit(torch.cat([point, -point]), torch.tensor([0, 0]))
    peak = -1.5 * math.log(2 * math.pi * 1e-18)
    assert float(density.score(point, torch.tensor([0]))) <= peak + 1e-9


def test_one_training_point_gives_the_kernel_itself() -> None:
    density = KernelDensity(2.0).fit(torch.zeros(1, 3), torch.tensor([0]))
    found = density.score(torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([0]))
    assert float(found) == pytest.approx(-0.5 - 1.5 * math.log(2 * math.pi * 4), abs=1e-12)


@pytest.mark.parametrize("pmf", ["softmax", "sum"])
def test_the_divergence_equals_scipys(pmf: str) -> None:
    features, labels = sample(90)
    queries, classes = sample(40, seed=1)
    if pmf == "sum":
        features, queries = features.abs() + 0.01, queries.abs() + 0.01
    found = ClassKL(pmf).fit(features, labels).score(queries, classes)  # type: ignore[arg-type]

    def vectors(rows: Tensor) -> np.ndarray:
        array = rows.double().numpy()
        softmax = scipy.special.softmax(array, axis=1)
        out: np.ndarray = softmax if pmf == "softmax" else array / array.sum(1, keepdims=True)
        return out

    for row in range(40):
        mean = vectors(features[labels == classes[row]]).mean(0)
        expected = scipy.stats.entropy(vectors(queries[row : row + 1])[0], mean)
        assert float(found[row]) == pytest.approx(float(expected), abs=1e-10)


def test_the_divergence_is_zero_at_the_mean_and_positive_elsewhere() -> None:
    features, labels = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([0])
    metric = ClassKL("softmax").fit(features, labels)
    found = metric.score(torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]]), torch.tensor([0, 0]))
    assert float(found[0]) == pytest.approx(0.0, abs=1e-15)
    # softmax is (.09, .2447, .6652): (p3 - p1) * (3 - 1)
    assert float(found[1]) == pytest.approx(2 * (0.66524096 - 0.09003057), abs=1e-7)


def test_dead_units_and_zero_vectors_follow_the_documented_conventions() -> None:
    metric = ClassKL("sum").fit(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    queries = torch.tensor([[0.0, 5.0], [0.0, 0.0], [4.0, 0.0]])
    found = metric.score(queries, torch.zeros(3, dtype=torch.int64)).tolist()
    assert found[0] == pytest.approx(math.log(1e12))
    assert found[1] == pytest.approx(0.5 * math.log(0.5) + 0.5 * math.log(0.5e12))
    assert found[2] == 0.0


@pytest.mark.parametrize("make", [lambda: KernelDensity(1.5), ClassKL])
def test_a_restored_metric_scores_bit_equal(make: Make) -> None:
    features, labels = sample(60)
    queries, classes = sample(30, seed=2)
    fitted = make().fit(features, labels)
    restored = make().restore(fitted.state_dict())
    assert torch.equal(restored.score(queries, classes), fitted.score(queries, classes))


# torch's own forward mode is written in what torch warns of.
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
@pytest.mark.parametrize("resident", [0, 2**27])
@pytest.mark.parametrize("make", [lambda: KernelDensity(1.5), ClassKL])
def test_closeness_is_differentiable(
    make: Make, resident: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_RESIDENT", resident)
    monkeypatch.setattr(module, "CONVERTED", 4)
    features, labels = sample(30, 3)
    queries, classes = sample(4, 3, seed=2)
    metric = make().fit(features.double(), labels)

    def score(rows: Tensor) -> Tensor:
        return metric.score(rows, classes)

    assert torch.autograd.gradcheck(score, queries.double().requires_grad_())
    # A change along one query's row changes that row's score only, also in forward mode.
    along = torch.zeros_like(queries, dtype=torch.float64)
    along[0, 1] = 1.0
    slope = torch.func.jvp(score, (queries.double(),), (along,))[1]
    variable = queries.double().requires_grad_()
    (gradient,) = torch.autograd.grad(score(variable).sum(), variable)
    assert torch.allclose(slope[0], gradient[0, 1])
    assert torch.equal(slope[1:], torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("make", [lambda: KernelDensity(1.5), ClassKL])
def test_what_does_not_fit_is_refused(make: Make) -> None:
    features, labels = sample(30)
    with pytest.raises(NotFittedError, match=r"call fit\(features, labels\) first"):
        make().score(features, labels)
    metric = make().fit(features, labels)
    with pytest.raises(InputError, match="width 6 as in fit, got 5"):
        metric.score(features[:, :5], labels)
    with pytest.raises(InputError, match=r"classes from \[0, 1, 2\], got \[7\] too; fit"):
        metric.score(features, labels * 0 + 7)
    with pytest.raises(InputError, match="expected finite features"):
        metric.score(features / 0, labels)
    with pytest.raises(InputError, match=r"features \(N, D\).*got \(30, 3, 2\)"):
        metric.fit(features.view(30, 3, 2), labels)
    with pytest.raises(InputError, match=r"at least 1, got \(0, 6\)"):
        metric.fit(features[:0], labels[:0])
    with pytest.raises(InputError, match="floating-point torch.Tensor, got torch.int64"):
        metric.fit(features.long(), labels)
    with pytest.raises(InputError, match=r"shape \(30,\), got \(29,\)"):
        metric.fit(features, labels[1:])


def test_a_huge_whole_number_is_a_bandwidth_too() -> None:
    features, labels = sample(30)
    found = KernelDensity(10**12).fit(features, labels).score(features, labels)
    assert torch.equal(found, KernelDensity(1e12).fit(features, labels).score(features, labels))


def test_impossible_settings_are_refused() -> None:
    for bandwidth in (0.0, -1.0, math.nan, math.inf, 1e308, 1e-308, "silverman"):
        with pytest.raises(
            InputError, match="bandwidth from 1e-100 to 1e.100 or one of likelihood, "
        ):
            KernelDensity(bandwidth)  # type: ignore[arg-type]
    with pytest.raises(
        InputError, match="references per class as a whole number of at least 1, got 0"
    ):
        KernelDensity(1.0, references=0)
    with pytest.raises(InputError, match="\"float16\", got 'int8'"):
        KernelDensity(1.0, precision="int8")  # type: ignore[arg-type]
    with pytest.raises(InputError, match='"softmax" or "sum", got \'max\''):
        ClassKL("max")  # type: ignore[arg-type]
    with pytest.raises(InputError, match='at least 0 with pmf="sum", got -1'):
        ClassKL("sum").fit(torch.tensor([[-1.0, 2.0]]), torch.tensor([0]))


def leave_one_out(points: np.ndarray, bandwidth: float) -> float:
    """The mean log likelihood of each point under scikit-learn's estimate from the others."""
    total = 0.0
    for row in range(len(points)):
        others = np.delete(points, row, axis=0)
        peer = sklearn.neighbors.KernelDensity(bandwidth=bandwidth, leaf_size=len(others))
        total += float(peer.fit(others).score_samples(points[row : row + 1])[0])
    return total / len(points)


@pytest.mark.parametrize("width", [1, 6])
def test_the_likeliest_bandwidth_is_that_of_scikit_learns_left_out_points(width: int) -> None:
    features, labels = sample(90, width)
    found = KernelDensity("likelihood").fit(features, labels).bandwidth_[0]

    def likelihood(bandwidth: float) -> float:
        groups = [features[labels == label].double().numpy() for label in range(3)]
        return sum(leave_one_out(group, bandwidth) for group in groups)

    best = likelihood(found)
    for factor in (0.7, 0.95, 1.05, 1.4):
        assert likelihood(found * factor) < best


def test_each_class_can_have_a_bandwidth_of_its_own() -> None:
    features, labels = sample(300)
    features[labels == 1] *= 10
    one = KernelDensity("likelihood").fit(features, labels)
    each = KernelDensity("likelihood-per-class").fit(features, labels)
    assert len(set(one.bandwidth_.values())) == 1
    assert each.bandwidth_[1] > 5 * each.bandwidth_[0]
    alone = KernelDensity("likelihood").fit(features[labels == 1], labels[labels == 1])
    assert alone.bandwidth_[1] == each.bandwidth_[1]
    restored = KernelDensity("likelihood-per-class").restore(each.state_dict())
    assert restored.bandwidth_ == each.bandwidth_
    assert torch.equal(restored.score(features, labels), each.score(features, labels))


def test_the_bandwidth_scales_with_the_features_and_ignores_repetitions() -> None:
    features, labels = sample(120)
    found = KernelDensity("likelihood").fit(features, labels).bandwidth_[0]
    scaled = KernelDensity("likelihood").fit(features * 50, labels).bandwidth_[0]
    assert scaled == pytest.approx(50 * found, rel=2e-3)
    twice = KernelDensity("likelihood").fit(features.repeat(2, 1), labels.repeat(2))
    assert twice.bandwidth_[0] == pytest.approx(found, rel=2e-3)


def test_equal_features_have_no_likeliest_bandwidth() -> None:
    with pytest.raises(InputError, match=r"differ within a class, got only equal ones in \[0, 1\]"):
        KernelDensity().fit(torch.ones(8, 3), torch.arange(8) % 2)


def test_a_state_that_cannot_be_is_refused() -> None:
    state = KernelDensity(1.0).fit(*sample(30)).state_dict()
    with pytest.raises(InputError, match=r"3 bandwidths, one per class, got \(0,\); fit again"):
        KernelDensity().restore({**state, "bandwidths": state["bandwidths"][:0]})
    with pytest.raises(InputError, match="class counts of kernel_density that sum to 30, got"):
        KernelDensity().restore({**state, "counts": state["counts"] + 1})
    without = {name: tensor for name, tensor in state.items() if name != "points"}
    with pytest.raises(InputError, match="the tensor points of kernel_density, got none; fit"):
        KernelDensity().restore(without)


@pytest.mark.parametrize(
    "make",
    [lambda: KernelDensity("likelihood", references=20), lambda: KernelDensity(1.0), ClassKL],
)
def test_any_split_of_the_training_data_gives_the_same_metric(make: Make) -> None:
    features, labels = sample(300)
    queries, classes = sample(30, seed=2)
    whole = make().fit(features, labels)
    parts = [make() for _ in range(3)]
    for part, rows in zip(parts, torch.arange(300).split([30, 200, 70]), strict=True):
        part._add(features[rows], labels[rows])
    merged: Any = parts[0]
    merged.merge(parts[1])
    merged.merge(parts[2])
    merged.finish()
    assert torch.allclose(merged.score(queries, classes), whole.score(queries, classes), atol=1e-12)


def test_references_are_drawn_from_the_class_and_repeatable() -> None:
    features, labels = sample(300)
    few = KernelDensity(1.0, references=40, seed=3).fit(features, labels)
    for label, kept in few.reference_.items():
        rows = {tuple(row) for row in features[labels == label].tolist()}
        assert len(kept) == 40
        assert len({tuple(row) for row in kept.tolist()} & rows) == 40
    again = KernelDensity(1.0, references=40, seed=3).fit(features, labels)
    other = KernelDensity(1.0, references=40, seed=4).fit(features, labels)
    assert torch.equal(few.reference_[0], again.reference_[0])
    assert not torch.equal(few.reference_[0], other.reference_[0])
    whole = KernelDensity(1.0, references=1000).fit(features, labels)
    assert torch.equal(whole.reference_[0], features[labels == 0])


def test_half_precision_halves_the_file_and_barely_moves_the_density() -> None:
    features, labels = sample(300)
    half = KernelDensity(1.0, precision="float16").fit(features, labels)
    full = KernelDensity(1.0).fit(features, labels)
    assert half.points.dtype == torch.float16
    assert torch.allclose(
        half.score(features, labels), full.score(features, labels), atol=0.01, rtol=0
    )
    with pytest.raises(InputError, match="features within 65504 for float16, got 6.8"):
        KernelDensity(1.0, precision="float16").fit(features * 1e6, labels)


def test_loaded_states_and_written_bandwidths_are_seen() -> None:
    torch.manual_seed(0)
    points, labels = torch.rand(30, 4), torch.arange(30) % 3
    wide, narrow = (KernelDensity(b).fit(points, labels) for b in (1.0, 0.2))
    expected = narrow.score(points, labels)
    wide.load_state_dict(narrow.state_dict())
    assert torch.equal(wide.score(points, labels), expected)
    other = KernelDensity(1.0).fit(points, labels)
    other.bandwidths.fill_(0.2)
    assert torch.equal(other.score(points, labels), expected)
    whole = ClassKL().fit(points, labels)
    means = whole.means.clone()
    means[1:] = torch.nan
    whole.load_state_dict({"means": means})
    with pytest.raises(InputError, match=r"classes from \[0\], got \[1, 2\] too; fit"):
        whole.score(points, labels)
