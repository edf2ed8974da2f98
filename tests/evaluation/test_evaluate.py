"""The worst case and the false alarms of a real detector, counted by hand."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from leery import Detector
from leery.attacks import BIM, CORRUPTIONS, FGSM, PGD, AdaptedAttack, Attack, Harmless
from leery.errors import InputError, NotFittedError
from leery.evaluation import evaluate, false_alarms, share_interval
from leery.models import predict
from tests.conftest import Batch


@pytest.fixture
def detector(digit_net: nn.Module, digits: Batch, training_digits: Batch) -> Detector:
    """A detector of confident and of minimal attacks, calibrated for 5 % false alarms."""
    made = Detector(digit_net, metrics=["log_margin", "noise_consistency"])
    made.fit(*(part[:500] for part in training_digits))
    return made.calibrate(digits[0][200:600], digits[1][200:600], fpr=0.05)


def test_the_worst_case_is_over_all_attacks_on_an_image(detector: Detector, digits: Batch) -> None:
    images, labels = (part[:200] for part in digits)
    attacks: dict[str, Attack] = {
        "pgd": PGD(0.3),
        "fgsm": FGSM(0.1),
        "deepfool": AdaptedAttack("deepfool"),
    }
    found = evaluate(detector, images, labels, attacks=attacks)
    right = predict(detector.model, images) == labels
    clean = np.sort(detector.score(images[right]))[::-1]
    judged = [detector.judge(attack(detector.model, images, labels)) for attack in attacks.values()]
    success = torch.stack([torch.from_numpy(one.predicted) != labels for one in judged]) & right
    for column, flagged in {
        "every_attack": [one.adversarial for one in judged],
        "every_attack_at_1_fpr": [one.score > clean[len(clean) // 100] for one in judged],
        "every_attack_at_5_fpr": [one.score > clean[len(clean) // 20] for one in judged],
    }.items():
        safe = (torch.from_numpy(np.stack(flagged)) | ~success).all(0) & success.any(0)
        share = share_interval(int(safe.sum()), int(success.any(0).sum()))
        assert 0 < share.estimate < 1
        assert found[column].unique() == pytest.approx([share.estimate])
        if column == "every_attack":
            ends = found[["every_attack_low", "every_attack_high"]].iloc[0]
            assert ends.tolist() == pytest.approx([share.low, share.high])
    assert list(found.attack.unique()) == list(attacks)


def test_batches_and_noise_do_not_change_what_is_found_on_every_attack(
    detector: Detector, digits: Batch
) -> None:
    images, labels = (part[:100] for part in digits)
    attacks: dict[str, Attack] = {"fgsm": FGSM(0.2), "bim": BIM(0.1, steps=3)}
    whole = evaluate(detector, images, labels, attacks=attacks)
    parts = DataLoader(TensorDataset(images, labels), 40)
    again = evaluate(detector, parts, attacks=attacks, noise=0.1)
    assert again.every_attack.iloc[0] == whole.every_attack.iloc[0]
    assert again.n_noisy.iloc[0] == whole.n_clean.iloc[0]


def test_where_no_attack_succeeds_there_is_no_worst_case(detector: Detector, digits: Batch) -> None:
    images, labels = (part[:30] for part in digits)
    found = evaluate(detector, images, labels, attacks={"none": FGSM(1e-6)})
    assert set(found.positives) == {"all", "failed"}
    assert found.every_attack.isna().all()


def test_false_alarms_are_counted_by_change_and_class(detector: Detector, digits: Batch) -> None:
    images, labels = (part[600:1600] for part in digits)
    alarms = false_alarms(detector, images, labels, seed=3).set_index(["change", "class"])
    assert set(alarms.index.levels[0]) == {"clean", *CORRUPTIONS}
    turned = CORRUPTIONS["rotation"](1)(images, 3, (0.0, 1.0))
    for change, shown in (("clean", images), ("rotation", turned)):
        verdicts = detector.judge(shown)
        assert verdicts.adversarial is not None
        right = verdicts.predicted == labels.numpy()
        for label in ("all", "7"):
            rows = right & (labels.numpy() == 7) if label == "7" else right
            row = alarms.loc[(change, label)]
            expected = share_interval(int(verdicts.adversarial[rows].sum()), int(rows.sum()))
            assert (row["share"], row.low, row.high, row.images) == (
                *(expected.estimate, expected.low, expected.high),
                rows.sum(),
            )
    assert alarms.share.max() > 0
    only = false_alarms(detector, images, labels, changes={})
    assert set(only.change) == {"clean"}


def test_what_false_alarms_cannot_count_is_refused(
    detector: Detector, digit_net: nn.Module, digits: Batch, training_digits: Batch
) -> None:
    images, labels = digits[0][600:640], digits[1][600:640]
    with pytest.raises(InputError, match="expected the labels of the images, got None"):
        false_alarms(detector, images)
    with pytest.raises(InputError, match="of 40 that the fit or the combiner"):
        false_alarms(detector, digits[0][200:240], digits[1][200:240])
    with pytest.raises(InputError, match="a correctly classified image, got none"):
        false_alarms(detector, images, (labels + 1) % 10)
    changes: dict[str, Harmless] = {"clean": lambda batch, _seed, _bounds: batch}
    with pytest.raises(InputError, match="changes of other names"):
        false_alarms(detector, images, labels, changes=changes)
    changes = {"half": lambda batch, _seed, _bounds: batch[::2]}
    with pytest.raises(InputError, match=r"\(40, 1, 28, 28\) from the change 'half', got \(20,"):
        false_alarms(detector, images, labels, changes=changes)
    with pytest.raises(InputError, match="harmless changes by name, got list"):
        false_alarms(detector, images, labels, changes=[])  # type: ignore[arg-type]  # refused
    bare = Detector(digit_net, metrics=["log_margin"]).fit(*training_digits)
    with pytest.raises(NotFittedError, match="without a threshold"):
        false_alarms(bare.fit_combiner(digits[0][:100]), images, labels)


def test_bounds_may_be_given_where_the_detector_has_none(
    digit_net: nn.Module, digits: Batch, training_digits: Batch
) -> None:
    moved = nn.Sequential(_Shift(), digit_net).eval()
    images, labels = (part[:400] for part in training_digits)
    detector = Detector(moved, metrics=["log_margin"]).fit(images - 0.5, labels)
    detector.calibrate(digits[0][:200] - 0.5, fpr=0.05, harmless={})
    assert detector.inputs_.bounds is None
    fresh, truth = digits[0][600:700] - 0.5, digits[1][600:700]
    assert set(false_alarms(detector, fresh, truth).change) == {"clean"}
    alarms = false_alarms(detector, fresh, truth, bounds=(-0.5, 0.5))
    assert set(alarms.change) == {"clean", *CORRUPTIONS}
    changes = {"blur": CORRUPTIONS["blur"](1)}
    with pytest.raises(InputError, match="bounds of the pixels for harmless changes, got none"):
        false_alarms(detector, fresh, truth, changes=changes)


class _Shift(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images + 0.5
