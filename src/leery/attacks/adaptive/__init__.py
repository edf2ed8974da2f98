"""Attacks by someone who knows the detector; they seek a wrong class that is not flagged.

A guard is a classifier together with its detector. It is evaded by an image that is misclassified
and not flagged.
"""

from leery.attacks.adaptive._active import ActiveTest, active_test
from leery.attacks.adaptive._backtracking import BacktrackingPGD
from leery.attacks.adaptive._indicators import Indicators, indicators
from leery.attacks.adaptive._objectives import (
    Accepted,
    FalseAlarm,
    FeatureMatching,
    Joint,
    Orthogonal,
    Selective,
    Targeted,
    Weighted,
)
from leery.attacks.adaptive._queries import Decisions, SquareSearch
from leery.attacks.adaptive._smallest import CarliniWagner, SmallestEvasion
from leery.attacks.adaptive._suite import Evasion, adaptive_attacks, worst_case
from leery.attacks.adaptive._target import Excess, Target

__all__ = [
    "Accepted",
    "ActiveTest",
    "BacktrackingPGD",
    "CarliniWagner",
    "Decisions",
    "Evasion",
    "Excess",
    "FalseAlarm",
    "FeatureMatching",
    "Indicators",
    "Joint",
    "Orthogonal",
    "Selective",
    "SmallestEvasion",
    "SquareSearch",
    "Target",
    "Targeted",
    "Weighted",
    "active_test",
    "adaptive_attacks",
    "indicators",
    "worst_case",
]
