"""Figures of the report, with title, alternative text and caption."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from leery._files import make_folder, write_atomically
from leery.reporting import Plot, figure_style, themed, to_svg
from leery.study._report.figures import (
    FIGURES,
    attack_success_figure,
    success_alt,
    success_caption,
)
from leery.study._tables import TABLES, StudyResult, to_csv

__all__ = ["PLOTS", "joint_success_plot", "plots"]


def plots(study: StudyResult) -> dict[str, Plot]:
    """Draw every figure for which a study has data, and write the SVG files.

    Returns:
        The figures by name.
    """
    found = {}
    make_folder(study.folder / "figures")
    for spec in FIGURES:
        if study.of_first_seed(spec.table).empty:
            continue
        with figure_style():
            svg = to_svg(spec.draw(study), spec.name)
        file = f"figures/{spec.name}.svg"
        write_atomically(study.folder / file, svg)
        found[spec.name] = Plot(
            name=f"{study.dataset}-{spec.name}",
            title=f"{study.dataset}: {spec.title}",
            alt=spec.alt(study),
            caption=spec.caption(study),
            svg=themed(svg, f"{study.dataset}-{spec.name}"),
            data=TABLES[spec.table].file,
            file=file,
        )
    return found


def joint_success_plot(studies: Sequence[StudyResult], folder: Path) -> Plot:
    """Figure 2 with a panel for each dataset; writes its SVG and its data."""
    name = "attack-success"
    table = pd.concat([study.of_first_seed(name) for study in studies])
    with figure_style():
        svg = to_svg(attack_success_figure(table), name)
    make_folder(folder / "figures")
    write_atomically(folder / f"figures/{name}.svg", svg)
    write_atomically(folder / f"figures/{name}.csv", to_csv(table))
    return Plot(
        name=f"joint-{name}",
        title="How many labels each attack changes (the paper's figure 2)",
        alt=" ".join(success_alt(study) for study in studies),
        caption=success_caption(studies[0]),
        svg=themed(svg, f"joint-{name}"),
        data=f"figures/{name}.csv",
        file=f"figures/{name}.svg",
    )


PLOTS = tuple(figure.name for figure in FIGURES)
"""The names of the figures, in the order in which they are drawn."""
