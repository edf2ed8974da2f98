"""What a user would pick instead of leery, each as its own documentation calls it.

A rival that is not installed raises ImportError, which the bench reports.
"""

import copy
import importlib
import multiprocessing
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from importlib import metadata
from types import ModuleType

import numpy as np
import torch
from scipy.stats import entropy
from sklearn.neighbors import KernelDensity
from torch import Tensor, nn

from leery.attacks import GradientAttack
from leery.models import extract_features

__all__ = [
    "ATTACKS",
    "DENSITIES",
    "PASSES",
    "SIX",
    "AttackSetting",
    "Fitted",
    "leery_attack",
    "one_leaf",
    "peers_six",
    "versions",
]

PACKAGES = (
    "pytorch-ood",
    "torch-uncertainty",
    "baal",
    "scikit-learn",
    "foolbox",
    "adversarial-robustness-toolbox",
    "torchattacks",
)

Passes = Callable[[nn.Module, Tensor, int], Tensor]
"""Class probabilities of all passes, ``(T, N, classes)``."""


@torch.no_grad()
def authors_loop(model: nn.Module, images: Tensor, passes: int) -> Tensor:
    """The paper's authors: the whole model in train mode, T times over, in batches of 64.

    Theirs has no batch norm; here that stays in eval mode, or it would not be the same classifier.
    """
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    found = [
        torch.cat([model(batch).softmax(1) for batch in images.split(64)]) for _ in range(passes)
    ]
    model.eval()
    return torch.stack(found)


@cache
def torchvision_loads() -> None:
    """Declare the operators without which torchvision, built for another torch, does not import."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        with suppress(RuntimeError):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    LIBRARIES.append(library)


LIBRARIES: list[torch.library.Library] = []
"""What is declared holds as long as these live."""


def part_of(module: str) -> ModuleType:
    """A module of a rival that imports torchvision."""
    torchvision_loads()
    return importlib.import_module(module)


def pytorch_ood(model: nn.Module, images: Tensor, passes: int) -> Tensor:
    """pytorch-ood's MCD, in batches of 256; it gives their mean, not the passes."""
    detector = part_of("pytorch_ood.detector.mcd").MCD
    parts = [detector.run_mean(model, batch, passes) for batch in images.split(256)]
    model.eval()
    return torch.cat(parts).unsqueeze(0)


def torch_uncertainty(model: nn.Module, images: Tensor, passes: int) -> Tensor:
    """torch-uncertainty's wrapper; the passes in a loop, which is faster here than in one batch.

    Like baal it sets only Dropout modules to train: attention's own dropout stays off, and blocks
    in eval mode take a fast path without any.
    """
    methods = part_of("torch_uncertainty.methods.mc_dropout")
    wrapped = methods.mc_dropout(model, passes, on_batch=False).eval()
    with torch.no_grad():
        parts = [
            wrapped(batch).softmax(1).unflatten(0, (passes, -1)) for batch in images.split(256)
        ]
    model.eval()
    return torch.cat(parts, 1)


def baal_caching(model: nn.Module, images: Tensor, passes: int) -> Tensor:
    """baal's caching: layers in front of the first dropout are computed once a batch."""
    caching = part_of("baal.bayesian.caching_utils")
    dropout = part_of("baal.bayesian.dropout")
    copied = dropout.MCDropoutModule(caching.MCCachingModule(copy.deepcopy(model))).eval()
    with torch.no_grad():
        parts = [
            torch.stack([copied(batch).softmax(1) for _ in range(passes)])
            for batch in images.split(256)
        ]
    return torch.cat(parts, 1)


def baal_caching_last(model: nn.Module, images: Tensor, passes: int) -> Tensor:
    """The same with model and images in the memory layout that leery takes by itself."""
    return baal_caching(channels_last(model), fast(images), passes)


@cache
def channels_last(model: nn.Module) -> nn.Module:
    """A copy of a model, once, as a user would keep it."""
    copied: nn.Module = copy.deepcopy(model).requires_grad_(requires_grad=False)
    return copied.to(memory_format=torch.channels_last)


