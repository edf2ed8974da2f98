"""Features are read off any layer, and wrong names get the right ones back."""

import pytest
import torch
from torch import Tensor, nn

from leery.errors import InputError, UnknownLayerError
from leery.features import extract_features
from tests.conftest import Batch


def test_features_are_the_layers_output_flattened(digit_net: nn.Module, digits: Batch) -> None:
    images = digits[0][:20]
    features, logits = extract_features(digit_net, images, "convolutions.3", batch_size=7)
    with torch.no_grad():
        expected = digit_net.convolutions[:4](images)  # type: ignore[index, operator]
        assert torch.allclose(features, expected.flatten(1), atol=1e-5)
        assert torch.allclose(logits, digit_net(images), atol=1e-5)


class Pair(nn.Module):
    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return rows, rows


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair()
        self.unused = nn.Linear(4, 4)

    def forward(self, rows: Tensor) -> Tensor:
        left, right = self.pair(rows)
        total: Tensor = left + right
        return total


def test_layers_that_cannot_serve_are_refused() -> None:
    rows = torch.rand(3, 4)
    with pytest.raises(UnknownLayerError, match="got 'fc'; the model has: pair, unused$"):
        extract_features(Wrapped(), rows, "fc")
    with pytest.raises(UnknownLayerError, match="'unused' to run in the forward pass"):
        extract_features(Wrapped(), rows, "unused")
    with pytest.raises(InputError, match="'pair' to give one tensor, got tuple"):
        extract_features(Wrapped(), rows, "pair")
