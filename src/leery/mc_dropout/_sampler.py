"""MC dropout as users see it: a model, a number of passes, a seed."""

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
from leery.mc_dropout._threads import side_by_side
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
    guest,
    has_fast_layout,
    own_tensors,
    refused,
    two_images,
    unwrapped,
    with_layout,
)
from leery.tuning import (
    ELEMENTS_AT_ONCE,
    FEW_IMAGES,
    IMAGES_AT_ONCE,
    IMAGES_OF_A_THREAD,
    MOST_PREPARED,
    SELECTED_ELEMENTS,
    WHOLE_MODEL,
)

__all__ = ["MCDropout", "Passes"]

MOST_PASSES = 10_000
"""A bound that keeps a slip, or a file of a stranger, from asking for all the memory."""


@dataclass(frozen=True)
class Passes:
    """What the passes over a batch of images give, and the forward pass without dropout.

    Attributes:
        logits: float ``(N, classes)``, dropout off.
        layers: the values of layers by name, ``(N, ...)``, dropout off.
        probs: float ``(passes, N, classes)``, dropout on; rows sum to 1.
        pass_layers: the values of layers in each pass by name, ``(passes, N, ...)``.
    """

    logits: Tensor
    layers: Mapping[str, Tensor]
    probs: Tensor
    pass_layers: Mapping[str, Tensor]

    def to(self, device: torch.device) -> "Passes":
        """The same on a device."""
        return self._each(lambda tensor, _dim: tensor.to(device))

    def _each(self, change: Callable[[Tensor, int], Tensor]) -> "Passes":
        """With every tensor changed, given the dimension that counts the images."""
        return Passes(
            change(self.logits, 0),
            {name: change(value, 0) for name, value in self.layers.items()},
            change(self.probs, 1),
            {name: change(value, 1) for name, value in self.pass_layers.items()},
        )

    @staticmethod
    def joined(parts: Sequence["Passes"]) -> "Passes":
        """Batches one after the other."""
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
    """How inputs of one kind are run, and the state of the model that this holds for.

    Attributes:
        loop: the definition of a pass.
        engine: the faster way to the same result, where the graph can be captured.
        reason: why there is no engine; "" where there is one.
        shared: whether the engine also gives what the eval mode gives.
        classes: how many the model tells apart.
        device: of the model.
        channels_last: whether the engine is given images with their channels last in memory.
        masks: the fixed ones, on that device.
        state: of the model.
        cache: what the fixed masks selected of the weights.
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
        """A batch on the model's device, without dropout and pass by pass."""
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

    Pass t is one fixed sub-network: its masks come from the seed and are the same for every
    image and call, so that a probability is a pure function of the image. Batch norm and all else
    stay in eval mode, and the model is left as it was.

    Where ``torch.export`` can write the model's forward pass down, what does not depend on a mask
    is computed once an image, and a linear layer behind a dropout multiplies the kept columns
    only. Where it cannot, each pass runs the whole model. Both give the same result;
    :meth:`explain_plan` tells which it is.

    Args:
        model: returns logits ``(N, classes)`` and has dropout: torch's dropout layers, functional
            dropout that asks for ``self.training``, dropout inside attention or between
            recurrent layers, stochastic depth. Later calls see changes of its weights, buffers
            and dropout layers' rates; other attributes are taken as they are at the first call.
        passes: the number of passes, T.
        seed: of the masks.
        masks: "fixed" (drawn once) or "fresh" (drawn anew at each call, one set a call; the
            k-th call of two samplers with the same seed draws the same).
        layers: names of submodules, whose outputs :meth:`observe` returns, or "input of " and
            such a name.
        pass_layers: the same, for their values in each pass. All units are then computed in each.
        batch_size: how many images a thread works on at once at most, which bounds the memory;
            fewer where passes or classes are many or the model is large. Where there is work for
            all of torch's threads, each has a batch of its own. What fixed masks choose of the
            weights stays in memory for the next call, up to 128 MiB in float32.

    Raises:
        UnknownLayerError: when the model lacks a layer.
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
        layers: Sequence[str] = (),
        pass_layers: Sequence[str] = (),
        batch_size: int = 1000,
    ) -> None:
        if check_count(passes, "passes") > MOST_PASSES:
            message = f"expected 1 to {MOST_PASSES} passes, got {passes}; correct the number"
            raise InputError(message)
        if masks not in get_args(MaskSource):
            message = f'expected masks "fixed" or "fresh", got {masks!r}; name one of the two'
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
        """What a copy begins with: no graph can be copied, so it is found anew."""
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
            images: ``(N, ...)``, on any device, to which the result comes back.

        Raises:
            InputError: when the images do not fit.
            UnsupportedModelError: when the model cannot be run pass by pass.
        """
        return Passes.joined([part.to(images.device) for part in self.stream(images)])

    def stream(self, images: Tensor) -> Iterator[Passes]:
        """:meth:`observe` batch by batch, so that memory does not grow with the images.

        The parts stay on the model's device, where what is computed from them is fast too.
        """
        prepared = self._prepare(images)
        masks = self._masks(prepared)
        threads = self._threads(prepared, len(images))
        rows = self._rows(prepared)
        count = min(len(images), math.ceil(len(images) / rows / threads) * threads)
        batches = images.tensor_split(count)
        cache = self._cache(prepared, again=count > threads)
        run = partial(self._run, prepared, masks, cache)
        with side_by_side(threads) as each:
            for place in range(0, count, threads):
                with self._undisturbed(prepared):
                    seen = each(run, batches[place : place + threads])
                yield from seen

    def observe_with_gradient(self, images: Tensor) -> Passes:
        """:meth:`observe` as one batch, through which gradients reach the images.

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
        """The model as a guest; a graph that does without the model needs no more than this."""
        if prepared.shared:
            with torch.autocast(prepared.device.type, enabled=False):
                yield
        else:
            with guest(self.model):
                yield

    def explain_plan(self, images: Tensor) -> Plan:
        """How images of this kind are run: which way, what is random, what is repeated.

        Args:
            images: ``(N, ...)``; the first two are shown to the model.

        Raises:
            NoDropoutError, UnsupportedModelError, InputError: as :meth:`observe`.
        """
        prepared = self._prepare(images)
        with guest(self.model), torch.no_grad():
            pair = two_images(images).to(prepared.device)
            return explain(prepared.loop, prepared.engine, prepared.reason, pair, prepared.masks)

    def _threads(self, prepared: _Prepared, images: int) -> int:
        """In how many threads batches are worked on side by side."""
        if not prepared.shared or prepared.device.type != "cpu":
            # What the model itself is asked for it may not do in two threads.
            return 1
        assert prepared.engine is not None, "it is the engine that is shared"
        threads = torch.get_num_threads()
        fits = threads * prepared.engine.weight_elements <= SELECTED_ELEMENTS
        return threads if fits and images >= threads * IMAGES_OF_A_THREAD else 1

    def _rows(self, prepared: _Prepared) -> int:
        """How many images a thread works on at once."""
        engine = prepared.engine
        if engine is None:
            return min(self.batch_size, WHOLE_MODEL)
        most = min(self.batch_size, IMAGES_AT_ONCE)
        if prepared.device.type == "cpu":
            widest = max(engine.widest, self.passes * prepared.classes)
            most = min(most, max(FEW_IMAGES, ELEMENTS_AT_ONCE // widest))
        return most

    def _cache(self, prepared: _Prepared, *, again: bool) -> WeightCache | None:
        """Where weights are kept for later batches and calls.

        Args:
            prepared: how the images are run; of another kind of images nothing is kept any more.
            again: whether there are later batches.
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
        """What a batch yields; inside :meth:`_undisturbed`."""
        shown = batch.to(prepared.device)
        with torch.inference_mode(mode=False), torch.set_grad_enabled(gradient), refused(batch):
            return prepared.run(shown, masks, cache, self.pass_layers)

    def _masks(self, prepared: _Prepared) -> Masks:
        if self.masks == "fixed":
            return prepared.masks
        self._calls += 1
        fresh = draw_masks(prepared.loop.sites, self.passes, self.seed, draw=self._calls)
        return fresh.to(prepared.device)

    def _prepare(self, images: Tensor) -> _Prepared:
        """The way to run inputs of this kind; found anew when the model is not what it was."""
        check_images(images)
        device = device_of(self.model)
        key = (images.shape[1:], images.dtype, device)
        state = self._state()
        if key not in self._prepared or self._prepared[key].state != state:
            while len(self._prepared) >= MOST_PREPARED:
                self._prepared.pop(next(iter(self._prepared)))
            with guest(self.model), torch.no_grad():
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
                "expected a model that in train mode does nothing but drop, got other logits with "
                "nothing dropped; make what else it does depend on another flag"
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
        """What a prepared run depends on: modules, tensors, hooks and dropout rates.

        The graph keeps its tensors alive, so that no other can take over an identity.
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
    """The passes one by one, put together."""
    read = {name: torch.stack([seen[name] for _, seen in found]) for name in found[0][1]}
    return Passes(logits, layers, _probabilities(torch.stack([each for each, _ in found])), read)


def _no_dropout(model: nn.Module, caveat: str) -> NoDropoutError:
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    before = linear[-1] if linear else "..."
    return NoDropoutError(
        f"expected a model with dropout that drops something, got {type(model).__name__} without "
        f"any; use leery.mc_dropout.insert_dropout(model, before={before!r}, p=0.5), or metrics "
        "that need no dropout" + (f" ({caveat})" if caveat else "")
    )
