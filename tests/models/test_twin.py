"""The twin of a classifier: what is trusted, what is not, and threads that do not wait."""

import functools
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

from leery import Detector
from leery.models import guest, predict
from leery.models._guest import _TWINS
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
    """A function that remembers the module itself: a twin cannot replace it."""

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
def test_a_twin_shares_parameters_and_nothing_else(name: str) -> None:
    model = TRUSTED[name]()
    state = random.getstate(), torch.get_rng_state()
    with guest(model, IMAGES) as still:
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
def test_a_classifier_that_a_twin_would_get_wrong_is_run_itself(name: str) -> None:
    model, expected = NOT_TRUSTED[name](), in_eval_mode(NOT_TRUSTED[name])
    state, seen = random.getstate(), vars(model).get("calls")
    for _ in range(2):
        with guest(model, IMAGES) as still:
            assert still is model
            assert not any(module.training for module in model.modules())
        assert torch.equal(predict(model, IMAGES), expected)
    assert all(module.training for module in model.modules())
    assert vars(model).get("calls") == seen
    assert random.getstate() == state
    assert int(model.norm.num_batches_tracked) == 0  # type: ignore[union-attr, arg-type]


def test_a_twin_follows_changes_of_its_classifier() -> None:
    model = Base()
    before = predict(model, IMAGES)
    with torch.no_grad():
        model.out.weight.neg_()
        model.out.bias.neg_()
    written = predict(model, IMAGES)
    assert not torch.equal(written, before)
    model.out = nn.Linear(4 * 36, 3)
    with torch.no_grad():
        expected = model.eval()(IMAGES).argmax(1)
    assert torch.equal(predict(model.train(), IMAGES), expected)
    calls: list[int] = []
    model.out.register_forward_hook(lambda *_: calls.append(1))
    predict(model, IMAGES)
    assert calls


def test_a_twin_does_not_keep_its_classifier_alive() -> None:
    model = Base()
    predict(model, IMAGES)
    assert model in _TWINS._twins
    before = len(_TWINS._twins)
    del model
    assert len(_TWINS._twins) == before - 1


class Meeting(Base):
    """Threads meet in its forward pass; if one had to wait for the other, they would not."""

    def prepare(self) -> None:
        self.barrier = threading.Barrier(1)

    def forward(self, images: Tensor) -> Tensor:
        self.barrier.wait(timeout=20)
        return super().forward(images)


def test_threads_run_two_classifiers_at_the_same_time() -> None:
    models = [Meeting(), Meeting()]
    for model in models:
        predict(model, IMAGES)
    # Attributes are the same objects in the twin, so that both now wait for each other.
    both = threading.Barrier(2)
    for model in models:
        model.barrier._parties = 2  # type: ignore[attr-defined]
        model.barrier.wait = both.wait  # type: ignore[method-assign]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda model: predict(model, IMAGES), models))
    assert torch.equal(*found)


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
    guards = [Detector(model, passes=5).fit(images, labels) for model in models]
    for guard in guards:
        guard.fit_combiner(digits[0][:100])
    expected = [guard.score(digits[0][100:400]) for guard in guards]
    state = torch.get_rng_state()
    with ThreadPoolExecutor(2) as pool:
        for _ in range(10):
            found = list(pool.map(lambda guard: guard.score(digits[0][100:400]), guards))
            assert all(np.array_equal(*pair) for pair in zip(found, expected, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for model in models for module in model.modules())
