"""What the tests share: real data, the shipped classifiers, one thread."""

import pytest
import torch
from torch import Tensor, nn

from leery.classifiers import pretrained
from leery.data import load

torch.set_num_threads(1)

Batch = tuple[Tensor, Tensor]


@pytest.fixture(scope="session")
def digits() -> Batch:
    """All 10,000 test digits and their labels."""
    return load("mnist", "test")


@pytest.fixture(scope="session")
def training_digits() -> Batch:
    """The first 6,000 training digits and their labels."""
    images, labels = load("mnist", "train")
    return images[:6000], labels[:6000]


@pytest.fixture
def digit_net() -> nn.Module:
    """The shipped digit classifier, a fresh copy for each test."""
    return pretrained("mnist").model
