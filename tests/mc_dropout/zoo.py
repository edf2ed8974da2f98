"""Classifiers of every build that the MC-dropout engine must serve, and inputs for them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from leery.classifiers import pretrained
from leery.mc_dropout import insert_dropout


class Residual(nn.Module):
    """Batch norm, an in-place ReLU, channel dropout, and a branch around a dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6))
        self.act = nn.ReLU(inplace=True)
        self.channels = nn.Dropout2d(0.3)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.units = nn.Dropout(0.4, inplace=True)
        self.head = nn.Linear(6 * 14 * 14, 10)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.act(self.first(images))
        hidden = hidden + self.second(self.channels(hidden))
        pooled = functional.max_pool2d(functional.relu_(hidden), 2)
        out: Tensor = self.head(self.units(pooled.flatten(1)))
        return out


class TwoHeads(nn.Module):
    """One dropout that feeds two linear layers, one of them without bias."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.left = nn.Linear(784, 10)
        self.right = nn.Linear(784, 10)
        self.last = nn.Sequential(nn.Dropout(0.2), nn.Linear(10, 10, bias=False))

    def forward(self, images: Tensor) -> Tensor:
        units = self.drop(images.flatten(1))
        out: Tensor = self.last(torch.tanh(self.left(units)) + self.right(units))
        return out


class Grouped(nn.Module):
    """A linear layer that sees each image as four rows, whose units have masks of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.rows = nn.Linear(196, 8)
        self.head = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        rows = self.rows(self.drop(images.flatten(1)).view(-1, 196))
        out: Tensor = self.head(torch.relu(rows).view(images.size(0), -1))
        return out


class Mixed(nn.Module):
    """Dropout where an image's rows and the images lie in one dimension, in either order."""

    def __init__(self, *, interleaved: bool) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(784, 10)
        self.interleaved = interleaved

    def forward(self, images: Tensor) -> Tensor:
        rows = images.view(images.size(0), 28, 28)
        if self.interleaved:
            folded = self.drop(rows.transpose(0, 1).reshape(-1, 28))
            rows = folded.reshape(28, -1, 28).transpose(0, 1)
        else:
            rows = self.drop(rows.reshape(-1, 28)).reshape(-1, 28, 28)
        out: Tensor = self.head(rows.flatten(1))
        return out


class TimeMajor(nn.Module):
    """Rare dropout of whole rows, where rows and images share a dimension, rows first."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout1d(0.1)
        self.head = nn.Linear(784, 10)

    def forward(self, images: Tensor) -> Tensor:
        rows = images.view(images.size(0), 4, 196).transpose(0, 1).reshape(-1, 1, 196)
        kept = self.drop(rows.transpose(0, 1).transpose(0, 1))
        out: Tensor = self.head(kept.reshape(4, -1, 196).transpose(0, 1).flatten(1))
        return out


class BothOrders(nn.Module):
    """Images before rows in one place, rows before images in another."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Heads(weights=True, images_first=True), TimeMajor()

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.first(images) + self.second(images)
        return out


class Auxiliary(nn.Module):
    """A second head in train mode, with dropout of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.net = perceptron(0.5)
        self.other = nn.Sequential(nn.Flatten(), nn.Dropout(0.7), nn.Linear(784, 10))

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            return self.net(images), self.other(images)  # type: ignore[return-value]
        out: Tensor = self.net(images)
        return out


class UnreadHead(nn.Module):
    """A second head that is always computed, and read in train mode only."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop = nn.Linear(784, 40), nn.Dropout(0.5)
        self.head, self.other = nn.Linear(40, 10), nn.Linear(40, 3)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.drop(self.first(images.flatten(1)))
        out: Tensor = self.head(hidden)
        other = self.other(hidden)
        return (out, other) if self.training else out  # type: ignore[return-value]


