"""Class mixing and strong augmentation (DACS, arXiv 2007.08702), inside the compiled step.

Every draw of a sample depends on the key and its place in the whole batch, `first_sample` + n.
"""

import jax
import jax.numpy as jnp

from snr_jax.core.augment import MEAN_BGR, per_sample, to_network_input
from snr_jax.core.colors import BLUR_PROBABILITY, BLUR_SIGMA, gaussian_blur, jitter
from snr_jax.core.labels import IGNORE
from snr_jax.core.models.layers import at_least_float32

JITTER = 0.25  # of brightness, contrast, saturation as a factor 1 ± JITTER; of hue in turns
JITTER_PROBABILITY = 0.8


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
    keys = per_sample(key, image.shape[0], first_sample, lambda k: k)
    return jax.vmap(one)(keys, image)


# ---------------------------------------------------------------- what the teacher says


def pseudo_label(logits: jax.Array, *, threshold: float) -> tuple[jax.Array, jax.Array]:
    """argmax p int32 [N,H,W], and whether max p >= threshold. logits [N,H,W,C]."""
    p = jax.nn.softmax(at_least_float32(logits))
    return p.argmax(-1), p.max(-1) >= threshold
