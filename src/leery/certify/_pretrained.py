"""Sentinels that ship with leery."""

from importlib.resources import as_file, files

from torch import nn

from leery._recorded import missing, read_recorded
from leery.certify._sentinel import Sentinel
from leery.data import named
from leery.errors import InputError
from leery.inputs import InputSpec
from leery.models import Logits
from leery.names import SENTINELS

__all__ = ["pretrained_sentinel"]


def pretrained_sentinel(dataset: str, model: nn.Module, *, logits: Logits = None) -> Sentinel:
    """The trained sentinel that ships with leery, for any classifier of the dataset's classes.

    Calibrate it on images that it was not trained on, which is not checked: on test images, or on
    the training images that its record, ``src/leery/certify/weights/<dataset>.json``, names as held
    out.

    Args:
        dataset: "mnist" or "fashion-mnist".
        model: the classifier; returns logits ``(N, 10)`` of images ``(N, 1, 28, 28)`` in [0, 1].
        logits: how to get the logits from the model's output, as for
            :class:`leery.certify.Sentinel`.

    Raises:
        InputError: when there is none for the dataset.
        DataError: when the installed files are damaged.

    Example:
        >>> from leery.classifiers import pretrained
        >>> pretrained_sentinel("mnist", pretrained("mnist").model)
        Sentinel(DigitNet: fitted)
    """
    name = named(dataset).name
    if name not in SENTINELS:
        message = (
            f"expected one of {', '.join(SENTINELS)}, got {name}, for which no sentinel ships; fit "
            "a leery.certify.Sentinel"
        )
        raise InputError(message)
    with as_file(files("leery.certify") / "weights") as folder:
        tensors, record = read_recorded(folder, name)
        try:
            inputs = InputSpec.from_facts(record["inputs"])
            return Sentinel.of_parts(model, tensors, record["parts"], inputs, logits=logits)
        except (KeyError, TypeError, InputError) as error:
            raise missing(folder, name, error) from error
