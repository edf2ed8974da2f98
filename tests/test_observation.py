"""Needs, views and the one run that answers them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from leery import PAPER_METRICS, Detector
from leery.errors import InputError, UnknownLayerError
from leery.mc_dropout import MCDropout
from leery.metrics import FitContext, KernelDensity, Metric, NoiseConsistency
from leery.models import extract_features, normalized
from leery.observation import EACH, HEAD, Needs, Observation, Observer, Scorer, View
from tests.conftest import Batch
from tests.mc_dropout.reference import plain_loop

NOISE = View("noise", lambda images, g, _: images + torch.randn(images.shape[1:], generator=g))
HALF = View("half", lambda images, *_: images / 2)


def observed(observer: Observer, images: Tensor) -> Observation:
    return Observation.joined(list(observer.stream(images)))


def test_the_needs_of_two_metrics_are_one_run() -> None:
    both = Needs(passes=True, layers=("a", HEAD)) | Needs(layers=(HEAD, "b"), views=(NOISE,))
    assert both == Needs(passes=True, layers=("a", HEAD, "b"), views=(NOISE,))
    assert both.draws
    assert Needs(pass_layers=("a",)).draws
    assert not Needs(layers=("a",), gradients=True).draws


def test_one_run_gives_all_that_was_needed(digit_net: nn.Module, digits: Batch) -> None:
    images = digits[0][:30]
    needs = Needs(passes=True, layers=(HEAD, "hidden.0"), views=(HALF,))
    found = Observer.find(digit_net, needs, images, None)
    seen = observed(Observer(digit_net, needs, **found, passes=4), images)
    features, logits = extract_features(digit_net, images, "input of classify.1")
    assert torch.allclose(seen.layers[HEAD], features, atol=1e-5)
    assert torch.allclose(seen.layers["hidden.0"].relu(), features, atol=1e-5)
    assert torch.allclose(seen.logits, logits, atol=1e-4)
    assert torch.equal(seen.predicted, logits.argmax(1))
    assert torch.allclose(seen.probs, MCDropout(digit_net, 4).sample(images), atol=1e-6)
    with torch.no_grad():
        halves = digit_net(images / 2)
    assert torch.allclose(seen.views[HALF].logits, halves, atol=1e-4)
    assert torch.equal(seen.views[HALF].images, images / 2)
    assert torch.allclose(seen.classifier(images), logits, atol=1e-4)


@pytest.mark.parametrize("passes", [False, True])
def test_each_batch_has_the_images_that_its_logits_are_of(
    passes: bool, digit_net: nn.Module, digits: Batch
) -> None:
    images = digits[0][:50]
    observer = Observer(digit_net, Needs(passes=passes, views=(HALF,)), passes=2, batch_size=20)
    parts = list(observer.stream(images))
    assert len(parts) == 3
    assert torch.equal(torch.cat([part.images for part in parts]), images)
    assert torch.equal(torch.cat([part.views[HALF].images for part in parts]), images / 2)
    for part in parts:
        assert torch.allclose(digit_net(part.images), part.logits, atol=1e-5)
        assert torch.allclose(digit_net(part.images / 2), part.views[HALF].logits, atol=1e-5)


@pytest.mark.parametrize("layer", ["hidden", "input of classify.1", "convolutions.2"])
def test_layers_in_each_pass_are_those_of_the_plain_loop(
    digit_net: nn.Module, digits: Batch, layer: str
) -> None:
    images = digits[0][:5]
    sampler = MCDropout(digit_net, 3, pass_layers=[layer])
    seen = sampler.observe(images)
    assert sampler.explain_plan(images).way == "graph"
    prepared = sampler._prepare(images)
    for index in range(3):
        _, layers = prepared.loop.one_pass_and_layers(images, prepared.masks, index, [layer])
        assert torch.allclose(seen.pass_layers[layer][index], layers[layer], atol=1e-4)
    assert torch.allclose(seen.probs, plain_loop(sampler, images), atol=1e-5)
    differs = not torch.allclose(seen.pass_layers[layer][0], seen.pass_layers[layer][1])
    assert differs == (layer != "convolutions.2")


def test_what_was_not_needed_is_an_error_by_name(digit_net: nn.Module, digits: Batch) -> None:
    seen = observed(Observer(digit_net, Needs(layers=("hidden",))), digits[0][:3])
    with pytest.raises(InputError, match=r"reads 'convolutions' .*add it to its Needs\(layers="):
        seen.layers["convolutions"]
    with pytest.raises(InputError, match=r"reads passes without declaring it; add Needs\(passes"):
        _ = seen.probs
    with pytest.raises(InputError, match=r"reads 'noise' .*Needs\(views="):
        seen.views[NOISE]


def test_each_layer_is_every_submodule_that_gives_a_tensor_per_image(
    digit_net: nn.Module, digits: Batch
) -> None:
    needs = Needs(layers=(EACH,))
    found = Observer.find(digit_net, needs, digits[0][:9], None)
    assert found["each"] == (
        "convolutions.0", "convolutions.1", "convolutions.2", "convolutions.3", "convolutions.4",
        "hidden.0", "hidden.1",
    )  # fmt: skip
    seen = observed(Observer(digit_net, needs, **found), digits[0][:9])
    assert [tuple(seen.layers[name].shape[:1]) for name in seen.each] == [(9,)] * 7
    flat = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    with pytest.raises(
        UnknownLayerError, match="submodules that return a tensor with a row per image, got none"
    ):
        Observer.find(flat, needs, digits[0][:3], None)


def test_a_view_is_drawn_once_from_the_seed_the_same_for_every_image() -> None:
    images = torch.full((3, 1, 4, 4), 0.5)
    one, again, other = (NOISE.images(images, seed=seed, bounds=(0.0, 1.0)) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(one[0], one[2])
    assert float(one.min()) >= 0
    assert float(one.max()) <= 1
    unbounded = NOISE.images(images, seed=1, bounds=None)
    assert float(unbounded.abs().max()) > 1
    alone = NOISE.images(images[:1], seed=1, bounds=(0.0, 1.0))
    assert torch.equal(alone[0], one[0])


def test_bounds_per_channel_cut_a_view() -> None:
    images = torch.zeros(2, 2, 3, 3)
    made = NOISE.images(images, seed=0, bounds=((-0.1, 0.1), (-2.0, 0.0)))
    assert float(made[:, 0].abs().max()) == pytest.approx(0.1)
    assert float(made[:, 1].max()) == 0.0
    with pytest.raises(InputError, match=r"bounds for each channel .* got 3 pairs"):
        NOISE.images(images, seed=0, bounds=((0.0, 1.0),) * 3)


def test_observations_are_cut_and_joined_without_a_difference(
    digit_net: nn.Module, digits: Batch
) -> None:
    needs = Needs(passes=True, layers=("hidden",), pass_layers=("hidden",), views=(HALF,))
    seen = observed(Observer(digit_net, needs, passes=3), digits[0][:10])
    again = Observation.joined([seen.rows(0, 4), seen.rows(4, 10)])
    assert len(again) == 10
    assert torch.equal(again.probs, seen.probs)
    assert torch.equal(again.layers["hidden"], seen.layers["hidden"])
    assert torch.equal(again.pass_layers["hidden"], seen.pass_layers["hidden"])
    assert torch.equal(again.views[HALF].logits, seen.views[HALF].logits)
    assert seen.without_passes().pass_probs is None


class Shift(Metric):
    """A metric of a third family that reads a view, a layer in passes, and calls the classifier."""

    name, family, direction = "shift", "consistency", "both"
    needs = Needs(views=(HALF,), pass_layers=("hidden",), gradients=True)
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(2, dtype=torch.float64))

    def update(self, seen: Observation, labels: Tensor) -> None:
        self.total += torch.tensor([len(labels), float(self._of(seen).sum())], dtype=torch.float64)

    def merge(self, other: "Shift") -> None:
        self.total += other.total

    def forward(self, seen: Observation) -> Tensor:
        return self._of(seen) - self.total[1] / self.total[0]

    def _of(self, seen: Observation) -> Tensor:
        spread = seen.pass_layers["hidden"].double().std(0).mean(1)
        own = seen.classifier(seen.images) - seen.views[HALF].logits
        return own.double().abs().sum(1) + spread


def total(detector: Detector) -> Tensor:
    metric = detector.metrics_["shift"]
    assert isinstance(metric, Shift)
    return metric.total.clone()


@pytest.mark.parametrize("combiner", ["conformal", "logistic"])
def test_a_metric_of_a_user_s_own_is_fitted_fused_saved_and_loaded(
    combiner: str, digit_net: nn.Module, digits: Batch, training_digits: Batch, tmp_path: object
) -> None:
    metric = Shift()
    detector = Detector(
        digit_net,
        passes=3,
        metrics=["confidence", metric],
        combiner=combiner,  # type: ignore[arg-type]
    )
    detector.fit(training_digits[0][:500], training_digits[1][:500])
    # The fit works on a copy, and a second one starts from nothing.
    assert float(metric.total.abs().sum()) == 0
    before = total(detector)
    detector.fit(training_digits[0][:500], training_digits[1][:500])
    assert torch.equal(total(detector), before)
    clean = digits[0][:200]
    extra = {"adversarial": 1 - clean} if combiner == "logistic" else {}
    detector.fit_combiner(clean, **extra).calibrate(digits[0][200:400])  # type: ignore[arg-type]
    path = f"{tmp_path}/own.leery"
    detector.save(path)
    loaded = Detector.load(path, digit_net, metrics=[Shift()])
    found, expected = loaded.judge(digits[0][400:420]), detector.judge(digits[0][400:420])
    assert found.names == ("confidence", "shift")
    assert np.array_equal(found.score, expected.score)
    assert np.array_equal(found.metrics, expected.metrics)
    refitted = loaded.fit(training_digits[0][:500], training_digits[1][:500])
    assert torch.equal(total(refitted), before)


class Wrong(Metric):
    name, family = "wrong", "none"

    def forward(self, seen: Observation) -> Tensor:
        return seen.logits.sum()


def test_a_metric_of_the_wrong_shape_is_named(digit_net: nn.Module, training_digits: Batch) -> None:
    detector = Detector(digit_net, metrics=[Wrong()]).fit(*training_digits)
    with pytest.raises(InputError, match=r"metric 'wrong' to return float \(5,\), got \(\)"):
        detector.measure(training_digits[0][:5])


def test_names_of_metrics_are_distinct(digit_net: nn.Module) -> None:
    with pytest.raises(
        InputError, match="each metric once, got shift more than once; leave out the name"
    ):
        Detector(digit_net, metrics=[Shift(), Shift()])


def test_a_detector_is_a_scorer(digit_net: nn.Module) -> None:
    assert isinstance(Detector(digit_net, metrics=PAPER_METRICS), Scorer)


class Odd(Metric):
    """A metric whose facts or results are wrong in one way."""

    def __init__(self, found: object = None, **facts: str) -> None:
        super().__init__()
        self.name, self.family = facts.get("name", "odd"), facts.get("family", "none")
        self.direction = facts.get("direction", "larger")  # type: ignore[assignment]
        self.found = found

    def forward(self, _seen: Observation) -> Tensor:
        if isinstance(self.found, Exception):
            raise self.found
        return self.found  # type: ignore[return-value]


@pytest.mark.parametrize(
    "facts",
    [{"name": "score"}, {"name": "error"}, {"name": "a/b"}, {"name": ""}, {"direction": "lower"}],
    ids=str,
)
def test_a_metric_that_cannot_be_used_is_refused_at_once(
    facts: dict[str, str], digit_net: nn.Module
) -> None:
    with pytest.raises(InputError, match=r"expected Odd\.(name|family) as text"):
        Detector(digit_net, metrics=[Odd(**facts)])


@pytest.mark.parametrize("found", [7.0, np.zeros(5), IndexError("out"), torch.zeros(5).long()])
def test_whatever_a_metric_gives_or_raises_is_one_sentence(
    found: object, digit_net: nn.Module, training_digits: Batch
) -> None:
    detector = Detector(digit_net, metrics=[Odd(found)]).fit(*training_digits)
    with pytest.raises(InputError, match="metric 'odd' to (return float|be computed)") as caught:
        detector.measure(training_digits[0][:5])
    assert "\n" not in str(caught.value)


def test_a_metric_that_is_not_a_number_is_named(digit_net: nn.Module, digits: Batch) -> None:
    found = torch.tensor([0.0, torch.nan])
    detector = Detector(digit_net, metrics=["margin", Odd(found)]).fit(
        digits[0][:90], digits[1][:90]
    )
    with pytest.raises(
        InputError, match="expected no NaN from any metric, got NaN from 'odd'; check"
    ):
        detector.measure(digits[0][:2])


def test_two_metrics_of_one_class_and_their_names_are_saved(
    digit_net: nn.Module, training_digits: Batch, tmp_path: Path
) -> None:
    early = KernelDensity(layer="hidden.0")
    early.name = "density before the ReLU"
    detector = Detector(digit_net, metrics=["kernel_density", early]).fit(*training_digits)
    detector.save(tmp_path / "d")
    loaded = Detector.load(tmp_path / "d", digit_net)
    new = training_digits[0][:5] * 0.9
    assert loaded.measure(new).names == ("kernel_density", "density before the ReLU")
    assert np.array_equal(loaded.measure(new).values, detector.measure(new).values)


class Trained(Metric):
    """A metric with a network of its own, trained before the data are observed."""

    name, family = "trained", "agreement"

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
        self.other = self.net
        self.register_buffer("cache", None, persistent=False)
        self.seen: list[object] = []

    def prepare(self, context: FitContext) -> None:
        images = torch.cat([batch for batch, _ in context.batches()])
        self.seen = [len(images), context.classes, context.bounds, context.device.type]
        context.progress("training", 1.0)

    def forward(self, seen: Observation) -> Tensor:
        own: Tensor = self.net(seen.images)
        return (own.argmax(1) != seen.predicted).double()


def test_a_metric_that_trains_reads_the_data_first(
    digit_net: nn.Module, training_digits: Batch, tmp_path: Path
) -> None:
    images, labels = (part[:200] for part in training_digits)
    detector = Detector(digit_net, metrics=[Trained()]).fit(images, labels)
    metric = detector.metrics_["trained"]
    assert isinstance(metric, Trained)
    assert metric.seen == [200, 10, (0.0, 1.0), "cpu"]
    detector.save(tmp_path / "d")
    loaded = Detector.load(tmp_path / "d", digit_net, metrics=[Trained()])
    assert np.array_equal(loaded.measure(images).values, detector.measure(images).values)
    with pytest.raises(InputError, match="can be read twice, which trained needs, got an iterator"):
        Detector(digit_net, metrics=[Trained()]).fit(iter([(images, labels)]))


class Seen(Metric):
    """What a view looks like, at the fit and when scoring."""

    name, family = "seen", "views"
    needs = Needs(views=(NOISE,))

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("largest", torch.zeros(1))

    def update(self, seen: Observation, _labels: Tensor) -> None:
        self.largest = seen.views[NOISE].images.amax().reshape(1)

    def forward(self, seen: Observation) -> Tensor:
        return seen.views[NOISE].images.flatten(1).double().mean(1)


def test_a_view_is_the_same_at_the_fit_when_scoring_and_under_other_masks(
    digit_net: nn.Module, training_digits: Batch
) -> None:
    detector = Detector(digit_net, metrics=[Seen()]).fit(*training_digits)
    assert float(detector.metrics_["seen"].largest) == 1.0  # type: ignore[arg-type]
    new = training_digits[0][:5]
    assert np.array_equal(detector.with_masks(7).measure(new).values, detector.measure(new).values)


def test_each_layer_looks_into_wrappers_and_lists(digit_net: nn.Module, digits: Batch) -> None:
    wrapped = normalized(digit_net, 0.1, 0.3)
    found = Observer.find(wrapped, Needs(layers=(EACH,)), digits[0][:4], None)["each"]
    assert found[0] == "model.convolutions.0"
    assert len(found) == 7


def test_views_are_drawn_from_the_seed_of_the_views(digit_net: nn.Module, digits: Batch) -> None:
    (view,) = NoiseConsistency(draws=1).needs.views
    images = digits[0][:3]
    for seed, own in ((5, None), (6, 6)):
        needs = Needs(views=(view,))
        observer = Observer(digit_net, needs, seed=5, view_seed=own, bounds=(0.0, 1.0))
        (seen,) = observer.stream(images)
        expected = view.images(images, seed=seed, bounds=(0.0, 1.0))
        assert torch.equal(seen.views[view].images, expected)
        assert torch.allclose(seen.views[view].logits, digit_net(expected), atol=1e-5)
    other = view.images(images, seed=5, bounds=(0.0, 1.0))
    assert float((other - expected).abs().max()) > 0.01


def test_views_of_few_and_of_many_images_are_alike(digit_net: nn.Module, digits: Batch) -> None:
    needs = Needs(views=NoiseConsistency().needs.views)
    observer = Observer(digit_net, needs, bounds=(0.0, 1.0))
    images = digits[0][:100]
    (many,) = observer.stream(images)
    (few,) = observer.stream(images[:3])
    for view in needs.views:
        assert torch.allclose(few.views[view].logits, many.views[view].logits[:3], atol=1e-4)


class OfBytes(nn.Module):
    """Takes pixels as floats in [0, 1] or as bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        pixels = images if images.is_floating_point() else images.float() / 255
        out: Tensor = self.head(pixels.flatten(1))
        return out


def test_views_of_several_types_keep_their_own() -> None:
    model = OfBytes().eval()
    views = (
        View("half as bright", lambda images, _generator, _pixels: images / 2),
        View("bytes", lambda images, _generator, _pixels: (images * 255).byte()),
    )
    observer = Observer(model, Needs(views=views))
    images = torch.rand(3, 1, 2, 2)
    (seen,) = observer.stream(images)
    for view in views:
        expected = model(view.images(images, seed=0, bounds=None))
        assert torch.allclose(seen.views[view].logits, expected)
