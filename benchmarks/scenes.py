"""Classifiers, their data and attacks on them, for the tables of detection; made once, then kept.

    python benchmarks/scenes.py [SCENE ...] [--out runs/detection]

The scene cifar-dev reads OUT/data/cifar-10, a folder as for ``leery.data.load``.

A scene is a classifier with its training data and two shuffled halves of its test data. Choices
(families, weights, the auxiliary's recipe) are made on the scenes named dev, with the first half of
the test data; results are judged on other scenes and the second half; docs/choosing.md lists the
choices that were made after results on these had been seen. Other exceptions: scikit-learn's
digits are few, and serve one scene of each kind, with other classifiers and divided otherwise;
cifar-dev has the shipped classifier; and the coloured articles for choosing are of both halves.
Adversarial images of a scene are kept one file per attack, under the SHA-256 of the classifier.
"""

import argparse
import runpy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from leery._checks import Bounds
from leery.attacks import BIM, FGSM, PGD, AdaptedAttack, Attack
from leery.classifiers import load_classifier, pretrained, save_classifier, train
from leery.data import load
from leery.models import fingerprint, normalized, predict

Labelled = tuple[Tensor, Tensor]

OUT = Path("runs/detection")


@dataclass(frozen=True)
class Cell:
    """An attack and how many images (classified right) it is run on."""

    attack: Attack
    count: int


@dataclass(frozen=True)
class Scene:
    """A classifier and its data.

    Attributes:
        model: the classifier, in eval mode.
        train: labelled training images.
        choosing: labelled test images, shuffled, on which choices are made.
        judging: other labelled test images, shuffled, on which results are judged.
        cells: attacks by name.
        judged: whether the attacks are on the images for judging, else on those for choosing.
        bounds: of the pixels.
        calibrated: the number of images that calibrate; the others are fresh.
    """

    model: nn.Module
    train: Labelled
    choosing: Labelled
    judging: Labelled
    cells: Mapping[str, Cell]
    judged: bool = True
    bounds: Bounds = (0.0, 1.0)
    calibrated: int = 2500

    @property
    def tested(self) -> Labelled:
        """The half of the test images that this scene is about."""
        return self.judging if self.judged else self.choosing

    @property
    def attacked(self) -> Labelled:
        """The images that attacks are run on, none of which calibrates; the last come first."""
        images, labels = self.tested
        return images[self.calibrated :].flip(0), labels[self.calibrated :].flip(0)


def halves(images: Tensor, labels: Tensor) -> tuple[Labelled, Labelled]:
    """Two shuffled halves: the order of test sets is often not exchangeable."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(2020))
    first, second = order.chunk(2)
    return (images[first], labels[first]), (images[second], labels[second])


def cells_of_digits(scale: float = 1.0) -> dict[str, Cell]:
    def few(count: int) -> int:
        return int(count * scale)

    own = {
        "FGSM 0.12": Cell(FGSM(0.12), few(2200)),
        "FGSM 0.30": Cell(FGSM(0.30), few(400)),
        "BIM 0.12": Cell(BIM(0.12), few(500)),
        "BIM 0.30": Cell(BIM(0.30), few(300)),
        "PGD 0.12": Cell(PGD(0.12), few(500)),
        "PGD 0.30": Cell(PGD(0.30), few(300)),
        "PGD-L2 2": Cell(PGD(2.0, norm="l2"), few(300)),
        "PGD-L2 4": Cell(PGD(4.0, norm="l2"), few(300)),
    }
    others = {
        "APGD 0.22": Cell(AdaptedAttack("apgd", 0.22), few(250)),
        "APGD 0.66": Cell(AdaptedAttack("apgd", 0.66), few(250)),
        "APGD-L2 4": Cell(AdaptedAttack("apgd", 4, "l2"), few(250)),
        "APGD-L2 8": Cell(AdaptedAttack("apgd", 8, "l2"), few(250)),
        "DeepFool": Cell(AdaptedAttack("deepfool"), few(250)),
        "DDN": Cell(AdaptedAttack("ddn"), few(250)),
        "Square 0.30": Cell(AdaptedAttack("square", 0.3), few(250)),
        "spatial": Cell(AdaptedAttack("spatial"), few(300)),
        "sparse": Cell(AdaptedAttack("sparse"), few(300)),
        "HopSkipJump": Cell(AdaptedAttack("hopskipjump"), few(80)),
        "C&W 0": Cell(AdaptedAttack("cw", 0), few(170)),
        "C&W 10": Cell(AdaptedAttack("cw", 10), few(170)),
    }
    return own | others


def cells_of_fashion(scale: float = 1.0) -> dict[str, Cell]:
    def few(count: int) -> int:
        return int(count * scale)

    own = {
        f"{attack.__name__} {epsilon:.2f}": Cell(attack(epsilon), few(500))
        for epsilon in (0.03, 0.12)
        for attack in (FGSM, BIM, PGD)
    }
    return own | {
        "PGD-L2 1": Cell(PGD(1.0, norm="l2"), few(300)),
        "PGD-L2 2": Cell(PGD(2.0, norm="l2"), few(300)),
        "DeepFool": Cell(AdaptedAttack("deepfool"), few(250)),
        "Square 0.12": Cell(AdaptedAttack("square", 0.12), few(300)),
        "spatial": Cell(AdaptedAttack("spatial"), few(300)),
        "sparse": Cell(AdaptedAttack("sparse"), few(300)),
        "C&W 0": Cell(AdaptedAttack("cw", 0), few(170)),
    }


def trained(dataset: str, seed: int, out: Path) -> nn.Module:
    """The dataset's network from that seed; seed 0 ships with leery."""
    if seed == 0:
        return pretrained(dataset).model
    folder = out / f"{dataset}-seed-{seed}"
    if not (folder / f"{dataset}.json").exists():
        save_classifier(train(dataset, seed=seed), folder)
    return load_classifier(folder, dataset).model


