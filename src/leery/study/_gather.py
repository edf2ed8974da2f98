"""Assembly of the tables of a study from the files of its stages."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from leery import data
from leery.evaluation import abstention, share_interval
from leery.metrics import PAPER_METRICS, UNCERTAINTY_METRICS, direction_of
from leery.study._config import AttackName, Condition
from leery.study._pictures import EXAMPLE_ATTACK
from leery.study._stages import FPR_GRID
from leery.study._sweeps import (
    TRACED,
    TRACED_CLOSENESS,
    Trace,
    first_flipped,
    load_success,
    load_trace,
)
from leery.study._tables import KL_READINGS, PIXELS, TABLES
from leery.study._workspace import Version, Workspace, read_arrays, read_json

__all__ = ["gather"]

Rows = Iterator[dict[str, Any]]

CURVE_POINTS = 200
"""Maximum number of points of a stored risk-coverage curve."""

BAND = (0.1, 0.9)
"""Quantiles at the limits of the band around a mean."""


def gather(workspaces: Sequence[Workspace]) -> dict[str, pd.DataFrame]:
    """Assemble the tables of the studies of one dataset with one or several classifiers.

    Raises:
        StudyFileError: when the file of a stage cannot be read.
    """
    makers: dict[str, Callable[[Workspace], Rows]] = {
        "results": _results,
        "comparisons": _comparisons,
        "uncertainty": _uncertainty,
        "classifier": _classifier,
        "turning-points": _turning_points,
        "kernels": _kernels,
        "printed-bim": _printed_bim,
        "example": _example,
        "attack-success": _attack_success,
        "roc": _roc,
        "abstention": _abstention,
        "scores": _scores,
        "weights": _weights,
        "gallery": _gallery,
        **{figure: partial(_traces, figure=figure) for figure in FIGURES},
    }
    tables = {
        name: _frame(
            name,
            [{**_whose(workspace), **row} for workspace in workspaces for row in make(workspace)],
        )
        for name, make in makers.items()
    }
    layers = [{"dataset": workspaces[0].config.dataset, **row} for row in _layers(workspaces[0])]
    return {**tables, "layers": _frame("layers", layers)}


def _frame(name: str, rows: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=TABLES[name].columns)


def _whose(workspace: Workspace) -> dict[str, Any]:
    return {"dataset": workspace.config.dataset, "seed": workspace.config.seed}


def _evaluations(workspace: Workspace) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """For each condition, its columns and its evaluation results."""
    for condition in workspace.config.conditions:
        yield _columns(condition), read_json(workspace.evaluation_file(condition))


def _columns(condition: Condition) -> dict[str, Any]:
    return {"attack": condition.attack, "epsilon": condition.epsilon}


def _results(workspace: Workspace) -> Rows:
    for _, found in _evaluations(workspace):
        yield from found["rows"]


def _comparisons(workspace: Workspace) -> Rows:
    for condition, found in _evaluations(workspace):
        for row in found["comparisons"]:
            yield {**condition, **row}


def _roc(workspace: Workspace) -> Rows:
    for condition, found in _evaluations(workspace):
        for name, rates in found["curves"].items():
            for fpr, tpr in zip(FPR_GRID, rates, strict=True):
                yield {**condition, "metrics": name, "fpr": float(fpr), "tpr": tpr}


def _weights(workspace: Workspace) -> Rows:
    for condition, found in _evaluations(workspace):
        for fold, weights in enumerate(found["weights"]):
            for metric, weight in zip(PAPER_METRICS, weights, strict=True):
                yield {**condition, "metric": metric, "fold": fold, "weight": weight}


def _scores(workspace: Workspace) -> Rows:
    for condition, found in _evaluations(workspace):
        edges = found["histogram"]["edges"]
        for kind, counts in found["histogram"]["counts"].items():
            for low, high, images in zip(edges[:-1], edges[1:], counts, strict=True):
                yield {**condition, "kind": kind, "low": low, "high": high, "images": images}


def _gallery(workspace: Workspace) -> Rows:
    labels = workspace.labels()
    for condition in workspace.config.conditions:
        worst = read_json(workspace.evaluation_file(condition))["worst"]
        pixels = read_arrays(workspace.picture_file(condition.name))["pixels"]
        for entry, image in zip(worst, pixels, strict=True):
            yield {
                **_columns(condition),
                **entry,
                "label": int(labels[entry["source"]]),
                **_pixels(image),
            }


def _pixels(image: np.ndarray) -> dict[str, float]:
    return dict(zip(PIXELS, image.round(4).astype(float).ravel().tolist(), strict=True))


def _uncertainty(workspace: Workspace) -> Rows:
    """The mean of each metric over wrong and over right predictions (the paper's tables 3, 4)."""
    clean = workspace.table(Version())
    right = clean.predicted == workspace.labels()
    for metric in clean.names:
        values = clean.column(metric)
        row: dict[str, Any] = {"metric": metric}
        for kind, chosen in (("wrong", values[~right]), ("right", values[right])):
            count = len(chosen)
            row[kind] = chosen.mean() if count else np.nan
            row[f"{kind}_sd"] = chosen.std(ddof=1) if count > 1 else np.nan
            row[f"n_{kind}"] = count
        yield row


def _classifier(workspace: Workspace) -> Rows:
    """The paper's table 2, with the accuracy on the whole test set."""
    classifier = workspace.classifier()
    record = classifier.record
    yield {
        "network": type(classifier.model).__name__,
        "parameters": sum(weight.numel() for weight in classifier.model.parameters()),
        **record["recipe"],
        "optimizer": "Adam",
        "passes": workspace.config.passes,
        "bandwidth": workspace.config.bandwidth,
        "accuracy": record["test_accuracy"],
        "n_test": len(data.load(workspace.config.dataset, "test", workspace.config.data_dir)[1]),
        "n_studied": len(workspace.labels()),
    }


def _layers(workspace: Workspace) -> Rows:
    """The paper's table 1."""
    for name, module in workspace.classifier().model.named_modules():
        if not list(module.children()):
            count = sum(weight.numel() for weight in module.parameters())
            yield {"name": name, "layer": str(module), "parameters": count}


def _attack_success(workspace: Workspace) -> Rows:
    for row in load_success(workspace):
        found = share_interval(row["changed"], row["images"])
        yield {**row, "share": found.estimate, "low": found.low, "high": found.high}


def _abstention(workspace: Workspace) -> Rows:
    """Risk-coverage curves; doubt is a metric, signed so that larger is more uncertain."""
    clean = workspace.table(Version())
    wrong = clean.predicted != workspace.labels()
    for metric in clean.names:
        curve = abstention(wrong, direction_of(metric) * clean.column(metric))
        wanted = np.linspace(1, len(wrong), CURVE_POINTS)
        for place in np.unique(np.searchsorted(curve.kept, wanted)):
            yield {
                "metric": metric,
                "images": len(wrong),
                "kept": int(curve.kept[place]),
                "wrong": int(curve.wrong[place]),
            }


def _kernels(workspace: Workspace) -> Rows:
    for condition in workspace.config.conditions:
        found = read_json(workspace.reading_file(condition))
        for row in found["kernels"]:
            yield {**_columns(condition), **row, "images": found["images"]}


def _printed_bim(workspace: Workspace) -> Rows:
    for condition in workspace.config.conditions:
        if condition.attack == "BIM":
            found = read_json(workspace.reading_file(condition))
            yield {**_columns(condition), **found}


def _example(workspace: Workspace) -> Rows:
    found = read_arrays(workspace.picture_file("example"))
    if not found:
        return
    clean, adversarial = found["pixels"]
    facts = {
        "attack": EXAMPLE_ATTACK,
        "epsilon": float(found["epsilon"]),
        "source": int(found["source"]),
        "label": int(found["label"][0]),
    }
    for place, (panel, image) in enumerate([("clean", clean), ("adversarial", adversarial)]):
        yield {
            **facts,
            "panel": panel,
            "predicted": int(found["predicted"][place]),
            "confidence": float(found["confidence"][place]),
            **_pixels(image),
        }


def _turning_points(workspace: Workspace) -> Rows:
    """Strengths at which each image changes its label and each metric turns."""
    for attack in TRACED:
        trace = load_trace(workspace, attack)
        epsilons, columns = trace.epsilons, np.arange(len(trace.source))
        entropy = trace.values("predictive_entropy")
        facts = {
            "source": trace.source,
            "label": trace.label,
            "target": trace.target,
            "flip": np.where(trace.flips, epsilons[trace.flip], np.nan),
            "peak_confidence": epsilons[trace.values("confidence").argmin(0)],
            **{
                f"peak_{metric}": epsilons[trace.values(metric).argmax(0)]
                for metric in (*UNCERTAINTY_METRICS[:-1], *KL_READINGS)
            },
            **{f"crossing_{metric}": _crossing(trace, metric) for metric in TRACED_CLOSENESS},
            "entropy_at_flip": np.where(trace.flips, entropy[trace.flip, columns], np.nan),
            "entropy_at_end": entropy[-1],
            **{f"{metric}_at_end": trace.values(metric)[-1] for metric in KL_READINGS},
        }
        for row in pd.DataFrame(facts).to_dict("records"):
            yield {"attack": attack, "step": float(epsilons[1]), **row}


def _crossing(trace: Trace, metric: str) -> np.ndarray:
    """The first strength at which the target class becomes closer than the true one, else NaN."""
    source, target = (trace.values(metric, against) for against in ("source", "target"))
    closer = direction_of(metric) * (target - source) < 0
    crosses = closer[1:] & ~closer[:-1] & trace.flips
    return np.where(crosses.any(0), trace.epsilons[1 + crosses.argmax(0)], np.nan)


FIGURES: dict[str, tuple[tuple[AttackName, ...], list[tuple[str, str]]]] = {
    "uncertainty-trace": (("BIM",), [(metric, "predicted") for metric in UNCERTAINTY_METRICS]),
    "density-trace": (
        TRACED,
        [("kernel_density", against) for against in ("source", "target", "predicted")],
    ),
    "kl-trace": (
        ("BIM",),
        [(metric, against) for metric in KL_READINGS for against in ("source", "target")],
    ),
    "predicted-kl-trace": (TRACED, [(metric, "predicted") for metric in KL_READINGS]),
}
"""Content of figures 4 to 7: attacks, and metrics with the class they are compared with."""


def _traces(workspace: Workspace, figure: str) -> Rows:
    """Data of the lines of one of figures 4 to 7."""
    attacks, shown = FIGURES[figure]
    traces = {attack: load_trace(workspace, attack) for attack in TRACED}
    place = first_flipped(traces)
    for attack in attacks:
        for metric, against in shown:
            for row in _trace_rows(traces[attack], metric, against, place):
                yield {"attack": attack, "metric": metric, "against": against, **row}


def _trace_rows(trace: Trace, metric: str, against: str, place: int | None) -> Rows:
    """The chosen image at every strength, then mean and band over all traced images.

    Images whose label never changes have no target class.
    """
    values = trace.values(metric, against)
    if place is not None:
        for step, epsilon in enumerate(trace.epsilons):
            yield {
                "epsilon": epsilon,
                "shown": "image",
                "value": values[step, place],
                "images": 1,
                "predicted": trace.predicted[step, place],
            }
    shown = values[:, trace.flips] if against == "target" else values
    if not shown.size:
        return
    low, high = np.quantile(shown, BAND, axis=1)
    for step, epsilon in enumerate(trace.epsilons):
        yield {
            "epsilon": epsilon,
            "shown": "mean",
            "value": shown[step].mean(),
            "low": low[step],
            "high": high[step],
            "images": shown.shape[1],
        }
