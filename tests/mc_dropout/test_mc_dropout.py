"""The engine against the plain loop with the same masks; laws of fixed and fresh masks."""

from collections.abc import Callable

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional

from leery.attacks import BIM
from leery.classifiers import pretrained
from leery.errors import InputError, NoDropoutError, UnknownLayerError, UnsupportedModelError
from leery.features import extract_features
from leery.mc_dropout import MCDropout
from leery.metrics import (
    confidence,
    mutual_information,
    predictive_entropy,
    uncertainty,
)
from tests.conftest import Batch


def plain_loop(sampler: MCDropout, images: Tensor) -> Tensor:
    """Every pass through the whole model, its dropout layers replaced by the sampler's masks."""
    (captured,) = sampler._captured.values()
    engine, masks = captured.engine, captured.masks
    layers = [
        module
        for module in sampler.model.modules()
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
    ]
    assert len(layers) == len(engine.sites)
    passes = []
    for index in range(sampler.passes):
        hooks = [
            layer.register_forward_hook(_mask(kept[index], site.scale))
            for layer, kept, site in zip(layers, masks.kept, engine.sites, strict=True)
        ]
        with torch.no_grad():
            passes.append(sampler.model.eval()(images).softmax(-1))
        for hook in hooks:
            hook.remove()
    return torch.stack(passes)


def _mask(kept: Tensor, scale: float):  # type: ignore[no-untyped-def]  # noqa: ANN202 - a hook
    return lambda _module, inputs, _output: inputs[0] * kept.float() * scale


class Residual(nn.Module):
    """Batch norm, an in-place ReLU, channel dropout, and a branch around a dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6))
        self.act = nn.ReLU(inplace=True)
        self.channels = nn.Dropout2d(0.3)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.units = nn.Dropout(0.4, inplace=True)
        self.head = nn.Linear(6 * 14 * 14, 10)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.act(self.first(images))
        hidden = hidden + self.second(self.channels(hidden))
        pooled = functional.max_pool2d(functional.relu_(hidden), 2)
        out: Tensor = self.head(self.units(pooled.flatten(1)))
        return out


def two_heads() -> nn.Module:
    """One dropout that feeds two linear layers, one of them without bias."""

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)
            self.left = nn.Linear(784, 10)
            self.right = nn.Linear(784, 10)
            self.last = nn.Sequential(nn.Dropout(0.2), nn.Linear(10, 10, bias=False))

        def forward(self, images: Tensor) -> Tensor:
            units = self.drop(images.flatten(1))
            out: Tensor = self.last(torch.tanh(self.left(units)) + self.right(units))
            return out

    return Heads()


class Grouped(nn.Module):
    """A linear layer that sees each image as four rows, whose units have masks of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.rows = nn.Linear(196, 8)
        self.head = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        rows = self.rows(self.drop(images.flatten(1)).view(-1, 196))
        out: Tensor = self.head(torch.relu(rows).view(images.size(0), -1))
        return out


class ViewBehind(nn.Module):
    """A view that merges dimensions right behind a linear layer behind a dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.rows = nn.Linear(784, 40)
        self.head = nn.Linear(20, 5)

    def forward(self, images: Tensor) -> Tensor:
        rows = self.rows(self.drop(images.view(images.size(0), -1))).view(-1, 20)
        out: Tensor = self.head(torch.relu(rows)).view(-1, 10)
        return out


class DropConnect(nn.Module):
    """Dropout on a weight instead of on activations."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.weight = nn.Parameter(torch.rand(10, 784))

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = functional.linear(images.flatten(1), self.drop(self.weight))
        return out


class TwoMasks(nn.Module):
    """Dropout on the input and on the weight of one linear layer, and a dead branch."""

    def __init__(self) -> None:
        super().__init__()
        self.drop_input, self.drop_weight = nn.Dropout(0.5), nn.Dropout(0.3)
        self.weight = nn.Parameter(torch.randn(10, 784) / 28)
        self.bias = nn.Parameter(torch.zeros(10))
        self.dead = nn.Linear(784, 3)
        self.scale = nn.Parameter(torch.ones(784))

    def forward(self, images: Tensor) -> Tensor:
        units = self.drop_input(images.flatten(1))
        self.dead(units * self.scale)
        out: Tensor = functional.linear(units, self.drop_weight(self.weight), self.bias)
        return out


