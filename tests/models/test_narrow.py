"""The gradient of an image through its first convolution, against torch's own."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from leery.attacks import FGSM
from leery.models._narrow import NarrowConvolutions

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
        found = functional.conv2d(images, images.mean() * torch.ones(10, 1, 3, 3))
        assert "_Narrow" not in type(found.grad_fn).__name__
        (own,) = torch.autograd.grad(found.sum(), images)
    again = functional.conv2d(images, images.mean() * torch.ones(10, 1, 3, 3))
    (truth,) = torch.autograd.grad(again.sum(), images)
    assert torch.allclose(own, truth)


@pytest.mark.parametrize("under", ["autocast", "vmap"])
def test_other_types_and_transformations_are_left_to_torch(under: str) -> None:
    layer, images = nn.Conv2d(1, 10, 3), torch.rand(2, 3, 1, 8, 8, requires_grad=True)
    with NarrowConvolutions():
        if under == "autocast":
            with torch.autocast("cpu"):
                found = layer(images[0])
        else:
            found = torch.vmap(layer)(images)
    assert "_Narrow" not in type(found.grad_fn).__name__


class Views(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.head = nn.Conv2d(3, 15, 3), nn.Linear(240, 4)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.head(self.flat(images, self.convolution(images)))
        return out

    def flat(self, _images: Tensor, hidden: Tensor) -> Tensor:
        return hidden.view(len(hidden), -1)


class Strides(Views):
    """Takes memory to be in order, in silence."""

    def flat(self, _images: Tensor, hidden: Tensor) -> Tensor:
        return torch.as_strided(hidden, (len(hidden), 240), (240, 1))


class Slopes(Views):
    """Differentiates twice."""

    def flat(self, images: Tensor, hidden: Tensor) -> Tensor:
        if not images.requires_grad:
            return hidden.flatten(1)
        (slope,) = torch.autograd.grad(hidden.square().sum(), images, create_graph=True)
        steepness: Tensor = slope.flatten(1).norm(dim=1, keepdim=True)
        return hidden.flatten(1) * (1 + steepness)


class Checkpoints(Views):
    def forward(self, images: Tensor) -> Tensor:
        hidden = checkpoint(self.convolution, images, use_reentrant=False)
        out: Tensor = self.head(hidden.flatten(1))
        return out


class Waves(Views):
    """Complex filters."""

    def flat(self, images: Tensor, hidden: Tensor) -> Tensor:
        filters = self.convolution.weight * (1 + 2j)
        waves: Tensor = functional.conv2d(torch.fft.fft2(images), filters.detach())
        return hidden.flatten(1) + waves.abs().flatten(1)


class Adapts(Views):
    """Takes a gradient of its filters in the forward pass."""

    def flat(self, images: Tensor, hidden: Tensor) -> Tensor:
        if not images.requires_grad:
            return hidden.flatten(1)
        own = torch.autograd.grad(hidden.square().sum(), self.convolution.weight, create_graph=True)
        length: Tensor = own[0].norm()
        return hidden.flatten(1) * length


@pytest.mark.parametrize("kind", [Views, Strides, Slopes, Checkpoints, Waves, Adapts])
def test_an_attack_s_gradient_is_torch_s_whatever_the_model_does(kind: type[Views]) -> None:
    torch.manual_seed(0)
    model, labels = kind().eval(), torch.arange(6) % 4
    for parameter in model.parameters():
        parameter.requires_grad_(kind is Adapts)
    images = torch.rand(6, 3, 6, 6)
    variable = images.clone().requires_grad_()
    loss = functional.cross_entropy(model(variable), labels, reduction="sum")
    (truth,) = torch.autograd.grad(loss, variable)
    twins = FGSM(1.0, norm="l2", bounds=(-1.0, 2.0))(model, images, labels)
    lengths = truth.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    assert torch.allclose(twins - images, truth / lengths, atol=1e-5)


def test_a_model_whose_modules_were_replaced_is_tried_anew() -> None:
    torch.manual_seed(0)
    inner, images, labels = Views(), torch.rand(6, 3, 6, 6), torch.arange(6) % 4
    model = nn.Sequential(nn.Sequential(inner.convolution, nn.Flatten(), inner.head))
    twins = FGSM(0.1)(model, images, labels)
    model[0] = inner
    assert torch.allclose(FGSM(0.1)(model, images, labels), twins, atol=1e-6)


def test_an_image_without_its_batch_is_left_to_torch() -> None:
    image = torch.rand(1, 3, 9, requires_grad=True)
    with NarrowConvolutions():
        found = functional.conv2d(image, torch.rand(10, 1, 3, 3))
    assert "_Narrow" not in type(found.grad_fn).__name__