class SizesByContent(nn.Module):
    """Values whose sizes depend on what is in the images, before and behind the dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop, self.head = nn.Linear(784, 40), nn.Dropout(0.5), nn.Linear(40, 10)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.drop(_positive(self.first(images.flatten(1))))
        out: Tensor = self.head(_positive(hidden))
        return out


def _positive(units: Tensor) -> Tensor:
    rows, columns = (units > 0).nonzero().unbind(1)
    return torch.zeros_like(units).index_put((rows, columns), units[rows, columns])


class WholeLogits(nn.Module):
    """Logits of an integer type."""

    def __init__(self) -> None:
        super().__init__()
        self.net = perceptron(0.5)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = (self.net(images) * 8).round().long()
        return out


class WritesIntoInput(nn.Module):
    """Normalises the images in place."""

    def __init__(self) -> None:
        super().__init__()
        self.net = perceptron(0.5)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.net(images.sub_(0.5).div_(0.5))
        return out


class ViewBehind(nn.Module):
    """A view that merges dimensions right behind a linear layer behind a dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.rows = nn.Linear(784, 40)
        self.head = nn.Linear(20, 5)

    def forward(self, images: Tensor) -> Tensor:
        rows = self.rows(self.drop(images.view(images.size(0), -1))).view(-1, 20)
        out: Tensor = self.head(torch.relu(rows)).view(-1, 10)
        return out


class DropConnect(nn.Module):
    """Dropout on a weight instead of on activations."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.weight = nn.Parameter(torch.rand(10, 784))

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = functional.linear(images.flatten(1), self.drop(self.weight))
        return out


class TwoMasks(nn.Module):
    """Dropout on the input and on the weight of one linear layer, and a dead branch."""

    def __init__(self) -> None:
        super().__init__()
        self.drop_input, self.drop_weight = nn.Dropout(0.5), nn.Dropout(0.3)
        self.weight = nn.Parameter(torch.randn(10, 784) / 28)
        self.bias = nn.Parameter(torch.zeros(10))
        self.dead = nn.Linear(784, 3)
        self.scale = nn.Parameter(torch.ones(784))

    def forward(self, images: Tensor) -> Tensor:
        units = self.drop_input(images.flatten(1))
        self.dead(units * self.scale)
        out: Tensor = functional.linear(units, self.drop_weight(self.weight), self.bias)
        return out


class MaskedWeight(nn.Module):
    """Dropout on the input of a linear layer, and on its weight right before."""

    def __init__(self) -> None:
        super().__init__()
        self.drop_input, self.drop_weight = nn.Dropout(0.5), nn.Dropout(0.3)
        self.linear = nn.Linear(784, 10)

    def forward(self, images: Tensor) -> Tensor:
        weight = self.drop_weight(self.linear.weight)
        units = self.drop_input(images.flatten(1))
        out: Tensor = functional.linear(units, weight, self.linear.bias)
        return out


class WritesOver(nn.Module):
    """In-place dropout on a view of a tensor that is read again: no graph can be split."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5, inplace=True)
        self.left, self.right = nn.Linear(784, 10), nn.Linear(1, 10)

    def forward(self, images: Tensor) -> Tensor:
        hidden = images * 2
        out: Tensor = self.left(self.drop(hidden.flatten(1))) + self.right(hidden.mean((2, 3)))
        return out


class AsksForTheBatchSize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = perceptron(0.5)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.net(images)
        return out if images.shape[0] > 0 else out * 100


class CountsImages(nn.Module):
    """A forward whose graph holds for one number of images only."""

    def __init__(self) -> None:
        super().__init__()
        self.net = perceptron(0.5)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.net(images) + torch.zeros(len(images), 1)
        return out


