"""Sortable tables of the report."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from leery.data import named
from leery.evaluation import POSITIVES, PROTOCOLS
from leery.metrics import PAPER_METRICS, UNCERTAINTY_METRICS
from leery.reporting import Cell, Sheet
from leery.study._config import STUDIED_METRICS
from leery.study._report._errata import PAPER_UNCERTAINTY
from leery.study._report._style import METRIC_NAMES
from leery.study._tables import StudyResult

__all__ = [
    "all_six_sheet",
    "classifier_sheet",
    "detection_sheet",
    "gallery_sheet",
    "layers_sheet",
    "uncertainty_sheet",
]

PAPER_ACCURACY = {"mnist": 0.9884, "fashion-mnist": 0.9203}
"""Accuracies in section 5.1 of the paper."""

_PROTOCOL_NAMES = {"held-out": "held out", "paper": "in-sample (paper)"}


def number(values: pd.Series, digits: int = 3) -> Cell:
    """Cell with a number, or with mean, deviation and number of several classifiers."""
    known = values.dropna()
    if known.empty:
        return Cell("-", None)
    text = f"{known.mean():.{digits}f}"
    if len(known) > 1:
        text += f" ± {known.std(ddof=1):.{digits}f}"
    if len(known) < len(values):
        text += f" ({len(known)} of {len(values)})"
    return Cell(text, float(known.mean()))


def percent(values: pd.Series, digits: int = 1) -> Cell:
    """Cell like that of :func:`number`, for fractions as percentages."""
    cell = number(100 * values, digits)
    head, space, rest = cell.text.partition(" (")
    return Cell(f"{head}%{space}{rest}", cell.sort) if cell.sort is not None else cell


def count(values: pd.Series) -> Cell:
    """Cell with an integer, or with its mean over several classifiers."""
    return Cell(f"{values.mean():,.0f}", float(values.mean()))


def word(text: str) -> Cell:
    """A cell that is sorted by its text."""
    return Cell(text)


def _spread_note(study: StudyResult) -> str:
    if len(study.seeds) == 1:
        return ""
    seeds = ", ".join(map(str, study.seeds))
    return (
        f" Mean ± standard deviation over {len(study.seeds)} classifiers, trained at seeds {seeds},"
        " which are also those of masks, random starts, noise and folds."
    )


def all_six_sheet(study: StudyResult) -> Sheet:
    """Table of the held-out results of all six metrics, one row per condition."""
    table = study.results[study.results["metrics"] == "all"]
    rows = []
    for (attack, epsilon), found in table.groupby(["attack", "epsilon"], sort=False):
        held_out, paper = (
            found[(found["protocol"] == protocol) & (found["positives"] == "all")]
            for protocol in ("held-out", "paper")
        )
        changed = found[(found["protocol"] == "held-out") & (found["positives"] == "successful")]
        rows.append(
            [
                word(attack),
                Cell(f"{epsilon:.2f}", epsilon),
                percent(held_out["attack_success"]),
                number(held_out["auc"]),
                _interval(held_out),
                percent(held_out["tpr_at_1_fpr"]),
                percent(held_out["tpr_at_5_fpr"]),
                number(changed["auc"]),
                number(paper["auc"]),
            ]
        )
    return Sheet(
        f"all-six-{study.dataset}",
        f"{study.dataset}: all six metrics together",
        (
            *("attack", "epsilon", "labels changed", "ROC-AUC", "95%"),
            *("found at 1% false alarms", "found at 5%"),
            *("ROC-AUC, changed labels only", "ROC-AUC in-sample (paper)"),
        ),
        rows,
        "Held out by source image; positives are all adversarial versions, negatives the clean and "
        "the noisy images." + _spread_note(study),
    )


def _interval(rows: pd.DataFrame) -> Cell:
    """Cell with the interval over images, which is undefined for several classifiers."""
    if len(rows) != 1 or rows["auc"].isna().any():
        return Cell("-", None)
    low, high = float(rows["auc_low"].iloc[0]), float(rows["auc_high"].iloc[0])
    return Cell(f"{low:.3f}\N{EN DASH}{high:.3f}", low)


def detection_sheet(study: StudyResult) -> Sheet:
    """Table of results by condition, set of metrics, protocol and choice of positives."""
    keys = ["attack", "epsilon", "metrics", "protocol"]
    rows = []
    for (attack, epsilon, metrics, protocol), found in study.results.groupby(keys, sort=False):
        cells = [
            word(attack),
            Cell(f"{epsilon:.2f}", epsilon),
            word(METRIC_NAMES[metrics]),
            word(_PROTOCOL_NAMES[protocol]),
        ]
        for positives in POSITIVES:
            chosen = found[found["positives"] == positives]
            cells += [
                number(chosen["auc"]),
                _interval(chosen),
                percent(chosen["tpr_at_1_fpr"]),
                percent(chosen["tpr_at_5_fpr"]),
            ]
        rows.append(cells)
    headings = ["attack", "epsilon", "metrics", "protocol"]
    for kind in ("all", "changed", "kept"):
        headings += [f"{kind}: AUC", f"{kind}: 95%", f"{kind}: TPR at 1%", f"{kind}: TPR at 5%"]
    assert len(PROTOCOLS) == len(_PROTOCOL_NAMES)
    return Sheet(
        f"detection-{study.dataset}",
        f"{study.dataset}: detection by every metric, group and protocol",
        headings,
        rows,
        "Positives: all adversarial images, those whose label changed, those that kept it. TPR at "
        "1% and 5% false alarms. A dash: no such image, or no interval over several classifiers."
        + _spread_note(study),
    )


def classifier_sheet(studies: Sequence[StudyResult]) -> Sheet:
    """Table of the classifiers: the paper's table 2 and the accuracies of its section 5.1."""
    entries: list[tuple[str, list[Cell]]] = []
    tables = [study.tables["classifier"] for study in studies]
    firsts = [table.iloc[0] for table in tables]
    entries.append(("network", [word(first["network"]) for first in firsts]))
    entries.append(("parameters", [word(f"{first['parameters']:,}") for first in firsts]))
    entries.append(
        ("accuracy on the test set", [percent(table["accuracy"], 2) for table in tables])
    )
    entries.append(
        ("accuracy in the paper", [word(f"{PAPER_ACCURACY[s.dataset]:.2%}") for s in studies])
    )
    for name, column in (
        ("dropout (paper: 0.5)", "dropout"),
        ("optimiser", "optimizer"),
        ("learning rate", "learning_rate"),
        ("batch size", "batch_size"),
        ("epochs", "epochs"),
        ("Monte-Carlo dropout passes", "passes"),
        ("kernel bandwidth", "bandwidth"),
    ):
        entries.append((name, [word(f"{first[column]}") for first in firsts]))
    entries.append(("test images", [word(f"{first['n_test']:,}") for first in firsts]))
    entries.append(("test images studied", [word(f"{first['n_studied']:,}") for first in firsts]))
    return Sheet(
        "classifiers-table",
        "Classifiers and settings (the paper's table 2)",
        ["", *(study.dataset for study in studies)],
        [[word(name), *cells] for name, cells in entries],
        "The paper has a dropout of 0.5 for both, the authors' later notebooks 0.25 for fashion "
        "articles." + "".join(sorted({*map(_spread_note, studies)})),
    )


