"""Tables of a study: their definition, writing, reading and verification."""

import hashlib
import io
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from leery._files import make_folder, write_atomically
from leery.errors import StudyFileError, brief
from leery.metrics import PAPER_METRICS, UNCERTAINTY_METRICS
from leery.study._config import STUDIES

__all__ = [
    "MANIFEST",
    "RESULT_COLUMNS",
    "TABLES",
    "StudyResult",
    "held_out",
    "held_out_areas",
    "load_result",
    "save_tables",
    "to_csv",
]

MANIFEST = "manifest.json"

RESULT_COLUMNS = (
    "dataset",
    "seed",
    "attack",
    "epsilon",
    "metrics",
    "protocol",
    "positives",
    "auc",
    "auc_low",
    "auc_high",
    "tpr_at_1_fpr",
    "tpr_at_5_fpr",
    "average_precision",
    "n_clean",
    "n_noisy",
    "n_adversarial",
    "attack_success",
)
"""The columns of results.csv."""

KL_READINGS = ("kl_divergence", "kl_divergence_sum")
"""KL divergence with features turned into probabilities by softmax, and by their sum."""

PIXELS = tuple(f"pixel_{place:03d}" for place in range(28 * 28))
"""The columns of an image's pixels, row by row."""

_CONDITION = ("dataset", "seed", "attack", "epsilon")

_TRACE = (*_CONDITION, "shown", "metric", "against", "value", "low", "high", "images", "predicted")


@dataclass(frozen=True)
class _Table:
    """A table of a study.

    Attributes:
        file: its path inside the study's folder.
        columns: column names.
        may_be_empty: True if the table of a study of few images can be empty.
    """

    file: str
    columns: tuple[str, ...]
    may_be_empty: bool = False


TABLES: Mapping[str, _Table] = {
    "results": _Table("results.csv", RESULT_COLUMNS),
    "comparisons": _Table(
        "comparisons.csv", (*_CONDITION, "first", "second", "difference", "low", "high")
    ),
    "uncertainty": _Table(
        "uncertainty.csv",
        (
            *("dataset", "seed", "metric", "wrong", "right"),
            *("wrong_sd", "right_sd", "n_wrong", "n_right"),
        ),
    ),
    "classifier": _Table(
        "classifier.csv",
        (
            *("dataset", "seed", "network", "parameters", "dropout", "optimizer"),
            *("learning_rate", "batch_size", "epochs", "passes", "bandwidth"),
            *("accuracy", "n_test", "n_studied"),
        ),
    ),
    "layers": _Table("layers.csv", ("dataset", "name", "layer", "parameters")),
    "turning-points": _Table(
        "turning-points.csv",
        (
            *("dataset", "seed", "attack", "source", "label", "target", "step", "flip"),
            *(f"peak_{metric}" for metric in (*UNCERTAINTY_METRICS, *KL_READINGS)),
            *(f"crossing_{metric}" for metric in ("kernel_density", *KL_READINGS)),
            *("entropy_at_flip", "entropy_at_end"),
            *(f"{metric}_at_end" for metric in KL_READINGS),
        ),
    ),
    "kernels": _Table(
        "kernels.csv",
        (*_CONDITION, "kernel", "bandwidth", "auc", "auc_low", "auc_high", "images"),
    ),
    "printed-bim": _Table(
        "printed-bim.csv", (*_CONDITION, "images", "changed", "changed_as_printed")
    ),
    "example": _Table(
        "figures/example.csv",
        (*_CONDITION, "panel", "source", "label", "predicted", "confidence", *PIXELS),
        may_be_empty=True,
    ),
    "attack-success": _Table(
        "figures/attack-success.csv",
        (*_CONDITION, "images", "changed", "share", "low", "high"),
    ),
    "uncertainty-trace": _Table("figures/uncertainty-trace.csv", _TRACE, may_be_empty=True),
    "density-trace": _Table("figures/density-trace.csv", _TRACE, may_be_empty=True),
    "kl-trace": _Table("figures/kl-trace.csv", _TRACE, may_be_empty=True),
    "predicted-kl-trace": _Table("figures/predicted-kl-trace.csv", _TRACE, may_be_empty=True),
    "roc": _Table("figures/roc.csv", (*_CONDITION, "metrics", "fpr", "tpr")),
    "abstention": _Table(
        "figures/abstention.csv", ("dataset", "seed", "metric", "images", "kept", "wrong")
    ),
    "scores": _Table("figures/scores.csv", (*_CONDITION, "kind", "low", "high", "images")),
    "weights": _Table("figures/weights.csv", (*_CONDITION, "metric", "fold", "weight")),
    "gallery": _Table(
        "figures/gallery.csv",
        (*_CONDITION, "kind", "source", "label", "predicted", "score", *PAPER_METRICS, *PIXELS),
    ),
}
"""The saved tables by name; those of figures are stored next to the SVG files."""


