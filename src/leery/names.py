"""Names of metrics, baselines and attacks, for the help texts of the command line.

This module imports nothing, so that help and usage errors need no torch.
"""

__all__ = [
    "ATTACKS",
    "ATTACKS_OF_LIBRARIES",
    "BASELINES",
    "CLOSENESS_METRICS",
    "IMAGE_BASELINES",
    "METRICS",
    "PAPER_METRICS",
    "RECOMMENDED_METRICS",
    "SENTINELS",
    "SUPERVISED_BASELINES",
    "UNCERTAINTY_METRICS",
]

SENTINELS = ("mnist", "fashion-mnist")
"""Datasets for which a trained sentinel ships."""

UNCERTAINTY_METRICS = ("variance", "predictive_entropy", "mutual_information", "confidence")
"""The paper's uncertainty metrics."""

CLOSENESS_METRICS = ("kernel_density", "kl_divergence")
"""The paper's closeness metrics."""

PAPER_METRICS = UNCERTAINTY_METRICS + CLOSENESS_METRICS
"""The six metrics of the paper, in the order of its table 5."""

RECOMMENDED_METRICS = (
    "auxiliary_agreement",
    "noise_consistency",
    "squeezing_1bit_logits",
    "squeezing_median2_logits",
    "shift_consistency",
)
"""Default metrics of a detector for images; docs/choosing.md gives the reasons."""

METRICS = (
    "auxiliary_agreement",
    "max_softmax",
    "margin",
    "log_margin",
    "energy",
    "noise_consistency",
    "shift_consistency",
    "squeezing_1bit",
    "squeezing_1bit_logits",
    "squeezing_3bit",
    "squeezing_3bit_logits",
    "squeezing_median2",
    "squeezing_median2_logits",
    "squeezing_median3",
    "squeezing_median3_logits",
    "nearest_neighbours",
    "mahalanobis",
    "relative_mahalanobis",
    "boundary_distance",
    *UNCERTAINTY_METRICS,
    "aleatoric",
    "epistemic",
    "scibilic",
    "bhattacharyya",
    "unit_dispersion",
    "logit_feature_shift",
    *CLOSENESS_METRICS,
    "kl_divergence_sum",
    "median_residual",
    "residual_kurtosis",
)
"""The names that ``Detector(metrics=[...])`` accepts.

The two KL divergences differ in how features become probabilities, which the paper leaves open.
"""

BASELINES = (
    "max_softmax",
    "energy",
    "nearest_neighbours",
    "mahalanobis",
    "relative_mahalanobis",
)
"""Baselines for inputs of any kind that need no adversarial examples."""

IMAGE_BASELINES = ("feature_squeezing", "odds", "deep_knn")
"""Baselines for images that need no adversarial examples."""

SUPERVISED_BASELINES = (
    "kernel_density_uncertainty",
    "lid",
    "layer_mahalanobis",
    "detector_subnetwork",
    "later_metrics",
    "paper_metrics",
)
"""Baselines for images that learn from adversarial examples."""

ATTACKS = ("fgsm", "bim", "pgd")
"""The attacks that leery implements."""

ATTACKS_OF_LIBRARIES = (
    "cw",
    "deepfool",
    "ddn",
    "apgd",
    "square",
    "hopskipjump",
    "spatial",
    "sparse",
)
"""Attacks of other libraries, which require the extra "attacks"."""
