"""Tables of an arena from the scores of its detectors."""

import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import pandas as pd

from leery._files import raise_reading_fault
from leery.arena._adaptive import threshold_of
from leery.arena._config import RATES
from leery.arena._detectors import Entry
from leery.arena._workspace import CHANGES, FRESH_CHANGES, Workspace, error_file
from leery.calibration import Calibration
from leery.errors import StudyFileError, brief
from leery.evaluation import (
    POSITIVES,
    alarm_rows,
    every_attack_found,
    roc_auc_interval,
    share_interval,
)
from leery.tasks import read_seconds

__all__ = ["gather", "summary"]

Rows = Iterator[dict[str, Any]]

_ALL_KINDS = ("clean", *CHANGES)


def gather(workspaces: Sequence[Workspace], entries: Sequence[Entry]) -> dict[str, pd.DataFrame]:
    """Every table of an arena by name.

    Args:
        workspaces: one per classifier.
        entries: the detectors.
    """
    scored = [
        _Scored(workspace, entry, *_read(workspace, entry))
        for workspace in workspaces
        for entry in entries
    ]
    makers: dict[str, Callable[[_Scored], Rows]] = {
        "leaderboard": _leaderboard,
        "cells": _cells,
        "false-alarms": _false_alarms,
    }
    tables = {
        name: pd.DataFrame(
            {"seed": one.workspace.classifier_seed, "detector": one.entry.name, **row}
            for one in scored
            for row in make(one)
        )
        for name, make in makers.items()
    }
    attacks = [row for workspace in workspaces for row in _attacks(workspace)]
    return {**tables, "attacks": pd.DataFrame(attacks), "times": _times(workspaces, entries)}


def summary(leaderboard: pd.DataFrame) -> pd.DataFrame:
    """A leaderboard with one row per detector, sorted by the share found for its worst attack.

    Args:
        leaderboard: the table of that name.

    Returns:
        Columns of floats are means over the classifiers; other columns are those of the classifier
        with the smallest share found for the worst attack. Intervals are NaN if there are several
        classifiers. Columns whose names end in ``_sd`` hold the standard deviation of the worst and
        mean shares at 1 % over the classifiers, NaN if there is only one. A detector that raised
        for any classifier has its error, and stands behind the others.
    """
    error = leaderboard["error"].astype(object)
    board = leaderboard.assign(error=error.where(error.notna(), ""))
    if "worst_at_1_fpr" not in board:
        return board.drop_duplicates("detector")
    ordered = board.sort_values("worst_at_1_fpr", kind="stable")
    groups = ordered.groupby("detector", sort=False)
    table = groups.first()
    numbers = [name for name in table.columns if ordered[name].dtype.kind == "f"]
    table[numbers] = groups[numbers].mean()
    several = groups.size() > 1
    table.loc[several, [name for name in numbers if name.endswith(("_low", "_high"))]] = np.nan
    table["error"] = groups["error"].max()
    for name in ("worst_at_1_fpr", "mean_at_1_fpr"):
        table[f"{name}_sd"] = groups[name].std()
    table["raised"] = table["error"] != ""
    order = ["raised", "worst_at_1_fpr", "mean_at_1_fpr"]
    table = table.sort_values(order, ascending=[True, False, False], kind="stable")
    return table.drop(columns="raised").reset_index()


def _read(workspace: Workspace, entry: Entry) -> tuple[dict[str, np.ndarray], str]:
    """The scores of a detector, and its error; one of them is empty."""
    path = workspace.scores_file(entry)
    try:
        if error_file(path).exists() and not path.exists():
            return {}, error_file(path).read_text()
        with np.load(path, allow_pickle=False) as found:
            return dict(found), ""
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise_reading_fault(path, error)
        message = (
            f"expected scores in {path}, got {brief(error)}; delete it and run the command again"
        )
        raise StudyFileError(message) from error


@dataclass(frozen=True)
class _Scored:
    """The scores of a detector, and verdicts at each false-alarm rate.

    Attributes:
        workspace: data of the arena.
        entry: the detector.
        arrays: its scores by ``trained_on|set``.
        error: why there are no scores; empty if there are.
    """

    workspace: Workspace
    entry: Entry
    arrays: dict[str, np.ndarray]
    error: str = ""

    @cached_property
    def trainings(self) -> list[str]:
        """Names of its trainings; one empty name if it learns from no attack."""
        return list(dict.fromkeys(key.partition("|")[0] for key in self.arrays))

    @property
    def judged(self) -> list[str]:
        """Names of the trainings with which it is judged on some attack."""
        cells = self.workspace.config.cells
        return list(dict.fromkeys(self.trained_without(cell) for cell in cells))

    def trained_without(self, cell: str) -> str:
        """The training with which it is judged on an attack: one without attacks of that kind."""
        return self.workspace.config.unseen(cell) if self.entry.supervised else ""

    def scores(self, trained_on: str, name: str) -> np.ndarray:
        """The scores of a set of images, float64 ``(N,)``."""
        return self.arrays[f"{trained_on}|{name}"]

    def flagged(
        self, trained_on: str, name: str, rate: float, kinds: Sequence[str] = _ALL_KINDS
    ) -> np.ndarray:
        """Mask of the images of a set that are flagged, bool ``(N,)``.

        Args:
            trained_on: name of the training.
            name: name of the set.
            rate: promised false-alarm rate.
            kinds: kinds of images within each of which the promise holds.
        """
        scores = self.scores(trained_on, name)
        predicted = np.zeros(len(scores), dtype=np.int64)
        return self._calibration(trained_on, rate, kinds).flagged(scores, predicted)

    def _calibration(self, trained_on: str, rate: float, kinds: Sequence[str]) -> Calibration:
        """The threshold, from correctly classified images."""
        own = partial(self.scores, trained_on)
        return threshold_of(self.workspace, own, rate, tuple(kinds))


