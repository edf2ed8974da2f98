"""The suite, and the tests that it applies to itself."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from leery.attacks import FGSM, PGD, Attack, CrossEntropy, GradientAttack
from leery.attacks._gradient import Climb
from leery.attacks.adaptive import (
    Decisions,
    FalseAlarm,
    Selective,
    SmallestEvasion,
    Target,
    active_test,
    adaptive_attacks,
    indicators,
    worst_case,
)
from leery.errors import InputError
from tests.conftest import Batch


class Unsure:
    """Flags images of which the classifier is not sure: minus the lead of the largest logit."""

    differentiable = True

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def score(self, images: Tensor) -> np.ndarray:
        with torch.no_grad():
            return self.differentiable_score(images).double().numpy()

    def differentiable_score(self, images: Tensor) -> Tensor:
        first, second = self.model(images).topk(2, dim=1).values.unbind(1)
        found: Tensor = (second - first).double()
        return found


@pytest.fixture
def some(digit_net: nn.Module, digits: Batch) -> Batch:
    """Thirty images that are classified correctly and surely, and their classes."""
    images, labels = (part[:60] for part in digits)
    with torch.no_grad():
        right = digit_net(images).argmax(1) == labels
    right &= torch.from_numpy(Unsure(digit_net).score(images) < -3)
    return images[right][:30], labels[right][:30]


@pytest.fixture
def target(digit_net: nn.Module) -> Target:
    return Target.of_scorer(Unsure(digit_net), -3.0)


def test_the_target_of_a_scorer(target: Target, digit_net: nn.Module, some: Batch) -> None:
    images, labels = some
    with torch.no_grad():
        logits = digit_net(images)
    first, second = logits.topk(2, dim=1).values.unbind(1)
    classes, excess = target.judge(images)
    assert torch.equal(classes, logits.argmax(1))
    assert torch.allclose(excess, (second - first + 3).double(), atol=1e-4)
    assert torch.allclose(target.excess(images).detach().double(), excess, atol=1e-4)
    assert not bool(target.evaded_by(images, labels).any())
    # The class is wrong, and the image is not flagged.
    assert bool(target.evaded_by(images, labels + 1).all())


def test_attacks_of_each_kind_evade_a_weak_guard(target: Target, some: Batch) -> None:
    images, labels = some
    attacks = adaptive_attacks(target, 0.3, classes=10, steps=300, pool=images)
    assert {"selective", "orthogonal", "weighted", "confident", "transfer", "features"} < set(
        attacks
    )
    assert sum(name.startswith("towards") for name in attacks) == 9
    for name in ("selective", "orthogonal", "weighted", "confident", "towards +1"):
        found = worst_case(target, {name: attacks[name]}, images, labels)
        assert found.rows.evaded.mean() >= 0.95, name
        assert set(found.rows.by[found.rows.evaded]) == {name}
        assert float((found.images - images).abs().max()) <= 0.3 + 1e-6
        assert torch.equal(
            target.evaded_by(found.images, labels), torch.tensor(found.rows.evaded.to_numpy())
        )


def test_a_constant_score_is_no_obstacle(digit_net: nn.Module, some: Batch) -> None:
    class Constant(Unsure):
        def differentiable_score(self, images: Tensor) -> Tensor:
            return torch.zeros(len(images))

    images, labels = (part[:5] for part in some)
    target = Target.of_scorer(Constant(digit_net), 1.0)
    attacks = adaptive_attacks(target, 0.3, classes=10, steps=50, pool=images)
    for name in ("selective", "orthogonal", "weighted", "confident"):
        attack = attacks[name]
        assert bool(target.evaded_by(attack(digit_net, images, labels), labels).all()), name
        assert isinstance(attack, GradientAttack)
        assert indicators(target, attack, images, labels).unlimited == 1.0
    alarm = partial(FalseAlarm, excess=target.excess)
    alarms = PGD(0.3, steps=3, random_start=False, objective=alarm)
    assert torch.equal(alarms(digit_net, images, labels), images)
    smallest = SmallestEvasion(target.excess, steps=300)(digit_net, images, labels)
    assert bool(target.evaded_by(smallest, labels).all())


@pytest.mark.parametrize(("classes", "towards"), [(2, 1), (10, 9), (100, 9)])
def test_at_most_nine_classes_are_attacked_one_by_one(
    classes: int, towards: int, target: Target
) -> None:
    names = adaptive_attacks(target, 0.3, classes=classes, steps=1)
    offsets = [int(name.removeprefix("towards +")) for name in names if "towards" in name]
    assert len(set(offsets)) == len(offsets) == towards
    assert (min(offsets), max(offsets)) == (1, {2: 1, 10: 9, 100: 89}[classes])


def test_of_many_classes_the_likeliest_are_attacked() -> None:
    # The logits are minus the squared distance to a class's place on a circle: the likeliest wrong
    # classes are its neighbours.
    angles = torch.arange(20) * torch.pi / 10
    places = 0.5 + 0.4 * torch.stack([angles.cos(), angles.sin()], 1)
    layer = nn.Linear(2, 20)
    with torch.no_grad():
        layer.weight.copy_(200 * places)
        layer.bias.copy_(-100 * places.square().sum(1))
    model = nn.Sequential(layer).eval()
    labels = torch.arange(20)
    assert torch.equal(model(places).argmax(1), labels)
    target = Target(
        model,
        lambda images: 0 * images.sum(1) - 1,
        lambda images: (model(images).argmax(1), -torch.ones(len(images)).double()),
    )
    attacks = adaptive_attacks(target, 0.2, classes=20, steps=200, pool=places)
    for place in range(1, 10):
        attack = attacks[f"towards likeliest {place}"]
        assert isinstance(attack, GradientAttack)
        distance = (attack.objective(model).towards - labels).abs()  # type: ignore[attr-defined]
        assert bool((torch.minimum(distance, 20 - distance) == (place + 1) // 2).all())
    found = model(attacks["towards likeliest 1"](model, places, labels)).argmax(1)
    assert bool((found != labels).all())


def test_a_guard_is_a_classifier_with_a_class_for_what_is_flagged(
    target: Target, digits: Batch
) -> None:
    images = torch.cat([digits[0][:30], 0.5 * digits[0][:30] + 0.25])
    seen = Decisions(target, classes=10)(images)
    classes, excess = target.judge(images)
    assert seen.shape == (60, 11)
    assert bool((seen.sum(1) == 1).all())
    flagged = excess > 0
    assert 0 < int(flagged.sum()) < 60
    assert bool((seen.argmax(1)[flagged] == 10).all())
    assert torch.equal(seen.argmax(1)[~flagged], classes[~flagged])
    with pytest.raises(InputError, match="classes"):
        Decisions(target, classes=1)
    with pytest.raises(InputError, match="expected 5 classes, got an image of class 9"):
        Decisions(target, classes=5)(images)


def test_more_steps_and_a_larger_ball_find_more(target: Target, some: Batch) -> None:
    images, labels = some

    def share(epsilon: float, steps: int) -> float:
        attack = PGD(
            epsilon,
            steps=steps,
            step_size=epsilon / 10,
            random_start=False,
            objective=partial(Selective, excess=target.excess),
        )
        made = attack(target.model, images, labels)
        return float(target.evaded_by(made, labels).double().mean())

    assert share(0.2, 5) < share(0.2, 100)
    assert share(0.1, 100) < share(0.3, 100)


def test_images_that_evade_the_guard_are_set_aside(target: Target, some: Batch) -> None:
    images, labels = some
    sizes: list[int] = []

    class Counting(PGD):
        def climb(self, climb: Climb) -> Tensor:
            sizes.append(len(climb.origin))
            return super().climb(climb)

    attack = Counting(0.3, steps=100, objective=partial(Selective, excess=target.excess))
    found = worst_case(target, {"first": attack, "second": attack}, images, labels, restarts=2)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 30
    assert sizes[-1] < 30
    rows = found.rows
    assert set(rows.steps[rows.evaded]) <= {1, 10, 100}
    assert set(rows.restart[rows.evaded]) <= {0, 1}
    assert list(rows.by[~rows.evaded]) == [""] * int((~rows.evaded).sum())


def test_an_attack_of_another_kind_takes_part(target: Target, some: Batch) -> None:
    images, labels = some

    def swap(model: nn.Module, batch: Tensor, truth: Tensor, *, seed: int = 0) -> Tensor:
        """Replaces each image by a clean one of another class."""
        del model, batch, seed
        return torch.stack([images[labels != label][0] for label in truth.tolist()])

    found = worst_case(target, {"swap": swap}, images, labels)
    assert found.rows.evaded.all()
    with pytest.raises(InputError, match="restarts"):
        worst_case(target, {"swap": swap}, images, labels, restarts=0)


def test_labels_that_do_not_fit_are_refused(target: Target, some: Batch) -> None:
    images, labels = some
    with pytest.raises(InputError, match=r"labels to be 0\.\.9"):
        worst_case(target, {}, images, labels + 100)
    for wrong in (labels[:-1], labels.double()):
        with pytest.raises(InputError, match="label"):
            worst_case(target, {}, images, wrong)
        with pytest.raises(InputError, match="label"):
            target.evaded_by(images, wrong)


# ---- the active test -----------------------------------------------------------------------------


def named(name: str) -> Callable[[Target], Attack]:
    return lambda target: adaptive_attacks(target, 0.3, classes=2, steps=100)[name]


def ignoring(target: Target) -> Attack:
    """An attack that knows nothing of the score."""
    del target
    return PGD(0.3, steps=100)


@pytest.mark.parametrize("name", ["selective", "orthogonal", "weighted", "confident", "towards +1"])
def test_attacks_find_what_was_planted(name: str, target: Target, some: Batch) -> None:
    # Clean images of which the classifier is a little less sure are flagged by this threshold.
    found = active_test(
        target, named(name), some[0], epsilon=0.3, inner_points=300, random_points=20
    )
    assert found.planted >= 20
    assert found.found >= 0.95
    assert found.by_chance <= 0.1


def test_an_attack_that_ignores_the_score_fails_the_inverted_test(
    target: Target, some: Batch
) -> None:
    images = some[0]
    settings = {"epsilon": 0.3, "inverted": True, "inner_points": 300, "random_points": 1}
    working, broken = (
        active_test(target, attack, images, **settings)  # type: ignore[arg-type]
        for attack in (named("selective"), ignoring)
    )
    assert working.planted == broken.planted
    assert working.planted >= 5
    assert working.found >= 0.95
    assert broken.found < 0.95


def test_an_attack_without_steps_fails_the_active_test(target: Target, some: Batch) -> None:
    def still(target: Target) -> Attack:
        return PGD(0.3, steps=1, step_size=1e-3, objective=partial(Selective, excess=target.excess))

    found = active_test(target, still, some[0], epsilon=0.3, inner_points=300, random_points=1)
    assert found.found < 0.2


def test_an_active_test_without_a_point_to_plant_is_refused(
    digit_net: nn.Module, some: Batch
) -> None:
    lenient = Target.of_scorer(Unsure(digit_net), 100.0)
    with pytest.raises(InputError, match="choose another epsilon"):
        active_test(lenient, ignoring, some[0][:5], epsilon=0.3, inverted=True)


# ---- indicators ----------------------------------------------------------------------------------


class Rounded(nn.Module):
    """A classifier whose gradients are zero nearly everywhere."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model((images * 8).round() / 8)
        return logits


