"""The page of an arena, from its saved tables."""

import json
import math
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from leery import __version__
from leery._files import make_folder, write_atomically
from leery.arena._figures import alarms_figure, cells_figure, cost_figure, trainings_figure
from leery.arena._gather import summary
from leery.reporting import (
    Cell,
    Plot,
    Sheet,
    figure_style,
    page_environment,
    page_resource,
    themed,
    to_svg,
)

__all__ = ["PAGE", "write_page"]

PAGE = "report.html"
"""The page's file name."""

_SECTIONS = (
    ("summary", "Summary"),
    ("attacks", "Every attack"),
    ("cost", "Cost"),
    ("training", "Supervised detectors"),
    ("alarms", "False alarms"),
    ("manifest", "Manifest"),
)

Tables = Mapping[str, pd.DataFrame]


def write_page(out: Path, tables: Tables, manifest: Mapping[str, Any]) -> Path:
    """Write the figures and the page of an arena.

    Args:
        out: folder of the tables.
        tables: the tables by name. The leaderboard, costs and times cover all classifiers; the
            other figures and tables show the first one.
        manifest: the manifest.

    Returns:
        The path of the page.
    """
    shown = {
        name: table[table["seed"] == table["seed"].min()] if "seed" in table else table
        for name, table in tables.items()
    }
    dataset, board = manifest["config"]["dataset"], summary(tables["leaderboard"])
    template = (files("leery.arena") / "page.html.jinja").read_text(encoding="utf-8")
    accuracy = manifest["classifiers"][0]["test_accuracy"]
    plots = _plots(out, shown, board, dataset)
    page = page_environment().from_string(template).render(
        title=f"leery's arena: {dataset}",
        lead=f"Detectors of adversarial examples on {dataset} (classifier "
        f"{manifest['classifiers'][0]['network']}, accuracy {accuracy:.2%}), by leery "
        f"{__version__}.",
        css=page_resource("page.css"),
        js=page_resource("page.js"),
        sections=[own for own in _SECTIONS if own[0] != "training" or plots["trainings"]],
        tiles=_tiles(board, shown["attacks"]),
        with_leery="leery" in set(board["detector"]),
        leaderboard=_leaderboard(board, tables["times"]),
        errors=board.loc[board["error"] != "", ["detector", "error"]].to_dict("records"),
        cells=_cells_sheet(shown["cells"]),
        attacks=_attacks_sheet(shown["attacks"]),
        alarms=_alarms_sheet(shown["false-alarms"]),
        times=_times_sheet(tables["times"]),
        plots=plots,
        again=manifest["again"],
        manifest=json.dumps(manifest, indent=2),
    )  # fmt: skip
    path = out / PAGE
    write_atomically(path, page)
    return path


def _tiles(board: pd.DataFrame, attacks: pd.DataFrame) -> Iterator[tuple[str, str]]:
    raised = int((board["error"] != "").sum())
    yield (
        str(len(board)),
        f"detectors, {raised} of which raised an error" if raised else "detectors",
    )
    yield str(len(attacks)), f"attacks, each on at most {attacks['images'].max():,} images"
    if "worst_at_1_fpr" in board:
        best = board.iloc[0]
        yield (
            f"{best['worst_at_1_fpr']:.2f}",
            f"share found by {best['detector']} for its worst attack at 1 % false alarms; no other "
            "detector has a larger one",
        )


def _leaderboard(board: pd.DataFrame, times: pd.DataFrame) -> Sheet:
    """The detectors, sorted by the share found for the worst attack."""
    rows = []
    cost = _cost_of(times)
    for row in board.to_dict("records"):
        name = str(row["detector"])
        head = [Cell(f"{name} *" if row["learns_from_attacks"] else name)]
        if row["error"]:
            rows.append([*head, Cell("error: see below"), *[Cell("-")] * 12])
            continue
        rows.append(
            [
                *head,
                Cell(str(row["worst_attack_at_1_fpr"])),
                _share(row, "worst_at_1_fpr"),
                _interval(row, "worst_at_1_fpr"),
                *(_share(row, column) for column in ("mean_at_1_fpr", "every_attack_at_1_fpr")),
                _evaded(row),
                _share(row, "certified_at_1_fpr"),
                *(
                    _share(row, column)
                    for column in (
                        *("worst_at_1_fpr_clean_threshold", "mean_at_1_fpr_clean_threshold"),
                        *("worst_at_5_fpr", "mean_at_5_fpr"),
                    )
                ),
                Cell(f"{row['false_alarms_at_1_fpr']:.3f}", float(row["false_alarms_at_1_fpr"])),
                Cell(f"{cost[name]:.2f}", float(cost[name])),
            ]
        )
    headings = ["detector", "its worst attack", "share found at 1 %", "95 % interval"]
    headings += ["mean at 1 %", "images with every attack found", "evaded by an informed attacker"]
    headings += ["certified", "worst at 1 %, clean threshold", "mean at 1 %, clean threshold"]
    headings += ["worst at 5 %", "mean at 5 %", "false alarms at 1 %"]
    return Sheet(
        "leaderboard",
        "Detectors ranked by the share found for their worst attack",
        [*headings, "ms per image"],
        rows,
        note="Found: share of the successful attacks that is flagged. Clean threshold: set on "
        "clean images only. Evaded by an informed attacker: share of images that attacks on "
        "classifier and detector together change within the arena's L-infinity radius so that they "
        "are misclassified and not flagged; ≥ marks detectors without a gradient, for which only a "
        "random search and transfer were tried. Certified: share for which no attack can. Times: "
        "processor time of one thread on the machine that ran the detector.",
    )