def _leaderboard(scored: _Scored) -> Rows:
    """One row: worst and mean share of successful attacks that is found, and false alarms."""
    row: dict[str, Any] = {"learns_from_attacks": scored.entry.supervised, "error": scored.error}
    if scored.error:
        yield row
        return
    for rate in RATES:
        suffix = f"at_{100 * rate:.0f}_fpr"
        found = _found(scored, rate, _ALL_KINDS)
        shares = {cell: float(hits.mean()) for cell, hits in found.items()}
        worst = min(shares, key=lambda cell: shares[cell])
        hits = found[worst]
        interval = share_interval(int(hits.sum()), len(hits))
        row |= {
            f"worst_attack_{suffix}": worst,
            f"worst_{suffix}": shares[worst],
            f"worst_{suffix}_low": interval.low,
            f"worst_{suffix}_high": interval.high,
            f"worst_images_{suffix}": len(hits),
            f"mean_{suffix}": float(np.mean(list(shares.values()))),
            f"every_attack_{suffix}": _every_attack(scored, rate),
            **_alarms(scored, rate, suffix),
        }
        clean = [float(hits.mean()) for hits in _found(scored, rate, ["clean"]).values()]
        row |= {
            f"worst_{suffix}_clean_threshold": min(clean),
            f"mean_{suffix}_clean_threshold": float(np.mean(clean)),
        }
    yield {**row, **_known(scored)}


def _known(scored: _Scored) -> dict[str, Any]:
    """Shares of images for which attackers who know the detector succeed, or provably cannot."""
    trained_on = "all" if scored.entry.supervised else ""
    hits = scored.scores(trained_on, "evaded")
    share = share_interval(int(hits.sum()), len(hits))
    return {
        "evaded_at_1_fpr": share.estimate,
        "evaded_at_1_fpr_low": share.low,
        "evaded_at_1_fpr_high": share.high,
        "evaded_images_at_1_fpr": len(hits),
        "evaded_with_gradients": bool(scored.scores(trained_on, "with gradients")[0]),
        "certified_at_1_fpr": float(scored.scores(trained_on, "certified").mean()),
    }


def _found(scored: _Scored, rate: float, kinds: Sequence[str]) -> dict[str, np.ndarray]:
    """For each attack, a mask over the successful adversarial images: those that are flagged."""
    found = {}
    for cell in scored.workspace.config.cells:
        success = scored.workspace.success(cell)
        if success.any():
            trained_on = scored.trained_without(cell)
            found[cell] = scored.flagged(trained_on, f"attack|{cell}", rate, kinds)[success]
    return found


def _every_attack(scored: _Scored, rate: float) -> float:
    """Share of images on which every successful attack is flagged.

    Only images count on which all attacks were run and at least one succeeded. NaN for supervised
    detectors, which are trained on different attacks for different cells.
    """
    config = scored.workspace.config
    if scored.entry.supervised:
        return float("nan")
    count = min(len(scored.workspace.success(cell)) for cell in config.cells)
    success = [scored.workspace.success(cell)[:count] for cell in config.cells]
    flagged = [scored.flagged("", f"attack|{cell}", rate)[:count] for cell in config.cells]
    found = every_attack_found(np.stack(success), np.stack(flagged))
    return found.estimate if found else float("nan")


def _alarms(scored: _Scored, rate: float, suffix: str) -> dict[str, Any]:
    """The false-alarm rate on clean images, and the largest one on changed images.

    For a supervised detector, the largest over its sets of training attacks in ``judged``.
    """
    shares = {
        kind: max(
            float(scored.flagged(trained_on, f"fresh|{kind}", rate)[right].mean())
            for trained_on in scored.judged
        )
        for kind in ("clean", *FRESH_CHANGES)
        for right in [scored.workspace.right(f"fresh|{kind}")]
    }
    worst = max(FRESH_CHANGES, key=lambda kind: shares[kind])
    return {
        f"false_alarms_{suffix}": shares["clean"],
        f"most_false_alarms_{suffix}": shares[worst],
        f"most_false_alarms_on_{suffix}": worst,
    }


