"""Isolation: no call, finished or failed, leaves a trace on the user's model or the process."""

import logging
import random
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from leery import PAPER_METRICS, Detector, MCDropout
from leery.attacks import BIM, FGSM, PGD
from leery.classifiers import accuracy
from leery.errors import LeeryError
from leery.evaluation import evaluate
from leery.mc_dropout import insert_dropout
from leery.models import (
    extract_features,
    isolated,
    last_hidden_layer,
    predict,
    submodules_of_images,
)
from tests.mc_dropout.zoo import build


class Delicate(nn.Module):
    """Batch norm that would drift, dropout, mixed modes and flags, hooks, and a trip wire."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.hidden = nn.Sequential(nn.Flatten(), nn.Linear(4 * 6 * 6, 12), nn.ReLU(inplace=True))
        self.drop = nn.Dropout(0.5)
        self.out = nn.Linear(12, 3)
        self.tripped = False
        self.seen: list[str] = []
        self.out.register_forward_pre_hook(
            lambda _module, inputs: self.seen.append(type(inputs[0]).__name__)
        )
        self.out.register_forward_hook(lambda *found: self.seen.append(type(found[2]).__name__))

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.drop(self.hidden(torch.relu(self.norm(self.convolution(images)))))
        if self.tripped:
            message = "the wire was touched"
            raise ZeroDivisionError(message)
        out: Tensor = self.out(hidden)
        return out


@dataclass
class Scene:
    model: Delicate
    images: Tensor
    labels: Tensor
    detector: Detector
    folder: Path


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Delicate()
        images, others = torch.rand(30, 1, 8, 8), torch.rand(30, 1, 8, 8)
        more = torch.rand(30, 1, 8, 8)
    labels = torch.arange(30) % 3
    detector = Detector(
        model, metrics=PAPER_METRICS, feature_layer="hidden", passes=3, combiner="logistic"
    )
    detector.fit(more, labels).fit_combiner(others, adversarial=1 - others)
    detector.calibrate(torch.flip(others, [3]))
    detector.save(tmp_path / "d")
    # A state that eval() and train() alone would not bring back.
    model.train()
    model.norm.eval()
    model.hidden.eval()
    model.convolution.weight.requires_grad_(False)
    model.out.bias.grad = torch.ones(3)
    return Scene(model, images, labels, detector, tmp_path)


def test_threads_take_turns_with_a_model() -> None:
    """Of a model whose passes are run by the loop, which changes modes in each."""
    model, images = build("branching").train(), torch.rand(30, 1, 28, 28)
    samplers = [MCDropout(model, 5, seed=seed) for seed in range(4)]
    expected = [sampler.sample(images) for sampler in samplers]
    assert samplers[0].explain_plan(images).way == "loop"
    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            found = list(pool.map(lambda sampler: sampler.sample(images), samplers))
            assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert all(module.training for module in model.modules())


def test_threads_take_turns_with_the_process() -> None:
    """Random states, torch's flags, standard error and logging are everyone's."""
    models = [build("branching"), build("transformer"), build("functional")]
    images = torch.rand(8, 1, 28, 28)
    expected = [MCDropout(model, 3).sample(images) for model in models]
    before = torch.get_rng_state(), sys.stderr, logging.root.manager.disable
    flags = torch.backends.cuda.flash_sdp_enabled(), torch.is_grad_enabled()
    with ThreadPoolExecutor(3) as pool:
        for _ in range(4):
            found = list(pool.map(lambda model: MCDropout(model, 3).sample(images), models))
            assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (sys.stderr, logging.root.manager.disable) == before[1:]
    assert (torch.backends.cuda.flash_sdp_enabled(), torch.is_grad_enabled()) == flags


class Remembers(nn.Module):
    """Counts its calls, and keeps what it saw last."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(64, 3)
        self.calls = 0
        self.register_buffer("seen", torch.zeros(64))

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        self.last = images
        if not self.training:
            self.seen = images.flatten(1).mean(0)
        out: Tensor = self.out(functional.dropout(images.flatten(1), 0.5, self.training))
        return out


