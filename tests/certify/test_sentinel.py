"""The sentinel: what its certificates prove, its training, its threshold, what it refuses."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import leery.training
from leery.attacks import PGD
from leery.certify import Box, Sentinel, margin_bounds
from leery.certify._refine import certified_by_splitting
from leery.classifiers import pretrained
from leery.errors import InputError, NotFittedError, UnsupportedModelError
from leery.models import predict
from leery.training import FitParts, SentinelNetwork, SentinelRecipe
from leery.training._sentinel import _Run, without_dead_units

Batch = tuple[Tensor, Tensor]

QUICK = SentinelRecipe(
    epsilon=0.1, width=8, hidden=32, epochs=10, batch_size=64, learning_rate=3e-3
)


@pytest.fixture(scope="module")
def sentinel(training_digits: Batch, digits: Batch) -> Sentinel:
    """A sentinel of the digit classifier, trained on few digits."""
    images, labels = (part[:3000] for part in training_digits)
    made = Sentinel(pretrained("mnist").model, recipe=QUICK).fit(images, labels)
    return made.calibrate(*held(digits))


def held(digits: Batch) -> Batch:
    return digits[0][:2000], digits[1][:2000]


def judged(digits: Batch, count: int = 500) -> Batch:
    return digits[0][2000 : 2000 + count], digits[1][2000 : 2000 + count]


def points_near(images: Tensor, epsilon: float, count: int) -> list[Tensor]:
    """Random points of the balls around images, every second one a corner."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for number in range(count):
        move = 2 * torch.rand(images.shape, generator=generator) - 1
        move = move.sign() if number % 2 else move
        found.append((images + epsilon * move).clamp(0, 1))
    return found


def last_layer(network: SentinelNetwork) -> nn.Linear:
    last = network.layers[8]
    assert isinstance(last, nn.Linear)
    return last


@torch.no_grad()
def smallest_margins(sentinel: Sentinel, images: Tensor, labels: Tensor) -> Tensor:
    """The label's logit minus the largest other one, whatever the classifier predicts."""
    return -sentinel.score_of(images, labels)


def test_the_score_compares_the_predicted_class_with_the_others(
    sentinel: Sentinel, digits: Batch
) -> None:
    images, _ = judged(digits, 50)
    logits = sentinel.network_(images)
    predicted = predict(sentinel.model, images)
    expected = [
        max(float(value) for place, value in enumerate(row) if place != own) - float(row[own])
        for row, own in zip(logits, predicted.tolist(), strict=True)
    ]
    score = sentinel.score(images)
    assert np.allclose(score, expected)
    assert (sentinel.flag(images) == (score > sentinel.thresholds_[predicted])).all()
    assert np.array_equal(sentinel.score([images[:20], images[20:]]), score)


def test_the_threshold_keeps_its_rate(sentinel: Sentinel, digits: Batch) -> None:
    images, labels = digits[0][2000:], digits[1][2000:]
    right = predict(sentinel.model, images) == labels
    # The rate of 1 % has a standard error of .2 points over sets of 2,000 calibration images.
    assert 0.002 < sentinel.flag(images[right]).mean() < 0.02
    assert sentinel.calibration_ is not None
    assert sentinel.calibration_.right_only


@pytest.mark.parametrize("epsilon", [0.05, 0.1])
def test_no_point_of_a_certified_ball_has_another_class_unflagged(
    sentinel: Sentinel, digits: Batch, epsilon: float
) -> None:
    images, labels = judged(digits)
    certified = torch.from_numpy(sentinel.certify(images, labels, epsilon=epsilon))
    assert certified.sum() > 100
    images, labels = images[certified], labels[certified]
    threshold = float(sentinel.thresholds_[0])
    attacked = [
        PGD(epsilon, steps=20)(network, images, labels, seed=1)
        for network in (sentinel.model, sentinel.network_)
    ]
    for points in (*points_near(images, epsilon, 40), *attacked):
        # Stronger than the claim: any classifier at all could be in the place of this one.
        assert bool((smallest_margins(sentinel, points, labels) > threshold).all())
        fooled = torch.from_numpy(~sentinel.flag(points)) & (
            predict(sentinel.model, points) != labels
        )
        assert not bool(fooled.any())


