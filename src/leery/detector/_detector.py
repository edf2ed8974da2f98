"""The public Detector class."""

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from leery._checks import Bounds, check_count, check_seed, check_share
from leery.attacks import HARMLESS, Attack, Harmless, check_harmless, placed
from leery.calibration import Calibration, Promise
from leery.certify import Sentinel
from leery.combiners import COMBINERS, Combiner, CombinerName, Facts, make_combiner
from leery.detector._beside import (
    SENTINEL,
    Together,
    check_same_images,
    fitted_sentinel,
    sentinel_of,
    with_images_of,
)
from leery.detector._clean import CleanImages, check_unseen, measure_clean, no_labels
from leery.detector._explanation import Explanation, percentiles
from leery.detector._file import Record
from leery.detector._fitting import Start, fit, needs_of
from leery.detector._learned import Learned
from leery.detector._measuring import measured
from leery.detector._settings import Settings
from leery.detector._state import Fitted, FittedCombiner
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
    image_hashes,
    logits_facts,
    logits_of_facts,
    own_tensors,
    with_logits,
)
from leery.observation import Observation, Observer
from leery.training import FitParts

__all__ = ["Detector"]

T = TypeVar("T")

_FIT = "fit(images, labels)"
_FIT_COMBINER = "fit_combiner(clean, adversarial=...)"
_CALIBRATE = "calibrate(clean, fpr=...)"