def layers_sheet(study: StudyResult) -> Sheet:
    """Table of the layers: the paper's table 1."""
    rows = [
        [word(row.name), word(row.layer), Cell(f"{row.parameters:,}", float(row.parameters))]
        for row in study.tables["layers"][["name", "layer", "parameters"]].itertuples(index=False)
    ]
    return Sheet(
        f"layers-{study.dataset}",
        f"{study.dataset}: layers (the paper's table 1)",
        ("name", "layer", "parameters"),
        rows,
        "The last hidden layer is the one called hidden.",
    )


def uncertainty_sheet(study: StudyResult) -> Sheet:
    """Table of mean metrics over wrong and right predictions: the paper's tables 3 and 4."""
    rows = []
    table = study.tables["uncertainty"]
    for metric in STUDIED_METRICS:
        found = table[table["metric"] == metric]
        paper = PAPER_UNCERTAINTY.get(metric)
        rows.append(
            [
                word(METRIC_NAMES[metric]),
                number(found["wrong"], 4),
                number(found["right"], 4),
                *(Cell(f"{value:.5f}", value) for value in paper or ()),
                *(Cell("-", None) for _ in range(0 if paper else 2)),
            ]
        )
    wrong, right = (count(table[name]).text for name in ("n_wrong", "n_right"))
    return Sheet(
        f"uncertainty-{study.dataset}",
        f"{study.dataset}: mean of each metric over wrong and right predictions (tables 3 and 4)",
        ("metric", f"wrong ({wrong})", f"right ({right})", "paper's table 4: wrong", "right"),
        rows,
        "The paper has only one legible table of this kind; the errata say how well it fits this "
        "dataset." + _spread_note(study),
    )


def gallery_sheet(study: StudyResult) -> Sheet:
    """Table of the metrics of the gallery's images."""
    names = named(study.dataset).classes
    rows = []
    for row in study.of_first_seed("gallery").to_dict("records"):
        cells: list[Cell] = [
            word(row["attack"]),
            Cell(f"{row['epsilon']:.2f}", row["epsilon"]),
            word(row["kind"]),
            Cell(str(row["source"]), row["source"]),
            word(names[row["label"]]),
            word(names[row["predicted"]]),
            Cell(f"{row['score']:.2f}", row["score"]),
        ]
        cells += [_value(row, metric) for metric in PAPER_METRICS]
        rows.append(cells)
    return Sheet(
        f"gallery-table-{study.dataset}",
        f"{study.dataset}: the metrics of the images of the gallery",
        (
            *("attack", "epsilon", "kind", "test image", "true", "predicted", "score"),
            *(METRIC_NAMES[metric] for metric in PAPER_METRICS),
        ),
        rows,
        "Score: log odds of being adversarial, held out.",
    )


def _value(row: dict[str, Any], metric: str) -> Cell:
    digits = 4 if metric in UNCERTAINTY_METRICS else 2
    return Cell(f"{row[metric]:.{digits}f}", row[metric])