def test_an_attack_breaks_what_is_not_certified(sentinel: Sentinel, digits: Batch) -> None:
    images, labels = judged(digits)
    certified = sentinel.certify(images, labels, epsilon=0.1, boxes=64)
    points = PGD(0.1, steps=40)(sentinel.network_, images, labels)
    broken = (smallest_margins(sentinel, points, labels) <= float(sentinel.thresholds_[0])).numpy()
    assert not (certified & broken).any()
    # What is neither proved nor broken is the gap of the bounds and of the attack.
    assert (~certified & broken).sum() > 0.5 * (~certified).sum()


def test_the_sentinel_flags_no_point_where_it_cannot_alarm(
    sentinel: Sentinel, digits: Batch
) -> None:
    images, labels = judged(digits)
    silent = torch.from_numpy(sentinel.cannot_alarm(images, labels, epsilon=0.1))
    certified = sentinel.certify(images, labels, epsilon=0.1)
    assert silent.sum() > certified.sum() > 0
    for points in points_near(images[silent], 0.1, 20):
        kept = predict(sentinel.model, points) == labels[silent]
        assert not bool((torch.from_numpy(sentinel.flag(points)) & kept).any())


def test_a_radius_is_certified_and_the_next_thousandth_is_not(
    sentinel: Sentinel, digits: Batch
) -> None:
    images, labels = judged(digits, 200)
    radius = sentinel.radius(images, labels)
    found = torch.from_numpy(radius)
    assert sentinel.certify(images, labels, epsilon=found)[radius > 0].all()
    assert not sentinel.certify(images, labels, epsilon=found + 2**-10).any()
    assert ((radius >= 0.1) == sentinel.certify(images, labels, epsilon=0.1)).mean() > 0.99


def test_splitting_proves_more_and_nothing_that_is_false(sentinel: Sentinel, digits: Batch) -> None:
    images, labels = judged(digits, 200)
    plain, few, more = (
        sentinel.certify(images, labels, epsilon=0.1, boxes=boxes) for boxes in (1, 8, 64)
    )
    assert (plain <= few).all()
    assert (few <= more).all()
    assert plain.sum() < few.sum() < more.sum()
    new = torch.from_numpy(more & ~plain)
    threshold = float(sentinel.thresholds_[0])
    attacked = PGD(0.1, steps=50)(sentinel.network_, images[new], labels[new])
    for points in (*points_near(images[new], 0.1, 50), attacked):
        assert bool((smallest_margins(sentinel, points, labels[new]) > threshold).all())


def test_splitting_decides_small_networks_as_a_grid_of_points_does() -> None:
    generator = torch.Generator().manual_seed(0)
    decided = 0
    for seed in range(20):
        network = SentinelNetwork((1, 4, 4), 2, width=4, hidden=8)
        network.initialise(torch.Generator().manual_seed(seed)).double().eval()
        centre = torch.rand(1, 1, 4, 4, generator=generator).double()
        # Two pixels vary, so that a grid of points shows the smallest margin nearly exactly.
        radius = torch.zeros_like(centre)
        radius[0, 0, 1, 1:3] = 0.5
        box, labels = Box(centre - radius, centre + radius), torch.zeros(1, dtype=torch.int64)
        share = torch.linspace(-1, 1, 41).double()
        steps = torch.cartesian_prod(share, share)
        points = centre.repeat(len(steps), 1, 1, 1)
        points[:, 0, 1, 1:3] += 0.5 * steps
        with torch.no_grad():
            logits = network(points)
            smallest = float((logits[:, 0] - logits[:, 1]).min())
            bound = float(network.margins(box, labels)[0, 1])
            for gap, expected in ((0.005, True), (-0.005, False)):
                least = torch.tensor([0.0, smallest - gap]).double()
                found = certified_by_splitting(network, box, labels, least, 4096)
                assert bool(found[0]) == expected
        decided += bound < smallest - 0.005
    # For some networks the bound of the whole box does not suffice.
    assert decided > 5


