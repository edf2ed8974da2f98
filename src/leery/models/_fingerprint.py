"""Fingerprints of classifiers (layers and weights) and content hashes of inputs."""

import hashlib
import math

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["content_hashes", "fingerprint", "grid_of", "image_hashes"]

_ROWS_AT_ONCE = 4096


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of a model's submodules (names, classes, settings), parameters and buffers.

    The device does not affect it; a change of any weight or buffer does.
    """
    digest = hashlib.sha256()
    for name, module in model.named_modules():
        digest.update(f"{name}:{type(module).__qualname__}({module.extra_repr()})\n".encode())
    tensors = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}\n".encode())
        # Not contiguous(), which keeps the stride of 0 of an expanded single element.
        dense = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        raw = dense.reshape(-1).view(torch.uint8)
        digest.update(raw.numpy().tobytes())
    return digest.hexdigest()


def content_hashes(rows: Tensor, seed: int = 0) -> Tensor:
    """A hash of each row's content, int64 ``(N,)``, on the CPU.

    Equal rows have equal hashes at any index; two different rows collide with probability at most
    2^-33. The hash is not cryptographic: collisions can be constructed on purpose.

    Args:
        rows: ``(N, ...)``; elements are compared as float32.
        seed: seed of the hash.

    Source:
        Multilinear hashing: Lemire, Kaser (2014), arXiv:1202.4961, on 64-bit integers; the last
        lines are the finaliser of SplitMix64.
    """
    flat = rows.detach().cpu().to(torch.float32).flatten(1).contiguous()
    bits = (flat + 0.0).view(torch.int32)
    generator = np.random.default_rng(seed)
    factors = torch.from_numpy(generator.integers(1, 2**62, bits.shape[1], dtype=np.int64))
    # Integer overflow wraps around, as the hash requires.
    parts = [(part.long() * factors).sum(1) for part in bits.split(_ROWS_AT_ONCE)]
    sums = torch.cat(parts)
    sums = (sums ^ ((sums >> 30) & (2**34 - 1))) * -4658895280553007687
    sums = (sums ^ ((sums >> 27) & (2**37 - 1))) * -7723592293110705685
    return sums ^ ((sums >> 31) & (2**33 - 1))


def grid_of(images: Tensor) -> float:
    """The grid that pixels are rounded to before they are hashed, from a batch of training images.

    A power of two near 1/32 of the standard deviation: coarse enough to match a copy with rounding
    errors, fine enough to distinguish images.
    """
    std = float(images.detach().float().std(correction=0))
    return 2.0 ** round(math.log2(std / 32)) if std > 0 and math.isfinite(std) else 1.0


def image_hashes(images: Tensor, grid: float) -> Tensor:
    """Hashes that identify images, int64 ``(N,)``, on the CPU.

    Args:
        images: ``(N, ...)``.
        grid: step to whose multiples floats are rounded.
    """
    rows = images.detach()
    return content_hashes((rows.double() / grid).round() if rows.is_floating_point() else rows)
