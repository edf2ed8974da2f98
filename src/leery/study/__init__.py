"""The paper's study on its two datasets: configuration, stages, tables and figures."""

from leery.study._config import METRIC_SETS, STUDIES, Condition, StudyConfig
from leery.study._run import reproduce
from leery.study._tables import RESULT_COLUMNS, StudyResult, terminal_summary

__all__ = [
    "METRIC_SETS",
    "RESULT_COLUMNS",
    "STUDIES",
    "Condition",
    "StudyConfig",
    "StudyResult",
    "reproduce",
    "terminal_summary",
]
