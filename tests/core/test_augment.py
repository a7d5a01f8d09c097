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
    label = np.repeat(random.integers(0, 19, (1, 5, 6)).astype(np.uint8), 400, 0)
    run = quick_jit(augment.augment)
    found_image, found_label = run(jax.random.key(3), image, label)
    return run, image, label, np.asarray(found_image), np.asarray(found_label)


def test_half_of_the_images_are_blurred_and_none_moved(many):
    _, image, label, found_image, found_label = many
    np.testing.assert_array_equal(found_label, label)
    plain = image[..., ::-1].astype(np.float32) - MEAN_BGR
    # Radii below some 0.1 change no grey level: a few of the blurred look untouched.
    touched = (np.abs(plain - found_image) > 1e-3).any((1, 2, 3))
    assert 140 <= touched.sum() <= 240  # 200 ± 4 standard deviations of 10
    # Blur of at most one pixel: each image stays nearest to its own orientation.
    to_mirrored = np.abs(found_image - plain[:, :, ::-1]).mean((1, 2, 3))
    assert (np.abs(found_image - plain).mean((1, 2, 3)) < to_mirrored).all()


def test_a_sample_does_not_depend_on_the_layout_of_the_batch(many):
    _, image, label, found_image, found_label = many
    run = quick_jit(augment.augment)
    for start, stop in ((0, 3), (3, 8)):
        part_image, part_label = run(
            jax.random.key(3), image[start:stop], label[start:stop], first_sample=start
        )
        np.testing.assert_array_equal(part_image, found_image[start:stop])
        np.testing.assert_array_equal(part_label, found_label[start:stop])


def test_another_key_draws_otherwise_and_the_same_key_the_same(many):
    run, image, label, found_image, _ = many
    np.testing.assert_array_equal(run(jax.random.key(3), image, label)[0], found_image)
    assert (np.asarray(run(jax.random.key(4), image, label)[0]) != found_image).any()


def test_without_a_label(many):
    run, image, _, found_image, _ = many
    found, label = run(jax.random.key(3), image)
    assert label is None
    np.testing.assert_array_equal(found, found_image)
