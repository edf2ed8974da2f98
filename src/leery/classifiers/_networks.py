"""The networks of Tuna, Catak, Eskil (2020), table 1, as in their notebooks, and a residual one."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["DigitNet", "FashionNet", "ResNet20"]


class DigitNet(nn.Module):
    """The digit classifier: two convolutions, a hidden layer of 128, ten logits.

    Max-pooling comes before the ReLU: the two commute, and it is the cheaper order.

    Args:
        dropout: the probability of dropping a unit, in [0, 1).

    Shape:
        float32 ``(N, 1, 28, 28)`` in [0, 1] -> logits ``(N, 10)``. The last hidden layer is the
        submodule ``hidden``, ``(N, 128)``.

    Source:
        Tuna, Catak, Eskil (2020), table 1.
    """

    last_hidden_layer = "hidden"

    def __init__(self, dropout: float = 0.5) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, 10, 3),
            nn.ReLU(),
            nn.Conv2d(10, 20, 3),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Flatten(),
        )
        self.hidden = nn.Sequential(nn.Linear(2880, 128), nn.ReLU())
        self.classify = nn.Sequential(nn.Dropout(dropout), nn.Linear(128, 10))

    def forward(self, images: Tensor) -> Tensor:
        """Logits of a batch of images."""
        logits: Tensor = self.classify(self.hidden(self.convolutions(images)))
        return logits


class FashionNet(nn.Module):
    """The fashion classifier: four convolutions, hidden layers of 600 and 128, ten logits.

    Max-pooling comes before the ReLU: the two commute, and it is the cheaper order.

    Args:
        dropout: the probability of dropping a unit, in [0, 1).

    Shape:
        float32 ``(N, 1, 28, 28)`` in [0, 1] -> logits ``(N, 10)``. The last hidden layer is the
        submodule ``hidden``, ``(N, 128)``.

    Source:
        Tuna, Catak, Eskil (2020), table 1.
    """

    last_hidden_layer = "hidden"

    def __init__(self, dropout: float = 0.5) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Flatten(),
        )
        self.hidden = nn.Sequential(
            nn.Linear(3136, 600),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(600, 128),
            nn.ReLU(),
        )
        self.classify = nn.Linear(128, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of a batch of images."""
        logits: Tensor = self.classify(self.hidden(self.convolutions(images)))
        return logits


class ResNet20(nn.Module):
    """A residual network for CIFAR-10 with 20 layers and dropout before the last one.

    Args:
        dropout: the probability of dropping a unit, in [0, 1).

    Shape:
        float32 ``(N, 3, 32, 32)`` in [0, 1] -> logits ``(N, 10)``. The last hidden layer is the
        submodule ``hidden``, ``(N, 64)``.

    Source:
        He et al. (2015), arXiv:1512.03385, section 4.2, with shortcuts without weights. Departures:
        dropout, and pixels are normalised inside the network.
    """

    last_hidden_layer = "hidden"

    mean: Tensor
    scale: Tensor

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        for name, values in (("mean", (0.491, 0.482, 0.447)), ("scale", (0.247, 0.244, 0.262))):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        )
        widths = [16] * 4 + [32] * 3 + [64] * 3
        self.blocks = nn.Sequential(*(_Block(before, after) for before, after in pairwise(widths)))
        self.hidden = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classify = nn.Sequential(nn.Dropout(dropout), nn.Linear(64, 10))

    def forward(self, images: Tensor) -> Tensor:
        """Logits of a batch of images."""
        maps = self.blocks(self.stem((images - self.mean) / self.scale))
        logits: Tensor = self.classify(self.hidden(maps))
        return logits


class _Block(nn.Module):
    """Two convolutions and a shortcut, which halves the maps where the channels double."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.stride, self.added = after // before, after - before
        self.convolutions = nn.Sequential(
            nn.Conv2d(before, after, 3, stride=self.stride, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Maps of a batch of maps."""
        shortcut = maps
        if self.added:
            shortcut = functional.pad(
                maps[:, :, :: self.stride, :: self.stride], (0,) * 5 + (self.added,)
            )
        return functional.relu(shortcut + self.convolutions(maps))
