"""Every attack against one table of laws, and against another library."""

import foolbox
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from leery.attacks import BIM, FGSM, PGD, GradientAttack, gaussian_noise
from leery.errors import InputError
from tests.conftest import Batch

ATTACKS = [
    FGSM(0.3),
    FGSM(0.12),
    BIM(0.3),
    BIM(0.1, steps=3, step_size=0.07, random_start=True),
    PGD(0.3),
    PGD(0.12, steps=5),
    FGSM(2.0, norm="l2"),
    BIM(2.0, norm="l2"),
    PGD(2.0, steps=10, norm="l2"),
]


def distance(attack: GradientAttack, delta: Tensor) -> Tensor:
    order = float("inf") if attack.norm == "linf" else 2
    lengths: Tensor = torch.linalg.vector_norm(delta.double().flatten(1), order, dim=1)
    return lengths


def input_gradient(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    variable = images.clone().requires_grad_()
    functional.cross_entropy(model(variable), labels, reduction="sum").backward()
    assert variable.grad is not None
    return variable.grad


def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return functional.cross_entropy(model(images), labels)


@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
def test_an_attack_stays_in_its_ball_and_bounds_and_raises_the_loss(
    attack: GradientAttack, digit_net: nn.Module, digits: Batch
) -> None:
    images, labels = (part[:64] for part in digits)
    before = images.clone()
    adversarial = attack(digit_net, images, labels, seed=3)
    assert adversarial.shape == images.shape
    assert adversarial.dtype == images.dtype
    assert not adversarial.requires_grad
    assert float(adversarial.min()) >= 0.0
    assert float(adversarial.max()) <= 1.0
    assert float(distance(attack, adversarial - images).max()) <= attack.epsilon * (1 + 1e-6)
    assert float(loss(digit_net, adversarial, labels)) > float(loss(digit_net, images, labels))
    assert torch.equal(images, before)
    assert torch.equal(attack(digit_net, images, labels, seed=3), adversarial)


@pytest.mark.parametrize("attack", [PGD(0.3, steps=2), PGD(2.0, steps=2, norm="l2")], ids=repr)
def test_the_seed_and_not_the_batch_size_decides_the_random_start(
    attack: GradientAttack, digit_net: nn.Module, digits: Batch
) -> None:
    images, labels = (part[:50] for part in digits)
    one = attack(digit_net, images, labels, seed=1, batch_size=50)
    cut = attack(digit_net, images, labels, seed=1, batch_size=16)
    other = attack(digit_net, images, labels, seed=2, batch_size=50)
    assert float((one - cut).abs().max()) < 1e-5
    assert float((one - other).abs().max()) > 0.1


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_random_start_fills_the_ball_uniformly(norm: str) -> None:
    # One huge step size of nothing: with a model that has no gradient only the start remains.
    images = torch.full((4000, 2), 0.5)
    attack = BIM(0.4, steps=1, random_start=True, norm=norm)  # type: ignore[arg-type]
    start = attack(_Flat(), images, torch.zeros(4000, dtype=torch.int64), seed=5) - images
    radius = distance(attack, start) / 0.4
    # In two dimensions the share of a ball inside half its radius is a quarter.
    assert float((radius < 0.5).double().mean()) == pytest.approx(0.25, abs=0.03)
    assert float(start.mean()) == pytest.approx(0, abs=0.02)
    assert float(radius.max()) > 0.98


class _Flat(nn.Module):
    """Logits that do not depend on the image."""

    def forward(self, images: Tensor) -> Tensor:
        return (images * 0).sum(1, keepdim=True) * torch.ones(1, 3)


def test_fgsm_equals_its_formula(digit_net: nn.Module, digits: Batch) -> None:
    images, labels = (part[:16] for part in digits)
    expected = (images + 0.1 * input_gradient(digit_net, images, labels).sign()).clamp(0, 1)
    assert torch.allclose(FGSM(0.1)(digit_net, images, labels), expected, atol=1e-6)


@pytest.mark.parametrize("epsilon", [0.3, 0.12])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (FGSM, foolbox.attacks.LinfFastGradientAttack()),
        (BIM, foolbox.attacks.LinfBasicIterativeAttack(rel_stepsize=0.2, steps=10)),
        (BIM, foolbox.attacks.L2BasicIterativeAttack(rel_stepsize=0.2, steps=10)),
    ],
    ids=["FGSM", "BIM", "BIM-L2"],
)
def test_an_attack_equals_foolbox(
    ours: type[FGSM | BIM],
    theirs: foolbox.Attack,
    epsilon: float,
    digit_net: nn.Module,
    digits: Batch,
) -> None:
    norm = "l2" if "L2" in type(theirs).__name__ else "linf"
    epsilon = epsilon * 10 if norm == "l2" else epsilon
    images, labels = (part[:256] for part in digits)
    model = foolbox.PyTorchModel(digit_net, bounds=(0, 1), device="cpu")
    _, expected, _ = theirs(model, images, labels, epsilons=epsilon)
    found = ours(epsilon, norm=norm)(digit_net, images, labels)  # type: ignore[arg-type]
    if norm == "linf":
        assert float((found - expected).abs().max()) <= 1e-6
        return
    # In L2 the two sum lengths in another order; where the last bit decides which side of a kink
    # of the network an image lies on, its path bends. That may be one image in a hundred.
    apart = (found - expected).abs().flatten(1).amax(1)
    assert float((apart <= 1e-5).double().mean()) >= 0.99


