"""Scoring of any number of inputs into one file: resumable, in parts, on one machine or several."""

from leery.scoring._output import Summary
from leery.scoring._plan import Plan
from leery.scoring._processes import Processes, SavedDetector
from leery.scoring._run import Engine, merge_scores, score_shard, score_to_file

__all__ = [
    "Engine",
    "Plan",
    "Processes",
    "SavedDetector",
    "Summary",
    "merge_scores",
    "score_shard",
    "score_to_file",
]
