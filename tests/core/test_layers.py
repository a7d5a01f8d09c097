"""Building blocks against direct formulas: loops in numpy, or lax's own dilated convolution."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from snr_jax.core.models import batch_norm, column_sums, layers, resnet
from snr_jax.core.models.deeplab import HEAD_DILATIONS, AtrousHead
from snr_jax.core.state import variable_shapes
from tests.core.tiny import assert_trees_close, network, quick_jit


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def positive(*shape):
    return 0.5 + normal(*shape) ** 2


def dilated(x, kernel, d):
    return lax.conv_general_dilated(x, kernel, (1, 1), [(d, d)] * 2, rhs_dilation=(d, d),
                                    dimension_numbers=("NHWC", "HWIO", "NHWC"))


def test_dilated_convolution_by_hand():
    # A single one in the middle of 7x7 puts the mirrored kernel at distance 2.
    x = np.zeros((1, 7, 7, 1), np.float32)
    x[0, 3, 3, 0] = 1
    kernel = np.arange(1, 10, dtype=np.float32).reshape(3, 3, 1, 1)
    expected = np.zeros((7, 7))
    expected[1::2, 1::2] = kernel[::-1, ::-1, 0, 0]
    for atrous in ("native", "space_to_batch", "weight_gradient"):
        found = layers.conv3x3(jnp.asarray(x), jnp.asarray(kernel), 2, atrous=atrous)
        np.testing.assert_array_equal(found[0, ..., 0], expected)


@pytest.mark.parametrize(("height", "width", "d"), [(7, 9, 2), (8, 6, 2), (9, 13, 4), (3, 5, 4)])
def test_forms_of_a_dilated_convolution_are_equal(height, width, d):
    x, kernel = normal(2, height, width, 3), normal(3, 3, 3, 4, seed=1)
    weights = normal(2, height, width, 4, seed=2)

    def run(atrous):
        def total(x, kernel):
            y = layers.conv3x3(x, kernel, d, atrous=atrous)
            return (y * weights).sum(), y

        return quick_jit(jax.grad(total, argnums=(0, 1), has_aux=True))(x, kernel)

    (native_x, native_kernel), native = run("native")
    np.testing.assert_allclose(native, dilated(x, kernel, d), atol=1e-5)
    for form in ("space_to_batch", "weight_gradient"):
        (found_x, found_kernel), found = run(form)
        np.testing.assert_allclose(found, native, atol=1e-5)
        np.testing.assert_allclose(found_x, native_x, atol=1e-5)
        np.testing.assert_allclose(found_kernel, native_kernel, atol=1e-4)


def test_batch_to_space_is_the_inverse():
    x = normal(2, 7, 10, 3)
    maps = layers.space_to_batch(x, 4)
    assert maps.shape == (2 * 16, 2, 3, 3)
    np.testing.assert_array_equal(layers.batch_to_space(maps, 4, 7, 10), x)


def pool_by_hand(x):
    """Ceil mode: windows begin at -1, 1, 3, ...; the last begins inside the input or padding."""
    def starts(n):
        count = int(np.ceil((n + 2 - 3) / 2)) + 1
        return [2 * i - 1 for i in range(count) if 2 * i < n + 1]

    return np.array([[x[max(r, 0):r + 3, max(c, 0):c + 3].max((0, 1)) for c in starts(x.shape[1])]
                     for r in starts(x.shape[0])])


@pytest.mark.parametrize("height", range(1, 14))
def test_max_pool_against_loops(height):
    x = normal(1, height, 3 * height % 11 + 1, 2)
    found = quick_jit(layers.max_pool)(x)
    np.testing.assert_array_equal(found[0], pool_by_hand(x[0]))


def test_max_pool_sizes_of_the_published_inputs():
    for size, expected in ((360, 181), (640, 321), (256, 129), (512, 257), (320, 161), (380, 191)):
        shape = jax.eval_shape(layers.max_pool, jax.ShapeDtypeStruct((1, size, 5, 1), jnp.float32))
        assert shape.shape == (1, expected, 3, 1)


@pytest.mark.parametrize(("height", "width"), [(5, 6), (8, 7)])
def test_max_pool_gradient_goes_to_the_maximum(height, width):
    x = normal(height, width, 1)
    pooled = pool_by_hand(x)
    weights = normal(*pooled.shape, seed=1)
    expected = np.zeros_like(x)
    for value, weight in zip(pooled.reshape(-1), weights.reshape(-1)):
        expected[x == value] += weight
    found = jax.grad(lambda x: (layers.max_pool(x[None])[0] * weights).sum())(x)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def resize_by_hand(x, size):
    """out[i] lies at i * (in - 1) / (out - 1) between its neighbours."""
    height, width, channels = x.shape
    out = np.zeros((*size, channels))
    for i in range(size[0]):
        for j in range(size[1]):
            r = i * (height - 1) / max(size[0] - 1, 1)
            c = j * (width - 1) / max(size[1] - 1, 1)
            r0, c0 = min(int(r), height - 1), min(int(c), width - 1)
            r1, c1 = min(r0 + 1, height - 1), min(c0 + 1, width - 1)
            top = x[r0, c0] * (c0 + 1 - c) + x[r0, c1] * (c - c0)
            bottom = x[r1, c0] * (c0 + 1 - c) + x[r1, c1] * (c - c0)
            out[i, j] = top * (r0 + 1 - r) + bottom * (r - r0)
    return out


@pytest.mark.parametrize(("shape", "size"), [
    ((5, 7), (33, 49)), ((3, 4), (3, 4)), ((9, 6), (4, 5)), ((1, 4), (5, 9)), ((4, 3), (1, 1)),
    ((1, 1), (3, 2)),
])
def test_resize_against_the_formula(shape, size):
    x = normal(1, *shape, 2)
    found = quick_jit(lambda x: layers.resize_align_corners(x, size))(x)
    np.testing.assert_allclose(found[0], resize_by_hand(x[0], size), atol=1e-5)
    if min(*shape, *size) > 1:
        np.testing.assert_array_equal(found[0, 0, 0], x[0, 0, 0])
        np.testing.assert_allclose(found[0, -1, -1], x[0, -1, -1], rtol=1e-5)


@pytest.mark.parametrize(("shape", "size"), [((3, 4), (7, 6)), ((5, 3), (2, 1)), ((1, 2), (3, 3))])
def test_resize_has_its_own_gradient(shape, size):
    with jax.enable_x64(True):
        x = jnp.asarray(normal(2, *shape, 2), jnp.float64)
        check_grads(lambda x: layers.resize_align_corners(x, size), (x,), 1, ("rev",))


def test_resize_of_half_precision_is_float32():
    x = jnp.asarray(normal(1, 2, 2, 1), jnp.bfloat16)
    found = layers.resize_align_corners(x, (3, 3))
    assert found.dtype == jnp.float32
    # The middle of four exactly represented values is not rounded to bfloat16.
    assert float(found[0, 1, 1, 0]) == pytest.approx(float(x.astype(jnp.float32).mean()), rel=1e-6)


@pytest.mark.parametrize("pointwise", ["product", "convolution"])
@pytest.mark.parametrize(("height", "stride"), [(5, 1), (5, 2), (6, 2)])
def test_conv1x1(height, stride, pointwise):
    """Value and gradients, the same for both forms."""
    x, kernel = normal(2, height, 7, 3), normal(1, 1, 3, 4, seed=1)
    expected = np.einsum("nhwi,io->nhwo", x[:, ::stride, ::stride], kernel[0, 0])
    weights = normal(*expected.shape, seed=2)
    expected_x = np.zeros_like(x)
    expected_x[:, ::stride, ::stride] = np.einsum("nhwo,io->nhwi", weights, kernel[0, 0])
    expected_kernel = np.einsum("nhwi,nhwo->io", x[:, ::stride, ::stride], weights)[None, None]

    def total(x, kernel):
        y = layers.conv1x1(x, kernel, stride, pointwise=pointwise)
        return (y * weights).sum(), y

    compiled = quick_jit(jax.grad(total, argnums=(0, 1), has_aux=True))
    (found_x, found_kernel), found = compiled(x, kernel)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(found_x, expected_x, atol=1e-5)
    np.testing.assert_allclose(found_kernel, expected_kernel, atol=1e-4)


@pytest.mark.parametrize("pointwise", ["product", "convolution"])
def test_the_form_of_1x1_convolutions_reaches_every_block(pointwise):
    """Products are convolutions to 1x1 kernels or none at all: told by the traced program."""
    model = network(pointwise=pointwise)
    image = jax.ShapeDtypeStruct((1, 33, 33, 3), jnp.float32)
    program = str(jax.make_jaxpr(partial(model.apply, train=False))(variable_shapes(model), image))
    # The stem and a 3x3 in each of four blocks; then three 1x1, one a shortcut, in each block.
    expected = {"product": 5, "convolution": 5 + 4 * 3}
    assert program.count(" conv_general_dilated[") == expected[pointwise]


def run_batch_norm(x, train=True, mean=0.0, var=1.0, scale=1.0, bias=0.0):
    full = [jnp.full(x.shape[-1:], v, jnp.float32) for v in (scale, bias, mean, var)]
    variables = {"params": {"scale": full[0], "bias": full[1]},
                 "batch_stats": {"mean": full[2], "var": full[3]}}
    norm = batch_norm.BatchNorm()
    y, updated = norm.apply(variables, jnp.asarray(x), train, mutable=["batch_stats"])
    return np.asarray(y), updated["batch_stats"]


def test_batch_norm_by_hand():
    # Values 1 2 3 6: mean 3, biased variance 14/4 = 3.5, unbiased 14/3.
    x = np.array([1, 2, 3, 6], np.float32).reshape(2, 1, 2, 1)
    y, stats = run_batch_norm(x, mean=2.0, var=5.0, scale=2.0, bias=0.5)
    expected = 0.5 + 2 * (x - 3) / np.sqrt(3.5 + 1e-5)
    np.testing.assert_allclose(y, expected, rtol=1e-5)
    assert float(stats["mean"][0]) == pytest.approx(0.9 * 2 + 0.1 * 3)
    assert float(stats["var"][0]) == pytest.approx(0.9 * 5 + 0.1 * 14 / 3)


def test_batch_norm_in_evaluation_uses_what_it_was_given():
    x = normal(2, 3, 3, 2)
    y, stats = run_batch_norm(x, train=False, mean=2.0, var=5.0, scale=3.0, bias=1.0)
    np.testing.assert_allclose(y, 1 + 3 * (x - 2) / np.sqrt(5 + 1e-5), rtol=1e-4, atol=1e-5)
    assert float(stats["mean"][0]) == 2 and float(stats["var"][0]) == 5


def test_batch_norm_is_accurate_far_from_zero():
    x = (1000 + normal(4, 8, 8, 3)).astype(np.float32)
    exact = x.astype(np.float64)
    mean, var = exact.mean((0, 1, 2)), exact.var((0, 1, 2))
    y, stats = run_batch_norm(x, mean=1003.0, var=0.0)  # three deviations off
    np.testing.assert_allclose(y, (exact - mean) / np.sqrt(var + 1e-5), atol=5e-4)
    np.testing.assert_allclose(stats["var"], 0.1 * var * 256 / 255, rtol=1e-4)


def test_batch_norm_is_accurate_before_its_running_mean_is_near():
    """Ten deviations away from a running mean of 0: more than a network's start makes."""
    x = (10 + normal(4, 8, 8, 3)).astype(np.float32)
    exact = x.astype(np.float64)
    y, stats = run_batch_norm(x, mean=0.0, var=0.0)
    expected = (exact - exact.mean((0, 1, 2))) / np.sqrt(exact.var((0, 1, 2)) + 1e-5)
    np.testing.assert_allclose(y, expected, atol=1e-3)
    np.testing.assert_allclose(stats["var"], 0.1 * exact.var((0, 1, 2)) * 256 / 255, rtol=5e-4)


