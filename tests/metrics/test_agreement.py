"""Agreement with an auxiliary network: log odds against scipy, and both ways to get a network."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import scipy
import torch
from torch import Tensor, nn

from leery import Detector
from leery.attacks import BIM
from leery.classifiers import pretrained
from leery.errors import DetectorFileError, InputError, LeeryError, OutputError
from leery.metrics import AuxiliaryAgreement, FitContext
from leery.training import AuxiliaryNetwork, AuxiliaryRecipe, FitParts

Batch = tuple[Tensor, Tensor]

QUICK = AuxiliaryRecipe(width=8, epochs=5, min_images=1)


class Other(nn.Module):
    """A second classifier: a linear one."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.linear = nn.Linear(784, classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(images.flatten(1))
        return logits


@pytest.fixture(scope="module")
def trained(training_digits: Batch) -> Detector:
    metric = AuxiliaryAgreement(recipe=QUICK)
    return Detector(pretrained("mnist").model, metrics=[metric]).fit(*training_digits)


def test_it_is_the_log_odds_of_the_auxiliary_against_the_predicted_class(
    digit_net: nn.Module, digits: Batch, training_digits: Batch
) -> None:
    other = Other().eval()
    detector = Detector(digit_net, metrics=[AuxiliaryAgreement(other)]).fit(
        *(part[:200] for part in training_digits)
    )
    images = digits[0][:50]
    with torch.no_grad():
        odds = other(images).double().numpy()
        predicted = digit_net(images).argmax(1).numpy()
    rows = np.arange(50)
    probability = scipy.special.softmax(odds, axis=1)[rows, predicted]
    expected = np.log((1 - probability) / probability)
    assert np.allclose(detector.measure(images).values[:, 0], expected, atol=1e-4)
    detector.fit_combiner(digits[0][100:200])
    with torch.no_grad():
        chosen = digit_net(digits[0][100:200]).argmax(1, keepdim=True)
        odds_on = other(digits[0][100:200]).double().softmax(1).gather(1, chosen)
    share = float((odds_on > 0.5).double().mean())
    assert detector.agreement_ == share
    assert f"auxiliary network agrees on {share:.1%} of the clean images" in repr(detector)


def test_a_network_is_trained_and_finds_what_moves_the_classifier(
    trained: Detector, digits: Batch
) -> None:
    images, labels = (part[:300] for part in digits)
    attacked = BIM(0.12)(trained.model, images, labels)
    clean, found = (trained.measure(part) for part in (images, attacked))
    moved = found.predicted != labels.numpy()
    assert (clean.values[:, 0] < 0).mean() > 0.9
    assert (found.values[moved, 0] > 0).mean() > 0.8


def test_a_trained_network_is_part_of_the_file(
    trained: Detector, digits: Batch, tmp_path: Path
) -> None:
    trained.save(tmp_path / "guard.leery")
    loaded = Detector.load(tmp_path / "guard.leery", trained.model)
    images = digits[0][:30]
    assert np.array_equal(loaded.measure(images).values, trained.measure(images).values)
    metric = loaded.metrics_["auxiliary_agreement"]
    assert isinstance(metric, AuxiliaryAgreement)
    assert isinstance(metric.auxiliary, AuxiliaryNetwork)


def test_of_a_given_network_the_file_holds_weights_and_it_is_given_again(
    digit_net: nn.Module, digits: Batch, training_digits: Batch, tmp_path: Path
) -> None:
    detector = Detector(digit_net, metrics=[AuxiliaryAgreement(Other())])
    detector.fit(*(part[:200] for part in training_digits)).save(tmp_path / "guard.leery")
    loaded = Detector.load(
        tmp_path / "guard.leery", digit_net, metrics=[AuxiliaryAgreement(Other())]
    )
    images = digits[0][:30]
    assert np.array_equal(loaded.measure(images).values, detector.measure(images).values)
    with pytest.raises(
        DetectorFileError, match="auxiliary network .* not trained by leery, got none; pass"
    ):
        Detector.load(tmp_path / "guard.leery", digit_net)