def test_thresholds_per_class_are_those_of_the_wrong_class(
    sentinel: Sentinel, digits: Batch
) -> None:
    images, labels = judged(digits)
    own = Sentinel(sentinel.model).restored(sentinel.network_, sentinel.inputs_)
    own.calibrate(*held(digits), fpr=0.02, per_class=True)
    least = torch.from_numpy(own.thresholds_)
    assert len(least.unique()) == 10
    found = own.certify(images, labels, epsilon=0.05)
    margins = own.network_.margins(Box.around(images, 0.05), labels)
    for row, label in enumerate(labels.tolist()):
        others = [other for other in range(10) if other != label]
        proved = all(float(margins[row, other]) > float(least[other]) for other in others)
        assert found[row] == proved
    silent = own.cannot_alarm(images, labels, epsilon=0.05)
    for points in points_near(images, 0.05, 10):
        kept = (predict(own.model, points) == labels).numpy()
        assert not (own.flag(points) & kept & silent).any()


def test_the_differentiable_score_is_the_score_and_sees_through_the_ramp(
    sentinel: Sentinel, digits: Batch
) -> None:
    images = judged(digits, 20)[0].requires_grad_()
    found = sentinel.differentiable_score(images)
    assert np.allclose(found.detach().numpy(), sentinel.score(images.detach()), atol=1e-12)
    (slopes,) = torch.autograd.grad(found.sum(), images)
    assert sentinel.network_.ramp
    # Where the ramp is flat too, an attack is told the way.
    assert float((slopes != 0).double().mean()) > 0.9


def test_scores_are_those_of_float32_wherever_it_means_float32(
    sentinel: Sentinel, digits: Batch
) -> None:
    images, labels = judged(digits)
    assert sentinel.network_.low.dtype == torch.float32
    short, score = (
        sentinel.network_.margins(Box.around(images, 0.1), labels),
        sentinel.score(images),
    )
    exact = Sentinel(sentinel.model).restored(deepcopy(sentinel.network_), sentinel.inputs_)
    for part in (getattr(torch.backends.mkldnn, kind) for kind in ("matmul", "conv")):
        before, part.fp32_precision = part.fp32_precision, "bf16"
        try:
            assert exact.network_.low.dtype == torch.float64
            wide = exact.network_.margins(Box.around(images, 0.1), labels)
        finally:
            part.fp32_precision = before
        assert exact.network_.low.dtype == torch.float32
    others = torch.arange(10) != labels.unsqueeze(1)
    # The bounds in float32 give their rounding errors away, and not much more.
    assert bool((short < wide)[others].all())
    assert float((wide - short)[others].max()) < 0.05
    assert np.array_equal(exact.score(images), score)