def test_what_a_forward_assigns_is_undone() -> None:
    model = Remembers()
    seen = model.seen
    MCDropout(model, 3).sample(torch.rand(4, 1, 8, 8))
    assert model.calls == 0
    assert model.seen is seen
    assert not hasattr(model, "last")


def test_the_caller_s_autocast_does_not_reach_a_score(scene: Scene) -> None:
    expected = scene.detector.score(scene.images)
    with torch.autocast("cpu"):
        assert np.array_equal(scene.detector.score(scene.images), expected)


def test_hooks_of_the_user_see_real_tensors_only(scene: Scene) -> None:
    MCDropout(scene.model, 3, layers=["hidden"]).observe(scene.images)
    assert set(scene.model.seen) == {"Tensor"}


def snapshot(model: Delicate, images: Tensor, labels: Tensor) -> dict[str, Any]:
    state: dict[str, Any] = {
        "modes": [module.training for module in model.modules()],
        "hooks": [
            (
                len(module._forward_hooks),
                len(module._forward_pre_hooks),
                len(module._backward_hooks),
            )
            for module in model.modules()
        ],
        "flags": [parameter.requires_grad for parameter in model.parameters()],
        "gradients": [
            None if parameter.grad is None else parameter.grad.tolist()
            for parameter in model.parameters()
        ],
        "state": {name: tensor.tolist() for name, tensor in model.state_dict().items()},
        "identity": [id(tensor) for tensor in (*model.parameters(), *model.buffers())],
        "attributes": sorted(vars(model)),
        "torch": torch.get_rng_state().tolist(),
        "numpy": str(np.random.get_state()),  # noqa: NPY002 - the global state must not change
        "python": random.getstate(),
        "grad mode": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "images": images.tolist(),
        "image flags": (images.requires_grad, images.grad),
        "labels": labels.tolist(),
    }
    return state


CALLS: dict[str, Callable[[Scene], object]] = {
    "FGSM": lambda s: FGSM(0.1)(s.model, s.images, s.labels),
    "BIM": lambda s: BIM(0.1)(s.model, s.images, s.labels),
    "PGD": lambda s: PGD(0.5, norm="l2", steps=2)(s.model, s.images, s.labels),
    "extract_features": lambda s: extract_features(s.model, s.images, "hidden"),
    "accuracy": lambda s: accuracy(s.model, s.images, s.labels),
    "MCDropout.sample": lambda s: MCDropout(s.model, 3).sample(s.images),
    "MCDropout.sample fresh": lambda s: MCDropout(s.model, 3, masks="fresh").sample(s.images),
    "MCDropout.observe": lambda s: MCDropout(s.model, 3, layers=["hidden"]).observe(s.images),
    "Detector": lambda s: Detector(s.model, metrics=PAPER_METRICS, feature_layer="hidden"),
    "Detector.fit": lambda s: Detector(
        s.model, metrics=PAPER_METRICS, feature_layer="hidden", passes=3
    ).fit(s.images, s.labels),
    "Detector.measure": lambda s: Detector.load(s.folder / "d", s.model).measure(s.images),
    "Detector.fit_combiner": lambda s: Detector.load(s.folder / "d", s.model).fit_combiner(
        s.images, adversarial=s.images / 2, noisy=0.9 * s.images
    ),
    "Detector.score": lambda s: Detector.load(s.folder / "d", s.model).score(s.images),
    "Detector.calibrate": lambda s: Detector.load(s.folder / "d", s.model).calibrate(s.images),
    "Detector without a layer": lambda s: Detector(s.model, metrics=PAPER_METRICS, passes=3).fit(
        s.images, s.labels
    ),
    "Detector.fit_combiner attacks": lambda s: Detector.load(s.folder / "d", s.model).fit_combiner(
        s.images, s.labels, attacks=[FGSM(0.1)]
    ),
    "Detector.explain": lambda s: Detector.load(s.folder / "d", s.model).explain(s.images),
    "Detector.explain_plan": lambda s: Detector.load(s.folder / "d", s.model).explain_plan(),
    "last_hidden_layer": lambda s: last_hidden_layer(s.model, s.images),
    "insert_dropout": lambda s: insert_dropout(s.model, before="out").eval()(s.images),
    "Detector.judge": lambda s: Detector.load(s.folder / "d", s.model).judge(s.images),
    "Detector.flag": lambda s: Detector.load(s.folder / "d", s.model).flag(s.images),
    "Detector.differentiable_score": lambda s: Detector.load(
        s.folder / "d", s.model
    ).differentiable_score(s.images),
    "evaluate": lambda s: evaluate(
        Detector.load(s.folder / "d", s.model), s.images, s.labels, attacks={"fgsm": FGSM(0.1)}
    ),
    "submodules_of_images": lambda s: submodules_of_images(s.model, s.images),
    "predict": lambda s: predict(s.model, s.images),
    "Detector.save": lambda s: s.detector.save(s.folder / "again"),
    "Detector.load": lambda s: Detector.load(s.folder / "d", s.model),
}

