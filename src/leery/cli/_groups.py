"""Options that several commands share, as dataclasses that become options of each."""

from __future__ import annotations

import copy
import functools
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Protocol,
    TypeVar,
    get_args,
    get_type_hints,
)

import typer
from typer.models import OptionInfo

import leery
from leery._progress import progress_bars
from leery.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from leery.inputs import Format
    from leery.tasks import Engine, Progress, Shard, Work

__all__ = ["ClassifierOptions", "InputOptions", "ShareOptions", "clean_images", "with_groups"]

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, kw_only=True)
class ClassifierOptions:
    """Which classifier, and how it is run."""

    title: ClassVar[str] = "Classifier"

    model: Annotated[
        str,
        typer.Option(
            "--model",
            metavar="MODULE:FACTORY",
            envvar="LEERY_MODEL",
            help="A class, or a function without arguments, that returns the classifier. The "
            "current folder is searched too. The module is executed.",
            show_default=False,
        ),
    ]
    weights: Annotated[
        Path | None,
        typer.Option(
            envvar="LEERY_WEIGHTS",
            help="The classifier's weights: .safetensors or a torch.save state dict, read without "
            "running any code in it. By default the factory's own weights are kept.",
            show_default=False,
        ),
    ] = None
    logits: Annotated[
        str | None,
        typer.Option(
            metavar="FIELD|INDEX",
            help="Where the logits are in the classifier's output, if not in a field 'logits'.",
            show_default=False,
        ),
    ] = None
    mean: Annotated[
        str | None,
        typer.Option(
            metavar="M1,M2,...",
            help="For a classifier that expects normalised images: the mean of each channel, or "
            "one for all. Epsilon, noise and bounds are then in units of the unnormalised images.",
            show_default=False,
        ),
    ] = None
    std: Annotated[
        str | None,
        typer.Option(
            metavar="S1,S2,...",
            help="The standard deviation of each channel, together with --mean.",
            show_default=False,
        ),
    ] = None
    device: Annotated[
        str | None,
        typer.Option(
            help="Where the classifier runs, such as cpu or cuda; by default where its factory "
            "puts it.",
            show_default=False,
        ),
    ] = None

    insert_dropout: Annotated[
        str | None,
        typer.Option(
            "--insert-dropout",
            metavar="LAYER:P",
            help="Insert dropout of probability P before LAYER in a classifier without any, for "
            "uncertainty metrics. Give the same option to every command that uses the detector.",
            show_default=False,
        ),
    ] = None

    @property
    def where(self) -> str | int | None:
        """Where the logits are."""
        named = self.logits
        return int(named) if named is not None and named.lstrip("-").isdigit() else named

    def load(self) -> nn.Module:
        """The classifier, in eval mode.

        Raises:
            InputError: when it cannot be made of these options.
        """
        model = leery.models.load_model(
            self.model,
            self.weights,
            logits=self.where,
            mean=_numbers("--mean", self.mean),
            std=_numbers("--std", self.std),
            device=self.device,
        )
        return model if self.insert_dropout is None else _with_dropout(model, self.insert_dropout)

    def check_repeatable(self, model: nn.Module) -> None:
        """Refuse a factory whose weights are random, unless there is a file of weights."""
        if self.weights is None:
            leery.models.check_repeatable(self.model, model)


@dataclass(frozen=True, kw_only=True)
class InputOptions:
    """How stored images are read."""

    title: ClassVar[str] = "Inputs"

    channels: Annotated[
        str,
        typer.Option("--channels", help="Position of the channels in arrays: first, last or none."),
    ] = "first"
    images_key: Annotated[
        str, typer.Option(help="Name of the images in .npz and .parquet files.")
    ] = "images"
    labels_key: Annotated[
        str, typer.Option(help="Name of the labels in .npz and .parquet files.")
    ] = "labels"
    exif: Annotated[
        bool,
        typer.Option(
            "--exif",
            help="Rotate pictures according to their EXIF orientation, which is otherwise ignored.",
        ),
    ] = False

    def format(self, **settings: Any) -> Format:  # noqa: ANN401 - those of Format
        """How stored inputs become what the model takes.

        Raises:
            InputError: when a setting is outside its range.
        """
        return leery.inputs.Format(
            channels=self.channels,  # type: ignore[arg-type]  # Format refuses others
            images_key=self.images_key,
            labels_key=self.labels_key,
            exif=self.exif,
            **settings,
        )


