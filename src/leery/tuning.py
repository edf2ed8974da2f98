"""Tuning constants of speed and memory, with their units and the benchmark rows behind them.

The rows are those of benchmarks/results.md; "versions" are those of benchmarks/versions.py, and
"optimisations" those of benchmarks/optimisations.md. None of these constants changes a result by
more than rounding.
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
    "MAX_PREPARED",
    "MAX_RESIDENT",
    "NARROW_FILTERS",
    "QUERIES",
    "REFERENCES",
    "SELECTED_ELEMENTS",
    "SHARED_ELEMENTS",
    "UNCERTAINTY_ELEMENTS",
    "WHOLE_MODEL",
]

FEW_IMAGES = 16
"""Number of images up to which passes share operations on a CPU. For more images, multiplying only
the kept units is faster. Row: versions, 50 passes of DigitNet, FashionNet and the transformer, 8
images."""

SHARED_ELEMENTS = {"cpu": 2**22, "cuda": 2**28}
"""Maximum number of elements of the widest tensor of passes that share operations (16 MiB and 1 GiB
in float32). Row: versions, 50 passes of FashionNet, 8 images."""

CACHED_ELEMENTS = 2**25
"""Maximum number of weight elements that are cached between calls (128 MiB in float32). Row:
versions, 50 passes of DigitNet, 64 images."""

IMAGES_AT_ONCE = 512
"""Maximum number of images in a batch of a thread or a GPU. Row: versions, 50 passes of DigitNet,
1,000 images."""

ELEMENTS_AT_ONCE = 2**24
"""Maximum number of elements of the widest tensor of a CPU thread (64 MiB in float32). Row: growth,
peak memory of scoring."""

IMAGES_OF_A_THREAD = 128
"""Number of images per thread above which each thread has its own batches; with fewer, threads
share the operations. Row: optimisations, beside a busy process, 50 passes of FashionNet, 256
images."""

SELECTED_ELEMENTS = 2**27
"""Maximum total number of weight elements from which all threads select (512 MiB in float32); with
more, threads share the operations. Limits memory on machines with many CPU cores."""

MAX_PREPARED = 8
"""Maximum number of input shapes and types whose graphs and masks are stored; limits memory."""

WHOLE_MODEL = 256
"""Batch size for runs of the whole model. Row: the default's cost."""

NARROW_FILTERS = 64
"""Largest number of filters of a convolution for which a model is given channels-last images. Row:
versions, PGD and 50 passes of DigitNet and FashionNet."""

FREED_BYTES = 2**25 - 2**15
"""Bytes of the block that is freed once, slightly less than the 32 MiB up to which glibc adapts its
threshold. Row: versions, 50 passes of ResNet-18, 64 images."""

CLOSENESS_IMAGES = 2048
"""Number of images whose closeness is computed together; some hundreds per class give fast matrix
products. Row: six metrics, 10,000 digits."""

CLOSENESS_PIXELS = 2**24
"""Maximum number of elements of the images held for this (64 MiB in float32). Row: peak memory of
scoring."""

UNCERTAINTY_ELEMENTS = 2**18
"""Number of probabilities whose uncertainty is computed together on a CPU; in float64 (2 MiB) they
stay in its cache from one metric to the next. Row: six metrics, 10,000 digits."""

QUERIES = 256
"""Number of images per block of exponents of a kernel density. Row: kernel density."""

REFERENCES = 2048
"""Number of training points per such block, which stays in the CPU's cache (4 MiB). Row: kernel
density."""

CONVERTED = 512
"""Number of training points converted to float64 at a time, which stay in the CPU's cache. Row:
kernel density, 100,000 points."""

MAX_RESIDENT = 2**26
"""Maximum number of elements of training points held in float64 (512 MiB); more are converted at
each use, which takes 50 % longer for few queries and 5 % longer for many. Row: kernel density,
100,000 points."""
