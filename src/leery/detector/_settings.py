"""Settings of a detector."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from leery._checks import Bounds, check_bound_values, check_count, check_share
from leery.certify import Sentinel
from leery.combiners import Facts, make_combiner
from leery.errors import InputError
from leery.mc_dropout import MAX_PASSES
from leery.metrics import RECOMMENDED_METRICS, Metric, References, make_metrics

__all__ = ["Settings"]


@dataclass(frozen=True)
class Settings:
    """The settings of a detector, checked when they are made.

    Attributes:
        feature_layer: the last hidden layer as the user named it, or None.
        passes: the number of Monte-Carlo dropout passes.
        seed: random seed of the fit, reference selection, harmless changes, splits, fresh masks.
        masks: the seed of the dropout masks and of views; "fresh" draws new masks at each call.
        metrics: unfitted metrics, copied by each fit.
        recommended: True if the user named no metrics: each fit then chooses those that are
            recommended for its inputs.
        sentinel: a sentinel, of which each fit uses a copy; None for none.
        sentinel_share: the sentinel's share of the false alarms, in (0, 1).
        left_out: which recommended metrics were left out, why, and how to add them; None if none.
        references: storage settings of metrics that compare with the training data.
        combiner: name of the combiner.
        bounds: pixel bounds as the user gave them, or None.
        batch_size: maximum number of images that a thread processes at once.
        trust_outputs: True if outputs that do not look like logits are accepted as logits.
    """

    feature_layer: str | None
    passes: int
    seed: int
    masks: int | Literal["fresh"]
    metrics: tuple[Metric, ...]
    recommended: bool
    references: References
    combiner: str
    bounds: Bounds | None
    batch_size: int
    trust_outputs: bool
    sentinel: Sentinel | None
    sentinel_share: float
    left_out: str | None = None

    @classmethod
    def checked(
        cls,
        *,
        feature_layer: str | None,
        passes: int,
        seed: int,
        metrics: Sequence[str | Metric] | None,
        references: References,
        combiner: str,
        bounds: Any,  # noqa: ANN401 - it is checked here
        batch_size: int,
        trust_outputs: bool,
        sentinel: Sentinel | None,
        sentinel_share: float,
    ) -> Self:
        """Make settings from user input; raise if one is outside its range.

        Raises:
            InputError: when a setting is outside its range.
        """
        passes = check_count(passes, "passes")
        if passes > MAX_PASSES:
            message = f"expected 1 to {MAX_PASSES} passes, got {passes}; correct the number"
            raise InputError(message)
        seed = check_count(seed, "a seed", least=0)
        chosen = make_metrics(RECOMMENDED_METRICS if metrics is None else metrics, references)
        make_combiner(combiner, [Facts.of(metric) for metric in chosen])
        return cls(
            feature_layer,
            passes,
            seed,
            seed,
            chosen,
            metrics is None,
            references,
            combiner,
            None if bounds is None else check_bound_values(bounds),
            check_count(batch_size, "a batch size"),
            trust_outputs,
            sentinel,
            check_share(sentinel_share),
        )