def cells_of_photographs() -> dict[str, Cell]:
    own = {
        f"{attack.__name__} {shown}": Cell(attack(epsilon), 300)
        for shown, epsilon in (("2/255", 2 / 255), ("8/255", 8 / 255))
        for attack in (FGSM, PGD)
    }
    return own | {
        "PGD-L2 0.5": Cell(PGD(0.5, norm="l2"), 300),
        "PGD-L2 1": Cell(PGD(1.0, norm="l2"), 300),
        "APGD 8/255": Cell(AdaptedAttack("apgd", 8 / 255), 150),
        "DeepFool": Cell(AdaptedAttack("deepfool"), 300),
        "DDN": Cell(AdaptedAttack("ddn"), 300),
        "Square 8/255": Cell(AdaptedAttack("square", 8 / 255), 80),
        "spatial": Cell(AdaptedAttack("spatial"), 300),
        "sparse": Cell(AdaptedAttack("sparse"), 80),
    }


def of_dataset(
    dataset: str,
    seed: int,
    cells: Mapping[str, Cell],
    out: Path,
    *,
    judged: bool,
    root: Path | None = None,
) -> Scene:
    choosing, judging = halves(*load(dataset, "test", root))
    model = trained(dataset, seed, out)
    return Scene(model, load(dataset, "train", root), choosing, judging, cells, judged)


def cells_of_strangers(strengths: tuple[float, float, float]) -> dict[str, Cell]:
    own = {f"PGD {epsilon:g}": Cell(PGD(epsilon), 300) for epsilon in strengths}
    return {
        f"FGSM {strengths[1]:g}": Cell(FGSM(strengths[1]), 800),
        **own,
        "DeepFool": Cell(AdaptedAttack("deepfool"), 150),
        "C&W 0": Cell(AdaptedAttack("cw", 0), 100),
    }


def fitted_classifier(model: nn.Module, data: Labelled, path: Path, epochs: int) -> nn.Module:
    """A classifier trained by Adam on the cross-entropy, once, then read again."""
    if path.exists():
        model.load_state_dict(load_file(path))
        return model.eval()
    images, labels = data
    optimiser = torch.optim.Adam(model.parameters())
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(64):
            optimiser.zero_grad()
            functional.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimiser.step()
    save_file(model.state_dict(), path)
    return model.eval()


