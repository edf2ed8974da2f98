"""What an attacker who knows the detector achieves."""

import numpy as np
import torch
from torch import Tensor, nn

from leery.attacks.adaptive import Target
from leery.detector import Detector
from leery.errors import NotFittedError
from leery.metrics import AuxiliaryAgreement

__all__ = ["target_of"]


def target_of(detector: Detector, *, judged_by: Detector | None = None) -> Target:
    """The target of attackers who know a detector.

    Args:
        detector: a calibrated detector, whose gradients the attacks use.
        judged_by: the detector whose verdicts count, such as one with other dropout masks; by
            default the same one.

    Raises:
        NotFittedError: when the detector is not calibrated.
    """
    judging = judged_by or detector
    for guard in (detector, judging):
        if guard.calibration_ is None:
            message = (
                "expected a detector after calibrate(clean, fpr=...), got one before it; call it "
                "first"
            )
            raise NotFittedError(message)

    def judge(images: Tensor) -> tuple[Tensor, Tensor]:
        verdicts = judging.judge(images)
        calibration = judging.calibration_
        assert calibration is not None
        excess = verdicts.score - calibration.thresholds(verdicts.predicted)
        if verdicts.sentinel is not None:
            assert judging.sentinel_ is not None
            beside = judging.sentinel_.calibration_
            assert beside is not None
            own = verdicts.sentinel - beside.thresholds(verdicts.predicted)
            excess = np.maximum(excess, own)
        return torch.from_numpy(verdicts.predicted), torch.from_numpy(excess)

    return Target(detector.model, detector.differentiable_excess, judge, _helpers(detector))


def _helpers(detector: Detector) -> tuple[nn.Module, ...]:
    """The auxiliary network and the sentinel's network, where there are any."""
    found = [
        metric.auxiliary
        for metric in detector.metrics_.values()
        if isinstance(metric, AuxiliaryAgreement) and metric.auxiliary is not None
    ]
    if detector.sentinel_ is not None:
        found.append(detector.sentinel_.network_)
    return tuple(found)
