"""Draw the figure of threats.md from docs/results/adaptive/threats.csv.

python docs/threats.py
"""

from pathlib import Path

import numpy as np
import pandas as pd
from tables import GUARDS

from leery.reporting import INK, PALETTE, figure_style, new_figure, to_svg

DOCS = Path(__file__).resolve().parent
TABLE = DOCS / "results" / "adaptive" / "threats.csv"
FIGURE = DOCS / "images" / "threats.svg"

QUESTIONS = {
    "classifier": "attacker knows the classifier only",
    "guard": "attacker knows everything",
    "proved": "proved against any attacker",
}
"""What the bars of a guard show, by the beginnings of the names of their columns."""


def draw(table: pd.DataFrame) -> str:
    """The figure as SVG: three bars for each guard, with 95 % intervals."""
    with figure_style():
        figure = new_figure(7.2, 0.6 * len(table) + 1.0)
        axes = figure.add_subplot()
        place = np.arange(len(table))
        colours = (PALETTE["sky"], PALETTE["blue"], PALETTE["green"])
        for row, (column, label) in enumerate(QUESTIONS.items()):
            shares, low, high = (table[f"{column} {end}"] for end in ("share", "low", "high"))
            # Nothing is proved of a guard without a sentinel, whatever the images: no interval.
            known = (shares > 0) | (column != "proved")
            spread = np.stack([shares - low, high - shares]) * known.to_numpy()
            bars = axes.barh(
                place + 0.26 * (row - 1),
                shares,
                0.24,
                label=label,
                color=colours[row],
                xerr=spread,
                error_kw={"elinewidth": 0.8, "ecolor": INK},
            )
            labels = [
                f"{share:.2f}" if sure else "none"
                for share, sure in zip(shares, known, strict=True)
            ]
            axes.bar_label(bars, labels, padding=3, fontsize=8)
        axes.set_yticks(place, [GUARDS[name].replace(", ", ",\n") for name in table.guard])
        axes.grid(visible=False, axis="y")
        axes.invert_yaxis()
        axes.set_xlim(0, 1.12)
        axes.set_xlabel("share of the digits on which the guard holds (lines: 95 % intervals)")
        figure.legend(loc="outside upper center", ncols=3)
        return to_svg(figure, "threats")


if __name__ == "__main__":
    FIGURE.write_text(draw(pd.read_csv(TABLE)))
