"""The pieces that are measured: what everyone does, whether they agree, what the floor is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from models import ResNet18, VisionTransformer, default_layout
from pairs import Machine, Timed, Work, in_turn
from rivals import ATTACKS, DENSITIES, PASSES, SIX, AttackSetting, Fitted, one_leaf
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from leery import Detector, data
from leery.attacks import BIM, PGD
from leery.mc_dropout import MCDropout
from leery.metrics import KernelDensity, mutual_information, predictive_entropy, variance

__all__ = ["PIECES", "Bench", "Row"]

BANDWIDTHS = {"mnist": 1.7, "fashion-mnist": 1.0}
NETWORKS = {"mnist": "DigitNet", "fashion-mnist": "FashionNet"}


@dataclass(frozen=True)
class Row:
    """One contestant on one setting.

    Attributes:
        piece: what is measured.
        setting: on what.
        contestant: who.
        per_second: units a second, from the median of the rounds; None when it is missing.
        unit: what is counted.
        ratio: how many times as long as leery: median, least, most; None for leery.
        share: of leery, the floor's seconds over its own.
        note: how the outputs agree, or why the contestant is missing.
        agrees: whether they do.
    """

    piece: str
    setting: str
    contestant: str
    per_second: float | None
    unit: str
    ratio: tuple[float, float, float] | None = None
    share: float | None = None
    note: str = ""
    agrees: bool = True


Agreement = Callable[[Any, Any], tuple[bool, str]]


@dataclass
class Bench:
    """Runs contestants in turn and keeps the rows.

    Attributes:
        machine: for the floors.
        rounds: of each comparison.
        scale: of the numbers of images, for trials; 1 for figures that count.
    """

    machine: Machine
    rounds: int
    scale: float = 1.0
    rows: list[Row] = field(default_factory=list)

    def images(self, count: int) -> int:
        return max(64, int(count * self.scale))

    def compare(
        self,
        piece: str,
        setting: str,
        works: Mapping[str, Work],
        *,
        units: tuple[int, str],
        agree: Agreement,
        floor: float | None = None,
        rounds: int | None = None,
    ) -> Timed:
        """Time "leery" and the rivals whose output agrees or not, and note who is missing or fails.

        Args:
            piece, setting: what is measured, on what.
            works: each contestant's, which returns its output.
            units: how many of what are worked on.
            agree: of our output and a rival's.
            floor: seconds.
            rounds: when not as many as of the others.
        """
        present, verdicts, missing = {"leery": works["leery"]}, {}, []
        own = works["leery"]()
        for name in (name for name in works if name != "leery"):
            try:
                verdicts[name] = agree(own, works[name]())
                present[name] = works[name]
            except ImportError as error:
                missing.append((name, f"missing: {error}"))
            except Exception as error:  # noqa: BLE001 - that a rival fails is a result
                missing.append((name, f"fails: {type(error).__name__}: {error}"))
        timed = in_turn(present, rounds or self.rounds)
        count, unit = units
        for name in works:
            if name in present:
                median = timed.median(name)
                agrees, note = verdicts.get(name, (True, ""))
                ours = name == "leery"
                row = Row(
                    piece, setting, name, count / median, unit,
                    ratio=None if ours else timed.ratio(name),
                    share=floor / median if ours and floor else None,
                    note=note, agrees=agrees,
                )  # fmt: skip
                self.rows.append(row)
                print(row, flush=True)
        self.rows += [Row(piece, setting, name, None, unit, note=note) for name, note in missing]
        return timed


def alike(ours: Tensor, theirs: Tensor) -> tuple[bool, str]:
    """Whether passes ``(T, N, classes)`` look like draws of the same masks' distribution.

    Masks differ, so image by image nothing is equal; but over all images the differences of what
    an image's passes say cancel out: their mean stays within 4.5 standard errors of zero. Who
    gives the mean of the passes only is held to that.
    """
    of_means, of_passes = (_class_means, predictive_entropy), (mutual_information, variance)
    scores = []
    for statistic in of_means if len(theirs) == 1 else (*of_means, *of_passes):
        differences = statistic(ours.double()) - statistic(theirs.double())
        error = differences.std(0) / len(differences) ** 0.5
        scores.append((differences.mean(0).abs() / (error + 1e-9)).max())
    worst = float(torch.stack(scores).max())
    return worst < 4.5, f"at most {worst:.1f} standard errors apart"


def _class_means(probs: Tensor) -> Tensor:
    return probs.mean(0)


def operations(model: nn.Module, images: Tensor) -> float:
    """Of a forward pass, an image."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images[:16])
    return float(counter.get_total_flops()) / 16


