"""DINOv2's vision transformer (facebookresearch/dinov2), for images of any size.

Layers carry the published names: blocks_0/attn/qkv is blocks.0.attn.qkv in a file.
"""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from snr_jax.core.models.layers import at_least_float32
from snr_jax.core.models.snr import SNR, SNRFeatures

# As published: ViT-S/14, B/14, L/14, whose positions are those of images of 518x518.
SIZES = {
    "s": {"width": 384, "depth": 12, "heads": 6},
    "b": {"width": 768, "depth": 12, "heads": 12},
    "l": {"width": 1024, "depth": 24, "heads": 16},
}

# cuDNN gets a multiple of them: JAX refuses the gradient of an odd number, and what is no multiple
# of 64 XLA copies into one for every product.
CUDNN_TOKENS = 64


class Tokens(NamedTuple):
    """What the transformer makes of an image, after its last norm; at least float32."""

    patches: jax.Array  # [N,h,w,C], a token for each patch
    cls: jax.Array  # [N,C]
    # What each SNR block saw, [N,h,w,C], and made of it.
    snr: tuple[tuple[jax.Array, SNRFeatures], ...]


def cubic_matrix(size_in: int, size_out: int, *, offset: float, antialias: bool) -> np.ndarray:
    """float32 [size_out,size_in] that resizes a line bicubically, as PyTorch does.

    offset: places lie as in a resize to size_out + offset. antialias: the kernel of Pillow, as wide
    as a pixel of the result.
    """

    def kernel(distance: np.ndarray, a: float) -> np.ndarray:
        x = np.abs(distance.astype(np.float64))

        def plus(y: np.ndarray | float, b: float) -> np.ndarray:
            return (y * x + b).astype(np.float32)  # rounded once, as there

        near = plus(plus(plus(a + 2, -a - 3), 0), 1)
        far = plus(plus(plus(a, -5 * a), 8 * a), -4 * a)
        return np.where(x < 1, near, np.where(x < 2, far, 0))

    # Where the centres of the result's pixels lie, rounded as often as there.
    step = np.float64(np.float32(1 / ((size_out + offset) / size_in)))
    center = step * (np.arange(size_out) + 0.5)
    if antialias:
        distance = np.arange(size_in) + 0.5 - center.astype(np.float32)[:, None]
        matrix = kernel(distance / max(step, 1), -0.5)
        return (matrix / matrix.sum(1, keepdims=True)).astype(np.float32)
    pixels = np.arange(-2, size_in + 2, dtype=np.float32)  # those beyond the border repeat it
    weights = kernel(pixels - (center - 0.5).astype(np.float32)[:, None], -0.75)
    matrix = np.zeros((size_out, size_in), np.float32)
    np.add.at(matrix, (slice(None), pixels.astype(int).clip(0, size_in - 1)), weights)
    return matrix


class LayerScale(nn.Module):
    """A factor for each channel, float32."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x * self.param("gamma", nn.initializers.ones, x.shape[-1:])


def attend(
    query: jax.Array, key: jax.Array, value: jax.Array, implementation: str, length: int
) -> jax.Array:
    """softmax(query key^T / sqrt(d)) value, each [N,T,heads,d].

    implementation, length: of `Attention`.
    """
    n, tokens, _, width = query.shape
    if query.dtype == jnp.float64:  # the library's softmax is float32 whatever it is given
        logits = jnp.einsum("nthd,nshd->nhts", query, key[:, :length]) / np.sqrt(width)
        return jnp.einsum("nhts,nshd->nthd", jax.nn.softmax(logits), value[:, :length])
    options = {}
    if length < tokens:
        lengths = jnp.full(n, length, jnp.int32)
        options = {"query_seq_lengths": lengths, "key_value_seq_lengths": lengths}
    return jax.nn.dot_product_attention(query, key, value, implementation=implementation, **options)


class Attention(nn.Module):
    """Attention of the first `length` tokens to each other; the rest is padding. [N,T,C] → [N,T,C].

    implementation: "xla", which writes N * heads * T^2 weights; or "cudnn", NVIDIA's, which does
    not, for a GPU and half precision. Both are equal.
    """

    heads: int
    length: int
    implementation: str = "xla"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        n, tokens, channels = x.shape
        dense = partial(nn.Dense, dtype=self.dtype, kernel_init=nn.initializers.normal(0.02))
        qkv = dense(3 * channels, name="qkv")(x)
        query, key, value = jnp.moveaxis(qkv.reshape(n, tokens, 3, self.heads, -1), 2, 0)
        seen = attend(query, key, value, self.implementation, self.length)  # [N,T,heads,C/heads]
        return dense(channels, name="proj")(seen.reshape(n, tokens, channels))


@jax.checkpoint
def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU, of which the backward pass keeps x alone, and not twice as much besides."""
    return nn.gelu(x, approximate=False)


