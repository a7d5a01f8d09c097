"""What happens to an image on the device: blur, colours, and what a network takes for RGB.

The mirror comes before the resizing of the labels, so the input pipeline does it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from snr_jax.core.colors import Jitter, recolor

MEAN_BGR = (104.00698793, 116.66876762, 122.67891434)


class Preprocessing(NamedTuple):
    """What RGB of 0..255 becomes before the first layer: (x / unit - mean) / deviation."""

    channels: str  # "RGB" or "BGR", the order from here on
    unit: float
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float] = (1.0, 1.0, 1.0)


BGR_MINUS_MEAN = Preprocessing("BGR", 1.0, MEAN_BGR)  # of the ResNets of the published lineage
RGB_NORMALIZED = Preprocessing("RGB", 255.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_RADII = 4096  # steps of the blur radius in [0, 1)
_COLORS = 2  # the draws after those of the blur, which keep their numbers


def per_sample(
    key: jax.Array, count: int, first_sample: int | jax.Array, draw: Callable
) -> jax.Array:
    """`draw(key)` of each sample, stacked."""
    keys = jax.vmap(lambda n: jax.random.fold_in(key, n))(first_sample + jnp.arange(count))
    return jax.vmap(draw)(keys)


def blur_weights(radius: np.ndarray) -> np.ndarray:
    """Radius in pixels, [0, 1) → uint32 [..., 2]: weight of the centre and of each neighbour.

    Pillow's GaussianBlur is three passes of [a, 1, a] / (1 + 2a), a = r^2 / (6 - 2 r^2), in units
    of 2^-24 that it computes in single precision.
    """
    one = np.float32(1)
    variance = np.asarray(radius, np.float32) ** 2 / np.float32(3)
    side = -3 * variance / (6 * (variance - one))
    center = np.floor(np.float32(1 << 24) / (side.astype(np.float32) * 2 + one)).astype(np.uint32)
    return np.stack([center, ((1 << 24) - center) // 2], -1)


_BLUR_TABLE = blur_weights(np.arange(_RADII) / _RADII)


def blur(image: jax.Array, weights: jax.Array) -> jax.Array:
    """Pillow's GaussianBlur for a radius below 1, bit for bit.

    image uint8 [N,H,W,3], weights uint32 [N,2] of `blur_weights` → uint8 [N,H,W,3].
    """
    center, neighbour = (weights[:, i].reshape(-1, 1, 1, 1) for i in (0, 1))
    x = image.astype(jnp.uint32)
    for axis in (2, 1):
        for _ in range(3):
            size = x.shape[axis]
            before = jnp.concatenate(
                [jax.lax.slice_in_dim(x, 0, 1, axis=axis),
                 jax.lax.slice_in_dim(x, 0, size - 1, axis=axis)], axis)
            after = jnp.concatenate(
                [jax.lax.slice_in_dim(x, 1, size, axis=axis),
                 jax.lax.slice_in_dim(x, size - 1, size, axis=axis)], axis)
            # At most 255 * 2^24 + 2^23: inside 32 bits.
            x = (x * center + (before + after) * neighbour + (1 << 23)) >> 24
    return x.astype(jnp.uint8)


def to_network_input(
    image: jax.Array, preprocessing: Preprocessing = BGR_MINUS_MEAN
) -> jax.Array:
    """RGB of 0..255, uint8 or float [N,H,W,3] → float32 [N,H,W,3] as a network takes it."""
    mean, deviation = (jnp.array(x, jnp.float32)
                       for x in (preprocessing.mean, preprocessing.deviation))
    image = image[..., ::-1] if preprocessing.channels == "BGR" else image
    return (image.astype(jnp.float32) / preprocessing.unit - mean) / deviation


def expose(image: jax.Array) -> jax.Array:
    """Network input [N,H,W,3], each image scaled to the mean brightness that is subtracted.

    What becomes brighter than white is white. Light then differs between images by its
    distribution alone: at dusk as by day a street is as bright as any.
    """
    mean = jnp.array(MEAN_BGR, image.dtype)
    image = image + mean
    scale = mean.mean() / jnp.maximum(image.mean((1, 2, 3), keepdims=True), 1)
    return jnp.minimum(image * scale, 255) - mean


def augment(
    key: jax.Array,
    image: jax.Array,
    *,
    with_blur: bool = True,
    jitter: Jitter | None = None,
    strong_blur: bool = False,
    preprocessing: Preprocessing = BGR_MINUS_MEAN,
    first_sample: int | jax.Array = 0,
) -> jax.Array:
    """Blur (p 0.5, radius uniform in [0, 1)); `colors.recolor`, if asked for; `preprocessing`.

    image uint8 [N,H,W,3] RGB → float32 [N,H,W,3]. A sample's draw depends on the key and its place
    in the whole batch, `first_sample` + n, alone.
    """

    def draw(key: jax.Array) -> jax.Array:
        is_blurred, radius = jax.random.split(key)
        return jnp.where(
            jax.random.bernoulli(is_blurred), jax.random.randint(radius, (), 0, _RADII), 0
        )

    count = image.shape[0]
    if with_blur:
        radius = per_sample(key, count, first_sample, draw)
        image = blur(image, jnp.asarray(_BLUR_TABLE)[radius])
    if jitter or strong_blur:
        keys = per_sample(key, count, first_sample, lambda k: jax.random.fold_in(k, _COLORS))
        image = recolor(keys, image, setting=jitter, with_blur=strong_blur)
    return to_network_input(image, preprocessing)
