"""The figures of the study, one per module: its drawing, its description and its caption.

Every number in them is taken from the saved tables.
"""

from leery.study._report.figures import (
    _abstention,
    _attack_success,
    _density_trace,
    _example,
    _gallery,
    _kl_trace,
    _predicted_kl_trace,
    _roc,
    _roc_low,
    _scores,
    _uncertainty_trace,
    _weights,
)
from leery.study._report.figures._attack_success import (
    attack_success_figure,
    success_alt,
    success_caption,
)
from leery.study._report.figures._figure import StudyFigure

__all__ = ["FIGURES", "StudyFigure", "attack_success_figure", "success_alt", "success_caption"]

FIGURES = tuple(
    module.FIGURE
    for module in (
        _example,
        _attack_success,
        _uncertainty_trace,
        _density_trace,
        _kl_trace,
        _predicted_kl_trace,
        _roc,
        _roc_low,
        _scores,
        _weights,
        _abstention,
        _gallery,
    )
)
"""The figures of the study, in the order in which they are drawn."""