def _evaded(row: Mapping[str, Any]) -> Cell:
    """The share evaded, which is a poor lower bound where no gradient was used."""
    share = float(row["evaded_at_1_fpr"])
    return Cell(f"{'' if row['evaded_with_gradients'] else '≥ '}{share:.2f}", share)


def _interval(row: Mapping[str, Any], column: str) -> Cell:
    """The interval of a share, or a dash where there is none."""
    low, high = row[f"{column}_low"], row[f"{column}_high"]
    return Cell("-" if math.isnan(low) else f"{low:.2f} to {high:.2f}")


def _share(row: Mapping[str, Any], column: str) -> Cell:
    """A share, with the standard deviation over several classifiers where it is known."""
    share, spread = float(row[column]), float(row.get(f"{column}_sd", float("nan")))
    if math.isnan(share):
        return Cell("-", None)
    return Cell(f"{share:.2f}" + ("" if math.isnan(spread) else f" ± {spread:.2f}"), share)


def _cells_sheet(table: pd.DataFrame) -> Sheet:
    rows = [
        [
            *(Cell(str(row[name])) for name in ("detector", "attack")),
            Cell(str(row["trained_on"] or "-")),
            Cell(f"{row['images']:,}", float(row["images"])),
            *(
                Cell(
                    f"{row[name]:.3f} ({row[f'{name}_low']:.3f} to {row[f'{name}_high']:.3f})",
                    float(row[name]),
                )
                for name in ("tpr_at_1_fpr", "tpr_at_5_fpr", "auc")
            ),
        ]
        for row in table.to_dict("records")
        if row["unseen"] and row["positives"] == "successful"
    ]
    headings = ["detector", "attack", "trained on", "images"]
    return Sheet(
        "cells",
        "Successful attacks found by every detector",
        [*headings, "at 1 %", "at 5 %", "AUC against clean"],
        rows,
    )


def _attacks_sheet(table: pd.DataFrame) -> Sheet:
    rows = [
        [
            *(Cell(str(row[name])) for name in ("attack", "family")),
            Cell(f"{row['images']:,}", float(row["images"])),
            *(Cell(f"{row[name]:.2f}", float(row[name])) for name in ("success", "mean_l2")),
            Cell(f"{row['mean_linf']:.3f}", float(row["mean_linf"])),
            Cell("yes" if row["trains_supervised"] else "no"),
        ]
        for row in table.to_dict("records")
    ]
    headings = ["attack", "kind", "images", "successful", "mean L2", "mean L-infinity"]
    return Sheet("attack-table", "The attacks", [*headings, "for training"], rows)


def _alarms_sheet(table: pd.DataFrame) -> Sheet:
    """False alarms at 1 %, of all classes together."""
    rows = [
        [
            *(Cell(str(row[name] or "-")) for name in ("detector", "trained_on", "change")),
            Cell(f"{row['images']:,}", float(row["images"])),
            Cell(
                f"{row['share']:.3f} ({row['low']:.3f} to {row['high']:.3f})", float(row["share"])
            ),
        ]
        for row in table.to_dict("records")
        if row["rate"] == 0.01 and row["class"] == "all"  # noqa: PLR2004 - shown
    ]
    return Sheet(
        "alarm-table",
        "False alarms, threshold for 1 %",
        ["detector", "trained on", "change", "images", "flagged"],
        rows,
        note="The file false-alarms.csv also has each class, and the threshold for 5 %.",
    )


def _times_sheet(table: pd.DataFrame) -> Sheet:
    rows = [
        [
            *(Cell(str(row[name])) for name in ("kind", "name")),
            Cell(f"{row['seconds']:.0f}", float(row["seconds"])),
            Cell(f"{row['share']:.1%}", float(row["share"])),
        ]
        for row in table.dropna(subset="seconds")
        .sort_values("seconds", ascending=False)
        .to_dict("records")
    ]
    return Sheet(
        "time-table",
        "Processor time of the arena",
        ["what", "name", "seconds", "share"],
        rows,
        note="Parts of an earlier run are listed with the time that they took then.",
    )


