"""The report of a study: figures, claims, errata and one page, from its saved tables alone."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from leery._files import write_atomically
from leery.errors import StudyFileError
from leery.reporting import Plot
from leery.study._config import STUDIES
from leery.study._report._claims import claims_table, evidence_table, judge
from leery.study._report._page import render
from leery.study._report._plots import joint_success_plot, plots
from leery.study._tables import MANIFEST, TABLES, StudyResult, load_result, to_csv

__all__ = ["PAGE", "judge", "report"]

PAGE = "report.html"
"""The report's file name."""


def report(folder: Path) -> list[Path]:
    """Write the report of one or several studies from their saved tables, without recomputing.

    Args:
        folder: folder of one study, or of several, as written by ``leery reproduce all``.

    Returns:
        Paths of the pages of each study and, for several studies, of the joint page last.

    Raises:
        StudyFileError: when a table or manifest is missing, damaged or changed.
        OutputError: when the folder cannot be written to.
    """
    if (folder / MANIFEST).exists():
        study = load_result(folder)
        return [_page(folder, [study], [plots(study)])]
    inside = [folder / name for name in STUDIES if _holds_tables(folder / name)]
    if not inside:
        message = (
            f"expected a study in {folder}, got none; run `leery reproduce DATASET --out "
            f"{shlex.quote(str(folder))}` first"
        )
        raise StudyFileError(message)
    studies = [load_result(member) for member in inside]
    drawn = [plots(study) for study in studies]
    pages = [
        _page(study.folder, [study], [figures])
        for study, figures in zip(studies, drawn, strict=True)
    ]
    moved = [
        {name: plot.seen_from_above(study.dataset) for name, plot in figures.items()}
        for study, figures in zip(studies, drawn, strict=True)
    ]
    return [*pages, _page(folder, studies, moved, joint_success_plot(studies, folder))]


def _holds_tables(folder: Path) -> bool:
    """True if there is a study; an incomplete one raises when it is read."""
    return any((folder / name).exists() for name in (MANIFEST, *(t.file for t in TABLES.values())))


def _page(
    folder: Path,
    studies: Sequence[StudyResult],
    drawn: Sequence[Mapping[str, Plot]],
    joint: Plot | None = None,
) -> Path:
    """Write one page and the tables of its claims."""
    judged = judge(studies)
    evidence = evidence_table(judged)
    write_atomically(folder / "claims.csv", to_csv(claims_table(judged)))
    write_atomically(folder / "evidence.csv", to_csv(evidence))
    path = folder / PAGE
    write_atomically(path, render(studies, drawn, judged, evidence, joint))
    return path
