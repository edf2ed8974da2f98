"""MC dropout as users see it: a model, a number of passes, a seed."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn

from leery._checks import check_batch_size, check_images, check_seed
from leery._guest import device_of, guest, run_model
from leery.errors import InputError, NoDropoutError, UnknownLayerError, UnsupportedModelError
from leery.features import check_layer, extract_features
from leery.mc_dropout._engine import Engine
from leery.mc_dropout._graph import capture, dropout_modules
from leery.mc_dropout._masks import Masks, MaskSource, draw_masks

__all__ = ["MCDropout", "Observation"]


@dataclass(frozen=True)
class Observation:
    """What one run over a batch of images yields.

    Attributes:
        logits: float ``(N, classes)``, dropout off.
        features: float ``(N, D)``, dropout off; None where no layer was named.
        probs: float ``(passes, N, classes)``, dropout on; rows sum to 1.
    """

    logits: Tensor
    features: Tensor | None
    probs: Tensor


@dataclass(frozen=True)
class _Captured:
    """An engine, the fixed masks of its sites, and the state of the model that it stands for."""

    engine: Engine
    masks: Masks
    state: tuple[object, ...]


class MCDropout:
    """Samples a classifier's class probabilities with its dropout layers on.

    Pass t is one fixed sub-network: its masks come from the seed and are the same for every
    image and call, so that a probability is a pure function of the image. What does not depend
    on a mask is computed once an image, and a linear layer behind a dropout multiplies the kept
    columns only; the result equals the plain loop with the same masks. Batch norm and all else
    stay in eval mode, and the model is left as it was.

    Args:
        model: returns logits ``(N, classes)`` and has ``nn.Dropout`` or ``nn.Dropout1d/2d/3d``
            layers of its own. Later calls see changes of its weights, buffers and dropout rates;
            other attributes are taken as they are at the first call.
        passes: the number of passes, T.
        seed: of the masks.
        masks: "fixed" (drawn once) or "fresh" (drawn anew at each call, one set a call; the
            k-th call of two samplers with the same seed draws the same).
        layer: a submodule whose output :meth:`observe` returns as features.
        batch_size: how many images are worked on at once, which bounds the memory.

    Raises:
        NoDropoutError: when the model has no dropout layer that drops anything.
        UnknownLayerError: when the model has no such layer.
        InputError: when another setting is outside its range.

    Source:
        Gal, Ghahramani (2016), arXiv:1506.02142; the paper's eq. 4. Departure: with fixed masks
        the passes are shared by all images, as in Kirsch, van Amersfoort, Gal (2019), "BatchBALD";
        the distribution for one image is the same.
    """

    def __init__(
        self,
        model: nn.Module,
        passes: int = 50,
        seed: int = 0,
        masks: MaskSource = "fixed",
        *,
        layer: str | None = None,
        batch_size: int = 256,
    ) -> None:
        if passes < 1:
            message = f"expected at least 1 pass, got {passes}; pass a larger number"
            raise InputError(message)
        if masks not in get_args(MaskSource):
            message = f'expected masks "fixed" or "fresh", got {masks!r}; name one of the two'
            raise InputError(message)
        check_batch_size(batch_size)
        check_seed(seed)
        if layer is not None:
            check_layer(model, layer)
        if not dropout_modules(model):
            message = (
                f"expected a model with nn.Dropout layers of p > 0, got {type(model).__name__} "
                "without any; add one before its last linear layer (functional dropout is not "
                "seen), or use metrics that need no dropout"
            )
            raise NoDropoutError(message)
        self.model = model
        self.passes = passes
        self.seed = seed
        self.masks: MaskSource = masks
        self.layer = layer
        self.batch_size = batch_size
        self._calls = 0
        self._captured: dict[tuple[object, ...], _Captured] = {}

    def sample(self, images: Tensor) -> Tensor:
        """Class probabilities of every pass.

        Args:
            images: ``(N, ...)``, on any device.

        Returns:
            float ``(passes, N, classes)`` on the images' device; rows sum to 1.

        Raises:
            InputError: when the images do not fit.
            UnsupportedModelError: when the model's graph cannot be had.
        """
        return torch.cat([seen.probs for seen in self.stream(images)], dim=1)

    def observe(self, images: Tensor) -> Observation:
        """Logits and features without dropout, and the probabilities of every pass, in one run.

        Args:
            images: ``(N, ...)``, on any device.

        Raises:
            InputError: when the images do not fit.
            UnsupportedModelError: when the model's graph cannot be had.
        """
        seen = list(self.stream(images))
        features = [part.features for part in seen if part.features is not None]
        return Observation(
            logits=torch.cat([part.logits for part in seen]),
            features=torch.cat(features) if features else None,
            probs=torch.cat([part.probs for part in seen], dim=1),
        )

    def stream(self, images: Tensor) -> Iterator[Observation]:
        """:meth:`observe` batch by batch, so that memory does not grow with the images."""
        check_images(images)
        captured = self._capture(images)
        masks = self._masks(captured).to(device_of(self.model))
        for batch in images.split(self.batch_size):
            yield self._run(captured.engine, masks, batch)

    def _run(self, engine: Engine, masks: Masks, batch: Tensor) -> Observation:
        count, home = len(batch), batch.device
        # A single image is doubled: convolutions add in another order for a batch of one.
        batch = torch.cat([batch, batch]) if count == 1 else batch
        with torch.no_grad():
            once = engine.prefix(batch.to(device_of(self.model)))
            logits, features = engine.without_dropout(once)
            passes = [engine.one_pass(once, masks, index) for index in range(self.passes)]
            probs = torch.stack(passes).softmax(-1)
        return Observation(
            logits[:count].to(home),
            None if features is None else features[:count].to(home),
            probs[:, :count].to(home),
        )

    def _masks(self, captured: _Captured) -> Masks:
        if self.masks == "fixed":
            return captured.masks
        self._calls += 1
        return draw_masks(captured.engine.sites, self.passes, self.seed, draw=self._calls)

    def _capture(self, images: Tensor) -> _Captured:
        """The engine for inputs of this kind; captured anew when the model is not what it was."""
        device = device_of(self.model)
        key = (images.shape[1:], images.dtype, device)
        state = self._state()
        if key not in self._captured or self._captured[key].state != state:
            example = torch.cat([images[:1], images[-1:]]).to(device)
            engine = Engine(capture(self.model, example), self.layer)
            self._prove(engine, example)
            masks = draw_masks(engine.sites, self.passes, self.seed)
            self._captured[key] = _Captured(engine, masks, state)
        return self._captured[key]

    def _state(self) -> tuple[object, ...]:
        """What a captured graph depends on: which tensors it reads, and the dropout rates.

        The graph keeps its tensors alive, so that no other can take over an identity.
        """
        tensors = (id(tensor) for tensor in (*self.model.parameters(), *self.model.buffers()))
        rates = (float(module.p) for module in dropout_modules(self.model))
        return (*tensors, *rates)

    def _prove(self, engine: Engine, example: Tensor) -> None:
        """Refuse a graph that does not compute what the model computes."""
        if self.layer is not None and not engine.reads_layer:
            message = (
                f"expected a feature layer that computes something, got {self.layer!r}, which "
                "leaves no trace in the model's graph; name the layer before it"
            )
            raise UnknownLayerError(message)
        with torch.no_grad():
            found = engine.without_dropout(engine.prefix(example))
            with guest(self.model):
                truth = run_model(self.model, example)
            pairs = [(found[0], truth)]
            if self.layer is not None and found[1] is not None:
                pairs.append((found[1], extract_features(self.model, example, self.layer)[0]))
        if not bool(truth.isfinite().all()):
            message = "expected finite logits, got NaN or infinity; check the model's weights"
            raise InputError(message)
        if not all(torch.allclose(*pair, rtol=1e-3, atol=1e-4) for pair in pairs):
            message = (
                "expected the captured graph to give the model's own output, got another one; "
                "take in-place changes of shared tensors out of forward, hooks that replace "
                "outputs off the model, and name a feature layer that is not written over"
            )
            raise UnsupportedModelError(message)
