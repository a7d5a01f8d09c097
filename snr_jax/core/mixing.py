"""Class mixing and strong augmentation (DACS, arXiv 2007.08702), inside the compiled step.

Every draw of a sample depends on the key and its place in the whole batch, `first_sample` + n.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from snr_jax.core.augment import MEAN_BGR, to_network_input
from snr_jax.core.labels import IGNORE
from snr_jax.core.models.layers import at_least_float32

JITTER = 0.25  # of brightness, contrast, saturation as a factor 1 ± JITTER; of hue in turns
JITTER_PROBABILITY = 0.8
BLUR_SIGMA = (0.15, 1.15)  # pixels
BLUR_PROBABILITY = 0.5
_BLUR_RADIUS = 5  # more than four of the largest sigma


def _per_sample(
    key: jax.Array, count: int, first_sample: int | jax.Array, draw: Callable
) -> jax.Array:
    """`draw(key)` of each sample, stacked."""
    keys = jax.vmap(lambda n: jax.random.fold_in(key, n))(first_sample + jnp.arange(count))
    return jax.vmap(draw)(keys)


# ---------------------------------------------------------------- which pixels are pasted


def _slots(label: jax.Array, num_classes: int) -> jax.Array:
    """trainIds as one-hot rows, the ignored id last. [N,H,W] → bool [N,H,W,num_classes+1]."""
    slot = jnp.where(label == IGNORE, num_classes, label)
    return slot[..., None] == jnp.arange(num_classes + 1)


def choose_classes(
    key: jax.Array,
    label: jax.Array,
    num_classes: int,
    *,
    share: float = 0.5,
    first_sample: int | jax.Array = 0,
) -> jax.Array:
    """Draws share * n of the n ids in each label, rounded up. bool [N,num_classes+1].

    The last entry is the ignored id, which counts among the n as in the published code. share 0.5
    is its (n + n mod 2) / 2.
    """
    present = _slots(label, num_classes).any((1, 2))
    count = jnp.ceil(share * present.sum(-1) - 1e-4)  # 0.3 * 10 is 3, whatever the rounding
    draws = _per_sample(
        key, label.shape[0], first_sample, lambda k: jax.random.uniform(k, (num_classes + 1,))
    )
    draws = jnp.where(present, draws, 2)
    rank = (draws[:, None, :] < draws[:, :, None]).sum(-1)
    return present & (rank < count[:, None])


def paste_mask(label: jax.Array, chosen: jax.Array) -> jax.Array:
    """The pixels of the chosen ids. label [N,H,W], chosen of `choose_classes` → bool [N,H,W]."""
    return (_slots(label, chosen.shape[-1] - 1) & chosen[:, None, None, :]).any(-1)


# ---------------------------------------------------------------- what the student sees of a mix


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


def jitter(
    image: jax.Array, brightness: jax.Array, contrast: jax.Array, saturation: jax.Array,
    hue: jax.Array,
) -> jax.Array:
    """Colour jitter in this order, clipped after each. image float [H,W,3] RGB in [0, 1].

    brightness f: f x; contrast f: f x + (1 - f) of the mean gray; saturation f: f x + (1 - f) of
    the pixel's gray, gray being 0.299 R + 0.587 G + 0.114 B; hue in turns of HSV's circle.
    """
    x = jnp.clip(brightness * image, 0, 1)
    x = jnp.clip(contrast * x + (1 - contrast) * _gray(x).mean(), 0, 1)
    x = jnp.clip(saturation * x + (1 - saturation) * _gray(x), 0, 1)
    return _turn_hue(x, hue)


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


def strong_augment(
    key: jax.Array,
    image: jax.Array,
    *,
    with_jitter: bool = True,
    with_blur: bool = True,
    first_sample: int | jax.Array = 0,
) -> jax.Array:
    """Colour jitter (p 0.8), Gaussian blur (p 0.5), each drawn per image; then BGR minus mean.

    image uint8 [N,H,W,3] RGB → float32 [N,H,W,3]. Sides of at least 6.
    """

    def one(key: jax.Array, image: jax.Array) -> jax.Array:
        coin, factor, turn, blur, width = jax.random.split(key, 5)
        x = image.astype(jnp.float32) / 255
        if with_jitter:
            factors = jax.random.uniform(factor, (3,), minval=1 - JITTER, maxval=1 + JITTER)
            turns = jax.random.uniform(turn, (), minval=-JITTER, maxval=JITTER)
            x = jnp.where(
                jax.random.bernoulli(coin, JITTER_PROBABILITY), jitter(x, *factors, turns), x)
        if with_blur:
            low, high = BLUR_SIGMA
            sigma = jax.random.uniform(width, (), minval=low, maxval=high)
            x = jnp.where(jax.random.bernoulli(blur, BLUR_PROBABILITY), gaussian_blur(x, sigma), x)
        return 255 * x[..., ::-1] - jnp.array(MEAN_BGR, jnp.float32)

    if not (with_jitter or with_blur):
        return to_network_input(image)
    keys = _per_sample(key, image.shape[0], first_sample, lambda k: k)
    return jax.vmap(one)(keys, image)


# ---------------------------------------------------------------- what the teacher says


def pseudo_label(logits: jax.Array, *, threshold: float) -> tuple[jax.Array, jax.Array]:
    """argmax p int32 [N,H,W], and whether max p >= threshold. logits [N,H,W,C]."""
    p = jax.nn.softmax(at_least_float32(logits))
    return p.argmax(-1), p.max(-1) >= threshold