class WritesOver(nn.Module):
    """In-place dropout on a view of a tensor that is read again."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5, inplace=True)
        self.left, self.right = nn.Linear(784, 10), nn.Linear(1, 10)

    def forward(self, images: Tensor) -> Tensor:
        hidden = images * 2
        out: Tensor = self.left(self.drop(hidden.flatten(1))) + self.right(hidden.mean((2, 3)))
        return out


class AsksForTheBatchSize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = perceptron(0.5)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.net(images)
        return out * 100 if images.shape[0] > 3 else out


class Mixed(nn.Module):
    """Dropout where rows and images have been mixed in one dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(784, 10)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.head(self.drop(images.view(-1, 28)).view(-1, 784))
        return out


def perceptron(rate: float) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 40), nn.ReLU(), nn.Dropout(rate), nn.Linear(40, 10)
    )


MODELS: dict[str, Callable[[], nn.Module]] = {
    "DigitNet": lambda: pretrained("mnist").model,
    "FashionNet": lambda: pretrained("fashion-mnist").model,
    "residual": Residual,
    "two heads": two_heads,
    "grouped": Grouped,
    "view behind": ViewBehind,
    "drop connect": DropConnect,
    "two masks": TwoMasks,
    "perceptron": lambda: perceptron(0.5),
    "all dropped": lambda: perceptron(1.0),
    "all in place": lambda: nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 40),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5, inplace=True),
        nn.Linear(40, 40),
        nn.ELU(inplace=True),
        nn.Dropout(0.2, inplace=True),
        nn.Linear(40, 10),
    ),
    "dropout first": lambda: nn.Sequential(nn.Dropout(0.1), nn.Flatten(), nn.Linear(784, 10)),
    "dropout last": lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10), nn.Dropout(0.3)),
    "partly off": lambda: nn.Sequential(nn.Dropout(0.0), nn.Flatten(), *perceptron(0.25)[1:]),  # type: ignore[index]
}


@pytest.fixture(params=list(MODELS))
def model(request: pytest.FixtureRequest) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        made: nn.Module = MODELS[request.param]()
        for module in made.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
        return made.eval()


@pytest.mark.parametrize("count", [1, 33])
def test_the_engine_equals_the_plain_loop_with_the_same_masks(
    model: nn.Module, count: int, digits: Batch
) -> None:
    images = digits[0][:count]
    sampler = MCDropout(model, passes=6, seed=4)
    probs = sampler.sample(images)
    assert probs.shape == (6, count, 10)
    assert float((probs - plain_loop(sampler, images)).abs().max()) < 1e-5
    assert float((probs.sum(-1) - 1).abs().max()) < 1e-5


def test_the_passes_differ_unless_nothing_or_everything_is_dropped(
    model: nn.Module, digits: Batch, request: pytest.FixtureRequest
) -> None:
    probs = MCDropout(model, passes=5).sample(digits[0][:4])
    spread = float(probs.std(0).max())
    if "all dropped" in request.node.callspec.id:
        assert spread == 0.0
    else:
        assert spread > 1e-4


@pytest.mark.parametrize("name", ["DigitNet", "FashionNet"])
def test_a_score_does_not_depend_on_the_batch_size(name: str, digits: Batch) -> None:
    sampler = MCDropout(MODELS[name](), passes=20, layer="hidden")
    images = digits[0][:256]
    whole = sampler.observe(images)
    for size in (1, 7):
        sampler.batch_size = size
        cut = sampler.observe(images[:70])
        assert cut.features is not None
        assert whole.features is not None
        assert float((cut.probs - whole.probs[:, :70]).abs().max()) <= 1e-6
        assert float((cut.features - whole.features[:70]).abs().max()) <= 1e-5
        assert torch.allclose(cut.logits, whole.logits[:70], rtol=0, atol=1e-5)