def passes(bench: Bench) -> None:
    """MC dropout: four networks; 10, 50 and 200 passes."""
    torch.manual_seed(0)
    digits = data.load("mnist", "test")[0]
    cases = {
        "DigitNet": (default_layout("mnist"), digits[: bench.images(2048)]),
        "FashionNet": (
            default_layout("fashion-mnist"),
            data.load("fashion-mnist", "test")[0][: bench.images(768)],
        ),
        "ResNet-18, 64 x 64 pixels": (ResNet18().eval(), torch.rand(bench.images(64), 3, 64, 64)),
        "small vision transformer": (VisionTransformer().eval(), digits[: bench.images(256)]),
    }
    for name, (model, images) in cases.items():
        found = {count: _passes(bench, name, model, images, count) for count in (10, 50, 200)}
        _repeated(bench, name, model, images, found)


def _passes(bench: Bench, name: str, model: nn.Module, images: Tensor, count: int) -> float:
    sampler = MCDropout(model, count)
    repeated = sampler.explain_plan(images).repeated
    rivals = PASSES if count == 50 else {"authors' loop": PASSES["authors' loop"]}
    timed = bench.compare(
        "MC dropout",
        f"{name}, T = {count}",
        {
            "leery": lambda: sampler.sample(images),
            **{rival: partial(work, model, images, count) for rival, work in rivals.items()},
        },
        units=(len(images), "images"),
        agree=alike,
        floor=len(images)
        * operations(model, images)
        * (1 + count * repeated)
        / bench.machine.multiply32,
        rounds=bench.rounds if count == 50 else 3,
    )
    return timed.median("leery")


def _repeated(
    bench: Bench, name: str, model: nn.Module, images: Tensor, seconds: Mapping[int, float]
) -> None:
    """What a pass costs: 200 passes less 10, which take the same deterministic part."""
    repeated = MCDropout(model, 10).explain_plan(images).repeated
    floor = len(images) * operations(model, images) * repeated / bench.machine.multiply32
    one = (seconds[200] - seconds[10]) / 190
    setting, unit = f"{name}, the repeated part", "passes of an image"
    row = Row("MC dropout", setting, "leery", len(images) / one, unit, share=floor / one)
    bench.rows.append(row)
    print(row, flush=True)


def six_metrics(bench: Bench) -> None:
    """All six metrics, T = 50, against the authors' way and the fastest peers put together."""
    for dataset, count in (("mnist", 10_000), ("fashion-mnist", 1000)):
        model = default_layout(dataset)
        images = data.load(dataset, "test")[0][: bench.images(count)]
        detector = Detector(model, "hidden", bandwidth=BANDWIDTHS[dataset])
        detector.fit(*data.load(dataset, "train"))
        _six(bench, NETWORKS[dataset], detector, images)
    torch.manual_seed(0)
    images = torch.rand(bench.images(1024) + 64, 3, 64, 64)
    detector = Detector(ResNet18(10).eval(), bandwidth=1.0)
    detector.fit(images[:-64], torch.arange(len(images) - 64) % 10)
    _six(bench, "ResNet-18, 64 x 64 pixels", detector, images[-64:])


def _six(bench: Bench, name: str, detector: Detector, images: Tensor) -> None:
    assert detector.closeness_ is not None
    density = detector.closeness_["kernel_density"]
    assert isinstance(density, KernelDensity)
    layer = detector.feature_layer_
    bandwidth = next(iter(density.bandwidth_.values()))
    fitted = Fitted(str(layer), bandwidth, density.reference_)
    numbers = sum(map(Tensor.numel, density.reference_.values())) / len(density.reference_)
    repeated = detector.explain_plan().repeated
    each = operations(detector.model, images) * (1 + 50 * repeated) / bench.machine.multiply32
    each += 2 * numbers / bench.machine.multiply64
    bench.compare(
        "six metrics, end to end",
        f"{name}, T = 50, {len(images):,} images",
        {
            "leery": lambda: detector.measure(images).values,
            **{
                rival: partial(work, detector.model, images, 50, fitted)
                for rival, work in SIX.items()
            },
        },
        units=(len(images), "images"),
        agree=_same_metrics,
        floor=len(images) * each,
    )


def _same_metrics(ours: np.ndarray, theirs: np.ndarray) -> tuple[bool, str]:
    """Closeness must be the same; uncertainty as alike as other masks allow.

    Not of every image: scikit-learn's trees, where they prune, lose the far ones.
    """
    off = np.abs(ours[:, 4:] - theirs[:, 4:]).max(1)
    doubt = float(np.abs(ours[:, 3] - theirs[:, 3]).mean())
    note = (
        f"closeness to {np.median(off):.0e}, of the worst image to {off.max():.0e}; confidence to "
        f"{doubt:.3f} on average"
    )
    return float(np.median(off)) < 1e-4 and doubt < 0.03, note