class MLP(nn.Module):
    """Two layers, four times as wide between them, with an exact GELU."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dense = partial(nn.Dense, dtype=self.dtype, kernel_init=nn.initializers.normal(0.02))
        hidden = gelu(dense(4 * x.shape[-1], name="fc1")(x))
        return dense(x.shape[-1], name="fc2")(hidden)


def layer_norm(name: str) -> nn.LayerNorm:
    """Layer norm over the channels, in at least float32."""
    return nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, name=name)


class Block(nn.Module):
    """x + ls1 attn(norm1(x)), then x + ls2 mlp(norm2(x)). x at least float32 [N,T,C]."""

    heads: int
    length: int
    attention: str = "xla"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        attend = Attention(self.heads, self.length, self.attention, self.dtype, name="attn")
        x = x + LayerScale(name="ls1")(attend(layer_norm("norm1")(x)))
        mlp = MLP(self.dtype, name="mlp")
        return x + LayerScale(name="ls2")(mlp(layer_norm("norm2")(x)))


class PatchEmbed(nn.Module):
    """A linear map of each patch: [N,H,W,3] → [N,H/patch,W/patch,width].

    It is the published convolution of stride `patch`, as one product.
    """

    width: int
    patch: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        n, height, width, channels = image.shape
        side = self.patch
        if height % side or width % side:
            raise ValueError(f"image of {height}x{width}: expected multiples of {side}")
        x = image.reshape(n, height // side, side, width // side, side, channels)
        x = x.swapaxes(2, 3).reshape(n, height // side, width // side, -1)
        init = nn.initializers.normal(0.02)
        return nn.Dense(self.width, dtype=self.dtype, kernel_init=init, name="proj")(x)


class DINOv2(nn.Module):
    """image float [N,H,W,3] of RGB_NORMALIZED, sides multiples of `patch` → Tokens.

    grid: side of the square of positions that the parameters hold; another one is resized.
    registers: tokens after the class token that have no position. The published models with such
    resize positions with antialiasing, those without at places that are a little off.
    snr_after: numbers of the blocks after which SNR restitutes the patches' tokens. restitution,
    affine_snr: of `SNR`. attention: `implementation` of `Attention`. remat: recompute each block in
    the backward pass. Parameters, norms and the sums of the blocks are at least float32 whatever
    the dtype.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    patch: int = 14
    grid: int = 37
    registers: int = 0
    snr_after: tuple[int, ...] = ()
    restitution: bool = True
    affine_snr: bool = False
    attention: str = "xla"
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, mask: jax.Array | None = None) -> Tokens:
        """mask: bool [N,h,w], where a patch is replaced by a learned token; None for nowhere."""
        token, c = nn.initializers.normal(0.02), self.width
        cls_token = self.param("cls_token", token, (1, 1, c))
        positions = self.param("pos_embed", token, (1, 1 + self.grid**2, c))
        mask_token = self.param("mask_token", token, (1, c))

        x = PatchEmbed(c, self.patch, self.dtype, name="patch_embed")(image)
        n, h, w, _ = x.shape
        x = at_least_float32(x)
        if mask is not None:
            x = jnp.where(mask[..., None], mask_token, x)
        x = x + self._resized(positions[:, 1:], h, w).astype(x.dtype)
        parts = [cls_token + positions[:, :1], x.reshape(n, h * w, c)]
        if self.registers:
            parts.insert(1, self.param("register_tokens", token, (1, self.registers, c)))
        x = jnp.concatenate(
            [jnp.broadcast_to(part, (n, *part.shape[1:])).astype(x.dtype) for part in parts], 1)

        length = x.shape[1]
        if self.attention == "cudnn":  # once for all blocks
            x = jnp.pad(x, ((0, 0), (0, -length % CUDNN_TOKENS), (0, 0)))

        block = nn.remat(Block) if self.remat else Block
        first, snr = 1 + self.registers, []  # the first patch's token
        for i in range(self.depth):
            x = block(self.heads, length, self.attention, self.dtype, name=f"blocks_{i}")(x)
            if i in self.snr_after:
                features = x[:, first:length].reshape(n, h, w, c)
                made = SNR(self.restitution, affine=self.affine_snr, name=f"snr_{i}")(features)
                snr.append((features, made))
                restituted = made.restituted.reshape(n, h * w, c)
                x = jnp.concatenate([x[:, :first], restituted, x[:, length:]], 1)
        x = layer_norm("norm")(x)
        return Tokens(x[:, first:length].reshape(n, h, w, c), x[:, 0], tuple(snr))

    def _resized(self, positions: jax.Array, h: int, w: int) -> jax.Array:
        """Positions [1,grid^2,C] for h times w patches: [1,h,w,C], resized in float32."""
        square = positions.reshape(1, self.grid, self.grid, -1)
        if (h, w) == (self.grid, self.grid):
            return square
        rule = {"offset": 0.0, "antialias": True} if self.registers else {
            "offset": 0.1, "antialias": False}
        rows, columns = (cubic_matrix(self.grid, size, **rule) for size in (h, w))
        return jnp.einsum("hH,wW,nHWc->nhwc", rows, columns, square.astype(jnp.float32),
                          precision=lax.Precision.HIGHEST)
