"""The engine against the plain loop with the same masks; laws of fixed and fresh masks."""

import copy
import pickle
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import prune

from leery import tuning
from leery.attacks import BIM
from leery.errors import InputError, NoDropoutError, UnknownLayerError, UnsupportedModelError
from leery.mc_dropout import MCDropout, _engine, _masked_linear, _sampler, insert_dropout
from leery.mc_dropout._engine import Engine
from leery.mc_dropout._masked_linear import MaskedLinear
from leery.metrics import (
    confidence,
    mutual_information,
    predictive_entropy,
    uncertainty,
)
from leery.models import extract_features
from tests.conftest import Batch
from tests.mc_dropout.reference import plain_loop
from tests.mc_dropout.zoo import (
    ZOO,
    Auxiliary,
    SizesByContent,
    WholeLogits,
    bare,
    build,
    inputs,
    perceptron,
)


@pytest.mark.parametrize(("count", "batch_size"), [(1, 256), (33, 256), (33, 20), (33, 12)])
@pytest.mark.parametrize("name", ZOO)
def test_the_passes_equal_the_plain_loop_with_the_same_masks(
    name: str, count: int, batch_size: int, digits: Batch
) -> None:
    model, images = build(name), inputs(name, digits[0][:count])
    before = images.clone()
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    sampler = MCDropout(model, passes=6, seed=4, batch_size=batch_size)
    seen = sampler.observe(images)
    assert seen.probs.shape[:2] == (6, count)
    assert float((seen.probs - plain_loop(sampler, images)).abs().max()) < 1e-5
    assert float((seen.probs.sum(-1) - 1).abs().max()) < 1e-5
    # The passes differ from each other, and the logits are those of the eval mode.
    assert float(seen.probs.std(0).max()) > 1e-4
    with torch.no_grad():
        assert torch.allclose(seen.logits, model(images.clone()), rtol=1e-4, atol=1e-5)
    assert torch.equal(images, before)
    assert not any(module.training for module in model.modules())
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[key]), key


