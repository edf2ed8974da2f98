"""An engine that computes the parts of any work with actors of Ray Data."""

import importlib
import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from leery._extras import imported
from leery.detector import SavedDetector
from leery.errors import InputError, LeeryError, brief
from leery.inputs import Format
from leery.scoring import Summary, scoring_of
from leery.tasks import (
    Advance,
    Parts,
    Progress,
    Work,
    compute_part,
    default_workers,
    no_progress,
)

if TYPE_CHECKING:
    import ray

__all__ = ["OnRay", "score"]

_BLOCKS_EACH = 32
"""Number of blocks of parts for each actor; more finish more evenly, fewer read less."""

_LARGEST = 16
"""Largest number of parts in a block, which counts as progress only once it is finished."""

_PATIENCE = 600
"""Seconds within which each node must tell what its work depends on."""

_HEAVY = 2**16
"""Largest number of bytes of what is sent to each actor."""

_MOST = 10_000
"""Largest number of blocks, unless they would be larger."""


def score(
    file: Path,
    model: Callable[[], nn.Module],
    paths: Sequence[Path],
    out: Path,
    *,
    metrics: Sequence[str] = (),
    form: Format | None = None,
    address: str = "auto",
    actors: tuple[int, int] | None = None,
    cpus: float = 1,
    gpus: float = 0,
    resume: bool = False,
    progress: Progress = no_progress,
) -> Summary:
    """Score every input of the sources on a Ray cluster, and write one row per input, in order.

    The file is that of :func:`leery.scoring.score_to_file`.

    Args:
        file: the detector's file.
        model: picklable function that returns the classifier.
        paths: paths of the sources, as for :func:`leery.inputs.read`.
        out: a .parquet, .csv or .jsonl file in a folder that all nodes share.
        metrics: names of the user's own metrics, as "module:name".
        form: conversion of the sources to model inputs; shape and dtype are those of the fit.
        address: as for :class:`OnRay`.
        actors: smallest and largest number of actors; None for as many as the cluster has room for.
        cpus: processors reserved for each actor.
        gpus: GPUs of each actor.
        resume: True to resume an interrupted run; False to discard its parts.
        progress: function that is called with the number of finished rows and the total number.

    Raises:
        NotFittedError: when the detector has no combiner.
        InputError: when the sources, the form or a node do not fit, there is no cluster at the
            address, or Ray is not installed.
        OutputError: when the file cannot be written.
        LeeryError: when the detector cannot be loaded, a node does not answer, or parts cannot be
            computed.
    """
    saved, known = SavedDetector(file, model, tuple(metrics)), form or Format()
    make = partial(scoring_of, saved, list(paths), known, out)
    engine = OnRay(make, address, actors, cpus, gpus)
    return scoring_of(saved, paths, known, out).run(resume=resume, engine=engine, progress=progress)


