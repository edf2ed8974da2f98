"""Sizes that only decide speed or memory: their units, and the rows of the bench that justify them.

The rows are those of benchmarks/results.md. None of these numbers changes a result by more than
rounding.
"""

__all__ = [
    "CLOSENESS_IMAGES",
    "CLOSENESS_PIXELS",
    "CONVERTED",
    "MOST_RESIDENT",
    "QUERIES",
    "REFERENCES",
    "UNCERTAINTY_ELEMENTS",
]

CLOSENESS_IMAGES = 2048
"""Images whose closeness is computed together: some hundreds per class make fast matrix products.
Row: six metrics, 10,000 digits."""

CLOSENESS_PIXELS = 2**24
"""Elements of images that are held for that (64 MiB in float32). Row: peak memory of scoring."""

UNCERTAINTY_ELEMENTS = 2**18
"""Probabilities whose uncertainty is computed together on a processor: in float64 they stay in its
cache (2 MiB) from one metric to the next. Row: six metrics, 10,000 digits."""

QUERIES = 256
"""Images per block of exponents of a kernel density. Row: kernel density."""

REFERENCES = 2048
"""Training points per such block, which stays in the processor's cache (4 MiB). Row: kernel
density."""

CONVERTED = 512
"""Training points that are converted to float64 at a time, which stay in the cache. Row: kernel
density, 100,000 points."""

MOST_RESIDENT = 2**26
"""Elements of training points that are held in float64 (512 MiB); more are converted at each use,
which takes 50 % longer where queries are few and 5 % longer where they are many. Row:
kernel density, 100,000 points."""
