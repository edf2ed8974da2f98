"""The pieces that are measured: what everyone does, whether they agree, what the floor is."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from pairs import Machine, Operations, Timed, Work, in_turn, spread
from rivals import (
    ATTACKS,
    DENSITIES,
    PASSES,
    SIX,
    AttackSetting,
    Fitted,
    leery_attack,
    one_leaf,
    peers_six,
)
from scipy.stats import t as student
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from leery import PAPER_METRICS, RECOMMENDED_METRICS, Detector, data
from leery.attacks import PGD, CrossEntropy, GradientAttack
from leery.classifiers import RECIPES, accuracy, train
from leery.mc_dropout import MCDropout, Plan
from leery.metrics import KernelDensity
from leery.training import AuxiliaryNetwork, AuxiliaryRecipe, TrainingSet, train_auxiliary
from models import ResNet18, VisionTransformer, default_layout, waves

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
        share: of leery, the floor's seconds over its own: median, least, most.
        note: how the outputs agree, or why the contestant is missing.
        agrees: whether they do.
        stray: whether it differs from the rival that is the reference: it does something else.
    """

    piece: str
    setting: str
    contestant: str
    per_second: float | None
    unit: str
    ratio: tuple[float, float, float] | None = None
    share: tuple[float, float, float] | None = None
    note: str = ""
    agrees: bool = True
    stray: bool = False


Agreement = Callable[[Any, Any], tuple[bool, str]]


@dataclass
class Bench:
    """Runs contestants in turn and keeps the rows.

    Attributes:
        rounds: of each comparison.
        scale: of the numbers of images, for trials; 1 for figures that count.
        device: of the models and images.
        threads: that torch has.
        rows: what was found.
        machines: what the machine did, measured once in each round.
    """

    rounds: int
    scale: float = 1.0
    device: str = "cpu"
    threads: int = 1
    rows: list[Row] = field(default_factory=list)
    machines: list[Machine] = field(default_factory=list)

    def images(self, count: int) -> int:
        """So many, or as many of them as this run asks for."""
        return max(64, int(count * self.scale))

    def compare(
        self,
        piece: str,
        setting: str,
        works: Mapping[str, Work],
        *,
        units: tuple[int, str],
        agree: Agreement,
        floor: Operations,
        rounds: int | None = None,
        reference: str | None = None,
        checked: Mapping[str, Work] | None = None,
    ) -> None:
        """Time "leery" and the rivals whose output agrees or not, and note who is missing or fails.

        Args:
            piece, setting: what is measured, on what.
            works: each contestant's, which returns its output.
            units: how many of what are worked on.
            agree: of our output and a rival's.
            floor: what must be computed.
            rounds: when not as many as of the others.
            reference: the rival, ahead of the others, whose output theirs must be like as well.
            checked: what gives the outputs that are held together, where that is not the works.
        """
        checked = checked or works
        present, verdicts, missing = {"leery": works["leery"]}, {}, []
        outputs = {"leery": checked["leery"]()}
        for name in (name for name in works if name != "leery"):
            try:
                outputs[name] = checked[name]()
                verdicts[name] = _verdict(agree, outputs, name, reference)
                present[name] = works[name]
            except ImportError as error:
                missing.append((name, f"missing: {error}"))
            except Exception as error:  # that a rival fails is a result
                missing.append((name, f"fails: {type(error).__name__}: {error}"))
        timed, machines = self.timed(present, rounds or self.rounds)
        floors = [floor.seconds(machine) for machine in machines]
        shares = [least / own for least, own in zip(floors, timed.seconds["leery"], strict=True)]
        count, unit = units
        for name in works:
            if name in present:
                median = timed.median(name)
                ours = name == "leery"
                row = Row(
                    piece, setting, name, count / median, unit,
                    ratio=None if ours else timed.ratio(name),
                    share=spread(shares) if ours else None,
                    **verdicts.get(name, {}),
                )  # fmt: skip
                self.rows.append(row)
                print(row, flush=True)
        self.rows += [Row(piece, setting, name, None, unit, note=note) for name, note in missing]

    def timed(self, works: Mapping[str, Work], rounds: int) -> tuple[Timed, list[Machine]]:
        """In turn, with what the machine does in each round."""
        machines: list[Machine] = []
        contestants = {**works, "machine": lambda: machines.append(Machine.measured(self.device))}
        timed = in_turn(contestants, rounds)
        self.machines += machines
        return timed, machines