def _plots(out: Path, tables: Tables, board: pd.DataFrame, dataset: str) -> dict[str, Plot | None]:
    """Draw the figures for which there is data, and write the SVG files; earlier ones go."""
    order = list(board["detector"])
    found: dict[str, Plot | None] = dict.fromkeys(("cells", "cost", "trainings", "alarms"))
    for name in found:
        (out / _svg_of(name)).unlink(missing_ok=True)
    if tables["cells"].empty:
        return found
    make_folder(out / "figures")
    cells = tables["cells"][tables["cells"]["positives"] == "successful"]
    drawn = {
        "cells": (
            "Successful attacks found at 1 % false alarms",
            "Share of the successful attacks that each detector finds. Detectors that learn from "
            "attacks have learned from attacks of other kinds.",
            "cells.csv",
            lambda: cells_figure(_wide(cells[cells["unseen"]], "attack", "tpr_at_1_fpr", order)),
        ),
        "cost": (
            "Cost and share found, at 1 % false alarms",
            "Share found for the worst attack (left) and for all attacks on "
            "average (right), against processor time per image. Lines connect the detectors for "
            "which no other is both cheaper and better; points below 0.05 are not labelled.",
            "times.csv",
            lambda: cost_figure(_costs(board, tables["times"])),
        ),
        "alarms": (
            "False-alarm rate in %, with a threshold for 1 %",
            "Share of correctly classified images that is flagged, clean and with harmless "
            "changes. The threshold was set on clean images and on four of the changes.",
            "false-alarms.csv",
            lambda: alarms_figure(_wide(_alarms(tables["false-alarms"]), "change", "share", order)),
        ),
    }
    panels = list(_trainings(cells, order))
    if panels:
        drawn["trainings"] = (
            "Trained on (rows), tested on (columns), at 1 % false alarms",
            "Share of the successful attacks that each supervised detector finds, by what it was "
            "trained on: one attack, all five, or all except those of one kind.",
            "cells.csv",
            lambda: trainings_figure(panels),
        )
    for name, (title, caption, data, draw) in drawn.items():
        found[name] = _plot(
            out, name, title=f"{dataset}: {title}", caption=caption, data=data, figure=draw
        )
    return found


def _svg_of(name: str) -> str:
    return f"figures/{name}.svg"


def _plot(out: Path, name: str, *, title: str, caption: str, data: str, figure: Any) -> Plot:  # noqa: ANN401 - a function that draws
    with figure_style():
        drawn: Figure = figure()
        svg = to_svg(drawn, name)
    file = _svg_of(name)
    write_atomically(out / file, svg)
    own = f"figure-{name}"
    return Plot(own, title, caption, caption, themed(svg, own), data, file)


def _wide(table: pd.DataFrame, column: str, value: str, order: list[str]) -> pd.DataFrame:
    """Shares by detector (rows, in the given order) and attack or change (columns)."""
    wide = table.pivot_table(index="detector", columns=column, values=value, sort=False)
    return wide.reindex([name for name in order if name in wide.index])


def _cost_of(times: pd.DataFrame) -> pd.Series:
    """Milliseconds per image of each detector."""
    rows = times[times["kind"] == "detector"]
    return rows.groupby("name")["score_ms"].mean()


def _costs(board: pd.DataFrame, times: pd.DataFrame) -> pd.DataFrame:
    """Columns detector, score_ms, worst and mean, of the detectors that have scores."""
    names = {"worst_at_1_fpr": "worst", "mean_at_1_fpr": "mean"}
    table = board.rename(columns=names).assign(score_ms=board["detector"].map(_cost_of(times)))
    return table[["detector", "score_ms", *names.values()]].dropna()


def _alarms(table: pd.DataFrame) -> pd.DataFrame:
    """False alarms at 1 %; for a supervised detector the largest over its training attacks."""
    rows = table[(table["rate"] == 0.01) & (table["class"] == "all")]  # noqa: PLR2004 - shown
    return rows.groupby(["detector", "change"], sort=False)["share"].max().reset_index()


def _trainings(cells: pd.DataFrame, order: list[str]) -> Iterator[tuple[str, pd.DataFrame]]:
    """For each supervised detector: shares by training and attack."""
    for name in order:
        own = cells[(cells["detector"] == name) & (cells["trained_on"] != "")]
        if not own.empty:
            wide = own.pivot_table(
                index="trained_on", columns="attack", values="tpr_at_1_fpr", sort=False
            )
            yield name, wide