def fast(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


def baal_batched(model: nn.Module, images: Tensor, passes: int) -> Tensor:
    """baal's replication in memory: T copies of each image in one batch."""
    dropout = part_of("baal.bayesian.dropout")
    wrapper = part_of("baal.modelwrapper")
    copied = dropout.MCDropoutModule(copy.deepcopy(model))
    runner = wrapper.ModelWrapper(
        copied, wrapper.TrainingArgs(replicate_in_memory=True, use_cuda=images.is_cuda)
    )
    runner.eval()
    parts = [runner.predict_on_batch(batch, passes).softmax(1) for batch in images.split(32)]
    return torch.cat(parts).permute(2, 0, 1)


PASSES: Mapping[str, Passes] = {
    "authors' loop": authors_loop,
    "pytorch-ood MCD": pytorch_ood,
    "torch-uncertainty": torch_uncertainty,
    "baal caching": baal_caching,
    "baal caching, channels last": baal_caching_last,
    "baal batched": baal_batched,
}


Density = Callable[[np.ndarray], np.ndarray]
"""Log densities ``(N,)`` of queries ``(N, D)``."""


def one_sample_a_call(points: np.ndarray, bandwidth: float) -> Density:
    """scikit-learn's default tree, one row a call, as Feinman's code has it for each process."""
    fitted = KernelDensity(bandwidth=bandwidth).fit(points)
    return lambda queries: np.array([fitted.score_samples(query[None])[0] for query in queries])


def feinmans_pool(points: np.ndarray, bandwidth: float) -> Density:
    """The same shared out to a process for each processor, as Feinman's code does at each call."""
    fitted = KernelDensity(bandwidth=bandwidth).fit(points)

    def score(queries: np.ndarray) -> np.ndarray:
        with multiprocessing.get_context("fork").Pool() as pool:
            return np.array(pool.map(score_point, [(query, fitted) for query in queries]))

    return score


def score_point(asked: tuple[np.ndarray, KernelDensity]) -> float:
    query, fitted = asked
    return float(fitted.score_samples(query[None])[0])


def one_call(points: np.ndarray, bandwidth: float, **tree: object) -> Density:
    """scikit-learn with all queries in one call."""
    found: Density = KernelDensity(bandwidth=bandwidth, **tree).fit(points).score_samples
    return found


def one_leaf(points: np.ndarray, bandwidth: float) -> Density:
    """The tree that sums exactly, and the fastest here: all points in one leaf."""
    return one_call(points, bandwidth, algorithm="kd_tree", leaf_size=len(points))


DENSITIES: Mapping[str, Callable[[np.ndarray, float], Density]] = {
    "scikit-learn, a sample a call": one_sample_a_call,
    "scikit-learn, a sample a call, Feinman's pool": feinmans_pool,
    "scikit-learn, one call, kd tree": partial(one_call, algorithm="kd_tree"),
    "scikit-learn, one call, ball tree": partial(one_call, algorithm="ball_tree"),
    "scikit-learn, one call, one leaf": one_leaf,
}


class Fitted:
    """What the metrics of closeness are fitted on, as numpy and scikit-learn have it.

    Args:
        layer: the last hidden layer.
        bandwidth: of the densities.
        references: the training features of each class, ``(n, D)``.
    """

    def __init__(self, layer: str, bandwidth: float, references: Mapping[int, Tensor]) -> None:
        self.layer = layer
        points = {label: rows.double().cpu().numpy() for label, rows in references.items()}
        self.one_by_one = {
            label: one_sample_a_call(rows, bandwidth) for label, rows in points.items()
        }
        self.at_once = {label: one_leaf(rows, bandwidth) for label, rows in points.items()}
        self.means = {label: softmax(rows).mean(0) for label, rows in points.items()}


def softmax(rows: np.ndarray) -> np.ndarray:
    powers = np.exp(rows - rows.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def uncertainties(probs: np.ndarray) -> np.ndarray:
    """Variance, entropy, mutual information and confidence ``(N, 4)``, whole arrays at a time."""
    mean = probs.mean(0)
    doubt = entropy(mean, axis=1)
    within = entropy(probs, axis=2).mean(0)
    return np.stack([probs.var(0).mean(1), doubt, doubt - within, mean.max(1)], 1)


def authors_six(model: nn.Module, images: Tensor, passes: int, fitted: Fitted) -> np.ndarray:
    """The six metrics as the authors' notebooks get them: loops over passes and over samples."""
    probs = authors_loop(model, images, passes).double().cpu().numpy()
    features, logits = extract_features(model, images, fitted.layer, batch_size=64)
    predicted = logits.argmax(1).cpu().numpy()
    rows = features.double().cpu().numpy()
    closeness = [
        (fitted.one_by_one[label](row)[0], entropy(softmax(row)[0], fitted.means[label]))
        for row, label in zip(rows[:, None], predicted, strict=True)
    ]
    return np.concatenate([uncertainties(probs), np.array(closeness)], 1)


def peers_six(
    model: nn.Module, images: Tensor, passes: int, fitted: Fitted, sample: Passes = baal_caching
) -> np.ndarray:
    """The same from the fastest peer of each part: baal's caching, scikit-learn once a class."""
    probs = sample(model, images, passes).double().cpu().numpy()
    features, logits = extract_features(model, images, fitted.layer)
    predicted, rows = logits.argmax(1).cpu().numpy(), features.double().cpu().numpy()
    closeness = np.empty((len(rows), 2))
    for label in np.unique(predicted):
        own = predicted == label
        closeness[own, 0] = fitted.at_once[label](rows[own])
        closeness[own, 1] = entropy(softmax(rows[own]), fitted.means[label], axis=1)
    return np.concatenate([uncertainties(probs), closeness], 1)


Six = Callable[[nn.Module, Tensor, int, Fitted], np.ndarray]

SIX: Mapping[str, Six] = {
    "authors' loop": authors_six,
    "baal caching and scikit-learn": peers_six,
    "baal caching, channels last, and scikit-learn": partial(peers_six, sample=baal_caching_last),
}


@dataclass(frozen=True)
class AttackSetting:
    """BIM, or PGD with a random start, in the L-infinity ball."""

    epsilon: float
    step: float
    steps: int
    random_start: bool


Attacked = Callable[[nn.Module, Tensor, Tensor, AttackSetting], Tensor]


def leery_attack(
    model: nn.Module, images: Tensor, labels: Tensor, setting: AttackSetting
) -> Tensor:
    """Ours, told what the rivals are told."""
    attack = GradientAttack(
        setting.epsilon,
        steps=setting.steps,
        step_size=setting.step,
        random_start=setting.random_start,
    )
    return attack(model, images, labels)


def foolbox_attack(
    model: nn.Module, images: Tensor, labels: Tensor, setting: AttackSetting
) -> Tensor:
    foolbox = importlib.import_module("foolbox")
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=images.device)
    attack = foolbox.attacks.LinfPGD(
        abs_stepsize=setting.step, steps=setting.steps, random_start=setting.random_start
    )
    found = [
        attack(wrapped, *batch, epsilons=setting.epsilon)[1]
        for batch in zip(images.split(256), labels.split(256), strict=True)
    ]
    return torch.cat(found)


def foolbox_tuned(
    model: nn.Module, images: Tensor, labels: Tensor, setting: AttackSetting
) -> Tensor:
    """With channels last and weights that ask for no gradients, which it takes of them too."""
    return foolbox_attack(channels_last(model), fast(images), labels, setting)


def torchattacks_tuned(
    model: nn.Module, images: Tensor, labels: Tensor, setting: AttackSetting
) -> Tensor:
    """With channels last."""
    return torchattacks_attack(channels_last(model), fast(images), labels, setting)


def art_attack(model: nn.Module, images: Tensor, labels: Tensor, setting: AttackSetting) -> Tensor:
    estimators = importlib.import_module("art.estimators.classification")
    evasion = importlib.import_module("art.attacks.evasion")
    classifier = estimators.PyTorchClassifier(
        model,
        nn.CrossEntropyLoss(),
        images.shape[1:],
        10,
        clip_values=(0, 1),
        device_type="gpu" if images.is_cuda else "cpu",
    )
    attack = evasion.ProjectedGradientDescentPyTorch(
        classifier,
        eps=setting.epsilon,
        eps_step=setting.step,
        max_iter=setting.steps,
        num_random_init=int(setting.random_start),
        batch_size=256,
        verbose=False,
    )
    found: np.ndarray = attack.generate(images.cpu().numpy(), labels.cpu().numpy())
    return torch.from_numpy(found).to(images.device)


def torchattacks_attack(
    model: nn.Module, images: Tensor, labels: Tensor, setting: AttackSetting
) -> Tensor:
    torchattacks = importlib.import_module("torchattacks")
    attack = torchattacks.PGD(
        model, setting.epsilon, setting.step, setting.steps, random_start=setting.random_start
    )
    found = [attack(*batch) for batch in zip(images.split(256), labels.split(256), strict=True)]
    return torch.cat(found)


ATTACKS: Mapping[str, Attacked] = {
    "foolbox": foolbox_attack,
    "ART": art_attack,
    "torchattacks": torchattacks_attack,
    "foolbox, tuned": foolbox_tuned,
    "torchattacks, tuned": torchattacks_tuned,
}


def versions() -> dict[str, str]:
    """The installed version of each rival's package; "missing" where there is none."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "missing"
    return found