@dataclass(frozen=True)
class OnRay:
    """Computes parts with actors of Ray, each of which makes the work once.

    A part whose actor or node dies is computed by another. Nothing is lost if this process dies:
    the finished parts are files.

    Attributes:
        make: picklable function that makes the same work in another process, such as
            ``partial(scoring_of, SavedDetector(file, model), paths, form, out)``.
        address: "local" to start Ray on this machine, "auto" for the cluster that it belongs to, or
            the address of a cluster. If this process is connected already, that cluster is used.
        actors: smallest and largest number of actors; None for as many as the cluster has room for.
        cpus: processors reserved for each actor, which computes with one thread.
        gpus: GPUs of each actor, such as 0.5.
    """

    make: Callable[[], Work]
    address: str = "local"
    actors: tuple[int, int] | None = None
    cpus: float = 1
    gpus: float = 0

    def __post_init__(self) -> None:
        """Raise if Ray is not installed, or the function carries data.

        Raises:
            InputError: when Ray is not installed, or the function carries more than 64 KiB.
        """
        imported("ray", "ray")
        _check_light(self.make)

    def __call__(self, work: Work, parts: Parts, numbers: Sequence[int], advance: Advance) -> None:
        """Compute parts, as :meth:`leery.tasks.Work.compute` does.

        Raises:
            InputError: when there is no cluster at the address, or a node lacks a file or has other
                files, code or libraries.
            LeeryError: when a node does not answer, or parts cannot be computed.
        """
        import ray

        if not numbers:
            return
        with _plain_errors(), _connected(self.address):
            room = self._check_nodes(work, parts)
            least, most = self.actors or (1, max(1, room))
            items = [{"number": number} for number in numbers]
            blocks = max(most * _BLOCKS_EACH, -(-len(items) // _LARGEST))
            data = ray.data.from_items(items, override_num_blocks=min(len(items), blocks, _MOST))
            data.context.enable_progress_bars = False
            data.context.raise_original_map_exception = True
            # A block may take longer than the 30 minutes after which Ray gives up.
            data.context.execution_no_progress_timeout_s = -1
            done = data.map_batches(
                _Actor,
                batch_size=None,
                fn_constructor_args=(self.make, parts, Path.cwd()),
                compute=ray.data.ActorPoolStrategy(
                    min_size=min(least, len(items)), max_size=min(most, len(items))
                ),
                num_cpus=self.cpus,
                num_gpus=self.gpus,
            )
            for batch in done.iter_batches(batch_size=None, prefetch_batches=0):
                advance(sum(work.sizes[number] for number in batch["number"].tolist()))

    def _check_nodes(self, work: Work, parts: Parts) -> int:
        """Raise unless every node would compute the same; return the number of actors with room.

        Raises:
            InputError: when one would not.
        """
        nodes = [node for node in _alive().values() if self._room(node)]
        if not nodes and self.actors is None:
            message = (
                f"expected a cluster with room for an actor (processors: {self.cpus:g}, GPUs: "
                f"{self.gpus:g}), got none; request less, or state the number of actors so that "
                "the cluster grows"
            )
            raise InputError(message)
        with parts.marked() as mark:
            answers = [self._ask(node, parts, mark) for node in nodes]
            for node, answer in zip(nodes, answers, strict=True):
                name = f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})"
                try:
                    _check_facts(name, work.facts, _answered(name, answer))
                except LeeryError:
                    # A node that has died meanwhile is not in the way.
                    if node["NodeID"] in _alive():
                        raise
        return sum(map(self._room, nodes))

    def _ask(self, node: Mapping[str, Any], parts: Parts, mark: str) -> "ray.ObjectRef[Any]":
        """Begin to find out on a node what its work depends on."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        task = ray.remote(_facts).options(
            # It need not wait until other jobs leave processors.
            num_cpus=0,
            num_gpus=self.gpus,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        )
        return task.remote(self.make, parts, mark, Path.cwd())

    def _room(self, node: Mapping[str, Any]) -> int:
        """The number of actors for which a node has room."""
        has = node["Resources"]
        fits = [
            has.get(name, 0) // need
            for name, need in (("CPU", self.cpus), ("GPU", self.gpus))
            if need
        ]
        return int(min(fits, default=0))


def _alive() -> dict[str, Mapping[str, Any]]:
    """The nodes that are alive, by their ID."""
    import ray

    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return {node["NodeID"]: node for node in nodes if node["Alive"]}


class _Actor:
    """Computes the parts whose numbers it is sent."""

    def __init__(self, make: Callable[[], Work], parts: Parts, folder: Path) -> None:
        _go_to(folder)
        self._make, self._parts = make, parts

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        # A part that was finished before its actor died is sent again.
        numbers = [
            number for number in batch["number"].tolist() if self._parts.finished(number) is None
        ]
        if numbers:
            compute_part(self._make, self._parts, numbers)
        return {"number": batch["number"]}


def _facts(make: Callable[[], Work], parts: Parts, mark: str, folder: Path) -> dict[str, str]:
    """What a node's work depends on, after a check that the folder of the parts is there."""
    _go_to(folder)
    parts.check_shared(mark)
    return dict(make().facts)


