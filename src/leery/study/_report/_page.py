"""The report as one self-contained HTML page."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import pandas as pd

from leery import __version__
from leery.reporting import Cell, Plot, Sheet, page_environment, page_resource
from leery.study._report._claims import READINGS, VERDICTS, Judged
from leery.study._report._errata import errata
from leery.study._report._plots import PLOTS
from leery.study._report._sheets import (
    all_six_sheet,
    classifier_sheet,
    detection_sheet,
    gallery_sheet,
    layers_sheet,
    uncertainty_sheet,
)
from leery.study._tables import StudyResult, held_out_areas

__all__ = ["render"]

_SECTIONS = (
    ("summary", "Summary"),
    ("claims", "Claims and verdicts"),
    ("classifiers", "Classifiers"),
    ("uncertainty", "Wrong and right predictions"),
    ("attacks", "Attacks"),
    ("strength", "Along the strength"),
    ("detection", "Detection"),
    ("gallery", "Misses and false alarms"),
    ("errata", "Errata"),
    ("manifest", "Manifest"),
)


@dataclass(frozen=True)
class _Tile:
    figure: str
    label: str


def render(
    studies: Sequence[StudyResult],
    plots: Sequence[Mapping[str, Plot]],
    judged: Sequence[Judged],
    evidence: pd.DataFrame,
    joint_success: Plot | None = None,
) -> str:
    """Render the report page as HTML.

    Args:
        studies: one study, or several for a joint report.
        plots: the figures of each study, by name.
        judged: the claims with their verdicts.
        evidence: table of all comparisons.
        joint_success: figure 2 of several datasets.
    """
    template = page_environment().from_string(_template())
    names = " and ".join(study.dataset for study in studies)
    return template.render(
        title=f"leery's study of uncertainty and closeness: {names}",
        version=__version__,
        css=page_resource("page.css"),
        js=page_resource("page.js"),
        sections=_SECTIONS,
        tiles=_tiles(studies, judged),
        passes=int(studies[0].tables["classifier"]["passes"].iloc[0]),
        several=any(len(study.seeds) > 1 for study in studies),
        studies=[_shown(study, drawn) for study, drawn in zip(studies, plots, strict=True)],
        classifiers=classifier_sheet(studies),
        judged=judged,
        verdicts=VERDICTS,
        evidence=_evidence_sheet(evidence),
        errata=errata(studies),
        joint_success=joint_success,
    )


def _template() -> str:
    return (files("leery.study._report") / "page.html.jinja").read_text(encoding="utf-8")


def _shown(study: StudyResult, plots: Mapping[str, Plot]) -> dict[str, Any]:
    """Values of a study for the template."""
    return {
        "dataset": study.dataset,
        "plots": {name: plots.get(name) for name in PLOTS},
        "all_six": all_six_sheet(study),
        "layers": layers_sheet(study),
        "uncertainty": uncertainty_sheet(study),
        "detection": detection_sheet(study),
        "gallery": gallery_sheet(study),
        "again": study.manifest["again"],
        "manifest": json.dumps(study.manifest, indent=2),
    }


def _tiles(studies: Sequence[StudyResult], judged: Sequence[Judged]) -> list[_Tile]:
    tiles = []
    for study in studies:
        accuracy = study.tables["classifier"]["accuracy"].mean()
        tiles.append(_Tile(f"{accuracy:.2%}", f"accuracy of the classifier, {study.dataset}"))
        means = held_out_areas(study.results)["all"]
        tiles.append(
            _Tile(
                f"{means.min():.3f} to {means.max():.3f}",
                f"ROC-AUC of all six metrics, six conditions, held out, {study.dataset}",
            )
        )
    return [*tiles, *_verdict_tiles(judged)]


def _verdict_tiles(judged: Sequence[Judged]) -> Iterator[_Tile]:
    """Tiles with the number of claims per verdict, for each reading of the KL divergence."""
    keys = {entry.claim.key for entry in judged}
    for _, key, how in READINGS:
        other = {f"{name}-sum" for name in keys} if not key else set()
        doubled = {name for name in keys if f"{name}-sum" in keys} if key else set()
        chosen = [entry for entry in judged if entry.claim.key not in other | doubled]
        counts = Counter(entry.verdict for entry in chosen)
        figure = " / ".join(str(counts[verdict]) for verdict in VERDICTS)
        words = f"of {len(chosen)} claims: {', '.join(VERDICTS)}; KL divergence with {how}"
        yield _Tile(figure, words)


def _evidence_sheet(evidence: pd.DataFrame) -> Sheet:
    rows = [
        [
            Cell(row["claim"]),
            Cell(row["where"]),
            Cell(row["figure"]),
            *(_figure(row[name]) for name in ("estimate", "low", "high")),
            Cell(f"{row['bound']:g}", row["bound"]),
            Cell(row["speaks"]),
        ]
        for row in evidence.to_dict("records")
    ]
    return Sheet(
        "evidence",
        "Every comparison: it supports the claim if the whole interval lies above the bound",
        ("claim", "where", "figure", "estimate", "low", "high", "bound", "speaks"),
        rows,
    )


def _figure(value: float) -> Cell:
    return Cell(f"{value:.4f}", value) if value == value else Cell("-", None)  # noqa: PLR0124