@pytest.mark.parametrize("offset", [0.0, 30.0, 1e4])
def test_batch_norm_gradient_is_accurate_far_from_zero(offset):
    """float32 against the textbook formula in float64, wherever the data lies."""
    x = (offset + normal(2, 9, 7, 3) * [1, 5, 0.2]).astype(np.float32)
    scale, bias = (np.asarray(v, np.float32) for v in ([1, 2, -0.5], [0, 1, 3]))
    weights = normal(*x.shape, seed=1)
    near = {"mean": np.full(3, offset + 1, np.float32), "var": np.ones(3, np.float32)}
    variables = {"batch_stats": near}

    def total(params, x):
        y, _ = batch_norm.BatchNorm().apply({"params": params, **variables}, x, True,
                                        mutable=["batch_stats"])
        return (y * weights).sum(), y

    params = {"scale": jnp.asarray(scale), "bias": jnp.asarray(bias)}
    (found, dx), y = jax.grad(total, argnums=(0, 1), has_aux=True)(params, jnp.asarray(x))
    exact, dy = x.astype(np.float64), weights.astype(np.float64)
    axes = (0, 1, 2)
    deviation = np.sqrt(exact.var(axes) + 1e-5)
    unit = (exact - exact.mean(axes)) / deviation
    np.testing.assert_allclose(y, unit * scale + bias, atol=1e-4 + 2e-6 * offset)
    np.testing.assert_allclose(found["bias"], dy.sum(axes), rtol=1e-4)
    atol = 1e-4 + 1e-4 * offset  # of x itself one part in 10^7 is lost, in units of 0.2
    np.testing.assert_allclose(found["scale"], (dy * unit).sum(axes), atol=atol)
    expected = (dy - dy.mean(axes) - unit * (dy * unit).mean(axes)) * scale / deviation
    np.testing.assert_allclose(dx, expected, atol=1e-4 + 2e-6 * offset)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_batch_norm_keeps_its_input_alone_for_the_gradient(dtype, relu):
    """Of the size of the input nothing but itself, in its own dtype, waits for the backward."""
    x = jnp.asarray(normal(2, 9, 7, 3), dtype)
    ones = jnp.ones(3)

    def norm(x):
        return batch_norm._batch_norm(x, ones, ones, ones, 1e-5, None, relu, "xla")[0]

    _, pull_back = jax.vjp(norm, x)
    kept = [leaf for leaf in jax.tree.leaves(pull_back) if leaf.size == x.size]
    assert len(kept) == 1 and kept[0].dtype == dtype


