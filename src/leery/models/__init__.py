"""Running of user classifiers: isolation, layers, logits, loading and fingerprints.

Every call restores the classifier, its modes and the global random states. This package knows
nothing of Monte-Carlo dropout, metrics or attacks.
"""

from leery.models._cost import multiplications
from leery.models._features import (
    INPUT_OF,
    check_layer,
    check_recorded,
    extract_features,
    forward,
    has_linear_head,
    last_hidden_layer,
    predict,
    recorded_layers,
    submodules_of_images,
)
from leery.models._fingerprint import content_hashes, fingerprint, grid_of, image_hashes
from leery.models._isolation import (
    assignments_undone,
    check_logits,
    device_of,
    isolated,
    model_errors,
    own_tensors,
    run_fast,
    run_model,
    unwrapped,
)
from leery.models._layout import (
    fast_layout,
    has_fast_layout,
    keep_freed_memory,
    with_layout,
)
from leery.models._loading import (
    check_repeatable,
    load_model,
    loaded_object,
    normalized,
    user_code,
)
from leery.models._outputs import Logits, logits_facts, logits_of_facts, with_logits
from leery.models._replica import python_randomness
from leery.models._shortcut import two_images

__all__ = [
    "INPUT_OF",
    "Logits",
    "assignments_undone",
    "check_layer",
    "check_logits",
    "check_recorded",
    "check_repeatable",
    "content_hashes",
    "device_of",
    "extract_features",
    "fast_layout",
    "fingerprint",
    "forward",
    "grid_of",
    "has_fast_layout",
    "has_linear_head",
    "image_hashes",
    "isolated",
    "keep_freed_memory",
    "last_hidden_layer",
    "load_model",
    "loaded_object",
    "logits_facts",
    "logits_of_facts",
    "model_errors",
    "multiplications",
    "normalized",
    "own_tensors",
    "predict",
    "python_randomness",
    "recorded_layers",
    "run_fast",
    "run_model",
    "submodules_of_images",
    "two_images",
    "unwrapped",
    "user_code",
    "with_layout",
    "with_logits",
]
