"""``leery attack``: adversarial versions of the user's images."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

import leery
from leery._files import check_output, write_atomically
from leery.cli._groups import ClassifierOptions, InputOptions, with_classes, with_groups
from leery.cli._options import (
    Attacks,
    BoundsOption,
    Json,
    Seed,
    facts_table,
    no_attack,
    parse_attacks,
    parse_bounds,
    print_json,
    stoppable,
)
from leery.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["attack"]

_Data = Annotated[
    list[Path],
    typer.Option(help="Labelled clean images. Can be repeated.", show_default=False),
]

_Out = Annotated[Path, typer.Option(help="Output .npz file.")]


@with_groups
def attack(
    classifier: ClassifierOptions,
    reading: InputOptions,
    data: _Data,
    attacks: Attacks = None,
    *,
    out: _Out = Path("adversarial.npz"),
    bounds: BoundsOption = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Make adversarial versions of labelled images and write them to an .npz file.

    The file has the arrays images, labels (true classes), predicted (predicted classes) and source
    (the index of the original image). The images of the first attack come first, then those of
    the second, and so on.

    Examples:
      leery attack --model net:make --data held.npz --attack pgd:0.1 --out adversarial.npz
      leery attack --model net:make --data held/ --attack fgsm:0.03 --attack bim:0.03
    """
    limits = parse_bounds(bounds)
    chosen = {text: found.within(limits) for text, found in parse_attacks(attacks).items()}
    if not chosen:
        raise no_attack()
    model = classifier.load()
    if out.suffix != ".npz":
        message = f"expected an .npz file as --out, got {out}; rename it"
        raise InputError(message)
    check_output(out)
    if out.resolve() in {path.resolve() for path in data}:
        message = f"expected another file than the data as --out, got {out}; name another one"
        raise InputError(message)
    with stoppable("nothing was written"):
        form = with_classes(model, data, reading.format())
        images, labels = leery.inputs.load_labelled(data, form)
        adversarial = [found(model, images, labels, seed=seed) for found in chosen.values()]
        facts = _write(out, model, adversarial, labels)
    if as_json:
        print_json({"out": str(out), "success": dict(zip(chosen, facts, strict=True))})
        return
    shown = {
        name: f"{share:.1%} are misclassified" for name, share in zip(chosen, facts, strict=True)
    }
    Console(highlight=False).print(facts_table(str(out), shown))


def _write(out: Path, model: nn.Module, adversarial: list[Tensor], labels: Tensor) -> list[float]:
    """Write the adversarial versions and return the misclassified share of each attack."""
    import numpy as np
    import torch

    predicted = [leery.models.predict(model, part) for part in adversarial]
    content = io.BytesIO()
    np.savez(
        content,
        images=torch.cat(adversarial).numpy(),
        labels=labels.repeat(len(adversarial)).numpy(),
        predicted=torch.cat(predicted).numpy(),
        source=np.tile(np.arange(len(labels)), len(adversarial)),
    )
    write_atomically(out, content.getvalue())
    return [float((part != labels).double().mean()) for part in predicted]
