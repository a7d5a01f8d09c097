"""Colours of the source: each formula against torchvision's and mmsegmentation's, in numpy."""

import colorsys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from snr_jax.core import augment, colors
from snr_jax.core.augment import to_network_input
from snr_jax.core.colors import JITTERS, Jitter
from tests.core.tiny import quick_jit

KEY = jax.random.key(3)


def pixels(seed=0, shape=(6, 7)):
    return np.random.default_rng(seed).random((*shape, 3)).astype(np.float32)


def jitter(image, brightness=1.0, contrast=1.0, saturation=1.0, hue=0.0):
    return np.asarray(colors.jitter(jnp.asarray(image), brightness, contrast, saturation, hue))


def test_jitter_of_nothing_is_nothing():
    np.testing.assert_allclose(jitter(pixels()), pixels(), atol=1e-6)


def test_jitter_by_hand():
    """Two pixels: gray 0.299 * 1 = 0.299 and 0.114 * 0.5 = 0.057, on average 0.178."""
    image = np.array([[[1, 0, 0], [0, 0, 0.5]]], np.float32)
    np.testing.assert_allclose(
        jitter(image, brightness=1.2), [[[1, 0, 0], [0, 0, 0.6]]], atol=1e-6)
    np.testing.assert_allclose(
        jitter(image, contrast=0.8),
        [[[0.8 + 0.0356, 0.0356, 0.0356], [0.0356, 0.0356, 0.4 + 0.0356]]], atol=1e-6)
    np.testing.assert_allclose(
        jitter(image, saturation=0.8),
        [[[0.8 + 0.0598, 0.0598, 0.0598], [0.0114, 0.0114, 0.4 + 0.0114]]], atol=1e-6)
    third = 1 / 3  # red becomes green, blue red
    np.testing.assert_allclose(
        jitter(image, hue=third), [[[0, 1, 0], [0.5, 0, 0]]], atol=1e-6)
    # Brightness first, clipped: 1.25 is 1 before the contrast sees it.
    np.testing.assert_allclose(
        jitter(np.ones((1, 1, 3), np.float32), brightness=1.25, contrast=0.5), 1, atol=1e-6)


@pytest.mark.parametrize("turns", [-0.25, -0.1, 0.2])
def test_hue_as_the_standard_library_turns_it(turns):
    image = pixels()
    image[0, 0] = 0.5  # gray has no hue
    expected = np.empty_like(image)
    for place in np.ndindex(image.shape[:2]):
        h, s, v = colorsys.rgb_to_hsv(*map(float, image[place]))
        expected[place] = colorsys.hsv_to_rgb((h + turns) % 1, s, v)
    np.testing.assert_allclose(jitter(image, hue=turns), expected, atol=1e-5)


@pytest.mark.parametrize("sigma", [0.15, 0.6, 1.15])
def test_gaussian_blur_as_scipy(sigma):
    image = pixels(shape=(13, 17))
    expected = ndimage.gaussian_filter(
        image.astype(np.float64), (sigma, sigma, 0), mode="mirror", radius=(5, 5, 0))
    found = colors.gaussian_blur(jnp.asarray(image), sigma)
    np.testing.assert_allclose(found, expected, atol=1e-6)


# --- each part as it is published, written once more in numpy

def by_pixel(image, function):
    """function(h, s, v) → RGB, by the standard library, of every pixel."""
    found = np.empty_like(image)
    for place in np.ndindex(image.shape[:2]):
        found[place] = function(*colorsys.rgb_to_hsv(*map(float, image[place])))
    return found


def torchvision_part(part, x, change):
    """torchvision's adjust_brightness, _contrast, _saturation and _hue, of a float image."""
    def blend(other):  # _blend(img1, img2, ratio), clamped to its bound, 1 for floats
        return np.clip((1 + change) * x + (1 - (1 + change)) * other, 0, 1)

    gray = 0.299 * x[..., :1] + 0.587 * x[..., 1:2] + 0.114 * x[..., 2:]
    if part == 3:
        return by_pixel(x, lambda h, s, v: colorsys.hsv_to_rgb((h + change) % 1, s, v))
    return blend([np.zeros_like(x), gray.mean(), gray][part])


