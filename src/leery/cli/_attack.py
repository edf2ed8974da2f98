"""``leery attack``: adversarial twins of the user's images."""

import io
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from torch import Tensor, nn

from leery import inputs
from leery._files import check_output, write_atomically
from leery.cli._model import Model, Weights, load_model, with_classes
from leery.cli._options import (
    Attacks,
    ChannelsOption,
    ImagesKey,
    Json,
    LabelsKey,
    Seed,
    facts_table,
    image_format,
    no_attack,
    parse_attacks,
    print_json,
    stoppable,
)
from leery.errors import InputError
from leery.models import predict

__all__ = ["attack"]

_Data = Annotated[
    list[Path],
    typer.Option(help="Clean images with labels. Can be repeated.", show_default=False),
]

_Out = Annotated[Path, typer.Option(help="An .npz file.")]


def attack(
    model: Model,
    data: _Data,
    attacks: Attacks = None,
    *,
    out: _Out = Path("adversarial.npz"),
    weights: Weights = None,
    seed: Seed = 0,
    channels: ChannelsOption = "first",
    images_key: ImagesKey = "images",
    labels_key: LabelsKey = "labels",
    as_json: Json = False,
) -> None:
    """Make the adversarial twins of labelled images and write them to an .npz file.

    It holds images, labels (the true ones), predicted, and source (the place of the image that a
    twin was made of); the twins of the first attack come first.

    Examples:
      leery attack --model net:make --data held.npz --attack pgd:0.1 --out twins.npz
      leery attack --model net:make --data held/ --attack fgsm:0.03 --attack bim:0.03
    """
    chosen = parse_attacks(attacks)
    if not chosen:
        raise no_attack()
    classifier = load_model(model, weights)
    if out.suffix != ".npz":
        message = f"expected an .npz file as --out, got {out}; rename it"
        raise InputError(message)
    check_output(out)
    with stoppable("nothing was written"):
        form = with_classes(classifier, data, image_format(channels, images_key, labels_key))
        images, labels = inputs.load_labelled(data, form)
        twins = [found(classifier, images, labels, seed=seed) for found in chosen.values()]
        facts = _write(out, classifier, twins, labels)
    if as_json:
        print_json({"out": str(out), "success": dict(zip(chosen, facts, strict=True))})
        return
    shown = {
        name: f"{share:.1%} are misclassified" for name, share in zip(chosen, facts, strict=True)
    }
    Console(highlight=False).print(facts_table(str(out), shown))


def _write(out: Path, model: nn.Module, twins: list[Tensor], labels: Tensor) -> list[float]:
    """Write the twins; the share of each attack's that is misclassified."""
    predicted = [predict(model, part) for part in twins]
    content = io.BytesIO()
    np.savez(
        content,
        images=torch.cat(twins).numpy(),
        labels=labels.repeat(len(twins)).numpy(),
        predicted=torch.cat(predicted).numpy(),
        source=np.tile(np.arange(len(labels)), len(twins)),
    )
    write_atomically(out, content.getvalue())
    return [float((part != labels).double().mean()) for part in predicted]
