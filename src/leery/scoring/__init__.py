"""Scoring of any number of inputs into one file: resumable, in parts, on one machine or several."""

from leery.scoring._output import Summary
from leery.scoring._rows import row_schema, rows_of
from leery.scoring._scoring import Scoring, score_to_file, scoring_of

__all__ = ["Scoring", "Summary", "row_schema", "rows_of", "score_to_file", "scoring_of"]
