"""Logits out of whatever a classifier returns, the head that gives them, and what is no logits."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from leery import PAPER_METRICS, Detector
from leery.attacks import FGSM
from leery.errors import InputError, UnknownLayerError, UnsupportedModelError
from leery.models import last_hidden_layer, normalized, unwrapped, with_logits

Head = Callable[["Net", Tensor], Any]


@dataclass
class Output:
    """What a classifier of transformers returns."""

    logits: Tensor
    hidden: Tensor


class Net(nn.Module):
    """A hidden layer, and a head of any kind."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.hidden, self.drop = nn.Linear(48, 16), nn.Dropout(0.3)
            self.out, self.aux, self.low = nn.Linear(16, 3), nn.Linear(16, 3), nn.Linear(16, 3)
        self.head = head
        self.eval()

    def forward(self, images: Tensor) -> Any:
        return self.head(self, self.drop(self.hidden(images.flatten(1)).relu()))


def pictures(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def fitted(model: nn.Module, **settings: Any) -> Detector:
    return Detector(model, metrics=PAPER_METRICS, passes=3, **settings).fit(
        pictures(60), torch.arange(60) % 3
    )


PLAIN = Net(lambda net, h: net.out(h))

OUTPUTS: dict[str, tuple[Head, Any]] = {
    "a field called logits": (lambda net, h: Output(net.out(h), h), None),
    "a dictionary with logits": (lambda net, h: {"logits": net.out(h), "h": h}, None),
    "a field that is named": (lambda net, h: {"scores": net.out(h), "h": h}, "scores"),
    "an index": (lambda net, h: (h, net.out(h)), 1),
    "a function": (lambda net, h: [net.out(h), h], lambda output: output[0]),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_logits_are_found_and_give_the_same_detector(name: str, tmp_path: object) -> None:
    head, where = OUTPUTS[name]
    found, expected = fitted(Net(head), logits=where), fitted(PLAIN)
    new = pictures(20, 1)
    assert np.allclose(found.measure(new).values, expected.measure(new).values, atol=1e-5)
    made = FGSM(0.1)(found.model, new, torch.arange(20) % 3)
    assert torch.allclose(made, FGSM(0.1)(PLAIN, new, torch.arange(20) % 3))
    found.save(f"{tmp_path}/d")
    again = Detector.load(f"{tmp_path}/d", Net(head), logits=where if callable(where) else None)
    assert np.array_equal(again.measure(new).values, found.measure(new).values)


def test_between_several_outputs_nothing_is_guessed() -> None:
    with pytest.raises(UnsupportedModelError, match=r"got a tuple of 2; say where .*logits=\.\.\."):
        fitted(Net(lambda net, h: (net.out(h), h)))
    with pytest.raises(UnsupportedModelError, match="got dict with a, b; say where they are"):
        fitted(Net(lambda net, h: {"a": net.out(h), "b": h}))
    with pytest.raises(
        UnsupportedModelError, match="'c' in the output of the model, got dict with"
    ):
        fitted(Net(lambda net, h: {"a": net.out(h)}), logits="c")
    for wrong in (2.5, True):
        with pytest.raises(InputError, match="a function, a field name or an index, got"):
            with_logits(PLAIN, wrong)  # type: ignore[arg-type]


HEADS: dict[str, tuple[Head, str | None]] = {
    "a linear layer": (lambda net, h: net.out(h), "input of out"),
    "another that runs later": (
        lambda net, h: (net.out(h), net.aux(h))[0],
        "input of out",
    ),
    "a log softmax behind it": (lambda net, h: net.out(h).log_softmax(1), "input of out"),
    "a temperature": (lambda net, h: net.out(h) / 7, "input of out"),
    "a function": (lambda net, h: functional.linear(h, net.out.weight, net.out.bias), None),
    "a low-rank addition": (lambda net, h: net.out(h) + 0.5 * net.low(h), None),
    "the mean of two": (lambda net, h: (net.out(h) + net.aux(h)) / 2, None),
    "a function of it": (lambda net, h: net.out(h).exp() - 5, None),
}


@pytest.mark.parametrize("name", HEADS)
def test_the_head_is_the_layer_that_gives_the_logits(name: str) -> None:
    head, expected = HEADS[name]
    if expected is not None:
        assert last_hidden_layer(Net(head), pictures(4)) == expected
        return
    with pytest.raises(UnknownLayerError, match="name the feature layer: a submodule"):
        last_hidden_layer(Net(head), pictures(4))
    named = fitted(Net(head), feature_layer="input of drop")
    assert named.features(pictures(2))[0].shape == (2, 16)


NO_LOGITS: dict[str, tuple[Head, str]] = {
    "softmax": (lambda net, h: net.out(h).softmax(1), "returns probabilities; remove its softmax"),
    "per cent": (lambda net, h: 100 * net.out(h).softmax(1), "rows with sum 100; remove its soft"),
    "sigmoid": (lambda net, h: net.out(h).sigmoid(), r"only elements in \[0, 1\], as a sigmoid"),
}


@pytest.mark.parametrize("name", NO_LOGITS)
def test_what_is_no_logits_is_refused_unless_insisted_on(name: str) -> None:
    head, text = NO_LOGITS[name]
    with pytest.raises(UnsupportedModelError, match=text):
        fitted(Net(head))
    with pytest.raises(UnsupportedModelError, match="trust_outputs=True .--trust-outputs"):
        fitted(Net(head), feature_layer="hidden")
    trusted = fitted(Net(head), feature_layer="hidden", trust_outputs=True)
    assert trusted.measure(pictures(3)).values.shape == (3, 6)


def test_a_normalised_classifier_takes_plain_images() -> None:
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
    wrapped = normalized(PLAIN, mean, std)
    images = pictures(5)
    shaped = [torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std)]
    with torch.no_grad():
        expected = PLAIN((images - shaped[0]) / shaped[1])
        assert torch.allclose(wrapped(images), expected, atol=1e-6)
    made = FGSM(0.1)(wrapped, images, torch.zeros(5, dtype=torch.int64))
    assert float((made - images).abs().max()) == pytest.approx(0.1, abs=1e-6)
    assert float(made.min()) >= 0
    assert last_hidden_layer(wrapped, images) == "input of model.out"
    for bad in (([0.5], [0.0]), ([0.5, 0.5], [1.0]), ([float("nan")], [1.0])):
        with pytest.raises(InputError, match="standard deviation above 0 for each channel, got"):
            normalized(PLAIN, *bad)


def test_wrappers_of_parallel_training_are_taken_off(tmp_path: object) -> None:
    wrapped = nn.DataParallel(PLAIN)
    assert unwrapped(wrapped) is PLAIN
    detector = fitted(wrapped)
    detector.save(f"{tmp_path}/d")
    bare = Detector.load(f"{tmp_path}/d", PLAIN)
    assert np.array_equal(bare.measure(pictures(3)).values, detector.measure(pictures(3)).values)


RAISED = [ValueError("size 8 is not 16"), KeyError("x"), ZeroDivisionError(), AttributeError("n")]


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
def test_whatever_a_classifier_raises_becomes_one_sentence(error: Exception) -> None:
    def fails(_net: Net, _h: Tensor) -> Tensor:
        raise error

    for call in (
        fitted,
        lambda model: FGSM(0.1)(model, pictures(4), torch.zeros(4, dtype=torch.int64)),
        lambda model: last_hidden_layer(model, pictures(4)),
    ):
        with pytest.raises(InputError, match=f"which it rejects .{type(error).__name__}") as caught:
            call(Net(fails))
        assert "\n" not in str(caught.value)
        assert caught.value.__cause__ is error


class Pick:
    """A function of the output that is an object."""

    def __call__(self, output: Any) -> Tensor:
        found: Tensor = output["class-logits"]
        return found


def test_a_file_remembers_where_the_logits_are(tmp_path: object) -> None:
    odd = Net(lambda net, h: {"class-logits": net.out(h)})
    fitted(odd, logits="class-logits").save(f"{tmp_path}/field")
    assert Detector.load(f"{tmp_path}/field", odd).measure(pictures(3)).values.shape == (3, 6)
    with pytest.raises(InputError, match="logits='class-logits', as at the fit, got 'other'"):
        Detector.load(f"{tmp_path}/field", odd, logits="other")
    fitted(odd, logits=Pick()).save(f"{tmp_path}/function")
    with pytest.raises(InputError, match="expected the function 'Pick' that returns the logits"):
        Detector.load(f"{tmp_path}/function", odd)
    again = Detector.load(f"{tmp_path}/function", odd, logits=Pick())
    assert again.measure(pictures(3)).values.shape == (3, 6)


def test_the_head_is_found_among_equal_images_and_lonely_ones() -> None:
    net = Net(lambda net, h: (net.aux(h), net.out(h))[1])
    equal = pictures(1).repeat(8, 1, 1, 1)
    for images in (equal, pictures(1)):
        assert last_hidden_layer(net, images) == "input of out"
