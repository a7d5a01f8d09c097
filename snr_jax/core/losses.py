"""Losses of the source and of the unlabelled target (MaxSquare, arXiv 1909.13589; SNR, 2101.00588).

Logits are [N,H,W,C] floats, labels integers [N,H,W] in 0..C-1 or 255 (ignored). Everything is
computed in at least float32 and is finite, with a zero gradient, where no pixel counts.

A loss returns a `Sum`, (total, normaliser): what it adds up over the batch and what to divide by.
`mean` divides. Sums of parts of a batch can be added first; the loss is then that of all parts.

is_image: bool [N,H,W] of an unlabelled target, False for padding, which takes part in nothing; None
where there is none.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from snr_jax.core.labels import IGNORE
from snr_jax.core.models.layers import at_least_float32


class Sum(NamedTuple):
    total: jax.Array
    normaliser: jax.Array | float  # a count of pixels goes beyond 32 bits where it is times C


Sums = Sum | list[list[Sum]]  # of a loss that is one mean, or of `restitution`


def mean(loss: Sum) -> jax.Array:
    """total / normaliser; 0, with a zero gradient, where nothing counts."""
    return loss.total / jnp.maximum(loss.normaliser, 1).astype(loss.total.dtype)


def _log_probs(logits: jax.Array) -> jax.Array:
    return jax.nn.log_softmax(at_least_float32(logits), axis=-1)


def _kept(values: jax.Array, is_image: jax.Array | None) -> jax.Array:
    """values [N,H,W,C], 0 for padding."""
    return values if is_image is None else jnp.where(is_image[..., None], values, 0)


def _size(values: jax.Array, is_image: jax.Array | None) -> jax.Array | float:
    """How many of values [N,H,W,C] are of an image."""
    if is_image is None:
        return float(values.size)
    return is_image.sum(dtype=float) * values.shape[-1]


def _pick(values: jax.Array, index: jax.Array) -> jax.Array:
    """values[..., index] without a gather, whose gradient is a scatter. [N,H,W,C] → [N,H,W]."""
    hit = lax.broadcasted_iota(jnp.int32, values.shape, values.ndim - 1) == index[..., None]
    return jnp.where(hit, values, 0).sum(-1)


def cross_entropy(logits: jax.Array, label: jax.Array) -> Sum:
    """-log p[label], averaged over the valid pixels; 0 if there are none."""
    label = label.astype(jnp.int32)
    valid = label != IGNORE
    nll = jnp.where(valid, -_pick(_log_probs(logits), label), 0)
    return Sum(nll.sum(), valid.sum())


def weighted_cross_entropy(logits: jax.Array, label: jax.Array, weight: jax.Array) -> Sum:
    """- w log p[label], averaged over all pixels, of which the ignored ones count as 0.

    weight float [N,H,W], without gradient. The loss of class mixing (arXiv 2007.08702).
    """
    label = label.astype(jnp.int32)
    nll = -_pick(_log_probs(logits), label)
    return Sum(jnp.where(label != IGNORE, weight * nll, 0).sum(), float(label.size))


def maxsquare(logits: jax.Array, is_image: jax.Array | None = None) -> Sum:
    """- sum p^2 / (2 N C H W): the mean runs over the classes too, as in the published code."""
    p = jnp.exp(_log_probs(logits))
    return Sum(-_kept(jnp.square(p), is_image).sum(), 2.0 * _size(p, is_image))


def _image_weights(
    p: jax.Array, ratio: float, is_image: jax.Array | None = None
) -> jax.Array:
    """Weight of each pixel, by how often its image predicts the same class. [N,H,W,C] → [N,H,W].

    h_c pixels of the image predicted as c, H = sum h: w_c = 1 / max(h_c^r H^(1-r), 1).
    """
    classes = p.shape[-1]
    one_hot = _kept(jnp.argmax(p, -1)[..., None] == jnp.arange(classes), is_image)
    histogram = one_hot.sum((1, 2)).astype(p.dtype)  # [N,C]
    total = histogram.sum(-1, keepdims=True)
    weights = 1 / jnp.maximum(histogram**ratio * total ** (1 - ratio), 1)
    return lax.stop_gradient(jnp.where(one_hot, weights[:, None, None], 0).sum(-1))


def iw_maxsquare(
    logits: jax.Array, is_image: jax.Array | None = None, *, ratio: float = 0.2
) -> Sum:
    """- sum_pixels w sum_c p_c^2 / (N C), with image-wise class weights w without gradient."""
    p = jnp.exp(_log_probs(logits))
    total = -(_image_weights(p, ratio, is_image) * jnp.square(p).sum(-1)).sum()
    return Sum(total, float(p.shape[0] * p.shape[-1]))


def entropy(logits: jax.Array, is_image: jax.Array | None = None) -> Sum:
    """- sum p log p / (N C H W); the gradient runs through both factors."""
    log_p = _log_probs(logits)
    return Sum(-_kept(jnp.exp(log_p) * log_p, is_image).sum(), _size(log_p, is_image))


def iw_entropy(
    logits: jax.Array, is_image: jax.Array | None = None, *, ratio: float = 0.2
) -> Sum:
    """- sum_pixels w sum_c p_c log p_c / (N C), with image-wise class weights."""
    log_p = _log_probs(logits)
    p = jnp.exp(log_p)
    total = -(_image_weights(p, ratio, is_image) * (p * log_p).sum(-1)).sum()
    return Sum(total, float(p.shape[0] * p.shape[-1]))


def hard(
    logits: jax.Array, is_image: jax.Array | None = None, *, threshold: float = 0.95
) -> Sum:
    """Cross-entropy against argmax p where max p > threshold."""
    p = jnp.exp(_log_probs(logits))
    sure = p.max(-1) > threshold
    sure = sure if is_image is None else sure & is_image
    label = jnp.where(sure, jnp.argmax(p, -1), IGNORE)
    return cross_entropy(logits, label)


def guidance(
    logits: jax.Array, aux: jax.Array, is_image: jax.Array | None = None, *,
    threshold: float = 0.95,
) -> Sum:
    """Multi-level guidance: cross-entropy of the auxiliary logits against both heads' argmax.

    Targets are argmax (p + p_aux)/2 where max p > threshold or max p_aux > threshold. The gradient
    reaches `aux` alone.
    """
    p, p_aux = jnp.exp(_log_probs(logits)), jnp.exp(_log_probs(aux))
    sure = (p.max(-1) > threshold) | (p_aux.max(-1) > threshold)
    sure = sure if is_image is None else sure & is_image
    label = jnp.where(sure, jnp.argmax((p + p_aux) / 2, -1), IGNORE)
    return cross_entropy(aux, label)


def pixel_entropy(logits: jax.Array) -> Sum:
    """Entropy of softmax, averaged over the pixels: H of `dual_restitution`. [N,h,w,C]."""
    log_p = _log_probs(logits)
    return Sum(-(jnp.exp(log_p) * log_p).sum(), float(log_p.size // log_p.shape[-1]))


def dual_restitution(
    restituted: jax.Array, normalized: jax.Array, contaminated: jax.Array
) -> jax.Array:
    """softplus(H(F~+) - H(F~)) + softplus(H(F~) - H(F~-)), the mean inside the softplus.

    The arguments are scalars: the mean over all pixels of the batch of `pixel_entropy`, of one SNR
    block's classifier logits of F~+, F~ and F~-.
    """
    return jax.nn.softplus(restituted - normalized) + jax.nn.softplus(normalized - contaminated)


def restitution_sums(blocks: Sequence[Sequence[jax.Array]]) -> list[list[Sum]]:
    """What `restitution` takes, of each SNR block's classifier logits of F~+, F~ and F~-."""
    return [[pixel_entropy(logits) for logits in block] for block in blocks]


def restitution(sums: list[list[Sum]]) -> jax.Array:
    """The dual restitution loss, added up over the SNR blocks."""
    return sum(dual_restitution(*map(mean, block)) for block in sums)


TARGET_LOSSES = {
    "maxsquare": maxsquare,
    "iw_maxsquare": iw_maxsquare,
    "entropy": entropy,
    "iw_entropy": iw_entropy,
    "hard": hard,
}
