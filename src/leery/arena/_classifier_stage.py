"""Making of the classifier of an arena, and its predictions."""

import io

import numpy as np

from leery._files import write_atomically
from leery.arena._workspace import Workspace
from leery.classifiers import load_classifier, pretrained, save_classifier, train
from leery.models import predict

__all__ = ["make_classifier", "predict_all"]


def make_classifier(workspace: Workspace) -> None:
    """Write the classifier: the user's, the shipped one, or a newly trained one."""
    config, seed = workspace.config, workspace.classifier_seed
    if seed == 0 and config.classifier is not None:
        classifier = load_classifier(config.classifier, config.dataset)
    elif seed == 0:
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