def test_the_score_has_a_gradient_through_both_networks(trained: Detector, digits: Batch) -> None:
    trained.fit_combiner(digits[0][:200])
    assert trained.differentiable
    images = digits[0][300:310].clone().requires_grad_()
    score = trained.differentiable_score(images)
    assert np.allclose(score.detach().numpy(), trained.score(digits[0][300:310]), atol=1e-5)
    (gradient,) = torch.autograd.grad(score.sum(), images)
    assert bool(gradient.isfinite().all())


def test_what_cannot_be_trained_or_given_is_refused(
    digit_net: nn.Module, training_digits: Batch
) -> None:
    rows = torch.rand(60, 5)
    table = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)).eval()
    with pytest.raises(InputError, match="images .* to train an auxiliary network on"):
        Detector(table, metrics=["auxiliary_agreement"]).fit(rows, torch.arange(60) % 3)
    with pytest.raises(
        InputError, match="auxiliary network with the classifier's 10 classes, got 7"
    ):
        Detector(digit_net, metrics=[AuxiliaryAgreement(Other(7))]).fit(*training_digits)
    batches = iter([training_digits])
    with pytest.raises(InputError, match="training data that can be read twice"):
        Detector(digit_net, metrics=["auxiliary_agreement"]).fit(batches)


TINY = AuxiliaryRecipe(width=4, epochs=1, min_images=1)


def colours(count: int = 60) -> Batch:
    return torch.rand(count, 3, 8, 8), torch.arange(count) % 2


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 2)).eval()


def test_bounds_per_channel_come_back_from_the_file(tmp_path: Path) -> None:
    (images, labels), model = colours(), small_net()
    bounds = ((0.0, 1.0), (0.0, 2.0), (-1.0, 1.0))
    detector = Detector(model, metrics=[AuxiliaryAgreement(recipe=TINY)], bounds=bounds)
    detector.fit(images, labels).save(tmp_path / "guard.leery")
    loaded = Detector.load(tmp_path / "guard.leery", model)
    assert np.array_equal(loaded.measure(images).values, detector.measure(images).values)


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_classifiers_of_other_types_are_accepted_too(kind: torch.dtype) -> None:
    images, labels = colours()
    detector = Detector(small_net().to(kind), metrics=[AuxiliaryAgreement(recipe=TINY)])
    found = detector.fit(images.to(kind), labels).measure(images[:9].to(kind))
    assert np.isfinite(found.values).all()


def test_wrong_labels_are_refused_before_the_training() -> None:
    images, labels = colours()
    labels[7] = 2
    with pytest.raises(InputError, match="labels"):
        Detector(small_net(), metrics=["auxiliary_agreement"]).fit(images, labels)


def test_a_given_network_is_left_as_it_was(digit_net: nn.Module, training_digits: Batch) -> None:
    other = Other().train()
    Detector(digit_net, metrics=[AuxiliaryAgreement(other)]).fit(
        *(part[:100] for part in training_digits)
    )
    assert other.training


class Own(AuxiliaryAgreement):
    """Agreement of this module: its code is that of the interrupted one."""


class Interrupted(Own):
    """Agreement whose fit is cut off after the training."""

    def prepare(self, context: FitContext) -> None:
        super().prepare(context)
        raise KeyboardInterrupt


def cut_off(folder: Path, images: Tensor, labels: Tensor) -> Path:
    """The part that a fit left which was cut off after its training."""
    with pytest.raises(KeyboardInterrupt), FitParts(folder) as parts:
        Detector(small_net(), metrics=[Interrupted(recipe=TINY)]).fit(images, labels, parts=parts)
    (part,) = folder.rglob("*.safetensors")
    return part


def fitted(
    images: Tensor,
    labels: Tensor,
    parts: FitParts | None = None,
    *,
    seed: int = 0,
    recipe: AuxiliaryRecipe = TINY,
) -> dict[str, Tensor]:
    detector = Detector(small_net(), metrics=[Own(recipe=recipe)], seed=seed)
    metric = detector.fit(images, labels, parts=parts).metrics_["auxiliary_agreement"]
    return metric.state_dict()


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_fit_that_was_cut_off_is_resumed_without_training_again(tmp_path: Path) -> None:
    images, labels = colours()
    folder = tmp_path / "parts"
    kept = cut_off(folder, images, labels).stat().st_mtime_ns
    with FitParts(folder, resume=True) as parts:
        assert same(fitted(images, labels, parts), fitted(images, labels))
        (part,) = folder.rglob("*.safetensors")
        assert part.stat().st_mtime_ns == kept
        parts.discard()
    assert not folder.exists()


