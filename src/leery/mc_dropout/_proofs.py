"""Laws that a way to run a model must obey before it is used, tried on two images."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from leery.errors import InputError, UnsupportedModelError
from leery.mc_dropout._engine import Engine
from leery.mc_dropout._graph import NoGraphError
from leery.mc_dropout._loop import Loop
from leery.mc_dropout._masks import Masks, draw_masks

__all__ = ["check_equal", "does_no_more_than_drop", "gives_eval_mode", "in_order", "two_images"]


def two_images(images: Tensor) -> Tensor:
    """The first image and one that differs from it, of the same kind."""
    first = images[:1]
    others = (images[-1:], first.flip(-1), torch.zeros_like(first), torch.ones_like(first))
    other = next(image for image in others if not torch.equal(image, first))
    return torch.cat([first, other])


def in_order(loop: Loop, pair: Tensor, seed: int) -> Loop:
    """The loop, with images and an image's rows told apart where they share a dimension.

    Raises:
        UnsupportedModelError: when an image's result depends on the others in its batch.
        InputError: when the logits are not finite.
    """
    for candidate in (loop, replace(loop, sites=tuple(site.flipped() for site in loop.sites))):
        masks = draw_masks(candidate.sites, 1, seed).to(pair.device)
        beside_another = candidate.one_pass(pair, masks, 0)[0]
        behind_itself = candidate.one_pass(pair[[0, 0]], masks, 0)[1]
        if not bool(beside_another.isfinite().all()):
            message = "expected finite logits, got NaN or infinity; check the model's weights"
            raise InputError(message)
        if _close(beside_another, behind_itself):
            return candidate
    message = (
        "expected a model that treats each image by itself, got one whose result for an image "
        "depends on the others in its batch; use running statistics for its norms"
    )
    raise UnsupportedModelError(message)


def check_equal(engine: Engine, loop: Loop, pair: Tensor, masks: Masks) -> None:
    """Refuse an engine whose pass is not that of the loop.

    Raises:
        NoGraphError: then.
    """
    found = engine.one_pass(engine.prefix(pair), masks, 0)
    if not _close(found, loop.one_pass(pair, masks, 0)):
        message = "the graph gives other logits than the model"
        raise NoGraphError(message)


def gives_eval_mode(engine: Engine, loop: Loop, pair: Tensor) -> bool:
    """Whether the engine without dropout gives the logits and features of the eval mode."""
    if not engine.knows_eval_mode:
        return False
    logits, features = engine.without_dropout(engine.prefix(pair))
    true_logits, true_features = loop.without_dropout(pair)
    if features is not None and true_features is not None and not _close(features, true_features):
        return False
    return _close(logits, true_logits)


def does_no_more_than_drop(loop: Loop, pair: Tensor) -> bool:
    """Whether the model in train mode, with nothing dropped, gives the logits of the eval mode.

    True also where that cannot be known: of alpha dropout, and of random numbers that a module
    uses in a way of its own.
    """
    alphas = (nn.AlphaDropout, nn.FeatureAlphaDropout)
    if any(isinstance(module, alphas) for module in loop.model.modules()):
        return True
    quiet = loop.quiet_pass(pair)
    return quiet is None or _close(quiet, loop.without_dropout(pair)[0])


def _close(found: Tensor, truth: Tensor) -> bool:
    return found.shape == truth.shape and torch.allclose(found, truth, rtol=1e-3, atol=1e-4)
