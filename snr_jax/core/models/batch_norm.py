"""Batch norm as PyTorch computes it, with a gradient of its own; over one device or many."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from snr_jax.core.models.layers import at_least_float32


def _two_sums(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sums over [N,H,W] of two arrays [N,H,W,C].

    One reduction means fewer launches on a GPU; a CPU is faster with two. Both are equal.
    """
    return lax.platform_dependent(a, b, cpu=_sums_apart, default=_sums_together)


def _sums_apart(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    return a.sum((0, 1, 2)), b.sum((0, 1, 2))


def _sums_together(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    zero = jnp.zeros([], a.dtype)

    def add(x: tuple, y: tuple) -> tuple[jax.Array, jax.Array]:
        return x[0] + y[0], x[1] + y[1]

    return lax.reduce((a, b), (zero, zero), add, (0, 1, 2))


def _moments(
    x: jax.Array, shift: jax.Array, axis_name: str | None
) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance over [N,H,W] and the replicas: x [N,H,W,C] → [C], [C].

    Both sums in one pass, of deviations from `shift` [C]. The variance has a relative error of
    about eps (1 + (mean - shift)^2 / variance): no matter while the shift is some ten deviations
    off, as a running mean is even at its start.
    """
    deviation = x - shift
    count = x.size // x.shape[-1]
    offset, square = (s / count for s in _two_sums(deviation, jnp.square(deviation)))
    var = square - jnp.square(offset)
    mean, var = shift + offset, jnp.maximum(var, 0)
    if axis_name:
        means, variances = lax.all_gather((mean, var), axis_name)  # [replicas,C]
        mean = means.mean(0)
        var = (variances + jnp.square(means - mean)).mean(0)
    return mean, var


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _batch_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, shift: jax.Array, epsilon: float,
    axis_name: str | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalised by the batch: (y in the dtype of x, mean, biased variance).

    Its own gradient needs two sums in one pass and x alone, where autodiff makes six and keeps
    more. The statistics carry no gradient, and no result depends on `shift` but by rounding.
    """
    return _batch_norm_forward(x, scale, bias, shift, epsilon, axis_name)[0]


def _batch_norm_forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, shift: jax.Array, epsilon: float,
    axis_name: str | None,
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    precise = at_least_float32(x)
    mean, var = _moments(precise, shift, axis_name)
    inverse = lax.rsqrt(var + epsilon)
    y = (precise - mean) * (scale * inverse) + bias
    return (y.astype(x.dtype), mean, var), (x, scale, mean, inverse)


def _batch_norm_backward(
    epsilon: float, axis_name: str | None, kept: tuple[jax.Array, ...],
    gradients: tuple[jax.Array, ...],
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    """dx = scale / deviation * (dy - mean(dy) - x^ mean(dy x^)), x^ the normalised x."""
    x, scale, mean, inverse = kept
    dy = at_least_float32(gradients[0])
    normalized = (at_least_float32(x) - mean) * inverse
    d_bias, d_scale = _two_sums(dy, dy * normalized)
    means = d_bias / (x.size // x.shape[-1]), d_scale / (x.size // x.shape[-1])
    mean_dy, mean_dy_x = lax.pmean(means, axis_name) if axis_name else means
    dx = (dy - mean_dy - normalized * mean_dy_x) * (scale * inverse)
    return dx.astype(x.dtype), d_scale, d_bias, None


_batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


class BatchNorm(nn.Module):
    """Batch norm as PyTorch: epsilon 1e-5, running = 0.9 running + 0.1 batch, unbiased variance.

    Over [N,H,W] and, with `axis_name`, over that mapped axis; at least float32.
    """

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
            return y.astype(x.dtype)
        y, mean, var = _batch_norm(
            x, scale, bias, running_mean.value, self.epsilon, self.axis_name
        )
        if not self.is_initializing():
            count = x.size // x.shape[-1]
            count = lax.psum(count, self.axis_name) if self.axis_name else count
            unbiased = lax.stop_gradient(var) * (count / max(count - 1, 1))
            keep = self.momentum
            running_mean.value = keep * running_mean.value + (1 - keep) * lax.stop_gradient(mean)
            running_var.value = keep * running_var.value + (1 - keep) * unbiased
        return y
