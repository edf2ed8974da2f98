"""The replica of a classifier: what is trusted, what is not, and threads that do not wait."""

import functools
import gc
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from leery import PAPER_METRICS, Detector
from leery.models import extract_features, isolated, normalized, predict
from leery.models._isolation import _REPLICAS
from tests.conftest import Batch


class Base(nn.Module):
    """Batch norm, dropout and a hook, in train mode."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.convolution, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
            self.drop, self.out = nn.Dropout(0.5), nn.Linear(4 * 36, 3)
        self.prepare()
        self.train()

    def prepare(self) -> None:
        """What a subclass adds."""

    def forward(self, images: Tensor) -> Tensor:
        maps = self.norm(self.convolution(images)).relu()
        found: Tensor = self.out(self.drop(maps.flatten(1)))
        return found


class InList(Base):
    def prepare(self) -> None:
        self.steps: list[Any] = [self.convolution, self.norm, torch.relu]
        self.last = functools.partial(self.finish, factor=2.0)

    def finish(self, rows: Tensor, factor: float) -> Tensor:
        found: Tensor = factor * self.out(self.drop(rows))
        return found

    def forward(self, images: Tensor) -> Tensor:
        for step in self.steps:
            images = step(images)
        return self.last(images.flatten(1))


class Closure(Base):
    """A function that remembers the module itself: a replica cannot replace it."""

    def prepare(self) -> None:
        def tail(rows: Tensor) -> Tensor:
            found: Tensor = self.out(self.drop(rows))
            return found

        self.tail = tail

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.tail(self.norm(self.convolution(images)).relu().flatten(1))
        return found


class OwnMode(Base):
    """The same, of its mode only."""

    def prepare(self) -> None:
        def tail(rows: Tensor) -> Tensor:
            return functional.dropout(rows, 0.5, self.training)

        self.tail = tail

    def forward(self, images: Tensor) -> Tensor:
        maps = self.norm(self.convolution(images)).relu().flatten(1)
        found: Tensor = self.out(self.tail(maps))
        return found


class Counts(Base):
    def prepare(self) -> None:
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(images)


class Draws(Base):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + 0 * random.random()  # noqa: S311


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def parametrized() -> nn.Module:
    model = Base()
    parametrize.register_parametrization(model.out, "weight", Doubled())
    return model


IMAGES = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))

TRUSTED: dict[str, Callable[[], nn.Module]] = {
    "plain": Base,
    "modules in a list, a partial and a method": InList,
    "a parametrization": parametrized,
}
NOT_TRUSTED: dict[str, Callable[[], nn.Module]] = {
    "a closure over a module": Closure,
    "a closure over the mode": OwnMode,
    "an attribute that is assigned": Counts,
    "a number from Python's generator": Draws,
}


def in_eval_mode(make: Callable[[], nn.Module]) -> Tensor:
    model = make().eval()
    with torch.no_grad():
        return model(IMAGES).argmax(1)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", TRUSTED)
def test_a_replica_shares_parameters_and_nothing_else(name: str) -> None:
    model = TRUSTED[name]()
    state = random.getstate(), torch.get_rng_state()
    with isolated(model, IMAGES) as still:
        assert still is not model
        assert {id(p) for p in still.parameters()} == {id(p) for p in model.parameters()}
        assert {id(b) for b in still.buffers()} == {id(b) for b in model.buffers()}
        assert not any(module.training for module in still.modules())
        assert all(module.training for module in model.modules())
        still.register_forward_hook(lambda *_: None)
        assert not model._forward_hooks
    assert torch.equal(predict(model, IMAGES), in_eval_mode(TRUSTED[name]))
    assert random.getstate() == state[0]
    assert torch.equal(torch.get_rng_state(), state[1])
    assert int(model.norm.num_batches_tracked) == 0  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize("name", NOT_TRUSTED)
def test_a_classifier_that_a_replica_would_get_wrong_is_run_itself(name: str) -> None:
    model, expected = NOT_TRUSTED[name](), in_eval_mode(NOT_TRUSTED[name])
    state, seen = random.getstate(), vars(model).get("calls")
    for _ in range(2):
        with isolated(model, IMAGES) as still:
            assert still is model
            assert not any(module.training for module in model.modules())
        assert torch.equal(predict(model, IMAGES), expected)
    assert all(module.training for module in model.modules())
    assert vars(model).get("calls") == seen
    assert random.getstate() == state
    assert int(model.norm.num_batches_tracked) == 0  # type: ignore[union-attr, arg-type]


def test_a_replica_follows_changes_of_its_classifier() -> None:
    model = Base()
    before = predict(model, IMAGES)
    with torch.no_grad():
        model.out.weight.neg_()
        model.out.bias.neg_()
    assert not torch.equal(predict(model, IMAGES), before)
    model.out = nn.Linear(4 * 36, 3)
    with torch.no_grad():
        expected = model.eval()(IMAGES).argmax(1)
    assert torch.equal(predict(model.train(), IMAGES), expected)
    calls: list[int] = []
    model.out.register_forward_hook(lambda *_: calls.append(1))
    predict(model, IMAGES)
    assert calls


class Nested(Base):
    def prepare(self) -> None:
        self.settings: dict[str, Any] = {"factors": [1.0, [1.0]]}

    def forward(self, images: Tensor) -> Tensor:
        one, (other,) = self.settings["factors"]
        found: Tensor = one * other * super().forward(images)
        return found


def test_a_replica_follows_changes_deep_in_a_container() -> None:
    model = Nested()
    before = extract_features(model, IMAGES, "out")[1]
    model.settings["factors"][1][0] = -2.0
    assert torch.allclose(extract_features(model, IMAGES, "out")[1], -2 * before)


@pytest.mark.parametrize("make", [Base, Closure, InList])
def test_no_classifier_is_kept_alive(make: Callable[[], nn.Module]) -> None:
    gc.collect()
    before = len(_REPLICAS._replicas)
    for _ in range(5):
        model = make()
        model.register_forward_hook(lambda *_, own=model: own and None)
        predict(model, IMAGES)
    del model
    gc.collect()
    assert len(_REPLICAS._replicas) <= before


class Meeting(Base):
    """Threads meet in its forward pass; if one had to wait for the other, they would not."""

    def prepare(self) -> None:
        self.meet: list[Callable[[], object]] = [lambda: None]

    def forward(self, images: Tensor) -> Tensor:
        MEETING[0]()
        return super().forward(images)


MEETING: list[Callable[[], object]] = [lambda: None]


@pytest.mark.parametrize("count", [1, 2])
def test_threads_run_classifiers_at_the_same_time(count: int) -> None:
    """Two classifiers, or one and the same."""

    def run(model: nn.Module) -> Tensor:
        with isolated(model, IMAGES) as still, torch.no_grad():
            assert still is not model
            found: Tensor = still(IMAGES)
        return found

    models = [Meeting() for _ in range(count)] * (2 // count)
    for model in models:
        predict(model, IMAGES)
    barrier = threading.Barrier(2)
    MEETING[0] = lambda: barrier.wait(timeout=30)
    try:
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(run, models))
    finally:
        MEETING[0] = lambda: None
    assert torch.equal(*found)


class Appends(Base):
    """Leaves something in a list and takes it out again, and writes into a buffer."""

    def prepare(self) -> None:
        self.skips: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.skips.append(images)
        maps = self.norm(self.convolution(images)).relu()
        maps = maps * self.skips.pop().mean((1, 2, 3), keepdim=True)
        found: Tensor = self.out(self.drop(maps.flatten(1)))
        return found


class Writes(Base):
    def prepare(self) -> None:
        self.register_buffer("memory", torch.zeros(600, 4 * 36))

    def forward(self, images: Tensor) -> Tensor:
        maps = self.norm(self.convolution(images)).relu().flatten(1)
        self.memory[: len(maps)].copy_(maps)  # type: ignore[index]
        found: Tensor = self.out(self.drop(self.memory[: len(maps)]))  # type: ignore[index]
        return found


class Hooked(Base):
    def prepare(self) -> None:
        self.seen: dict[str, Tensor] = {}
        self.norm.register_forward_hook(lambda _m, _i, out: self.seen.update(norm=out))

    def forward(self, images: Tensor) -> Tensor:
        self.norm(self.convolution(images))
        found: Tensor = self.out(self.drop(self.seen["norm"].relu().flatten(1)))
        return found


@pytest.mark.parametrize("make", [Base, Appends, Writes, Hooked])
def test_one_classifier_in_four_threads_gives_each_its_own(make: Callable[[], nn.Module]) -> None:
    """Layers are read by hooks, which must not meet those of another thread."""
    model = make()
    generator = torch.Generator().manual_seed(3)
    batches = [torch.rand(size, 1, 8, 8, generator=generator) for size in (5, 40, 10, 17) * 8]

    def features(images: Tensor) -> tuple[Tensor, Tensor]:
        return extract_features(model, images, "norm")

    expected = [features(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(features, batches))
    for own, truth in zip(found, expected, strict=True):
        assert torch.allclose(own[0], truth[0], atol=1e-6)
        assert torch.allclose(own[1], truth[1], atol=1e-6)


def test_a_thread_of_the_user_s_is_not_disturbed_by_a_trial() -> None:
    model = Base().eval()
    with torch.no_grad():
        expected = model(IMAGES)
    done, wrong = threading.Event(), []

    def serve() -> None:
        while not done.is_set():
            try:
                with torch.no_grad():
                    if not torch.allclose(model(IMAGES), expected, atol=1e-6):
                        wrong.append("another result")
            except Exception as error:
                wrong.append(repr(error))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        for size in range(40):
            # A new type of images each time needs a new trial.
            _REPLICAS._replicas.pop(model, None)
            predict(model, IMAGES[:, :, :, :] + size)
    finally:
        done.set()
        thread.join()
    assert wrong == []


class Batch1(Base):
    """Batch norm in a closure, in train mode where the classifier is."""

    def prepare(self) -> None:
        inner = self.norm.forward
        self.norm.forward = lambda input: inner(input) * 1.0  # type: ignore[method-assign] # noqa: A006


def test_a_trial_writes_nothing_into_the_classifier() -> None:
    model = Batch1()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    predict(model, IMAGES)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_wrapping_leaves_the_modes_of_a_classifier() -> None:
    model = Base()
    model.norm.eval()
    Detector(model, logits=lambda output: output, metrics=["kernel_density"])
    normalized(model, 0.5, 0.25)
    assert not model.norm.training
    assert model.training


def test_two_detectors_in_two_threads_give_what_they_give_alone(
    digits: Batch, training_digits: Batch
) -> None:
    images, labels = (part[:600] for part in training_digits)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        models = [
            nn.Sequential(
                nn.Flatten(),
                nn.Linear(784, width),
                nn.ReLU(),
                nn.Dropout(0.4),
                nn.Linear(width, 10),
            )
            for width in (40, 50)
        ]
    detectors = [
        Detector(model, metrics=PAPER_METRICS, passes=5).fit(images, labels) for model in models
    ]
    for detector in detectors:
        detector.fit_combiner(digits[0][:100])
    expected = [detector.score(digits[0][100:400]) for detector in detectors]
    state = torch.get_rng_state()
    with ThreadPoolExecutor(2) as pool:
        for _ in range(10):
            found = list(pool.map(lambda detector: detector.score(digits[0][100:400]), detectors))
            assert all(np.array_equal(*pair) for pair in zip(found, expected, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for model in models for module in model.modules())
