"""The paper's study on its two datasets: configuration, stages, tables, figures and claims."""

from leery.study._config import METRIC_SETS, STUDIES, Condition, StudyConfig
from leery.study._report import PAGE, report
from leery.study._run import reproduce, reproduce_all
from leery.study._tables import RESULT_COLUMNS, StudyResult, load_result
from leery.study._terminal import terminal_summary

__all__ = [
    "METRIC_SETS",
    "PAGE",
    "RESULT_COLUMNS",
    "STUDIES",
    "Condition",
    "StudyConfig",
    "StudyResult",
    "load_result",
    "report",
    "reproduce",
    "reproduce_all",
    "terminal_summary",
]