def test_features_and_logits_are_those_of_the_model_without_dropout(
    digit_net: nn.Module, digits: Batch
) -> None:
    seen = MCDropout(digit_net, passes=2, layer="hidden").observe(digits[0][:40])
    features, logits = extract_features(digit_net, digits[0][:40], "hidden")
    assert seen.features is not None
    assert features.shape == (40, 128)
    assert torch.allclose(seen.features, features, atol=1e-5)
    assert torch.allclose(seen.logits, logits, atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(logits, digit_net(digits[0][:40]), atol=1e-5)


def test_fixed_masks_repeat_and_depend_on_the_seed(digit_net: nn.Module, digits: Batch) -> None:
    images = digits[0][:30]
    first = MCDropout(digit_net, passes=5, seed=7)
    probs = first.sample(images)
    assert torch.equal(first.sample(images), probs)
    assert torch.equal(MCDropout(digit_net, passes=5, seed=7).sample(images), probs)
    assert not torch.equal(MCDropout(digit_net, passes=5, seed=8).sample(images), probs)


def test_fresh_masks_differ_at_each_call_and_repeat_from_the_seed(
    digit_net: nn.Module, digits: Batch
) -> None:
    images = digits[0][:30]
    one = MCDropout(digit_net, passes=5, seed=7, masks="fresh")
    other = MCDropout(digit_net, passes=5, seed=7, masks="fresh")
    first, second = one.sample(images), one.sample(images)
    assert not torch.equal(first, second)
    assert torch.equal(other.sample(images), first)
    assert torch.equal(other.sample(images), second)


def test_fixed_and_fresh_masks_agree_in_auc_on_2000_digits(
    digit_net: nn.Module, digits: Batch
) -> None:
    images, labels = (part[:2000] for part in digits)
    twins = BIM(0.12)(digit_net, images, labels)
    truth = torch.arange(4000).numpy() >= 2000
    areas: dict[str, dict[str, float]] = {}
    for masks in ("fixed", "fresh"):
        sampler = MCDropout(digit_net, passes=50, masks=masks)
        probs = sampler.sample(torch.cat([images, twins]))
        areas[masks] = {
            metric.__name__: roc_auc_score(truth, metric(probs).numpy())
            for metric in (uncertainty.variance, predictive_entropy, mutual_information)
        }
        areas[masks]["confidence"] = roc_auc_score(truth, -confidence(probs).numpy())
    for name, area in areas["fixed"].items():
        assert area > 0.8
        assert area == pytest.approx(areas["fresh"][name], abs=0.01)


def test_the_share_of_kept_units_is_one_minus_the_rate() -> None:
    sampler = MCDropout(perceptron(0.3), passes=400)
    sampler.sample(torch.rand(2, 1, 28, 28))
    (captured,) = sampler._captured.values()
    (kept,) = captured.masks.kept
    assert kept.shape == (400, 40)
    # 16,000 draws: the standard error is 0.0036.
    assert float(kept.double().mean()) == pytest.approx(0.7, abs=0.015)


def test_later_changes_of_the_weights_are_seen(digits: Batch) -> None:
    model = perceptron(0.5)
    sampler = MCDropout(model, passes=3)
    before = sampler.sample(digits[0][:5])
    with torch.no_grad():
        list(model.parameters())[-2].mul_(3.0)
    after = sampler.sample(digits[0][:5])
    assert not torch.allclose(before, after)
    assert float((after - plain_loop(sampler, digits[0][:5])).abs().max()) < 1e-5


def _assign(model: nn.Sequential) -> None:
    model.load_state_dict({k: v * 2 for k, v in model.state_dict().items()}, assign=True)


def _replace(model: nn.Sequential) -> None:
    with torch.random.fork_rng(devices=[]):
        model[4] = nn.Linear(40, 10)


def _other_rate(model: nn.Sequential) -> None:
    model[3].p = 0.05  # type: ignore[assignment]


def _convert(model: nn.Sequential) -> None:
    model.double().float()
    with torch.no_grad():
        model[1].weight.mul_(2)  # type: ignore[operator]


@pytest.mark.parametrize("change", [_assign, _replace, _other_rate, _convert])
def test_replaced_tensors_layers_and_rates_are_seen(
    change: Callable[[nn.Sequential], None], digits: Batch
) -> None:
    model = perceptron(0.5)
    assert isinstance(model, nn.Sequential)
    sampler = MCDropout(model, passes=3)
    before = sampler.sample(digits[0][:5])
    change(model)
    after = sampler.sample(digits[0][:5])
    assert not torch.allclose(before, after)
    assert torch.equal(after, MCDropout(model, passes=3).sample(digits[0][:5]))


def test_masks_do_not_depend_on_the_default_type_or_device(digits: Batch) -> None:
    model = perceptron(0.5)
    expected = MCDropout(model, passes=3).sample(digits[0][:5])
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(MCDropout(model, passes=3).sample(digits[0][:5]), expected)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        assert torch.equal(MCDropout(model, passes=3).sample(digits[0][:5]), expected)


def test_a_layer_that_leaves_no_trace_and_weights_that_are_not_finite_are_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Identity(), nn.Dropout(0.5), nn.Linear(784, 10))
    with pytest.raises(UnknownLayerError, match="got '1', which leaves no trace in the model's"):
        MCDropout(model, passes=2, layer="1").observe(torch.rand(3, 1, 28, 28))
    with torch.no_grad():
        model[3].weight.mul_(torch.nan)  # type: ignore[operator]
    with pytest.raises(InputError, match="finite logits, got NaN or infinity; check the model's"):
        MCDropout(model, passes=2).sample(torch.rand(3, 1, 28, 28))


