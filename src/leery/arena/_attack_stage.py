"""Making of the classifier and of the adversarial images of an arena."""

import io
import time

import numpy as np
from safetensors.torch import save

from leery._files import make_folder, write_atomically
from leery.arena._workspace import BOUNDS, Workspace
from leery.attacks import placed
from leery.classifiers import pretrained, save_classifier, train
from leery.models import predict
from leery.tasks import write_seconds

__all__ = ["make_classifier", "predict_all", "run_attack"]


def make_classifier(workspace: Workspace) -> None:
    """Write the classifier, shipped or newly trained."""
    config, seed = workspace.config, workspace.classifier_seed
    if seed == 0:
        classifier = pretrained(config.dataset)
    else:
        classifier = train(config.dataset, seed=seed, root=config.data_dir)
    save_classifier(classifier, workspace.classifier_file.parent)


def predict_all(workspace: Workspace) -> None:
    """Write the predicted class of every clean and harmlessly changed image."""
    model, stream = workspace.classifier().model, io.BytesIO()
    found = {name: predict(model, images).numpy() for name, images in workspace.changed()}
    np.savez(stream, **found)  # type: ignore[arg-type]  # mypy takes them for allow_pickle
    write_atomically(workspace.predictions_file, stream.getvalue())


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
