"""Scoring and fitting on a Ray cluster.

Nothing but the numbers of parts passes through Ray: detector, classifier and inputs are files that
every node can read, and each part is a file in a folder that all nodes share.
"""

from leery._extras import imported

imported("ray", "ray")

from leery.cluster._engine import OnRay  # noqa: E402 - after the check for the extra
from leery.cluster._scorer import Scorer  # noqa: E402

__all__ = ["OnRay", "Scorer"]
