"""The convolutional networks of Tuna, Catak, Eskil (2020), table 1, as in their notebooks."""

from torch import Tensor, nn

__all__ = ["DigitNet", "FashionNet"]


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
