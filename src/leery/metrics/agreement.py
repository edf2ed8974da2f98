"""Agreement of an auxiliary network with the classifier.

An attack on one network rarely transfers, with the same wrong class, to another that was trained
separately. Against an attacker who also knows the second network, this metric adds little.
"""

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from leery.errors import DetectorFileError, InputError
from leery.metrics._base import FitContext, Metric
from leery.metrics._odds import log_odds_against
from leery.models import device_of, run_model
from leery.observation import Observation
from leery.training import AuxiliaryNetwork, AuxiliaryRecipe, TrainingSet, train_auxiliary

__all__ = ["AuxiliaryAgreement"]


class AuxiliaryAgreement(Metric):
    r"""Log odds, by an auxiliary network, that the predicted class is wrong.

    .. math:: \log \sum_{j \ne c} e^{a_j(x)} - a_c(x), \qquad c = \arg\max_j z_j(x)

    with logits a of the auxiliary network and z of the classifier.

    Args:
        network: a module that returns logits of the same classes for the same inputs, such as a
            second pretrained classifier; by default a network is trained on the training
            images (:mod:`leery.training`).
        recipe: training settings of that network; not stored in the detector file.

    Attributes:
        auxiliary: the network, in eval mode; None before the fit if the fit trains it.

    Notes:
        A network trained by the fit is part of the detector file. Of a network passed by the user
        the file holds only the weights: pass the metric again when loading. The quality of the
        metric depends on the accuracy of the auxiliary network: its errors on clean images raise
        the threshold, so that fewer attacks are found at the same false-alarm rate.

    Source:
        Disagreement of two networks: Aldahdooh et al. (2022), "Adversarial example detection for
        DNN models: a review"; log odds: Roth et al. (2019), arXiv:1902.04818.
    """

    name = "auxiliary_agreement"
    family = "agreement"
    direction = "larger"

    shape: Tensor

    def __init__(
        self, network: nn.Module | str | None = None, *, recipe: AuxiliaryRecipe | None = None
    ) -> None:
        super().__init__()
        if isinstance(network, str):
            message = (
                f"expected the auxiliary network of {self.name!r}, which was not trained by leery, "
                "got none; pass metrics=[leery.metrics.AuxiliaryAgreement(network)], or "
                "--metric with the function that returns it"
            )
            raise DetectorFileError(message)
        self.given = network is not None
        self.recipe = recipe or AuxiliaryRecipe()
        self.auxiliary = network
        self.register_buffer("shape", None)

    def prepare(self, context: FitContext) -> None:
        """Train the auxiliary network, or check the one that the user passed.

        Raises:
            InputError: when the inputs are not images, or a passed network has other classes.
        """
        first, _ = next(iter(context.batches()))
        self.shape = torch.tensor(first.shape[1:])
        if self.given:
            assert self.auxiliary is not None
            self.auxiliary = self.auxiliary.to(context.device).eval()
            self._check(run_model(self.auxiliary, first[:2].to(context.device)), context.classes)
            return
        if first.ndim != 4 or not first.is_floating_point():  # noqa: PLR2004 - images
            message = (
                "expected images (channels, height, width) of floating-point pixels to train an "
                f"auxiliary network on, got {tuple(first.shape[1:])} of {first.dtype}; leave "
                f"{self.name} out of the metrics, or pass it a network"
            )
            raise InputError(message)
        data = TrainingSet.gathered(context.batches())
        code = {type(one).__module__ for one in (self, self.recipe, self.recipe.augmentation)}
        recipe = self.recipe.suited_to(
            context.model,
            data,
            classes=context.classes,
            dtype=first.dtype,
            batch_size=context.batch_size,
        )
        facts = [
            *(data.digest(), repr(recipe), context.classes, str(context.pixels)),
            *(context.seed, context.device.type),
        ]
        trained = context.part(code, facts, lambda: self._trained(data, recipe, context))
        own = {f"auxiliary.{name}": tensor for name, tensor in trained.items()}
        self.restore({"shape": self.shape, **own}).to(context.device)

    def _trained(
        self, data: TrainingSet, recipe: AuxiliaryRecipe, context: FitContext
    ) -> dict[str, Tensor]:
        """Train a network and return its weights."""
        network = train_auxiliary(
            data,
            classes=context.classes,
            recipe=recipe,
            pixels=context.pixels,
            seed=context.seed,
            device=context.device,
            progress=lambda share: context.progress("training the auxiliary network", share),
        )
        return network.state_dict()

    def forward(self, seen: Observation) -> Tensor:
        """The log odds of each image, float64 ``(N,)``."""
        assert self.auxiliary is not None
        auxiliary = self.auxiliary
        if device_of(auxiliary) != seen.images.device:
            auxiliary = auxiliary.to(seen.images.device)
        trained = isinstance(auxiliary, AuxiliaryNetwork)
        images = seen.images.float() if trained else seen.images
        return log_odds_against(run_model(auxiliary, images), seen.predicted)

    def options(self) -> dict[str, Any]:
        """Constructor arguments of this metric, except the network and the recipe."""
        return {"network": "given"} if self.given else {}

    def restore(self, state: Mapping[str, Tensor]) -> Self:
        """Load the network of a fitted metric.

        Raises:
            InputError: when tensors are missing or of other shapes.
        """
        if not self.given:
            first, last = (
                state.get(f"auxiliary.{name}") for name in ("features.0.0.weight", "classify.bias")
            )
            shape = state.get("shape")
            if first is None or last is None or shape is None or shape.shape != (3,):
                message = f"expected an auxiliary network of {self.name}, got none; fit again"
                raise InputError(message)
            channels, height, length = shape.tolist()
            self.auxiliary = (
                AuxiliaryNetwork((channels, height, length), len(last), width=len(first))
                .eval()
                .requires_grad_(requires_grad=False)
            )
        super().restore(state)
        assert self.auxiliary is not None
        self.auxiliary.eval()
        if isinstance(self.auxiliary, AuxiliaryNetwork):
            # As after training, because another memory layout rounds differently.
            self.auxiliary.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self

    def check_classes(self, classes: int) -> None:
        """Raise if the network has another number of classes."""
        if isinstance(self.auxiliary, AuxiliaryNetwork):
            self._check(self.auxiliary.classify.bias.unsqueeze(0), classes)

    def _check(self, logits: Tensor, classes: int) -> None:
        if logits.shape[1] != classes:
            message = (
                f"expected an auxiliary network with the classifier's {classes} classes, got "
                f"{logits.shape[1]}; pass another one"
            )
            raise InputError(message)
