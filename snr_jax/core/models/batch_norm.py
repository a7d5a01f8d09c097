"""Batch norm as PyTorch computes it, with a gradient of its own; over one device or many."""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from snr_jax.core.models.column_sums import column_sums
from snr_jax.core.models.layers import at_least_float32


def _deviations(maps: Sequence[jax.Array], vectors: Sequence[jax.Array]) -> tuple:
    (x,), (shift,) = maps, vectors
    deviation = x - shift
    return deviation, jnp.square(deviation)


def _moments(
    x: jax.Array, shift: jax.Array, axis_name: str | None, sums: str
) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance over [N,H,W] and the replicas: x [N,H,W,C] → [C], [C].

    Both sums in one pass, of deviations from `shift` [C]. The variance has a relative error of
    about eps (1 + (mean - shift)^2 / variance): no matter while the shift is some ten deviations
    off, as a running mean is even at its start.
    """
    count = x.size // x.shape[-1]
    offset, square = (s / count for s in column_sums(_deviations, (x,), (shift,), sums))
    var = square - jnp.square(offset)
    mean, var = shift + offset, jnp.maximum(var, 0)
    if axis_name:
        means, variances = lax.all_gather((mean, var), axis_name)  # [replicas,C]
        mean = means.mean(0)
        var = (variances + jnp.square(means - mean)).mean(0)
    return mean, var


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7))
def _batch_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, shift: jax.Array, epsilon: float,
    axis_name: str | None, relu: bool, sums: str,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalised by the batch: (y in the dtype of x, mean, biased variance).

    Its own gradient needs two sums in one pass and x alone, where autodiff makes six and keeps
    more. The statistics carry no gradient, and no result depends on `shift` but by rounding.
    relu: y of a ReLU; the gradient finds again from x where it cuts off. sums: of `column_sums`.
    """
    return _batch_norm_forward(x, scale, bias, shift, epsilon, axis_name, relu, sums)[0]


def _batch_norm_forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, shift: jax.Array, epsilon: float,
    axis_name: str | None, relu: bool, sums: str,
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    mean, var = _moments(x, shift, axis_name, sums)
    inverse = lax.rsqrt(var + epsilon)
    y = (at_least_float32(x) - mean) * (scale * inverse) + bias
    y = jnp.maximum(y, 0) if relu else y
    return (y.astype(x.dtype), mean, var), (x, scale, bias, mean, inverse)


def _gradient_terms(
    relu: bool, maps: Sequence[jax.Array], vectors: Sequence[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """dy, of a ReLU where it lets through alone, and dy x^."""
    (x, dy), (scale, bias, mean, inverse) = maps, vectors
    if relu:
        dy = jnp.where((x - mean) * (scale * inverse) + bias > 0, dy, 0)
    return dy, dy * ((x - mean) * inverse)


def _batch_norm_backward(
    epsilon: float, axis_name: str | None, relu: bool, sums: str,
    kept: tuple[jax.Array, ...], gradients: tuple[jax.Array, ...],
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    """dx = scale / deviation * (dy - mean(dy) - x^ mean(dy x^)), x^ the normalised x."""
    x, *vectors = kept
    scale, _, mean, inverse = vectors
    terms = partial(_gradient_terms, relu)
    # With a ReLU dx reads scale and bias after an optimiser that adds the partial sums up itself:
    # XLA would copy both, two launches for the one that is saved.
    d_bias, d_scale = column_sums(terms, (x, gradients[0]), vectors, sums, in_groups=not relu)
    means = d_bias / (x.size // x.shape[-1]), d_scale / (x.size // x.shape[-1])
    mean_dy, mean_dy_x = lax.pmean(means, axis_name) if axis_name else means
    precise = at_least_float32(x)
    dy, _ = terms((precise, at_least_float32(gradients[0])), vectors)
    dx = (dy - mean_dy - (precise - mean) * inverse * mean_dy_x) * (scale * inverse)
    return dx.astype(x.dtype), d_scale, d_bias, None


_batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


class BatchNorm(nn.Module):
    """Batch norm as PyTorch: epsilon 1e-5, running = 0.9 running + 0.1 batch, unbiased variance.

    Over [N,H,W] and, with `axis_name`, over that mapped axis; at least float32. relu: what it
    returns goes through a ReLU. sums: of `column_sums`; with "pallas" the ReLU is part of the
    gradient, whose kernel then reads what the next layer hands back as it is.
    """

    relu: bool = False
    sums: str = "xla"
    axis_name: str | None = None
    epsilon: float = 1e-5
    momentum: float = 0.9

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        channels = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, channels)
        bias = self.param("bias", nn.initializers.zeros, channels)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels)
        if not train:
            factor = scale * lax.rsqrt(running_var.value + self.epsilon)
            y = (at_least_float32(x) - running_mean.value) * factor + bias
            return nn.relu(y.astype(x.dtype)) if self.relu else y.astype(x.dtype)
        inside = self.relu and self.sums == "pallas"
        y, mean, var = _batch_norm(
            x, scale, bias, running_mean.value, self.epsilon, self.axis_name, inside, self.sums
        )
        if not self.is_initializing():
            count = x.size // x.shape[-1]
            count = lax.psum(count, self.axis_name) if self.axis_name else count
            unbiased = lax.stop_gradient(var) * (count / max(count - 1, 1))
            keep = self.momentum
            running_mean.value = keep * running_mean.value + (1 - keep) * lax.stop_gradient(mean)
            running_var.value = keep * running_var.value + (1 - keep) * unbiased
        return nn.relu(y) if self.relu and not inside else y
