"""Each metric of uncertainty against an independent computation, closed forms, laws and limits."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from leery import metrics
from leery.errors import InputError

Metric = Callable[[Tensor], Tensor]

ALL: list[Metric] = [
    metrics.confidence,
    metrics.predictive_entropy,
    metrics.variance,
    metrics.mutual_information,
    metrics.aleatoric,
    metrics.epistemic,
    metrics.scibilic,
    metrics.bhattacharyya,
]


def random_probs(seed: int, passes: int = 7, batch: int = 5, classes: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn((passes, batch, classes), generator=generator, dtype=torch.float64)
    return (3 * logits).softmax(-1)


def one_hot(*winners: int, classes: int = 4) -> Tensor:
    """One image, one one-hot pass for each winner."""
    return torch.eye(classes, dtype=torch.float64)[list(winners)].unsqueeze(1)


def slow(probs: Tensor) -> dict[str, list[float]]:
    """Every metric by scalar loops straight from its formula."""
    values = probs.tolist()
    passes, batch, classes = probs.shape
    table: dict[str, list[float]] = {metric.__name__: [] for metric in ALL}
    for image in range(batch):
        mean = [sum(values[t][image][c] for t in range(passes)) / passes for c in range(classes)]
        entropy = -sum(p * math.log(p) for p in mean if p > 0)
        inside = sum(-p * math.log(p) for t in range(passes) for p in values[t][image] if p > 0)
        spread = sum(
            (values[t][image][c] - mean[c]) ** 2 for t in range(passes) for c in range(classes)
        )
        noise = sum(p * (1 - p) for t in range(passes) for p in values[t][image])
        table["confidence"].append(max(mean))
        table["predictive_entropy"].append(entropy)
        table["mutual_information"].append(entropy - inside / passes)
        table["variance"].append(spread / passes / classes)
        table["epistemic"].append(spread / passes / classes)
        table["aleatoric"].append(noise / passes / classes)
        table["scibilic"].append(spread / noise)
        first, second, *_ = sorted(range(classes), key=lambda c: -mean[c])
        histograms = [
            np.histogram([values[t][image][c] for t in range(passes)], bins=20, range=(0, 1))[0]
            for c in (first, second)
        ]
        table["bhattacharyya"].append(float(np.sqrt(histograms[0] * histograms[1]).sum()) / passes)
    return table


@pytest.mark.parametrize("metric", ALL)
@pytest.mark.parametrize("seed", range(3))
def test_a_metric_equals_a_slow_loop_over_its_formula(metric: Metric, seed: int) -> None:
    probs = random_probs(seed)
    found = metric(probs)
    assert found.shape == (5,)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(slow(probs)[metric.__name__], abs=1e-12)


def test_entropy_and_mutual_information_equal_scipys() -> None:
    probs = random_probs(9)
    entropy = scipy.stats.entropy(probs.mean(0).numpy(), axis=-1)
    inside = scipy.stats.entropy(probs.numpy(), axis=-1).mean(0)
    assert np.allclose(metrics.predictive_entropy(probs).numpy(), entropy, atol=1e-12)
    assert np.allclose(metrics.mutual_information(probs).numpy(), entropy - inside, atol=1e-12)


CLOSED_FORMS: list[tuple[Metric, Tensor, float]] = [
    (metrics.confidence, one_hot(0, 0, 1, 1), 0.5),
    (metrics.confidence, one_hot(2), 1.0),
    (metrics.predictive_entropy, one_hot(0, 1, 2, 3), math.log(4)),
    (metrics.predictive_entropy, one_hot(1, 1), 0.0),
    (metrics.variance, one_hot(0, 1), 0.125),
    (metrics.variance, one_hot(3, 3, 3), 0.0),
    (metrics.mutual_information, one_hot(0, 1, 2, 3), math.log(4)),
    (metrics.mutual_information, torch.full((3, 1, 4), 0.25), 0.0),
    (metrics.aleatoric, torch.full((3, 1, 4), 0.25), 0.1875),
    (metrics.aleatoric, one_hot(0, 1), 0.0),
    (metrics.epistemic, one_hot(0, 1), 0.125),
    (metrics.scibilic, one_hot(1, 1), 0.0),
    (metrics.scibilic, one_hot(0, 1), math.inf),
    (metrics.scibilic, torch.full((2, 1, 4), 0.25), 0.0),
    (metrics.bhattacharyya, one_hot(2, 2), 0.0),
    (metrics.bhattacharyya, one_hot(0, 1), 1.0),
    (metrics.bhattacharyya, one_hot(0, 0, 0, 1), math.sqrt(3 / 4 * 1 / 4) * 2),
    (metrics.bhattacharyya, torch.ones(3, 1, 1), 0.0),
]


@pytest.mark.parametrize(("metric", "probs", "expected"), CLOSED_FORMS)
def test_closed_forms_and_limits(metric: Metric, probs: Tensor, expected: float) -> None:
    assert metric(probs).tolist() == pytest.approx([expected], abs=1e-15)


@pytest.mark.parametrize("metric", ALL)
@given(seed=st.integers(0, 2**31), passes=st.integers(1, 9), classes=st.integers(1, 12))
def test_laws(metric: Metric, seed: int, passes: int, classes: int) -> None:
    probs = random_probs(seed, passes, 3, classes)
    found = metric(probs)
    order = torch.randperm(passes, generator=torch.Generator().manual_seed(seed))
    names = torch.randperm(classes, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(metric(probs[order]), found, atol=1e-12)
    assert torch.allclose(metric(probs[:, :, names]), found, atol=1e-12)
    assert torch.allclose(metric(probs.repeat(2, 1, 1)), found, atol=1e-12)
    assert torch.allclose(metric(probs[:, 1:2]), found[1:2], atol=1e-12)
    low, high = {
        "confidence": (1 / classes, 1.0),
        "predictive_entropy": (0.0, math.log(classes)),
        "mutual_information": (0.0, math.log(classes)),
        "scibilic": (0.0, math.inf),
        "bhattacharyya": (0.0, 1.0),
    }.get(metric.__name__, (0.0, 0.25))
    assert float(found.min()) >= low - 1e-12
    assert float(found.max()) <= high + 1e-12


@given(seed=st.integers(0, 2**31))
def test_total_variance_is_aleatoric_plus_epistemic(seed: int) -> None:
    probs = random_probs(seed)
    mean = probs.mean(0)
    total = (mean * (1 - mean)).mean(-1)
    assert torch.allclose(metrics.aleatoric(probs) + metrics.epistemic(probs), total, atol=1e-12)


@pytest.mark.parametrize("metric", [metrics.variance, metrics.mutual_information])
def test_one_pass_and_equal_passes_have_no_spread(metric: Metric) -> None:
    assert metric(random_probs(1, passes=1)).tolist() == pytest.approx([0.0] * 5, abs=1e-15)
    repeated = random_probs(1, passes=1).repeat(6, 1, 1)
    assert metric(repeated).tolist() == pytest.approx([0.0] * 5, abs=1e-15)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("metric", ALL)
def test_lower_precision_is_taken_and_computed_in_float64(
    metric: Metric, dtype: torch.dtype
) -> None:
    if dtype is torch.float32:
        probs = random_probs(2).to(dtype)
    else:
        probs = torch.full((2, 3, 4), 0.25, dtype=dtype)
    assert metric(probs).dtype == torch.float64
    assert torch.equal(metric(probs), metric(probs.double()))


@pytest.mark.parametrize("metric", ALL)
def test_a_metric_is_differentiable(metric: Metric) -> None:
    logits = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda z: metric(z.softmax(-1)), logits.requires_grad_(), atol=1e-6
    )


@pytest.mark.parametrize("metric", ALL)
@pytest.mark.parametrize(
    ("probs", "text"),
    [
        (torch.rand(3, 4), r"\(passes, batch, classes\), got shape \(3, 4\)"),
        (torch.zeros(0, 2, 3), r"got shape \(0, 2, 3\)"),
        (torch.zeros(2, 2, 0), r"got shape \(2, 2, 0\)"),
        (torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0)), "apply softmax"),
        (torch.full((1, 1, 2), float("nan")), "got elements in nan..nan"),
        (torch.tensor([[[1.5, -0.5]]]), r"got elements in -0.5..1.5"),
        (torch.ones(1, 1, 2, dtype=torch.int64), "floating-point torch.Tensor, got torch.int64"),
        ([[[1.0]]], "floating-point torch.Tensor, got list"),
    ],
)
def test_what_is_no_probabilities_is_refused(metric: Metric, probs: Tensor, text: str) -> None:
    with pytest.raises(InputError, match=text):
        metric(probs)


def test_the_direction_of_each_metric_is_that_of_doubt() -> None:
    """Passes that agree and are sure against passes that disagree and are not."""
    torch.manual_seed(0)
    sure = (one_hot(1, 1, 1) + 0.01) / 1.04
    doubtful = (one_hot(0, 1, 2) + 1) / 5
    for metric in ALL:
        expected = "larger" if metric(doubtful) > metric(sure) else "smaller"
        assert metrics.make_metrics([metric.__name__])[0].direction == expected
