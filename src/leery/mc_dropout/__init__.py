"""Monte-Carlo dropout: many passes with dropout on, at the cost of a few.

>>> from leery.classifiers import pretrained
>>> from leery.data import load
>>> images, _ = load("mnist", "test")
>>> probs = MCDropout(pretrained("mnist").model, passes=50).sample(images[:8])
>>> tuple(probs.shape)
(50, 8, 10)
"""

from leery.mc_dropout._insert import insert_dropout
from leery.mc_dropout._masks import MaskSource
from leery.mc_dropout._plan import Plan, StochasticLayer
from leery.mc_dropout._sampler import MAX_PASSES, MCDropout, Passes

__all__ = [
    "MAX_PASSES",
    "MCDropout",
    "MaskSource",
    "Passes",
    "Plan",
    "StochasticLayer",
    "insert_dropout",
]