class Branching(nn.Module):
    """Control flow that depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.net = perceptron(0.5)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.net(images) if bool((images > -9).all()) else self.net(-images)
        return out


class Functional(nn.Module):
    """Batch norm and dropout as functions that ask for the module's mode."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 4, 5, stride=2)
        self.norm = nn.BatchNorm2d(4)
        self.other = nn.BatchNorm1d(20)
        self.hidden = nn.Linear(4 * 144, 20)
        self.head = nn.Linear(20, 10)

    def forward(self, images: Tensor) -> Tensor:
        maps = functional.relu(self.norm(self.convolution(images)))
        maps = functional.dropout2d(maps, 0.2, training=self.training)
        hidden = self.hidden(maps.flatten(1))
        hidden = functional.batch_norm(
            hidden,
            self.other.running_mean,
            self.other.running_var,
            self.other.weight,
            self.other.bias,
            training=self.training,
        )
        hidden = functional.dropout(functional.relu(hidden), 0.4, self.training, inplace=True)
        out: Tensor = self.head(hidden)
        return out


class Attention(nn.Module):
    """Scaled dot-product attention with dropout, each row of the image a token."""

    def __init__(self, *, causal: bool = False) -> None:
        super().__init__()
        self.qkv = nn.Linear(28, 84)
        self.head = nn.Linear(28, 10)
        self.causal = causal

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.qkv(images.squeeze(1)).unflatten(-1, (3, 4, 7)).permute(2, 0, 3, 1, 4)
        query, key, value = tokens.unbind(0)
        rate = 0.3 if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(
            query, key, value, dropout_p=rate, is_causal=self.causal, scale=3.0
        )
        out: Tensor = self.head(mixed.transpose(1, 2).flatten(2).mean(1))
        return out