def test_pgd_without_a_random_start_equals_foolbox(digit_net: nn.Module, digits: Batch) -> None:
    images, labels = (part[:64] for part in digits)
    model = foolbox.PyTorchModel(digit_net, bounds=(0, 1), device="cpu")
    theirs = foolbox.attacks.LinfPGD(rel_stepsize=1 / 30, steps=40, random_start=False)
    _, expected, _ = theirs(model, images, labels, epsilons=0.3)
    found = PGD(0.3, random_start=False)(digit_net, images, labels)
    assert float((found - expected).abs().max()) <= 1e-6


def test_strong_attacks_fool_the_classifier_and_noise_does_not(
    digit_net: nn.Module, digits: Batch
) -> None:
    images, labels = (part[:200] for part in digits)

    def hit(batch: Tensor) -> float:
        with torch.no_grad():
            return float((digit_net(batch).argmax(1) == labels).double().mean())

    assert hit(images) > 0.98
    assert hit(gaussian_noise(images, 0.3)) > 0.8
    assert hit(BIM(0.3)(digit_net, images, labels)) == 0
    assert hit(PGD(0.3)(digit_net, images, labels)) == 0


@pytest.mark.parametrize("shape", [(5, 7), (5, 3, 4), (5, 1, 8, 8)])
def test_images_may_have_any_shape(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    width = torch.Size(shape[1:]).numel()
    model = nn.Sequential(nn.Flatten(), nn.Linear(width, 3))
    images = torch.rand(shape, generator=generator)
    adversarial = PGD(0.1, steps=3)(model, images, torch.arange(5) % 3)
    assert adversarial.shape == shape
    assert float((adversarial - images).abs().max()) <= 0.1 + 1e-6


def test_an_attack_works_inside_no_grad_and_inference_mode(
    digit_net: nn.Module, digits: Batch
) -> None:
    images, labels = (part[:8] for part in digits)
    expected = BIM(0.2)(digit_net, images, labels)
    with torch.no_grad():
        assert torch.equal(BIM(0.2)(digit_net, images, labels), expected)
    with torch.inference_mode():
        assert torch.equal(BIM(0.2)(digit_net, images.clone(), labels.clone()), expected)


def test_at_epsilon_zero_nothing_moves(digit_net: nn.Module, digits: Batch) -> None:
    images, labels = (part[:8] for part in digits)
    assert torch.equal(PGD(0.0)(digit_net, images, labels), images)


def test_the_defaults_are_those_of_the_paper() -> None:
    assert (FGSM(0.3).steps, FGSM(0.3).alpha, FGSM(0.3).random_start) == (1, 0.3, False)
    assert (BIM(0.3).steps, BIM(0.3).alpha, BIM(0.3).random_start) == (10, 0.06, False)
    assert (PGD(0.3).steps, PGD(0.3).alpha, PGD(0.3).random_start) == (40, 0.01, True)


def test_tiny_gradients_still_have_length_one() -> None:
    model = nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1e-25] * 4, [0.0] * 4]))
    images = torch.full((1, 4), 0.5)
    adversarial = BIM(0.1, norm="l2", steps=1, step_size=0.01)(model, images, torch.tensor([0]))
    assert float((adversarial - images).norm()) == pytest.approx(0.01, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"epsilon": -0.1}, "expected a finite epsilon of at least 0, got -0.1"),
        ({"epsilon": float("nan")}, "got nan"),
        ({"epsilon": 0.1, "steps": 0}, "expected steps as a whole number of at least 1, got 0"),
        ({"epsilon": 0.1, "step_size": 0.0}, "expected a step size above 0, got 0"),
        ({"epsilon": 0.1, "norm": "l1"}, "expected one of the norms linf, l2, got 'l1'"),
        ({"epsilon": 0.1, "bounds": (1, 0)}, r"low < high, .*got \(1, 0\)"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object], text: str) -> None:
    with pytest.raises(InputError, match=text):
        BIM(**settings)  # type: ignore[arg-type]


def test_images_and_labels_that_do_not_fit_are_refused(digit_net: nn.Module, digits: Batch) -> None:
    images, labels = (part[:4] for part in digits)
    broken = images.clone()
    broken[2, 0, 3, 3] = float("nan")
    cases = [
        (images * 255, labels, r"within the bounds \(0.0, 1.0\), got 0..255"),
        (broken, labels, r"NaN or infinity in 1 of 4 \(the first at index 2\)"),
        (images[:0], labels[:0], "at least one image, got an empty batch"),
        (images, labels[:3], r"shape \(4,\), got \(3,\)"),
        (images, labels + 7, r"expected labels to be 0..9, got .*..1"),
        (images, labels - 9, "expected labels to be 0 or more, got -"),
        (images, labels.float(), "integer torch.Tensor, got torch.float32"),
        ((images * 255).to(torch.uint8), labels, "floating-point images, got torch.uint8"),
        (images[0, 0, 0], labels, "add the batch dimension"),
    ]
    for bad_images, bad_labels, text in cases:
        with pytest.raises(InputError, match=text):
            FGSM(0.1)(digit_net, bad_images, bad_labels)