NO_FORWARD = {"Detector", "Detector.save", "Detector.load"}
# These look at no images, or show them to the model alone.
NO_CHECK = {"Detector.explain_plan", "insert_dropout"}


@pytest.mark.parametrize("name", CALLS)
def test_a_finished_call_leaves_no_trace(name: str, scene: Scene) -> None:
    before = snapshot(scene.model, scene.images, scene.labels)
    CALLS[name](scene)
    assert snapshot(scene.model, scene.images, scene.labels) == before


@pytest.mark.parametrize("name", sorted(set(CALLS) - NO_FORWARD))
def test_a_call_that_fails_inside_the_model_leaves_no_trace(name: str, scene: Scene) -> None:
    scene.model.tripped = True
    before = snapshot(scene.model, scene.images, scene.labels)
    # The last of these calls the model without leery.
    kind, text = (
        (ZeroDivisionError, "") if name == "insert_dropout" else (LeeryError, "ZeroDivisionError: ")
    )
    with pytest.raises(kind, match=f"{text}the wire was touched"):
        CALLS[name](scene)
    assert snapshot(scene.model, scene.images, scene.labels) == before


@pytest.mark.parametrize("name", sorted(set(CALLS) - NO_FORWARD - NO_CHECK))
def test_a_call_that_is_refused_leaves_no_trace(name: str, scene: Scene) -> None:
    scene.images[4, 0, 2, 2] = 300.0
    scene.images[5] = torch.inf
    if name == "accuracy":
        scene.images = scene.images[:0]
    before = snapshot(scene.model, scene.images, scene.labels)
    with pytest.raises(LeeryError):
        CALLS[name](scene)
    after = snapshot(scene.model, scene.images, scene.labels)
    assert str(after) == str(before)


class Random(nn.Module):
    """Draws from the global generator in its forward pass."""

    def forward(self, rows: Tensor) -> Tensor:
        return rows + torch.rand(len(rows), 1)


def test_random_numbers_the_model_draws_are_forgotten() -> None:
    state = torch.get_rng_state()
    with isolated(Random()) as model:
        model(torch.zeros(3, 2))
        assert not torch.equal(torch.get_rng_state(), state)
    assert torch.equal(torch.get_rng_state(), state)


class Stubborn(nn.Module):
    """Its own ``train`` has side effects, which must not be set off."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def train(self, mode: bool = True) -> "Stubborn":
        message = f"train({mode}) was called"
        raise AssertionError(message)


def test_an_overridden_train_method_is_not_called() -> None:
    model = Stubborn()
    with isolated(model):
        assert not model.layer.training
    assert model.layer.training