class Heads(nn.Module):
    """``nn.MultiheadAttention``, with weights asked for or not, images first or second."""

    def __init__(self, *, weights: bool, images_first: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(28, 4, dropout=0.3, batch_first=images_first)
        self.head = nn.Linear(28, 10)
        self.weights, self.images_first = weights, images_first

    def forward(self, images: Tensor) -> Tensor:
        tokens = 3 * images.squeeze(1)
        tokens = tokens if self.images_first else tokens.transpose(0, 1)
        mixed, _ = self.attention(tokens, tokens, tokens, need_weights=self.weights)
        out: Tensor = self.head(mixed.mean(1 if self.images_first else 0))
        return out


class Transformer(nn.Module):
    """torch's encoder, whose eval mode takes a fused path."""

    def __init__(self, *, images_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(28, 4, 48, dropout=0.2, batch_first=images_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(28, 10)
        self.images_first = images_first

    def forward(self, images: Tensor) -> Tensor:
        tokens = images.squeeze(1)
        tokens = tokens if self.images_first else tokens.transpose(0, 1)
        out: Tensor = self.head(self.encoder(tokens).mean(1 if self.images_first else 0))
        return out


Depth = Literal["bernoulli_", "bernoulli", "rand", "rand_like"]


class DropPath(nn.Module):
    """Stochastic depth in the forms that are found in the wild."""

    def __init__(self, form: Depth) -> None:
        super().__init__()
        self.form = form

    def forward(self, hidden: Tensor) -> Tensor:
        keep, shape = 0.75, (hidden.shape[0], 1)
        if not self.training:
            return hidden
        if self.form == "bernoulli_":
            return hidden * hidden.new_empty(shape).bernoulli_(keep).div_(keep)
        if self.form == "bernoulli":
            return hidden * torch.bernoulli(torch.full(shape, keep)) / keep
        if self.form == "rand":
            return hidden.div(keep) * (keep + torch.rand(shape, dtype=hidden.dtype)).floor_()
        return hidden * (torch.rand_like(hidden[:, :1]) < keep) / keep


class Blocks(nn.Module):
    """Residual blocks that are skipped at random."""

    def __init__(self, form: Depth) -> None:
        super().__init__()
        self.stem = nn.Linear(784, 30)
        self.blocks = nn.ModuleList([nn.Linear(30, 30) for _ in range(2)])
        self.paths = nn.ModuleList([DropPath(form) for _ in range(2)])
        self.head = nn.Linear(30, 10)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.stem(images.flatten(1))
        for block, path in zip(self.blocks, self.paths, strict=True):
            hidden = hidden + path(torch.relu(block(hidden)))
        out: Tensor = self.head(hidden)
        return out


class Tied(nn.Module):
    """One weight in two places, and an auxiliary output in train mode only."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(784, 784, bias=False)
        self.outer = nn.Linear(784, 784)
        self.outer.weight = self.inner.weight
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(784, 10)

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.relu(self.inner(images.flatten(1)))
        out: Tensor = self.head(self.drop(torch.relu(self.outer(self.drop(hidden)))))
        return (out, hidden) if self.training else out  # type: ignore[return-value]


class Text(nn.Module):
    """Token ids through an embedding whose channels are dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 12)
        self.channels = nn.Dropout1d(0.3)
        self.units = nn.Dropout(0.2)
        self.head = nn.Linear(12, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        words = self.channels(self.words(tokens).transpose(1, 2))
        out: Tensor = self.head(self.units(words.amax(2)))
        return out


class LastWord(nn.Module):
    """What belongs to the last word of each text, picked by the number of the text."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 12)
        self.units = nn.Dropout(0.3)
        self.head = nn.Linear(12, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        words = self.units(self.words(tokens))
        last = (tokens % tokens.shape[1]).amax(1)
        out: Tensor = self.head(words[torch.arange(tokens.shape[0]), last])
        return out


class Repeated(nn.Module):
    """One layer called three times, between other dropouts each time."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(784, 24)
        self.layer = nn.Linear(24, 24)
        self.drop = nn.Dropout(0.4)
        self.head = nn.Linear(24, 10)

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.relu(self.enter(images.flatten(1)))
        hidden = torch.relu(self.layer(self.drop(hidden)))
        hidden = torch.relu(self.layer(self.drop(hidden)))
        hidden = hidden + torch.relu(self.layer(self.drop(hidden)))
        out: Tensor = self.head(self.drop(hidden))
        return out


class Views(nn.Module):
    """A forward that takes memory to be in order, by the size of the batch or by its length."""

    def __init__(self, *, counts: bool) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 4, 3, padding=1)
        self.pool = nn.MaxPool2d(4)
        self.drop = nn.Dropout(0.4)
        self.head = nn.Linear(196, 10)
        self.counts = counts

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.pool(torch.relu(self.convolution(images)))
        count = len(images) if self.counts else images.size(0)
        out: Tensor = self.head(self.drop(hidden.view(count, -1)))
        return out


class Recurrent(nn.Module):
    """Dropout between the layers of an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(28, 16, 2, dropout=0.4)
        self.head = nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        found, _ = self.lstm(images.squeeze(1).transpose(0, 1))
        out: Tensor = self.head(found[-1])
        return out


class ByName(nn.Module):
    """A last layer that is called by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(784, 20), nn.Linear(20, 10)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.head(input=torch.relu(self.hidden(images.flatten(1))))
        return out


def perceptron(rate: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 40), nn.ReLU(), nn.Dropout(rate), nn.Linear(40, 10)
    )


def volumes() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(2, 4, 3), nn.Dropout3d(0.4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 5)
    )


def self_normalising() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 5, stride=4),
        nn.SELU(),
        nn.FeatureAlphaDropout(0.2),
        nn.Flatten(),
        nn.AlphaDropout(0.3),
        nn.Linear(144, 10),
    )


def all_in_place() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 40),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5, inplace=True),
        nn.Linear(40, 40),
        nn.ELU(inplace=True),
        nn.Dropout(0.2, inplace=True),
        nn.Linear(40, 10),
    )


def vectors() -> nn.Module:
    return nn.Sequential(nn.Linear(9, 30), nn.GELU(), nn.Dropout(0.3), nn.Linear(30, 3))


def bare() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 40), nn.ReLU(), nn.Linear(40, 10))


