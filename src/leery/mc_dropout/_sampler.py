"""The public MC dropout sampler: a model, a number of passes and a seed."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import get_args

import torch
from torch import Tensor, nn

from leery._checks import check_batch_size, check_count, check_images, check_seed
from leery.errors import InputError, NoDropoutError, UnsupportedModelError
from leery.mc_dropout._engine import Engine
from leery.mc_dropout._export import NoGraphError, capture
from leery.mc_dropout._masked_linear import WeightCache
from leery.mc_dropout._masks import Masks, MaskSource, draw_masks
from leery.mc_dropout._plain_loop import PlainLoop
from leery.mc_dropout._plan import Plan, explain
from leery.mc_dropout._threads import parallel_batches
from leery.mc_dropout._train_modes import dropout_rates
from leery.mc_dropout._verify import (
    check_matches_loop,
    matches_eval_mode,
    only_drops_in_train_mode,
    with_row_order,
)
from leery.models import (
    check_layer,
    device_of,
    has_fast_layout,
    isolated,
    model_errors,
    own_tensors,
    two_images,
    unwrapped,
    with_layout,
)
from leery.tuning import (
    ELEMENTS_AT_ONCE,
    FEW_IMAGES,
    IMAGES_AT_ONCE,
    IMAGES_OF_A_THREAD,
    MAX_PREPARED,
    SELECTED_ELEMENTS,
    WHOLE_MODEL,
)

__all__ = ["MCDropout", "Passes"]

MAX_PASSES = 10_000
"""Maximum number of passes, so that a typo or an untrusted file cannot exhaust memory."""


@dataclass(frozen=True)
class Passes:
    """Results of the passes over a batch of images, and of the forward pass without dropout.

    Attributes:
        logits: float ``(N, classes)``, dropout off.
        layers: layer outputs by name, ``(N, ...)``, dropout off.
        probs: float ``(passes, N, classes)``, dropout on; rows sum to 1.
        pass_layers: layer outputs in each pass by name, ``(passes, N, ...)``.
    """

    logits: Tensor
    layers: Mapping[str, Tensor]
    probs: Tensor
    pass_layers: Mapping[str, Tensor]

    def to(self, device: torch.device) -> "Passes":
        """The same results on a device."""
        return self._each(lambda tensor, _dim: tensor.to(device))

    def _each(self, change: Callable[[Tensor, int], Tensor]) -> "Passes":
        """Apply a function to every tensor; it is given the batch dimension."""
        return Passes(
            change(self.logits, 0),
            {name: change(value, 0) for name, value in self.layers.items()},
            change(self.probs, 1),
            {name: change(value, 1) for name, value in self.pass_layers.items()},
        )

    @staticmethod
    def joined(parts: Sequence["Passes"]) -> "Passes":
        """Concatenate the results of several batches."""
        first = parts[0]
        return Passes(
            torch.cat([part.logits for part in parts]),
            {name: torch.cat([part.layers[name] for part in parts]) for name in first.layers},
            torch.cat([part.probs for part in parts], dim=1),
            {
                name: torch.cat([part.pass_layers[name] for part in parts], dim=1)
                for name in first.pass_layers
            },
        )


@dataclass(frozen=True)
class _Prepared:
    """Plan for running inputs of one shape and type, valid for one state of the model.

    Attributes:
        loop: reference implementation of a pass.
        engine: faster implementation, if the graph can be captured, else None.
        reason: reason why there is no engine; "" if there is one.
        shared: True if the engine also reproduces eval mode.
        classes: number of classes of the model.
        device: device of the model.
        channels_last: True if the engine takes images in channels-last memory layout.
        masks: the fixed masks, on that device.
        state: state of the model for which the plan is valid.
        cache: weights selected by the fixed masks.
    """

    loop: PlainLoop
    engine: Engine | None
    shared: bool
    classes: int
    device: torch.device
    channels_last: bool
    masks: Masks
    reason: str
    state: tuple[object, ...]
    cache: WeightCache = field(default_factory=WeightCache)

    def run(
        self, batch: Tensor, masks: Masks, cache: WeightCache | None, pass_layers: Sequence[str]
    ) -> Passes:
        """Run a batch on the model's device, without dropout and in every pass."""
        each = range(len(masks))
        if self.engine is None:
            logits, layers = self.loop.without_dropout(batch)
            found = [self.loop.one_pass_and_layers(batch, masks, t, pass_layers) for t in each]
            return _stacked(logits, layers, found)
        once = self.engine.prefix(with_layout(batch, channels_last=self.channels_last))
        logits, layers = (
            self.engine.without_dropout(once) if self.shared else self.loop.without_dropout(batch)
        )
        if pass_layers:
            found = [self.engine.one_pass_and_layers(once, masks, t, pass_layers) for t in each]
            return _stacked(logits, layers, found)
        return Passes(logits, layers, _probabilities(self.engine.passes(once, masks, cache)), {})