def mmseg_part(part, x, change):
    """PhotoMetricDistortion's convert(alpha, beta) of the image, and of saturation and hue."""
    def convert(x, alpha=1.0, beta=0.0):
        return np.clip(x * alpha + beta, 0, 1)

    if part == 0:
        return convert(x, beta=change)
    if part == 1:
        return convert(x, alpha=1 + change)
    if part == 2:
        return by_pixel(
            x, lambda h, s, v: colorsys.hsv_to_rgb(h, float(convert(s, 1 + change)), v))
    return torchvision_part(3, x, change)


PUBLISHED = {False: torchvision_part, True: mmseg_part}


def applied(image, changes, is_made, order, apart):
    return np.asarray(colors.apply_jitter(
        jnp.asarray(image), jnp.asarray(changes, jnp.float32), jnp.asarray(is_made),
        jnp.asarray(order), apart=apart))


@pytest.mark.parametrize("change", [-0.3, 0.45])
@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("apart", [False, True])
def test_a_part_as_it_is_published(apart, part, change):
    image = pixels()
    image[0, 0], image[0, 1], image[0, 2] = 0.5, 0, 1  # gray, black and white
    found = applied(image, np.full(4, change), np.arange(4) == part, np.arange(4), apart)
    np.testing.assert_allclose(found, PUBLISHED[apart](part, image, change), atol=2e-6)
    assert np.abs(found - image).max() > 0.05


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (2, 0, 3, 1), (3, 2, 1, 0), (0, 2, 3, 1)])
def test_the_parts_follow_each_other_in_their_order(order, apart):
    image, changes = pixels(), [0.3, -0.4, 0.5, 0.1]
    expected = image
    for part in order:
        expected = PUBLISHED[apart](part, expected, changes[part])
    np.testing.assert_allclose(
        applied(image, changes, np.full(4, True), order, apart), expected, atol=5e-6)


def drawn(setting, count=600):
    keys = jax.random.split(KEY, count)
    return map(np.asarray, quick_jit(jax.vmap(partial(colors.draw_jitter, setting=setting)))(keys))


@pytest.mark.parametrize("name", JITTERS)
def test_draws_fill_the_ranges(name):
    setting = JITTERS[name]
    changes, is_made, _ = drawn(setting)
    for part, strength in enumerate(setting[:4]):
        found = changes[:, part]
        assert -strength <= found.min() < -0.97 * strength
        assert 0.97 * strength < found.max() <= strength
        # Four standard deviations.
        assert abs(is_made[:, part].mean() - setting.probability) < 0.08


def test_the_published_settings():
    assert JITTERS["robustnet"] == Jitter(0.8, 0.8, 0.8, 0.3, 0.5, apart=False)
    assert JITTERS["daformer"] == Jitter(32 / 255, 0.5, 0.5, 0.05, 0.5, apart=True)
    assert JITTERS["vfm_uda"] == Jitter(32 / 255, 0.5, 0.5, 0.05, 0.9, apart=False)


def test_one_coin_and_any_order_or_four_coins_and_two_orders():
    """Torchvision's RandomApply of a ColorJitter, and the distortion of mmsegmentation."""
    _, together, orders = drawn(JITTERS["robustnet"])
    assert {tuple(made) for made in together} == {(False,) * 4, (True,) * 4}
    assert len({tuple(order) for order in orders}) == 24
    _, apart, orders = drawn(JITTERS["daformer"])
    assert len({tuple(made) for made in apart}) == 16
    assert {tuple(order) for order in orders} == {(0, 1, 2, 3), (0, 2, 3, 1)}


# --- the images of a batch

def images(count=6, size=(9, 11), seed=1):
    return np.random.default_rng(seed).integers(0, 256, (count, *size, 3), np.uint8)


def seen(image, key=KEY, first_sample=0, **options):
    run = quick_jit(partial(augment.augment, **options))
    return np.asarray(run(key, image, first_sample=first_sample))


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("with_blur", [False, True])
def test_no_strength_or_no_probability_is_no_change(with_blur, apart):
    """Bit for bit, the blur of less than a pixel included."""
    image = np.arange(256 * 3, dtype=np.uint8).reshape(4, 8, 8, 3)  # every value
    plain = seen(image, with_blur=with_blur)
    for setting in (Jitter(0, 0, 0, 0, 1, apart), Jitter(0.8, 0.8, 0.8, 0.3, 0, apart)):
        found = seen(image, with_blur=with_blur, jitter=setting)
        np.testing.assert_array_equal(found, plain)
        assert found.dtype == np.float32