def test_both_forms_of_the_sums_are_equal():
    a, b = jnp.asarray(normal(2, 9, 7, 3)), jnp.asarray(normal(2, 9, 7, 3, seed=1))
    expected = [np.asarray(x, np.float64).sum((0, 1, 2)) for x in (a, b)]
    for form in (column_sums.sums_apart, column_sums.sums_together, column_sums.two_sums):
        np.testing.assert_allclose(form(a, b), expected, rtol=1e-4, atol=1e-4)


def test_batch_norm_of_one_pixel_is_its_offset():
    y, stats = run_batch_norm(np.full((1, 1, 1, 2), 7, np.float32), bias=3.0)
    np.testing.assert_array_equal(y, 3)
    np.testing.assert_allclose(stats["var"], 0.9)


def test_batch_norm_of_half_precision_keeps_float32_statistics():
    y, stats = run_batch_norm(normal(2, 3, 3, 2).astype(jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    assert stats["mean"].dtype == stats["var"].dtype == jnp.float32


def test_stages_of_the_published_network():
    assert resnet.STRIDES == (1, 2, 1, 1) and resnet.DILATIONS == (1, 1, 2, 4)
    assert HEAD_DILATIONS == (6, 12, 18, 24)


@pytest.mark.parametrize(("stride", "dilation", "has_downsample"),
                         [(2, 1, True), (1, 4, True), (1, 2, False)])
def test_bottleneck_from_its_definition(stride, dilation, has_downsample):
    x = normal(2, 9, 7, 8)
    block = resnet.Bottleneck(2, stride, dilation, has_downsample)
    values = block.init(jax.random.key(0), x, False)
    values = jax.tree.map(lambda v: (normal if v.ndim == 4 else positive)(*v.shape), values)
    params, stats = values["params"], values["batch_stats"]

    def norm(y, name):
        mean, var = stats[name]["mean"], stats[name]["var"]
        return (y - mean) / np.sqrt(var + 1e-5) * params[name]["scale"] + params[name]["bias"]

    def conv1x1(y, name):
        return np.asarray(y) @ params[name]["kernel"][0, 0]

    # The published block strides in its first convolution.
    y = np.maximum(norm(conv1x1(x[:, ::stride, ::stride], "conv1"), "bn1"), 0)
    y = np.maximum(norm(dilated(y, params["conv2"]["kernel"], dilation), "bn2"), 0)
    y = norm(conv1x1(y, "conv3"), "bn3")
    shortcut = x
    if has_downsample:
        shortcut = norm(conv1x1(x[:, ::stride, ::stride], "downsample_conv"), "downsample_bn")
    expected = np.maximum(y + shortcut, 0)
    assert (expected == 0).any() and (expected > 0).any()
    np.testing.assert_allclose(block.apply(values, x, False), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("branches", [2, 4])
@pytest.mark.parametrize("size", [(27, 26), (5, 7)])  # 5x7: smaller than every dilation but 6
def test_head_is_the_sum_of_its_dilated_convolutions(branches, size):
    x = normal(2, *size, 6)
    params = {f"conv2d_list_{i}": {"kernel": normal(3, 3, 6, 3, seed=i + 1),
                                   "bias": normal(3, seed=i + 9)} for i in range(4)}
    weights = normal(2, *size, 3, seed=20)

    def head(params, x):
        return AtrousHead(3, branches).apply({"params": params}, x)

    def direct(params, x):
        parts = [params[f"conv2d_list_{i}"] for i in range(branches)]
        return sum(dilated(x, p["kernel"], d) + p["bias"] for p, d in zip(parts, HEAD_DILATIONS))

    def run(function):
        def total(params, x):
            y = function(params, x)
            return (y * weights).sum(), y

        return quick_jit(jax.grad(total, argnums=(0, 1), has_aux=True))(params, x)

    (found_params, found_x), found = run(head)
    (expected_params, expected_x), expected = run(direct)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(found_x, expected_x, atol=1e-4)
    assert_trees_close(found_params, expected_params, atol=2e-3)
    unused = [f"conv2d_list_{i}" for i in range(branches, 4)]
    assert not any(np.asarray(leaf).any() for name in unused
                   for leaf in jax.tree.leaves(found_params[name]))
