"""``leery score``: verdicts on any number of inputs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer
from rich.console import Console

import leery
from leery._progress import progress_bars
from leery.cli._groups import ClassifierOptions, InputOptions, with_groups
from leery.cli._options import (
    INCOMPLETE,
    DetectorFile,
    Json,
    OwnMetrics,
    Resize,
    Workers,
    facts_table,
    print_json,
    stoppable,
)
from leery.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from leery.scoring import Summary
    from leery.tasks import Engine, Shard, Work

__all__ = ["score"]

_Inputs = Annotated[
    list[Path],
    typer.Argument(
        metavar="INPUTS...",
        help="Pictures, folders of pictures, .npy, .npz, or .parquet with encoded pictures.",
        show_default=False,
    ),
]

_Out = Annotated[Path, typer.Option(help="Output file: .parquet, .csv or .jsonl.")]

_Resume = Annotated[bool, typer.Option("--resume", help="Resume an interrupted run.")]


@dataclass(frozen=True, kw_only=True)
class _ShareOptions:
    """Who computes what."""

    title: ClassVar[str] = "Several processes or machines"

    workers: Workers = None
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Score share I of N only, such as 2/3, and keep it in the folder OUT.parts; "
            "shares that are there are not scored again.",
            show_default=False,
        ),
    ] = None
    merge: Annotated[
        bool,
        typer.Option(
            "--merge", help="Write the output from the shares that runs with --shard have scored."
        ),
    ] = False
    parts: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER",
            help="With --merge, a further folder of shares, such as one of another machine. Can be "
            "repeated.",
            show_default=False,
        ),
    ] = None

    def part(self, *, resume: bool) -> Shard | None:
        """The share to score; None for all.

        Raises:
            InputError: when options exclude each other, or one is outside its range.
        """
        if self.merge and (self.shard or resume):
            other = "--shard" if self.shard else "--resume"
            message = f"expected --merge alone, got {other} too; run one after the other"
            raise InputError(message)
        if self.parts and not self.merge:
            message = "expected --parts with --merge, got it without; add --merge"
            raise InputError(message)
        return None if self.shard is None else leery.tasks.Shard.parse(self.shard)

    def engine(self, model: nn.Module, make: Callable[[], Work]) -> Engine:
        """What computes the parts: by default a process for each processor, or one for a GPU.

        Args:
            model: the classifier.
            make: picklable function that makes the same work in another process.

        Raises:
            InputError: when the number of processes is below 1.
        """
        on_cpu = leery.models.device_of(model).type == "cpu"
        count = 1 if self.workers is None and not on_cpu else self.workers
        return leery.tasks.Processes(make, leery.tasks.worker_count(count))


@with_groups
def score(
    file: DetectorFile,
    sources: _Inputs,
    classifier: ClassifierOptions,
    reading: InputOptions,
    sharing: _ShareOptions,
    *,
    out: _Out = Path("scores.parquet"),
    resume: _Resume = False,
    metric: OwnMetrics = None,
    resize: Resize = False,
    as_json: Json = False,
) -> None:
    """Write a row for each input: predicted class, score, p-value, verdict, every metric.

    Memory does not grow with the number of inputs. An input that cannot be read gets a row with the
    reason; the exit code is then 3. The rows are the same, byte for byte, however many processes or
    shards score them.

    Examples:
      leery score guard.leery incoming/ --model net:make --out scores.csv
      leery score guard.leery day1.parquet day2.parquet --model net:make --resume
      leery score guard.leery incoming/ --model net:make --shard 2/3
      leery score guard.leery incoming/ --model net:make --merge
    """
    twice = [str(path) for path in sources if sources.count(path) > 1]
    if twice:
        message = f"expected each input once, got {twice[0]} twice; leave one out"
        raise InputError(message)
    shard = sharing.part(resume=resume)
    saved = leery.detector.SavedDetector(file, classifier.load, tuple(metric or ()))
    detector = saved.load()
    form = reading.format(shape=detector.inputs_.shape, resize=resize)
    form = replace(form, labels_key=None)
    stopped = "run again to go on" if shard else "run again with --resume to go on"
    with stoppable(stopped), progress_bars() as bars:
        task = bars.add_task("scoring", total=None)
        scoring = leery.scoring.Scoring(detector, saved.identity, sources, form, out)
        engine = sharing.engine(
            detector.model, partial(leery.scoring.scoring_of, saved, sources, form, out)
        )

        def show(done: int, total: int) -> None:
            bars.update(task, completed=done, total=total)

        if sharing.merge:
            summary = scoring.merge(sharing.parts or ())
        elif shard is not None:
            summary = scoring.run_shard(shard, engine=engine, progress=show)
        else:
            summary = scoring.run(resume=resume, engine=engine, progress=show)
    text = str(out) if shard is None else f"shard {shard} of {out}"
    if as_json:
        print_json({**asdict(summary), "out": str(out)})
    else:
        Console(highlight=False).print(facts_table(text, _shown(summary)))
    if summary.unreadable:
        raise typer.Exit(INCOMPLETE)


def _shown(summary: Summary) -> dict[str, str]:
    readable = summary.rows - summary.unreadable
    flagged = "none scored"
    if summary.flagged is None:
        flagged = "not calibrated; leery calibrate gives it a threshold"
    elif readable:
        flagged = f"{summary.flagged:,} ({summary.flagged / readable:.2%})"
    return {
        "scored": f"{readable:,}",
        "flagged as adversarial": flagged,
        "unreadable": f"{summary.unreadable:,}"
        + (f", such as {summary.reason}" if summary.unreadable else ""),
    }
