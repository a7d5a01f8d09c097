"""Colours of an image: jitter and Gaussian blur, and the published settings of the source's.

Images are float [H,W,3] RGB in [0, 1] unless a function says otherwise.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

BLUR_SIGMA = (0.15, 1.15)  # pixels
BLUR_PROBABILITY = 0.5
_BLUR_RADIUS = 5  # more than four of the largest sigma


class Jitter(NamedTuple):
    """How far colours may go, and how often.

    brightness, contrast, saturation: strengths s; of each image a change is drawn from ±s. hue: of
    turns of HSV's circle. apart: False is torchvision's ColorJitter: one coin for all four, in
    random order, brightness a factor. True is mmsegmentation's PhotoMetricDistortion: a coin for
    each, brightness is added, contrast is a factor, saturation HSV's; contrast comes before
    saturation and hue or after them.
    """

    brightness: float
    contrast: float
    saturation: float
    hue: float
    probability: float
    apart: bool = False


JITTERS = {
    "robustnet": Jitter(0.8, 0.8, 0.8, 0.3, probability=0.5),
    "daformer": Jitter(32 / 255, 0.5, 0.5, 18 / 360, probability=0.5, apart=True),
    "vfm_uda": Jitter(32 / 255, 0.5, 0.5, 18 / 360, probability=0.9),
}


# ---------------------------------------------------------------- the parts of a jitter


def _gray(x: jax.Array) -> jax.Array:
    return (x * jnp.array([0.299, 0.587, 0.114])).sum(-1, keepdims=True)


def _turn_hue(x: jax.Array, turns: jax.Array) -> jax.Array:
    """Hue of HSV moved by a part of the circle. x [...,3] RGB in [0, 1]."""
    r, g, b = x[..., 0], x[..., 1], x[..., 2]
    value, chroma = x.max(-1), x.max(-1) - x.min(-1)
    of = jnp.where(chroma > 0, chroma, 1)
    # Each formula meets its neighbour where two colours are equal. A comparison with `value` would
    # not: the compiler may compute it twice, rounded otherwise.
    sector = jnp.where(
        (r >= g) & (r >= b), (g - b) / of,
        jnp.where(g >= b, (b - r) / of + 2, (r - g) / of + 4),
    )
    k = (jnp.array([5.0, 3.0, 1.0]) + (sector + 6 * turns)[..., None]) % 6
    return value[..., None] - chroma[..., None] * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)


def _scale(x: jax.Array, factor: jax.Array) -> jax.Array:
    return jnp.clip(factor * x, 0, 1)


def _scale_contrast(x: jax.Array, factor: jax.Array) -> jax.Array:
    return jnp.clip(factor * x + (1 - factor) * _gray(x).mean(), 0, 1)


def _scale_saturation(x: jax.Array, factor: jax.Array) -> jax.Array:
    return jnp.clip(factor * x + (1 - factor) * _gray(x), 0, 1)


def _scale_hsv_saturation(x: jax.Array, factor: jax.Array) -> jax.Array:
    """HSV's saturation, (max - min) / max, times a factor, at most 1; its hue and value stay."""
    value = x.max(-1, keepdims=True)
    chroma = value - x.min(-1, keepdims=True)
    most = value / jnp.where(chroma > 0, chroma, 1)
    return value - (value - x) * jnp.minimum(factor, most)


def jitter(
    image: jax.Array, brightness: jax.Array, contrast: jax.Array, saturation: jax.Array,
    hue: jax.Array,
) -> jax.Array:
    """Colour jitter in this order, clipped after each.

    brightness f: f x; contrast f: f x + (1 - f) of the mean gray; saturation f: f x + (1 - f) of
    the pixel's gray, gray being 0.299 R + 0.587 G + 0.114 B; hue in turns of HSV's circle.
    """
    x = _scale(image, brightness)
    x = _scale_contrast(x, contrast)
    x = _scale_saturation(x, saturation)
    return _turn_hue(x, hue)


