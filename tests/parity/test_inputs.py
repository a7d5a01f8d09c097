"""What happens to an image before the network, against Pillow. No float64 here."""

from collections.abc import Iterator

import jax
import numpy as np
import pytest
from PIL import Image, ImageFilter

from snr_jax.core.augment import MEAN_BGR, augment, blur, blur_weights, to_network_input

RADII = np.arange(4096) / 4096  # all that `augment` draws from


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    """Images are prepared as in every run."""
    with jax.enable_x64(False):
        yield


def random_images(count, height, width):
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


def pillow_blur(image, radius):
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(float(radius))))


@pytest.mark.parametrize("size", [(11, 14), (2, 3), (1, 1)])
def test_blur(size):
    """Bit for bit at every radius, borders included."""
    images = random_images(len(RADII), *size)
    images[::7] = np.where(images[::7] < 128, 0, 255)  # hard edges
    theirs = np.stack([pillow_blur(*pair) for pair in zip(images, RADII, strict=True)])
    np.testing.assert_array_equal(jax.jit(blur)(images, blur_weights(RADII)), theirs)


def test_blur_between_the_steps():
    radii = np.random.default_rng(1).random(200)
    images = random_images(len(radii), 9, 8)
    theirs = np.stack([pillow_blur(*pair) for pair in zip(images, radii, strict=True)])
    np.testing.assert_array_equal(blur(images, blur_weights(radii)), theirs)


def test_network_input():
    images = random_images(2, 5, 7)
    blue_first = [Image.merge("RGB", Image.fromarray(image).split()[::-1]) for image in images]
    theirs = np.stack([np.asarray(image, np.float32) for image in blue_first])
    theirs -= np.array((104.00698793, 116.66876762, 122.67891434), np.float32)
    ours = to_network_input(images)
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, theirs)


def test_augment():
    """Each sample is Pillow's blur at some radius."""
    images = random_images(12, 8, 10)
    ours = np.asarray(jax.jit(augment)(jax.random.key(3), images))
    pixels = np.rint(ours + np.array(MEAN_BGR, np.float32))[..., ::-1]
    radii = []
    for image, result in zip(images, pixels, strict=True):
        fits = [radius for radius in RADII if np.array_equal(pillow_blur(image, radius), result)]
        assert fits
        radii.append(min(fits))
    assert 0 < np.count_nonzero(radii) < 12