def selective(target: Target, **settings: float) -> GradientAttack:
    chosen = {"steps": 60, "step_size": 0.03, **settings}
    return PGD(0.3, objective=partial(Selective, excess=target.excess), **chosen)  # type: ignore[arg-type]


def test_a_working_attack_shows_no_sign_of_failure(target: Target, some: Batch) -> None:
    found = indicators(target, selective(target), *some)
    assert found.failed == (), found


def test_gradients_that_are_not_numbers_are_noticed(digit_net: nn.Module, some: Batch) -> None:
    images, labels = some

    def distance(made: Tensor) -> Tensor:
        squares = (made.unsqueeze(1) - images).square().flatten(2).sum(2)
        return squares.sqrt().amin(1) - 1000

    def judge(made: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return digit_net(made).argmax(1), distance(made).double()

    target = Target(digit_net, distance, judge)
    found = indicators(target, selective(target, random_start=False), images, labels)
    assert found.zero == 1


def test_excesses_apart_are_attacked_apart(digit_net: nn.Module, some: Batch) -> None:
    images, labels = some
    target = Target.of_scorer(Unsure(digit_net), -3.0)
    guarded = replace(target, apart=lambda made: torch.stack([target.excess(made)] * 2))
    for own, count in ((target, 2), (guarded, 3)):
        attack = adaptive_attacks(own, 0.3, classes=10, steps=5)["weighted"]
        assert isinstance(attack, GradientAttack)
        assert len(attack.objective(digit_net).value(images, labels)) == count


def test_too_few_steps_are_noticed(target: Target, some: Batch) -> None:
    found = indicators(target, selective(target, steps=3, step_size=0.01), *some)
    assert "moving" in found.failed


def test_zero_gradients_are_noticed(digit_net: nn.Module, some: Batch) -> None:
    model = Rounded(digit_net).eval()
    target = Target.of_scorer(Unsure(model), -3.0)
    found = indicators(target, selective(target, random_start=False), *some)
    assert found.zero == 1
    assert {"zero", "unlimited"} <= set(found.failed)


def test_an_attack_that_ignores_the_score_is_noticed(digit_net: nn.Module, some: Batch) -> None:
    # A guard that flags bright images: without its score, large changes make them brighter.
    def excess(images: Tensor) -> Tensor:
        return images.flatten(1).mean(1) - 0.2

    def judge(images: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return digit_net(images).argmax(1), excess(images).double()

    target = Target(digit_net, excess, judge)
    broken = PGD(0.3, steps=60, objective=CrossEntropy)
    assert "unlimited" in indicators(target, broken, *some).failed
    assert "unlimited" not in indicators(target, selective(target), *some).failed


def test_an_evasion_that_is_not_returned_is_noticed(target: Target, some: Batch) -> None:
    class Last(Selective):
        """Returns its last iterate, which steps back over the boundary."""

        chooses = False

        def direction(self, gradients: Tensor) -> Tensor:
            return -gradients[0] if next(turns) > 40 else gradients[0]

    turns = iter(range(1000))
    attack = PGD(0.3, steps=60, step_size=0.03, objective=partial(Last, excess=target.excess))
    found = indicators(target, attack, *some)
    assert found.silent > 0
    assert "silent" in found.failed


def test_signs_are_looked_for_along_gradients_only(target: Target, some: Batch) -> None:
    attacks = adaptive_attacks(target, 0.3, classes=10, steps=5, pool=some[0])
    squares = attacks["squares"]
    assert isinstance(squares, GradientAttack)
    for attack in (squares, replace(selective(target), epsilon=0.0)):
        with pytest.raises(InputError, match="an attack along gradients with an epsilon above 0"):
            indicators(target, attack, *some)


@pytest.mark.parametrize("infinite", [False, True])
def test_a_classifier_without_a_detector_is_attacked(
    infinite: bool, digit_net: nn.Module, some: Batch
) -> None:
    target = Target.of_scorer(Unsure(digit_net), float("inf") if infinite else 1e6)
    attacks = adaptive_attacks(target, 0.3, classes=10, steps=30)
    for name in ("selective", "weighted", "confident"):
        found = worst_case(target, {name: attacks[name], "fgsm": FGSM(0.0)}, *some)
        assert found.rows.evaded.mean() >= 0.95, name


def test_the_model_is_as_it_was(digit_net: nn.Module, some: Batch) -> None:
    target = Target.of_scorer(Unsure(digit_net), -3.0)
    images, labels = some
    digit_net.train()
    before = {name: value.clone() for name, value in digit_net.state_dict().items()}
    indicators(target, selective(target, steps=2), images[:5], labels[:5])
    active_test(target, named("selective"), images[:5], epsilon=0.3, inner_points=50)
    assert digit_net.training
    assert all(module.training for module in digit_net.modules())
    assert all(torch.equal(before[name], own) for name, own in digit_net.state_dict().items())


def test_an_l2_attack_is_unlimited_beyond_its_own_radius(target: Target, some: Batch) -> None:
    objective = partial(Selective, excess=target.excess)
    attack = PGD(0.1, steps=60, step_size=0.01, norm="l2", objective=objective)
    images, labels = (part[:10] for part in some)
    assert not bool(target.evaded_by(attack(target.model, images, labels), labels).any())
    assert indicators(target, attack, images, labels).unlimited >= 0.9
