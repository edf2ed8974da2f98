"""The detector as users see it."""

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from leery._checks import Bounds, check_count, check_seed
from leery.attacks import HARMLESS, Attack, Harmless, placed
from leery.combiners import COMBINERS, CombinerName, Facts, make_combiner
from leery.detector._calibration import Calibration, Promise
from leery.detector._clean import CleanImages, check_unseen, measure_clean, no_labels
from leery.detector._explanation import Explanation, percentiles
from leery.detector._file import Record
from leery.detector._fitting import fit, needs_of
from leery.detector._measuring import measured
from leery.detector._parts import FitParts
from leery.detector._settings import Settings
from leery.detector._state import Fitted, Taught, image_hashes
from leery.detector._storage import read_file, write_file
from leery.detector._table import MetricTable
from leery.detector._verdicts import Verdicts
from leery.errors import (
    DetectorFileError,
    InputError,
    LeeryError,
    NotFittedError,
    WrongModelError,
    brief,
    listed,
)
from leery.inputs import Images, InputSpec, Moments, image_batches, known_count
from leery.mc_dropout import Plan
from leery.metrics import AuxiliaryAgreement, BandwidthRule, Metric, Precision, References
from leery.models import (
    Logits,
    check_layer,
    extract_features,
    fingerprint,
    logits_facts,
    logits_of_facts,
    own_tensors,
    with_logits,
)
from leery.observation import Observation, Observer

__all__ = ["Detector"]

T = TypeVar("T")

_FIT = "fit(images, labels)"
_TEACH = "fit_combiner(clean, adversarial=...)"
_CALIBRATE = "calibrate(clean, fpr=...)"


