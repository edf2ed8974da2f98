"""The tables of the study: tidy files for machines, one table on the terminal for people."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table

from leery.detector import MetricTable
from leery.study._config import METRIC_SETS

__all__ = [
    "RESULT_COLUMNS",
    "StudyResult",
    "detection_table",
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
    "variance": "var.",
    "predictive_entropy": "entr.",
    "mutual_information": "m.i.",
    "confidence": "conf.",
    "kernel_density": "dens.",
    "kl_divergence": "KL",
    "uncertainty": "unc.",
    "closeness": "clo.",
    "all": "all",
}


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
    """AUC by condition and set of metrics, held out; ``all`` in-sample and at 1 % FPR beside it."""
    table = Table(title="Detection: ROC-AUC, held out by source image, all positives")
    table.add_column("attack")
    table.add_column("eps.")
    table.add_column("success")
    for name in METRIC_SETS:
        table.add_column(_HEADINGS[name], justify="right", style="bold" if name == "all" else "")
    table.add_column("95 %", justify="right")
    table.add_column("TPR@1%", justify="right")
    table.add_column("paper", justify="right", style="dim")
    counted = results[results["positives"] == "all"]
    for (attack, epsilon), rows in counted.groupby(["attack", "epsilon"], sort=False):
        held_out = rows[rows["protocol"] == "held-out"].set_index("metrics")
        paper = rows[rows["protocol"] == "paper"].set_index("metrics")
        whole = held_out.loc["all"]
        table.add_row(
            str(attack),
            f"{epsilon:.2f}",
            f"{whole['attack_success']:.1%}",
            *(_short(held_out.loc[name, "auc"]) for name in METRIC_SETS),
            f"{_short(whole['auc_low'])}-{_short(whole['auc_high'])}",
            f"{whole['tpr_at_1_fpr']:.2f}",
            _short(paper.loc["all", "auc"]),
        )
    table.caption = "paper: all six metrics, fitted and judged on the same rows"
    return table


def uncertainty_table(uncertainty: pd.DataFrame) -> Table:
    """The means over wrong and right predictions, for people."""
    counts = uncertainty.iloc[0]
    table = Table(title="Clean test images: mean of each metric")
    table.add_column("metric")
    table.add_column(f"wrong ({counts['n_wrong']})", justify="right")
    table.add_column(f"right ({counts['n_right']})", justify="right")
    for row in uncertainty.itertuples():
        table.add_row(str(row.metric), f"{row.wrong:.5f}", f"{row.right:.5f}")
    return table


def terminal_summary(result: StudyResult) -> list[Table | str]:
    """What the command line prints at the end."""
    return [
        f"Classifier accuracy on the test images: {result.accuracy:.2%}",
        uncertainty_table(result.uncertainty),
        detection_table(result.results),
        f"Files: {result.folder}",
    ]


def _means(values: np.ndarray) -> np.ndarray:
    """Column means; missing where there is no row."""
    means: np.ndarray = values.mean(axis=0) if len(values) else np.full(values.shape[1], np.nan)
    return means


def _short(value: Any) -> str:  # noqa: ANN401 - a cell of a data frame
    return f"{float(value):.3f}".removeprefix("0")