def test_what_onednn_is_told_to_shorten_is_computed_in_float64(
    sentinel: Sentinel, digits: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = digits[0][:20]
    expected = sentinel.score(images)
    own = Sentinel(sentinel.model).restored(deepcopy(sentinel.network_), sentinel.inputs_)
    monkeypatch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", "BF16")
    assert own.network_.low.dtype == torch.float64
    assert np.allclose(own.score(images), expected, atol=1e-4)
    monkeypatch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", "STRICT")
    assert own.network_.low.dtype == torch.float32


def test_the_class_and_the_verdict_on_it_come_from_one_run(
    sentinel: Sentinel, digits: Batch
) -> None:
    images, _ = judged(digits)
    classes, flagged = sentinel.judge(images)
    assert np.array_equal(classes, predict(sentinel.model, images).numpy())
    assert np.array_equal(flagged, sentinel.flag(images))

    class Unsteady(nn.Module):
        """Gives another class at every call."""

        calls = 0

        def forward(self, images: Tensor) -> Tensor:
            Unsteady.calls += 1
            return nn.functional.one_hot(torch.full((len(images),), self.calls % 10), 10).float()

    own = Sentinel(Unsteady(), recipe=QUICK).restored(
        sentinel.network_, sentinel.inputs_, sentinel.calibration_
    )
    verdicts = set()
    for _ in range(20):
        classes, flagged = own.judge(images[:1])
        score = own.score_of(images[:1], torch.from_numpy(classes))
        assert flagged[0] == (float(score) > own.thresholds_[classes[0]])
        verdicts.add(bool(flagged[0]))
    assert verdicts == {True, False}


def test_what_is_not_a_number_proves_nothing(sentinel: Sentinel, digits: Batch) -> None:
    images, labels = judged(digits, 20)
    for spoil in (float("nan"), float("inf")):
        network = deepcopy(sentinel.network_)
        last_layer(network).weight.data[3, 5] = spoil
        own = Sentinel(sentinel.model).restored(network, sentinel.inputs_, sentinel.calibration_)
        for boxes in (1, 4):
            assert not own.certify(images, labels, epsilon=0.3, boxes=boxes).any()
        assert not own.cannot_alarm(images, labels, epsilon=0.3).any()
        with pytest.raises(InputError, match="expected finite weights of a sentinel"):
            Sentinel.of_parts(sentinel.model, *own.parts(), sentinel.inputs_)


def test_a_file_holds_weights_of_any_precision_exactly(sentinel: Sentinel, digits: Batch) -> None:
    network = deepcopy(sentinel.network_)
    last_layer(network).weight.data += 1e-5
    own = Sentinel(sentinel.model).restored(network, sentinel.inputs_, sentinel.calibration_)
    read = Sentinel.of_parts(sentinel.model, *own.parts(), sentinel.inputs_)
    assert np.array_equal(read.score(digits[0][:50]), own.score(digits[0][:50]))


def test_a_training_does_not_depend_on_the_order_of_the_images(training_digits: Batch) -> None:
    images, labels = (part[:300] for part in training_digits)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    recipe = replace(QUICK, epochs=2)
    first, second = (
        Sentinel(pretrained("mnist").model, recipe=recipe).fit(images[rows], labels[rows])
        for rows in (torch.arange(300), order)
    )
    for name, tensor in first.network_.state_dict().items():
        assert torch.equal(tensor, second.network_.state_dict()[name])
        assert torch.equal(tensor, tensor.half().float())


def test_hidden_units_that_are_never_active_are_removed(digits: Batch) -> None:
    images = digits[0][:200]
    network = SentinelNetwork((1, 28, 28), 10, hidden=30)
    network.initialise(torch.Generator().manual_seed(0))
    hidden = network.layers[6]
    assert isinstance(hidden, nn.Linear)
    with torch.no_grad():
        # Inactive everywhere; inactive on the images, but not in the boxes; active.
        hidden.bias[:10], hidden.bias[10:20], hidden.bias[20:] = -100, 0, 100
        inner = network.layers[:7](images)[:, 10:20]
        hidden.bias[10:20] = -inner.amax(0) - 1e-4
        before = network.requires_grad_(requires_grad=False)(images)
        without_dead_units(network, images, 0.05, batch_size=128)
    assert network.hidden == 20
    assert torch.allclose(network(images), before, atol=1e-4)


@pytest.mark.parametrize(("bias", "left"), [(-1000.0, 1), (float("nan"), 30)])
def test_a_network_that_learned_nothing_keeps_its_layers(
    digits: Batch, bias: float, left: int
) -> None:
    network = SentinelNetwork((1, 28, 28), 10, hidden=30)
    network.initialise(torch.Generator().manual_seed(0)).requires_grad_(requires_grad=False)
    hidden = network.layers[6]
    assert isinstance(hidden, nn.Linear)
    hidden.bias[:] = bias
    without_dead_units(network, digits[0][:100], 0.05, batch_size=30)
    assert network.hidden == left
    assert network(digits[0][:5]).shape == (5, 10)


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
def test_scores_without_gradients_are_those_with_gradients(
    sentinel: Sentinel, digits: Batch
) -> None:
    images, network = digits[0][:50], sentinel.network_
    predicted = predict(sentinel.model, images)
    logits = network(images)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.allclose(network.quick(images), logits, atol=1e-5)
            assert network.quick(images[:0]).shape == (0, 10)
            with torch.backends.mkldnn.flags(enabled=False):
                assert torch.allclose(network.quick(images), logits, atol=1e-5)
    with_gradients = sentinel.score_of(images, predicted)
    assert np.allclose(sentinel.score(images), with_gradients, atol=1e-5)


def test_boxes_have_no_influence_on_a_training_without_bounds(
    training_digits: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []

    def counting(network: nn.Sequential, box: Box, labels: Tensor) -> Tensor:
        counted.append(len(labels))
        return margin_bounds(network, box, labels)

    monkeypatch.setattr(leery.training._sentinel, "margin_bounds", counting)
    images, labels = (part[:300] for part in training_digits)
    model = pretrained("mnist").model
    for clean_weight in (1.0, 0.5):
        recipes = (
            replace(QUICK, epochs=1, clean_weight=clean_weight, epsilon=epsilon)
            for epsilon in (0.1, 0.3)
        )
        first, second = (
            last_layer(Sentinel(model, recipe=recipe).fit(images, labels).network_).weight
            for recipe in recipes
        )
        assert torch.equal(first, second) == (clean_weight == 1)
        assert bool(counted) == (clean_weight < 1)


def test_a_stopped_training_is_resumed_and_gives_the_same_network(
    tmp_path: Path, training_digits: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = (part[:300] for part in training_digits)
    recipe = replace(QUICK, epochs=11)
    made = Sentinel(pretrained("mnist").model, recipe=recipe)
    whole = made.fit(images, labels).network_.state_dict()
    original = _Run.through
    run: list[range] = []

    def stops(self: _Run, epochs: range) -> dict[str, Tensor]:
        if epochs[0] == 10 and len(run) == 2:
            raise KeyboardInterrupt
        run.append(epochs)
        return original(self, epochs)

    monkeypatch.setattr(_Run, "through", stops)
    with pytest.raises(KeyboardInterrupt):
        made.fit(images, labels, parts=FitParts(tmp_path / "parts"))
    run.append(range(0))
    made.fit(images, labels, parts=FitParts(tmp_path / "parts", resume=True))
    assert [len(epochs) for epochs in run] == [5, 5, 0, 1]
    for name, tensor in made.network_.state_dict().items():
        assert torch.equal(tensor, whole[name])


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.enable_grad])
def test_certificates_are_the_same_in_any_mode_of_torch(
    sentinel: Sentinel, digits: Batch, mode: Callable[[], AbstractContextManager[None]]
) -> None:
    images, labels = judged(digits, 100)
    expected = sentinel.certify(images, labels, epsilon=0.1, boxes=8)
    bounds = sentinel.network_.margins(Box.around(images, 0.1), labels)
    with mode(), torch.autocast("cpu"):
        assert torch.equal(sentinel.network_.margins(Box.around(images, 0.1), labels), bounds)
        found = sentinel.certify(images.clone(), labels, epsilon=0.1, boxes=8)
        score = sentinel.score(images.clone())
    assert np.array_equal(found, expected)
    assert np.array_equal(score, sentinel.score(images))


def test_images_keep_their_type(training_digits: Batch) -> None:
    images, labels = training_digits[0][:300].double(), training_digits[1][:300]
    model = pretrained("mnist").model.double()
    own = Sentinel(model, recipe=replace(QUICK, epochs=1)).fit(images, labels)
    assert own.inputs_.dtype == torch.float64
    assert own.score(images[:5]).shape == (5,)


def test_recipes_suit_black_and_white_images_and_others(digits: Batch) -> None:
    chosen = SentinelRecipe().suited_to(digits[0][:500])
    assert (chosen.ramp, chosen.epsilon) == (True, 0.3)
    grey = SentinelRecipe().suited_to(0.3 + 0.4 * digits[0][:500])
    assert (grey.ramp, grey.epsilon) == (False, 0.05)
    kept = SentinelRecipe(ramp=False, epsilon=0.2).suited_to(digits[0][:500])
    assert (kept.ramp, kept.epsilon) == (False, 0.2)


def test_pixels_of_another_range_are_certified_in_their_own_units(
    sentinel: Sentinel, digits: Batch
) -> None:
    images, labels = judged(digits, 100)

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = sentinel.model

        def forward(self, pixels: Tensor) -> Tensor:
            logits: Tensor = self.inner(pixels / 200)
            return logits

    network = SentinelNetwork(
        (1, 28, 28),
        10,
        pixels=(0.0, 200.0),
        ramp=True,
        width=8,
        hidden=sentinel.network_.hidden,
    )
    weights = {
        name: tensor
        for name, tensor in sentinel.network_.state_dict().items()
        if name not in ("low", "span")
    }
    network.load_state_dict(weights, strict=False)
    inputs = replace(sentinel.inputs_, bounds=(0.0, 200.0))
    wide = Sentinel(Scaled().eval()).restored(network, inputs, sentinel.calibration_)
    assert np.allclose(wide.score(200 * images), sentinel.score(images), atol=1e-4)
    same = wide.certify(200 * images, labels, epsilon=10) == sentinel.certify(
        images, labels, epsilon=0.05
    )
    assert same.mean() > 0.98
    assert np.allclose(
        wide.radius(200 * images, labels), 200 * sentinel.radius(images, labels), atol=0.4
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda one, x, y: one.certify(x, y, epsilon=-0.1), "a finite epsilon of at least 0"),
        (
            lambda one, x, y: one.certify(x, y, epsilon=float("nan")),
            "a finite epsilon of at least 0",
        ),
        (lambda one, x, y: one.certify(x, y, epsilon=-1e-9), "a finite epsilon of at least 0"),
        (lambda one, x, y: one.certify(x, y, epsilon=torch.ones(3)), "one for each of 20 images"),
        (lambda one, x, y: one.certify(x, y, epsilon="a"), "one epsilon, .*, got str"),
        (lambda one, x, y: one.certify(x, y[:5], epsilon=0.1), "one label per image"),
        (lambda one, x, y: one.certify(x, y + 1, epsilon=0.1), "labels to be 0..9"),
        (lambda one, x, y: one.certify(x + 0.1, y, epsilon=0.1), "pixels within the bounds"),
        (lambda one, x, y: one.certify(x[:, :, 1:], y, epsilon=0.1), "inputs as in the fit"),
        (lambda one, x, y: one.certify(x, y, epsilon=0.1, boxes=0), "boxes as a whole number"),
        (lambda one, x, y: one.calibrate(x, y, fpr=0), "a false-alarm rate between 0 and 1"),
        (lambda one, x, y: one.calibrate(x, y, fpr=0.0001), "at least 9999 clean images"),
        (lambda one, x, _: one.fit(x), "training images with labels for a sentinel, got no"),
        (lambda one, x, y: one.fit(x.long(), y), "floating-point training images"),
        (lambda one, x, y: one.fit(x.flatten(1), y), "images .N, channels, height, width."),
        (lambda one, x, y: one.fit(2 * x, y), "known pixel bounds for a certificate"),
        (lambda one, x, y: one.fit(x, y + 1), "labels to be 0..9"),
    ],
)
def test_what_does_not_fit_is_refused(
    sentinel: Sentinel,
    digits: Batch,
    call: Callable[[Sentinel, Tensor, Tensor], object],
    message: str,
) -> None:
    own = Sentinel(sentinel.model, recipe=QUICK).restored(
        sentinel.network_, sentinel.inputs_, sentinel.calibration_
    )
    images, labels = digits[0][:20], digits[1][:20].clone()
    labels[0] = 9
    with pytest.raises(InputError, match=message):
        call(own, images, labels)


