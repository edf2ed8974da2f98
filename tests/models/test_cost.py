"""The multiplications of a model are counted, in eval mode too, and nothing else changes."""

import torch
from torch import Tensor, nn

from leery.models import isolated, multiplications


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, rows: Tensor) -> Tensor:
        found: Tensor = self.attention(rows, rows, rows, need_weights=False)[0]
        return found


class Darkening(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.detach().sub_(0.5).flatten(1)


class Purifying(nn.Module):
    """Takes a step on its input by a gradient of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 5)

    def forward(self, rows: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = rows.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.linear(leaf).sum(), leaf)
        found: Tensor = self.linear(rows - gradient)
        return found


def test_convolutions_linear_layers_and_attention_are_counted() -> None:
    convolution = nn.Conv2d(3, 8, 3, padding=1)
    assert multiplications(convolution, torch.rand(2, 3, 10, 10)) == 10 * 10 * 8 * 3 * 9
    assert multiplications(nn.Linear(6, 5), torch.rand(4, 6)) == 30
    # Three projections and one after the heads, and two products of 5 x 5 pairs.
    expected = 4 * 5 * 8 * 8 + 2 * 5 * 5 * 8
    assert multiplications(Attending(), torch.rand(2, 5, 8)) == expected


def test_layers_that_torch_fuses_in_eval_mode_are_counted() -> None:
    rows = torch.rand(2, 5, 8)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    expected = 4 * 5 * 8 * 8 + 2 * 5 * 5 * 8 + 2 * 5 * 8 * 16
    with isolated(layer) as still, torch.inference_mode(mode=False):
        assert multiplications(still, rows) == expected
    with torch.no_grad():
        assert multiplications(layer.requires_grad_(requires_grad=False), rows) == expected


def test_the_images_stay_as_they_are_and_models_with_gradients_of_their_own_run() -> None:
    images = torch.rand(2, 3, 4, 4)
    before = images.clone()
    assert multiplications(Darkening(), images) == 0
    assert torch.equal(images, before)
    # Forward, the gradient's product, forward again.
    assert multiplications(Purifying(), torch.rand(4, 6)) == 3 * 30