def test_a_strength_of_0_leaves_its_part_out():
    """A gray image has no hue, and its saturation changes nothing."""
    image = np.full((200, 6, 6, 3), 100, np.uint8)
    plain = seen(image, with_blur=False)
    found = seen(image, with_blur=False, jitter=Jitter(0, 0, 0.8, 0.3, 1))
    np.testing.assert_allclose(found, plain, atol=1e-4)
    found = seen(image, with_blur=False, jitter=Jitter(0.2, 0, 0, 0, 1))
    factors = (found - plain)[:, 0, 0, 0] / 100 + 1
    assert 0.8 - 1e-3 <= factors.min() < 0.82 and 1.18 < factors.max() <= 1.2 + 1e-3


def test_probability_1_changes_every_image_and_the_setting_counts():
    image = images(40)
    plain = seen(image, with_blur=False)
    custom = Jitter(0.8, 0.8, 0.8, 0.3, 1)

    def share(**options):
        return (np.abs(seen(image, with_blur=False, **options) - plain) > 0.5).any((1, 2, 3)).mean()

    assert share(jitter=custom) == 1
    assert 0.25 < share(jitter=JITTERS["robustnet"]) < 0.75  # 0.5 ± 3 standard deviations
    assert 0.75 < share(jitter=JITTERS["daformer"]) <= 1  # 15 of 16
    assert 0.25 < share(strong_blur=True) < 0.75


def test_jitter_and_blur_are_those_of_the_draws():
    """What `augment` makes of an image is what the parts make, with the draws of its key."""
    image, setting = images(12), JITTERS["robustnet"]
    found = seen(image, with_blur=False, jitter=setting, strong_blur=True)
    kinds = set()
    for place, one in enumerate(image):
        key = jax.random.fold_in(jax.random.fold_in(KEY, place), 2)
        part, coin, width = jax.random.split(key, 3)
        changes, is_made, order = map(np.asarray, colors.draw_jitter(part, setting))
        expected = one.astype(np.float32) / 255
        for i in order[is_made[order]]:
            expected = torchvision_part(i, expected, changes[i])
        is_blurred = bool(jax.random.bernoulli(coin, 0.5))
        if is_blurred:
            sigma = float(jax.random.uniform(width, minval=0.15, maxval=1.15))
            expected = ndimage.gaussian_filter(
                expected, (sigma, sigma, 0), mode="mirror", radius=(5, 5, 0))
        expected = np.asarray(to_network_input(jnp.asarray(255 * expected)))
        np.testing.assert_allclose(found[place], expected, atol=2e-3)
        kinds.add((bool(is_made.any()), is_blurred))
    assert len(kinds) == 4


def test_the_weak_blur_keeps_its_draws():
    """The colours come after it, and have draws of their own."""
    image = images(8)
    weak = np.asarray(seen(image))
    nothing = Jitter(0, 0, 0, 0, 0)
    np.testing.assert_array_equal(seen(image, jitter=nothing), weak)
    both = seen(image, jitter=JITTERS["robustnet"])
    is_same = (both == weak).all((1, 2, 3))
    assert 0 < is_same.sum() < 8


@pytest.mark.parametrize("name", JITTERS)
def test_an_image_does_not_depend_on_its_batch(name):
    """Nor on where the batch is cut; another key or place draws otherwise."""
    options = {"jitter": JITTERS[name], "strong_blur": True}
    image = images(8)
    whole = seen(image, **options)
    for start, stop in ((0, 3), (3, 8)):
        np.testing.assert_array_equal(
            seen(image[start:stop], first_sample=start, **options), whole[start:stop])
    other = image.copy()
    other[0] = 0
    np.testing.assert_array_equal(seen(other, **options)[1:], whole[1:])
    same = np.repeat(image[:1], 8, 0)
    assert len({found.tobytes() for found in seen(same, **options)}) > 4
    assert (seen(image, jax.random.key(4), **options) != whole).any()
