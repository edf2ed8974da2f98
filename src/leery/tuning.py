"""Sizes that only decide speed or memory: their units, and the rows of the bench that justify them.

The rows are those of benchmarks/results.md; "versions" are those of benchmarks/versions.py, and
"optimisations" those of benchmarks/optimisations.md. None of these sizes changes a result by more
than rounding.
"""

__all__ = [
    "CACHED_ELEMENTS",
    "CLOSENESS_IMAGES",
    "CLOSENESS_PIXELS",
    "CONVERTED",
    "ELEMENTS_AT_ONCE",
    "FEW_IMAGES",
    "FREED_BYTES",
    "IMAGES_AT_ONCE",
    "IMAGES_OF_A_THREAD",
    "MOST_PREPARED",
    "MOST_RESIDENT",
    "NARROW_FILTERS",
    "QUERIES",
    "REFERENCES",
    "SELECTED_ELEMENTS",
    "SHARED_ELEMENTS",
    "UNCERTAINTY_ELEMENTS",
    "WHOLE_MODEL",
]

FEW_IMAGES = 16
"""Images up to which the passes share operations on a processor. With more, a product of kept units
only is faster. Row: versions, 50 passes of DigitNet, FashionNet and the transformer, 8 images."""

SHARED_ELEMENTS = {"cpu": 2**22, "cuda": 2**28}
"""Elements of the widest tensor of the passes that share operations (16 MiB and 1 GiB in float32).
Row: versions, 50 passes of FashionNet, 8 images."""

CACHED_ELEMENTS = 2**25
"""Elements of weights that are kept from one call to the next (128 MiB in float32). Row: versions,
50 passes of DigitNet, 64 images."""

IMAGES_AT_ONCE = 512
"""Images that a thread, or a GPU, is given at once. Row: versions, 50 passes of DigitNet, 1,000
images."""

ELEMENTS_AT_ONCE = 2**24
"""Elements of the widest tensor that a thread holds on a processor (64 MiB in float32). Row:
growth, peak memory of scoring."""

IMAGES_OF_A_THREAD = 128
"""Images from which on a thread has batches of its own; with fewer, threads share the operations.
Row: optimisations, beside a busy process, 50 passes of FashionNet, 256 images."""

SELECTED_ELEMENTS = 2**27
"""Total element count of the weights that all threads select from (512 MiB in float32); with more,
threads share the operations. Bounds memory on machines with many processors."""

MOST_PREPARED = 8
"""Kinds of input whose graphs and masks are kept. Bounds memory."""

WHOLE_MODEL = 256
"""Images that a whole model is run on at once. Row: the default's cost."""

NARROW_FILTERS = 64
"""Filters of the widest convolution up to which a model gets images with their channels last. Row:
versions, PGD and 50 passes of DigitNet and FashionNet."""

FREED_BYTES = 2**25 - 2**15
"""Size of the block that is freed once, a little below the 32 MiB up to which glibc learns from
what is freed. Row: versions, 50 passes of ResNet-18, 64 images."""

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