def test_noise_has_the_stated_spread_and_stays_in_bounds(digits: Batch) -> None:
    grey = torch.full((50, 1, 28, 28), 0.5)
    assert float(gaussian_noise(grey, 0.1).std()) == pytest.approx(0.1, abs=0.002)
    assert float(gaussian_noise(grey, 0.1).mean()) == pytest.approx(0.5, abs=0.002)
    noisy = gaussian_noise(digits[0][:20], 0.3, seed=4)
    assert float(noisy.min()) == 0.0
    assert float(noisy.max()) == 1.0
    assert torch.equal(noisy, gaussian_noise(digits[0][:20], 0.3, seed=4))
    assert not torch.equal(noisy, gaussian_noise(digits[0][:20], 0.3, seed=5))
    with pytest.raises(InputError, match="sigma of at least 0, got -1"):
        gaussian_noise(grey, -1)
    with pytest.raises(InputError, match=r"low < high, .*got \(1, 0\)"):
        gaussian_noise(grey, 0.1, bounds=(1, 0))
    with pytest.raises(InputError, match=r"within the bounds \(0.0, 1.0\), got 5..5"):
        gaussian_noise(grey * 10, 0.1)


class Margin:
    """How far the best wrong class is ahead, with a second term that may be mixed in."""

    def __init__(self, model: nn.Module, *, chooses: bool = True, terms: int = 1) -> None:
        self.model, self.chooses, self.terms = model, chooses, terms
        self.values: list[Tensor] = []

    def margin(self, images: Tensor, labels: Tensor) -> Tensor:
        logits = self.model(images)
        true = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
        found: Tensor = logits.scatter(1, labels.unsqueeze(1), -torch.inf).amax(1) - true
        return found.detach() if not images.requires_grad else found

    def value(self, images: Tensor, labels: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        margin = self.margin(images, labels)
        self.values.append(margin.detach())
        return margin if self.terms == 1 else (margin, -images.flatten(1).sum(1))

    def direction(self, gradients: Tensor) -> Tensor:
        assert len(gradients) == self.terms
        return gradients[-1]

    def better(self, new: Tensor, old: Tensor) -> Tensor:
        return new > old if new.ndim == 1 else new[0] > old[0]


def test_an_attack_climbs_the_objective_it_is_given(digit_net: nn.Module, digits: Batch) -> None:
    images, labels = (part[:64] for part in digits)
    made: list[Margin] = []

    def margin(model: nn.Module) -> Margin:
        made.append(Margin(model))
        return made[-1]

    attack = PGD(0.3, steps=15, step_size=0.1, objective=margin)
    found = attack(digit_net, images, labels)
    (objective,) = made
    kept = Margin(digit_net).margin(found, labels).detach()
    # The best of the start and of each of the fifteen steps is what is returned.
    assert len(objective.values) == 16
    assert torch.allclose(kept, torch.stack(objective.values).amax(0), atol=1e-4)
    last = PGD(0.3, steps=15, step_size=0.1, objective=lambda m: Margin(m, chooses=False))
    assert float(Margin(digit_net).margin(last(digit_net, images, labels), labels).mean()) <= float(
        kept.mean()
    )


def test_an_objective_mixes_the_gradients_of_its_terms(digit_net: nn.Module, digits: Batch) -> None:
    images, labels = (part[:8] for part in digits)
    darker = BIM(0.1, steps=1, objective=lambda m: Margin(m, chooses=False, terms=2))
    # The second term is the darkness of the image, whose gradient is minus one everywhere.
    assert torch.allclose(darker(digit_net, images, labels), (images - 0.02).clamp(0, 1))


def test_bounds_per_channel_hold_each_channel() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(2 * 16, 3)).eval()
    images = torch.rand(5, 2, 4, 4) * torch.tensor([1.0, 3.0]).view(1, 2, 1, 1)
    bounds = ((0.0, 1.0), (0.0, 3.0))
    found = PGD(5.0, steps=3, bounds=bounds)(model, images, torch.zeros(5, dtype=torch.int64))
    assert float(found[:, 0].max()) == 1.0
    assert float(found[:, 1].max()) == 3.0
    with pytest.raises(InputError, match="expected pixels within the bounds"):
        PGD(0.1)(model, images, torch.zeros(5, dtype=torch.int64))
    assert PGD(0.1).within(bounds).bounds == bounds
    assert PGD(0.1, bounds=(0.0, 3.0)).within(bounds).bounds == (0.0, 3.0)
    noisy = gaussian_noise(images, 9.0, bounds=bounds)
    assert [float(noisy[:, channel].max()) for channel in (0, 1)] == [1.0, 3.0]
