"""The classifiers that are measured, in torch's default memory layout, as users have theirs."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from leery import data
from leery.classifiers import pretrained

__all__ = [
    "ResNet18",
    "VisionTransformer",
    "classifier",
    "default_layout",
    "images_of",
    "waves",
]


def default_layout(dataset: str) -> nn.Module:
    """The shipped classifier of a dataset, which ships with its channels last, without that."""
    shipped = pretrained(dataset).model
    model = type(shipped)()
    model.load_state_dict(shipped.state_dict())
    return model.eval()


def waves(count: int, size: int = 64) -> Tensor:
    """Images ``(count, 3, size, size)`` that a network tells apart: soft shapes."""
    coarse = torch.rand(count, 3, 8, 8)
    fine = nn.functional.interpolate(coarse, size=size, mode="bilinear")
    return fine * torch.rand(count, 1, 1, 1)


class Block(nn.Module):
    """Two convolutions with batch norm, and a way around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.around = nn.Sequential()
        if stride > 1 or inputs != outputs:
            self.around = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.relu(self.first_norm(self.first(images)))
        hidden = self.second_norm(self.second(hidden))
        return self.relu(hidden + self.around(images))


class ResNet18(nn.Module):
    """The layers of He et al. (2016), table 1, with dropout before the last."""

    def __init__(self, classes: int = 1000, dropout: float = 0.5) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, padding=3, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, padding=1),
        )
        widths = [64, 64, 64, 128, 128, 256, 256, 512, 512]
        self.blocks = nn.Sequential(
            *(
                Block(inputs, outputs, stride=1 if inputs == outputs else 2)
                for inputs, outputs in pairwise(widths)
            )
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(512, classes)
        # As torchvision has it: of filters drawn otherwise nothing arrives at the last layer.
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.pool(self.blocks(self.stem(images))).flatten(1)
        out: Tensor = self.fc(self.dropout(hidden))
        return out


class VisionTransformer(nn.Module):
    """A small one for 28 x 28 pixels, with dropout in every block and before the last layer."""

    def __init__(self, width: int = 64, depth: int = 4, classes: int = 10) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 7, stride=7)
        self.places = nn.Parameter(0.02 * torch.randn(1, 16, width))
        block = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.1, batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, depth, enable_nested_tensor=False)
        self.dropout = nn.Dropout(0.1)
        self.fc = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.places
        out: Tensor = self.fc(self.dropout(self.blocks(tokens).mean(1)))
        return out


def classifier(name: str) -> nn.Module:
    """A classifier by name; those without shipped weights are drawn at seed 0."""
    shipped = {"DigitNet": "mnist", "FashionNet": "fashion-mnist"}
    if name in shipped:
        return default_layout(shipped[name])
    torch.manual_seed(0)
    return (ResNet18() if name.startswith("ResNet") else VisionTransformer()).eval()


def images_of(name: str, count: int) -> Tensor:
    """Images that the classifier of that name accepts."""
    if name.startswith("ResNet"):
        torch.manual_seed(0)
        return waves(count)
    return data.load("fashion-mnist" if name == "FashionNet" else "mnist", "test")[0][:count]