def enlarged(size: int, seed: int) -> tuple[Labelled, Labelled]:
    """scikit-learn's 8 x 8 digits, enlarged; 900 train, the other 897 test."""
    data = load_digits()
    images = torch.from_numpy(data.images / 16).float().unsqueeze(1)
    images = functional.interpolate(images, size=size, mode="bilinear").clamp(0, 1)
    labels = torch.from_numpy(data.target).long()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return (images[order[:900]], labels[order[:900]]), (images[order[900:]], labels[order[900:]])


def enlarged_for_choosing(out: Path) -> Scene:
    """Enlarged digits and a net with batch normalisation."""
    train, test = enlarged(16, seed=7)
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(24, 48, 3, padding=1), nn.BatchNorm2d(48), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(768, 10)),
    )
    model = fitted_classifier(model, train, out / "enlarged-digits.safetensors", 30)
    return Scene(model, train, test, test, cells_of_strangers((0.05, 0.1, 0.2)), calibrated=450)


def enlarged_digits(out: Path) -> Scene:
    """Enlarged digits and a net of separable convolutions that averages over the image."""
    train, test = enlarged(20, seed=8)
    torch.manual_seed(1)
    model = nn.Sequential(
        *(nn.Conv2d(1, 32, 4, stride=2), nn.GELU()),
        *(nn.Conv2d(32, 32, 3, groups=32), nn.Conv2d(32, 64, 1), nn.GELU()),
        *(nn.Conv2d(64, 64, 3, groups=64), nn.Conv2d(64, 128, 1), nn.GELU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(512, 10)),
    )
    model = fitted_classifier(model, train, out / "strange-enlarged.safetensors", 40)
    return Scene(model, train, test, test, cells_of_strangers((0.05, 0.1, 0.2)), calibrated=450)


def coloured(images: Tensor, labels: Tensor, count: int) -> Labelled:
    """Some digits or articles in random colours on random backgrounds, 32 x 32 RGB."""
    generator = torch.Generator().manual_seed(len(images))
    rows = torch.randperm(len(images), generator=generator)[:count]
    shapes = functional.pad(images[rows], (2, 2, 2, 2))
    front, back = (torch.rand(count, 3, 1, 1, generator=generator) for _ in range(2))
    back = 0.5 * back
    texture = 0.05 * torch.randn(count, 3, 32, 32, generator=generator)
    front = 0.5 + 0.5 * front
    made = shapes * front + (1 - shapes) * back + texture
    return made.clamp(0, 1), labels[rows]


def coloured_digits(out: Path) -> Scene:
    """Coloured digits and a residual net of normalised images."""
    train = coloured(*load("mnist", "train"), 20_000)
    test = coloured(*halves(*load("mnist", "test"))[1], 5000)
    torch.manual_seed(0)
    model = Residual()
    mean, std = (train[0].mean((0, 2, 3)).tolist(), train[0].std((0, 2, 3)).tolist())
    defended = fitted_classifier(
        normalized(model, mean, std), train, out / "coloured-digits.safetensors", 4
    )
    return Scene(defended, train, test, test, cells_of_strangers((0.02, 0.05, 0.1)))


