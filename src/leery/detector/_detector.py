"""The detector as users see it."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from leery._checks import check_images, check_labels
from leery.detector._combiner import Combiner
from leery.detector._fingerprint import fingerprint
from leery.detector._registry import (
    CLOSENESS,
    PAPER_METRICS,
    UNCERTAINTY,
    Closeness,
    check_metrics,
)
from leery.detector._storage import read_file, write_file
from leery.detector._table import MetricTable
from leery.errors import DetectorFileError, InputError, NotFittedError, WrongModelError
from leery.features import check_layer, extract_features
from leery.mc_dropout import MCDropout, Observation

__all__ = ["Detector"]

PAPER_BANDWIDTH = 1.7

T = TypeVar("T")


@dataclass(frozen=True)
class _Calibration:
    """A threshold and the promise it keeps."""

    fpr: float
    threshold: float
    count: int


class Detector:
    """Tells adversarial inputs of a classifier from others.

    Fit it on clean training data, teach the combiner with clean and adversarial images, calibrate
    it on other clean images, then ask for verdicts. The classifier is left as it was by every
    call, and the score of an image does not depend on what else is in the batch.

    Args:
        model: the classifier; returns logits ``(N, classes)``.
        feature_layer: the submodule whose output is the last hidden layer.
        passes: the number of Monte-Carlo dropout passes.
        seed: of the dropout masks, which belong to the detector.
        metrics: names out of :data:`leery.METRICS`.
        bandwidth: of the kernel density, in the units of the features; 1.7 is the paper's for
            digits.
        batch_size: how many images are worked on at once.

    Raises:
        UnknownLayerError: when the model has no such layer.
        NoDropoutError: when a metric of uncertainty is asked for and the model has no dropout.
        InputError: when another setting is outside its range.

    Source:
        Tuna, Catak, Eskil (2020). Departure: the dropout masks are fixed; see
        :class:`leery.mc_dropout.MCDropout`.
    """

    def __init__(
        self,
        model: nn.Module,
        feature_layer: str,
        *,
        passes: int = 50,
        seed: int = 0,
        metrics: Sequence[str] = PAPER_METRICS,
        bandwidth: float = PAPER_BANDWIDTH,
        batch_size: int = 256,
    ) -> None:
        check_layer(model, feature_layer)
        self.model = model
        self.feature_layer = feature_layer
        self.passes = passes
        self.seed = seed
        self.metrics = check_metrics(metrics)
        self.bandwidth = bandwidth
        self.batch_size = batch_size
        self.closeness_: dict[str, Closeness] | None = None
        self.combiner_: Combiner | None = None
        self.calibration_: _Calibration | None = None
        self._fingerprint: str | None = None
        self._classes = 0
        self._closeness = {
            name: CLOSENESS[name](bandwidth) for name in self.metrics if name in CLOSENESS
        }
        self._sampler = (
            MCDropout(model, passes, seed, layer=feature_layer, batch_size=batch_size)
            if any(name in UNCERTAINTY for name in self.metrics)
            else None
        )

    def fit(self, images: Tensor, labels: Tensor) -> Self:
        """Learn what clean data looks like in the last hidden layer.

        A combiner and a calibration from before are forgotten.

        Args:
            images: clean training images ``(N, ...)``.
            labels: int ``(N,)``, their true classes; every class must occur.

        Raises:
            InputError: when images or labels do not fit.
        """
        check_images(images)
        check_labels(labels, len(images))
        features, logits = extract_features(
            self.model, images, self.feature_layer, batch_size=self.batch_size
        )
        classes = logits.shape[1]
        check_labels(labels, len(images), classes)
        missing = sorted(set(range(classes)) - set(labels.unique().tolist()))
        if missing:
            message = (
                f"expected training images of all {classes} classes, got none of {missing}; "
                "add some"
            )
            raise InputError(message)
        labels = labels.to(features.device)
        self.closeness_ = {
            name: metric.fit(features, labels) for name, metric in self._closeness.items()
        }
        self._fingerprint = fingerprint(self.model)
        self._classes = classes
        self.combiner_ = self.calibration_ = None
        return self

    def measure(self, images: Tensor) -> MetricTable:
        """Every metric of every image.

        Args:
            images: ``(N, ...)``.

        Raises:
            NotFittedError: before :meth:`fit`.
            InputError: when the images do not fit.
        """
        closeness = self._fitted(self.closeness_, "fit(images, labels)")
        check_images(images)
        values, predicted = [], []
        for seen in self._observe(images):
            classes = seen.logits.argmax(1)
            columns = [self._column(name, seen, classes, closeness) for name in self.metrics]
            values.append(torch.stack(columns, dim=1).cpu())
            predicted.append(classes.cpu())
        return MetricTable(self.metrics, torch.cat(values).numpy(), torch.cat(predicted).numpy())

    def fit_combiner(self, clean: Tensor, adversarial: Tensor, noisy: Tensor | None = None) -> Self:
        """Learn how to weigh the metrics; a calibration from before is forgotten.

        Args:
            clean: images ``(N, ...)`` that are not adversarial.
            adversarial: images that are.
            noisy: images with harmless noise, which count as not adversarial.

        Raises:
            NotFittedError: before :meth:`fit`.
            WrongModelError: when the classifier has changed since :meth:`fit`.
            InputError: when the images do not fit.
        """
        self._check_model()
        others = [clean] if noisy is None else [clean, noisy]
        negatives = [self.measure(images).values for images in others]
        positives = self.measure(adversarial).values
        values = np.concatenate([*negatives, positives])
        truth = np.arange(len(values)) >= len(values) - len(positives)
        self.combiner_ = Combiner.fit(values, truth)
        self.calibration_ = None
        return self

    def score(self, images: Tensor) -> np.ndarray:
        """How adversarial each image looks: the combiner's log odds.

        Args:
            images: ``(N, ...)``.

        Returns:
            float64 ``(N,)``; larger is more adversarial.

        Raises:
            NotFittedError: before :meth:`fit_combiner`.
            InputError: when the images do not fit.
        """
        combiner = self._fitted(self.combiner_, "fit_combiner(clean, adversarial)")
        return combiner.score(self.measure(images).values)

    def calibrate(self, clean: Tensor, fpr: float = 0.05) -> Self:
        """Choose the threshold so that at most a share ``fpr`` of clean images is flagged.

        The promise holds on average over sets of clean images that are exchangeable with these;
        use images that neither :meth:`fit` nor :meth:`fit_combiner` has seen. It can be repeated
        at any time without a new fit.

        Args:
            clean: images ``(N, ...)``.
            fpr: the false-alarm rate, in (0, 1).

        Raises:
            NotFittedError: before :meth:`fit_combiner`.
            WrongModelError: when the classifier has changed since :meth:`fit`.
            InputError: when the rate is outside its range or needs more images than there are.

        Source:
            Split conformal prediction: Vovk, Gammerman, Shafer (2005); the threshold flags an
            image when its p-value ``(1 + #{clean scores >= its own}) / (N + 1)`` is at most fpr.
        """
        if not 0 < fpr < 1:
            message = f"expected a false-alarm rate between 0 and 1, got {fpr}; correct it"
            raise InputError(message)
        self._check_model()
        scores = self.score(clean)
        # The tolerance keeps, say, 0.05 * 20 from falling below 1 by rounding.
        rank = min(math.floor(fpr * (len(scores) + 1) + 1e-9), len(scores))
        if rank < 1:
            needed = math.ceil(1 / fpr - 1e-9) - 1
            message = (
                f"expected at least {needed} clean images for a false-alarm rate of {fpr:g}, got "
                f"{len(scores)}; add images or raise the rate"
            )
            raise InputError(message)
        threshold = float(np.sort(scores)[-rank])
        self.calibration_ = _Calibration(fpr, threshold, len(scores))
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
        return self.score(images) > calibration.threshold

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
        self._check_model()
        tensors = {
            f"{name}/{part}": tensor
            for name, metric in closeness.items()
            for part, tensor in metric.to_tensors().items()
        }
        facts: dict[str, Any] = {
            "classifier_sha256": self._fingerprint,
            "classes": self._classes,
            "settings": self._settings(),
        }
        if self.combiner_ is not None:
            for part in ("mean", "scale", "weights"):
                tensors[f"combiner/{part}"] = torch.from_numpy(getattr(self.combiner_, part))
            facts["intercept"] = self.combiner_.intercept
        if self.calibration_ is not None:
            facts["calibration"] = asdict(self.calibration_)
        write_file(path, tensors, facts)

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
        found = fingerprint(model)
        if facts.get("classifier_sha256") != found:
            message = (
                f"expected the classifier that {path} was fitted on (SHA-256 "
                f"{str(facts.get('classifier_sha256'))[:12]}...), got {type(model).__name__} with "
                f"{found[:12]}...; load the right weights or fit a new detector"
            )
            raise WrongModelError(message)
        try:
            detector = cls(model, **facts["settings"])
            detector._restore(tensors, facts)
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            message = (
                f"expected a whole detector file at {path}, got one with missing or wrong parts "
                f"({error}); save the detector again"
            )
            raise DetectorFileError(message) from error
        return detector

    def _check_model(self) -> None:
        """Refuse to build on a fit whose classifier has changed since."""
        if self._fingerprint is not None and fingerprint(self.model) != self._fingerprint:
            message = (
                "expected the classifier as it was at the fit, got changed layers or weights; "
                "fit the detector again"
            )
            raise WrongModelError(message)

    def _settings(self) -> dict[str, Any]:
        return {
            "feature_layer": self.feature_layer,
            "passes": self.passes,
            "seed": self.seed,
            "metrics": list(self.metrics),
            "bandwidth": self.bandwidth,
            "batch_size": self.batch_size,
        }

    def _restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        self._classes = int(facts["classes"])
        expected = {str(label) for label in range(self._classes)}
        self.closeness_ = {}
        for name, metric in self._closeness.items():
            state = _below(tensors, name)
            if set(state) != expected:
                message = f"{name} of classes {sorted(state)} instead of {sorted(expected)}"
                raise InputError(message)
            self.closeness_[name] = metric.restore(state)
        self._fingerprint = facts["classifier_sha256"]
        if "intercept" in facts:
            parts = {name: tensor.numpy() for name, tensor in _below(tensors, "combiner").items()}
            if any(part.shape != (len(self.metrics),) for part in parts.values()):
                message = f"combiner not for {len(self.metrics)} metrics"
                raise InputError(message)
            self.combiner_ = Combiner(**parts, intercept=float(facts["intercept"]))
        if "calibration" in facts:
            self.calibration_ = _Calibration(**facts["calibration"])

    def _observe(self, images: Tensor) -> Iterator[Observation]:
        """What the metrics need to know of the images, batch by batch."""
        if self._sampler is not None:
            yield from self._sampler.stream(images)
            return
        for batch in images.split(self.batch_size):
            features, logits = extract_features(self.model, batch, self.feature_layer)
            yield Observation(logits, features, probs=logits.softmax(1).unsqueeze(0))

    def _column(
        self, name: str, seen: Observation, classes: Tensor, closeness: Mapping[str, Closeness]
    ) -> Tensor:
        if name in UNCERTAINTY:
            return UNCERTAINTY[name](seen.probs)
        assert seen.features is not None
        return closeness[name].score(seen.features, classes)

    def _fitted(self, part: T | None, call: str) -> T:
        if part is None:
            message = f"expected a detector after {call}, got one before it; call it first"
            raise NotFittedError(message)
        return part


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors named ``prefix/<part>``, by part."""
    start = f"{prefix}/"
    return {
        name.removeprefix(start): tensor
        for name, tensor in tensors.items()
        if name.startswith(start)
    }
