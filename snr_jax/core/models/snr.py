"""Style Normalization and Restitution (arXiv 2101.00588, section 3)."""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from snr_jax.core.models.layers import (
    Conv,
    at_least_float32,
    bias_init,
    conv1x1,
    precise_product,
)


class SNRFeatures(NamedTuple):
    """The decomposition F = F~ + R+ + R-. Features [N,h,w,C]; the gate is [N,1,1,C]."""

    normalized: jax.Array  # F~, instance norm of F
    restituted: jax.Array  # F~+ = F~ + gate * (F - F~): what the next layer sees
    contaminated: jax.Array  # F~- = F~ + (1 - gate) * (F - F~): serves the loss alone
    gate: jax.Array
    # (a, b) [N,1,1,C] with F~ = a F + b, where SNR computes itself so
    affine: tuple[jax.Array, jax.Array] | None = None

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


class InstanceAffine(nn.Module):
    """Instance norm as a line: x [N,h,w,C] → (a, b, mean of x - y), each [N,1,1,C], y = a x + b."""

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        mean = x.mean((1, 2), keepdims=True)
        # The variance has no gradient by the mean, so none is computed.
        var = jnp.square(x - lax.stop_gradient(mean)).mean((1, 2), keepdims=True)
        factor = scale * lax.rsqrt(var + self.epsilon)
        return factor, bias - mean * factor, mean - bias


class SNR(nn.Module):
    """Instance norm, and what it removed given back through a channel gate.

    `restitution=False` leaves R+ out: instance norm alone, without a gate's parameters. affine: an
    equal form for a GPU. F~, F~+ and F~- are lines in F for each sample and channel, whose
    coefficients need one mean and one variance of F; nothing but F~+ then has to be written.
    """

    restitution: bool = True
    reduction: int = 16
    affine: bool = False

    @nn.compact
    def __call__(self, features: jax.Array) -> SNRFeatures:
        """features F [N,h,w,C] → SNRFeatures in the dtype of F."""
        dtype, channels = features.dtype, features.shape[-1]
        features = at_least_float32(features)
        if self.affine:
            *line, pooled = InstanceAffine(name="norm")(features)
        else:
            normalized = InstanceNorm(name="norm")(features)
            residual = features - normalized
            pooled = residual.mean((1, 2), keepdims=True)  # [N,1,1,C]
        if self.restitution:
            precise = {"use_bias": True, "dtype": features.dtype}
            hidden = Conv(channels // self.reduction, name="fc1", **precise)(pooled)
            gate = nn.sigmoid(Conv(channels, name="fc2", **precise)(nn.relu(hidden)))
        else:
            gate = jnp.zeros_like(pooled)
        if self.affine:
            parts = (a * features + b for a, b in part_lines(*line, gate))
            restituted, normalized, contaminated = (part.astype(dtype) for part in parts)
            return SNRFeatures(normalized, restituted, contaminated, gate, tuple(line))
        return SNRFeatures(
            normalized.astype(dtype),
            (normalized + gate * residual).astype(dtype),
            (normalized + (1 - gate) * residual).astype(dtype),
            gate,
        )


def part_lines(a: jax.Array, b: jax.Array, gate: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
    """(a', b') of F~+, F~ and F~-, each a' F + b', from those of F~; all [N,1,1,C]."""
    return [(a + g * (1 - a), (1 - g) * b) for g in (gate, jnp.zeros_like(gate), 1 - gate)]


class RestitutionHead(nn.Module):
    """1x1 classifier of the dual restitution loss: at least float32 logits of F~+, F~ and F~-."""

    num_classes: int
    pointwise: str = "product"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, features: jax.Array, parts: SNRFeatures
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """features F [N,h,w,C] and what SNR makes of it → three of [N,h,w,num_classes]."""
        shape = (1, 1, features.shape[-1], self.num_classes)
        kernel = self.param("kernel", nn.initializers.normal(0.01), shape)
        bias = self.param("bias", bias_init(features.shape[-1]), shape[-1:])
        if parts.affine is None:
            kernel, bias = kernel.astype(self.dtype), bias.astype(self.dtype)
            maps = (parts.restituted, parts.normalized, parts.contaminated)
            return tuple(
                at_least_float32(conv1x1(x.astype(self.dtype), kernel) + bias) for x in maps
            )
        # One product: the three parts are lines in F, so their factors go into the weights.
        lines = part_lines(*parts.affine, parts.gate)
        weights = [a[:, 0, 0, :, None] * kernel[0] for a, _ in lines]  # [N,C,num_classes]
        logits = products(
            features.astype(self.dtype), jnp.concatenate(weights, -1), self.pointwise
        )
        offsets = [
            jnp.einsum("nhwi,io->nhwo", b, kernel[0, 0], precision=lax.Precision.HIGHEST)
            for _, b in lines
        ]
        return tuple(
            part + offset + bias for part, offset in zip(jnp.split(logits, 3, -1), offsets)
        )


def products(x: jax.Array, weights: jax.Array, pointwise: str) -> jax.Array:
    """`precise_product` of each sample of x [N,h,w,I] with its own of weights [N,I,O]."""
    if len(x) == 1:
        return precise_product(x, weights[0], pointwise=pointwise)
    # As convolutions they would become one of N groups, which takes transposed copies.
    product = partial(precise_product, pointwise="product")
    return jax.vmap(lambda x, w: product(x[None], w)[0])(x, weights)