class Detector:
    """Tells adversarial inputs of a classifier from others.

    The short path is ``Detector(model).fit(train).calibrate(held_out, fpr=0.01).judge(images)``.
    Wherever images are taken, they are a tensor ``(N, ...)`` or an iterable of batches, such as a
    ``DataLoader``. The classifier is left as it was by every call, and the score of an image does
    not depend on what else is in the batch.

    Args:
        model: the classifier; returns logits ``(N, classes)``, as a tensor or in a field
            ``logits``.
        feature_layer: the submodule whose output is the last hidden layer, or "input of " and a
            submodule; by default the input of the linear layer that gives the logits.
        passes: number of Monte-Carlo dropout passes.
        seed: random seed: of the dropout masks, which belong to the detector, of the references
            that are kept, and of harmless changes.
        metrics: names out of :data:`leery.METRICS` and instances of
            :class:`leery.metrics.Metric`. The fit works on copies of instances. By default those
            that are recommended for the inputs: for images :data:`leery.RECOMMENDED_METRICS`, for
            which the fit trains a small auxiliary network (minutes on a processor).
        bandwidth: bandwidth of the kernel density, in the units of the features; or "likelihood",
            the one under which training features that are left out are most likely, or
            "likelihood-per-class", one such bandwidth per class. The paper has 1.7 for digits.
        references: maximum number of training images kept per class; by default all.
        precision: "float16" halves the size of the kept features in a file.
        combiner: "conformal", which needs no adversarial image, or "logistic", the paper's, which
            learns from adversarial images.
        bounds: lowest and highest pixel value, as two numbers or one pair per channel; by default
            (0, 1) if the training images lie in it, else unknown.
        logits: where the logits are in what the model returns: a field name, an index, or a
            function of the output.
        trust_outputs: True if outputs that look like probabilities are logits.
        batch_size: the largest number of images that a thread works on at once.

    Attributes:
        model: the classifier that is defended.

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
        *,
        feature_layer: str | None = None,
        passes: int = 50,
        seed: int = 0,
        metrics: Sequence[str | Metric] | None = None,
        bandwidth: float | BandwidthRule = "likelihood",
        references: int | None = None,
        precision: Precision = "float32",
        combiner: CombinerName = "conformal",
        bounds: Bounds | None = None,
        logits: Logits = None,
        trust_outputs: bool = False,
        batch_size: int = 1000,
    ) -> None:
        self.model = with_logits(model, logits)
        self._logits = logits
        if feature_layer is not None:
            check_layer(self.model, feature_layer)
        self._settings = Settings.checked(
            feature_layer=feature_layer,
            passes=passes,
            seed=seed,
            metrics=metrics,
            references=References(bandwidth, references, precision, seed),
            combiner=combiner,
            bounds=bounds,
            batch_size=batch_size,
            trust_outputs=trust_outputs,
        )
        self._fitted: Fitted | None = None
        self._taught: Taught | None = None
        self._calibration: Calibration | None = None
        self._observer: Observer | None = None
        self._checked: object = None

    def __repr__(self) -> str:
        """The class of the classifier, and how far the detector is."""
        state = "not fitted"
        if self._fitted is not None:
            state = f"fitted, inputs {self._fitted.inputs}"
            if self._fitted.head is not None:
                state += f", features {self._fitted.head!r}"
        if self.agreement_ is not None:
            state += f", auxiliary network agrees on {self.agreement_:.1%} of the clean images"
        if self._taught is not None:
            state += f", {self._settings.combiner} combiner"
        if self._calibration is not None:
            state += f", false-alarm rate {self._calibration.fpr:g}"
        return f"Detector({type(self.model).__name__}: {state})"

    # ---- what is known ---------------------------------------------------------------------------

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of the metrics, in column order."""
        return tuple(metric.name for metric in self._settings.metrics)

    @property
    def left_out_(self) -> str | None:
        """What the recommended metrics lack for the inputs of the fit, and how to add it."""
        return self._settings.left_out

    @property
    def passes(self) -> int:
        """The number of Monte-Carlo dropout passes."""
        return self._settings.passes

    @property
    def seed(self) -> int:
        """The random seed."""
        return self._settings.seed

    @property
    def metrics_(self) -> dict[str, Metric]:
        """The fitted metrics by name.

        Raises:
            NotFittedError: before :meth:`fit`.
        """
        return {metric.name: metric for metric in self._need(self._fitted, _FIT).metrics}

    @property
    def combiner_(self) -> nn.Module | None:
        """The fitted combiner; None before there is one."""
        return None if self._taught is None else self._taught.combiner

    @property
    def calibration_(self) -> Calibration | None:
        """What clean images taught about false alarms; None before :meth:`calibrate`."""
        return self._calibration

    @property
    def feature_layer_(self) -> str | None:
        """The last hidden layer in use.

        Raises:
            NotFittedError: before :meth:`fit`.
        """
        return self._need(self._fitted, _FIT).head

    @property
    def accuracy_(self) -> float | None:
        """The share of the training images that the classifier gets right, in [0, 1].

        None in a detector that was loaded from a file.

        Raises:
            NotFittedError: before :meth:`fit`.
        """
        return self._need(self._fitted, _FIT).accuracy

    @property
    def agreement_(self) -> float | None:
        """The share of clean images on which the auxiliary network favours the classifier's class.

        In [0, 1], of the images that taught the combiner; there it gives that class more than half
        of the probability. None without an auxiliary network or a combiner.
        """
        name = AuxiliaryAgreement.name
        if self._taught is None or name not in self.metrics:
            return None
        odds = self._taught.clean.values[:, self.metrics.index(name)]
        return float((odds < 0).mean())

    @property
    def inputs_(self) -> InputSpec:
        """Shape, type, bounds and range of the training inputs.

        Raises:
            NotFittedError: before :meth:`fit`.
        """
        return self._need(self._fitted, _FIT).inputs

    @property
    def classes_(self) -> int:
        """The number of classes of the classifier.

        Raises:
            NotFittedError: before :meth:`fit`.
        """
        return self._need(self._fitted, _FIT).classes

    @property
    def differentiable(self) -> bool:
        """True if :meth:`differentiable_score` is exact, False if it uses stand-ins."""
        combiner = COMBINERS[self._settings.combiner]
        exact = all(metric.differentiable for metric in self._settings.metrics)
        return combiner.differentiable and exact

    # ---- fitting ---------------------------------------------------------------------------------

    def fit(
        self, images: Images, labels: Tensor | None = None, *, parts: FitParts | None = None
    ) -> Self:
        """Learn what clean data looks like to the classifier.

        A combiner and a calibration from before are forgotten. A fit that fails leaves the detector
        as it was.

        Args:
            images: clean training images ``(N, ...)``; or batches ``(images, labels)``.
            labels: int ``(N,)``, their true classes; every class must occur. None with batches.
            parts: a folder that keeps what was trained, such as the auxiliary network, so that a
                fit which is cut off can be resumed; by default nothing is kept.

        Raises:
            NoDropoutError: when a metric of uncertainty was asked for and the model has no dropout.
            UnknownLayerError: when no feature layer was named and none was found.
            UnsupportedModelError: when the model does not return logits.
            InputError: when images or labels do not fit.
        """
        settings, fitted = fit(self.model, self._settings, images, labels, parts)
        self._settings = settings
        self._take(fitted, None, None)
        return self

    def fit_combiner(
        self,
        clean: Images,
        labels: Tensor | None = None,
        *,
        adversarial: Images | None = None,
        noisy: Images | None = None,
        attacks: Sequence[Attack] = (),
    ) -> Self:
        """Teach the combiner how to weigh the metrics; an earlier calibration is discarded.

        The logistic combiner learns from adversarial images, given or made here; the conformal
        one from clean and noisy images alone. :meth:`calibrate` does this for the
        conformal one.

        Args:
            clean: images that are not adversarial and were not in the fit.
            labels: int ``(N,)``, their true classes; needed for attacks.
            adversarial: adversarial images, of any number.
            noisy: images with harmless noise, which count as not adversarial; without them a
                detector takes noise for an attack.
            attacks: such as ``[PGD(0.3)]``; each attacks the clean images that the classifier gets
                right.

        Raises:
            NotFittedError: before :meth:`fit`.
            WrongModelError: when the classifier has changed since :meth:`fit`.
            InputError: when the images do not fit, are training images, or are not what the
                combiner learns from.
        """
        fitted = self._need(self._fitted, _FIT)
        self._check_model()
        _refuse_labels(adversarial)
        self._check_taught_by(adversarial is not None or len(attacks) > 0)
        self._check_least([clean, *([] if noisy is None else [noisy])])
        if attacks and labels is None and isinstance(clean, Tensor):
            raise no_labels()
        for images in (clean, noisy, adversarial):
            if isinstance(images, Tensor):
                fitted.inputs.check(images)
        self._check_unseen(clean)
        found = measure_clean(
            self.measure,
            fitted,
            clean,
            labels,
            attack=self._attacked if attacks else None,
            attacks=attacks,
        ).unseen(fitted, None)
        negatives, seen = [found.tables["clean"]], [found.hashes]
        if noisy is not None:
            harmless = measure_clean(self.measure, fitted, noisy, None)
            negatives.append(harmless.tables["clean"])
            seen.append(harmless.hashes)
        positives = [*found.attacked]
        if adversarial is not None:
            positives.append(self.measure(adversarial))
        self._taught = self._teach(found, negatives, positives, torch.cat(seen))
        self._calibration = None
        return self

    def calibrate(
        self,
        clean: Images,
        labels: Tensor | float | None = None,
        *,
        fpr: float = 0.05,
        promise: Promise = "marginal",
        confidence: float = 0.95,
        per_class: bool = False,
        harmless: Mapping[str, Harmless] | None = None,
    ) -> Self:
        """Choose the threshold so that at most a share ``fpr`` of clean images is flagged.

        The promise holds for clean images that are exchangeable with these. Images that the fit
        or the combiner has seen are left out, and so are repeated ones. If the conformal combiner
        has not been taught yet, one half of the images teaches it and the other half sets the
        threshold. Calibrating again needs no new fit.

        Args:
            clean: images that are not adversarial.
            labels: int ``(N,)``, their true classes. With them or labelled batches, images that the
                classifier gets wrong are then left out, and the promise is about the others. A
                number is taken for ``fpr``.
            fpr: the false-alarm rate, in (0, 1).
            promise: "marginal": the rate is kept on average over sets of calibration images;
                "pac": it is kept with this set, with probability ``confidence`` over such sets.
            confidence: of the promise "pac", in (0, 1).
            per_class: True if the promise is kept among the images of each predicted class.
            harmless: changes of the images by name, among whose results the promise is kept too;
                by default :data:`leery.attacks.HARMLESS` for images with known bounds and none for
                other inputs; ``{}`` for none.

        Raises:
            NotFittedError: before :meth:`fit`, or before :meth:`fit_combiner` for the logistic
                combiner.
            WrongModelError: when the classifier has changed since :meth:`fit`.
            InputError: when a setting is outside its range, needs more images than there are, or
                more than a few are training images.

        Source:
            :class:`leery.detector.Calibration`.
        """
        rate, truth = (labels, None) if isinstance(labels, float) else (fpr, labels)
        fitted = self._need(self._fitted, _FIT)
        if self._settings.combiner == "logistic":
            self._need(self._taught, _TEACH)
        nothing = np.empty(0)
        promised = Calibration(float(rate), promise, float(confidence), per_class, nothing, nothing)
        self._check_model()
        changes = self._changes(harmless)
        # Settings and numbers are refused before images are measured.
        self._check_unseen(clean)
        count = known_count(clean)
        parts = 1 if self._taught is not None else 2
        if count is not None:
            promised.check_count(count, fitted.classes, halved=parts == 2)  # noqa: PLR2004
            self._check_least([clean] if parts == 2 else [], share=parts)  # noqa: PLR2004
        found = measure_clean(
            self.measure, fitted, clean, truth, harmless=changes, seed=self._settings.seed
        ).unseen(fitted, self._taught)
        taught = self._taught
        if taught is None:
            first, found = found.halves(self._settings.seed)
            judged = [table.rows(first.judged_right(table)) for table in first.tables.values()]
            taught = self._teach(first, judged, [], first.hashes)
        self._calibration = self._promised(promised, found, taught).checked(fitted.classes)
        self._taught = taught
        return self

    # ---- judging ---------------------------------------------------------------------------------

    def judge(self, images: Images) -> Verdicts:
        """All answers about images, from one run: class, score, p-value, verdict, metrics.

        Raises:
            NotFittedError: before there is a combiner.
            WrongModelError: when the classifier has changed since :meth:`fit`.
            InputError: when the images do not fit.
        """
        taught = self._need_taught()
        parts: list[Verdicts] = []
        moments = Moments()
        for batch in image_batches(images):
            parts += [
                self._verdicts(seen, values, taught) for seen, values in self._measured(batch)
            ]
            moments.add(batch)
        found = Verdicts.joined(parts)
        self.inputs_.compare(moments, len(found), "images")
        return found

    def score(self, images: Images) -> np.ndarray:
        """How adversarial each image looks: the combiner's score.

        Returns:
            float64 ``(N,)``; larger is more adversarial. Log odds of the logistic combiner, minus
            the log of a weighted mean of p-values, in nats, of the conformal one.

        Raises:
            NotFittedError, WrongModelError, InputError: as :meth:`judge`.
        """
        return self.judge(images).score

    def flag(self, images: Images) -> np.ndarray:
        """The verdict on each image, bool ``(N,)``; True is adversarial.

        Raises:
            NotFittedError: before :meth:`calibrate`.
            WrongModelError, InputError: as :meth:`judge`.
        """
        self._need(self._calibration, _CALIBRATE)
        flagged = self.judge(images).adversarial
        assert flagged is not None
        return flagged

    def p_value(self, images: Images) -> np.ndarray:
        """How usual each image's score would be for a clean image.

        Returns:
            float64 ``(N,)``, in [1 / (n + 1), 1] for n calibration images. Flagging where it is at
            most alpha keeps the false-alarm rate at alpha, on average over calibration sets.

        Raises:
            NotFittedError: before :meth:`calibrate`.
            WrongModelError, InputError: as :meth:`judge`.
        """
        self._need(self._calibration, _CALIBRATE)
        found = self.judge(images).p_value
        assert found is not None
        return found

    def explain(self, images: Images) -> Explanation:
        """Why each image got its score: values, percentiles among clean images, contributions.

        Raises:
            NotFittedError, WrongModelError, InputError: as :meth:`judge`.
        """
        taught = self._need_taught()
        verdicts = self.judge(images)
        return Explanation(
            verdicts, percentiles(verdicts.table, taught.clean), taught.combiner.intercept
        )

    def differentiable_score(self, images: Tensor) -> Tensor:
        """:meth:`score` as a function through which gradients reach the images.

        Args:
            images: float ``(N, ...)``, on the classifier's device.

        Returns:
            float64 ``(N,)``, equal to :meth:`score` to rounding where :attr:`differentiable`.

        Raises:
            NotFittedError: before there is a combiner.
            InputError: when the combiner has no derivative, or the images do not fit.
        """
        taught = self._need_taught()
        if not taught.combiner.differentiable:
            message = (
                f"expected a combiner with a derivative, got the {self._settings.combiner} one; "
                'use combiner="logistic"'
            )
            raise InputError(message)
        score: Tensor = taught.combiner(*self.measure_with_gradient(images))
        return score

    def measure_with_gradient(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Every metric, or its stand-in, as a function through which gradients reach the images.

        Args:
            images: float ``(N, ...)``, on the classifier's device.

        Returns:
            The metrics, float64 ``(N, M)``, and the predicted classes, int64 ``(N,)``.

        Raises:
            NotFittedError: before :meth:`fit`.
            InputError: when the images do not fit.
        """
        fitted, observer = self._ready(images)
        seen = observer.observe_with_gradient(images)
        own = seen.doubled()
        columns = [
            (metric if metric.differentiable else metric.smooth)(own) for metric in fitted.metrics
        ]
        return torch.stack(columns, 1), seen.predicted

    def measure(self, images: Images) -> MetricTable:
        """Every metric of every image.

        Raises:
            NotFittedError: before :meth:`fit`.
            WrongModelError: when the classifier has changed since :meth:`fit`.
            InputError: when the images do not fit.
        """
        names = self._need(self._fitted, _FIT).names
        parts = [
            MetricTable(names, values.cpu().numpy(), seen.predicted.cpu().numpy())
            for batch in image_batches(images)
            for seen, values in self._measured(batch)
        ]
        return MetricTable.joined(parts)

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The last hidden layer and the logits, with dropout off.

        Args:
            images: ``(N, ...)``.

        Returns:
            Features ``(N, D)`` and logits ``(N, classes)``, on the images' device.

        Raises:
            NotFittedError: before :meth:`fit`, or when no metric reads the last hidden layer.
            InputError: when the images do not fit.
        """
        fitted = self._need(self._fitted, _FIT)
        head = self._need(fitted.head, "fit with a metric that reads the last hidden layer")
        fitted.inputs.check(images)
        return extract_features(self.model, images, head)

    def explain_plan(self) -> Plan:
        """How images are run: which way, what is random, what is repeated in each pass.

        Raises:
            NotFittedError: before :meth:`fit`.
        """
        observer = self._need(self._observer, _FIT)
        return observer.explain_plan(_example(self.inputs_))

    def warm_up(self, images: int = 1) -> Self:
        """Do now what the first call would otherwise do before it scores an image.

        The classifier's graph is captured, which can take seconds. A service calls this before it
        accepts requests, and before it uses the detector in several threads. Of masks that are
        drawn anew at each call, one set is used up.

        Args:
            images: the number of images of a typical call; as many made-up ones are scored.

        Raises:
            NotFittedError: before :meth:`fit`.
            WrongModelError: when the classifier has changed since :meth:`fit`.
            InputError: when the number is below one.
        """
        count = check_count(images, "images")
        self.measure(_example(self.inputs_).repeat_interleave(-(-count // 2), 0)[:count])
        return self

    def has_seen(self, images: Tensor) -> np.ndarray:
        """Which images the fit or the combiner has learned from.

        Args:
            images: ``(N, ...)``.

        Returns:
            bool ``(N,)``; all False where images of the training data recur anyway.

        Raises:
            NotFittedError: before :meth:`fit`.
        """
        fitted = self._need(self._fitted, _FIT)
        if not len(fitted.seen):
            return np.zeros(len(images), dtype=bool)
        learned = [fitted.seen, *([] if self._taught is None else [self._taught.seen])]
        return torch.isin(image_hashes(images, fitted.grid), torch.cat(learned)).numpy()

    def with_masks(self, masks: int | Literal["fresh"]) -> Self:
        """The same detector with other dropout masks; its threshold is that of this one.

        Args:
            masks: a seed, or "fresh" for others at each call.

        Raises:
            InputError: when the seed is negative.
        """
        if masks != "fresh":
            check_seed(masks)
        return copy.copy(self)._with(replace(self._settings, masks=masks))  # noqa: SLF001 - another of its kind

    # ---- the file --------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the detector, without its classifier, as one safetensors file.

        Args:
            path: of the file; an older one is replaced only when the new one is complete.

        Raises:
            NotFittedError: before :meth:`fit`.
            WrongModelError: when the classifier has changed since :meth:`fit`.
            OutputError: when the file cannot be written.
        """
        fitted = self._need(self._fitted, _FIT)
        self._check_model()
        settings = self._settings
        facts = {
            "passes": settings.passes,
            "seed": settings.seed,
            "masks": settings.masks,
            "combiner": settings.combiner,
            "batch_size": settings.batch_size,
            "logits": logits_facts(self._logits),
            "trust_outputs": settings.trust_outputs,
        }
        record = Record(
            type(self.model).__name__,
            facts,
            settings.metrics,
            fitted,
            self._taught,
            self._calibration,
        )
        write_file(path, *record.parts())

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        model: nn.Module,
        *,
        metrics: Sequence[Metric] = (),
        logits: Logits = None,
    ) -> Self:
        """Read a detector from a file for the classifier it was fitted on; the file holds no code.

        Args:
            path: of a file that :meth:`save` wrote.
            model: the classifier, in the state it had then.
            metrics: an instance of each metric that is not one of leery's own.
            logits: as given to the detector, where that was a function.

        Raises:
            DetectorFileError: when the file is missing, damaged, foreign or of another format.
            WrongModelError: when it belongs to another classifier.
        """
        tensors, facts = read_file(path)
        where = logits_of_facts(facts["settings"]["logits"], logits)
        wrapped = with_logits(model, where)
        _check_same(path, facts, wrapped)
        try:
            record = Record.of(tensors, facts, metrics)
            detector = cls(
                wrapped,
                feature_layer=record.fitted.head,
                passes=facts["settings"]["passes"],
                seed=facts["settings"]["seed"],
                metrics=record.prototypes,
                combiner=facts["settings"]["combiner"],
                bounds=record.fitted.inputs.bounds,
                batch_size=facts["settings"]["batch_size"],
                trust_outputs=facts["settings"]["trust_outputs"],
            ).with_masks(facts["settings"]["masks"])
        except DetectorFileError:
            raise
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
        return detector._restored(where, record)  # noqa: SLF001 - another of its kind

    # ---- inside ----------------------------------------------------------------------------------

    def _with(self, settings: Settings) -> Self:
        """Itself under other settings."""
        self._settings = settings
        if self._fitted is not None:
            self._take(self._fitted, self._taught, self._calibration)
        return self

    def _restored(self, where: Logits, record: Record) -> Self:
        """Itself with what a file holds."""
        self._logits = where
        self._take(record.fitted, record.taught, record.calibration)
        return self

    def _take(self, fitted: Fitted, taught: Taught | None, calibration: Calibration | None) -> None:
        """Replace all that was learned."""
        settings = self._settings
        fresh = settings.masks == "fresh"
        observer = Observer(
            self.model,
            needs_of(fitted.metrics),
            head=fitted.head,
            each=fitted.each,
            passes=settings.passes,
            seed=settings.seed if settings.masks == "fresh" else settings.masks,
            view_seed=settings.seed,
            fresh=fresh,
            bounds=fitted.inputs.bounds,
            pixels=(fitted.inputs.low, fitted.inputs.high),
            batch_size=settings.batch_size,
        )
        self._fitted, self._taught, self._calibration = fitted, taught, calibration
        self._observer, self._checked = observer, None

    def _ready(self, images: Tensor) -> tuple[Fitted, Observer]:
        """What the fit left, after checks of the images and of the classifier."""
        fitted = self._need(self._fitted, _FIT)
        fitted.inputs.check(images)
        self._check_model()
        return fitted, self._need(self._observer, _FIT)

    def _measured(self, images: Tensor) -> Iterator[tuple[Observation, Tensor]]:
        fitted, observer = self._ready(images)
        return measured(fitted.metrics, observer.stream(images))

    def _verdicts(self, seen: Observation, values: Tensor, taught: Taught) -> Verdicts:
        contributions = taught.combiner.contributions(values, seen.predicted)
        score = taught.combiner.total(contributions).cpu().numpy()
        predicted = seen.predicted.cpu().numpy()
        calibration = self._calibration
        return Verdicts(
            names=taught.combiner.names,
            predicted=predicted,
            probabilities=seen.logits.double().softmax(1).cpu().numpy(),
            score=score,
            p_value=None if calibration is None else calibration.p_values(score, predicted),
            adversarial=None if calibration is None else calibration.flagged(score, predicted),
            metrics=values.cpu().numpy(),
            contributions=contributions.cpu().numpy(),
        )

    def _teach(
        self,
        clean: CleanImages,
        negatives: Sequence[MetricTable],
        positives: Sequence[MetricTable],
        seen: Tensor,
    ) -> Taught:
        """A combiner taught with measured images."""
        fitted = self._need(self._fitted, _FIT)
        combiner = make_combiner(
            self._settings.combiner, [Facts.of(metric) for metric in fitted.metrics]
        )
        tables = MetricTable.joined([*negatives, *positives])
        adversarial = np.arange(len(tables)) >= sum(map(len, negatives))
        combiner.fit(
            tables.values, tables.predicted, adversarial=adversarial if positives else None
        )
        return Taught(combiner, clean.tables["clean"], seen.unique())

    def _promised(self, promised: Calibration, found: CleanImages, taught: Taught) -> Calibration:
        """The calibration by measured images, those of each kind that count."""
        kinds = [table.rows(found.judged_right(table)) for table in found.tables.values()]
        together = MetricTable.joined(kinds)
        scores = taught.combiner(
            torch.from_numpy(together.values), torch.from_numpy(together.predicted)
        )
        return replace(
            promised,
            scores=scores.numpy(),
            predicted=together.predicted,
            kinds=tuple(found.tables),
            kind=np.repeat(np.arange(len(kinds)), [len(table) for table in kinds]),
            right_only=found.labels is not None,
        )

    def _changes(self, harmless: Mapping[str, Harmless] | None) -> Mapping[str, Harmless]:
        inputs = self.inputs_
        if harmless is None:
            return HARMLESS if inputs.are_images else {}
        if harmless and inputs.bounds is None:
            message = (
                "expected the bounds of the pixels for harmless changes, got none; pass bounds= to "
                "the detector, or harmless={}"
            )
            raise InputError(message)
        return harmless

    def _attacked(self, attack: Attack, images: Tensor, labels: Tensor) -> Tensor:
        """Adversarial versions of images, within the detector's bounds if the attack has none."""
        return placed(attack, self.inputs_.bounds)(self.model, images, labels)

    def _check_taught_by(self, attacked: bool) -> None:
        """Refuse images that the combiner does not learn from, or too few kinds of them."""
        learns = self._settings.combiner == "logistic"
        if learns and not attacked:
            message = (
                "expected adversarial images or attacks for the logistic combiner, got neither; "
                'pass some or use combiner="conformal"'
            )
            raise InputError(message)
        if attacked and not learns:
            message = (
                "expected no adversarial images and no attacks for the conformal combiner, got "
                'some; leave them out or use combiner="logistic"'
            )
            raise InputError(message)

    def _check_unseen(self, clean: Images) -> None:
        """Refuse a tensor of training images before it is measured."""
        fitted = self._need(self._fitted, _FIT)
        if isinstance(clean, Tensor):
            fitted.inputs.check(clean)
            check_unseen(image_hashes(clean, fitted.grid), fitted)

    def _check_least(self, images: Sequence[Images], share: int = 1) -> None:
        """Refuse too few images for the combiner before they are measured."""
        counts = [known_count(part) for part in images]
        least = COMBINERS[self._settings.combiner].least
        if not counts or None in counts:
            return
        count = sum(count for count in counts if count is not None) // share
        if count < least:
            message = (
                f"expected at least {least} images that are not adversarial, got {count}; add some"
            )
            raise InputError(message)

    def _check_model(self) -> None:
        """Refuse to build on a fit whose classifier has changed since.

        Its weights are read only when torch has counted a change of them.
        """
        changes = _changes(self.model)
        fitted = self._need(self._fitted, _FIT)
        if changes == self._checked:
            return
        if fingerprint(self.model) != fitted.fingerprint:
            message = (
                "expected the classifier as it was at the fit, got changed layers or weights; "
                "fit the detector again"
            )
            raise WrongModelError(message)
        self._checked = changes

    def _need_taught(self) -> Taught:
        """What taught the combiner, after the fit."""
        self._need(self._fitted, _FIT)
        conformal = self._settings.combiner == "conformal"
        return self._need(self._taught, _CALIBRATE if conformal else _TEACH)

    def _need(self, part: T | None, call: str) -> T:
        if part is None:
            message = f"expected a detector after {call}, got one before it; call it first"
            raise NotFittedError(message)
        return part


def _example(inputs: InputSpec) -> Tensor:
    """Two inputs of that kind."""
    generator = torch.Generator().manual_seed(0)
    if inputs.dtype is torch.uint8:
        return torch.randint(0, 256, (2, *inputs.shape), generator=generator).to(inputs.dtype)
    if inputs.dtype.is_floating_point:
        shares = torch.rand((2, *inputs.shape), generator=generator)
        return (inputs.low + (inputs.high - inputs.low) * shares).to(inputs.dtype)
    # Token ids: 0 is often padding, of which an input must not consist.
    example = torch.ones((2, *inputs.shape), dtype=inputs.dtype)
    example[1, ..., -1:] = 0
    return example


def _refuse_labels(adversarial: Images | None) -> None:
    """Refuse a label vector in the place of adversarial images."""
    if isinstance(adversarial, Tensor) and adversarial.ndim == 1:
        message = (
            f"expected adversarial images, got {adversarial.dtype} of shape "
            f"{tuple(adversarial.shape)}, which looks like labels; pass labels as the second "
            "argument"
        )
        raise InputError(message)


def _check_same(path: str | os.PathLike[str], facts: Mapping[str, Any], model: nn.Module) -> None:
    """Refuse a classifier that is not the one of a file.

    Raises:
        WrongModelError: then.
    """
    found = fingerprint(model)
    if facts["classifier_sha256"] != found:
        message = (
            f"expected the classifier that {path} was fitted on "
            f"({listed([facts['classifier']])}, SHA-256 "
            f"{listed([facts['classifier_sha256'][:12]])}...), got {type(model).__name__} with "
            f"{found[:12]}...; load the right weights or fit a new detector"
        )
        raise WrongModelError(message)


def _changes(model: nn.Module) -> object:
    """Equal as long as no weight was written or replaced, and no submodule."""
    tensors = [*own_tensors(model)]
    return (
        [(module, module.extra_repr()) for module in model.modules()],
        # Writes through .data are not counted; they rarely leave all of these as they were.
        [_sampled(part.detach()) for part in tensors],
        [(id(part), 0 if part.is_inference() else part._version) for part in tensors],  # noqa: SLF001 - its count of writes
    )


def _sampled(values: Tensor) -> list[float]:
    """Some elements of a tensor, without a copy of it."""
    reach = sum((size - 1) * step for size, step in zip(values.shape, values.stride(), strict=True))
    # In whatever order they lie in memory, if they fill it.
    dense = 0 < values.numel() == reach + 1
    flat = values.as_strided((values.numel(),), (1,)) if dense else values.reshape(-1)
    found: list[float] = flat[:: max(1, values.numel() // 16)].tolist()
    return found