# A part takes the image and the change that is drawn: brightness, contrast, saturation, hue.
_TOGETHER = (
    lambda x, change: _scale(x, 1 + change),
    lambda x, change: _scale_contrast(x, 1 + change),
    lambda x, change: _scale_saturation(x, 1 + change),
    _turn_hue,
)
_APART = (
    lambda x, change: jnp.clip(x + change, 0, 1),
    lambda x, change: _scale(x, 1 + change),
    lambda x, change: _scale_hsv_saturation(x, 1 + change),
    _turn_hue,
)
_ORDERS_APART = np.array([[0, 1, 2, 3], [0, 2, 3, 1]])


def draw_jitter(key: jax.Array, setting: Jitter) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of one image: the change of each part, whether it is made, and the order of the parts. [4]"""
    amount, coin, place = jax.random.split(key, 3)
    strengths, probability = jnp.array(setting[:4], float), float(setting.probability)
    changes = strengths * jax.random.uniform(amount, (4,), minval=-1, maxval=1)
    if setting.apart:
        is_made = jax.random.bernoulli(coin, probability, (4,))
        order = jnp.asarray(_ORDERS_APART)[jax.random.randint(place, (), 0, 2)]
    else:
        is_made = jnp.broadcast_to(jax.random.bernoulli(coin, probability), (4,))
        order = jax.random.permutation(place, 4)
    return changes, is_made & (strengths > 0), order


def apply_jitter(
    image: jax.Array, changes: jax.Array, is_made: jax.Array, order: jax.Array, *, apart: bool
) -> jax.Array:
    """The parts that are made, one after another. changes, is_made, order: of `draw_jitter`."""
    parts = (*(_APART if apart else _TOGETHER), lambda x, _: x)
    x = image
    for part in order:
        x = lax.switch(jnp.where(is_made[part], part, 4), parts, x, changes[part])
    return x


# ---------------------------------------------------------------- blur


def gaussian_blur(image: jax.Array, sigma: jax.Array) -> jax.Array:
    """Gaussian of `sigma` pixels, cut off at 5 pixels, borders mirrored. float [H,W,C]."""
    offsets = np.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1)
    weights = jnp.exp(-0.5 * (offsets / sigma) ** 2)
    weights = weights / weights.sum()
    x = image
    for axis in (0, 1):
        rim = [(_BLUR_RADIUS, _BLUR_RADIUS) if i == axis else (0, 0) for i in range(3)]
        padded = jnp.pad(x, rim, mode="reflect")
        x = sum(
            weight * jax.lax.slice_in_dim(padded, i, i + x.shape[axis], axis=axis)
            for i, weight in enumerate(weights)
        )
    return x


# ---------------------------------------------------------------- both, as a source image is drawn


def recolor(
    keys: jax.Array, image: jax.Array, *, setting: Jitter | None, with_blur: bool
) -> jax.Array:
    """Jitter of the setting, then Gaussian blur (p 0.5), each drawn per image.

    keys [N], image uint8 [N,H,W,3] RGB → float [N,H,W,3] in [0, 255]; where nothing is drawn, the
    very values. One image after another, so that what is not drawn costs nothing.
    """

    def one(drawn: tuple[jax.Array, jax.Array]) -> jax.Array:
        key, image = drawn
        colors, coin, width = jax.random.split(key, 3)
        x = image.astype(float)
        if setting:
            changes, is_made, order = draw_jitter(colors, setting)
            change = partial(apply_jitter, changes=changes, is_made=is_made, order=order,
                             apart=setting.apart)
            x = lax.cond(is_made.any(), lambda x: 255 * change(x / 255), lambda x: x, x)
        if with_blur:
            sigma = jax.random.uniform(width, (), minval=BLUR_SIGMA[0], maxval=BLUR_SIGMA[1])
            is_blurred = jax.random.bernoulli(coin, BLUR_PROBABILITY)
            x = lax.cond(is_blurred, lambda x: gaussian_blur(x, sigma), lambda x: x, x)
        return x

    return lax.map(one, (keys, image))