def _verdict(
    agree: Agreement, outputs: Mapping[str, Any], name: str, reference: str | None
) -> dict[str, Any]:
    """A rival's output against leery's and, if that was found, the reference's."""
    if reference in outputs:
        same, note = agree(outputs[reference], outputs[name])
        if not same:
            return {"agrees": False, "stray": True, "note": f"unlike the {reference}, {note}"}
    agrees, note = agree(outputs["leery"], outputs[name])
    return {"agrees": agrees, "note": note}


def alike(ours: Tensor, theirs: Tensor) -> tuple[bool, str]:
    """Whether passes ``(T, N, classes)`` look like draws of the same masks' distribution.

    Masks differ, so nothing is equal. Ours are shared by all images, so only passes are independent
    of each other, and we are held to a rival less tightly than rivals, who draw each image's apart,
    to one another. What a pass says of the images on average (each class's probability, the
    entropy, the sum of squares, how far the pass is from the mean of all) is held together by
    t-tests, with Bonferroni's correction. Who gives the mean of the passes only is held to the
    probabilities. Image by image the means of all passes are held together: they must be no
    further apart than the means of our odd and our even passes let expect.
    """
    alone = len(theirs) == 1
    own, other = (_of_each_pass(probs.double(), alone=alone) for probs in (ours, theirs))
    others_variance = own.var(0) if alone else other.var(0)
    error = ((own.var(0) + others_variance) / len(own)).sqrt()
    worst = float(((own.mean(0) - other.mean(0)).abs() / (error + 1e-9)).max())
    p = min(1.0, 2 * float(student.sf(worst, len(own) - 1)) * own.shape[1])
    # Two means of T passes differ by 2 / T of a pass's variance, those of T / 2 by 4 / T.
    halves = (ours[::2].mean(0) - ours[1::2].mean(0)).norm() / 2**0.5
    apart = float((ours.mean(0) - theirs.mean(0)).norm() / halves)
    note = f"at most {worst:.1f} standard errors apart, p = {p:.2g}; images {apart:.2f} times"
    return p > 1e-3 and apart < _APART, note


_APART = 2.0
"""Times as far as chance would have it: means over images with shared masks vary more."""


def _of_each_pass(probs: Tensor, *, alone: bool) -> Tensor:
    classes = probs.mean(1)
    if alone:
        return classes
    entropies = -torch.special.xlogy(probs, probs).sum(2).mean(1, keepdim=True)
    squares = probs.square().sum(2).mean(1, keepdim=True)
    distances = (probs - probs.mean(0)).square().sum(2).mean(1, keepdim=True)
    return torch.cat([classes, entropies, squares, distances], 1)


def operations(model: nn.Module, images: Tensor) -> float:
    """Of a forward pass, an image."""
    # What runs on the fast path of attention is not counted.
    torch.backends.mha.set_fastpath_enabled(False)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images[:16])
    torch.backends.mha.set_fastpath_enabled(True)
    return float(counter.get_total_flops()) / 16


def passes(bench: Bench) -> None:
    """MC dropout: four networks; 10, 50 and 200 passes."""
    torch.manual_seed(0)
    digits = data.load("mnist", "test")[0]
    cases = {
        "DigitNet": (default_layout("mnist"), digits[: bench.images(2048)]),
        "FashionNet": (
            default_layout("fashion-mnist"),
            data.load("fashion-mnist", "test")[0][: bench.images(512)],
        ),
        "ResNet-18, 64 x 64 pixels": (ResNet18().eval(), waves(bench.images(64))),
        "small vision transformer": (VisionTransformer().eval(), digits[: bench.images(256)]),
    }
    for name, case in cases.items():
        model, images = (part.to(bench.device) for part in case)
        for count in (10, 50, 200):
            _passes(bench, name, model, images, count)
        _repeated(bench, name, model, images)
        _first_call(bench, name, model, images)


def alone(bench: Bench) -> None:
    """The passes of digits on one thread."""
    bench.threads = 1
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    images = data.load("mnist", "test")[0][: bench.images(2048)]
    _passes(bench, "DigitNet", default_layout("mnist"), images, 50)
    _repeated(bench, "DigitNet", default_layout("mnist"), images)
    torch.set_num_threads(threads)