class Detector:
    """Detects adversarial inputs of a classifier.

    The short path is ``Detector(model).fit(train).calibrate(held_out, fpr=0.01).judge(images)``.
    All methods accept images as a tensor ``(N, ...)``; most also accept an iterable of batches,
    such as a ``DataLoader``. Every call restores the state of the classifier, and the score of an
    image does not depend on the other images in the batch.

    Args:
        model: the classifier; returns logits ``(N, classes)``, as a tensor or in a field
            ``logits``.
        feature_layer: the submodule whose output is the last hidden layer, or "input of " followed
            by a submodule; by default the input of the linear layer that returns the logits.
        passes: number of Monte-Carlo dropout passes.
        seed: random seed of the dropout masks, which belong to the detector, of the selection of
            references, and of harmless changes.
        metrics: names from :data:`leery.METRICS` and instances of :class:`leery.metrics.Metric`,
            which are copied before the fit. By default those recommended for the type of input: for
            images :data:`leery.RECOMMENDED_METRICS`, for which the fit trains an auxiliary
            network (minutes on a CPU).
        bandwidth: bandwidth of the kernel density, in the units of the features; or "likelihood",
            which maximizes the leave-one-out likelihood of the training features, or
            "likelihood-per-class", which does so per class. The paper uses 1.7 for digits.
        references: maximum number of training images per class that the kernel density keeps; by
            default all.
        precision: "float16" halves the size of the stored features in the detector file.
        combiner: "conformal", which needs no adversarial image, or "logistic", a monotone variant
            of the paper's, which learns from adversarial images.
        bounds: lowest and highest pixel value, as two numbers or one pair per channel; by default
            (0, 1) if the training images lie within it, else unknown.
        logits: how to get the logits from the model's output: a field name, an index, or a function
            of the output.
        trust_outputs: True to accept outputs that look like probabilities as logits.
        batch_size: maximum number of images that a thread processes at once.
        sentinel: a sentinel of the same classifier (:mod:`leery.certify`), which flags images in
            addition to the combiner and certifies them; by default none. The fit trains a copy of
            it, unless it is fitted already.
        sentinel_share: the sentinel's share of the false alarms, in (0, 1).

    Attributes:
        model: the classifier.

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
        sentinel: Sentinel | None = None,
        sentinel_share: float = 0.5,
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
            sentinel=sentinel_of(sentinel, self.model),
            sentinel_share=sentinel_share,
        )
        self._fitted: Fitted | None = None
        self._sentinel: Sentinel | None = None
        self._combiner: FittedCombiner | None = None
        self._calibration: Calibration | None = None
        self._observer: Observer | None = None
        self._checked: object = None

    def __repr__(self) -> str:
        """Class of the classifier, and what has been fitted and calibrated."""
        state = "not fitted"
        if self._fitted is not None:
            state = f"fitted, inputs {self._fitted.inputs}"
            if self._fitted.head is not None:
                state += f", features {self._fitted.head!r}"
        if self.agreement_ is not None:
            state += f", auxiliary network agrees on {self.agreement_:.1%} of the clean images"
        if self._combiner is not None:
            state += f", {self._settings.combiner} combiner"
        if self._sentinel is not None:
            state += ", with a sentinel"
        if self.fpr_ is not None:
            state += f", false-alarm rate {self.fpr_:g}"
        return f"Detector({type(self.model).__name__}: {state})"

    # ---- properties ------------------------------------------------------------------------------

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of the metrics, in column order."""
        return tuple(metric.name for metric in self._settings.metrics)

    @property
    def left_out_(self) -> str | None:
        """Recommended metrics that the fit left out, why, and how to add them; None if none."""
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
        """The fitted combiner; None if it is not fitted yet."""
        return None if self._combiner is None else self._combiner.combiner

    @property
    def calibration_(self) -> Calibration | None:
        """The calibration scores and the promise of the combiner; None before :meth:`calibrate`.

        With a sentinel this promise is a share of the detector's own, :attr:`fpr_`.
        """
        return self._calibration

    @property
    def fpr_(self) -> float | None:
        """The promised false-alarm rate, in (0, 1); None before :meth:`calibrate`."""
        if self._calibration is None:
            return None
        beside = None if self._sentinel is None else self._sentinel.calibration_
        return self._calibration.fpr + (0 if beside is None else beside.fpr)

    @property
    def sentinel_(self) -> Sentinel | None:
        """The fitted sentinel, which certifies images; None without one, and before :meth:`fit`.

        Its own calibration is its share of the detector's.
        """
        return self._sentinel

    @property
    def feature_layer_(self) -> str | None:
        """The last hidden layer in use.

        Raises:
            NotFittedError: before :meth:`fit`.
        """
        return self._need(self._fitted, _FIT).head

    @property
    def accuracy_(self) -> float | None:
        """Accuracy of the classifier on the training images, in [0, 1].

        None in a detector that was loaded from a file.

        Raises:
            NotFittedError: before :meth:`fit`.
        """
        return self._need(self._fitted, _FIT).accuracy

    @property
    def agreement_(self) -> float | None:
        """Fraction of clean images on which the auxiliary network agrees with the classifier.

        In [0, 1], over the clean images on which the combiner was fitted. The two agree where the
        auxiliary network gives the predicted class a probability above one half. None without an
        auxiliary network or a combiner.
        """
        name = AuxiliaryAgreement.name
        if self._combiner is None or name not in self.metrics:
            return None
        odds = self._combiner.clean.values[:, self.metrics.index(name)]
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
        """True if :meth:`differentiable_score` is exact, False if it uses surrogates."""
        combiner = COMBINERS[self._settings.combiner]
        exact = all(metric.differentiable for metric in self._settings.metrics)
        return combiner.differentiable and exact

    # ---- fitting ---------------------------------------------------------------------------------

    def fit(
        self, images: Images, labels: Tensor | None = None, *, parts: FitParts | None = None
    ) -> Self:
        """Fit the metrics to clean training data.

        An earlier combiner and calibration are discarded. If the fit fails, the detector is
        unchanged.

        Args:
            images: clean training images ``(N, ...)``; or batches ``(images, labels)``.
            labels: int ``(N,)``, their true classes; every class must occur. None with batches.
            parts: storage of trained parts, such as the auxiliary network, from which an
                interrupted fit can be resumed; by default nothing is stored.

        Raises:
            NoDropoutError: when an uncertainty metric was requested and the model has no dropout.
            UnknownLayerError: when no feature layer was named and none was found.
            UnsupportedModelError: when the model does not return logits.
            InputError: when images or labels do not fit.
        """
        start, learned = fit(self.model, self._settings, images, labels, parts)
        return self._completed(start, learned, (images, labels), parts)

    def _completed(
        self,
        start: Start,
        learned: Learned,
        data: tuple[Images, Tensor | None],
        parts: FitParts | None,
    ) -> Self:
        """Complete a fit with what was learned from all training data."""
        fitted = start.finish(learned)
        sentinel = fitted_sentinel(self.model, start.settings, fitted, data, parts)
        if sentinel is not None:
            fitted = with_images_of(sentinel, fitted)
        self._settings = start.settings
        self._take(fitted, None, None, sentinel)
        return self

    def with_sentinel(self, sentinel: Sentinel, *, share: float = 0.5) -> Self:
        """A copy of the detector with a fitted sentinel; it must be calibrated anew.

        Args:
            sentinel: a fitted sentinel of the same classifier.
            share: the sentinel's share of the false alarms, in (0, 1).

        Raises:
            NotFittedError: before :meth:`fit`, or if the sentinel is not fitted.
            InputError: when the sentinel is of another classifier, or the share outside its range.
        """
        fitted = self._need(self._fitted, _FIT)
        sentinel_of(sentinel, self.model)
        check_same_images(sentinel, fitted)
        settings = replace(self._settings, sentinel=sentinel, sentinel_share=check_share(share))
        known = with_images_of(sentinel, fitted)
        return copy.copy(self)._beside(settings, known, sentinel)  # noqa: SLF001 - same class

    def fit_combiner(
        self,
        clean: Images,
        labels: Tensor | None = None,
        *,
        adversarial: Images | None = None,
        noisy: Images | None = None,
        attacks: Sequence[Attack] = (),
    ) -> Self:
        """Fit the combiner of the metrics; an earlier calibration is discarded.

        The logistic combiner learns from adversarial images, passed or made by ``attacks``; the
        conformal one learns from clean and noisy images only. An unfitted conformal combiner is
        fitted by :meth:`calibrate`.

        Args:
            clean: images that are not adversarial and were not in the fit.
            labels: int ``(N,)``, their true classes; needed for attacks.
            adversarial: any number of adversarial images.
            noisy: images with harmless noise, treated as not adversarial; without them a detector
                mistakes noise for an attack.
            attacks: attacks such as ``[PGD(0.3)]``, each run on the correctly classified clean
                images.

        Raises:
            NotFittedError: before :meth:`fit`.
            WrongModelError: when the classifier has changed since :meth:`fit`.
            InputError: when the images do not fit, are training images, or are of a kind that the
                combiner does not use.
        """
        fitted = self._need(self._fitted, _FIT)
        self._check_model()
        _refuse_labels(adversarial)
        self._check_combiner_input(adversarial is not None or len(attacks) > 0)
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
        self._combiner = self._combiner_fitted_to(found, negatives, positives, torch.cat(seen))
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
        """Set the threshold so that at most a fraction ``fpr`` of clean images is flagged.

        The promise holds for clean images that are exchangeable with these. Images that were used
        in the fit or for the combiner are left out, and so are duplicates. If the conformal
        combiner is not fitted yet, one half of the images fits it and the other half sets the
        threshold. A new calibration needs no new fit.

        Args:
            clean: images that are not adversarial.
            labels: int ``(N,)``, their true classes. With labels or labelled batches, misclassified
                images are left out, and the promise covers only correctly classified ones. A float
                is taken as ``fpr``.
            fpr: promised false-alarm rate, in (0, 1).
            promise: "marginal": the rate is kept on average over sets of calibration images;
                "pac": it is kept with this set, with probability ``confidence`` over such sets.
            confidence: confidence level of the promise "pac", in (0, 1).
            per_class: True to keep the promise within each predicted class.
            harmless: harmless changes by name; the promise is kept on the changed images too. By
                default :data:`leery.attacks.HARMLESS` for images with known bounds and none for
                other inputs; ``{}`` for none.

        Raises:
            NotFittedError: before :meth:`fit`, or before :meth:`fit_combiner` for the logistic
                combiner.
            WrongModelError: when the classifier has changed since :meth:`fit`.
            InputError: when a setting is outside its range, needs more images than there are, or
                more than a few are training images.

        Source:
            :class:`leery.calibration.Calibration`.
        """
        rate, truth = (labels, None) if isinstance(labels, float) else (fpr, labels)
        fitted = self._need(self._fitted, _FIT)
        if self._settings.combiner == "logistic":
            self._need(self._combiner, _FIT_COMBINER)
        nothing = np.empty(0)
        promised = Calibration(float(rate), promise, float(confidence), per_class, nothing, nothing)
        self._check_model()
        changes = self._changes(harmless)
        promises = self._promises(promised)
        # Settings and image counts are checked before any image is measured.
        self._check_unseen(clean)
        self._check_counts(clean, promises)
        whole = measure_clean(
            self._measure_all, fitted, clean, truth, harmless=changes, seed=self._settings.seed
        ).unseen(fitted, self._combiner)
        found, fitted_combiner = whole.only(fitted.names), self._combiner
        if fitted_combiner is None:
            first, found = found.halves(self._settings.seed)
            judged = [table.rows(first.judged_right(table)) for table in first.tables.values()]
            fitted_combiner = self._combiner_fitted_to(first, judged, [], first.hashes)
        calibration = found.calibrate(promises[0], fitted_combiner.score).checked(fitted.classes)
        if self._sentinel is not None:
            # The combiner learned nothing from the sentinel's scores: both halves serve.
            own = whole.calibrate(promises[1], lambda table: table.column(SENTINEL))
            self._sentinel = self._sentinel.calibrated(own.checked(fitted.classes))
        self._calibration, self._combiner = calibration, fitted_combiner
        return self

    # ---- judging ---------------------------------------------------------------------------------

    def judge(self, images: Images) -> Verdicts:
        """Class, score, p-value, verdict and metrics of each image, computed in one run.

        Raises:
            NotFittedError: before the combiner is fitted.
            WrongModelError: when the classifier has changed since :meth:`fit`.
            InputError: when the images do not fit.
        """
        fitted_combiner = self._need_combiner()
        parts: list[Verdicts] = []
        moments = Moments()
        for batch in image_batches(images):
            parts += [
                self._verdicts(seen, values, fitted_combiner)
                for seen, values in self._measured(batch)
            ]
            moments.add(batch)
        found = Verdicts.joined(parts)
        self.inputs_.compare(moments, len(found), "images")
        return found

    def score(self, images: Images) -> np.ndarray:
        """The combiner's score of each image.

        Returns:
            float64 ``(N,)``; larger is more suspicious. The log odds of the logistic combiner; for
            the conformal one, the negative log of a weighted power mean of p-values, in nats.

        Raises:
            NotFittedError, WrongModelError, InputError: as :meth:`judge`.
        """
        return self.judge(images).score

    def flag(self, images: Images) -> np.ndarray:
        """The verdict on each image, bool ``(N,)``, True for flagged images.

        Raises:
            NotFittedError: before :meth:`calibrate`.
            WrongModelError, InputError: as :meth:`judge`.
        """
        self._need(self._calibration, _CALIBRATE)
        flagged = self.judge(images).adversarial
        assert flagged is not None
        return flagged

    def p_value(self, images: Images) -> np.ndarray:
        """p-value of each image under the hypothesis that it is clean.

        It is that of the score. With a sentinel it is the weighted Bonferroni combination of both:
        min(p of the score / (1 - share), p of the sentinel / share, 1).

        Returns:
            float64 ``(N,)``, in [1 / (n + 1), 1] for n calibration images without a sentinel, in
            (0, 1] with one. Flagging images with p <= alpha keeps the false-alarm rate at or below
            alpha, on average over calibration sets.

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
        fitted_combiner = self._need_combiner()
        verdicts, beside = self.judge(images), self._clean_of_sentinel()
        return Explanation(
            verdicts,
            percentiles(verdicts.table, fitted_combiner.clean),
            fitted_combiner.combiner.intercept,
            None if beside is None else percentiles(verdicts.sentinel_table, beside)[:, 0],
        )

    def differentiable_score(self, images: Tensor) -> Tensor:
        """Differentiable version of :meth:`score`, with gradients to the images.

        Args:
            images: float ``(N, ...)``, on the classifier's device.

        Returns:
            float64 ``(N,)``, equal to :meth:`score` to rounding where :attr:`differentiable`.

        Raises:
            NotFittedError: before the combiner is fitted.
            InputError: when the combiner is not differentiable, or the images do not fit.
        """
        score: Tensor = self._differentiable_combiner()(*self.measure_with_gradient(images))
        return score

    def differentiable_excess(self, images: Tensor, *, apart: bool = False) -> Tensor:
        """By how much each image's score exceeds its threshold, with gradients to the images.

        With a sentinel it is the larger of the two excesses. It is above 0 for flagged images, and
        so is what an attacker who knows the detector brings down.

        Args:
            images: float ``(N, ...)``, on the classifier's device.
            apart: True for the excess of the score and, with a sentinel, that of the sentinel.

        Returns:
            float64 ``(N,)``, or ``(K, N)`` apart; in the units of the score and of the sentinel's.

        Raises:
            NotFittedError: before :meth:`calibrate`.
            InputError: as :meth:`differentiable_score`.
        """
        calibration = self._need(self._calibration, _CALIBRATE)
        combiner = self._differentiable_combiner()
        values, predicted = self.measure_with_gradient(images)
        found: list[Tensor] = [combiner(values, predicted) - _limits(calibration, predicted)]
        if self._sentinel is not None:
            beside = self._need(self._sentinel.calibration_, _CALIBRATE)
            own = self._sentinel.score_of(images, predicted).to(predicted.device)
            found.append(own - _limits(beside, predicted))
        each = torch.stack(found)
        return each if apart else each.amax(0)

    def measure_with_gradient(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Every metric, or its differentiable surrogate, with gradients to the images.

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
        """How passes are computed: the method, the random modules, what each pass repeats.

        Raises:
            NotFittedError: before :meth:`fit`.
        """
        observer = self._need(self._observer, _FIT)
        return observer.explain_plan(_example(self.inputs_))

    def warm_up(self, images: int = 1) -> Self:
        """Do the one-time work that otherwise delays the first call.

        The classifier's graph is captured, which can take seconds. A service should call this
        before it accepts requests and before it uses the detector in several threads. With masks
        that are drawn anew at each call, one set of masks is consumed.

        Args:
            images: number of images in a typical call; that many synthetic images are scored.

        Raises:
            NotFittedError: before :meth:`fit`.
            WrongModelError: when the classifier has changed since :meth:`fit`.
            InputError: when the number is below one.
        """
        count = check_count(images, "images")
        self.measure(_example(self.inputs_).repeat_interleave(-(-count // 2), 0)[:count])
        return self

    def has_seen(self, images: Tensor) -> np.ndarray:
        """Whether each image was used to fit the metrics, the combiner or the sentinel.

        Args:
            images: ``(N, ...)``.

        Returns:
            bool ``(N,)``; all False if the training data contain so many duplicates that a
            match proves nothing. The training images of a sentinel that ships with leery are not
            known.

        Raises:
            NotFittedError: before :meth:`fit`.
            InputError: when the images do not fit.
        """
        fitted = self._need(self._fitted, _FIT)
        fitted.inputs.check(images)
        if not len(fitted.seen):
            return np.zeros(len(images), dtype=bool)
        learned = [fitted.seen, *([] if self._combiner is None else [self._combiner.seen])]
        return torch.isin(image_hashes(images, fitted.grid), torch.cat(learned)).numpy()

    def with_masks(self, masks: int | Literal["fresh"]) -> Self:
        """A copy of the detector with other dropout masks and the same threshold.

        Args:
            masks: random seed of the masks, or "fresh" to draw new ones at each call.

        Raises:
            InputError: when the seed is negative.
        """
        if masks != "fresh":
            check_seed(masks)
        return copy.copy(self)._with(replace(self._settings, masks=masks))  # noqa: SLF001 - same class

    # ---- the file --------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the detector, without its classifier, as one safetensors file.

        Args:
            path: path of the file; an older file is replaced only when the new one is complete.

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
            self._combiner,
            self._calibration,
            None if self._sentinel is None else (*self._sentinel.parts(), settings.sentinel_share),
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
            path: path of a file written by :meth:`save`.
            model: the classifier, in the state it had then.
            metrics: an instance of each custom metric of the detector.
            logits: the function that the detector was given as ``logits``, if it was one.

        Raises:
            DetectorFileError: when the file is missing, damaged, of another format or not a
                detector.
            WrongModelError: when it belongs to another classifier.
        """
        tensors, facts = read_file(path)
        where = logits_of_facts(facts["settings"]["logits"], logits)
        wrapped = with_logits(model, where)
        _check_same(path, facts, wrapped)
        try:
            record = Record.of(tensors, facts, metrics)
            sentinel = record.sentinel_of(wrapped)
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
                sentinel=sentinel,
                sentinel_share=0.5 if record.sentinel is None else record.sentinel[2],
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
                f"expected a valid detector file at {path}, got one with missing or wrong parts "
                f"({brief(error)}); save the detector again"
            )
            raise DetectorFileError(message) from error
        return detector._restored(where, record, sentinel)  # noqa: SLF001 - same class

    # ---- internals -------------------------------------------------------------------------------

    def _with(self, settings: Settings) -> Self:
        """Apply other settings and return self."""
        self._settings = settings
        if self._fitted is not None:
            self._take(self._fitted, self._combiner, self._calibration, self._sentinel)
        return self

    def _beside(self, settings: Settings, fitted: Fitted, sentinel: Sentinel) -> Self:
        """Take a sentinel, without calibration, and return self."""
        self._settings = settings
        self._take(fitted, self._combiner, None, sentinel.calibrated(None))
        return self

    def _restored(self, where: Logits, record: Record, sentinel: Sentinel | None) -> Self:
        """Restore the contents of a file and return self."""
        self._logits = where
        self._take(record.fitted, record.combiner, record.calibration, sentinel)
        return self

    def _take(
        self,
        fitted: Fitted,
        fitted_combiner: FittedCombiner | None,
        calibration: Calibration | None,
        sentinel: Sentinel | None,
    ) -> None:
        """Replace the whole fitted state."""
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
        self._fitted, self._combiner, self._calibration = fitted, fitted_combiner, calibration
        self._observer, self._checked, self._sentinel = observer, None, sentinel

    def _ready(self, images: Tensor) -> tuple[Fitted, Observer]:
        """The fitted state and the observer, after checks of the images and the classifier."""
        fitted = self._need(self._fitted, _FIT)
        fitted.inputs.check(images)
        self._check_model()
        return fitted, self._need(self._observer, _FIT)

    def _measured(self, images: Tensor) -> Iterator[tuple[Observation, Tensor]]:
        fitted, observer = self._ready(images)
        return measured(fitted.metrics, observer.stream(images))

    def _verdicts(
        self, seen: Observation, values: Tensor, fitted_combiner: FittedCombiner
    ) -> Verdicts:
        contributions = fitted_combiner.combiner.contributions(values, seen.predicted)
        score = fitted_combiner.combiner.total(contributions).cpu().numpy()
        predicted = seen.predicted.cpu().numpy()
        own = None if self._sentinel is None else self._sentinel_scores(seen)
        judged = self._judged(score, predicted, own)
        return Verdicts(
            names=fitted_combiner.combiner.names,
            predicted=predicted,
            probabilities=seen.logits.double().softmax(1).cpu().numpy(),
            score=score,
            p_value=None if judged is None else judged.p_value,
            adversarial=None if judged is None else judged.flagged,
            metrics=values.cpu().numpy(),
            contributions=contributions.cpu().numpy(),
            sentinel=own,
            sentinel_flagged=None if judged is None else judged.by_sentinel,
        )

    def _clean_of_sentinel(self) -> MetricTable | None:
        """The sentinel's scores of its clean calibration images; None if there are none."""
        calibration = None if self._sentinel is None else self._sentinel.calibration_
        if calibration is None:
            return None
        clean = calibration.kind == 0
        scores = calibration.scores[clean, np.newaxis]
        return MetricTable((SENTINEL,), scores, calibration.predicted[clean])

    def _judged(
        self, score: np.ndarray, predicted: np.ndarray, own: np.ndarray | None
    ) -> Together | None:
        """The p-values and verdicts; None before calibration."""
        if self._calibration is None:
            return None
        if own is None or self._sentinel is None:
            return Together.of(score, predicted, self._calibration, None)
        beside = self._sentinel.calibration_
        assert beside is not None
        sentinel = own, beside, self._settings.sentinel_share
        return Together.of(score, predicted, self._calibration, sentinel)

    def _combiner_fitted_to(
        self,
        clean: CleanImages,
        negatives: Sequence[MetricTable],
        positives: Sequence[MetricTable],
        seen: Tensor,
    ) -> FittedCombiner:
        """Fit a combiner on measured images."""
        fitted = self._need(self._fitted, _FIT)
        combiner = make_combiner(
            self._settings.combiner, [Facts.of(metric) for metric in fitted.metrics]
        )
        tables = MetricTable.joined([*negatives, *positives])
        adversarial = np.arange(len(tables)) >= sum(map(len, negatives))
        combiner.fit(
            tables.values, tables.predicted, adversarial=adversarial if positives else None
        )
        return FittedCombiner(combiner, clean.tables["clean"], seen.unique())

    def _promises(self, promised: Calibration) -> list[Calibration]:
        """The promise of the combiner, and with a sentinel also the sentinel's."""
        if self._sentinel is None:
            return [promised]
        share = self._settings.sentinel_share
        return [promised.share(1 - share), promised.share(share)]

    def _check_counts(self, clean: Images, promises: Sequence[Calibration]) -> None:
        """Raise if there are too few images for the promises or the combiner."""
        count, halved = known_count(clean), self._combiner is None
        if count is None:
            return
        for place, promise in enumerate(promises):
            promise.check_count(count, self.classes_, halved=halved and place == 0)
        self._check_least([clean] if halved else [], share=2)

    def _measure_all(self, images: Images) -> MetricTable:
        """Every metric, and with a sentinel a last column with its scores."""
        if self._sentinel is None:
            return self.measure(images)
        parts = [
            MetricTable(
                (*self.metrics, SENTINEL),
                np.column_stack([values.cpu().numpy(), self._sentinel_scores(seen)]),
                seen.predicted.cpu().numpy(),
            )
            for batch in image_batches(images)
            for seen, values in self._measured(batch)
        ]
        return MetricTable.joined(parts)

    def _sentinel_scores(self, seen: Observation) -> np.ndarray:
        """The sentinel's scores, float64 ``(N,)``."""
        sentinel = self._sentinel
        assert sentinel is not None
        with torch.no_grad():
            found: np.ndarray = sentinel.score_of(seen.images, seen.predicted).cpu().numpy()
        return found

    def _changes(self, harmless: Mapping[str, Harmless] | None) -> Mapping[str, Harmless]:
        inputs = self.inputs_
        if harmless is None:
            return HARMLESS if inputs.are_images else {}
        return check_harmless(harmless, inputs.bounds)

    def _attacked(self, attack: Attack, images: Tensor, labels: Tensor) -> Tensor:
        """Adversarial versions of images, within the detector's bounds if the attack has none."""
        return placed(attack, self.inputs_.bounds)(self.model, images, labels)

    def _check_combiner_input(self, attacked: bool) -> None:
        """Raise if adversarial images are missing for, or unused by, the combiner."""
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
        """Raise before measuring if a tensor holds training images."""
        fitted = self._need(self._fitted, _FIT)
        if isinstance(clean, Tensor):
            fitted.inputs.check(clean)
            check_unseen(image_hashes(clean, fitted.grid), fitted)

    def _check_least(self, images: Sequence[Images], share: int = 1) -> None:
        """Raise before measuring if there are too few images for the combiner."""
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
        """Raise if the classifier has changed since the fit.

        All weights are read only if version counters or sampled elements differ.
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

    def _differentiable_combiner(self) -> Combiner:
        """The fitted combiner.

        Raises:
            NotFittedError: before it is fitted.
            InputError: when it is not differentiable.
        """
        combiner = self._need_combiner().combiner
        if not combiner.differentiable:
            message = (
                f"expected a differentiable combiner, got the {self._settings.combiner} one; "
                'use combiner="logistic"'
            )
            raise InputError(message)
        return combiner

    def _need_combiner(self) -> FittedCombiner:
        """The fitted combiner and its data; raises if there is none."""
        self._need(self._fitted, _FIT)
        conformal = self._settings.combiner == "conformal"
        return self._need(self._combiner, _CALIBRATE if conformal else _FIT_COMBINER)

    def _need(self, part: T | None, call: str) -> T:
        if part is None:
            message = f"expected a detector after {call}, got one without this step; call it first"
            raise NotFittedError(message)
        return part


def _example(inputs: InputSpec) -> Tensor:
    """Two synthetic inputs that match the specification."""
    generator = torch.Generator().manual_seed(0)
    if inputs.dtype is torch.uint8:
        return torch.randint(0, 256, (2, *inputs.shape), generator=generator).to(inputs.dtype)
    if inputs.dtype.is_floating_point:
        shares = torch.rand((2, *inputs.shape), generator=generator)
        return (inputs.low + (inputs.high - inputs.low) * shares).to(inputs.dtype)
    # Token ids: 0 is often padding, and an input must not be all padding.
    example = torch.ones((2, *inputs.shape), dtype=inputs.dtype)
    example[1, ..., -1:] = 0
    return example


def _refuse_labels(adversarial: Images | None) -> None:
    """Raise if a label vector is passed as adversarial images."""
    if isinstance(adversarial, Tensor) and adversarial.ndim == 1:
        message = (
            f"expected adversarial images, got {adversarial.dtype} of shape "
            f"{tuple(adversarial.shape)}, which looks like labels; pass labels as the second "
            "argument"
        )
        raise InputError(message)


def _check_same(path: str | os.PathLike[str], facts: Mapping[str, Any], model: nn.Module) -> None:
    """Raise if the classifier is not the one that the file was saved for.

    Raises:
        WrongModelError: when it is another classifier.
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
    """A snapshot that compares equal unless a weight or submodule was changed or replaced."""
    tensors = [*own_tensors(model)]
    return (
        [(module, module.extra_repr()) for module in model.modules()],
        # Writes through .data do not raise _version, but rarely leave all sampled elements equal.
        [_sampled(part.detach()) for part in tensors],
        [(id(part), 0 if part.is_inference() else part._version) for part in tensors],  # noqa: SLF001 - version counter
    )


def _sampled(values: Tensor) -> list[float]:
    """A sample of the elements of a tensor, without copying the tensor."""
    reach = sum((size - 1) * step for size, step in zip(values.shape, values.stride(), strict=True))
    # A dense tensor is read in memory order, whatever its strides.
    dense = 0 < values.numel() == reach + 1
    flat = values.as_strided((values.numel(),), (1,)) if dense else values.reshape(-1)
    found: list[float] = flat[:: max(1, values.numel() // 16)].tolist()
    return found


def _limits(calibration: Calibration, predicted: Tensor) -> Tensor:
    """The threshold of each predicted class, float64 ``(N,)``."""
    found = torch.from_numpy(calibration.thresholds(predicted.cpu().numpy()))
    return found.to(predicted.device)
