"""Reproduction of the paper's study on its two datasets, with tables, figures and claims."""

from leery._extras import imported

for _library in ("jinja2", "matplotlib"):
    imported(_library, "study")

from leery.study._config import (  # noqa: E402 - see above
    METRIC_SETS,
    STUDIES,
    Condition,
    StudyConfig,
)
from leery.study._report import PAGE, report  # noqa: E402
from leery.study._run import reproduce, reproduce_all  # noqa: E402
from leery.study._tables import RESULT_COLUMNS, StudyResult, load_result  # noqa: E402
from leery.study._terminal import terminal_summary  # noqa: E402

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
