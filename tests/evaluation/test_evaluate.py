"""The worst case and the false alarms of a real detector, counted by hand."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from leery import Detector
from leery.attacks import CORRUPTIONS, FGSM, PGD, AdaptedAttack, Attack
from leery.errors import InputError
from leery.evaluation import evaluate, false_alarms, share_interval
from leery.models import predict
from tests.conftest import Batch


@pytest.fixture
def detector(digit_net: nn.Module, digits: Batch, training_digits: Batch) -> Detector:
    """A detector of confident and of minimal attacks, calibrated for 5 % false alarms."""
    made = Detector(digit_net, metrics=["log_margin", "noise_consistency"])
    made.fit(*(part[:500] for part in training_digits))
    return made.calibrate(digits[0][200:600], digits[1][200:600], fpr=0.05)


@pytest.mark.filterwarnings("ignore")
def test_the_worst_case_is_over_all_attacks_on_an_image(detector: Detector, digits: Batch) -> None:
    images, labels = (part[:200] for part in digits)
    attacks: dict[str, Attack] = {
        "pgd": PGD(0.3),
        "fgsm": FGSM(0.1),
        "deepfool": AdaptedAttack("deepfool"),
    }
    found = evaluate(detector, images, labels, attacks=attacks)
    right = predict(detector.model, images) == labels
    clean = detector.score(images[right])
    threshold = np.sort(clean)[::-1][len(clean) // 100]
    kept: dict[str, list[Tensor]] = {"own": [], "at 1 %": []}
    success = []
    for attack in attacks.values():
        verdicts = detector.judge(attack(detector.model, images, labels))
        success.append(torch.from_numpy(verdicts.predicted) != labels)
        kept["own"].append(torch.from_numpy(verdicts.adversarial))
        kept["at 1 %"].append(torch.from_numpy(verdicts.score > threshold))
    attacked = torch.stack(success).any(0) & right
    for column, flagged in (("every_attack", "own"), ("every_attack_at_1_fpr", "at 1 %")):
        safe = (torch.stack(kept[flagged]) | ~torch.stack(success)).all(0) & attacked
        share = share_interval(int(safe.sum()), int(attacked.sum()))
        assert 0 < share.estimate < 1
        for end, expected in (("", share.estimate), ("_low", share.low), ("_high", share.high)):
            assert found[f"{column}{end}"].unique() == pytest.approx([expected])
    each = found[found.positives == "successful"].set_index("attack").found
    assert found.every_attack.iloc[0] <= each.max()
    assert list(found.attack.unique()) == list(attacks)


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


def test_false_alarms_need_a_threshold_and_labels(
    detector: Detector, digit_net: nn.Module, digits: Batch, training_digits: Batch
) -> None:
    images = digits[0][600:1600]
    with pytest.raises(InputError, match="expected the labels of the images, got None"):
        false_alarms(detector, images)
    bare = Detector(digit_net, metrics=["log_margin"]).fit(*training_digits)
    with pytest.raises(InputError, match="without a threshold"):
        false_alarms(bare.fit_combiner(digits[0][:100]), images, digits[1][600:1600])
