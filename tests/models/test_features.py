"""Features are read off any layer, and wrong names get the right ones back."""

import pytest
import torch
from torch import Tensor, nn

from leery.errors import InputError, UnknownLayerError, UnsupportedModelError
from leery.models import extract_features, predict
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
    with pytest.raises(InputError, match="'pair' to return one tensor, got tuple"):
        extract_features(Wrapped(), rows, "pair")


def test_a_layer_before_an_in_place_activation_gives_its_own_output() -> None:
    first = nn.Linear(4, 6)
    model = nn.Sequential(first, nn.ReLU(inplace=True), nn.Linear(6, 3))
    rows = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    features, _ = extract_features(model, rows, "0")
    assert float(features.min()) < 0
    with torch.no_grad():
        assert torch.allclose(features, first(rows))


def test_a_model_that_returns_no_logits_is_refused() -> None:
    with pytest.raises(
        UnsupportedModelError,
        match=r"returns logits \(3, classes\), got a tuple of 2; say where they are",
    ):
        extract_features(nn.Sequential(nn.Linear(4, 2), Pair()), torch.rand(3, 4), "0")


def test_what_a_model_cannot_look_up_is_refused_in_leery_s_words() -> None:
    model = nn.Sequential(nn.Embedding(4, 3), nn.Flatten(), nn.Linear(6, 2))
    with pytest.raises(InputError, match="which it rejects"):
        predict(model, torch.tensor([[1, 9], [0, 2]]))


@pytest.mark.parametrize(("filters", "last"), [(64, True), (65, False)])
def test_images_have_their_channels_last_where_convolutions_are_narrow(
    filters: int, last: bool
) -> None:
    model = nn.Sequential(nn.Conv2d(3, filters, 3), nn.Flatten(), nn.Linear(filters * 16, 4))
    seen: list[bool] = []
    model[0].register_forward_pre_hook(
        lambda _module, inputs: seen.append(
            inputs[0].is_contiguous(memory_format=torch.channels_last)
        )
    )
    predict(model, torch.rand(5, 3, 6, 6))
    assert seen[-1] == last
