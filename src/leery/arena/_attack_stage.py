"""Making of the adversarial images of an arena."""

import time

from safetensors.torch import save

from leery._files import make_folder, write_atomically
from leery.arena._workspace import BOUNDS, Workspace
from leery.attacks import placed
from leery.models import predict
from leery.tasks import write_seconds

__all__ = ["run_attack"]


def run_attack(workspace: Workspace, cell: str, role: str) -> None:
    """Attack the images for "judging" or for "training", and write the result and its time."""
    config, split = workspace.config, workspace.split()
    images, labels = split.clean
    if role == "judging":
        images, labels = (part[: config.count(cell)] for part in split.attacked)
    model, attack = workspace.classifier().model, placed(config.cells[cell].attack, BOUNDS)
    start = time.process_time()
    made = attack(model, images, labels, seed=config.seed)
    seconds = time.process_time() - start
    content = {"images": made, "success": predict(model, made) != labels}
    path = workspace.attack_file(cell, role)
    make_folder(path.parent)
    write_seconds(path, {"attack": seconds, "images": len(images)})
    write_atomically(path, save(content))
