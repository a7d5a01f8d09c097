"""Blur and mean subtraction, and what their draws depend on."""

import jax
import numpy as np
import pytest
from PIL import Image, ImageFilter

from snr_jax.core import augment
from tests.core.tiny import quick_jit

MEAN_BGR = np.array([104.00698793, 116.66876762, 122.67891434], np.float32)
RADII = [0, 1 / 4096, 1 / 128, *np.round(np.linspace(0.03, 0.99, 26) * 4096) / 4096, 4095 / 4096]


@pytest.mark.parametrize("size", [(23, 37), (2, 3), (1, 4)])
def test_blur_is_pillows_bit_for_bit(size):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (len(RADII), *size, 3), np.uint8)
    images[: len(RADII) // 2] = np.where(images[: len(RADII) // 2] > 127, 255, 0)
    found = quick_jit(augment.blur)(images, augment.blur_weights(np.array(RADII)))
    for radius, image, ours in zip(RADII, images, np.asarray(found)):
        pillow = Image.fromarray(image).filter(ImageFilter.GaussianBlur(float(radius)))
        np.testing.assert_array_equal(ours, np.asarray(pillow), err_msg=f"radius {radius}")


def test_network_input_is_bgr_minus_mean():
    image = np.array([[[[10, 20, 30]]]], np.uint8)  # RGB
    found = augment.to_network_input(jax.numpy.asarray(image))
    expected = [30 - 104.00698793, 20 - 116.66876762, 10 - 122.67891434]
    np.testing.assert_allclose(found[0, 0, 0], expected, rtol=1e-6)


@pytest.fixture(scope="module")
def many():
    """The same picture 400 times: only the draws differ."""
    random = np.random.default_rng(1)
    image = np.repeat(random.integers(0, 256, (1, 5, 6, 3), np.uint8), 400, 0)
    run = quick_jit(augment.augment)
    return run, image, np.asarray(run(jax.random.key(3), image))


def test_half_of_the_images_are_blurred_and_none_moved(many):
    _, image, found = many
    plain = image[..., ::-1].astype(np.float32) - MEAN_BGR
    # Radii below some 0.1 change no grey level: a few of the blurred look untouched.
    touched = (np.abs(plain - found) > 1e-3).any((1, 2, 3))
    assert 140 <= touched.sum() <= 240  # 200 ± 4 standard deviations of 10
    # Blur of at most one pixel: each image stays nearest to its own orientation.
    to_mirrored = np.abs(found - plain[:, :, ::-1]).mean((1, 2, 3))
    assert (np.abs(found - plain).mean((1, 2, 3)) < to_mirrored).all()


def test_a_sample_does_not_depend_on_the_layout_of_the_batch(many):
    run, image, found = many
    for start, stop in ((0, 3), (3, 8)):
        part = run(jax.random.key(3), image[start:stop], first_sample=start)
        np.testing.assert_array_equal(part, found[start:stop])


def test_another_key_draws_otherwise_and_the_same_key_the_same(many):
    run, image, found = many
    np.testing.assert_array_equal(run(jax.random.key(3), image), found)
    assert (np.asarray(run(jax.random.key(4), image)) != found).any()
