"""The sentinel: a small network in addition to a classifier, with bounds on what it flags."""

import copy
import os
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from numbers import Real
from typing import Any, Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from leery._checks import (
    Bounds,
    check_bound_values,
    check_bounds,
    check_count,
    check_labels,
    more_than_a_few,
)
from leery._files import below
from leery._progress import progress_bars
from leery._recorded import stored
from leery.calibration import Calibration, Promise
from leery.certify._refine import certified_by_splitting
from leery.errors import InputError, NotFittedError, UnsupportedModelError, brief
from leery.inputs import Images, InputSpec, Moments, image_batches, labelled_batches
from leery.intervals import Box
from leery.models import (
    Logits,
    device_of,
    grid_of,
    image_hashes,
    isolated,
    predict,
    run_model,
    with_logits,
)
from leery.training import FitParts, SentinelNetwork, SentinelRecipe, TrainingSet, train_sentinel

__all__ = ["Sentinel", "SentinelTraining"]

_SPARE = 2.0**-22
"""Added to epsilon, relative to the largest absolute pixel value, so that pixels plus epsilon in
float32 lie in the ball."""

_ONEDNN = ("ONEDNN", "DNNL")
"""Names under which oneDNN reads its environment variables."""

_BALLS = 250
"""Largest number of images whose bounds are computed at once. For more, the allocator gives memory
back and fetches it again: 1,000 images at once took 1.2 times as long."""

_HALVINGS = 10
"""Number of halvings of the interval in which a radius lies."""

T = TypeVar("T")


@dataclass(frozen=True)
class SentinelTraining:
    """What a sentinel was trained with.

    Attributes:
        epsilon: largest L-infinity radius of the training, as a fraction of the pixel range.
        epochs: number of epochs.
        images: number of training images.
    """

    epsilon: float
    epochs: int
    images: int


_FIT = "fit(images, labels)"
_CALIBRATE = "calibrate(clean, labels, fpr=...)"


