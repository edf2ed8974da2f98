"""A detector's file and what else it takes to load it, for other processes."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from leery.detector._detector import Detector
from leery.errors import InputError
from leery.metrics import load_metrics
from leery.tasks import single_threaded

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

    def load(self) -> tuple[Detector, str]:
        """Load the detector.

        Returns:
            The detector, and the SHA-256 of its file and of the names of the metrics.

        Raises:
            LeeryError: when the file, the classifier or a metric cannot be loaded.
        """
        before = self._sum()
        with single_threaded():
            detector = Detector.load(self.file, self.model(), metrics=load_metrics(self.metrics))
        if self._sum() != before:
            message = (
                f"expected {self.file} to stay unchanged while it is read, got a changed file; run "
                "again"
            )
            raise InputError(message)
        named = f"{before} {' '.join(self.metrics)}"
        return detector, hashlib.sha256(named.encode()).hexdigest() if self.metrics else before

    def _sum(self) -> str:
        try:
            with self.file.open("rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError:
            # The error of load() says more.
            return ""