def _answered(node: str, answer: "ray.ObjectRef[Any]") -> dict[str, str]:
    """What a node's work depends on, once the node has found out.

    Raises:
        InputError: when it cannot do the work.
        LeeryError: when it has no time for an answer.
    """
    import ray
    from ray.exceptions import GetTimeoutError, RayError

    try:
        found: dict[str, str] = ray.get(answer, timeout=_PATIENCE)
    except GetTimeoutError as error:
        message = (
            f"expected node {node} to answer within {_PATIENCE // 60} minutes, got nothing; wait "
            "for its other jobs, or take the node out of the cluster"
        )
        raise LeeryError(message) from error
    except (RayError, LeeryError) as error:
        reason = _leery_error_in(error) or brief(error)
        message = (
            f"expected node {node} to do this work, got an error there: {reason}; correct it and "
            "run again"
        )
        raise InputError(message) from error
    return found


def _check_light(make: Callable[[], Work]) -> None:
    """Raise if a function carries data that belong in files.

    Raises:
        InputError: when it does.
    """
    from ray import cloudpickle

    size = len(cloudpickle.dumps(make))  # type: ignore[no-untyped-call]
    if size > _HEAVY:
        message = (
            f"expected at most {_HEAVY:,} bytes of functions and paths for each node, got "
            f"{size:,}; let functions load data from files, and name folders instead of many files"
        )
        raise InputError(message)


def _go_to(folder: Path) -> None:
    """Make a folder the working folder, if it is there: paths may be relative to it."""
    with suppress(OSError):
        os.chdir(folder)


def _check_facts(node: str, expected: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Raise if what a node's work depends on is not as expected.

    Raises:
        InputError: when it is not.
    """
    for name, value in expected.items():
        if found.get(name) != value:
            message = (
                f"expected the same {name} on every node as here, got a difference on {node}; "
                f"{_ADVICE.get(name, 'copy the file there, or share its folder')}"
            )
            raise InputError(message)


_ADVICE = {
    "inputs": "copy the files with their times, or share their folder",
    "training data": "copy the files with their times, or share their folder",
    "device": "start the command where the classifier gets the same device as the actors",
    "code and libraries": (
        "install the same versions there; classes of your own belong in a module that every node "
        "has"
    ),
}
"""What to do about each of the facts that differ."""


@contextmanager
def _connected(address: str) -> Iterator[None]:
    """Connect to Ray for a block, unless this process is connected.

    Raises:
        InputError: when there is no cluster at the address.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    # Ray Data itself restarts actors in a way that Ray's core reports as an error.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        _check_reachable(address)
        ray.init(
            address,
            num_cpus=default_workers() if address == "local" else None,
            include_dashboard=False if address == "local" else None,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    except (OSError, RuntimeError, ValueError) as error:
        message = (
            f"expected a Ray cluster at {address}, got none ({brief(error)}); start one, or pass "
            "local"
        )
        raise InputError(message) from error
    try:
        with _quiet():
            yield
    finally:
        ray.shutdown()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what Ray Data tells of its work, and of errors that it raises, to its files."""
    # It sets up its loggers when it is imported.
    importlib.import_module("ray.data")
    consoles = [
        handler
        for handler in logging.getLogger("ray.data").handlers
        if isinstance(handler, logging.StreamHandler)
    ]
    levels = [handler.level for handler in consoles]
    for handler in consoles:
        handler.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for handler, level in zip(consoles, levels, strict=True):
            handler.setLevel(level)


def _check_reachable(address: str) -> None:
    """Raise if nothing listens at an address, for which Ray would wait for minutes.

    Raises:
        OSError: when nothing does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host:
        socket.create_connection((host, int(port)), timeout=10).close()


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Raise the error of a part instead of that of Ray around it.

    Raises:
        LeeryError: when a part cannot be computed.
    """
    from ray.exceptions import RayError

    try:
        yield
    except RayError as error:
        cause = _leery_error_in(error)
        if cause is not None:
            raise cause from error
        message = f"expected Ray to compute all parts, got {brief(error)}; run again with --resume"
        raise LeeryError(message) from error


def _leery_error_in(error: BaseException) -> LeeryError | None:
    """The error of leery around which Ray raised another one, if there is one."""
    from ray.exceptions import RayError

    cause: BaseException | None = error
    # What Ray raises in its place is of both classes, and its text is a traceback.
    while isinstance(cause, RayError) or (cause is not None and not isinstance(cause, LeeryError)):
        cause = getattr(cause, "cause", None) or cause.__cause__
    # Ray adds lines of its own to the text.
    return None if cause is None else type(cause)(str(cause).partition("\n")[0])