def _passes(bench: Bench, name: str, model: nn.Module, images: Tensor, count: int) -> None:
    sampler = MCDropout(model, count)
    rivals = PASSES if count == 50 else {"authors' loop": PASSES["authors' loop"]}
    bench.compare(
        _on(bench, "MC dropout"),
        f"{name}, T = {count}" + ("" if count == 50 else ", 3 rounds"),
        {
            "leery": lambda: sampler.sample(images),
            **{rival: partial(work, model, images, count) for rival, work in rivals.items()},
        },
        units=(len(images), "images"),
        agree=alike,
        reference="authors' loop",
        floor=_floor(model, images, sampler.explain_plan(images), count),
        rounds=bench.rounds if count == 50 else 3,
    )


def _on(bench: Bench, piece: str) -> str:
    return f"{piece}, one thread" if bench.threads == 1 else piece


def _repeated(bench: Bench, name: str, model: nn.Module, images: Tensor) -> None:
    """What a pass costs: 200 passes less 10, which take the same deterministic part."""
    few, many = MCDropout(model, 10), MCDropout(model, 200)
    plan = few.explain_plan(images)
    most, least = (_floor(model, images, plan, count) for count in (200, 10))
    floor = Operations((most.single - least.single) / 190, moved=(most.moved - least.moved) / 190)
    works: dict[str, Work] = {
        "few": lambda: few.sample(images),
        "many": lambda: many.sample(images),
    }
    timed, machines = bench.timed(works, bench.rounds)
    rounds = zip(timed.seconds["few"], timed.seconds["many"], strict=True)
    ones = [(longer - shorter) / 190 for shorter, longer in rounds]
    shares = [floor.seconds(machine) / one for machine, one in zip(machines, ones, strict=True)]
    setting, unit = f"{name}, the repeated part", "passes of an image"
    rate = len(images) / spread(ones)[0]
    row = Row(_on(bench, "MC dropout"), setting, "leery", rate, unit, share=spread(shares))
    bench.rows.append(row)
    print(row, flush=True)


def _first_call(bench: Bench, name: str, model: nn.Module, images: Tensor) -> None:
    """What is found out about a model once, before its first images."""
    timed = in_turn({"leery": lambda: MCDropout(model, 50).explain_plan(images)}, bench.rounds)
    setting = f"{name}, before the first call"
    row = Row(_on(bench, "MC dropout"), setting, "leery", 1 / timed.median("leery"), "models")
    bench.rows.append(row)
    print(row, flush=True)


def _floor(model: nn.Module, images: Tensor, plan: Plan, count: int) -> Operations:
    """The deterministic part once, the rest in each pass; images in, probabilities out."""
    forward = operations(model, images)
    with torch.no_grad():
        classes = model(images[:1]).shape[1]
    return Operations(
        len(images) * forward * (plan.once + count * plan.repeated),
        moved=images.numel() * images.element_size() + 4.0 * count * len(images) * classes,
    )


def six_metrics(bench: Bench) -> None:
    """All six metrics, T = 50, against the authors' way and the fastest peers put together."""
    for dataset, count in (("mnist", 10_000), ("fashion-mnist", 512)):
        model = default_layout(dataset).to(bench.device)
        images = data.load(dataset, "test")[0][: bench.images(count)]
        detector = Detector(
            model, metrics=PAPER_METRICS, feature_layer="hidden", bandwidth=BANDWIDTHS[dataset]
        )
        detector.fit(*data.load(dataset, "train"))
        _six(bench, NETWORKS[dataset], detector, images.to(bench.device))
    torch.manual_seed(0)
    images, model = waves(bench.images(1024) + 64), ResNet18(10).eval()
    with torch.no_grad():
        # An untrained one gives all classes about the same probability.
        model.fc.weight *= 20
    detector = Detector(model.to(bench.device), metrics=PAPER_METRICS, bandwidth=1.0)
    detector.fit(images[:-64], torch.arange(len(images) - 64) % 10)
    _six(bench, "ResNet-18, 64 x 64 pixels", detector, images[-64:].to(bench.device))


def _six(bench: Bench, name: str, detector: Detector, images: Tensor) -> None:
    density = detector.metrics_["kernel_density"]
    assert isinstance(density, KernelDensity)
    layer = detector.feature_layer_
    bandwidth = next(iter(density.bandwidth_.values()))
    fitted = Fitted(str(layer), bandwidth, density.reference_)
    numbers = sum(map(Tensor.numel, density.reference_.values())) / len(density.reference_)
    passes = _floor(detector.model, images, detector.explain_plan(), 50)
    # Confidence and the class come from all of the model without dropout.
    whole = len(images) * operations(detector.model, images) * (1 - detector.explain_plan().once)
    some = images[:1024]
    first, second = (peers_six(detector.model, some, 50, fitted)[:, :4] for _ in range(2))
    chance = np.abs(first - second).mean(0)
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
        agree=partial(_same_metrics, chance),
        floor=Operations(passes.single + whole, len(images) * 2 * numbers, passes.moved),
    )


