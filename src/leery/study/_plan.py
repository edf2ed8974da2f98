"""The tasks of a study: what they are, which files they leave, roughly what they cost."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leery.study._desk import MEASURED, SHARD, Desk, all_twins
from leery.study._pictures import example, gallery
from leery.study._readings import as_printed
from leery.study._stages import evaluate, fit_detector, make_classifier, measure
from leery.study._sweeps import (
    SUCCESS_IMAGES,
    TRACED,
    success,
    success_conditions,
    trace,
    trace_shards,
)

__all__ = ["Task", "plan"]


@dataclass(frozen=True)
class Task:
    """A function of a desk, done when its file is there.

    Attributes:
        file: what it leaves.
        function: of a module.
        arguments: of the function.
        cost: roughly, in seconds of one processor; only the bar of the whole looks at it.
    """

    file: Path
    function: Callable[..., None]
    arguments: tuple[Any, ...]
    cost: float

    @property
    def done(self) -> bool:
        """Whether its file is there."""
        return self.file.exists()


def plan(desks: Sequence[Desk]) -> dict[str, list[Task]]:
    """The stages in their order, each with the tasks of all desks, the costly ones first."""
    makers = {
        "classifier": _classifier,
        "detector": _detector,
        "measure": _measure,
        "evaluate": _evaluate,
        "success": _success,
        "trace": _trace,
        "as printed": _as_printed,
        "pictures": _pictures,
    }
    return {
        name: sorted((task for desk in desks for task in make(desk)), key=lambda task: -task.cost)
        for name, make in makers.items()
    }


def _classifier(desk: Desk) -> Iterator[Task]:
    cost = 100 / _speed(desk) if desk.config.retrain else 1
    yield Task(desk.weights.with_suffix(".json"), make_classifier, (desk,), cost)


def _detector(desk: Desk) -> Iterator[Task]:
    yield Task(desk.detector_file, fit_detector, (desk,), 10)


def _measure(desk: Desk) -> Iterator[Task]:
    images = min(MEASURED, len(desk.labels()))
    for twins in all_twins(desk.config):
        cost = images * (0.0004 + 0.00016 * twins.gradients) / _speed(desk)
        for start in desk.measured():
            yield Task(desk.table_file(twins, start), measure, (desk, twins, start), cost)


def _evaluate(desk: Desk) -> Iterator[Task]:
    for condition in desk.config.conditions:
        cost = len(desk.labels()) * 0.0005
        yield Task(desk.evaluation_file(condition), evaluate, (desk, condition), cost)


def _success(desk: Desk) -> Iterator[Task]:
    images = min(SUCCESS_IMAGES, len(desk.labels()))
    for condition in success_conditions():
        cost = images * 0.00016 * condition.make().steps / _speed(desk)
        yield Task(desk.success_file(condition), success, (desk, condition), cost)


def _trace(desk: Desk) -> Iterator[Task]:
    for attack in TRACED:
        for shard in trace_shards(desk):
            cost = (15 if attack == "BIM" else 4) / _speed(desk)
            yield Task(desk.trace_file(attack, shard), trace, (desk, attack, shard), cost)


def _as_printed(desk: Desk) -> Iterator[Task]:
    for condition in desk.config.conditions:
        yield Task(desk.reading_file(condition), as_printed, (desk, condition), 3)


def _pictures(desk: Desk) -> Iterator[Task]:
    yield Task(desk.picture_file("example"), example, (desk,), 1)
    for condition in desk.config.conditions:
        cost = SHARD * 0.00016 * condition.make().steps / _speed(desk)
        yield Task(desk.picture_file(condition.name), gallery, (desk, condition), cost)


def _speed(desk: Desk) -> float:
    """How fast the dataset's network is, DigitNet being 1."""
    return 1.0 if desk.config.dataset == "mnist" else 0.4
