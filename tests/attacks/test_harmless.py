"""Harmless corruptions against their published definitions in other libraries, and laws."""

import math

import numpy as np
import pytest
import scipy
import torch
from torch import Tensor

from leery._checks import Bounds
from leery.attacks import CORRUPTIONS, HARMLESS, Corruption
from leery.errors import InputError
from leery.models import predict

Batch = tuple[Tensor, Tensor]

UNIT: Bounds = (0.0, 1.0)


def colours(count: int = 40, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("severity", [1, 5])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_images_stay_in_bounds_and_the_seed_decides(name: str, severity: int) -> None:
    images, change = colours(), Corruption(name, severity)
    before = images.clone()
    made = change(images, 3, UNIT)
    assert torch.equal(images, before)
    assert made.shape == images.shape
    assert made.dtype == images.dtype
    assert float(made.min()) >= 0
    assert float(made.max()) <= 1
    assert not torch.equal(made, images)
    assert torch.equal(change(images, 3, UNIT), made)
    drawn = "noise" in name or name in ("rotation", "translation")
    assert torch.equal(change(images, 4, UNIT), made) is not drawn


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_other_bounds_are_the_same_change_on_another_scale(name: str) -> None:
    images, bounds = colours(), ((-1.0, 1.0), (0.0, 255.0), (5.0, 6.0))
    low, high = (torch.tensor([pair[end] for pair in bounds]).view(1, 3, 1, 1) for end in (0, 1))
    plain = Corruption(name)(images, 0, UNIT)
    moved = Corruption(name)(low + images * (high - low), 0, bounds)
    assert torch.allclose((moved - low) / (high - low), plain, atol=1e-4)


def test_noise_has_its_published_strength() -> None:
    grey = torch.full((60, 1, 28, 28), 0.5)
    # 47,040 numbers: the standard error of a deviation is 0.33 %.
    assert float(Corruption("gaussian_noise")(grey, 0, UNIT).std()) == pytest.approx(0.04, rel=0.02)
    shot = Corruption("shot_noise")(grey, 0, UNIT)
    assert float(shot.std()) == pytest.approx(math.sqrt(0.5 / 500), rel=0.02)
    impulse = Corruption("impulse_noise", 5)(grey, 0, UNIT)
    assert float((impulse != 0.5).double().mean()) == pytest.approx(0.07, abs=0.005)
    assert float((impulse == 1).double().mean()) == pytest.approx(0.035, abs=0.004)


def test_the_blur_is_scipy_s() -> None:
    images = colours(3)
    made = Corruption("blur", 5)(images, 0, UNIT)
    for row in range(3):
        for channel in range(3):
            expected = scipy.ndimage.gaussian_filter(
                images[row, channel].double().numpy(), 1.0, mode="nearest", truncate=3
            )
            assert np.allclose(made[row, channel], expected, atol=1e-5)


def test_brightness_raises_the_value_and_keeps_hue_and_saturation() -> None:
    images = 0.8 * colours(4)
    made = Corruption("brightness", 2)(images, 0, UNIT)
    assert torch.allclose(made.amax(1), images.amax(1) + 0.1, atol=1e-5)
    assert torch.allclose(made / made.amax(1, keepdim=True), images / images.amax(1, keepdim=True))
    grey = torch.zeros(1, 1, 4, 4)
    assert torch.allclose(Corruption("brightness")(grey, 0, UNIT), grey + 0.05)


def test_contrast_and_offset_are_affine() -> None:
    images = 0.3 + 0.3 * colours(4)
    mean = images.mean((2, 3), keepdim=True)
    made = Corruption("contrast")(images, 0, UNIT)
    assert torch.allclose(made - mean, 0.75 * (images - mean), atol=1e-6)
    assert torch.allclose(Corruption("offset", 2)(images, 0, UNIT), images + 0.2)


def test_a_translation_is_a_pixel_of_28_on_each_axis(digits: Batch) -> None:
    inside = torch.nn.functional.pad(torch.ones(26, 26), (1, 1, 1, 1))
    images = digits[0][:30]
    images = images[((1 - inside) * images).sum((1, 2, 3)) == 0]
    assert len(images) == 29
    made = Corruption("translation")(images, 0, UNIT)
    for image, moved in zip(images, made, strict=True):
        rolled = [image.roll((down, right), (1, 2)) for down in (-1, 1) for right in (-1, 1)]
        # The borders are empty, so that rolling and shifting are the same.
        assert min(float((moved - other).abs().max()) for other in rolled) < 1e-3


def test_a_rotation_turns_by_its_angle_either_way_and_a_scale_shrinks() -> None:
    image = torch.zeros(64, 1, 41, 41)
    image[:, :, 20, 32] = 1.0
    made = Corruption("rotation")(image, 0, UNIT)
    rows, columns = torch.meshgrid(torch.arange(41) - 20.0, torch.arange(41) - 20.0, indexing="ij")
    total = made.sum((1, 2, 3))
    angle = torch.atan2((made[:, 0] * rows).sum((1, 2)), (made[:, 0] * columns).sum((1, 2)))
    assert torch.allclose(angle.abs(), torch.tensor(0.2), atol=0.02)
    assert 0 < int((angle > 0).sum()) < 64
    smaller = Corruption("scale", 2)(image, 0, UNIT)
    reach = (smaller[:, 0] * columns).sum((1, 2)) / smaller.sum((1, 2, 3))
    assert torch.allclose(reach, torch.tensor(0.8 * 12), atol=0.3)
    assert bool((total > 0).all())


def test_mild_corruptions_leave_most_digits_as_they_are_classified(
    digits: Batch, digit_net: torch.nn.Module
) -> None:
    images, labels = (part[:500] for part in digits)
    assert set(HARMLESS) < set(CORRUPTIONS)
    for name in CORRUPTIONS:
        right = predict(digit_net, Corruption(name)(images, 0, UNIT)) == labels
        assert float(right.double().mean()) > 0.9, name


def test_what_is_no_image_or_no_corruption_is_refused() -> None:
    with pytest.raises(
        InputError,
        match="one of the corruptions gaussian_noise, .*, severity 1 to 5, got 'fog', severity 1",
    ):
        Corruption("fog")
    with pytest.raises(InputError, match="severity 1 to 5, got 'blur', severity 6"):
        Corruption("blur", 6)
    with pytest.raises(InputError, match="images .N, channels, height, width"):
        Corruption("blur")(torch.rand(3, 5), 0, UNIT)