@pytest.mark.parametrize("elements", [1, 50_000, 2**30])
@pytest.mark.parametrize("name", [name for name in ZOO if not ZOO[name].loop])
def test_passes_that_share_operations_equal_the_plain_loop(
    name: str, elements: int, digits: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU for any number of images: one pass, some passes or all passes at a time."""
    monkeypatch.setattr(_engine, "FEW_IMAGES", 100)
    monkeypatch.setitem(tuning.SHARED_ELEMENTS, "cpu", elements)
    images = inputs(name, digits[0][:33])
    sampler = MCDropout(build(name), passes=6, seed=4)
    assert float((sampler.sample(images) - plain_loop(sampler, images)).abs().max()) < 1e-5
    (prepared,) = sampler._prepared.values()
    assert prepared.engine is not None
    assert prepared.engine._shares_operations


@pytest.mark.parametrize("failure", ["something else", "an error"])
def test_operations_are_not_shared_where_that_fails(
    failure: str, digits: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Engine.all_passes

    def all_passes(*args: Any) -> Tensor:
        if failure == "an error":
            raise RuntimeError(failure)
        return right(*args) + 0.01

    monkeypatch.setattr(Engine, "all_passes", all_passes)
    sampler = MCDropout(perceptron(0.5), passes=3)
    found = sampler.sample(digits[0][:5])
    assert float((found - plain_loop(sampler, digits[0][:5])).abs().max()) < 1e-5


class InputDropout(nn.Module):
    """Dropout on pixels, of which many are 0; or on units that are 0 without being flat there."""

    def __init__(self, *, smooth: bool) -> None:
        super().__init__()
        first = [nn.Conv2d(1, 2, 3, bias=False), nn.GELU()] if smooth else []
        self.net = nn.Sequential(*first, nn.Flatten(), nn.Dropout(0.5), nn.LazyLinear(10))
        self.net(torch.zeros(1, 1, 28, 28))

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.net(images)
        return out


@pytest.mark.parametrize("smooth", [False, True])
def test_a_unit_that_is_zero_has_a_derivative(smooth: bool, digits: Batch) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sampler = MCDropout(InputDropout(smooth=smooth).eval(), passes=4)
    found = []
    for images in (digits[0][:5], digits[0][:20]):
        variable = images.clone().requires_grad_()
        probs = sampler.observe_with_gradient(variable).probs
        found.append(torch.autograd.grad(probs.square().sum(), variable)[0][:5])
    black = digits[0][:5] == 0
    largest = float(found[1][black].abs().max())
    assert largest > 1e-5
    assert torch.allclose(found[0], found[1], rtol=1e-3, atol=largest / 1000)


@pytest.mark.parametrize("name", ["DigitNet", "FashionNet", "transformer"])
def test_a_gradient_through_few_images_is_that_through_many(name: str, digits: Batch) -> None:
    sampler = MCDropout(build(name), passes=4)
    found = []
    for images in (digits[0][:5], digits[0][:20]):
        variable = images.clone().requires_grad_()
        probs = sampler.observe_with_gradient(variable).probs
        found.append(torch.autograd.grad(probs.square().sum(), variable)[0][:5])
    assert float(found[0].abs().max()) > 0
    assert torch.allclose(found[0], found[1], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ZOO)
def test_the_plan_says_which_way_is_taken_and_why(name: str, digits: Batch) -> None:
    plan = MCDropout(build(name), passes=2).explain_plan(inputs(name, digits[0][:3]))
    assert plan.way == ("loop" if ZOO[name].loop else "graph")
    assert ZOO[name].loop in plan.reason
    assert bool(plan.reason) == bool(ZOO[name].loop)
    assert 0 <= plan.repeated <= 1
    assert (plan.repeated == 0) == (name == "dropout last")
    assert plan.stochastic


@pytest.mark.parametrize("name", ZOO)
def test_an_image_s_passes_do_not_depend_on_the_others(name: str, digits: Batch) -> None:
    images = inputs(name, digits[0][:20])
    sampler = MCDropout(build(name), passes=3)
    whole = sampler.sample(images)
    backwards = sampler.sample(images.flip(0)).flip(1)
    alone = torch.cat([sampler.sample(image.unsqueeze(0)) for image in images[:3]], dim=1)
    assert float((whole - backwards).abs().max()) < 1e-5
    assert float((whole[:, :3] - alone).abs().max()) < 1e-5


def test_a_failed_capture_says_nothing_on_standard_error(
    capfd: pytest.CaptureFixture[str],
) -> None:
    MCDropout(build("branching"), passes=2).sample(torch.rand(3, 1, 28, 28))
    assert capfd.readouterr().err == ""


def test_weight_normalisation_and_pruning_are_in_the_graph(digits: Batch) -> None:
    model = perceptron(0.5)
    nn.utils.parametrizations.weight_norm(model[1])
    prune.l1_unstructured(model[4], "weight", 0.5)
    sampler = MCDropout(model.eval(), passes=3)
    probs = sampler.sample(digits[0][:5])
    assert sampler.explain_plan(digits[0][:5]).way == "graph"
    assert float((probs - plain_loop(sampler, digits[0][:5])).abs().max()) < 1e-5


def test_what_is_stochastic_is_named_with_its_rate_and_mask() -> None:
    plan = MCDropout(build("functional"), layers=["hidden"]).explain_plan(torch.rand(2, 1, 28, 28))
    assert [(layer.name, layer.kind, layer.shape) for layer in plan.stochastic] == [
        ("", "Functional", (1, 4, 1, 1)),
        ("", "Functional", (1, 20)),
    ]
    assert [layer.rate for layer in plan.stochastic] == pytest.approx([0.2, 0.4])
    assert plan.layers == ("hidden",)
    text = str(MCDropout(build("transformer")).explain_plan(torch.rand(2, 1, 28, 28)))
    assert "encoder.layers.1.dropout2 (Dropout): drops 0.2, mask (1, 28, 28)" in text
    assert "encoder.layers.0.self_attn (MultiheadAttention): drops 0.2, mask (1, 4, 28, 28)" in text
    assert text.startswith("way: graph (the deterministic part once, ")
    assert "because torch.export" in str(
        MCDropout(build("branching")).explain_plan(torch.rand(2, 1, 28, 28))
    )


def test_the_repeated_share_counts_multiplications_of_kept_columns() -> None:
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 100), nn.Dropout(0.5), nn.Linear(100, 80), nn.Linear(80, 10)
    )
    sampler = MCDropout(model, passes=3)
    plan = sampler.explain_plan(torch.rand(2, 1, 28, 28))
    (prepared,) = sampler._prepared.values()
    kept = int(prepared.masks.draws[0].sum()) / 3
    assert plan.repeated == pytest.approx((kept * 80 + 800) / (78400 + 8000 + 800))
    assert plan.once == pytest.approx(78400 / (78400 + 8000 + 800))


@pytest.mark.parametrize("name", ZOO)
def test_the_number_of_threads_does_not_change_a_pass(
    name: str, digits: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_sampler, "IMAGES_OF_A_THREAD", 30)
    images = inputs(name, digits[0][:110])
    sampler = MCDropout(build(name), passes=6, batch_size=16)
    alone = sampler.observe(images)
    torch.set_num_threads(3)
    try:
        shared = sampler.observe(images)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(1)
    assert float((shared.probs - alone.probs).abs().max()) <= 1e-6
    assert torch.allclose(shared.logits, alone.logits, rtol=1e-5, atol=1e-5)


def test_batches_are_worked_on_side_by_side_where_there_are_enough(
    digits: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, seen = Engine._one_pass, set()
    met = threading.Barrier(1)

    def one_pass(*args: Any) -> Tensor:
        seen.add(threading.get_ident())
        met.wait()
        return right(*args)

    monkeypatch.setattr(Engine, "_one_pass", one_pass)
    sampler = MCDropout(perceptron(0.5), passes=3)
    sampler.explain_plan(digits[0])
    torch.set_num_threads(2)
    try:
        for count, threads in ((255, 1), (256, 2)):
            seen.clear()
            met = threading.Barrier(threads, timeout=60)
            sampler.sample(digits[0][:count])
            assert len(seen) == threads
            assert (threading.get_ident() in seen) == (threads == 1)
    finally:
        torch.set_num_threads(1)


def test_batches_of_one_image_in_several_threads(
    digits: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_sampler, "IMAGES_OF_A_THREAD", 30)
    sampler = MCDropout(perceptron(0.5), passes=3, batch_size=1)
    alone = sampler.sample(digits[0][:65])
    torch.set_num_threads(2)
    try:
        assert torch.allclose(sampler.sample(digits[0][:65]), alone, atol=1e-6)
    finally:
        torch.set_num_threads(1)


def test_threads_share_operations_where_each_would_need_too_much_memory(
    digits: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = MCDropout(perceptron(0.5), passes=3)
    sampler.explain_plan(digits[0])
    (prepared,) = sampler._prepared.values()
    assert prepared.engine is not None
    assert prepared.engine.weight_elements == 40 * 10  # of the layer behind the dropout
    torch.set_num_threads(3)
    try:
        assert sampler._threads(prepared, 384) == 3
        monkeypatch.setattr(_sampler, "SELECTED_ELEMENTS", 3 * prepared.engine.weight_elements - 1)
        assert sampler._threads(prepared, 384) == 1
    finally:
        torch.set_num_threads(1)


def test_cached_weights_are_bounded(digits: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("DigitNet")
    whole = MCDropout(model, passes=6).sample(digits[0][:60])
    # The first layer has 128 x 2,880 elements, of which each of six passes selects about a quarter;
    # the last one has 10 x 128, of which each selects half.
    for most, least in ((0, 0), (10_000, 10 * 128), (2**24, 128 * 2880 + 6 * 64 * 1440)):
        monkeypatch.setattr(_masked_linear, "CACHED_ELEMENTS", most)
        sampler = MCDropout(model, passes=6, batch_size=20)
        for _ in range(2):
            assert torch.allclose(sampler.sample(digits[0][:60]), whole, rtol=0, atol=1e-6)
        assert 0.9 * least <= _cached(sampler) <= min(most, 2 * least + 10_000)


def test_weights_are_cached_for_one_kind_of_images_only(digits: Batch) -> None:
    sampler = MCDropout(perceptron(0.5), passes=3)
    images = digits[0][:20]
    kinds = images, images.flatten(1), images
    for kind in kinds:
        sampler.sample(kind)
        assert 40 * 10 < _cached(sampler) < 2 * 40 * 10 * 2
    assert len(sampler._prepared) == 2
    fresh = MCDropout(perceptron(0.5), passes=3, masks="fresh", batch_size=17)
    fresh.sample(digits[0][:40])
    assert _cached(fresh) == 0


def _cached(sampler: MCDropout) -> int:
    """The number of elements that are kept from one call to the next."""
    return sum(each.cache.elements for each in sampler._prepared.values())


def test_cached_weights_are_not_selected_again(
    digits: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = MCDropout(build("DigitNet"), passes=6)
    first = sampler.sample(digits[0][:60])
    monkeypatch.delattr(MaskedLinear, "selected")
    assert torch.equal(sampler.sample(digits[0][:60]), first)
    with torch.no_grad():
        sampler.model.hidden[0].weight.data.mul_(2)  # type: ignore[index, union-attr]
    with pytest.raises(InputError, match="AttributeError: .*selected"):
        sampler.sample(digits[0][:60])


_HEADS = {"classify.1.weight", "weight", "linear.weight"}


@pytest.mark.parametrize("name", ["DigitNet", "drop connect", "two masks", "masked weight"])
def test_a_change_that_the_first_pass_drops_is_seen_by_the_others(name: str, digits: Batch) -> None:
    model, images = build(name), digits[0][:20]
    sampler, forgetful = MCDropout(model, passes=6), MCDropout(model, passes=6)
    before = sampler.sample(images)
    weight = next(part for name, part in reversed([*model.named_parameters()]) if name in _HEADS)
    seen = 0
    for unit in range(weight.shape[1]):
        # Not even torch's own count of changes is raised.
        weight.data[0, unit] += 4
        for prepared in forgetful._prepared.values():
            prepared.cache.clear()
        expected = forgetful.sample(images)
        assert torch.equal(sampler.sample(images), expected)
        differs = (expected - before).abs().flatten(1).amax(1) > 1e-3
        seen += bool(differs.any() and not differs[0])
        before = expected
        if seen == 8:
            break
    assert seen == 8


def test_copies_of_a_used_sampler_give_what_it_gives(digits: Batch) -> None:
    sampler = MCDropout(build("DigitNet"), passes=3)
    probs = sampler.sample(digits[0][:20])
    for replica in (copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler))):  # noqa: S301 - our own
        assert torch.equal(replica.sample(digits[0][:20]), probs)


@pytest.mark.parametrize("rate", [0.3, 0.5])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_has_its_graph_too(dtype: torch.dtype, rate: float, digits: Batch) -> None:
    for seed in range(4):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = perceptron(rate).to(dtype)
        sampler = MCDropout(model, passes=6)
        images = digits[0][:20].to(dtype)
        assert sampler.explain_plan(images).way == "graph"
        # A few units in the last place of logits of about one.
        allowed = 4 * torch.finfo(dtype).eps
        assert float((sampler.sample(images) - plain_loop(sampler, images)).abs().max()) < allowed


@pytest.mark.parametrize("kind", [SizesByContent, WholeLogits])
def test_odd_values_run_by_the_graph(kind: type[nn.Module], digits: Batch) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = kind().eval()
    sampler = MCDropout(model, passes=6)
    probs = sampler.sample(digits[0][:33])
    assert sampler.explain_plan(digits[0]).way == "graph"
    assert float((probs - plain_loop(sampler, digits[0][:33])).abs().max()) < 1e-5


def test_a_pass_that_keeps_nothing(digits: Batch) -> None:
    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(
            *(nn.Flatten(), nn.Linear(784, 3), nn.ReLU(), nn.Dropout(0.7), nn.Linear(3, 4)),
            *(nn.Dropout(0.7), nn.Linear(4, 10)),
        )
    sampler = MCDropout(model, passes=20)
    probs = sampler.sample(digits[0][:20])
    (prepared,) = sampler._prepared.values()
    for draws in prepared.masks.draws:
        assert int(draws.flatten(1).sum(1).min()) == 0
    assert float((probs - plain_loop(sampler, digits[0][:20])).abs().max()) < 1e-5


@pytest.mark.parametrize("name", ["DigitNet", "FashionNet"])
def test_a_score_does_not_depend_on_the_batch_size(name: str, digits: Batch) -> None:
    sampler = MCDropout(build(name), passes=20, layers=["hidden"])
    images = digits[0][:256]
    whole = sampler.observe(images)
    for size in (1, 7):
        sampler.batch_size = size
        cut = sampler.observe(images[:70])
        assert float((cut.probs - whole.probs[:, :70]).abs().max()) <= 1e-5
        assert float((cut.layers["hidden"] - whole.layers["hidden"][:70]).abs().max()) <= 1e-5
        assert torch.allclose(cut.logits, whole.logits[:70], rtol=0, atol=1e-5)


def test_features_and_logits_are_those_of_the_model_without_dropout(
    digit_net: nn.Module, digits: Batch
) -> None:
    seen = MCDropout(digit_net, passes=2, layers=["hidden"]).observe(digits[0][:40])
    features, logits = extract_features(digit_net, digits[0][:40], "hidden")
    assert features.shape == (40, 128)
    assert torch.allclose(seen.layers["hidden"], features, atol=1e-5)
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
    adversarial = BIM(0.12)(digit_net, images, labels)
    truth = torch.arange(4000).numpy() >= 2000
    areas: dict[str, dict[str, float]] = {}
    for masks in ("fixed", "fresh"):
        sampler = MCDropout(digit_net, passes=50, masks=masks)
        probs = sampler.sample(torch.cat([images, adversarial]))
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
    (prepared,) = sampler._prepared.values()
    (kept,) = prepared.masks.draws
    assert kept.shape == (400, 1, 40)
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


def test_replaced_layers_without_tensors_and_new_hooks_are_seen(digits: Batch) -> None:
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 9), nn.ReLU(), nn.Dropout(), nn.Linear(9, 10)
    )
    sampler, images = MCDropout(model, passes=3), digits[0][:5]
    seen = [sampler.sample(images)]
    model[2] = nn.Tanh()
    seen.append(sampler.sample(images))
    model[2].register_forward_hook(lambda _module, _inputs, output: 2 * output)
    seen.append(sampler.sample(images))
    for number, found in enumerate(seen):
        assert number == 0 or not torch.allclose(found, seen[number - 1])
    assert torch.equal(seen[2], MCDropout(model, passes=3).sample(images))


def test_an_engine_that_gives_other_logits_is_not_used(
    digits: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Engine._one_pass
    monkeypatch.setattr(Engine, "_one_pass", lambda *args: right(*args) + 0.01)
    sampler = MCDropout(perceptron(0.5), passes=3)
    plan = sampler.explain_plan(digits[0][:5])
    assert (plan.way, plan.reason) == ("loop", "the graph gives other logits than the model")
    monkeypatch.undo()
    expected = MCDropout(sampler.model, passes=3).sample(digits[0][:5])
    assert torch.allclose(sampler.sample(digits[0][:5]), expected, atol=1e-6)


class Masked(nn.Module):
    """Attention of an image's rows on those of its rows that are not empty."""

    def forward(self, images: Tensor) -> Tensor:
        rows = images.squeeze(1)
        seen = (rows.sum(-1) > 0).unsqueeze(1).expand(-1, 28, -1)
        rate = 0.3 if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(rows, rows, rows, seen, dropout_p=rate)
        return mixed.sum(1)[:, :10]


def test_attention_to_nothing_is_zero_as_in_torch() -> None:
    sampler = MCDropout(Masked(), passes=3)
    images = torch.rand(3, 1, 28, 28)
    sampler.sample(images)
    images[1] = 0
    probs = sampler.sample(images)
    assert torch.allclose(probs[:, 1], torch.full((3, 10), 0.1))
    assert probs.isfinite().all()


class Rolls(nn.Module):
    """Draws from Python's generator."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(784, 10)

    def forward(self, images: Tensor) -> Tensor:
        rate = random.random() / 2 if self.training else 0.0  # noqa: S311 - bad on purpose
        out: Tensor = self.out(functional.dropout(images.flatten(1), rate, self.training))
        return out


def test_random_numbers_that_are_not_torch_s_are_refused(digits: Batch) -> None:
    with pytest.raises(UnsupportedModelError, match="from Python or numpy; use torch.rand"):
        MCDropout(Rolls(), passes=2).sample(digits[0][:5])


def test_more_random_numbers_than_memory_has_are_refused(digits: Batch) -> None:
    with pytest.raises(
        InputError, match="at most 268435456 random draws in all passes, got 10000 passes"
    ):
        MCDropout(
            nn.Sequential(nn.Conv2d(1, 99, 1), nn.Dropout(), nn.Flatten(), nn.Linear(77616, 10)),
            passes=10_000,
        ).sample(digits[0][:2])


def test_an_input_that_the_model_cannot_look_up_is_refused() -> None:
    sampler = MCDropout(build("text"), passes=2)
    tokens = torch.ones(3, 15, dtype=torch.int64)
    sampler.sample(tokens)
    tokens[1, 2] = 50
    with pytest.raises(InputError, match="which it rejects .IndexError: index out of range"):
        sampler.sample(tokens)


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


def test_a_layer_without_a_trace_in_the_graph_is_read_by_the_loop(digits: Batch) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Identity(), nn.Dropout(0.5), nn.Linear(784, 10))
    sampler = MCDropout(model, passes=2, layers=["1"])
    seen = sampler.observe(digits[0][:5])
    assert torch.equal(seen.layers["1"], digits[0][:5].flatten(1))
    plan = sampler.explain_plan(digits[0][:5])
    assert (plan.way, plan.reason) == ("loop", "layer '1' is not in its graph")


def test_weights_that_are_not_finite_are_refused() -> None:
    model = perceptron(0.5)
    with torch.no_grad():
        model[1].weight.mul_(torch.nan)  # type: ignore[operator]
    with pytest.raises(InputError, match="finite logits, got NaN or infinity; check the model's"):
        MCDropout(model, passes=2).sample(torch.rand(3, 1, 28, 28))


def test_memory_does_not_grow_with_the_batch_because_it_is_cut(digits: Batch) -> None:
    sampler = MCDropout(perceptron(0.5), passes=3, batch_size=8)
    seen = [part.probs.shape[1] for part in sampler.stream(digits[0][:20])]
    assert seen == [7, 7, 6]


@pytest.mark.parametrize(("most", "sizes"), [(3 * 10 * 30, [20, 20]), (1, [14, 13, 13])])
def test_many_probabilities_are_worked_on_fewer_images_at_a_time(
    most: int, sizes: list[int], digits: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = MCDropout(perceptron(0.5), passes=3)
    whole = sampler.sample(digits[0][:40])
    monkeypatch.setattr(_sampler, "ELEMENTS_AT_ONCE", most)
    parts = [part.probs for part in sampler.stream(digits[0][:40])]
    assert [part.shape[1] for part in parts] == sizes
    assert torch.allclose(torch.cat(parts, 1), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("limit", "most", "name"),
    [
        # The widest tensor is one of a pass, one whose rows share a dimension with the images, and
        # one that all passes share.
        ("ELEMENTS_AT_ONCE", 64 * 7 * 7 * 30, "FashionNet"),
        ("ELEMENTS_AT_ONCE", 14 * 56 * 30, "images before rows"),
        ("ELEMENTS_AT_ONCE", 2880 * 30, "DigitNet"),
        ("ELEMENTS_AT_ONCE", 30 * 30, "stochastic depth"),
        ("WHOLE_MODEL", 30, "recurrent"),
    ],
)
def test_of_large_models_fewer_images_are_worked_on_at_a_time(
    limit: str, most: int, name: str, digits: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = MCDropout(build(name), passes=3)
    assert [part.probs.shape[1] for part in sampler.stream(digits[0][:40])] == [40]
    monkeypatch.setattr(_sampler, limit, most)
    assert [part.probs.shape[1] for part in sampler.stream(digits[0][:40])] == [20, 20]


@pytest.mark.parametrize("rate", [None, 0.0])
def test_a_model_without_dropout_is_refused_with_the_ways_out(rate: float | None) -> None:
    layers = [nn.Flatten(), *([] if rate is None else [nn.Dropout(rate)]), nn.Linear(784, 10)]
    model = nn.Sequential(*layers)
    text = (
        rf"got Sequential without any; use leery.mc_dropout.insert_dropout\(model, "
        rf"before='{len(layers) - 1}', p=0.5\), or metrics that need no dropout"
    )
    with pytest.raises(NoDropoutError, match=text):
        MCDropout(model).sample(torch.rand(3, 1, 28, 28))


def test_what_is_dropped_whole_is_dropped_in_each_pass(digits: Batch) -> None:
    model = nn.Sequential(
        nn.Flatten(), nn.Dropout(0.5), nn.Linear(784, 40), nn.Dropout(1.0), nn.Linear(40, 10)
    )
    sampler = MCDropout(model, passes=3)
    probs = sampler.sample(digits[0][:5])
    assert torch.allclose(probs, model[4].bias.softmax(0).expand_as(probs))  # type: ignore[operator]
    with torch.no_grad():
        logits = model.eval()(digits[0][:5])
    assert torch.allclose(sampler.observe(digits[0][:5]).logits, logits, rtol=1e-5, atol=1e-6)


class WantsTargets(nn.Module):
    """Fails in train mode, so that its own dropout cannot be woken."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Dropout(rate), nn.Linear(784, 10))

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            message = "no targets"
            raise ValueError(message)
        return functional.dropout(self.layers(images), 0.5, self.training)


def test_what_passes_leave_out_is_said(digits: Batch) -> None:
    images, failure = digits[0][:5], "the model in train mode raises ValueError: no targets"
    plan = MCDropout(WantsTargets(0.5), passes=3).explain_plan(images)
    assert [layer.name for layer in plan.stochastic] == ["layers.1"]
    assert plan.caveat == f"only torch's dropout layers act: {failure}"
    assert str(plan).endswith(f"\ncaveat: {plan.caveat}")
    with pytest.raises(NoDropoutError, match=f"without any; .*need no dropout .*{failure}"):
        MCDropout(WantsTargets(0.0), passes=3).sample(images)


class AlwaysOn(nn.Module):
    """The usual slip: functional dropout that does not ask for the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(784, 10)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.head(functional.dropout(images.flatten(1), 0.5))
        return out


class Shuffles(nn.Module):
    """Random numbers that are no dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.net = perceptron(0.5)

    def forward(self, images: Tensor) -> Tensor:
        order = torch.randperm(28) if self.training else torch.arange(28)
        out: Tensor = self.net(images[..., order])
        return out


class Neighbours(nn.Module):
    """Each image's logits depend on the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1, track_running_stats=False)
        self.net = perceptron(0.5)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.net(self.norm(images))
        return out


class DropsAsItLikes(nn.Module):
    """As many draws as there are images."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(784, 10)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.head(torch.stack([self.drop(image.flatten()) for image in images]))
        return out


class Scales(nn.Module):
    """Does more than drop in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(784, 10)

    def forward(self, images: Tensor) -> Tensor:
        hidden = functional.dropout(images.flatten(1), 0.5, self.training)
        out: Tensor = self.head(hidden) * (2 if self.training else 1)
        return out


class Counts(nn.Module):
    """Writes into a buffer in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.head = nn.Linear(784, 10)

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.calls.add_(1)  # type: ignore[operator]
        out: Tensor = self.head(functional.dropout(images.flatten(1), 0.5, self.training))
        return out


class Lopsided(nn.Module):
    """Dropout where two dimensions count the images."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(784, 10)

    def forward(self, images: Tensor) -> Tensor:
        flat = images.flatten(1)
        mixing = self.drop(torch.eye(len(flat)))
        out: Tensor = self.head(mixing @ flat)
        return out


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (
            AlwaysOn(),
            "model that is deterministic in eval mode, got one that is not; pass training=",
        ),
        (Neighbours(), "depends on the others in its batch; use running"),
        (DropsAsItLikes(), "got 2 draws for two images and 3 for three; make dropout independent"),
        (
            Scales(),
            "model whose train mode adds only dropout, got other logits with nothing dropped",
        ),
        (
            Counts(),
            "does not write to parameters and buffers while dropout is on, got one that does",
        ),
        (Lopsided(), r"got shape \(2, 2\) for two images and \(3, 3\) for three in 'drop'"),
        (nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(784, 1)), "at least 2 classes"),
        (nn.Sequential(nn.Dropout(0.5), nn.Conv2d(1, 3, 3)), r"logits \(2, classes\), got \(2, 3,"),
    ],
)
def test_a_model_that_cannot_be_sampled_is_refused(model: nn.Module, text: str) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UnsupportedModelError, match=text):
        MCDropout(model, passes=2).sample(torch.rand(3, 1, 28, 28))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_only_modules_that_draw_are_put_into_train_mode(digits: Batch) -> None:
    """A model whose train mode shuffles is sampled by its dropout layer alone."""
    sampler = MCDropout(Shuffles().eval(), passes=4)
    probs = sampler.sample(digits[0][:5])
    assert float((probs - plain_loop_in_eval(sampler, digits[0][:5])).abs().max()) < 1e-5


def plain_loop_in_eval(sampler: MCDropout, images: Tensor) -> Tensor:
    """:func:`plain_loop` of the perceptron inside."""
    inner = sampler.model.net
    assert isinstance(inner, nn.Module)
    own = MCDropout(inner, sampler.passes, sampler.seed)
    own.sample(images)
    return plain_loop(own, images)


def test_auxiliary_heads_stay_asleep(digits: Batch) -> None:
    torch.manual_seed(0)
    sampler = MCDropout(Auxiliary().eval(), passes=4)
    probs = sampler.sample(digits[0][:5])
    assert float((probs - plain_loop_in_eval(sampler, digits[0][:5])).abs().max()) < 1e-5


@pytest.mark.parametrize("kind", [nn.Sequential, nn.Linear])
def test_inserted_dropout_leaves_the_model_alone_and_shares_its_weights(
    kind: type[nn.Module], digits: Batch
) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 40), nn.Sequential(nn.Linear(40, 10)))
    before = str(model)
    replica = insert_dropout(model, before="2" if kind is nn.Sequential else "2.0", p=0.3)
    assert str(model) == before
    assert list(replica.state_dict()) == list(model.state_dict())
    for one, other in zip(replica.parameters(), model.parameters(), strict=True):
        assert one is other
    images = digits[0][:9]
    with torch.no_grad():
        assert torch.equal(replica.eval()(images), model(images))
        assert not torch.equal(replica.train()(images), model(images))
    plan = MCDropout(replica, passes=2).explain_plan(images)
    assert [layer.name for layer in plan.stochastic] == ["2.0.leery_dropout"]
    copied = pickle.loads(pickle.dumps(replica))  # noqa: S301 - our own
    assert str(copied) == str(replica)


def test_where_dropout_cannot_be_inserted_it_is_said() -> None:
    attention = nn.Sequential(nn.MultiheadAttention(8, 2), nn.Linear(8, 2))
    with pytest.raises(
        InputError, match=r"got '0.out_proj', whose weights its attention module reads"
    ):
        insert_dropout(attention, before="0.out_proj")
    with pytest.raises(UnknownLayerError, match="got 'fc'; the model has: 0, 1, 2, 3"):
        insert_dropout(bare(), before="fc")
    for p in (0.0, 1.0):
        with pytest.raises(InputError, match=f"between 0 and 1, got {p}"):
            insert_dropout(bare(), before="3", p=p)
    blocks = nn.Sequential()
    blocks.blocks = nn.ModuleList([nn.Linear(3, 3)])
    with pytest.raises(
        InputError, match="'blocks', which is only a container; name a layer inside"
    ):
        insert_dropout(blocks, before="blocks")
    with pytest.raises(InputError, match="'3', which has one; insert into the original"):
        insert_dropout(insert_dropout(bare(), before="3"), before="3")


def test_impossible_settings_are_refused(digit_net: nn.Module) -> None:
    with pytest.raises(InputError, match="passes as a whole number of at least 1, got 0"):
        MCDropout(digit_net, passes=0)
    with pytest.raises(InputError, match="seed of at least 0, got -1"):
        MCDropout(digit_net, seed=-1)
    with pytest.raises(InputError, match='masks "fixed" or "fresh", got \'new\''):
        MCDropout(digit_net, masks="new")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="batch size of at least 1, got 0"):
        MCDropout(digit_net, batch_size=0)
    with pytest.raises(UnknownLayerError, match="got 'fc'; the model has: convolutions, "):
        MCDropout(digit_net, layers=["fc"])


def test_images_the_model_does_not_accept_are_refused(digit_net: nn.Module) -> None:
    with pytest.raises(InputError, match=r"got shape \(2, 3, 28, 28\)"):
        MCDropout(digit_net, passes=2).sample(torch.rand(4, 3, 28, 28))
    with pytest.raises(InputError, match="got an empty batch"):
        MCDropout(digit_net, passes=2).sample(torch.rand(0, 1, 28, 28))
    with pytest.raises(InputError, match="NaN or infinity in 1 of 2"):
        MCDropout(digit_net, passes=2).sample(
            torch.stack([torch.zeros(1, 28, 28), torch.full((1, 28, 28), torch.inf)])
        )