def test_memory_does_not_grow_with_the_batch_because_it_is_cut(digits: Batch) -> None:
    sampler = MCDropout(perceptron(0.5), passes=3, batch_size=8)
    seen = [part.probs.shape[1] for part in sampler.stream(digits[0][:20])]
    assert seen == [8, 8, 4]


def test_a_model_without_dropout_is_refused_with_the_ways_out() -> None:
    for rate in (None, 0.0):
        layers = [nn.Flatten(), nn.Linear(784, 10)]
        model = nn.Sequential(*layers, *([] if rate is None else [nn.Dropout(rate)]))
        with pytest.raises(NoDropoutError, match=r"nn.Dropout layers of p > 0, got Sequential"):
            MCDropout(model)


class Branching(nn.Module):
    """Control flow that depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.net = perceptron(0.5)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.net(images) if images.mean() > 0.1 else self.net(-images)
        return out


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (Branching(), "expected a model whose graph torch.export can capture"),
        (WritesOver(), "aten.dropout_.default on a view of one that is read later"),
        (AsksForTheBatchSize(), "whose forward asks for the batch size"),
        (nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(784, 1)), "at least 2 classes"),
        (Mixed(), r"first dimension counts the images, got shape \(28\*s\d+, 28\)"),
        (nn.Sequential(nn.Dropout(0.5), nn.Conv2d(1, 3, 3)), r"logits \(2, classes\), got \(2, 3,"),
        (
            nn.Sequential(nn.Flatten(), nn.AlphaDropout(0.5), nn.Linear(784, 10)),
            "got aten.alpha_dropout.default",
        ),
    ],
)
def test_a_model_that_cannot_be_split_is_refused(model: nn.Module, text: str) -> None:
    with pytest.raises(UnsupportedModelError, match=text):
        MCDropout(model, passes=2).sample(torch.rand(3, 1, 28, 28))


def test_impossible_settings_are_refused(digit_net: nn.Module) -> None:
    with pytest.raises(InputError, match="at least 1 pass, got 0"):
        MCDropout(digit_net, passes=0)
    with pytest.raises(InputError, match="seed of at least 0, got -1"):
        MCDropout(digit_net, seed=-1)
    with pytest.raises(InputError, match='masks "fixed" or "fresh", got \'new\''):
        MCDropout(digit_net, masks="new")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="batch size of at least 1, got 0"):
        MCDropout(digit_net, batch_size=0)
    with pytest.raises(UnknownLayerError, match="got 'fc'; the model has: convolutions, "):
        MCDropout(digit_net, layer="fc")


def test_images_the_model_does_not_accept_are_refused(digit_net: nn.Module) -> None:
    with pytest.raises(InputError, match=r"got shape \(2, 3, 28, 28\)"):
        MCDropout(digit_net, passes=2).sample(torch.rand(4, 3, 28, 28))
    with pytest.raises(InputError, match="got an empty batch"):
        MCDropout(digit_net, passes=2).sample(torch.rand(0, 1, 28, 28))
    with pytest.raises(InputError, match="NaN or infinity in 1 of 2"):
        MCDropout(digit_net, passes=2).sample(
            torch.stack([torch.zeros(1, 28, 28), torch.full((1, 28, 28), torch.inf)])
        )
