"""Options that several commands share, as dataclasses that become options of each."""

from __future__ import annotations

import copy
import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, get_args, get_type_hints

import typer
from typer.models import OptionInfo

import leery
from leery.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from leery.inputs import Format

__all__ = ["ClassifierOptions", "InputOptions", "clean_images", "with_groups"]


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
