"""Building blocks that compute exactly what their PyTorch namesakes do, in forms XLA runs fast.

Statistics, pooling indices and interpolation are at least float32 whatever the compute dtype.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.export import is_symbolic_dim
from jax.nn.initializers import Initializer

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def at_least_float32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _conv3x3(x: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        [(dilation, dilation)] * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=DIMENSIONS,
    )


def conv1x1(
    x: jax.Array, kernel: jax.Array, stride: int = 1, *, pointwise: str = "product"
) -> jax.Array:
    """1x1 convolution. x [N,H,W,I], kernel [1,1,I,O] → [N,ceil(H/s),ceil(W/s),O].

    pointwise: "product", a matrix product, which is twice as fast on a CPU; or "convolution", for
    a GPU: XLA pads the operands of a product to multiples of 8 rows, which a feature map seldom
    has, and joins products that share a weight by copying their inputs together. Both are equal.
    """
    if pointwise == "convolution":
        return lax.conv_general_dilated(
            x, kernel, (stride, stride), "VALID", dimension_numbers=DIMENSIONS
        )
    return jnp.einsum("nhwi,io->nhwo", x[:, ::stride, ::stride], kernel[0, 0])


def precise_product(x: jax.Array, matrix: jax.Array, *, pointwise: str) -> jax.Array:
    """x [N,h,w,I] times a float32 matrix [I,O], in the dtype of x → at least float32 [N,h,w,O]."""
    if at_least_float32(x).dtype == x.dtype:
        return jnp.einsum("nhwi,io->nhwo", x, matrix.astype(x.dtype))
    columns = matrix.shape[-1]
    padded = jnp.pad(matrix, ((0, 0), (0, -columns % 8)))  # once, here, and not for every use
    return _half_product(x, padded, pointwise)[..., :columns]


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _half_product(x: jax.Array, matrix: jax.Array, pointwise: str) -> jax.Array:
    """x half [N,h,w,I] → float32. Its gradients are those of `conv1x1`, in half precision.

    Those of a product with a float32 result would take float32 operands.
    """
    # XLA joins products that share a weight by copying their inputs together: not through this.
    x, matrix = lax.optimization_barrier((x, matrix.astype(x.dtype)))
    return jnp.einsum("nhwi,io->nhwo", x, matrix, preferred_element_type=jnp.float32)


def _half_product_forward(
    x: jax.Array, matrix: jax.Array, pointwise: str
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _half_product(x, matrix, pointwise), (x, matrix)


def _half_product_backward(
    pointwise: str, kept: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, matrix = kept
    kernel = matrix.astype(x.dtype)[None, None]
    _, pull_back = jax.vjp(partial(conv1x1, pointwise=pointwise), x, kernel)
    dx, d_kernel = pull_back(gradient.astype(x.dtype))
    return dx, d_kernel[0, 0].astype(matrix.dtype)


_half_product.defvjp(_half_product_forward, _half_product_backward)


def space_to_batch(x: jax.Array, d: int) -> jax.Array:
    """Split [N,H,W,C] into its d*d interleaved maps [N*d*d, ceil(H/d), ceil(W/d), C]."""
    n, h, w, c = x.shape
    x = jnp.pad(x, ((0, 0), (0, -h % d), (0, -w % d), (0, 0)))
    x = x.reshape(n, -(-h // d), d, -(-w // d), d, c)
    return x.transpose(0, 2, 4, 1, 3, 5).reshape(n * d * d, -(-h // d), -(-w // d), c)


def batch_to_space(x: jax.Array, d: int, height: int, width: int) -> jax.Array:
    """Inverse of space_to_batch, cropped to [N, height, width, C]."""
    _, h, w, c = x.shape
    x = x.reshape(-1, d, d, h, w, c).transpose(0, 3, 1, 4, 2, 5)
    return x.reshape(-1, h * d, w * d, c)[:, :height, :width]


def conv3x3(x: jax.Array, kernel: jax.Array, dilation: int = 1, *, atrous: str) -> jax.Array:
    """3x3 convolution, stride 1, padding = dilation. x [N,H,W,I], kernel [3,3,I,O] → [N,H,W,O].

    atrous: "native"; or "space_to_batch", which keeps XLA:GPU from turning the weight gradient
    of a dilated convolution into one with a kernel as large as the image; or "weight_gradient",
    that form for the weight gradient alone. All are equal.
    """
    if dilation == 1 or atrous == "native":
        return _conv3x3(x, kernel, dilation)
    form = {"space_to_batch": _split_conv3x3, "weight_gradient": _conv3x3_split_backward}
    return form[atrous](x, kernel, dilation)


def _split_conv3x3(x: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
    maps = _conv3x3(space_to_batch(x, dilation), kernel, 1)
    return batch_to_space(maps, dilation, *x.shape[1:3])


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv3x3_split_backward(x: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
    """Native but for the weight gradient: cuDNN takes a dilation forward and for the input's
    gradient, and only the weight gradient is worth the copies into interleaved maps."""
    return _conv3x3(x, kernel, dilation)


def _split_backward_forward(
    x: jax.Array, kernel: jax.Array, dilation: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _conv3x3(x, kernel, dilation), (x, kernel)


def _split_backward_backward(
    dilation: int, kept: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    pull_x = jax.linear_transpose(lambda x: _conv3x3(x, kernel, dilation), x)
    pull_kernel = jax.linear_transpose(lambda k: _split_conv3x3(x, k, dilation), kernel)
    return pull_x(gradient) + pull_kernel(gradient)


_conv3x3_split_backward.defvjp(_split_backward_forward, _split_backward_backward)


def max_pool(x: jax.Array) -> jax.Array:
    """3x3 max pool, stride 2, padding 1, ceil mode: the maximum of nine strided slices.

    x [N,H,W,C] → [N, H//2 + 1, W//2 + 1, C]: ceil mode pads the far side of an even size twice.
    Of symbolic sizes (`jax.export`) it is a window: whether slices are equally long is not known.
    """
    if any(map(is_symbolic_dim, x.shape[1:3])):
        # The second row of padding, which an odd size does not have, would not be read there.
        window, strides, padding = (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 2), (1, 2), (0, 0))
        return lax.reduce_window(x, -np.inf, lax.max, window, strides, padding)
    (out_h, out_w), (pad_h, pad_w) = zip(*((n // 2 + 1, 2 - n % 2) for n in x.shape[1:3]))
    low = jnp.array(-jnp.inf, x.dtype)
    x = lax.pad(x, low, ((0, 0, 0), (1, pad_h, 0), (1, pad_w, 0), (0, 0, 0)))
    rows = [x[:, i : i + 2 * out_h - 1 : 2] for i in range(3)]
    x = jnp.maximum(jnp.maximum(rows[0], rows[1]), rows[2])
    columns = [x[:, :, i : i + 2 * out_w - 1 : 2] for i in range(3)]
    return jnp.maximum(jnp.maximum(columns[0], columns[1]), columns[2])


def interpolation(
    size_in: int, size_out: int, dtype: np.dtype, align_corners: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lower index, upper index, weight of the upper.

    Coordinates are computed in the dtype of the data, as PyTorch does. Of symbolic sizes
    (`jax.export`) they are computed where the program runs.
    """
    xp = jnp if is_symbolic_dim(size_in) or is_symbolic_dim(size_out) else np
    last, source = xp.asarray(size_in - 1, np.int32), xp.arange(size_out, dtype=dtype)
    if align_corners:
        source = last.astype(dtype) / xp.asarray(max(size_out - 1, 1), dtype) * source
    else:
        half, scale = dtype.type(0.5), xp.asarray(size_in, dtype) / xp.asarray(size_out, dtype)
        source = xp.maximum(scale * (source + half) - half, 0)
    low = xp.minimum(source.astype(np.int32), last)
    high = xp.minimum(low + 1, last)
    return low, high, (source - low).astype(dtype)


def _interpolate(x: jax.Array, axis: int, size: int, align_corners: bool) -> jax.Array:
    places = interpolation(x.shape[axis], size, np.dtype(x.dtype), align_corners)
    return interpolated(x, axis, *places)


def interpolated(
    x: jax.Array, axis: int, low: jax.Array, high: jax.Array, weight: jax.Array
) -> jax.Array:
    """x along an axis at the places of `interpolation`, arrays of one length."""
    weight = weight.reshape([-1 if a == axis else 1 for a in range(x.ndim)])
    return jnp.take(x, low, axis) * (1 - weight) + jnp.take(x, high, axis) * weight


def _matrix(size_in: int, size_out: int, dtype: np.dtype, align_corners: bool) -> np.ndarray:
    low, high, weight = interpolation(size_in, size_out, np.dtype(dtype), align_corners)
    rows = np.arange(size_out)
    matrix = np.zeros((size_out, size_in), dtype)
    np.add.at(matrix, (rows, low), 1 - weight)
    np.add.at(matrix, (rows, high), weight)
    return matrix


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _resize(
    x: jax.Array, in_size: tuple[int, int], size: tuple[int, int], align_corners: bool
) -> jax.Array:
    x = _interpolate(x, 1, size[0], align_corners)
    return _interpolate(x, 2, size[1], align_corners)


def _resize_forward(
    x: jax.Array, in_size: tuple[int, int], size: tuple[int, int], align_corners: bool
) -> tuple[jax.Array, None]:
    return _resize(x, in_size, size, align_corners), None


def _resize_backward(
    in_size: tuple[int, int], size: tuple[int, int], align_corners: bool, _: None,
    gradient: jax.Array,
) -> tuple[jax.Array]:
    # Two dense products instead of the scatters that the gradient of a gather would be. Like all
    # products they are exact on a CPU; on a GPU as exact as jax.default_matmul_precision says.
    rows = _matrix(in_size[0], size[0], gradient.dtype, align_corners)
    columns = _matrix(in_size[1], size[1], gradient.dtype, align_corners)
    gradient = jnp.einsum("nHWc,Ww->nHwc", gradient, columns)
    return (jnp.einsum("nHwc,Hh->nhwc", gradient, rows),)


_resize.defvjp(_resize_forward, _resize_backward)


def resize_align_corners(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Bilinear with align_corners=True. x [N,h,w,C] → [N,*size,C], at least float32."""
    x = at_least_float32(x)
    return _resize(x, x.shape[1:3], tuple(size), True)


def resize_half_pixel(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Bilinear with align_corners=False, no antialiasing. x [N,h,w,C] → as `resize_align_corners`.

    Pixels are squares: the centre of the first lies half a pixel from the border.
    """
    x = at_least_float32(x)
    return _resize(x, x.shape[1:3], tuple(size), False)


class Conv(nn.Module):
    """Convolution without or with bias; parameters `kernel` [k,k,I,O] and `bias` [O].

    Kernels start from N(0, 0.01), biases uniform in ±1/sqrt(fan-in), as the published code.
    atrous, pointwise: which of two equal forms computes it, see `conv3x3` and `conv1x1`.
    """

    features: int
    size: int = 1
    stride: int = 1
    dilation: int = 1
    use_bias: bool = False
    atrous: str = "native"
    pointwise: str = "product"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        fan_in = self.size * self.size * x.shape[-1]
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.normal(0.01), shape).astype(self.dtype)
        x = x.astype(self.dtype)
        if self.size == 1:
            x = conv1x1(x, kernel, self.stride, pointwise=self.pointwise)
        elif self.size == 3 and self.stride == 1:
            x = conv3x3(x, kernel, self.dilation, atrous=self.atrous)
        else:
            padding = [(self.size // 2 * self.dilation,) * 2] * 2
            x = lax.conv_general_dilated(
                x, kernel, (self.stride,) * 2, padding, dimension_numbers=DIMENSIONS
            )
        if self.use_bias:
            x = x + self.param("bias", bias_init(fan_in), (self.features,)).astype(self.dtype)
        return x


def bias_init(fan_in: int) -> Initializer:
    def init(
        key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32
    ) -> jax.Array:
        bound = 1 / np.sqrt(fan_in)
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
