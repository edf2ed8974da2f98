"""Scoring and fitting on a Ray cluster, and scoring in a data pipeline of the user's own.

Nothing but the numbers of parts passes through Ray: detector, classifier and inputs are files that
every node can read, and each part is a file in a folder that all nodes share. Ray is imported only
by :class:`OnRay`.
"""

from leery.cluster._engine import OnRay, score
from leery.cluster._scorer import Scorer

__all__ = ["OnRay", "Scorer", "score"]
