"""A detector's file and what else it takes to load it, for other processes."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import nn

from leery.detector._detector import Detector
from leery.metrics import load_metrics

__all__ = ["SavedDetector"]


@dataclass(frozen=True)
class SavedDetector:
    """A detector's file and what else it takes to load it, for other processes.

    Attributes:
        file: the detector's file.
        model: a picklable function that returns the classifier.
        metrics: names of the user's own metrics, as "module:name".
    """

    file: Path
    model: Callable[[], nn.Module]
    metrics: tuple[str, ...] = ()

    @cached_property
    def identity(self) -> str:
        """The SHA-256 of the file."""
        return hashlib.sha256(self.file.read_bytes()).hexdigest()

    def load(self) -> Detector:
        """Load the detector.

        Raises:
            LeeryError: when the file, the classifier or a metric cannot be loaded.
        """
        return Detector.load(self.file, self.model(), metrics=load_metrics(self.metrics))
