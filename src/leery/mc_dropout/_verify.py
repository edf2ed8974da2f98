"""Checks, on two images, that a method of running a model must pass before it is used."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from leery.errors import InputError, UnsupportedModelError
from leery.mc_dropout._engine import Engine
from leery.mc_dropout._export import NoGraphError
from leery.mc_dropout._masks import Masks, Site
from leery.mc_dropout._plain_loop import PlainLoop
from leery.models import fast_layout

__all__ = [
    "check_matches_loop",
    "matches_eval_mode",
    "only_drops_in_train_mode",
    "probe_masks",
    "with_row_order",
]


def with_row_order(loop: PlainLoop, pair: Tensor) -> PlainLoop:
    """Return the loop with the order of images and rows settled where they share a dimension.

    Each such site is tried alone in both orders: with the right one, the result of an image does
    not depend on its position or on the other image.

    Raises:
        UnsupportedModelError: when an image's result depends on the others in its batch.
        InputError: when the logits are not finite.
    """
    for place, site in enumerate(loop.sites):
        if site.folds and not _treats_images_independently(
            loop, pair, probe_masks(loop.sites, pair, place)
        ):
            sites = (*loop.sites[:place], site.flipped(), *loop.sites[place + 1 :])
            loop = replace(loop, sites=sites)
    if not _treats_images_independently(loop, pair, probe_masks(loop.sites, pair)):
        message = (
            "expected a model that treats each image independently, got one whose result for an "
            "image depends on the others in its batch; use running statistics for its norms"
        )
        raise UnsupportedModelError(message)
    return loop


def probe_masks(sites: Sequence[Site], pair: Tensor, place: int | None = None) -> Masks:
    """Draws that reveal errors: neighbours differ in pass 0, all elements are random in pass 1.

    Args:
        sites: random operations of the model.
        pair: two images, for the device.
        place: index of the only site that draws while the others drop nothing; by default all draw.
    """
    generator = torch.Generator().manual_seed(0)
    draws = []
    for number, site in enumerate(sites):
        numbers = torch.rand(
            (2, *site.shape), generator=generator, dtype=torch.float32, device="cpu"
        )
        kept = numbers >= 0.5  # noqa: PLR2004 - even odds
        if site.dimension is not None and site.folds:
            rows = torch.arange(site.shape[site.dimension], device="cpu") % 2 == 0
            kept[0] = rows.view(-1, *(1 for _ in site.shape[site.dimension + 1 :]))
        if place is not None and number != place:
            kept[:] = True
        # For any usual keep probability, 0.01 is below it and 0.99 above.
        if site.kind == "keep":
            draws.append(kept)
        else:
            numbers = kept.to(torch.float32)
            draws.append(0.99 - 0.98 * numbers if site.kind == "uniform" else 2 - 2 * numbers)
    return Masks(tuple(draws)).to(pair.device)


def _treats_images_independently(loop: PlainLoop, pair: Tensor, masks: Masks) -> bool:
    """True if an image gets the same result first beside another and second beside itself."""
    for index in (0, 1):
        beside = loop.one_pass(pair, masks, index)[0]
        behind = loop.one_pass(pair[[0, 0]], masks, index)[1]
        if not bool(beside.isfinite().all()):
            message = "expected finite logits, got NaN or infinity; check the model's weights"
            raise InputError(message)
        if not _close(beside, behind):
            return False
    return True


def check_matches_loop(engine: Engine, loop: PlainLoop, pair: Tensor) -> None:
    """Raise if the passes of the engine differ from those of the loop.

    Raises:
        NoGraphError: when they differ.
    """
    masks = probe_masks(loop.sites, pair)
    once = engine.prefix(fast_layout(loop.model, pair))
    for index, logits in enumerate(engine.each_pass(once, masks)):
        if not _close(logits, loop.one_pass(pair, masks, index)):
            message = "the graph gives other logits than the model"
            raise NoGraphError(message)
    engine.learn_to_share_operations(once, masks)


def matches_eval_mode(engine: Engine, loop: PlainLoop, pair: Tensor) -> bool:
    """True if the engine without dropout reproduces the logits and layers of eval mode."""
    if not engine.knows_eval_mode:
        return False
    logits, layers = engine.without_dropout(engine.prefix(fast_layout(loop.model, pair)))
    true_logits, true_layers = loop.without_dropout(pair)
    alike = all(_close(layers[name], value) for name, value in true_layers.items())
    return alike and _close(logits, true_logits)


def only_drops_in_train_mode(loop: PlainLoop, pair: Tensor) -> bool:
    """True if the model in train mode, with nothing dropped, returns the logits of eval mode.

    Also True where this cannot be checked: for alpha dropout, and for random draws that a module
    uses in its own way.
    """
    alphas = (nn.AlphaDropout, nn.FeatureAlphaDropout)
    if any(isinstance(module, alphas) for module in loop.model.modules()):
        return True
    quiet = loop.pass_without_dropping(pair)
    return quiet is None or _close(quiet, loop.without_dropout(pair)[0])


def _close(found: Tensor, truth: Tensor) -> bool:
    if found.shape != truth.shape:
        return False
    # In half precision the order of summation alone changes the last bits of a result.
    bits = 8 * torch.finfo(truth.dtype).eps if truth.is_floating_point() else 0.0
    allowed = max(1e-4, bits * float(truth.abs().max()))
    return torch.allclose(found, truth, rtol=max(1e-3, bits), atol=allowed)