class Sentinel:
    r"""A small classifier that flags images, with certificates.

    It flags an image if the logit of another class exceeds that of the predicted class by more than
    a calibrated threshold, which may be negative. For an individual image it can be proved that
    every misclassified image within L-infinity distance epsilon of it is flagged.

    With the logits a of the sentinel and the class f(x) that the classifier predicts, the score is

    .. math:: s(x) = \max_{j \ne f(x)} a_j(x) - a_{f(x)}(x)

    and an image is flagged if its score exceeds the threshold t. If the lower bounds of
    :math:`a_y - a_k` over the L-infinity ball of radius epsilon exceed t for every class k other
    than the true class y, then every image of the ball that is misclassified is flagged, whatever
    the attacker knows: :math:`f(x') = k \ne y` gives :math:`s(x') \ge a_y(x') - a_k(x') > t`. With
    a threshold per predicted class, t is that of k.

    The short path is ``Sentinel(model).fit(train).calibrate(held_out, fpr=0.01).certify(images,
    labels, epsilon=0.1)``.

    Args:
        model: the classifier; returns logits ``(N, classes)``, as a tensor or in a field
            ``logits``. It may be any classifier of the same classes.
        recipe: training settings; by default ``SentinelRecipe()``.
        bounds: lowest and highest pixel value, as two numbers or one pair per channel; by default
            (0, 1) if the training images lie within it.
        seed: random seed of the training.
        logits: how to get the logits from the model's output: a field name, an index, or a function
            of the output.
        batch_size: maximum number of images processed at once.

    Attributes:
        model: the classifier.

    Notes:
        The certificates are for the L-infinity norm only, and for images whose pixels lie within
        the bounds. Rounding errors are included, provided that scores and certificates are computed
        in the same precision: float32 on a CPU, float64 on a GPU and where a setting allows float32
        operations to be shortened (such as TF32). Certify on the kind of device, and with the
        settings of torch, with which you will flag. The class must be the one with which the score
        was computed.

    Raises:
        InputError: when a setting is outside its range.

    Source:
        Interval bounds: Gowal et al. (2018), arXiv:1810.12715.
    """

    differentiable = True

    def __init__(
        self,
        model: nn.Module,
        *,
        recipe: SentinelRecipe | None = None,
        bounds: Bounds | None = None,
        seed: int = 0,
        logits: Logits = None,
        batch_size: int = 1000,
    ) -> None:
        self.model = with_logits(model, logits)
        self._recipe = recipe or SentinelRecipe()
        self._bounds = None if bounds is None else check_bound_values(bounds)
        self._seed = check_count(seed, "a seed", least=0)
        self._batch_size = check_count(batch_size, "a batch size")
        self._network: SentinelNetwork | None = None
        self._inputs: InputSpec | None = None
        self._seen, self._grid = torch.empty(0, dtype=torch.int64), 1.0
        self._calibration: Calibration | None = None
        self._training: SentinelTraining | None = None

    def __repr__(self) -> str:
        """Class of the classifier, and what has been fitted and calibrated."""
        state = "not fitted" if self._network is None else "fitted"
        if self._calibration is not None:
            state += f", false-alarm rate {self._calibration.fpr:g}"
        return f"Sentinel({type(self.model).__name__}: {state})"

    # ---- properties ------------------------------------------------------------------------------

    @property
    def fitted(self) -> bool:
        """True after :meth:`fit`."""
        return self._network is not None

    @property
    def network_(self) -> SentinelNetwork:
        """The trained network, in eval mode.

        Raises:
            NotFittedError: before :meth:`fit`.
        """
        network = _need(self._network, _FIT)
        # Torch's settings may change at any time. Without a change this costs nothing.
        return network.to(_precision(network.low.device))

    @property
    def inputs_(self) -> InputSpec:
        """Shape, type, bounds and range of the training images.

        Raises:
            NotFittedError: before :meth:`fit`.
        """
        return _need(self._inputs, _FIT)

    @property
    def classes_(self) -> int:
        """The number of classes.

        Raises:
            NotFittedError: before :meth:`fit`.
        """
        return self.network_.classes

    @property
    def training_(self) -> SentinelTraining | None:
        """What it was trained with; None if that is unknown, and before :meth:`fit`."""
        return self._training

    @property
    def seen_(self) -> tuple[Tensor, float]:
        """Hashes of the training images, int64 ``(N,)``, and the grid of their pixels.

        Empty for a sentinel from a file: the detector's file holds the hashes.
        """
        return self._seen, self._grid

    @property
    def calibration_(self) -> Calibration | None:
        """The calibration scores and the promise; None before :meth:`calibrate`."""
        return self._calibration

    @property
    def thresholds_(self) -> np.ndarray:
        """The score above which an image of each predicted class is flagged.

        Returns:
            float64 ``(classes,)``; all equal unless the promise is per class.

        Raises:
            NotFittedError: before :meth:`calibrate`.
        """
        calibration = _need(self._calibration, _CALIBRATE)
        return calibration.thresholds(np.arange(self.classes_))

    # ---- fitting ---------------------------------------------------------------------------------

    def fit(
        self, images: Images, labels: Tensor | None = None, *, parts: FitParts | None = None
    ) -> Self:
        """Train the network on clean labelled images; an earlier calibration is discarded.

        Args:
            images: clean training images, float ``(N, channels, height, width)``; or batches
                ``(images, labels)``.
            labels: int ``(N,)``, their true classes. None with batches.
            parts: storage of the state after every few epochs, from which an interrupted training
                can be resumed; by default nothing is stored.

        Raises:
            InputError: when images or labels do not fit, or the pixel bounds are unknown.
            UnsupportedModelError: when the model does not return logits.
        """
        moments, examples = Moments(), list[Tensor]()
        data = TrainingSet.gathered(_labelled(images, labels, moments, examples))
        example = examples[0]
        if data.images.ndim != 4:  # noqa: PLR2004 - images
            message = (
                "expected images (N, channels, height, width) for a sentinel, got shape "
                f"{tuple(data.images.shape)}; a sentinel is for images only"
            )
            raise InputError(message)
        inputs = InputSpec.of(example, moments, self._bounds)
        if inputs.bounds is None:
            message = (
                f"expected known pixel bounds for a certificate, got pixels in {moments.low:g}.."
                f"{moments.high:g}; pass bounds=(low, high) (--bounds LOW,HIGH)"
            )
            raise InputError(message)
        check_bounds(data.images, inputs.bounds)
        place, recipe = _place(self.model), self._recipe.suited_to(data.images, inputs.bounds)
        assert recipe.epsilon is not None
        with isolated(self.model, example) as still, torch.no_grad():
            classes = run_model(still, example.to(device_of(self.model))).shape[1]
        check_labels(data.labels, len(data.labels), classes)
        holding = nullcontext() if parts is None or parts.held else parts
        with holding, progress_bars() as bars:
            task = bars.add_task("training the sentinel, %", total=100)
            network = train_sentinel(
                data,
                classes=classes,
                recipe=recipe,
                pixels=inputs.bounds,
                seed=self._seed,
                device=place,
                progress=lambda share: bars.update(task, completed=round(100 * share)),
                **({} if parts is None else {"part": parts}),
            )
        self._grid = grid_of(data.images[:1000])
        self._training = SentinelTraining(recipe.epsilon, recipe.epochs, len(data.images))
        return self.restored(network, inputs, seen=image_hashes(data.images, self._grid))

    def restored(
        self,
        network: SentinelNetwork,
        inputs: InputSpec,
        calibration: Calibration | None = None,
        *,
        seen: Tensor | None = None,
    ) -> Self:
        """Take a trained network instead of training one.

        Args:
            network: the network; it is moved to the classifier's device.
            inputs: shape, type, bounds and range of the training images.
            calibration: an earlier calibration; None for none.
            seen: int64 ``(N,)``, hashes of the training images; None if they are unknown.
        """
        self._network = network.to(_place(self.model)).eval()
        self._inputs, self._calibration = inputs, calibration
        self._seen = torch.empty(0, dtype=torch.int64) if seen is None else seen
        return self

    def calibrated(self, calibration: Calibration | None) -> Self:
        """A copy with this calibration, or with none.

        Raises:
            NotFittedError: before :meth:`fit`.
        """
        _need(self._network, _FIT)
        made = copy.copy(self)
        made._calibration = calibration  # noqa: SLF001 - same class
        return made

    def parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a file holds of a fitted sentinel: tensors by name, and JSON-serialisable values.

        Raises:
            NotFittedError: before :meth:`fit`.
        """
        network = self.network_
        layers = network.layers.state_dict().items()
        tensors = {f"network/{name}": stored(tensor.cpu()) for name, tensor in layers}
        facts: dict[str, Any] = {"ramp": network.ramp, "training": None, "calibration": None}
        if self._training is not None:
            facts["training"] = asdict(self._training)
        if self._calibration is not None:
            arrays, facts["calibration"] = self._calibration.parts()
            tensors |= {f"calibration/{name}": array for name, array in arrays.items()}
        return tensors, facts

    @classmethod
    def of_parts(
        cls,
        model: nn.Module,
        tensors: Mapping[str, Tensor],
        facts: Mapping[str, Any],
        inputs: InputSpec,
        *,
        logits: Logits = None,
    ) -> Self:
        """The inverse of :meth:`parts`.

        Args:
            model: the classifier.
            tensors: the tensors by name.
            facts: the values.
            inputs: shape, type, bounds and range of the training images.
            logits: how to get the logits from the model's output.

        Raises:
            InputError: when a tensor is missing or of another shape, or a value is invalid.
        """
        network = _network(below(tensors, "network"), inputs, ramp=bool(facts["ramp"]))
        promised = facts["calibration"]
        calibration = None
        if promised is not None:
            arrays = below(tensors, "calibration")
            calibration = Calibration.of_parts(arrays, promised).checked(network.classes)
        made = cls(model, bounds=inputs.bounds, logits=logits)
        training = facts["training"]
        if training is not None:
            made._training = SentinelTraining(**training)
        return made.restored(network, inputs, calibration)

    def calibrate(
        self,
        clean: Images,
        labels: Tensor | None = None,
        *,
        fpr: float = 0.01,
        promise: Promise = "marginal",
        confidence: float = 0.95,
        per_class: bool = False,
    ) -> Self:
        """Set the threshold for a promised false-alarm rate.

        Args:
            clean: images that are not adversarial and were not in the fit.
            labels: int ``(N,)``, their true classes. With labels or labelled batches, misclassified
                images are left out, and the promise covers only correctly classified ones.
            fpr: promised false-alarm rate, in (0, 1).
            promise: "marginal" or "pac", as for :meth:`leery.Detector.calibrate`.
            confidence: confidence level of the promise "pac", in (0, 1).
            per_class: True to keep the promise within each predicted class.

        Raises:
            NotFittedError: before :meth:`fit`.
            InputError: when a setting is outside its range, when there are too few images, or when
                more than a few are training images (known only if fitted in this process).
        """
        nothing = np.empty(0)
        promised = Calibration(float(fpr), promise, float(confidence), per_class, nothing, nothing)
        scores, predicted, kept, trained, labelled = [], [], [], 0, True
        for batch, truth in labelled_batches(clean, labels):
            own, classes = self._scores(batch)
            seen = torch.isin(image_hashes(batch, self._grid), self._seen)
            right = ~seen if truth is None else ~seen & (classes == truth.cpu())
            trained, labelled = trained + int(seen.sum()), labelled and truth is not None
            scores.append(own)
            predicted.append(classes)
            kept.append(right)
        rows = torch.cat(kept)
        if more_than_a_few(trained, len(rows)):
            message = (
                "expected clean images that are not among the training images, got "
                f"{trained} of {len(rows)} that are; pass images held out of the training, or the "
                "promised rate will not be kept"
            )
            raise InputError(message)
        self._calibration = replace(
            promised,
            scores=torch.cat(scores)[rows].numpy(),
            predicted=torch.cat(predicted)[rows].numpy(),
            right_only=labelled,
        ).checked(self.classes_)
        return self

    # ---- judging ---------------------------------------------------------------------------------

    def score(self, images: Images) -> np.ndarray:
        """The largest other logit of the sentinel minus that of the predicted class.

        Returns:
            float64 ``(N,)``; larger is more suspicious.

        Raises:
            NotFittedError: before :meth:`fit`.
            InputError: when the images do not fit.
        """
        found = [self._scores(batch)[0] for batch in image_batches(images)]
        return torch.cat(found).numpy()

    def flag(self, images: Images) -> np.ndarray:
        """The verdict on each image, bool ``(N,)``, True for flagged images.

        It refers to the class that this call gets from the classifier. Another run may give another
        class to an image; :meth:`judge` returns the class with the verdict.

        Raises:
            NotFittedError: before :meth:`calibrate`.
            InputError: when the images do not fit.
        """
        return self.judge(images)[1]

    def judge(self, images: Images) -> tuple[np.ndarray, np.ndarray]:
        """The predicted class of each image and the verdict on it, from one run.

        Returns:
            int64 ``(N,)`` and bool ``(N,)``, True for flagged images.

        Raises:
            NotFittedError: before :meth:`calibrate`.
            InputError: when the images do not fit.
        """
        calibration = _need(self._calibration, _CALIBRATE)
        classes, flagged = [], []
        for batch in image_batches(images):
            scores, predicted = (part.numpy() for part in self._scores(batch))
            classes.append(predicted)
            flagged.append(calibration.flagged(scores, predicted))
        return np.concatenate(classes), np.concatenate(flagged)

    def differentiable_score(self, images: Tensor) -> Tensor:
        """Differentiable version of :meth:`score`, with gradients to the images.

        The gradient of a ramp is that of the identity (straight-through), so that gradient attacks
        are not blinded.

        Args:
            images: float ``(N, channels, height, width)``, on the classifier's device.

        Returns:
            float64 ``(N,)``, equal to :meth:`score` up to rounding.

        Raises:
            NotFittedError: before :meth:`fit`.
            InputError: when the images do not fit.
        """
        self.inputs_.check(images)
        return self.score_of(images, predict(self.model, images.detach()))

    def score_of(self, images: Tensor, predicted: Tensor) -> Tensor:
        """The score of images whose predicted classes are known, float64 ``(N,)``.

        Args:
            images: ``(N, channels, height, width)``.
            predicted: int64 ``(N,)``, below the number of classes.

        Raises:
            NotFittedError: before :meth:`fit`.
            UnsupportedModelError: when the classifier has more classes than the sentinel.
        """
        network = self.network_
        if int(predicted.max()) >= network.classes:
            message = (
                f"expected a classifier with the sentinel's {network.classes} classes, got class "
                f"{int(predicted.max())}; fit another sentinel"
            )
            raise UnsupportedModelError(message)
        with torch.autocast(network.low.device.type, enabled=False):
            pixels = images.to(network.low)
            logits = network(pixels) if torch.is_grad_enabled() else network.quick(pixels)
            own = predicted.to(logits.device).unsqueeze(1)
            others = logits.scatter(1, own, -torch.inf).amax(1)
            return (others - logits.gather(1, own).squeeze(1)).double()

    # ---- certificates ----------------------------------------------------------------------------

    def certify(
        self, images: Tensor, labels: Tensor, *, epsilon: float | Tensor, boxes: int = 1
    ) -> np.ndarray:
        """Whether it is proved that every misclassified image within epsilon is flagged.

        Args:
            images: clean images ``(N, channels, height, width)`` within the pixel bounds.
            labels: int ``(N,)``, their true classes.
            epsilon: L-infinity radius, in the units of the pixels; one, or one per image ``(N,)``.
            boxes: branch and bound: where its bounds prove nothing, the ball is split into boxes,
                of which at most this many per image may be unproved at a time; 1 for no splitting.

        Returns:
            bool ``(N,)``, True where it is proved. Such an image may itself be misclassified, and
            is then flagged; with a negative threshold, correctly classified ones may be flagged.

        Raises:
            NotFittedError: before :meth:`calibrate`.
            InputError: when images, labels or a setting do not fit.
        """
        least = self._highest()
        check_count(boxes, "boxes")
        found = []
        with torch.no_grad():
            for truth, box in self._balls(images, labels, epsilon):
                proved = (self.network_.margins(box, truth).double() > least).all(1)
                if boxes > 1 and not bool(proved.all()):
                    rest = ~proved
                    proved[rest] = certified_by_splitting(
                        self.network_, box.rows(rest), truth[rest], least, boxes
                    )
                found.append(proved.cpu().numpy())
        return np.concatenate(found)

    def cannot_alarm(
        self, images: Tensor, labels: Tensor, *, epsilon: float | Tensor
    ) -> np.ndarray:
        """Whether the sentinel raises no false alarm within epsilon.

        True where it is proved that the sentinel flags no image within epsilon that the classifier
        assigns to its true class. Arguments, result and errors are those of :meth:`certify`,
        without ``boxes``.
        """
        highest = self._highest()
        found = []
        with torch.no_grad():
            for truth, box in self._balls(images, labels, epsilon):
                margins = self.network_.margins(box, truth).double().amin(1)
                found.append((margins >= -highest[truth]).cpu().numpy())
        return np.concatenate(found)

    def radius(self, images: Tensor, labels: Tensor) -> np.ndarray:
        """The largest epsilon found at which each image is certified without splitting.

        Args:
            images: clean images ``(N, channels, height, width)`` within the pixel bounds.
            labels: int ``(N,)``, their true classes.

        Returns:
            float64 ``(N,)``, in the units of the pixels, found by bisection: at a thousandth of the
            pixel range more, the image is not certified. 0 means that no epsilon was certified, not
            that epsilon 0 is.

        Raises:
            NotFittedError, InputError: as :meth:`certify`.
        """
        span = float((self.network_.span).max())
        low, high = torch.zeros(len(images)).double(), torch.full((len(images),), span).double()
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            proved = torch.from_numpy(self.certify(images, labels, epsilon=middle))
            low, high = torch.where(proved, middle, low), torch.where(proved, high, middle)
        return low.numpy()

    # ---- internals -------------------------------------------------------------------------------

    def _scores(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and predicted classes, on the CPU."""
        self.inputs_.check(images)
        predicted = predict(self.model, images, batch_size=self._batch_size)
        with torch.no_grad():
            found = [
                self.score_of(batch, classes)
                for batch, classes in zip(
                    images.split(self._batch_size),
                    predicted.split(self._batch_size),
                    strict=True,
                )
            ]
        return torch.cat(found).cpu(), predicted.cpu()

    def _highest(self) -> Tensor:
        """The highest score of each predicted class that is not flagged, float64 ``(classes,)``."""
        return torch.from_numpy(self.thresholds_).to(self.network_.low.device)

    def _balls(
        self, images: Tensor, labels: Tensor, epsilon: float | Tensor
    ) -> Iterator[tuple[Tensor, Box]]:
        """Batches of labels and of the balls around their images."""
        inputs, place = self.inputs_, self.network_.low.device
        inputs.check(images)
        check_labels(labels, len(images), self.classes_)
        assert inputs.bounds is not None
        radii = _radii(epsilon, len(images))
        radii = radii + _SPARE * float(torch.as_tensor(inputs.bounds).abs().max())
        size = min(self._batch_size, _BALLS)
        for batch, truth, radius in zip(
            *(part.split(size) for part in (images, labels, radii)), strict=True
        ):
            box = Box.around(batch.to(place), radius.to(place), inputs.bounds)
            yield truth.to(place).long(), box


