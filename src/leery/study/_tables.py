"""The tables of the study: tidy files for machines, one table on the terminal for people."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich import box
from rich.table import Table

from leery.detector import PAPER_METRICS, MetricTable

__all__ = [
    "RESULT_COLUMNS",
    "StudyResult",
    "detection_table",
    "metrics_table",
    "results_frame",
    "terminal_summary",
    "uncertainty_frame",
    "uncertainty_table",
]

RESULT_COLUMNS = (
    "dataset",
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

_HEADINGS = {
    "variance": "variance",
    "predictive_entropy": "entropy",
    "mutual_information": "mut. inf.",
    "confidence": "confidence",
    "kernel_density": "density",
    "kl_divergence": "KL",
    "uncertainty": "uncertainty",
    "closeness": "closeness",
    "all": "all six",
}

_GROUPS = ("uncertainty", "closeness", "all")


@dataclass(frozen=True)
class StudyResult:
    """What a study found.

    Attributes:
        accuracy: of the classifier on the test images under study, in [0, 1].
        results: one row for each condition, set of metrics, protocol and choice of positives;
            the columns are :data:`RESULT_COLUMNS`.
        uncertainty: the mean of each metric over wrong and over right predictions.
        folder: where the files are.
    """

    accuracy: float
    results: pd.DataFrame
    uncertainty: pd.DataFrame
    folder: Path


def results_frame(dataset: str, rows: list[dict[str, Any]]) -> pd.DataFrame:
    """The tidy table of all rows; undefined figures are missing."""
    return pd.DataFrame([{"dataset": dataset, **row} for row in rows], columns=RESULT_COLUMNS)


def uncertainty_frame(dataset: str, clean: MetricTable, labels: np.ndarray) -> pd.DataFrame:
    """The mean of each metric over wrong and over right predictions (the paper's tables 3, 4)."""
    right = clean.predicted == labels
    return pd.DataFrame(
        {
            "dataset": dataset,
            "metric": clean.names,
            "wrong": _means(clean.values[~right]),
            "right": _means(clean.values[right]),
            "n_wrong": int((~right).sum()),
            "n_right": int(right.sum()),
        }
    )


def detection_table(results: pd.DataFrame) -> Table:
    """Held out: AUC of the groups and of all six; ``all`` with interval, TPR and in-sample AUC."""
    table = _auc_table("The groups and all six: ROC-AUC, held out by source image", _GROUPS)
    for heading in ("95 %", "TPR@1%", "paper"):
        table.add_column(heading, justify="right", no_wrap=True)
    for key, rows in _by_condition(results):
        held_out, paper = _areas(rows, "held-out"), _areas(rows, "paper")
        whole = held_out.loc["all"]
        table.add_row(
            *key,
            *(_short(held_out.loc[name, "auc"]) for name in _GROUPS),
            f"{_short(whole['auc_low'])}-{_short(whole['auc_high'])}",
            f"{whole['tpr_at_1_fpr']:.2f}",
            _short(paper.loc["all", "auc"]),
        )
    table.caption = "TPR@1%: found at 1 % false alarms; paper: fitted and judged on the same rows"
    return table


def metrics_table(results: pd.DataFrame) -> Table:
    """Held out: AUC of each metric by itself."""
    table = _auc_table("Each metric by itself: ROC-AUC, held out by source image", PAPER_METRICS)
    for key, rows in _by_condition(results):
        held_out = _areas(rows, "held-out")
        table.add_row(*key, *(_short(held_out.loc[name, "auc"]) for name in PAPER_METRICS))
    return table


def uncertainty_table(uncertainty: pd.DataFrame) -> Table:
    """The means over wrong and right predictions, for people."""
    counts = uncertainty.iloc[0]
    table = _plain_table("Clean test images: mean of each metric")
    table.add_column("metric")
    table.add_column(f"wrong ({counts['n_wrong']})", justify="right")
    table.add_column(f"right ({counts['n_right']})", justify="right")
    for row in uncertainty.itertuples():
        table.add_row(str(row.metric), f"{row.wrong:.5f}", f"{row.right:.5f}")
    return table


def terminal_summary(result: StudyResult) -> list[Table | str]:
    """What the command line prints at the end."""
    images = int(result.results["n_clean"].max())
    return [
        f"Classifier accuracy on the test images: {result.accuracy:.2%}",
        uncertainty_table(result.uncertainty),
        f"Attacked: the {images:,} images it gets right; positives are their adversarial twins, "
        "negatives they themselves and their noisy twins.",
        metrics_table(result.results),
        detection_table(result.results),
        f"All conditions, protocols and positives: {result.folder / 'results.csv'}",
    ]


def _plain_table(title: str) -> Table:
    """A table that fits a terminal of 80 columns."""
    return Table(
        title=title, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0)
    )


def _auc_table(title: str, names: tuple[str, ...]) -> Table:
    """An empty table with the columns of a condition and of those sets of metrics."""
    table = _plain_table(title)
    table.add_column("attack", no_wrap=True)
    table.add_column("success", justify="right", no_wrap=True)
    for name in names:
        table.add_column(_HEADINGS[name], justify="right", no_wrap=True)
    return table


def _by_condition(results: pd.DataFrame) -> Iterator[tuple[tuple[str, str], pd.DataFrame]]:
    """Each condition's first two cells and its rows with all positives."""
    counted = results[results["positives"] == "all"]
    for (attack, epsilon), rows in counted.groupby(["attack", "epsilon"], sort=False):
        success = f"{rows['attack_success'].iloc[0]:.1%}"
        yield (f"{attack} {epsilon:.2f}", success), rows


def _areas(rows: pd.DataFrame, protocol: str) -> pd.DataFrame:
    return rows[rows["protocol"] == protocol].set_index("metrics")


def _means(values: np.ndarray) -> np.ndarray:
    """Column means; missing where there is no row."""
    means: np.ndarray = values.mean(axis=0) if len(values) else np.full(values.shape[1], np.nan)
    return means


def _short(value: Any) -> str:  # noqa: ANN401 - a cell of a data frame
    return f"{float(value):.3f}".removeprefix("0")