def densities(bench: Bench) -> None:
    """Kernel density of one class: real digits, then larger and wider references."""
    detector = Detector(default_layout("mnist"), "hidden", metrics=("kernel_density",))
    images, labels = data.load("mnist", "train")
    points = detector.fit(images, labels).features(images[labels == 1][:6131])[0]
    test, truth = data.load("mnist", "test")
    queries = detector.features(test[truth == 1][: bench.images(512)])[0]
    _density(bench, "digits' features", points, queries, 1.7, DENSITIES)
    usual = ("scikit-learn, a sample a call", "scikit-learn, one call, one leaf")
    generator = torch.Generator().manual_seed(0)
    for count, width, asked, rivals in (
        (30_000, 128, 128, usual),
        (100_000, 128, 64, usual),
        (6000, 2048, 128, usual),
        (100_000, 2048, 32, usual[1:]),
    ):
        points, queries = (
            torch.randn(size, width, generator=generator).relu() for size in (count, asked)
        )
        h = 0.15 * width**0.5
        _density(bench, "drawn", points, queries, h, {name: DENSITIES[name] for name in rivals})


def _density(
    bench: Bench,
    what: str,
    points: Tensor,
    queries: Tensor,
    bandwidth: float,
    rivals: Mapping[str, Callable[[np.ndarray, float], Callable[[np.ndarray], np.ndarray]]],
) -> None:
    zeros = torch.zeros(max(len(points), len(queries)), dtype=torch.int64)
    own = KernelDensity(bandwidth).fit(points, zeros[: len(points)])
    there = points.double().numpy()
    asked = queries.double().numpy()
    fitted = {name: make(there, bandwidth) for name, make in rivals.items()}
    exact = one_leaf(there, bandwidth)(asked)
    bench.compare(
        "kernel density",
        f"{len(points):,} {what}, D = {points.shape[1]:,}, {len(queries)} queries",
        {
            "leery": lambda: own.score(queries, zeros[: len(queries)]).numpy(),
            **{name: partial(score, asked) for name, score in fitted.items()},
        },
        units=(len(queries), "queries"),
        agree=partial(_same_densities, exact),
        floor=2 * len(queries) * points.numel() / bench.machine.multiply64,
    )


def _same_densities(exact: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> tuple[bool, str]:
    """Ours must be the exact sum; scikit-learn's trees, where they prune, are not."""
    own, other = (float(np.abs(found - exact).max()) for found in (ours, theirs))
    note = "exact" if other == 0 else f"{other:.0e} off the exact sum"
    return own < 1e-4, f"{note}, leery {own:.0e}"


def attacks(bench: Bench) -> None:
    """Gradients a second of BIM and PGD."""
    for dataset, count in (("mnist", 512), ("fashion-mnist", 256)):
        model = default_layout(dataset)
        images, labels = (part[: bench.images(count)] for part in data.load(dataset, "test"))
        for name, setting, own in (
            ("BIM", AttackSetting(0.12, 0.024, 10, random_start=False), BIM(0.12)),
            ("PGD", AttackSetting(0.12, 0.004, 40, random_start=True), PGD(0.12)),
        ):
            bench.compare(
                "attacks",
                f"{name}, {NETWORKS[dataset]}, {setting.steps} steps, {len(images)} images",
                {
                    "leery": partial(own, model, images, labels),
                    **{
                        rival: partial(work, model, images, labels, setting)
                        for rival, work in ATTACKS.items()
                    },
                },
                units=(len(images) * setting.steps, "gradients"),
                agree=partial(_same_twins, model, labels, setting),
                floor=len(images)
                * setting.steps
                * 2
                * operations(model, images)
                / bench.machine.multiply32,
            )


@torch.no_grad()
def _same_twins(
    model: nn.Module, labels: Tensor, setting: AttackSetting, ours: Tensor, theirs: Tensor
) -> tuple[bool, str]:
    """Pixel by pixel but for random starts; the success must be the same in any case."""
    success, other = (
        float((model(twins).argmax(1) != labels).double().mean()) for twins in (ours, theirs)
    )
    note = f"success {other:.1%} against {success:.1%}"
    error = (2 * max(success * (1 - success), 0.01) / len(labels)) ** 0.5
    same = abs(success - other) < 4 * error
    if setting.random_start:
        return same, note
    differing = float(((ours - theirs).abs() > 1e-4).double().mean())
    return same and differing < 0.02, f"{differing:.2%} of pixels differ, {note}"


def fit(bench: Bench) -> None:
    """From training images to a fitted detector."""
    model = default_layout("mnist")
    images, labels = (part[: bench.images(60_000)] for part in data.load("mnist", "train"))
    detector = Detector(model, "hidden", bandwidth=1.7)
    bench.compare(
        "fit",
        f"DigitNet, {len(images):,} images",
        {"leery": lambda: detector.fit(images, labels)},
        units=(len(images), "images"),
        agree=lambda *_: (True, ""),
        floor=len(images) * operations(model, images) / bench.machine.multiply32,
    )


PIECES: Mapping[str, Callable[[Bench], None]] = {
    "kde": densities,
    "attacks": attacks,
    "passes": passes,
    "six": six_metrics,
    "fit": fit,
}
