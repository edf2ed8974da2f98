"""The gradient that an attack climbs is torch's own, in whatever layout the model is run."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from leery.attacks import FGSM


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
    adversarial = FGSM(1.0, norm="l2", bounds=(-1.0, 2.0))(model, images, labels)
    lengths = truth.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    assert torch.allclose(adversarial - images, truth / lengths, atol=1e-5)


def test_a_model_whose_modules_were_replaced_is_tried_anew() -> None:
    torch.manual_seed(0)
    inner, images, labels = Views(), torch.rand(6, 3, 6, 6), torch.arange(6) % 4
    model = nn.Sequential(nn.Sequential(inner.convolution, nn.Flatten(), inner.head))
    adversarial = FGSM(0.1)(model, images, labels)
    model[0] = inner
    assert torch.allclose(FGSM(0.1)(model, images, labels), adversarial, atol=1e-6)
