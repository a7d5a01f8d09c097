"""Class mixing and strong augmentation (DACS, arXiv 2007.08702), masks (MIC, arXiv 2212.01322).

All of it runs inside the compiled step.

Every draw of a sample depends on the key and its place in the whole batch, `first_sample` + n.
"""

from collections.abc import Callable
from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np

from snr_jax.core.augment import BGR_MINUS_MEAN, Preprocessing, per_sample, to_network_input
from snr_jax.core.colors import BLUR_PROBABILITY, BLUR_SIGMA, gaussian_blur, jitter
from snr_jax.core.labels import IGNORE
from snr_jax.core.models.layers import at_least_float32

JITTER_PROBABILITY = 0.8
MASKS = ("blocks", "tokens")


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
    draws = per_sample(
        key, label.shape[0], first_sample, lambda k: jax.random.uniform(k, (num_classes + 1,))
    )
    draws = jnp.where(present, draws, 2)
    rank = (draws[:, None, :] < draws[:, :, None]).sum(-1)
    return present & (rank < count[:, None])


def paste_mask(label: jax.Array, chosen: jax.Array) -> jax.Array:
    """The pixels of the chosen ids. label [N,H,W], chosen of `choose_classes` → bool [N,H,W]."""
    return (_slots(label, chosen.shape[-1] - 1) & chosen[:, None, None, :]).any(-1)


# ---------------------------------------------------------------- what the student sees of a mix


def strong_augment(
    key: jax.Array,
    image: jax.Array,
    *,
    with_jitter: bool = True,
    with_blur: bool = True,
    strength: float = 0.25,
    preprocessing: Preprocessing = BGR_MINUS_MEAN,
    first_sample: int | jax.Array = 0,
) -> jax.Array:
    """Colour jitter (p 0.8), Gaussian blur (p 0.5), each drawn per image; then `preprocessing`.

    image uint8 [N,H,W,3] RGB → float32 [N,H,W,3]. Sides of at least 6. strength: how far jitter
    goes, of brightness, contrast, saturation as a factor 1 ± strength, of hue in turns.
    """

    def one(key: jax.Array, image: jax.Array) -> jax.Array:
        coin, factor, turn, blur, width = jax.random.split(key, 5)
        x = image.astype(jnp.float32) / 255
        if with_jitter:
            factors = jax.random.uniform(factor, (3,), minval=1 - strength, maxval=1 + strength)
            turns = jax.random.uniform(turn, (), minval=-strength, maxval=strength)
            x = jnp.where(
                jax.random.bernoulli(coin, JITTER_PROBABILITY), jitter(x, *factors, turns), x)
        if with_blur:
            low, high = BLUR_SIGMA
            sigma = jax.random.uniform(width, (), minval=low, maxval=high)
            x = jnp.where(jax.random.bernoulli(blur, BLUR_PROBABILITY), gaussian_blur(x, sigma), x)
        return 255 * x

    if with_jitter or with_blur:
        keys = per_sample(key, image.shape[0], first_sample, lambda k: k)
        image = jax.vmap(one)(keys, image)
    return to_network_input(image, preprocessing)


def mask_blocks(
    key: jax.Array,
    image: jax.Array,
    *,
    block: int = 32,
    ratio: float = 0.7,
    first_sample: int | jax.Array = 0,
) -> dict[str, jax.Array]:
    """"image" [N,H,W,3], 0 in blocks of about `block` pixels, each hidden with p `ratio`.

    image: network input. The grid has round(H / block) x round(W / block) cells, at least one of
    each; an image has its own draws.
    """
    cells = [max(round(side / block), 1) for side in image.shape[1:3]]
    draws = per_sample(key, image.shape[0], first_sample, lambda k: jax.random.uniform(k, cells))
    rows, columns = (np.arange(side) * n // side for side, n in zip(image.shape[1:3], cells))
    visible = (draws > ratio)[:, rows][:, :, columns]
    return {"image": jnp.where(visible[..., None], image, 0)}


def mask_tokens(
    key: jax.Array,
    image: jax.Array,
    *,
    grid: Callable[[tuple[int, int]], tuple[int, int]],
    ratio: float = 0.7,
    first_sample: int | jax.Array = 0,
) -> dict[str, jax.Array]:
    """"image" as it is, and "mask" bool [N,h,w] of its tokens, each hidden with p `ratio`.

    grid: height and width of an image → those of its tokens.
    """
    shape = grid(image.shape[1:3])
    draws = per_sample(key, image.shape[0], first_sample, lambda k: jax.random.uniform(k, shape))
    return {"image": image, "mask": draws < ratio}


# ---------------------------------------------------------------- what the teacher says


def pseudo_label(*logits: jax.Array, threshold: float) -> tuple[jax.Array, jax.Array]:
    """argmax p int32 [N,H,W], and whether max p >= threshold.

    p: the mean softmax of the logits, each [N,H,W,C].
    """
    p = reduce(jnp.add, [jax.nn.softmax(at_least_float32(x)) for x in logits]) / len(logits)
    return p.argmax(-1), p.max(-1) >= threshold