def test_steps_in_the_wrong_order_are_refused(sentinel: Sentinel, digits: Batch) -> None:
    fresh = Sentinel(sentinel.model)
    assert "not fitted" in repr(fresh)
    with pytest.raises(NotFittedError, match="fit"):
        fresh.score(digits[0][:5])
    fresh.restored(sentinel.network_, sentinel.inputs_)
    with pytest.raises(NotFittedError, match="calibrate"):
        fresh.certify(digits[0][:5], digits[1][:5], epsilon=0.1)
    assert repr(sentinel) == "Sentinel(DigitNet: fitted, false-alarm rate 0.01)"


def test_training_images_are_refused_at_the_calibration(
    sentinel: Sentinel, training_digits: Batch
) -> None:
    with pytest.raises(InputError, match="not among the training images, got 400 of 400"):
        sentinel.calibrate(training_digits[0][:400], training_digits[1][:400])


def test_a_classifier_with_more_classes_is_refused(sentinel: Sentinel, digits: Batch) -> None:
    last = nn.Linear(784, 12)
    with torch.no_grad():
        last.bias[11] = 1e3
    wide = nn.Sequential(nn.Flatten(), last).eval()
    own = Sentinel(wide).restored(sentinel.network_, sentinel.inputs_)
    with pytest.raises(UnsupportedModelError, match="the sentinel's 10 classes, got class 11"):
        own.score(digits[0][:5])
