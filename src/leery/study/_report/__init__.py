"""The report of a study: figures, claims, errata and one page, from its saved tables alone."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from leery._files import write_atomically
from leery.errors import StudyFileError
from leery.study._config import STUDIES
from leery.study._report._claims import claims_table, evidence_table, judge
from leery.study._report._page import render
from leery.study._report._plots import Plot, joint_success_plot, plots
from leery.study._tables import MANIFEST, TABLES, StudyResult, load_result, to_csv

__all__ = ["PAGE", "judge", "report"]

PAGE = "report.html"
"""The report's file name."""


def report(folder: Path) -> list[Path]:
    """Write the report of a study, or of several, again from what was saved; nothing is computed.

    Args:
        folder: of one study, or of the folders of several as ``leery reproduce all`` leaves them.

    Returns:
        The pages: of each study and, for several, the joint one last.

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
            f"expected the files of a study in {folder}, got none; `leery reproduce DATASET --out "
            f"{shlex.quote(str(folder))}` makes them"
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
    """Whether there is a study, whole or not; one that is not whole is refused when it is read."""
    return any((folder / name).exists() for name in (MANIFEST, *(t.file for t in TABLES.values())))


def _page(
    folder: Path,
    studies: Sequence[StudyResult],
    drawn: Sequence[Mapping[str, Plot]],
    joint: Plot | None = None,
) -> Path:
    """One page, and the tables of its claims."""
    judged = judge(studies)
    evidence = evidence_table(judged)
    write_atomically(folder / "claims.csv", to_csv(claims_table(judged)))
    write_atomically(folder / "evidence.csv", to_csv(evidence))
    path = folder / PAGE
    write_atomically(path, render(studies, drawn, judged, evidence, joint))
    return path
