"""Summary of a study for the command line: tables for a terminal of 80 columns."""

from collections.abc import Iterator, Sequence
from math import isnan
from pathlib import Path
from typing import Any

import pandas as pd
from rich import box
from rich.table import Table

from leery.metrics import PAPER_METRICS
from leery.study._report import judge
from leery.study._tables import StudyResult

__all__ = ["terminal_summary"]

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


def _detection_table(results: pd.DataFrame, *, several: bool) -> Table:
    """Table of the held-out AUC of groups; ``all`` with interval, TPR and in-sample AUC.

    For several classifiers, their standard deviation replaces the interval.
    """
    table = _auc_table("The groups and all six: ROC-AUC, held out by source image", _GROUPS)
    for heading in ("spread" if several else "95 %", "TPR@1%", "paper"):
        table.add_column(heading, justify="right", no_wrap=True)
    for key, rows in _by_condition(results):
        held_out, paper = _areas(rows, "held-out"), _areas(rows, "paper")
        whole = held_out.loc["all"]
        table.add_row(
            *key,
            *(_short(held_out.loc[name, "auc"]) for name in _GROUPS),
            _short(whole["auc_sd"])
            if several
            else f"{_short(whole['auc_low'])}-{_short(whole['auc_high'])}",
            f"{whole['tpr_at_1_fpr']:.2f}",
            _short(paper.loc["all", "auc"]),
        )
    table.caption = "TPR@1%: found at 1 % false alarms; paper: fitted and judged on the same rows"
    return table


def _metrics_table(results: pd.DataFrame) -> Table:
    """Table of the held-out AUC of each metric alone."""
    table = _auc_table("Each metric alone: ROC-AUC, held out by source image", PAPER_METRICS)
    for key, rows in _by_condition(results):
        held_out = _areas(rows, "held-out")
        table.add_row(*key, *(_short(held_out.loc[name, "auc"]) for name in PAPER_METRICS))
    return table


def _uncertainty_table(uncertainty: pd.DataFrame) -> Table:
    """Table of the mean metrics over wrong and right predictions."""
    means = uncertainty.groupby("metric", sort=False).mean(numeric_only=True)
    table = _plain_table("Clean test images: mean of each metric")
    table.add_column("metric")
    table.add_column(f"wrong ({means['n_wrong'].iloc[0]:.0f})", justify="right")
    table.add_column(f"right ({means['n_right'].iloc[0]:.0f})", justify="right")
    for row in means.itertuples():
        means_of = (row.wrong, row.right)
        table.add_row(str(row.Index), *("-" if isnan(mean) else f"{mean:.5f}" for mean in means_of))
    return table


def terminal_summary(results: Sequence[StudyResult], page: Path) -> list[Table | str]:
    """Tables and lines that the command line prints at the end of a study.

    Args:
        results: results for one or several datasets.
        page: path of the report.
    """
    parts = [part for result in results for part in _of_study(result)]
    return [*parts, _claims_table(results), f"Figures, claims and their evidence: {page}"]


def _of_study(result: StudyResult) -> list[Table | str]:
    classifier = result.tables["classifier"]
    images = int(result.results["n_clean"].max())
    several = len(result.seeds) > 1
    accuracy = ", ".join(f"{value:.2%}" for value in classifier["accuracy"])
    return [
        f"{result.dataset}: accuracy on the {classifier['n_test'].iloc[0]:,} test images: "
        f"{accuracy}" + (f"; means over {len(result.seeds)} classifiers follow" if several else ""),
        _uncertainty_table(result.tables["uncertainty"]),
        f"Attacked: the {images:,} images it gets right. Positives: their adversarial versions; "
        "negatives: those images and their noisy versions.",
        _metrics_table(result.results),
        _detection_table(result.results, several=several),
        f"All conditions, protocols and positives: {result.folder / 'results.csv'}",
    ]


def _claims_table(results: Sequence[StudyResult]) -> Table:
    """Table of the verdicts on the paper's claims."""
    table = _plain_table("The paper's claims")
    for heading in ("claim", "verdict", "for", "against", "neither"):
        right = heading in ("for", "against", "neither")
        table.add_column(heading, justify="right" if right else "left", no_wrap=True)
    for entry in judge(results):
        counts = (str(entry.counts[side]) for side in ("for", "against", "neither"))
        table.add_row(entry.claim.key, entry.verdict, *counts)
    table.caption = "for, against, neither: the 95 % interval is above, below or across the bound"
    return table


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
    keys = ["attack", "epsilon", "metrics", "protocol"]
    groups = counted.groupby(keys, sort=False)
    counted = groups.mean(numeric_only=True).assign(auc_sd=groups["auc"].std()).reset_index()
    for (attack, epsilon), rows in counted.groupby(["attack", "epsilon"], sort=False):
        success = f"{rows['attack_success'].iloc[0]:.1%}"
        yield (f"{attack} {epsilon:.2f}", success), rows


def _areas(rows: pd.DataFrame, protocol: str) -> pd.DataFrame:
    return rows[rows["protocol"] == protocol].set_index("metrics")


def _short(value: Any) -> str:  # noqa: ANN401 - a cell of a data frame
    return f"{float(value):.3f}".removeprefix("0")