@dataclass(frozen=True, kw_only=True)
class ShareOptions:
    """Who computes what."""

    title: ClassVar[str] = "Several processes or machines"

    workers: Annotated[
        int | None,
        typer.Option(
            help="Number of processes; by default one per processor, or one if the classifier is "
            "on a GPU.",
            show_default=False,
        ),
    ] = None
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Compute only shard I of N, such as 2/3, and keep its parts in the folder "
            "OUT.parts; finished parts are not computed again.",
            show_default=False,
        ),
    ] = None
    merge: Annotated[
        bool,
        typer.Option(
            "--merge",
            help="Write the output from the parts of all shards; refused if any is missing.",
        ),
    ] = False
    parts: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER",
            help="With --merge, another folder of parts, such as one copied from another machine. "
            "Can be repeated.",
            show_default=False,
        ),
    ] = None

    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Compute on a Ray cluster: its address, auto for the one that this machine "
            "belongs to, or local to start Ray on this machine. Needs the extra 'ray'.",
            show_default=False,
        ),
    ] = None
    actors: Annotated[
        str | None,
        typer.Option(
            metavar="N|MIN-MAX",
            help="With --ray, the number of actors, or its minimum and maximum, such as 4-16; by "
            "default as many as the cluster has room for.",
            show_default=False,
        ),
    ] = None
    gpus: Annotated[
        float, typer.Option(help="With --ray, the number of GPUs per actor; may be 0.5.")
    ] = 0.0

    def chosen(self, *, resume: bool) -> Shard | None:
        """The shard to compute; None for all.

        Raises:
            InputError: when options exclude each other, or one is outside its range.
        """
        named = {
            "--shard": self.shard is not None,
            "--resume": resume,
            "--workers": self.workers is not None,
            "--ray": self.ray is not None,
            "--parts": bool(self.parts),
            "--actors": self.actors is not None,
            "--gpus": self.gpus != 0,
        }
        alone = [name for name in ("--shard", "--resume", "--workers", "--ray") if named[name]]
        if self.merge and alone:
            message = f"expected --merge alone, got {alone[0]} too; leave one out"
            raise InputError(message)
        if self.ray is not None and self.workers is not None:
            message = "expected --workers or --ray, got both; leave one out"
            raise InputError(message)
        for option, needed, is_there in (
            ("--parts", "--merge", self.merge),
            ("--actors", "--ray", self.ray is not None),
            ("--gpus", "--ray", self.ray is not None),
        ):
            if named[option] and not is_there:
                message = f"expected {option} with {needed}, got it without; add {needed}"
                raise InputError(message)
        if not (0 <= self.gpus <= 1 or (self.gpus > 1 and self.gpus.is_integer())):
            message = (
                f"expected a fraction of a GPU or a whole number of GPUs, got {self.gpus:g}; "
                "correct --gpus"
            )
            raise InputError(message)
        return None if self.shard is None else leery.tasks.Shard.parse(self.shard)

    def advice(self, shard: Shard | None) -> str:
        """How to go on after Ctrl-C."""
        if self.merge or shard is not None:
            return "run the same command again to go on"
        return "run again with --resume to go on"

    def run(
        self,
        work: _Shared[T_co],
        make: Callable[[], Work],
        model: nn.Module,
        shard: Shard | None,
        *,
        title: str,
        resume: bool,
    ) -> T_co:
        """Do the work that the options name: all of it, a shard, or the merging of shards.

        Args:
            work: the work.
            make: picklable function that makes the same work in another process.
            model: the classifier; on a GPU, there is one process by default.
            shard: what :meth:`chosen` returned.
            title: name of the work for the progress bar.
            resume: True to resume an interrupted run.

        Raises:
            LeeryError: when the work does.
        """
        if self.merge:
            return work.merge(self.parts or ())
        engine = self._engine(make, on_cpu=leery.models.device_of(model).type == "cpu")
        with progress_bars() as bars:
            task = bars.add_task(title, total=None)

            def show(done: int, total: int) -> None:
                bars.update(task, completed=done, total=total)

            if shard is None:
                return work.run(resume=resume, engine=engine, progress=show)
            return work.run_shard(shard, engine=engine, progress=show)

    def _engine(self, make: Callable[[], Work], *, on_cpu: bool) -> Engine:
        """What computes the parts: Ray, or a process for each processor, or one for a GPU.

        Raises:
            InputError: when an option is outside its range, or Ray is not installed.
        """
        if self.ray is not None:
            from leery import cluster

            return cluster.OnRay(make, self.ray, _bounds_of(self.actors), gpus=self.gpus)
        count = 1 if self.workers is None and not on_cpu else self.workers
        return leery.tasks.Processes(make, leery.tasks.worker_count(count))