def _cells(scored: _Scored) -> Rows:
    """Shares found and AUC for every set of training attacks, attack and choice of positives."""
    workspace = scored.workspace
    clean = workspace.right("fresh|clean")
    for trained_on in scored.trainings:
        negative = scored.scores(trained_on, "fresh|clean")[clean]
        for cell in workspace.config.cells:
            success, scores = workspace.success(cell), scored.scores(trained_on, f"attack|{cell}")
            source = workspace.index_among_fresh(cell)
            counting = {"all": success | True, "successful": success, "failed": ~success}
            for positives in POSITIVES:
                rows = counting[positives]
                if not rows.any():
                    continue
                yield {
                    "trained_on": trained_on,
                    "attack": cell,
                    "positives": positives,
                    "unseen": trained_on == scored.trained_without(cell),
                    "images": int(rows.sum()),
                    **_shares(scored, trained_on, cell, rows),
                    **_area(scores[rows], negative, source[rows], np.flatnonzero(clean)),
                }


def _shares(scored: _Scored, trained_on: str, cell: str, rows: np.ndarray) -> dict[str, float]:
    """Flagged shares with intervals, and without for a threshold set on clean images only."""
    found: dict[str, float] = {}
    for rate in RATES:
        flagged = scored.flagged(trained_on, f"attack|{cell}", rate)[rows]
        share = share_interval(int(flagged.sum()), len(flagged))
        name = f"tpr_at_{100 * rate:.0f}_fpr"
        found |= {name: share.estimate, f"{name}_low": share.low, f"{name}_high": share.high}
        clean = scored.flagged(trained_on, f"attack|{cell}", rate, ["clean"])[rows]
        found[f"{name}_clean_threshold"] = float(clean.mean())
    return found


def _area(
    positive: np.ndarray, negative: np.ndarray, attacked: np.ndarray, clean: np.ndarray
) -> dict[str, float]:
    """ROC-AUC against clean images, with an interval that is clustered by source image."""
    scores = np.concatenate([positive, negative])
    truth = np.arange(len(scores)) < len(positive)
    area = roc_auc_interval(scores, truth, np.concatenate([attacked, clean]))
    return {"auc": area.estimate, "auc_low": area.low, "auc_high": area.high}


def _false_alarms(scored: _Scored) -> Rows:
    """False alarms on clean images and on every change, for all classes and for each."""
    if scored.error:
        return
    workspace = scored.workspace
    labels = workspace.split().fresh[1].numpy()
    for trained_on in scored.judged:
        for rate in RATES:
            for kind in ("clean", *FRESH_CHANGES):
                right = workspace.right(f"fresh|{kind}")
                flagged = scored.flagged(trained_on, f"fresh|{kind}", rate)
                for row in alarm_rows(kind, flagged, right, labels):
                    yield {"trained_on": trained_on, "rate": rate, **row}


def _times(workspaces: Sequence[Workspace], entries: Sequence[Entry]) -> pd.DataFrame:
    """Processor time of every attack and detector, wherever and whenever it ran."""
    rows: list[dict[str, Any]] = []
    for workspace in workspaces:
        config = workspace.config
        training = config.training_attacks if any(entry.supervised for entry in entries) else ()
        for role, cells in (("judging", config.cells), ("training", training)):
            for cell in cells:
                parts = [read_seconds(path) for path in workspace.attack_files(cell, role)]
                seconds = sum(found.get("attack", float("nan")) for found in parts)
                rows.append({"kind": f"attack for {role}", "name": cell, "seconds": seconds})
        for entry in entries:
            found = read_seconds(workspace.scores_file(entry))
            images = found.get("images", 0)
            rows.append(
                {
                    "kind": "detector",
                    "name": entry.name,
                    "seconds": found.get("total", float("nan")),
                    "fit_seconds": found.get("fit", float("nan")),
                    "score_ms": 1000 * found["score"] / images if images else float("nan"),
                }
            )
    table = pd.DataFrame(rows)
    return table.assign(share=table["seconds"] / table["seconds"].sum())


def _attacks(workspace: Workspace) -> Rows:
    """Success and size of every attack."""
    clean = workspace.split().attacked[0]
    for cell, attack in workspace.config.cells.items():
        made = workspace.adversarial(cell, "judging")
        success = made["success"]
        moved = (made["images"] - clean[: len(success)]).flatten(1)[success]
        share = share_interval(int(success.sum()), len(success))
        yield {
            "seed": workspace.classifier_seed,
            "attack": cell,
            "family": attack.family,
            "images": len(success),
            "success": share.estimate,
            "low": share.low,
            "high": share.high,
            "mean_l2": float(moved.norm(dim=1).mean()) if len(moved) else float("nan"),
            "mean_linf": float(moved.abs().amax(1).mean()) if len(moved) else float("nan"),
            "trains_supervised": cell in workspace.config.training_attacks,
        }
