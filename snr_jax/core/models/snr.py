"""Style Normalization and Restitution (arXiv 2101.00588, section 3)."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from snr_jax.core.models.layers import Conv, at_least_float32


class SNRFeatures(NamedTuple):
    """The decomposition F = F~ + R+ + R-. Features [N,h,w,C]; the gate is [N,1,1,C]."""

    normalized: jax.Array  # F~, instance norm of F
    restituted: jax.Array  # F~+ = F~ + gate * (F - F~): what the next layer sees
    contaminated: jax.Array  # F~- = F~ + (1 - gate) * (F - F~): serves the loss alone
    gate: jax.Array

    @property
    def relevant(self) -> jax.Array:  # R+
        return self.restituted - self.normalized

    @property
    def irrelevant(self) -> jax.Array:  # R-
        return self.contaminated - self.normalized


class InstanceNorm(nn.Module):
    """Over h,w per sample and channel, biased variance; the same in training and evaluation."""

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [N,h,w,C], at least float32 → the same shape."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        mean = x.mean((1, 2), keepdims=True)
        var = jnp.square(x - mean).mean((1, 2), keepdims=True)
        return (x - mean) * (scale * lax.rsqrt(var + self.epsilon)) + bias


class SNR(nn.Module):
    """Instance norm, and what it removed given back through a channel gate.

    `restitution=False` leaves R+ out: instance norm alone, without a gate's parameters.
    """

    restitution: bool = True
    reduction: int = 16

    @nn.compact
    def __call__(self, features: jax.Array) -> SNRFeatures:
        """features F [N,h,w,C] → SNRFeatures in the dtype of F."""
        dtype, channels = features.dtype, features.shape[-1]
        features = at_least_float32(features)
        normalized = InstanceNorm(name="norm")(features)
        residual = features - normalized
        pooled = residual.mean((1, 2), keepdims=True)  # [N,1,1,C]
        if self.restitution:
            precise = {"use_bias": True, "dtype": features.dtype}
            hidden = Conv(channels // self.reduction, name="fc1", **precise)(pooled)
            gate = nn.sigmoid(Conv(channels, name="fc2", **precise)(nn.relu(hidden)))
        else:
            gate = jnp.zeros_like(pooled)
        return SNRFeatures(
            normalized.astype(dtype),
            (normalized + gate * residual).astype(dtype),
            (normalized + (1 - gate) * residual).astype(dtype),
            gate,
        )
