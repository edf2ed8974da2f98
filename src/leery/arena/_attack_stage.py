"""Making of the adversarial images of an arena."""

import time

from safetensors.torch import save

from leery._files import make_folder, write_atomically
from leery.arena._config import SLOW_PART
from leery.arena._workspace import BOUNDS, Workspace
from leery.attacks import placed
from leery.models import predict
from leery.tasks import write_seconds

__all__ = ["run_attack"]


def run_attack(workspace: Workspace, cell: str, role: str, part: int) -> None:
    """Attack one part of the images for "judging" or for "training"; write the result and time."""
    config, split = workspace.config, workspace.split()
    path, attacked = workspace.attack_files(cell, role)[part], split.clean
    if role == "judging":
        count = config.count(cell)
        size = SLOW_PART if config.cells[cell].slow else count
        rows = slice(part * size, min((part + 1) * size, count))
        attacked = split.attacked[0][rows], split.attacked[1][rows]
    images, labels = attacked
    model, attack = workspace.classifier().model, placed(config.cells[cell].attack, BOUNDS)
    start = time.process_time()
    # A seed of its own, or the random starts of all parts would be the same.
    made = attack(model, images, labels, seed=config.seed + part)
    seconds = time.process_time() - start
    # An attack may return another memory layout, which the file cannot hold.
    content = {"images": made.contiguous(), "success": predict(model, made) != labels}
    make_folder(path.parent)
    write_seconds(path, {"attack": seconds, "images": len(images)})
    write_atomically(path, save(content))
