"""The objectives of attackers who know the detector."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn
from torch.nn import functional

from leery.attacks import PGD, GradientAttack, NormName
from leery.attacks.adaptive import (
    Accepted,
    BacktrackingPGD,
    CarliniWagner,
    FalseAlarm,
    FeatureMatching,
    Joint,
    Orthogonal,
    Selective,
    SmallestEvasion,
    SquareSearch,
    Target,
    Targeted,
    Weighted,
    adaptive_attacks,
    worst_case,
)
from leery.attacks.adaptive._objectives import log_odds
from leery.errors import InputError
from tests.conftest import Batch


def excess(images: Tensor) -> Tensor:
    """Darkness: images with a mean below 0.2 are flagged."""
    return 0.2 - images.flatten(1).mean(1)


def gradient(value: Tensor, images: Tensor) -> Tensor:
    return torch.autograd.grad(value.sum(), images, retain_graph=True)[0]


def unit(gradients: Tensor) -> Tensor:
    """Directions of length one."""
    return functional.normalize(gradients.flatten(1).double(), dim=1)


@pytest.fixture
def some(digit_net: nn.Module, digits: Batch) -> Batch:
    """Twenty images that are classified correctly, and their classes."""
    images, labels = (part[:30] for part in digits)
    with torch.no_grad():
        right = digit_net(images).argmax(1) == labels
    return images[right][:20], labels[right][:20]


@pytest.fixture
def wrong(digit_net: nn.Module, some: Batch) -> Batch:
    """Images of which the first half is misclassified, and their true classes."""
    images, labels = some
    attacked = PGD(0.3)(digit_net, images[:10], labels[:10])
    made = torch.cat([attacked, images[10:]]).requires_grad_()
    hits = digit_net(made).argmax(1) == labels
    assert not bool(hits[:10].any())
    assert bool(hits[10:].all())
    return made, labels


def test_the_selective_attack_climbs_one_term_at_a_time(digit_net: nn.Module, wrong: Batch) -> None:
    images, labels = wrong
    objective = Selective(digit_net, excess)
    found = unit(gradient(objective.value(images, labels), images))
    entropy = functional.cross_entropy(digit_net(images).double(), labels, reduction="none")
    assert torch.allclose(found[:10], -unit(gradient(excess(images), images))[:10], atol=1e-6)
    assert torch.allclose(found[10:], unit(gradient(entropy, images))[10:], atol=1e-5)
    values = objective.value(images, labels)
    # Any misclassified iterate is better than any that is not.
    assert bool(values[:10].min() > values[10:].max())
    assert torch.equal(values[:10].argsort(), (-excess(images)[:10]).argsort())


def test_the_orthogonal_attack_leaves_the_other_term_as_it_is(
    digit_net: nn.Module, wrong: Batch
) -> None:
    images, labels = wrong
    objective = Orthogonal(digit_net, excess)
    gradients = torch.stack([gradient(term, images) for term in objective.value(images, labels)])
    found = objective.direction(gradients)
    first, other = (part.flatten(1).double() for part in gradients)
    along = (found.flatten(1).double() * other).sum(1) / other.norm(dim=1)
    assert float((along.detach().abs() / found.flatten(1).norm(dim=1)).max()) < 1e-4
    # It still climbs the first term.
    assert bool(((found.flatten(1) * first).sum(1) > 0).all())
    # Where the two gradients are not parallel, something is taken away.
    assert not torch.allclose(found, gradients[0])


def test_the_weighted_objective_is_zero_exactly_where_the_guard_is_evaded(
    digit_net: nn.Module, wrong: Batch
) -> None:
    images, labels = wrong
    objective = Weighted(digit_net, excess, weight=3.0)
    lack, flagged = objective.value(images, labels)
    assert torch.equal(flagged < 0, excess(images) > 0)
    assert bool((lack[10:] < 0).all())
    assert bool((lack[:10] == 0).all())
    gradients = torch.stack([gradient(term, images) for term in (lack, flagged)])
    found = objective.direction(gradients).flatten(1).double()
    assert torch.allclose(found, unit(gradients[0]) + 3 * unit(gradients[1]), atol=1e-6)
    # A scale of the score does not matter.
    scaled = Weighted(digit_net, lambda made: 1e6 * excess(made), weight=3.0)
    large = torch.stack([gradient(term, images) for term in scaled.value(images, labels)])
    assert torch.allclose(scaled.direction(large).flatten(1).double(), found, atol=1e-4)


def squashed(values: Tensor) -> Tensor:
    return values.double() / (1 + values.double().abs())


def test_confident_objectives_climb_log_probabilities(digit_net: nn.Module, wrong: Batch) -> None:
    images, labels = wrong
    logs = digit_net(images).log_softmax(1)
    others = torch.arange(10) != labels.unsqueeze(1)
    now, other = Accepted(digit_net, excess).value(images, labels)
    goal = squashed(logs[others].view(-1, 9).amax(1))
    # The first half is misclassified.
    assert torch.allclose(now[:10], -squashed(excess(images)[:10]), atol=1e-5)
    assert torch.allclose(other[:10], goal[:10], atol=1e-5)
    assert torch.allclose(now[10:] + 3, goal[10:], atol=1e-5)
    assert torch.allclose(other[10:], -squashed(excess(images)[10:].relu()), atol=1e-5)
    for offset in (1, 9):
        chosen = logs[torch.arange(20), (labels + offset) % 10]
        towards = (torch.arange(10) + offset) % 10
        now, other = Targeted(digit_net, excess, towards=towards).value(images, labels)
        found = torch.cat([other[:10], now[10:] + 3])
        assert torch.allclose(found, squashed(chosen), atol=1e-5)


def test_the_units_of_the_score_do_not_matter(digit_net: nn.Module, wrong: Batch) -> None:
    images, labels = wrong
    steps, orders = [], []
    for unit_of_score in (1e-6, 1.0, 1e6):

        def scaled(made: Tensor, by: float = unit_of_score) -> Tensor:
            return by * excess(made)

        objective = Accepted(digit_net, scaled, weight=2.0)
        terms = objective.value(images, labels)
        gradients = torch.stack([gradient(term, images) for term in terms])
        steps.append(objective.direction(gradients).flatten(1).double())
        found = torch.stack(terms).detach()
        orders.append(
            torch.stack([objective.better(found, found.roll(by, 1)) for by in range(1, 20)])
        )
    assert torch.allclose(steps[1], unit(gradients[0]) + 2 * unit(gradients[1]), atol=1e-4)
    for step, order in zip(steps, orders, strict=True):
        assert torch.allclose(step, steps[1], atol=1e-4)
        assert torch.equal(order, orders[1])
    # Any wrong class is better than the right one, whatever the score.
    assert bool(objective.better(found[:, :10], found[:, 10:]).all())


def test_log_odds_climb_like_the_cross_entropy_and_never_vanish(
    digit_net: nn.Module, some: Batch
) -> None:
    images, labels = some
    seen = images.clone().requires_grad_()
    odds = log_odds(digit_net(seen), labels)
    entropy = functional.cross_entropy(digit_net(seen).double(), labels, reduction="none")
    assert torch.allclose(odds.double().exp(), entropy.expm1(), rtol=1e-3)
    own, same = gradient(odds, seen), gradient(entropy, seen)
    assert torch.allclose(unit(own), unit(same), atol=1e-4)
    hot = gradient(log_odds(100 * digit_net(seen), labels), seen)
    assert bool((hot.flatten(1).norm(dim=1) > 0).all())


def test_the_orthogonal_attack_goes_on_where_both_gradients_are_parallel(
    digit_net: nn.Module,
) -> None:
    first = torch.rand(3, 5, generator=torch.Generator().manual_seed(0))
    for factor in (1.0, -2.0):
        found = Orthogonal(digit_net, excess).direction(torch.stack([first, factor * first]))
        assert torch.allclose(found, functional.normalize(first, dim=1), atol=1e-6)


def test_the_false_alarm_attack_keeps_the_class(digit_net: nn.Module, some: Batch) -> None:
    images, labels = some

    def score(made: Tensor) -> Tensor:
        # Grows most where the class changes.
        logits: Tensor = digit_net(made)
        return logits.gather(1, ((labels + 1) % 10).unsqueeze(1)).squeeze(1)

    class Careless(FalseAlarm):
        def value(self, images: Tensor, labels: Tensor) -> Tensor:
            del labels
            return score(images)

    kept, changed = (
        PGD(0.2, steps=20, objective=partial(kind, excess=score))(digit_net, images, labels)
        for kind in (FalseAlarm, Careless)
    )
    assert bool((digit_net(changed).argmax(1) != labels).any())
    assert torch.equal(digit_net(kept).argmax(1), labels)
    assert bool((score(kept) > score(images)).all())


def test_features_are_driven_to_those_of_another_class(digit_net: nn.Module, digits: Batch) -> None:
    images, labels = (part[:20] for part in digits)
    pool = digits[0][1000:1500]

    def objective(model: nn.Module) -> FeatureMatching:
        return FeatureMatching(model, lambda made: 0 * made.flatten(1).sum(1), pool=pool)

    made = PGD(0.3, steps=60, objective=objective)(digit_net, images, labels)

    def features(batch: Tensor) -> Tensor:
        found: Tensor = digit_net.hidden(digit_net.convolutions(batch))  # type: ignore[operator]
        return found

    with torch.no_grad():
        classes = digit_net(pool).argmax(1)
        distances = torch.cdist(features(made), features(pool))
        nearest = classes[distances.argmin(1)]
        goal, _ = objective(digit_net).goal(made, labels)
        others = torch.where(classes != labels.unsqueeze(1), distances, torch.inf).amin(1)
        scale = features(pool).square().sum(1).mean()
    assert (nearest != labels).double().mean() > 0.8
    assert torch.allclose(goal, -(others**2) / scale, rtol=1e-3)


def test_a_joint_objective_adds_the_odds_of_all_networks(
    digit_net: nn.Module, digits: Batch
) -> None:
    images, labels = (part[:20] for part in digits)
    other = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).eval()
    value = Joint(digit_net, helpers=(other,)).value(images, labels)
    each = [log_odds(model(images), labels) for model in (digit_net, other)]
    assert torch.allclose(value, each[0] + each[1], atol=1e-5)


@pytest.mark.parametrize(
    "attack",
    [
        BacktrackingPGD(0.2, steps=30, objective=lambda model: Accepted(model, excess)),
        SquareSearch(0.2, steps=300, objective=lambda model: Accepted(model, excess)),
    ],
    ids=["backtracking", "squares"],
)
def test_loops_of_their_own_stay_in_the_ball_and_improve(
    attack: PGD, digit_net: nn.Module, digits: Batch
) -> None:
    images, labels = (part[:20] for part in digits)
    before = images.clone()
    made = attack(digit_net, images, labels, seed=1)
    assert torch.equal(images, before)
    assert float((made - images).abs().max()) <= 0.2 + 1e-6
    assert float(made.min()) >= 0
    assert float(made.max()) <= 1
    objective = Accepted(digit_net, excess)
    with torch.no_grad():
        after, first = (torch.stack(objective.value(own, labels)) for own in (made, images))
    assert not bool(objective.better(first, after).any())
    assert float((after - first)[0].mean()) > 0.05
    assert torch.equal(attack(digit_net, images, labels, seed=1), made)


def test_random_squares_follow_their_seed(digit_net: nn.Module, digits: Batch) -> None:
    images, labels = (part[:5] for part in digits)
    attack = SquareSearch(0.2, steps=5, objective=lambda model: Accepted(model, excess))
    made = [attack(digit_net, images, labels, seed=seed) for seed in (0, 0, 5)]
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], attack(digit_net, images, labels, batch_size=2))
    assert not torch.equal(made[0], made[2])
    for wrong in ({"norm": "l2"}, {"largest": 7.0}):
        with pytest.raises(InputError, match="a largest square in"):
            SquareSearch(0.2, **wrong)


def test_a_backtracking_attack_never_returns_a_worse_image_for_more_steps(
    digit_net: nn.Module, digits: Batch
) -> None:
    images, labels = (part[:20] for part in digits)
    objective = Accepted(digit_net, excess)
    values = []
    for steps in (1, 5, 25):
        attack = BacktrackingPGD(0.2, steps=steps, objective=lambda model: Accepted(model, excess))
        with torch.no_grad():
            values.append(objective.value(attack(digit_net, images, labels), labels)[0])
    assert bool((values[1] >= values[0] - 1e-5).all())
    assert bool((values[2] >= values[1] - 1e-5).all())


@pytest.mark.parametrize(
    ("scale", "unused"), [(1e-3, 0.0), (1.0, 0.0), (1e3, 0.0), (1.0, -1e5), (1.0, -torch.inf)]
)
@pytest.mark.parametrize("name", ["selective", "orthogonal", "weighted", "confident"])
def test_the_units_of_the_logits_do_not_matter(name: str, scale: float, unused: float) -> None:
    # A linear classifier and a linear score, for which a linear program knows which images can
    # evade the guard; perhaps with a class that is never predicted.
    drawn = torch.Generator().manual_seed(0)
    layer = nn.Linear(20, 4 if unused else 3)
    score = torch.randn(20, generator=drawn)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[:3] = scale * torch.randn(3, 20, generator=drawn)
        layer.bias.zero_()
        layer.bias[3:] = unused
    model = nn.Sequential(layer).eval()
    images = torch.rand(60, 20, generator=drawn)
    labels = model(images).argmax(1)
    limit = float((images @ score).median())
    target = Target(
        model,
        lambda made: made @ score - limit,
        lambda made: (model(made).argmax(1), (made @ score - limit).double()),
    )
    possible = evadable(layer.weight.detach() / scale, score, limit, images, labels, 0.2)
    assert 20 < int(possible.sum()) < 60
    attacks = adaptive_attacks(target, 0.2, classes=len(layer.bias), steps=300)
    found = worst_case(target, {name: attacks[name]}, images, labels).rows.evaded.to_numpy()
    assert not found[~possible.numpy()].any()
    assert found[possible.numpy()].mean() >= 0.85


def evadable(
    weights: Tensor, score: Tensor, limit: float, images: Tensor, labels: Tensor, epsilon: float
) -> Tensor:
    """For which images a point within epsilon has another class and a score below the limit."""
    found = []
    for image, label in zip(images.numpy(), labels.tolist(), strict=True):
        box = list(zip((image - epsilon).clip(0), (image + epsilon).clip(max=1), strict=True))
        leads = [
            -linprog(
                (weights[label] - weights[other]).numpy(),
                A_ub=[score.numpy()],
                b_ub=[limit],
                bounds=box,
            ).fun
            for other in range(3)
            if other != label
        ]
        found.append(max(leads) > 0)
    return torch.tensor(found)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("accepts", [True, False])
def test_a_gradient_that_is_not_a_number_does_not_stop_an_attack(
    accepts: bool, norm: NormName, digit_net: nn.Module, some: Batch
) -> None:
    images, labels = some

    def distance(made: Tensor) -> Tensor:
        """The distance to the nearest clean image, whose gradient at this image is not a number."""
        squares = (made.unsqueeze(1) - images).square().flatten(2).sum(2)
        return squares.sqrt().amin(1) + (-1000 if accepts else 1000)

    def judge(made: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return digit_net(made).argmax(1), distance(made).double()

    target = Target(digit_net, distance, judge)
    attacks = adaptive_attacks(
        target, 0.3 if norm == "linf" else 5.0, classes=10, steps=100, norm=norm, pool=images
    )
    for name in ("selective", "orthogonal", "weighted", "confident", "towards +1", "features"):
        attack = attacks[name]
        assert isinstance(attack, GradientAttack)
        # At the clean images the gradient of the score is not a number.
        made = replace(attack, random_start=False)(digit_net, images, labels)
        assert bool(made.isfinite().all()), name
        wrong = digit_net(made).argmax(1) != labels
        assert float(wrong.double().mean()) >= 0.9, name
        assert torch.equal(target.evaded_by(made, labels), wrong & accepts), name
    for smallest in (SmallestEvasion(distance, steps=200), CarliniWagner(distance, steps=200)):
        made = smallest(digit_net, images, labels)
        hits = target.evaded_by(made, labels).double().mean()
        assert float(hits) >= 0.9 if accepts else float(hits) == 0, smallest


def test_iterates_without_a_score_are_the_worst(digit_net: nn.Module, wrong: Batch) -> None:
    images, labels = wrong

    def unknown(made: Tensor) -> Tensor:
        # Every other image has no score.
        return torch.where(torch.arange(len(made)) % 2 == 0, torch.nan, 0.5).double()

    for made in (Selective, Orthogonal, Accepted, FalseAlarm):
        terms = made(digit_net, unknown).value(images, labels)
        first = terms[0] if isinstance(terms, tuple) else terms
        # The first half is misclassified.
        assert bool((first[0:10:2] < first[1:10:2]).all()), made


def test_a_weighted_attack_descends_every_excess(digit_net: nn.Module, wrong: Batch) -> None:
    images, labels = wrong

    def contrast(made: Tensor) -> Tensor:
        return made.flatten(1).std(1)

    objective = Weighted(digit_net, lambda made: torch.stack([excess(made), contrast(made)]))
    terms = objective.value(images, labels)
    assert len(terms) == 3
    gradients = torch.stack([gradient(term, images) for term in terms])
    found = objective.direction(gradients).flatten(1).double()
    dark = excess(images) > 0
    own = torch.where(dark.unsqueeze(1), -unit(gradient(excess(images), images)), 0)
    calm = own - unit(gradient(contrast(images), images))
    assert torch.allclose(found, unit(gradients[0]) + 0.5 * calm, atol=1e-5)