def test_a_fit_is_not_resumed_with_other_data_settings_or_code(tmp_path: Path) -> None:
    images, labels = colours()
    folder = tmp_path / "parts"
    kept = cut_off(folder, images, labels).stat().st_mtime_ns
    for other in ({"seed": 1}, {"recipe": AuxiliaryRecipe(width=5, epochs=1, min_images=1)}):
        with pytest.raises(
            InputError, match="settings, device and versions with which .* got different"
        ):
            fitted(images, labels, FitParts(folder, resume=True), **other)
    with pytest.raises(
        InputError, match="settings, device and versions with which .* got different"
    ):
        fitted(1 - images, labels, FitParts(folder, resume=True))
    fitted(1 - images, labels, FitParts(folder))
    (part,) = folder.rglob("*.safetensors")
    assert part.stat().st_mtime_ns != kept


class OwnRecipe(AuxiliaryRecipe):
    """A recipe of somebody's own."""


def test_the_code_of_somebody_s_recipe_counts() -> None:
    images, labels = colours()
    seen: set[str] = set()

    def part(
        modules: Iterable[str], _facts: object, make: Callable[[], Mapping[str, Tensor]]
    ) -> Mapping[str, Tensor]:
        seen.update(modules)
        return make()

    metric = AuxiliaryAgreement(recipe=OwnRecipe(width=4, epochs=1, min_images=1))
    metric.prepare(
        FitContext(
            model=small_net(),
            batches=lambda: iter([(images, labels)]),
            seed=0,
            device=torch.device("cpu"),
            batch_size=100,
            classes=2,
            bounds=None,
            pixels=(0.0, 1.0),
            progress=lambda _text, _share: None,
            part=part,
        )
    )
    assert {__name__, "leery.metrics.agreement", "leery.training._augmentation"} <= seen


def test_a_damaged_part_is_made_again(tmp_path: Path) -> None:
    images, labels = colours()
    part = cut_off(tmp_path / "parts", images, labels)
    part.write_bytes(part.read_bytes()[:100])
    parts = FitParts(tmp_path / "parts", resume=True)
    assert same(fitted(images, labels, parts), fitted(images, labels))


def test_a_training_that_fails_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = colours()

    def failing(*_args: object, **_settings: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("leery.metrics.agreement.train_auxiliary", failing)
    with pytest.raises(LeeryError, match="expected this machine to carry out .* No space left"):
        fitted(images, labels, FitParts(tmp_path / "parts"))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_parts_is_one_process_s_until_it_is_discarded(tmp_path: Path) -> None:
    images, labels = colours()
    folder = tmp_path / "parts"
    with FitParts(folder) as parts:
        fitted(images, labels, parts)
        with pytest.raises(
            OutputError, match="parts/00 to be unused, got another run that is using it"
        ):
            fitted(images, labels, FitParts(folder))
        (folder / "thesis.txt").write_text("all of it")
        parts.discard()
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]


def test_a_metric_may_train_several_parts_whose_tensors_share_memory(tmp_path: Path) -> None:
    tied = torch.arange(3.0)
    made = {"a": {"x": tied, "y": tied}, "b": {"z": tied[1:]}}
    with FitParts(tmp_path / "parts") as parts:
        found = {name: parts([__name__], name, partial(dict, own)) for name, own in made.items()}
    again = FitParts(tmp_path / "parts", resume=True)
    with again:
        kept = {name: again([__name__], name, dict) for name in made}
    for name, own in made.items():
        for each in (found[name], kept[name]):
            assert same(own, dict(each))


class Another(Own):
    """A second metric that is trained."""

    name = "another"


def test_every_trained_metric_of_a_fit_has_a_part_of_its_own(tmp_path: Path) -> None:
    images, labels = colours()
    for resume in (False, True):
        detector = Detector(small_net(), metrics=[Own(recipe=TINY), Another(recipe=TINY)])
        detector.fit(images, labels, parts=FitParts(tmp_path / "parts", resume=resume))
        assert len(list((tmp_path / "parts").rglob("*.safetensors"))) == 2