@dataclass(frozen=True)
class Entry:
    """A build, the shape of its inputs ((): digits; ints: token ids), and the way it is run."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...] = ()
    tokens: bool = False
    loop: str = ""


ZOO: dict[str, Entry] = {
    "DigitNet": Entry(lambda: pretrained("mnist").model),
    "FashionNet": Entry(lambda: pretrained("fashion-mnist").model),
    "residual": Entry(Residual),
    "two heads": Entry(TwoHeads),
    "grouped": Entry(Grouped),
    "images before rows": Entry(lambda: Mixed(interleaved=False)),
    "rows before images": Entry(lambda: Mixed(interleaved=True)),
    "rare dropout of rows": Entry(TimeMajor),
    "both orders": Entry(BothOrders),
    "unread head": Entry(UnreadHead),
    "writes into its input": Entry(WritesIntoInput),
    "view behind": Entry(ViewBehind),
    "drop connect": Entry(DropConnect),
    "two masks": Entry(TwoMasks),
    "masked weight": Entry(MaskedWeight),
    "perceptron": Entry(lambda: perceptron(0.5)),
    "all in place": Entry(all_in_place),
    "dropout first": Entry(
        lambda: nn.Sequential(nn.Dropout(0.1), nn.Flatten(), nn.Linear(784, 10))
    ),
    "dropout last": Entry(lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10), nn.Dropout(0.3))),
    "partly off": Entry(lambda: nn.Sequential(nn.Dropout(0.0), *perceptron(0.25).children())),
    "functional": Entry(Functional),
    "attention": Entry(Attention),
    "causal attention": Entry(lambda: Attention(causal=True)),
    "heads": Entry(lambda: Heads(weights=True, images_first=True)),
    "heads without weights": Entry(lambda: Heads(weights=False, images_first=False)),
    "transformer": Entry(lambda: Transformer(images_first=True)),
    "transformer, rows first": Entry(lambda: Transformer(images_first=False)),
    "stochastic depth": Entry(lambda: Blocks("bernoulli_")),
    "stochastic depth, bernoulli": Entry(lambda: Blocks("bernoulli")),
    "stochastic depth, rand": Entry(lambda: Blocks("rand")),
    "stochastic depth, rand_like": Entry(lambda: Blocks("rand_like")),
    "self-normalising": Entry(self_normalising),
    "tied": Entry(Tied),
    "repeated": Entry(Repeated),
    "views": Entry(lambda: Views(counts=False)),
    "views by length": Entry(lambda: Views(counts=True), loop="the number of images"),
    "last word": Entry(LastWord, (15,), tokens=True),
    "volumes": Entry(volumes, (2, 6, 6, 6)),
    "vectors": Entry(vectors, (9,)),
    "text": Entry(Text, (15,), tokens=True),
    "inserted": Entry(lambda: insert_dropout(bare(), before="3", p=0.4)),
    "inserted, called by name": Entry(lambda: insert_dropout(ByName(), before="head", p=0.4)),
    "inserted twice": Entry(
        lambda: insert_dropout(insert_dropout(bare(), before="3", p=0.4), before="1", p=0.1)
    ),
    "branching": Entry(Branching, loop="torch.export cannot capture the forward pass"),
    "counts images": Entry(CountsImages, loop="fixes the number of images; avoid Python loops"),
    "writes over": Entry(WritesOver, loop="writes into a view of a tensor that is read later"),
    "asks for the batch size": Entry(AsksForTheBatchSize),
    "recurrent": Entry(Recurrent, loop="its graph contains 0 of 1 random operations"),
}


def build(name: str) -> nn.Module:
    """A model of the zoo in eval mode, with its norms' statistics off their starting values."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = ZOO[name].make()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
        return model.eval()


def inputs(name: str, digits: Tensor) -> Tensor:
    """As many inputs as there are digits."""
    entry = ZOO[name]
    if not entry.shape:
        return digits
    generator = torch.Generator().manual_seed(0)
    shape = (len(digits), *entry.shape)
    if entry.tokens:
        return torch.randint(50, shape, generator=generator)
    return torch.rand(shape, generator=generator)
