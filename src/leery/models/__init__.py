"""Running somebody's classifier: isolation, layers, logits out of any output, loading, fingerprint.

Every call leaves the classifier, its modes and the global random states as they were. What belongs
here knows a classifier and its inputs; Monte-Carlo dropout, metrics and attacks do not.
"""

from leery.models._features import (
    INPUT_OF,
    check_layer,
    extract_features,
    forward,
    last_hidden_layer,
    predict,
)
from leery.models._fingerprint import fingerprint
from leery.models._guest import (
    assignments_undone,
    check_logits,
    device_of,
    guest,
    python_randomness,
    refused,
    run_fast,
    run_model,
    unwrapped,
)
from leery.models._layout import WHOLE_MODEL, fast_layout, has_fast_layout, keep_freed_memory
from leery.models._trial import Run, Trial, two_images

__all__ = [
    "INPUT_OF",
    "WHOLE_MODEL",
    "Run",
    "Trial",
    "assignments_undone",
    "check_layer",
    "check_logits",
    "device_of",
    "extract_features",
    "fast_layout",
    "fingerprint",
    "forward",
    "guest",
    "has_fast_layout",
    "keep_freed_memory",
    "last_hidden_layer",
    "predict",
    "python_randomness",
    "refused",
    "run_fast",
    "run_model",
    "two_images",
    "unwrapped",
]
