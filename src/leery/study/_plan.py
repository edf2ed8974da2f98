"""The tasks of a study, with their output files and approximate cost."""

from collections.abc import Iterator, Sequence

from leery.study._as_printed import as_printed
from leery.study._pictures import example, gallery
from leery.study._stages import evaluate, fit_detector, make_classifier, measure
from leery.study._sweeps import (
    SUCCESS_IMAGES,
    TRACED,
    success,
    success_conditions,
    trace,
    trace_shards,
)
from leery.study._workspace import MEASURED, SHARD, Workspace, all_versions
from leery.tasks import FileTask

__all__ = ["plan"]


def plan(workspaces: Sequence[Workspace]) -> dict[str, list[FileTask]]:
    """Tasks of all workspaces by stage, in the order of the stages, the longest tasks first."""
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
        name: sorted(
            (task for workspace in workspaces for task in make(workspace)),
            key=lambda task: -task.cost,
        )
        for name, make in makers.items()
    }


def _classifier(workspace: Workspace) -> Iterator[FileTask]:
    cost = 100 / _speed(workspace) if workspace.config.retrain else 1
    yield FileTask(workspace.weights.with_suffix(".json"), make_classifier, (workspace,), cost)


def _detector(workspace: Workspace) -> Iterator[FileTask]:
    yield FileTask(workspace.detector_file, fit_detector, (workspace,), 10)


def _measure(workspace: Workspace) -> Iterator[FileTask]:
    images = min(MEASURED, len(workspace.labels()))
    for version in all_versions(workspace.config):
        cost = images * (0.0004 + 0.00016 * version.gradients) / _speed(workspace)
        for start in workspace.measured():
            yield FileTask(
                workspace.table_file(version, start), measure, (workspace, version, start), cost
            )


def _evaluate(workspace: Workspace) -> Iterator[FileTask]:
    for condition in workspace.config.conditions:
        cost = len(workspace.labels()) * 0.0005
        yield FileTask(workspace.evaluation_file(condition), evaluate, (workspace, condition), cost)


def _success(workspace: Workspace) -> Iterator[FileTask]:
    images = min(SUCCESS_IMAGES, len(workspace.labels()))
    for condition in success_conditions():
        cost = images * 0.00016 * condition.make().steps / _speed(workspace)
        yield FileTask(workspace.success_file(condition), success, (workspace, condition), cost)


def _trace(workspace: Workspace) -> Iterator[FileTask]:
    for attack in TRACED:
        for shard in trace_shards(workspace):
            cost = (15 if attack == "BIM" else 4) / _speed(workspace)
            yield FileTask(
                workspace.trace_file(attack, shard), trace, (workspace, attack, shard), cost
            )


def _as_printed(workspace: Workspace) -> Iterator[FileTask]:
    for condition in workspace.config.conditions:
        yield FileTask(workspace.reading_file(condition), as_printed, (workspace, condition), 3)


def _pictures(workspace: Workspace) -> Iterator[FileTask]:
    yield FileTask(workspace.picture_file("example"), example, (workspace,), 1)
    for condition in workspace.config.conditions:
        cost = SHARD * 0.00016 * condition.make().steps / _speed(workspace)
        yield FileTask(
            workspace.picture_file(condition.name), gallery, (workspace, condition), cost
        )


def _speed(workspace: Workspace) -> float:
    """Speed of the dataset's network relative to DigitNet."""
    return 1.0 if workspace.config.dataset == "mnist" else 0.4
