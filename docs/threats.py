"""Draw the figure of threats.md from docs/results/adaptive/threats.csv.

python docs/threats.py
"""

from pathlib import Path

import numpy as np
import pandas as pd
from tables import GUARDS

from leery.reporting import PALETTE, figure_style, new_figure, to_svg

DOCS = Path(__file__).resolve().parent
TABLE = DOCS / "results" / "adaptive" / "threats.csv"
FIGURE = DOCS / "images" / "threats.svg"

QUESTIONS = {
    "holds against who knows the classifier": "attacker knows the classifier only",
    "holds against who knows the guard": "attacker knows everything",
    "proved": "proved against any attacker",
}
"""What the bars of a guard show, by column."""


def draw(table: pd.DataFrame) -> str:
    """The figure as SVG: three bars for each guard."""
    with figure_style():
        figure = new_figure(7.2, 0.6 * len(table) + 1.0)
        axes = figure.add_subplot()
        place = np.arange(len(table))
        colours = (PALETTE["sky"], PALETTE["blue"], PALETTE["green"])
        for row, (column, label) in enumerate(QUESTIONS.items()):
            shares = table[column].to_numpy()
            bars = axes.barh(
                place + 0.26 * (row - 1), shares, 0.24, label=label, color=colours[row]
            )
            labels = [
                "none" if column == "proved" and not share else f"{share:.2f}" for share in shares
            ]
            axes.bar_label(bars, labels, padding=3, fontsize=8)
        axes.set_yticks(place, [GUARDS[name].replace(", ", ",\n") for name in table.guard])
        axes.grid(visible=False, axis="y")
        axes.invert_yaxis()
        axes.set_xlim(0, 1.1)
        axes.set_xlabel("share of the digits on which the guard holds")
        figure.legend(loc="outside upper center", ncols=3)
        return to_svg(figure, "threats")


if __name__ == "__main__":
    FIGURE.write_text(draw(pd.read_csv(TABLE)))