def _bounds_of(text: str | None) -> tuple[int, int] | None:
    """The smallest and largest number that a text such as "4" or "2-8" names.

    Raises:
        InputError: when it names none.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", text)
    least, most = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= least <= most:
        message = f"expected a number of actors such as 4 or 2-8, got {text!r}; correct it"
        raise InputError(message)
    return least, most


class _Shared(Protocol[T_co]):
    """Work that is done in one run, or in shards that are then merged."""

    def run(self, *, resume: bool, engine: Engine, progress: Progress) -> T_co: ...

    def run_shard(self, shard: Shard, *, engine: Engine, progress: Progress) -> T_co: ...

    def merge(self, others: Sequence[Path]) -> T_co: ...


def with_classes(model: nn.Module, paths: list[Path], form: Format) -> Format:
    """The format with the classifier's number of classes, as its output for an input shows it.

    Raises:
        InputError: when it does not accept the input.
    """
    import torch

    models = leery.models
    for item in leery.inputs.read(paths, replace(form, labels_key=None)):
        if item.image is not None:
            batch = item.image.unsqueeze(0).to(models.device_of(model))
            with models.isolated(model, batch) as still, torch.no_grad():
                logits = models.run_model(still, batch)
            return replace(form, classes=logits.shape[1])
    return form


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameters of these dataclasses are options of its own.

    The help shows the options of a dataclass under its ``title``, and names their values.
    """
    signature = inspect.signature(command)
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    expanded = []
    for name, parameter in signature.parameters.items():
        group = groups.get(name)
        own = [parameter.replace(annotation=hints[name])] if group is None else _parameters(group)
        expanded += [_shown(each, getattr(group, "title", None)) for each in own]

    @functools.wraps(command)
    def run(**options: Any) -> None:  # noqa: ANN401 - whatever the command takes
        made = {
            name: group(**{field.name: options.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        command(**options, **made)

    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    run.__signature__ = signature.replace(  # type: ignore[attr-defined]  # what typer reads
        parameters=sorted(expanded, key=lambda parameter: kinds.index(parameter.kind))
    )
    return run


def _parameters(group: type) -> list[inspect.Parameter]:
    """A parameter for each field of a dataclass."""
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(group)
    ]


_VALUES = {"bool": "", "Path": "PATH", "int": "N", "float": "X", "str": "TEXT"}
"""What the help shows for a value, by the first of these types in the annotation."""


def _shown(parameter: inspect.Parameter, title: str | None) -> inspect.Parameter:
    """A parameter of a command with the name of its value and the title above it in the help."""
    kind, info = get_args(parameter.annotation)
    shown = copy.copy(info)
    if isinstance(shown, OptionInfo):
        names = re.findall(r"\w+", str(kind))
        named = next(_VALUES[name] for name in names if name in _VALUES)
        shown.metavar = named if shown.metavar is None else shown.metavar
        shown.rich_help_panel = title
    return parameter.replace(annotation=Annotated[kind, shown])


def _with_dropout(model: nn.Module, text: str) -> nn.Module:
    layer, _, rate = text.rpartition(":")
    try:
        probability = float(rate)
    except ValueError:
        layer = ""
    if not layer:
        message = (
            f"expected LAYER:P, such as fc:0.3, for --insert-dropout, got {text!r}; correct it"
        )
        raise InputError(message)
    return leery.mc_dropout.insert_dropout(model, before=layer, p=probability).eval()


def _numbers(option: str, text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        message = f"expected numbers separated by commas for {option}, got {text!r}; correct them"
        raise InputError(message) from error


def clean_images(
    clean: list[Path], form: Format, *, labelled: bool
) -> tuple[Tensor, Tensor | None]:
    """Clean images for a calibration, with labels if these are needed.

    Args:
        clean: files and folders.
        form: how they become what the model takes; with labels, the class folders are counted.
        labelled: True to read labels.
    """
    if labelled:
        return leery.inputs.load_labelled(clean, form)
    return leery.inputs.load(clean, replace(form, labels_key=None, classes=None))[0], None