class Residual(nn.Module):
    """A small residual network."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                *(nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1)),
                *(nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1)),
            )
            for _ in range(2)
        )
        self.head = nn.Linear(24 * 16, 10)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.stem(images)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        pooled = functional.adaptive_avg_pool2d(hidden.relu(), 4)
        logits: Tensor = self.head(pooled.flatten(1))
        return logits


def coloured_for_choosing(out: Path) -> Scene:
    """Coloured articles and a plain deep net of normalised images."""
    train = coloured(*load("fashion-mnist", "train"), 15_000)
    test = coloured(*load("fashion-mnist", "test"), 6000)
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in ((3, 16), (16, 32), (32, 48)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(768, 64), nn.ReLU(), nn.Linear(64, 10))
    defended = fitted_classifier(
        normalized(model, [0.5] * 3, [0.25] * 3), train, out / "coloured-dev.safetensors", 5
    )
    return Scene(defended, train, test, test, cells_of_strangers((0.01, 0.02, 0.05)))


def few_digits_for_choosing(out: Path) -> Scene:
    """3,000 digits and a net of hyperbolic tangents."""
    images, labels = load("mnist", "train")
    train, test = (images[:3000], labels[:3000]), halves(*load("mnist", "test"))[0]
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 8, 5), nn.Tanh(), nn.AvgPool2d(2)),
        *(nn.Conv2d(8, 16, 5), nn.Tanh(), nn.AvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(256, 64), nn.Tanh(), nn.Linear(64, 10)),
    )
    model = fitted_classifier(model, train, out / "few-dev.safetensors", 15)
    return Scene(model, train, test, test, cells_of_strangers((0.05, 0.1, 0.2)))


def plain_digits(out: Path) -> Scene:
    """Digits and a net without dropout."""
    train, test = load("mnist", "train"), halves(*load("mnist", "test"))[1]
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 16, 5, stride=2), nn.GELU(), nn.Conv2d(16, 32, 5, stride=2), nn.GELU()),
        *(nn.Flatten(), nn.Linear(512, 100), nn.GELU(), nn.Linear(100, 10)),
    )
    model = fitted_classifier(model, train, out / "plain-digits.safetensors", 4)
    return Scene(model, train, test, test, cells_of_strangers((0.1, 0.2, 0.3)))


def transformer_digits(out: Path) -> Scene:
    """Digits and the vision transformer of examples/."""
    script = runpy.run_path("examples/transformer.py")
    train, test = load("mnist", "train"), halves(*load("mnist", "test"))[1]
    torch.manual_seed(0)
    path = out / "transformer-digits.safetensors"
    model = fitted_classifier(script["VisionTransformer"](), train, path, 5)
    return Scene(model, train, test, test, cells_of_strangers((0.05, 0.1, 0.2)))


SCENES: Mapping[str, Callable[[Path], Scene]] = {
    "cifar-dev": lambda out: of_dataset(
        "cifar-10", 0, cells_of_photographs(), out, judged=False, root=out / "data"
    ),
    "digits-dev": lambda out: of_dataset("mnist", 11, cells_of_digits(0.5), out, judged=False),
    "fashion-dev": lambda out: of_dataset(
        "fashion-mnist", 11, cells_of_fashion(0.5), out, judged=False
    ),
    **{
        f"digits-{seed}": partial(
            lambda seed, out: of_dataset("mnist", seed, cells_of_digits(), out, judged=True), seed
        )
        for seed in range(3)
    },
    "strange-dev-enlarged": enlarged_for_choosing,
    "strange-dev-coloured": coloured_for_choosing,
    "strange-dev-few": few_digits_for_choosing,
    "strange-enlarged": enlarged_digits,
    "strange-coloured": coloured_digits,
    "strange-plain": plain_digits,
    "strange-transformer": transformer_digits,
    "fashion-0": lambda out: of_dataset("fashion-mnist", 0, cells_of_fashion(), out, judged=True),
}


def attacked(scene: Scene, name: str, out: Path) -> Path:
    """The file of a cell's adversarial images, made where it is missing.

    It holds images, labels, source (the index among the attacked images) and success.
    """
    folder = out / fingerprint(scene.model)[:12]
    path = folder / f"{name.replace(' ', '_').replace('&', 'n').replace('/', '-')}.safetensors"
    if path.exists():
        return path
    images, labels = scene.attacked
    right = torch.nonzero(predict(scene.model, images) == labels).squeeze(1)
    cell = scene.cells[name]
    rows = right[: cell.count]
    start = time.perf_counter()
    made = cell.attack(scene.model, images[rows], labels[rows])
    success = predict(scene.model, made) != labels[rows]
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"images": made, "labels": labels[rows], "source": rows, "success": success}, path)
    seconds = time.perf_counter() - start
    print(f"{name}: {int(success.sum())} of {len(rows)} in {seconds:.0f} s", flush=True)
    return path


def successes(scene: Scene, name: str, out: Path = OUT) -> Labelled:
    """The successful adversarial images of a cell, and their true classes."""
    held = load_file(attacked(scene, name, out))
    return held["images"][held["success"]], held["labels"][held["success"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenes", nargs="*", default=list(SCENES))
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    for name in given.scenes:
        print(name, flush=True)
        scene = SCENES[name](given.out)
        for cell in scene.cells:
            attacked(scene, cell, given.out)


if __name__ == "__main__":
    main()
