"""The fit of a detector to training data in files, in parts."""

import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors
from torch import Tensor, nn

from leery._files import raise_reading_fault
from leery.detector._detector import Detector
from leery.detector._fitting import started
from leery.detector._learned import Learned
from leery.errors import InputError, LeeryError, listed, warn
from leery.inputs import Cuts, Format, batches
from leery.metrics import Metric
from leery.models import device_of, fingerprint
from leery.tasks import (
    Advance,
    Engine,
    Parts,
    Progress,
    Shard,
    compute_missing,
    identity_of,
    no_progress,
    open_parts,
    single_threaded,
)
from leery.training import FitParts, saved_tensors

__all__ = ["FileFit", "file_fit_of"]


class FileFit:
    """A fit in the making: what is learned from each part of the training data, and its merging.

    Every process that passes the same arguments gets the same parts, and what is learned from a
    part has the same bytes whoever learns it. What must be trained, such as the auxiliary network,
    is not cut into parts.

    Args:
        detector: unfitted detector.
        paths: labelled sources, as for :func:`leery.inputs.read`.
        form: conversion of the sources to model inputs.
        trained: storage of what must be trained; the folder of the parts lies in it.

    Attributes:
        detector: the detector, which :meth:`run` and :meth:`merge` fit.
        identity: SHA-256 of everything that what is learned depends on.
        facts: what is learned depends on these: hashes by name, and the type of device; they must
            be the same on all machines.

    Raises:
        InputError: when the sources are invalid, or a metric cannot be fitted in parts.
        UnsupportedModelError: when the classifier does not return logits.
        UnknownLayerError, NoDropoutError: when a metric needs what the classifier lacks.
    """

    def __init__(
        self, detector: Detector, paths: Sequence[Path], form: Format, trained: FitParts
    ) -> None:
        _check_outside(trained.folder, paths)
        settings = detector._settings  # noqa: SLF001 - same package
        self.detector, self._trained, self._data = detector, trained, _Files(paths, form)
        self._folder = trained.folder / "learned"
        self._cuts = Cuts(paths, form, _shape(paths, form))
        every = self._cuts.batches(range(len(self.sizes)))
        first, _ = next(batch for _, found in every for batch in found)
        self._start = started(detector.model, settings, first)
        learning = self._start.learning
        _check_merging(learning)
        classifier, device = fingerprint(detector.model), device_of(detector.model).type
        facts = [
            classifier,
            [_settings_of(metric) for metric in learning],
            repr(replace(settings, metrics=(), sentinel=None)),
            *(self._cuts.listing, str(form), self.sizes, device),
        ]
        modules = {type(part).__module__ for part in (*detector.model.modules(), *learning)}
        self.identity = identity_of(facts, {__name__, *modules})
        self.facts = {
            "classifier": classifier,
            "training data": self._cuts.listing,
            "device": device,
            "code and libraries": self.identity,
        }

    @property
    def sizes(self) -> Sequence[int]:
        """The number of inputs of each part."""
        return self._cuts.sizes

    def compute(self, parts: Parts, numbers: Sequence[int], advance: Advance) -> None:
        """Learn from parts of the training data, and write what was learned from each.

        Args:
            parts: where it is written.
            numbers: numbers of the parts, in ascending order.
            advance: function that is called with the number of newly read inputs.

        Raises:
            InputError: when an input cannot be read or has no label, or inputs do not fit.
        """
        with single_threaded():
            for number, found in self._cuts.batches(numbers):
                learned = self._learned(found)
                rows = {_ROWS: torch.tensor(self.sizes[number])}
                with parts.writing(number) as stream:
                    stream.write(saved_tensors({**learned, **rows}))
                advance(self.sizes[number])

    def _learned(self, found: Iterator[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """What is learned from one part, as tensors; nothing if none of its files is an image."""
        total: Learned | None = None
        for images, labels in found:
            learned = self._start.learn(images, labels)
            for before, metric in zip(self._start.learning, learned.metrics, strict=True):
                _check_kept(before, metric)
            if total is None:
                total = learned
            else:
                total.merge(learned)
        return {} if total is None else total.tensors()

    def run(
        self,
        *,
        resume: bool = False,
        engine: Engine | None = None,
        progress: Progress = no_progress,
    ) -> Detector:
        """Fit the detector to all training data.

        Args:
            resume: True to use the parts of an interrupted fit or of shards, False to discard them.
            engine: learns from the parts; by default this process does, with one thread.
            progress: function that is called with the number of read inputs and the total number.

        Raises:
            InputError: when inputs do not fit or change during the run, a class has no image, or
                the parts to resume belong to other inputs.
            OutputError: when another process uses the folder, or a file cannot be written.
        """
        with self._open(resume=resume) as parts:
            compute_missing(self, parts, None, engine, progress)
            self._cuts.check_unchanged()
            return self._finish(parts)

    def run_shard(
        self,
        shard: Shard,
        *,
        engine: Engine | None = None,
        progress: Progress = no_progress,
    ) -> None:
        """Learn from one shard of the training data and keep its parts, for :meth:`merge`.

        The first shard also trains what must be trained.

        Args:
            shard: which shard.
            engine: as for :meth:`run`.
            progress: as for :meth:`run`, with the inputs of this shard.

        Raises:
            InputError, OutputError: as :meth:`run`.
        """
        with self._open(resume=True, shared=True) as parts:
            compute_missing(self, parts, shard, engine, progress)
            self._cuts.check_unchanged()
            if shard.number == 1:
                self._start.train(self._data.__iter__, self._data, self._trained)

    def merge(self, others: Sequence[Path] = ()) -> Detector:
        """Fit the detector to what all shards learned, as :meth:`run` would.

        What must be trained and is not there is trained now.

        Args:
            others: further folders of parts, such as those of other machines; they are not removed.

        Raises:
            InputError: when a part is missing, or the parts belong to other inputs.
            OutputError: as :meth:`run`.
        """
        with self._open(resume=True, others=others) as parts:
            return self._finish(parts)

    def discard(self) -> None:
        """Remove the parts, unless another process uses them; the detector must be saved before."""
        with suppress(LeeryError), self._open(resume=True) as parts:
            parts.discard()

    def _open(
        self, *, resume: bool, shared: bool = False, others: Sequence[Path] = ()
    ) -> AbstractContextManager[Parts]:
        return open_parts(
            self._folder,
            self.identity,
            self.sizes,
            resume=resume,
            count_rows=_rows_in,
            suffix=".safetensors",
            shared=shared,
            others=[other / self._folder.name for other in others],
        )

    def _finish(self, parts: Parts) -> Detector:
        """Merge what was learned from each part, in order, and complete the fit."""
        files = parts.files()
        self._start.train(self._data.__iter__, self._data, self._trained)
        total: Learned | None = None
        for file in files:
            tensors = safetensors.load_file(file)
            if len(tensors) == 1:
                # No file of this part is an image.
                continue
            part = Learned.from_tensors(tensors, self._start.learning)
            if total is None:
                total = part
            else:
                total.merge(part)
        assert total is not None
        if strangers := sum(self.sizes) - total.count:
            warn(f"{strangers} files that are not images were skipped")
        data = self._data, None
        return self.detector._completed(self._start, total, data, self._trained)  # noqa: SLF001 - same package


_ROWS = "rows"
"""Name of the tensor that holds the number of inputs of a part."""


def file_fit_of(
    make: Callable[[], Detector], paths: Sequence[Path], form: Format, folder: Path
) -> FileFit:
    """The fit of the detector that a function makes, for other processes."""
    return FileFit(make(), paths, form, FitParts(folder))


class _Files:
    """The batches of labelled sources, read anew by each iteration."""

    def __init__(self, paths: Sequence[Path], form: Format) -> None:
        self._paths, self._form = paths, form

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels, batch by batch."""
        return batches(self._paths, self._form)


def _check_outside(folder: Path, paths: Sequence[Path]) -> None:
    """Raise if a folder lies in one that is read.

    Raises:
        InputError: when it does.
    """
    for path in paths:
        if path.resolve() in folder.resolve().parents:
            message = f"expected an output outside the data {path}, got {folder}; put it elsewhere"
            raise InputError(message)


def _shape(paths: Sequence[Path], form: Format) -> tuple[int, ...]:
    """The shape of the first image.

    Raises:
        InputError: when there is no image.
    """
    for images, _ in batches(paths, form, size=1):
        return tuple(images.shape[1:])
    message = f"expected training images in {', '.join(map(str, paths))}, got none; add some"
    raise InputError(message)


def _check_merging(metrics: Sequence[Metric]) -> None:
    """Raise if a metric cannot learn from parts in separate processes.

    Raises:
        InputError: when one cannot.
    """
    for metric in metrics:
        if not metric.merges or metric.trains:
            lacks = "also trains a network" if metric.merges else "does not implement merge()"
            message = (
                f"expected metrics that learn from each part of the training data, got "
                f"{metric.name!r}, which {lacks}; leave it out, or use Detector.fit"
            )
            raise InputError(message)


def _settings_of(metric: Metric) -> object:
    """What an unfitted metric was made with: its class, parameters, buffers, plain attributes."""
    held = {name: value for name, value in vars(metric).items() if name not in _OF_TORCH}
    plain = {name: _canonical(value) for name, value in held.items() if _is_plain(value)}
    layers = [sorted(metric.needs.layers), sorted(metric.needs.pass_layers)]
    return [metric.name, fingerprint(metric), metric.options(), layers, plain]


def _canonical(value: object) -> object:
    """A plain value as JSON takes it, the same in every process."""
    if isinstance(value, dict):
        return sorted([repr(name), _canonical(part)] for name, part in value.items())
    if isinstance(value, (tuple, list)):
        return list(map(_canonical, value))
    return repr(value)


def _is_plain(value: object) -> bool:
    """True for numbers, text, and tuples, lists and dictionaries of them."""
    if isinstance(value, dict):
        return all(map(_is_plain, [*value, *value.values()]))
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (int, float, str, np.generic))


def _check_kept(before: Metric, metric: Metric) -> None:
    """Raise if a metric learned something that it does not pass to another process.

    Raises:
        InputError: when it did.
    """
    if type(metric).learned is not Metric.learned:
        return
    old, new = _kept_apart(before), _kept_apart(metric)
    changed = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    if changed:
        message = (
            f"expected metric {metric.name!r} to keep what update() learns in buffers of its own, "
            f"got changes to {listed(changed)}; register buffers, or implement learned() and "
            "load_learned()"
        )
        raise InputError(message)


def _kept_apart(metric: Metric) -> dict[str, object]:
    """Contents of all that a metric and its submodules hold but its own buffers, to compare."""
    every: dict[str, object] = dict(metric.named_parameters())
    every |= {name: buffer for name, buffer in metric.named_buffers() if "." in name}
    for prefix, module in metric.named_modules():
        for name, value in vars(module).items():
            if name not in _OF_TORCH:
                every[f"{prefix}.{name}".removeprefix(".")] = value
    found: dict[str, object] = {}
    for name, value in every.items():
        try:
            found[name] = pickle.dumps(value)
        # Such as a function without a name; then only another one is noticed.
        except Exception:
            found[name] = type(value)
    return found


_OF_TORCH = frozenset(vars(nn.Module()))
"""Names of the attributes that every module has."""


def _rows_in(part: Path) -> int:
    """The number of inputs of a part; 0 if its file is damaged.

    Raises:
        MachineError: when the file cannot be read for another reason.
    """
    try:
        with safe_open(part, "pt") as file:
            return int(file.get_tensor(_ROWS))
    except (SafetensorError, OSError) as error:
        raise_reading_fault(part, error)
        return 0