def _same_metrics(chance: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> tuple[bool, str]:
    """Each uncertainty as near as chance lets expect, closeness the same.

    Args:
        chance: how far each uncertainty of two runs of a peer is apart, on average over images.
        ours: all six metrics.
        theirs: of the rival. Where scikit-learn's trees prune they lose the far ones, so that the
            densities are the same for most images only.
    """
    off = np.abs(ours[:, 4:] - theirs[:, 4:]).max(1)
    apart = np.abs(ours[:, :4] - theirs[:, :4]).mean(0) / chance
    levels = np.abs(ours[:, :4].mean(0) / theirs[:, :4].mean(0) - 1).max()
    note = (
        f"closeness to {np.median(off):.0e}, of the worst image to {off.max():.0e}; uncertainties "
        f"{apart.min():.2f} to {apart.max():.2f} times as far as chance, means {levels:.1%} off"
    )
    told_apart = np.ptp(ours, axis=0).min() > 0
    same = float(np.quantile(off, 0.9)) < 1e-4 and apart.max() < _APART and levels < 0.25
    return bool(same and told_apart), note


def densities(bench: Bench) -> None:
    """Kernel density of one class: real digits, then larger and wider references."""
    detector = Detector(
        default_layout("mnist"), feature_layer="hidden", metrics=("kernel_density",)
    )
    images, labels = data.load("mnist", "train")
    points = detector.fit(images, labels).features(images[labels == 1][:6131])[0]
    test, truth = data.load("mnist", "test")
    queries = detector.features(test[truth == 1][: bench.images(1135)])[0]
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
    points, queries = points.to(bench.device), queries.to(bench.device)
    zeros = torch.zeros(max(len(points), len(queries)), dtype=torch.int64, device=bench.device)
    own = KernelDensity(bandwidth).fit(points, zeros[: len(points)])
    there = points.double().cpu().numpy()
    asked = queries.double().cpu().numpy()
    fitted = {name: make(there, bandwidth) for name, make in rivals.items()}
    exact = one_leaf(there, bandwidth)(asked)
    bench.compare(
        "kernel density",
        f"{len(points):,} {what}, D = {points.shape[1]:,}, {len(queries)} queries",
        {
            "leery": lambda: own.score(queries, zeros[: len(queries)]).cpu().numpy(),
            **{name: partial(score, asked) for name, score in fitted.items()},
        },
        units=(len(queries), "queries"),
        agree=partial(_same_densities, exact),
        floor=Operations(
            0,
            2 * len(queries) * points.numel(),
            points.numel() * points.element_size() + queries.numel() * queries.element_size(),
        ),
    )


def _same_densities(exact: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> tuple[bool, str]:
    """Ours must be the exact sum; scikit-learn's trees, where they prune, are not."""
    own, other = (float(np.abs(found - exact).max()) for found in (ours, theirs))
    note = "exact" if other == 0 else f"{other:.0e} off the exact sum"
    return own < 1e-4, f"{note}, leery {own:.0e}"


def attacks(bench: Bench) -> None:
    """Gradients a second of BIM and PGD."""
    for dataset, count in (("mnist", 512), ("fashion-mnist", 256)):
        model = default_layout(dataset).to(bench.device)
        images, labels = (
            part[: bench.images(count)].to(bench.device) for part in data.load(dataset, "test")
        )
        for name, setting in (
            ("BIM", AttackSetting(0.12, 0.024, 10, random_start=False)),
            ("PGD", AttackSetting(0.12, 0.004, 40, random_start=True)),
        ):
            crafts = {
                who: partial(craft, model, images, labels)
                for who, craft in {"leery": leery_attack, **ATTACKS}.items()
            }
            bench.compare(
                "attacks",
                f"{name}, {NETWORKS[dataset]}, {setting.steps} steps, {len(images)} images",
                {who: partial(craft, setting) for who, craft in crafts.items()},
                units=(len(images) * setting.steps, "gradients"),
                agree=partial(_same_success, model, labels),
                floor=Operations(2 * len(images) * setting.steps * operations(model, images)),
                checked={
                    who: partial(_both_starts, craft, setting) for who, craft in crafts.items()
                },
            )


def _both_starts(craft: Callable[[AttackSetting], Tensor], setting: AttackSetting) -> list[Tensor]:
    """The adversarial images that are made from the images themselves, and those of the setting."""
    return [craft(replace(setting, random_start=False)), craft(setting)]


@torch.no_grad()
def _same_success(
    model: nn.Module, labels: Tensor, ours: list[Tensor], theirs: list[Tensor]
) -> tuple[bool, str]:
    """Pixel by pixel where the start is the same; the success must be the same in any case."""
    success, other = (
        float((model(adversarial[1]).argmax(1) != labels).double().mean())
        for adversarial in (ours, theirs)
    )
    differing = float(((ours[0] - theirs[0]).abs() > 1e-4).double().mean())
    error = (2 * max(success * (1 - success), 0.01) / len(labels)) ** 0.5
    return (
        abs(success - other) < 4 * error and differing < 0.02,
        f"{differing:.2%} of pixels differ from equal starts, success {other:.1%} against "
        f"{success:.1%}",
    )


def fit(bench: Bench) -> None:
    """From training images to a fitted detector."""
    model = default_layout("mnist").to(bench.device)
    images, labels = (part[: bench.images(60_000)] for part in data.load("mnist", "train"))
    detector = Detector(model, metrics=PAPER_METRICS, feature_layer="hidden", bandwidth=1.7)
    bench.compare(
        "fit",
        f"DigitNet, {len(images):,} images",
        {"leery": lambda: detector.fit(images, labels)},
        units=(len(images), "images"),
        agree=lambda *_: (True, ""),
        floor=Operations(len(images) * operations(model, images)),
    )


class Selective:
    """Climbs the classifier's loss while the label is right, else lowers a detector's score.

    Source:
        Bryniarski et al. (2021), arXiv:2106.15023, selective projected gradient descent.
    """

    chooses = False

    def __init__(self, detector: Detector, model: nn.Module) -> None:
        self._loss, self._detector = CrossEntropy(model), detector
        self._fooled = torch.empty(0, dtype=torch.bool)

    def value(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        loss = self._loss.value(images, labels)
        # The loss of a label that is right is below log 2 wherever it has more than half.
        self._fooled = loss.detach() > np.log(2)
        return loss, -self._detector.differentiable_score(images)

    def direction(self, gradients: Tensor) -> Tensor:
        chosen = self._fooled.view(-1, *(1 for _ in gradients.shape[2:]))
        return torch.where(chosen, gradients[1], gradients[0])

    def better(self, new: Tensor, old: Tensor) -> Tensor:
        return new[0] > old[0]


def adaptive(bench: Bench) -> None:
    """A step of selective PGD, against three plain steps and the passes forward and backward."""
    model = default_layout("mnist").to(bench.device)
    train, classes = data.load("mnist", "train")
    images, labels = (
        part[: bench.images(256)].to(bench.device) for part in data.load("mnist", "test")
    )
    detector = Detector(model, metrics=PAPER_METRICS, bandwidth=1.7, combiner="logistic").fit(
        train, classes
    )
    held, truth = (part[5000:5300] for part in data.load("mnist", "test"))
    detector.fit_combiner(held, truth, attacks=[PGD(0.3)])
    sampler = MCDropout(model, 50)
    plain = GradientAttack(0.3, steps=1, step_size=0.01)
    selective = GradientAttack(0.3, steps=1, step_size=0.01, objective=partial(Selective, detector))

    def passes_and_back() -> Tensor:
        variable = images.clone().requires_grad_()
        probs = sampler.observe_with_gradient(variable).probs
        return torch.autograd.grad(probs.square().sum(), variable)[0]

    def allowance() -> Tensor:
        for _ in range(3):
            made = plain(model, images, labels)
        passes_and_back()
        return made

    bench.compare(
        "a step of an attack on classifier and detector",
        f"DigitNet, six metrics, 60,000 references, T = 50, {len(images)} images",
        {
            "leery": lambda: selective(model, images, labels),
            "three plain steps, and 50 passes forward and backward": allowance,
            "one plain step": lambda: plain(model, images, labels),
            "50 passes forward and backward": passes_and_back,
        },
        units=(len(images), "images"),
        agree=lambda *_: (True, ""),
        floor=Operations(2 * len(images) * operations(model, images)),
    )


def two_detectors(bench: Bench) -> None:
    """Two detectors of two classifiers in two threads, against one after the other."""
    detectors = []
    train, classes = (part[:6000] for part in data.load("mnist", "train"))
    for _ in range(2):
        detector = Detector(default_layout("mnist"), metrics=PAPER_METRICS, bandwidth=1.7).fit(
            train, classes
        )
        detectors.append(detector.fit_combiner(data.load("mnist", "test")[0][:500]))
    images = data.load("mnist", "test")[0][: bench.images(10_000)]
    threads = torch.get_num_threads()

    def together() -> list[np.ndarray]:
        torch.set_num_threads(1)
        try:
            with ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                return list(pool.map(lambda detector: detector.score(images), detectors))
        finally:
            torch.set_num_threads(threads)

    def in_a_row() -> list[np.ndarray]:
        torch.set_num_threads(1)
        try:
            return [detector.score(images) for detector in detectors]
        finally:
            torch.set_num_threads(threads)

    bench.compare(
        "two detectors in two threads",
        f"DigitNet twice, six metrics, T = 50, {len(images):,} images, one torch thread each",
        {"leery": together, "one after the other": in_a_row},
        units=(2 * len(images), "images"),
        agree=lambda ours, theirs: (all(map(np.array_equal, ours, theirs)), "the same scores"),
        floor=Operations(2 * len(images) * operations(detectors[0].model, images)),
    )


def default_detector(bench: Bench) -> None:
    """The default against plain forward passes, as many as it may cost."""
    for dataset in ("mnist", "fashion-mnist"):
        model = default_layout(dataset).to(bench.device)
        train = tuple(part[:6000] for part in data.load(dataset, "train"))
        held = data.load(dataset, "test")[0].to(bench.device)
        images = held[: bench.images(1000)]
        every = {
            "the default": (RECOMMENDED_METRICS, 25),
            "the auxiliary network and the margin": (("auxiliary_agreement", "log_margin"), 2),
        }
        for name, (metrics, limit) in every.items():
            detector = Detector(model, metrics=metrics).fit(*train).calibrate(held[-500:], fpr=0.05)
            bench.compare(
                "the default's cost",
                f"{name}, {NETWORKS[dataset]}, {len(images):,} images",
                {
                    "leery": partial(detector.judge, images),
                    f"{limit} plain forward passes": partial(_plain_passes, model, images, limit),
                },
                units=(len(images), "images"),
                agree=lambda ours, theirs: (
                    bool((ours.predicted == theirs.argmax(1).cpu().numpy()).all()),
                    "the same classes",
                ),
                floor=Operations(len(images) * operations(model, images)),
            )


def _plain_passes(model: nn.Module, images: Tensor, count: int) -> Tensor:
    with torch.inference_mode():
        for _ in range(count):
            logits = model(images)
    return logits


def auxiliary_training(bench: Bench) -> None:
    """The auxiliary network of 60,000 digits against ten epochs of the study's classifier."""
    whole = data.load("mnist", "train")
    images, labels = (part[: bench.images(60_000)] for part in whole)
    test = data.load("mnist", "test")
    plain = replace(RECIPES["mnist"], epochs=max(1, round(10 * bench.scale)))

    recipe = AuxiliaryRecipe()
    seen = recipe.batch_size * recipe.steps(len(images))
    network = AuxiliaryNetwork((1, 28, 28), 10).initialise(torch.Generator()).eval()

    def ours() -> float:
        trained = train_auxiliary(TrainingSet.gathered([(images, labels)]), classes=10)
        return accuracy(trained, *test)

    def theirs() -> float:
        return accuracy(train("mnist", recipe=plain).model, *test)

    bench.compare(
        "training of the auxiliary network",
        f"{len(images):,} digits",
        {"leery": ours, f"{plain.epochs} plain epochs of DigitNet": theirs},
        units=(len(images), "images"),
        agree=lambda ours, theirs: (True, f"accuracy {ours:.2%} against {theirs:.2%}"),
        floor=Operations(3 * seen * operations(network, images)),
        rounds=min(2, bench.rounds),
    )


PIECES: Mapping[str, Callable[[Bench], None]] = {
    "kde": densities,
    "attacks": attacks,
    "passes": passes,
    "alone": alone,
    "six": six_metrics,
    "fit": fit,
    "adaptive": adaptive,
    "threads": two_detectors,
    "default": default_detector,
    "auxiliary": auxiliary_training,
}
