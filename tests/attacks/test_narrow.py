"""The gradient of an image through its first convolution, against torch's own."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from leery.attacks import BIM
from leery.attacks._narrow import NarrowConvolutions

PLAIN = {
    "one channel": nn.Conv2d(1, 10, 3),
    "three channels, padded": nn.Conv2d(3, 24, (3, 5), padding=(1, 2)),
    "no bias, padded at one side only": nn.Conv2d(2, 10, 3, padding=(2, 0), bias=False),
    "pads of its own": nn.Conv2d(1, 5, 3, padding=1, padding_mode="reflect"),
}
OTHERS = {
    "steps": nn.Conv2d(1, 8, 3, stride=2),
    "holes": nn.Conv2d(1, 8, 3, dilation=2),
    "groups": nn.Conv2d(2, 20, 3, groups=2),
    "many channels": nn.Conv2d(4, 40, 3),
    "large filters": nn.Conv2d(2, 4, 5),
    "a named padding": nn.Conv2d(1, 8, 3, padding="same"),
}


@pytest.mark.parametrize("name", [*PLAIN, *OTHERS])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_gradient_is_that_of_torch(name: str, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    layer = (PLAIN | OTHERS)[name]
    images = torch.rand(5, layer.in_channels, 11, 13).to(memory_format=layout).requires_grad_()
    with NarrowConvolutions():
        found = layer(images)
    assert ("_Narrow" in type(found.grad_fn).__name__) == (name in PLAIN)
    weights = torch.rand(found.shape)
    (own,) = torch.autograd.grad((found * weights).sum(), images)
    (truth,) = torch.autograd.grad((layer(images) * weights).sum(), images)
    assert torch.equal(found, layer(images))
    assert torch.allclose(own, truth, atol=1e-5)


def test_filters_that_come_from_the_image_are_left_to_torch() -> None:
    images = torch.rand(3, 1, 8, 8, requires_grad=True)
    with NarrowConvolutions():
        found = functional.conv2d(images, images.mean() * torch.ones(4, 1, 3, 3))
        (own,) = torch.autograd.grad(found.sum(), images)
    again = functional.conv2d(images, images.mean() * torch.ones(4, 1, 3, 3))
    (truth,) = torch.autograd.grad(again.sum(), images)
    assert torch.allclose(own, truth)


class Views(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.head = nn.Conv2d(3, 15, 3), nn.Linear(240, 4)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.convolution(images)
        out: Tensor = self.head(hidden.view(len(hidden), -1))
        return out


def test_an_attack_on_a_model_that_views_memory_in_order() -> None:
    torch.manual_seed(0)
    model, images, labels = Views(), torch.rand(6, 3, 6, 6), torch.arange(6) % 4
    same = nn.Sequential(model.convolution, nn.Flatten(), model.head)
    assert torch.allclose(
        BIM(0.1)(model, images, labels), BIM(0.1)(same, images, labels), atol=1e-6
    )


def test_an_image_without_its_batch_is_left_to_torch() -> None:
    image = torch.rand(1, 9, 9, requires_grad=True)
    with NarrowConvolutions():
        found = functional.conv2d(image, torch.rand(2, 1, 3, 3))
    assert "_Narrow" not in type(found.grad_fn).__name__
