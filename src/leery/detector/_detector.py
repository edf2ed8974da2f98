"""The detector as users see it."""

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor, nn

from leery._checks import check_images, check_labels
from leery.attacks import Attack
from leery.detector._calibration import Calibration, Promise
from leery.detector._combiner import (
    Combiner,
    CombinerName,
    ConformalCombiner,
    LogisticCombiner,
)
from leery.detector._explanation import Explanation, percentiles
from leery.detector._measuring import Measuring
from leery.detector._record import Record
from leery.detector._registry import (
    PAPER_METRICS,
    UNCERTAINTY,
    Closeness,
    Reference,
    check_metrics,
    make_closeness,
)
from leery.detector._storage import read_file, write_file
from leery.detector._table import MetricTable
from leery.errors import (
    DetectorFileError,
    InputError,
    LeeryError,
    NotFittedError,
    UnsupportedModelError,
    WrongModelError,
    brief,
    listed,
)
from leery.mc_dropout import MCDropout, Observation, Plan
from leery.metrics import BandwidthRule, Precision
from leery.models import (
    WHOLE_MODEL,
    check_layer,
    extract_features,
    fingerprint,
    last_hidden_layer,
    unwrapped,
)

__all__ = ["Detector"]

T = TypeVar("T")


class Detector:
    """Tells adversarial inputs of a classifier from others.

    Fit it on clean training data, teach the combiner, calibrate it on other clean images, then
    ask for verdicts. The classifier is left as it was by every call, and the score of an image
    does not depend on what else is in the batch.

    Args:
        model: the classifier; returns logits ``(N, classes)``.
        feature_layer: the submodule whose output is the last hidden layer, or "input of " and a
            submodule; by default the input of the last linear layer, found at :meth:`fit`.
        passes: the number of Monte-Carlo dropout passes.
        seed: of the dropout masks, which belong to the detector, and of the references.
        metrics: names out of :data:`leery.METRICS`.
        bandwidth: of the kernel density, in the units of the features; or "likelihood", the one
            under which training features that are left out are most likely, or
            "likelihood-per-class", one such a class. The paper has 1.7 for digits.
        references: at most so many training images a class are kept; all by default.
        precision: "float16" halves the size of what is kept of them in a file.
        combiner: "logistic", the paper's, which learns from adversarial images; or "conformal",
            which needs none.
        batch_size: how many images a thread works on at once at most.

    Attributes:
        feature_layer_: the name of the feature layer in use, once fitted.
        accuracy_: the share of the training images that the classifier gets right; None before
            the fit, and in a detector out of a file.
        closeness_: the fitted metrics of closeness by name, once fitted.
        combiner_: once :meth:`fit_combiner` was called.
        calibration_: once :meth:`calibrate` was called.

    Raises:
        UnknownLayerError: when the model has no such layer.
        InputError: when another setting is outside its range.

    Source:
        Tuna, Catak, Eskil (2020). Departure: the dropout masks are fixed; see
        :class:`leery.mc_dropout.MCDropout`.
    """

    def __init__(
        self,
        model: nn.Module,
        feature_layer: str | None = None,
        *,
        passes: int = 50,
        seed: int = 0,
        metrics: Sequence[str] = PAPER_METRICS,
        bandwidth: float | BandwidthRule = "likelihood",
        references: int | None = None,
        precision: Precision = "float32",
        combiner: CombinerName = "logistic",
        batch_size: int = 1000,
    ) -> None:
        self.model = unwrapped(model)
        if feature_layer is not None:
            check_layer(self.model, feature_layer)
        if combiner not in get_args(CombinerName):
            message = f'expected combiner "logistic" or "conformal", got {combiner!r}; name one'
            raise InputError(message)
        self.feature_layer = feature_layer
        self.passes = int(passes)
        self.seed = int(seed)
        self.metrics = check_metrics(metrics)
        self.bandwidth = bandwidth if isinstance(bandwidth, str) else float(bandwidth)
        self.references = None if references is None else int(references)
        self.precision = precision
        self.combiner = combiner
        self.batch_size = int(batch_size)
        self.feature_layer_: str | None = None
        self.accuracy_: float | None = None
        self.closeness_: dict[str, Closeness] | None = None
        self.combiner_: Combiner | None = None
        self.calibration_: Calibration | None = None
        self._clean: MetricTable | None = None
        self._fingerprint: str | None = None
        self._checked: object = None
        self._classes = 0
        self._inputs: tuple[tuple[int, ...], torch.dtype] | None = None
        self._closeness()
        # One for the checks of its settings; the layer is known at the fit.
        self._sampler = self._make_sampler(feature_layer)

    def __repr__(self) -> str:
        """What it guards, and how far it is."""
        state = "not fitted"
        if self.closeness_ is not None:
            state = f"fitted, features {self.feature_layer_!r}"
        if self.combiner_ is not None:
            state += f", {self.combiner} combiner"
        if self.calibration_ is not None:
            state += f", false-alarm rate {self.calibration_.fpr:g}"
        return f"Detector({type(self.model).__name__}: {state})"

    def fit(
        self, images: Tensor | Iterable[tuple[Tensor, Tensor]], labels: Tensor | None = None
    ) -> Self:
        """Learn what clean data looks like in the last hidden layer.

        A combiner and a calibration from before are forgotten.

        Args:
            images: clean training images ``(N, ...)``; or batches ``(images, labels)``, as a
                ``DataLoader`` gives them, of which only the features are held.
            labels: int ``(N,)``, their true classes; every class must occur. None with batches.

        Raises:
            NoDropoutError: when a metric of uncertainty was asked for and the model has no dropout.
            UnknownLayerError: when no feature layer was named and the model has no linear layer.
            UnsupportedModelError: when the model returns probabilities.
            InputError: when images or labels do not fit.
        """
        settled = self.feature_layer_, self._sampler, self._inputs, self.accuracy_
        try:
            features, classes, truth = self._features(_batches(images, labels))
            closeness = self._learned(features, classes, truth)
        except BaseException:
            # A fit from before stays whole.
            self.feature_layer_, self._sampler, self._inputs, self.accuracy_ = settled
            raise
        self.closeness_ = closeness
        self._fingerprint, self._checked = fingerprint(self.model), None
        self._classes = classes
        self.combiner_ = self.calibration_ = self._clean = None
        return self

    def _learned(self, features: Tensor, classes: int, truth: Tensor) -> dict[str, Closeness]:
        """The metrics of closeness, fitted.

        Raises:
            InputError: when a class has no training images.
        """
        missing = sorted(set(range(classes)) - set(truth.unique().tolist()))
        if missing:
            message = (
                f"expected training images of all {classes} classes, got none of {missing}; "
                "add some"
            )
            raise InputError(message)
        return {name: metric.fit(features, truth) for name, metric in self._closeness().items()}

    @property
    def inputs_(self) -> tuple[tuple[int, ...], torch.dtype]:
        """The shape and the type of one training input.

        Raises:
            NotFittedError: before :meth:`fit`.
        """
        return self._fitted(self._inputs, "fit(images, labels)")

    @property
    def classes_(self) -> int:
        """The number of classes of the classifier.

        Raises:
            NotFittedError: before :meth:`fit`.
        """
        return self._fitted(self._classes or None, "fit(images, labels)")

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The last hidden layer and the logits, with dropout off.

        Args:
            images: ``(N, ...)``.

        Returns:
            Features ``(N, D)`` and logits ``(N, classes)``, on the images' device.

        Raises:
            NotFittedError: before :meth:`fit`.
            InputError: when the images do not fit.
        """
        layer = self._fitted(self.feature_layer_, "fit(images, labels)")
        self._check_inputs(images)
        batch_size = min(self.batch_size, WHOLE_MODEL)
        return extract_features(self.model, images, layer, batch_size=batch_size)

    def measure(self, images: Tensor) -> MetricTable:
        """Every metric of every image.

        Args:
            images: ``(N, ...)``.

        Raises:
            NotFittedError: before :meth:`fit`.
            WrongModelError: when the classifier has changed since :meth:`fit`.
            InputError: when the images do not fit.
        """
        closeness = self._fitted(self.closeness_, "fit(images, labels)")
        self._check_inputs(images)
        self._check_model()
        measuring = Measuring(self.metrics, closeness)
        for seen in self._observe(images):
            measuring.add(seen)
        return measuring.table()

    def fit_combiner(
        self,
        clean: Tensor,
        adversarial: Tensor | None = None,
        noisy: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        attacks: Sequence[Attack] = (),
    ) -> Self:
        """Learn how to weigh the metrics; a calibration from before is forgotten.

        The logistic combiner learns from adversarial images, given or made here; the conformal
        one from clean and noisy images alone.

        Args:
            clean: images ``(N, ...)`` that are not adversarial and were not in the fit.
            adversarial: images that are, of any number.
            noisy: images with harmless noise, which count as not adversarial; without them a
                detector takes noise for an attack.
            labels: int ``(N,)``, the true classes of the clean images; needed for attacks.
            attacks: such as ``[PGD(0.3)]``; each makes the twins of those clean images that the
                classifier gets right.

        Raises:
            NotFittedError: before :meth:`fit`.
            WrongModelError: when the classifier has changed since :meth:`fit`.
            InputError: when the images do not fit, or are not what the combiner learns from.
        """
        self._check_model()
        self._fitted(self.closeness_, "fit(images, labels)")
        learns = self.combiner == "logistic"
        if learns != (adversarial is not None or len(attacks) > 0):
            message = (
                "expected adversarial images or attacks for the logistic combiner, got neither; "
                'pass some or use combiner="conformal"'
                if learns
                else "expected no adversarial images and no attacks for the conformal combiner, "
                'got some; leave them out or use combiner="logistic"'
            )
            raise InputError(message)
        table = self.measure(clean)
        parts = [table.values] + ([] if noisy is None else [self.measure(noisy).values])
        negatives = np.concatenate(parts)
        if learns:
            twins = list(self._twins(clean, labels, attacks, table.predicted))
            if adversarial is not None:
                twins.append(adversarial)
            values = np.concatenate([negatives, *(self.measure(part).values for part in twins)])
            self.combiner_ = LogisticCombiner.fit(values, np.arange(len(values)) >= len(negatives))
        else:
            self.combiner_ = ConformalCombiner(self.metrics, negatives)
        self._clean, self.calibration_ = table, None
        return self

    def score(self, images: Tensor) -> np.ndarray:
        """How adversarial each image looks: the combiner's score.

        Args:
            images: ``(N, ...)``.

        Returns:
            float64 ``(N,)``; larger is more adversarial. Log odds of the logistic combiner, minus
            the log of a p-value, in nats, of the conformal one.

        Raises:
            NotFittedError: before :meth:`fit_combiner`.
            InputError: when the images do not fit.
        """
        return self.judge(self.measure(images))

    def judge(self, table: MetricTable) -> np.ndarray:
        """The score of images that were measured already.

        Args:
            table: of :meth:`measure`.

        Returns:
            float64 ``(N,)``, as :meth:`score`.

        Raises:
            NotFittedError: before :meth:`fit_combiner`.
            InputError: when the table lacks a metric of the detector.
        """
        combiner = self._fitted(self.combiner_, "fit_combiner(clean, adversarial)")
        return combiner.score(table.select(self.metrics))

    def calibrate(
        self,
        clean: Tensor,
        fpr: float = 0.05,
        promise: Promise = "marginal",
        *,
        confidence: float = 0.95,
        per_class: bool = False,
    ) -> Self:
        """Choose the threshold so that at most a share ``fpr`` of clean images is flagged.

        The promise holds for clean images that are exchangeable with these; use images that
        neither :meth:`fit` nor :meth:`fit_combiner` has seen. It can be repeated at any time
        without a new fit.

        Args:
            clean: images ``(N, ...)``.
            fpr: the false-alarm rate, in (0, 1).
            promise: "marginal": the rate is kept on average over sets of calibration images;
                "pac": it is kept with this set, with probability ``confidence`` over such sets.
            confidence: of the promise "pac", in (0, 1).
            per_class: whether the promise is kept among the images of each predicted class.

        Raises:
            NotFittedError: before :meth:`fit_combiner`.
            WrongModelError: when the classifier has changed since :meth:`fit`.
            InputError: when a setting is outside its range or needs more images than there are.

        Source:
            :class:`leery.detector.Calibration`.
        """
        empty = np.empty(0)
        fpr, confidence = float(fpr), float(confidence)
        # Settings are refused before the images are measured.
        Calibration(fpr, promise, confidence, per_class, empty, empty)
        self._check_model()
        table = self.measure(clean)
        calibration = Calibration(
            fpr, promise, confidence, per_class, self.judge(table), table.predicted
        )
        self.calibration_ = calibration.checked(self._classes)
        return self

    def predict(self, images: Tensor) -> np.ndarray:
        """The verdict on each image.

        Args:
            images: ``(N, ...)``.

        Returns:
            bool ``(N,)``; True is adversarial.

        Raises:
            NotFittedError: before :meth:`calibrate`.
            InputError: when the images do not fit.
        """
        calibration = self._fitted(self.calibration_, "calibrate(clean, fpr)")
        table = self.measure(images)
        return calibration.flagged(self.judge(table), table.predicted)

    def p_value(self, images: Tensor) -> np.ndarray:
        """How usual each image's score would be for a clean image.

        Args:
            images: ``(N, ...)``.

        Returns:
            float64 ``(N,)``, in [1 / (n + 1), 1] for n calibration images. Flagging where it is at
            most alpha keeps the false-alarm rate at alpha, on average over calibration sets.

        Raises:
            NotFittedError: before :meth:`calibrate`.
            InputError: when the images do not fit.
        """
        calibration = self._fitted(self.calibration_, "calibrate(clean, fpr)")
        table = self.measure(images)
        return calibration.p_values(self.judge(table), table.predicted)

    def explain(self, images: Tensor) -> Explanation:
        """Why each image got its score: values, percentiles among clean images, contributions.

        Args:
            images: ``(N, ...)``.

        Raises:
            NotFittedError: before :meth:`fit_combiner`.
            InputError: when the images do not fit.
        """
        combiner = self._fitted(self.combiner_, "fit_combiner(clean, adversarial)")
        clean = self._fitted(self._clean, "fit_combiner(clean, adversarial)")
        table = self.measure(images)
        scores = self.judge(table)
        calibration = self.calibration_
        return Explanation(
            table=table,
            percentiles=percentiles(table, clean),
            contributions=combiner.contributions(table.values),
            intercept=combiner.intercept,
            scores=scores,
            p_values=None if calibration is None else calibration.p_values(scores, table.predicted),
        )

    def explain_plan(self) -> Plan:
        """How images are run: which way, what is random, what is repeated each pass.

        Raises:
            NotFittedError: before :meth:`fit`.
        """
        shape, dtype = self.inputs_
        if self._sampler is None:
            reason = "no metric of uncertainty was asked for"
            return Plan("once", reason, self.feature_layer_, (), repeated=0.0, once=1.0)
        generator = torch.Generator().manual_seed(0)
        example = torch.rand((2, *shape), generator=generator).to(dtype)
        if dtype is torch.uint8:
            example = torch.randint(0, 256, (2, *shape), generator=generator).to(dtype)
        elif not dtype.is_floating_point:
            # Token ids: 0 is often padding, of which an input must not consist.
            example = torch.ones((2, *shape), dtype=dtype)
            example[1, ..., -1:] = 0
        return self._sampler.explain_plan(example)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the detector, without its classifier, as one safetensors file.

        Args:
            path: of the file; an older one is replaced only when the new one is complete.

        Raises:
            NotFittedError: before :meth:`fit`.
            WrongModelError: when the classifier has changed since :meth:`fit`.
            OutputError: when the file cannot be written.
        """
        closeness = self._fitted(self.closeness_, "fit(images, labels)")
        shape, dtype = self.inputs_
        self._check_model()
        record = Record(
            classifier=type(self.model).__name__,
            fingerprint=self._fitted(self._fingerprint, "fit(images, labels)"),
            classes=self._classes,
            shape=shape,
            dtype=dtype,
            settings=self._settings(),
            closeness=closeness,
            combiner=self.combiner_,
            clean=self._clean,
            calibration=self.calibration_,
        )
        write_file(path, *record.parts())

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: nn.Module) -> Self:
        """Read a detector for the classifier that it was fitted on; runs no code of the file.

        Args:
            path: of a file that :meth:`save` wrote.
            model: the classifier, in the state it had then.

        Raises:
            DetectorFileError: when the file is missing, damaged, foreign or from a newer leery.
            WrongModelError: when it belongs to another classifier.
        """
        tensors, facts = read_file(path)
        model = unwrapped(model)
        found = fingerprint(model)
        if facts["classifier_sha256"] != found:
            message = (
                f"expected the classifier that {path} was fitted on "
                f"({listed([facts['classifier']])}, SHA-256 "
                f"{listed([facts['classifier_sha256'][:12]])}...), got {type(model).__name__} with "
                f"{found[:12]}...; load the right weights or fit a new detector"
            )
            raise WrongModelError(message)
        try:
            record = Record.of(tensors, facts)
            detector = cls(model, **record.settings)
        except (
            LeeryError,
            LookupError,
            TypeError,
            ValueError,
            ArithmeticError,
            RuntimeError,
        ) as error:
            message = (
                f"expected a whole detector file at {path}, got one with missing or wrong parts "
                f"({brief(error)}); save the detector again"
            )
            raise DetectorFileError(message) from error
        detector._take_over(record)
        return detector

    def _check_inputs(self, images: Tensor) -> None:
        """Refuse inputs of another kind than the fit's: what was learned does not hold for them.

        Raises:
            InputError: then.
        """
        check_images(images)
        shape, dtype = self.inputs_
        if images.shape[1:] != shape or images.dtype != dtype:
            message = (
                f"expected inputs as in the fit, (N, {', '.join(map(str, shape))}) of {dtype}, got "
                f"{tuple(images.shape)} of {images.dtype}; convert them in the same way"
            )
            raise InputError(message)

    def _check_model(self) -> None:
        """Refuse to build on a fit whose classifier has changed since.

        Its weights are read only when torch has counted a change of them.
        """
        changes = _changes(self.model)
        if self._fingerprint is None or changes == self._checked:
            return
        if fingerprint(self.model) != self._fingerprint:
            message = (
                "expected the classifier as it was at the fit, got changed layers or weights; "
                "fit the detector again"
            )
            raise WrongModelError(message)
        self._checked = changes

    def _settings(self) -> dict[str, Any]:
        return {
            "feature_layer": self.feature_layer_,
            "passes": self.passes,
            "seed": self.seed,
            "metrics": list(self.metrics),
            "bandwidth": self.bandwidth,
            "references": self.references,
            "precision": self.precision,
            "combiner": self.combiner,
            "batch_size": self.batch_size,
        }

    def _take_over(self, record: Record) -> None:
        self.feature_layer_ = self.feature_layer
        self.closeness_ = dict(record.closeness)
        self.combiner_, self.calibration_ = record.combiner, record.calibration
        self._clean, self._fingerprint = record.clean, record.fingerprint
        self._classes, self._inputs = record.classes, (record.shape, record.dtype)

    def _closeness(self) -> dict[str, Closeness]:
        """The metrics of closeness, not yet fitted."""
        kept = Reference(self.bandwidth, self.references, self.precision, self.seed)
        return make_closeness(self.metrics, kept)

    def _make_sampler(self, layer: str | None) -> MCDropout | None:
        if not any(name in UNCERTAINTY for name in self.metrics):
            return None
        return MCDropout(
            self.model, self.passes, self.seed, layer=layer, batch_size=self.batch_size
        )

    def _features(self, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, int, Tensor]:
        """Features ``(N, D)``, the number of classes, and labels ``(N,)`` of the training data."""
        features: list[Tensor] = []
        truth: list[Tensor] = []
        classes, right, probable = 0, 0, True
        for images, labels in batches:
            check_images(images)
            check_labels(labels, len(images))
            if not features:
                self._begin(images)
            found, logits = self.features(images)
            classes = logits.shape[1]
            right += int((logits.argmax(1).to(labels.device) == labels).sum())
            probable = probable and _are_probabilities(logits)
            check_labels(labels, len(images), classes)
            features.append(found)
            truth.append(labels.to(found.device))
        if not features:
            message = "expected at least one batch of training images, got none; pass some"
            raise InputError(message)
        if probable:
            message = (
                "expected a model that returns logits, got one that returns probabilities; leave "
                "out its softmax"
            )
            raise UnsupportedModelError(message)
        self.accuracy_ = right / sum(map(len, truth))
        return torch.cat(features), classes, torch.cat(truth)

    def _begin(self, images: Tensor) -> None:
        """Settle what the first training images decide: the layer, and whether there is dropout."""
        self.feature_layer_ = self.feature_layer or last_hidden_layer(self.model, images)
        self._sampler = self._make_sampler(self.feature_layer_)
        if self._sampler is not None:
            self._sampler.explain_plan(images)
        self._inputs = tuple(images.shape[1:]), images.dtype

    def _twins(
        self,
        clean: Tensor,
        labels: Tensor | None,
        attacks: Sequence[Attack],
        predicted: np.ndarray,
    ) -> Iterator[Tensor]:
        """The adversarial twins, by each attack, of the images that the classifier gets right."""
        if not attacks:
            return
        if labels is None:
            message = "expected the labels of the clean images for attacks, got None; pass labels="
            raise InputError(message)
        check_labels(labels, len(clean), self._classes)
        right = torch.from_numpy(predicted).to(labels.device) == labels
        if not bool(right.any()):
            message = "expected clean images that the classifier gets right, got none; check labels"
            raise InputError(message)
        for attack in attacks:
            yield attack(self.model, clean[right.to(clean.device)], labels[right])

    def _observe(self, images: Tensor) -> Iterator[Observation]:
        """What the metrics need to know of the images, batch by batch."""
        if self._sampler is not None:
            yield from self._sampler.stream(images)
            return
        for batch in images.split(self.batch_size):
            features, logits = self.features(batch)
            yield Observation(logits, features, probs=logits.softmax(1).unsqueeze(0))

    def _fitted(self, part: T | None, call: str) -> T:
        if part is None:
            message = f"expected a detector after {call}, got one before it; call it first"
            raise NotFittedError(message)
        return part


def _changes(model: nn.Module) -> object:
    """Equal as long as no weight was written or replaced, and no submodule."""
    tensors = (*model.parameters(), *model.buffers())
    return (
        tuple(model.modules()),
        [(id(part), 0 if part.is_inference() else part._version) for part in tensors],  # noqa: SLF001 - its count of writes
    )


def _are_probabilities(logits: Tensor) -> bool:
    """Whether every row could be the output of a softmax."""
    sums = logits.double().sum(1)
    return bool((logits >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3)


def _batches(
    images: Tensor | Iterable[tuple[Tensor, Tensor]], labels: Tensor | None
) -> Iterable[tuple[Tensor, Tensor]]:
    if labels is not None:
        return [(images, labels)]  # type: ignore[list-item]  # checked where it is used
    if isinstance(images, Tensor):
        message = "expected the labels of the training images, got None; pass fit(images, labels)"
        raise InputError(message)
    return images