class MCDropout:
    """Samples a classifier's class probabilities with its dropout on.

    Pass t is one fixed sub-network: its masks come from the seed and are the same for every image
    and call, so that the probabilities depend only on the image. All other modules, such as batch
    norm, stay in eval mode, and the state of the model is restored.

    If ``torch.export`` can capture the model's forward pass, everything that does not depend on a
    mask is computed once per image, and a linear layer after a dropout multiplies only the kept
    columns. Otherwise each pass runs the whole model. The results are the same;
    :meth:`explain_plan` tells which method is used.

    Args:
        model: returns logits ``(N, classes)`` and has dropout: torch's dropout layers, functional
            dropout that depends on ``self.training``, dropout inside attention or between recurrent
            layers, stochastic depth. Changes to its weights, buffers and dropout rates take effect
            in later calls; other attributes are read once, at the first call.
        passes: the number of passes, T.
        seed: random seed of the masks.
        masks: "fixed" (drawn once) or "fresh" (one new set per call; the k-th calls of two samplers
            with the same seed draw the same masks).
        layers: submodules whose outputs :meth:`observe` returns; "input of " before a name selects
            the input instead.
        pass_layers: submodules whose outputs in each pass are returned; all units are then computed
            in each pass.
        batch_size: maximum number of images that a thread processes at once, which limits memory;
            fewer for many passes, many classes or a large model. With enough images, each of
            torch's threads processes its own batch. The weights selected by fixed masks stay in
            memory for the next call, up to 128 MiB in float32.

    Raises:
        UnknownLayerError: when the model lacks a layer.
        InputError: when another setting is outside its range.

    Source:
        Gal, Ghahramani (2016), arXiv:1506.02142; Tuna, Catak, Eskil (2020), eq. 4. Departure: fixed
        masks are shared by all images, as in Kirsch, van Amersfoort, Gal (2019), "BatchBALD"; the
        distribution for one image is the same.
    """

    def __init__(
        self,
        model: nn.Module,
        passes: int = 50,
        seed: int = 0,
        masks: MaskSource = "fixed",
        *,
        layers: Sequence[str] = (),
        pass_layers: Sequence[str] = (),
        batch_size: int = 1000,
    ) -> None:
        if check_count(passes, "passes") > MAX_PASSES:
            message = f"expected 1 to {MAX_PASSES} passes, got {passes}; correct the number"
            raise InputError(message)
        if masks not in get_args(MaskSource):
            message = f'expected masks "fixed" or "fresh", got {masks!r}; choose one'
            raise InputError(message)
        check_batch_size(batch_size)
        check_seed(seed)
        self.model = unwrapped(model)
        for layer in (*layers, *pass_layers):
            check_layer(self.model, layer)
        self.passes = passes
        self.seed = seed
        self.masks: MaskSource = masks
        self.layers = tuple(layers)
        self.pass_layers = tuple(pass_layers)
        self.batch_size = batch_size
        self._calls = 0
        self._prepared: dict[tuple[object, ...], _Prepared] = {}

    def __getstate__(self) -> dict[str, object]:
        """State of a copy: graphs cannot be copied, so the copy captures its own."""
        return {**vars(self), "_prepared": {}}

    def sample(self, images: Tensor) -> Tensor:
        """Class probabilities of every pass.

        Args:
            images: ``(N, ...)``, on any device.

        Returns:
            float ``(passes, N, classes)`` on the images' device; rows sum to 1.

        Raises:
            InputError: when the images do not fit.
            UnsupportedModelError: when the model cannot be run pass by pass.
        """
        home = images.device
        return torch.cat([seen.probs.to(home) for seen in self.stream(images)], dim=1)

    def observe(self, images: Tensor) -> Passes:
        """Logits and layers without dropout, and the probabilities of every pass, in one run.

        Args:
            images: ``(N, ...)``, on any device; the result is on the same device.

        Raises:
            InputError: when the images do not fit.
            UnsupportedModelError: when the model cannot be run pass by pass.
        """
        return Passes.joined([part.to(images.device) for part in self.stream(images)])

    def stream(self, images: Tensor) -> Iterator[Passes]:
        """:meth:`observe` batch by batch, so that memory does not grow with the images.

        The parts stay on the model's device, so that metrics are computed there too.
        """
        prepared = self._prepare(images)
        masks = self._masks(prepared)
        threads = self._threads(prepared, len(images))
        rows = self._rows(prepared)
        count = min(len(images), math.ceil(len(images) / rows / threads) * threads)
        batches = images.tensor_split(count)
        cache = self._cache(prepared, again=count > threads)
        run = partial(self._run, prepared, masks, cache)
        with parallel_batches(threads) as each:
            for place in range(0, count, threads):
                with self._undisturbed(prepared):
                    seen = each(run, batches[place : place + threads])
                yield from seen

    def observe_with_gradient(self, images: Tensor) -> Passes:
        """:meth:`observe` in one batch, with gradients to the images.

        Args:
            images: float ``(N, ...)``, on the model's device.

        Raises:
            InputError, UnsupportedModelError: as :meth:`observe`.
        """
        prepared = self._prepare(images.detach())
        masks = self._masks(prepared)
        cache = self._cache(prepared, again=False)
        with self._undisturbed(prepared):
            return self._run(prepared, masks, cache, images, gradient=True)

    @contextmanager
    def _undisturbed(self, prepared: _Prepared) -> Iterator[None]:
        """Run the model inside ``isolated``; a graph that replaces it needs only autocast off."""
        if prepared.shared:
            with torch.autocast(prepared.device.type, enabled=False):
                yield
        else:
            with isolated(self.model):
                yield

    def explain_plan(self, images: Tensor) -> Plan:
        """How passes are computed: the method, the random modules, what each pass repeats.

        Args:
            images: ``(N, ...)``; the first two are shown to the model.

        Raises:
            NoDropoutError, UnsupportedModelError, InputError: as :meth:`observe`.
        """
        prepared = self._prepare(images)
        with isolated(self.model), torch.no_grad():
            pair = two_images(images).to(prepared.device)
            return explain(prepared.loop, prepared.engine, prepared.reason, pair, prepared.masks)

    def _threads(self, prepared: _Prepared, images: int) -> int:
        """Number of threads that process batches in parallel."""
        if not prepared.shared or prepared.device.type != "cpu":
            # The model's own forward may not be thread-safe.
            return 1
        assert prepared.engine is not None, "shared implies an engine"
        threads = torch.get_num_threads()
        fits = threads * prepared.engine.weight_elements <= SELECTED_ELEMENTS
        return threads if fits and images >= threads * IMAGES_OF_A_THREAD else 1

    def _rows(self, prepared: _Prepared) -> int:
        """Number of images that a thread processes at once."""
        engine = prepared.engine
        if engine is None:
            return min(self.batch_size, WHOLE_MODEL)
        most = min(self.batch_size, IMAGES_AT_ONCE)
        if prepared.device.type == "cpu":
            widest = max(engine.widest, self.passes * prepared.classes)
            most = min(most, max(FEW_IMAGES, ELEMENTS_AT_ONCE // widest))
        return most

    def _cache(self, prepared: _Prepared, *, again: bool) -> WeightCache | None:
        """Cache of weights for later batches and calls.

        Args:
            prepared: plan of the images; the caches of all other plans are emptied.
            again: True if there are later batches.
        """
        if self.masks == "fresh":
            return WeightCache() if again else None
        for other in self._prepared.values():
            if other is not prepared:
                other.cache.clear()
        return prepared.cache

    def _run(
        self,
        prepared: _Prepared,
        masks: Masks,
        cache: WeightCache | None,
        batch: Tensor,
        *,
        gradient: bool = False,
    ) -> Passes:
        """The results of a batch; to be called inside :meth:`_undisturbed`."""
        shown = batch.to(prepared.device)
        with (
            torch.inference_mode(mode=False),
            torch.set_grad_enabled(gradient),
            model_errors(batch),
        ):
            return prepared.run(shown, masks, cache, self.pass_layers)

    def _masks(self, prepared: _Prepared) -> Masks:
        if self.masks == "fixed":
            return prepared.masks
        self._calls += 1
        fresh = draw_masks(prepared.loop.sites, self.passes, self.seed, draw=self._calls)
        return fresh.to(prepared.device)

    def _prepare(self, images: Tensor) -> _Prepared:
        """The plan for these inputs; made again if the model has changed."""
        check_images(images)
        device = device_of(self.model)
        key = (images.shape[1:], images.dtype, device)
        state = self._state()
        if key not in self._prepared or self._prepared[key].state != state:
            while len(self._prepared) >= MAX_PREPARED:
                self._prepared.pop(next(iter(self._prepared)))
            with isolated(self.model), torch.no_grad():
                self._prepared[key] = self._find(two_images(images).to(device), state)
        return self._prepared[key]

    def _find(self, pair: Tensor, state: tuple[object, ...]) -> _Prepared:
        read = tuple(dict.fromkeys((*self.layers, *self.pass_layers)))
        loop = PlainLoop.find(self.model, read, pair)
        if not loop.sites:
            raise _no_dropout(self.model, loop.caveat)
        loop = with_row_order(loop, pair)
        masks = draw_masks(loop.sites, self.passes, self.seed).to(pair.device)
        engine: Engine | None = None
        reason = ""
        try:
            engine = Engine(capture(self.model, loop.train_modules, pair), loop.sites, read)
            check_matches_loop(engine, loop, pair)
        except NoGraphError as error:
            engine, reason = None, str(error)
        shared = engine is not None and matches_eval_mode(engine, loop, pair)
        if not shared and not only_drops_in_train_mode(loop, pair):
            message = (
                "expected a model whose train mode adds only dropout, got other logits with "
                "nothing dropped; make its other behaviour depend on another flag"
            )
            raise UnsupportedModelError(message)
        classes = loop.without_dropout(pair)[0].shape[1]
        return _Prepared(
            loop,
            engine,
            shared,
            classes,
            pair.device,
            has_fast_layout(self.model, pair),
            masks,
            reason,
            state,
        )

    def _state(self) -> tuple[object, ...]:
        """State that a plan depends on: modules, tensors, hooks and dropout rates.

        The graph keeps its tensors alive, so that their ids cannot be reused.
        """
        modules = [*self.model.modules()]
        hooks = [
            (*module._forward_pre_hooks, None, *module._forward_hooks)  # noqa: SLF001 - no other way
            for module in modules
        ]
        return modules, [*map(id, own_tensors(self.model))], hooks, dropout_rates(modules)


def _probabilities(logits: Tensor) -> Tensor:
    """The softmax of the logits of each pass, ``(passes, N, classes)``."""
    # In half precision the rows would not sum to 1.
    return logits.softmax(-1, torch.promote_types(logits.dtype, torch.float32))


def _stacked(
    logits: Tensor, layers: Mapping[str, Tensor], found: Sequence[tuple[Tensor, dict[str, Tensor]]]
) -> Passes:
    """Stack the results of single passes."""
    read = {name: torch.stack([seen[name] for _, seen in found]) for name in found[0][1]}
    return Passes(logits, layers, _probabilities(torch.stack([each for each, _ in found])), read)


def _no_dropout(model: nn.Module, caveat: str) -> NoDropoutError:
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    before = linear[-1] if linear else "..."
    return NoDropoutError(
        f"expected a model with active dropout, got {type(model).__name__} without "
        f"any; use leery.mc_dropout.insert_dropout(model, before={before!r}, p=0.5), or metrics "
        "that need no dropout" + (f" ({caveat})" if caveat else "")
    )