def _need(part: T | None, call: str) -> T:
    if part is None:
        message = f"expected a sentinel after {call}, got one before it; call it first"
        raise NotFittedError(message)
    return part


def _network(weights: Mapping[str, Tensor], inputs: InputSpec, *, ramp: bool) -> SentinelNetwork:
    """A network with the weights of a file.

    Raises:
        InputError: when a weight is missing or of another shape.
    """
    first, hidden, last = (weights.get(f"{place}.weight") for place in ("1", "6", "8"))
    if first is None or hidden is None or last is None or not inputs.are_images:
        message = "expected the weights of a sentinel and its pixel bounds, got none; fit again"
        raise InputError(message)
    assert inputs.bounds is not None
    channels, height, length = inputs.shape
    # Before a network is made, or a file could ask for one that fills the memory.
    if hidden.shape != (len(hidden), 2 * len(first) * (height // 4) * (length // 4)):
        message = (
            f"expected the weights of a sentinel for images {inputs.shape}, got others; fit again"
        )
        raise InputError(message)
    network = SentinelNetwork(
        (channels, height, length),
        len(last),
        pixels=inputs.bounds,
        ramp=ramp,
        width=len(first),
        hidden=len(hidden),
    )
    if not all(bool(weight.isfinite().all()) for weight in weights.values()):
        message = "expected finite weights of a sentinel, got others; fit again"
        raise InputError(message)
    try:
        network.layers.load_state_dict(dict(weights))
    except RuntimeError as error:
        message = f"expected the weights of a sentinel, got {brief(error)}; fit again"
        raise InputError(message) from error
    return network.requires_grad_(requires_grad=False)


def _radii(epsilon: float | Tensor, count: int) -> Tensor:
    """One radius per image, float64 ``(N,)``.

    Raises:
        InputError: when it is not one number, or one per image, or one is negative or not finite.
    """
    if not isinstance(epsilon, Real | Tensor) or (
        isinstance(epsilon, Tensor) and epsilon.shape not in ((), (count,))
    ):
        got = tuple(epsilon.shape) if isinstance(epsilon, Tensor) else type(epsilon).__name__
        message = f"expected one epsilon, or one for each of {count} images, got {got}; correct it"
        raise InputError(message)
    radii = torch.as_tensor(epsilon, dtype=torch.float64).broadcast_to(count)
    wrong = radii[~((radii >= 0) & radii.isfinite())]
    if len(wrong):
        message = f"expected a finite epsilon of at least 0, got {float(wrong[0]):g}; correct it"
        raise InputError(message)
    return radii


def _precision(place: torch.device) -> torch.dtype:
    """The type in which scores and bounds are computed on a device.

    On GPUs, and where a setting of torch allows it on CPUs, float32 operations may run in shorter
    types.
    """
    kinds = (getattr(torch.backends.mkldnn, kind) for kind in ("matmul", "conv"))
    allowed = {kind.fp32_precision for kind in kinds}
    # What oneDNN reads at its first use; torch's own settings do not show it.
    allowed |= {os.environ.get(f"{name}_DEFAULT_FPMATH_MODE", "").lower() for name in _ONEDNN}
    exact = place.type == "cpu" and allowed <= {"none", "ieee", "", "strict"}
    return torch.float32 if exact else torch.float64


def _place(model: nn.Module) -> torch.device:
    """The classifier's device, or the CPU where that device lacks float64."""
    place = device_of(model)
    return torch.device("cpu") if place.type == "mps" else place


def _labelled(
    images: Images, labels: Tensor | None, moments: Moments, examples: list[Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of images and labels; their moments and first images are gathered on the way."""
    for batch, truth in labelled_batches(images, labels):
        if truth is None or not batch.is_floating_point():
            what = "no labels" if truth is None else str(batch.dtype)
            message = (
                f"expected floating-point training images with labels for a sentinel, got {what}; "
                "use fit(images, labels) or batches of both"
            )
            raise InputError(message)
        moments.add(batch)
        examples.append(batch[:1])
        yield batch, truth
