"""What a user would pick instead of leery, each as its own documentation calls it.

A rival that is not installed is reported as missing, with the reason.
"""

import copy
import importlib
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["ATTACKS", "PASSES", "authors_loop", "versions"]

Passes = Callable[[nn.Module, Tensor, int], Tensor]
"""Class probabilities of all passes, ``(T, N, classes)``."""


@torch.no_grad()
def authors_loop(model: nn.Module, images: Tensor, passes: int) -> Tensor:
    """The paper's authors: the whole model in train mode, T times over, in batches of 64."""
    model.train()
    found = [
        torch.cat([model(batch).softmax(1) for batch in images.split(64)]) for _ in range(passes)
    ]
    model.eval()
    return torch.stack(found)


def pytorch_ood(model: nn.Module, images: Tensor, passes: int) -> Tensor:
    """pytorch-ood's MCD, in batches of 256; it gives mean and variance, not the passes."""
    detector = importlib.import_module("pytorch_ood.detector.mcd").MCD
    parts = [detector.run(model, batch, passes) for batch in images.split(256)]
    return torch.stack([torch.cat(part) for part in zip(*parts, strict=True)])


def torch_uncertainty(model: nn.Module, images: Tensor, passes: int) -> Tensor:
    """torch-uncertainty's wrapper; the passes in a loop, which is faster here than in one batch."""
    methods = importlib.import_module("torch_uncertainty.methods.mc_dropout")
    wrapped = methods.mc_dropout(model, passes, on_batch=False).eval()
    with torch.no_grad():
        parts = [
            wrapped(batch).softmax(1).unflatten(0, (passes, -1)) for batch in images.split(256)
        ]
    model.eval()
    return torch.cat(parts, 1)


def baal_caching(model: nn.Module, images: Tensor, passes: int) -> Tensor:
    """baal's caching: layers in front of the first dropout are computed once a batch."""
    caching = importlib.import_module("baal.bayesian.caching_utils")
    dropout = importlib.import_module("baal.bayesian.dropout")
    twin = dropout.MCDropoutModule(caching.MCCachingModule(copy.deepcopy(model))).eval()
    with torch.no_grad():
        parts = [
            torch.stack([twin(batch).softmax(1) for _ in range(passes)])
            for batch in images.split(256)
        ]
    return torch.cat(parts, 1)


def baal_batched(model: nn.Module, images: Tensor, passes: int) -> Tensor:
    """baal's replication in memory: T copies of each image in one batch."""
    dropout = importlib.import_module("baal.bayesian.dropout")
    wrapper = importlib.import_module("baal.modelwrapper")
    twin = dropout.MCDropoutModule(copy.deepcopy(model))
    args = wrapper.TrainingArgs(replicate_in_memory=True, use_cuda=False)
    runner = wrapper.ModelWrapper(twin, args)
    runner.eval()
    parts = [runner.predict_on_batch(batch, passes).softmax(1) for batch in images.split(32)]
    return torch.cat(parts).permute(2, 0, 1)


PASSES: Mapping[str, Passes] = {
    "authors' loop": authors_loop,
    "pytorch-ood MCD": pytorch_ood,
    "torch-uncertainty": torch_uncertainty,
    "baal caching": baal_caching,
    "baal batched": baal_batched,
}


Attacked = Callable[[nn.Module, Tensor, Tensor, float, float, int], Tensor]
"""Twins by BIM, given model, images, labels, epsilon, step size and steps."""


def foolbox_bim(
    model: nn.Module, images: Tensor, labels: Tensor, epsilon: float, step: float, steps: int
) -> Tensor:
    """foolbox's LinfBasicIterativeAttack."""
    foolbox = importlib.import_module("foolbox")
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    attack = foolbox.attacks.LinfBasicIterativeAttack(abs_stepsize=step, steps=steps)
    found = [
        attack(wrapped, *batch, epsilons=epsilon)[1]
        for batch in zip(images.split(256), labels.split(256), strict=True)
    ]
    return torch.cat(found)


def art_bim(
    model: nn.Module, images: Tensor, labels: Tensor, epsilon: float, step: float, steps: int
) -> Tensor:
    """adversarial-robustness-toolbox's BasicIterativeMethod."""
    estimators = importlib.import_module("art.estimators.classification")
    evasion = importlib.import_module("art.attacks.evasion")
    classifier = estimators.PyTorchClassifier(
        model, nn.CrossEntropyLoss(), images.shape[1:], 10, clip_values=(0, 1), device_type="cpu"
    )
    attack = evasion.BasicIterativeMethod(
        classifier, eps=epsilon, eps_step=step, max_iter=steps, batch_size=256, verbose=False
    )
    found: np.ndarray = attack.generate(images.numpy(), labels.numpy())
    return torch.from_numpy(found)


def torchattacks_bim(
    model: nn.Module, images: Tensor, labels: Tensor, epsilon: float, step: float, steps: int
) -> Tensor:
    """torchattacks' BIM."""
    torchattacks = importlib.import_module("torchattacks")
    attack = torchattacks.BIM(model, eps=epsilon, alpha=step, steps=steps)
    found = [attack(*batch) for batch in zip(images.split(256), labels.split(256), strict=True)]
    return torch.cat(found)


ATTACKS: Mapping[str, Attacked] = {
    "foolbox": foolbox_bim,
    "ART": art_bim,
    "torchattacks": torchattacks_bim,
}


def versions() -> dict[str, str]:
    """The installed version of each rival's package; "missing" where there is none."""
    names = ("pytorch-ood", "torch-uncertainty", "baal", "scikit-learn", "foolbox",
             "adversarial-robustness-toolbox", "torchattacks")  # fmt: skip
    metadata = importlib.import_module("importlib.metadata")
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "missing"
    return found