@dataclass(frozen=True)
class StudyResult:
    """Results of a study.

    Attributes:
        folder: folder of its files.
        tables: tables by name: ``results``, ``comparisons``, ``uncertainty`` and those of the
            figures; each has the columns ``dataset`` and ``seed`` (of the repetition).
        manifest: configuration, versions, checksums and times.
    """

    folder: Path
    tables: Mapping[str, pd.DataFrame]
    manifest: Mapping[str, Any]

    @property
    def dataset(self) -> str:
        """Name of the dataset."""
        return str(self.manifest["config"]["dataset"])

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the repetitions, each of which has its own classifier."""
        return tuple(int(seed) for seed in self.tables["classifier"]["seed"])

    @property
    def results(self) -> pd.DataFrame:
        """One row for each condition, set of metrics, protocol and choice of positives.

        The columns are :data:`RESULT_COLUMNS`.
        """
        return self.tables["results"]

    def of_first_seed(self, name: str) -> pd.DataFrame:
        """The rows of a table that belong to the first repetition, which the figures show."""
        table = self.tables[name]
        return table[table["seed"] == self.seeds[0]]


def held_out(results: pd.DataFrame) -> pd.DataFrame:
    """The held-out results with all adversarial images as positives."""
    return results[(results["protocol"] == "held-out") & (results["positives"] == "all")]


def held_out_areas(results: pd.DataFrame) -> pd.DataFrame:
    """Held-out ROC-AUC, one row per attack and epsilon, one column per set of metrics.

    Several repetitions are averaged.
    """
    areas: pd.DataFrame = held_out(results).pivot_table(
        index=["attack", "epsilon"], columns="metrics", values="auc", sort=False
    )
    return areas


def save_tables(folder: Path, tables: Mapping[str, pd.DataFrame]) -> dict[str, str]:
    """Write every table of a study.

    Returns:
        The SHA-256 of each file, by its path inside the folder.
    """
    make_folder(folder / "figures")
    sums = {}
    for name, spec in TABLES.items():
        assert tuple(tables[name].columns) == spec.columns, name
        content = to_csv(tables[name]).encode()
        write_atomically(folder / spec.file, content)
        sums[spec.file] = hashlib.sha256(content).hexdigest()
    return sums


def to_csv(table: pd.DataFrame) -> str:
    """A table as CSV, with eight significant digits."""
    return str(table.to_csv(index=False, float_format="%.8g"))


def load_result(folder: Path) -> StudyResult:
    """Load the results of a study.

    Raises:
        StudyFileError: when the manifest or a table is missing, damaged or changed.
    """
    manifest = _read_manifest(folder)
    again = f"{manifest['again']} --out {shlex.quote(str(folder))}"
    tables = {
        name: _read_table(folder / spec.file, spec, manifest["tables"].get(spec.file), again)
        for name, spec in TABLES.items()
    }
    return StudyResult(folder, tables, manifest)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
        if manifest["config"]["dataset"] not in STUDIES:
            message = f"a study of {manifest['config']['dataset']!r}"
            raise ValueError(message)  # noqa: TRY301 - one message for all failures
        words = [manifest["again"], *manifest["tables"].values()]
        if not all(isinstance(word, str) for word in words):
            message = f"entries of other types: {words}"
            raise TypeError(message)  # noqa: TRY301
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = error.strerror if isinstance(error, OSError) else brief(error)
        message = (
            f"expected the manifest of a study at {path}, got: {reason}; "
            f"run `leery reproduce DATASET --out {shlex.quote(str(folder))}`"
        )
        raise StudyFileError(message) from error
    return manifest


def _read_table(path: Path, spec: _Table, expected: str | None, again: str) -> pd.DataFrame:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StudyFileError(_unreadable(path, str(error.strerror), again)) from error
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        reason = f"SHA-256 {found[:12]}... instead of {str(expected)[:12]}..."
        raise StudyFileError(_unreadable(path, reason, again))
    table = pd.read_csv(io.BytesIO(content))
    if tuple(table.columns) != spec.columns or (table.empty and not spec.may_be_empty):
        raise StudyFileError(_unreadable(path, "other columns, or no row", again))
    return table


def _unreadable(path: Path, reason: str, again: str) -> str:
    return f"expected the table that the study wrote at {path}, got: {reason}; run `{again}`"
