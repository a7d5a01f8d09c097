"""The forms that a GPU takes, run on a CPU: equal to the plain ones."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snr_jax.core.models import column_sums
from snr_jax.core.models.batch_norm import BatchNorm
from snr_jax.core.models.deeplab import AtrousHead
from snr_jax.core.models.layers import precise_product
from snr_jax.core.models.snr import SNR, RestitutionHead
from tests.core.tiny import assert_trees_close, quick_jit


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def run_norm(x, weights, sums, relu, axis_name=None):
    """Gradients of (params, x), the output and the moved statistics."""
    channels = x.shape[-1]
    params = {"scale": 1 + 0.3 * normal(channels, seed=2), "bias": normal(channels, seed=3)}
    stats = {"mean": normal(channels, seed=4), "var": np.ones(channels)}
    norm = BatchNorm(relu, sums, axis_name)

    def total(params, x, weights):
        y, moved = norm.apply({"params": params, "batch_stats": stats}, x, True,
                              mutable=["batch_stats"])
        return (y * weights).sum(), (y, moved["batch_stats"])

    run = jax.grad(total, argnums=(0, 1), has_aux=True)
    if axis_name:
        run = jax.vmap(run, in_axes=(None, 0, 0), axis_name=axis_name)
    (d_params, dx), (y, moved) = quick_jit(run)(params, x, weights)
    return {"dx": dx, "y": y, **{f"d_{k}": v for k, v in d_params.items()}, **moved}


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(
    ("channels", "programs", "most"), [(64, 528, 7), (128, 6, 3), (128, 6, 2), (12, 528, 7)]
)
def test_sums_of_batch_norm_by_a_kernel(double, monkeypatch, channels, programs, most, relu):
    """198 rows are 6 blocks and a part of one; 6 programs take 3 parts of 128 channels.

    In groups of 3 and the rest, where there are not more parts than `most`.
    """
    monkeypatch.setattr(column_sums, "PROGRAMS", programs)
    monkeypatch.setattr(column_sums, "GROUP", 3)
    monkeypatch.setattr(column_sums, "MOST_IN_GROUPS", most)
    x, weights = 2 + normal(2, 9, 11, channels), normal(2, 9, 11, channels, seed=1)
    plain = run_norm(x, weights, "xla", relu)
    assert_trees_close(run_norm(x, weights, "pallas", relu), plain, rtol=1e-11, atol=1e-11)


def test_sums_by_a_kernel_synchronised(double):
    x, weights = 2 + normal(3, 1, 5, 7, 64), normal(3, 1, 5, 7, 64, seed=1)
    plain = run_norm(x, weights, "xla", True, "replica")
    found = run_norm(x, weights, "pallas", True, "replica")
    assert_trees_close(found, plain, rtol=1e-11, atol=1e-11)
    whole = run_norm(x.reshape(3, 5, 7, 64), weights.reshape(3, 5, 7, 64), "pallas", True)
    np.testing.assert_allclose(found["y"].reshape(3, 5, 7, 64), whole["y"], atol=1e-11)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_kernel_adds_up_in_float32(dtype):
    x = jnp.asarray(normal(1, 20, 30, 64), dtype)

    def terms(maps, vectors):
        return maps[0] * vectors[0], jnp.square(maps[0])

    vector = jnp.linspace(1, 2, 64)
    found = quick_jit(partial(column_sums.column_sums, terms, form="pallas"))((x,), (vector,))
    exact = np.asarray(x, np.float64).reshape(-1, 64)
    assert found[0].dtype == found[1].dtype == jnp.float32
    np.testing.assert_allclose(found[0], (exact * np.asarray(vector)).sum(0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found[1], (exact**2).sum(0), rtol=1e-5)


@pytest.mark.parametrize("pointwise", ["product", "convolution"])
def test_a_precise_product_has_gradients_of_half_precision(pointwise):
    """The result is that of exact products of the rounded operands; gradients are rounded."""
    x, matrix = jnp.asarray(normal(2, 3, 5, 16), jnp.bfloat16), jnp.asarray(normal(16, 6, seed=1))
    weights = jnp.asarray(normal(2, 3, 5, 6, seed=2), jnp.bfloat16).astype(jnp.float32)

    def total(x, matrix):
        y = precise_product(x, matrix, pointwise=pointwise)
        return (y * weights).sum(), y

    run = jax.grad(total, argnums=(0, 1), has_aux=True)
    (dx, d_matrix), y = quick_jit(run)(x, matrix)
    exact, rounded = np.asarray(x, np.float32), np.asarray(matrix.astype(jnp.bfloat16), np.float32)
    assert y.dtype == d_matrix.dtype == jnp.float32 and dx.dtype == jnp.bfloat16
    np.testing.assert_allclose(y, exact @ rounded, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dx.astype(jnp.float32), weights @ rounded.T, rtol=1e-2, atol=1e-1)
    expected = np.einsum("nhwi,nhwo->io", exact, weights)
    np.testing.assert_allclose(d_matrix, expected, rtol=1e-2, atol=1e-1)
    backward = str(jax.make_jaxpr(run)(x, matrix)).partition("optimization_barrier")[2]
    products = [line for line in backward.splitlines()
                if "dot_general" in line or "conv_general_dilated" in line]
    assert len(products) > 2 and [":f32" in line for line in products].count(True) == 1  # forward


def test_a_precise_product_of_float32_is_a_plain_product():
    x, matrix = jnp.ones((1, 2, 3, 4)), jnp.ones((4, 5))
    found = jax.make_jaxpr(partial(precise_product, pointwise="convolution"))(x, matrix)
    plain = jax.make_jaxpr(partial(jnp.einsum, "nhwi,io->nhwo"))(x, matrix)
    assert str(found).count("dot_general") == str(plain).count("dot_general") == 1
    assert "barrier" not in str(found) and "pad" not in str(found)


def test_the_head_in_half_precision_is_near_that_of_float32():
    x = jnp.asarray(normal(1, 9, 8, 16), jnp.bfloat16)
    params = AtrousHead(3).init(jax.random.key(0), x)
    exact = AtrousHead(3).apply(params, x)
    found = AtrousHead(3, pointwise="convolution", dtype=jnp.bfloat16).apply(params, x)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, exact, atol=1e-2 * float(jnp.abs(exact).max()))


def run_snr(features, gated, affine, dtype=jnp.float64):
    """Gradients of (params of SNR, params of its classifier, features), and the outputs."""
    channels = features.shape[-1]
    snr, classify = SNR(gated, 4, affine), RestitutionHead(3, dtype=dtype)
    parts, params = jax.eval_shape(snr.init_with_output, jax.random.key(0), features)
    heads = jax.eval_shape(classify.init, jax.random.key(0), features, parts)
    exact = jnp.promote_types(dtype, jnp.float32)
    params, heads = jax.tree.map(
        lambda v: 0.5 + 0.3 * normal(*v.shape, seed=v.size).astype(exact), (params, heads))
    weights = normal(*features.shape[:3], channels, seed=8)

    def total(params, heads, features):
        parts = snr.apply(params, features)
        logits = classify.apply(heads, features, parts)
        value = (parts.restituted * weights).sum()
        value += sum((jax.nn.softmax(x) ** 2).sum() for x in logits)
        maps = {name: getattr(parts, name) for name in
                ("restituted", "normalized", "contaminated", "gate")}
        return value, maps | dict(zip(("+", "0", "-"), logits))

    return quick_jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(params, heads, features)


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("batch", [1, 2])
def test_snr_as_lines_is_snr(double, batch, gated):
    features = jnp.asarray(np.random.default_rng(0).gamma(2, 3, (batch, 5, 6, 8)))
    plain, plain_parts = run_snr(features, gated, affine=False)
    found, parts = run_snr(features, gated, affine=True)
    for name, value in plain_parts.items():
        np.testing.assert_allclose(parts[name], value, atol=1e-10, err_msg=name)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-9)


@pytest.mark.parametrize("batch", [1, 2])
def test_snr_as_lines_in_half_precision(batch):
    features = jnp.asarray(np.random.default_rng(0).gamma(2, 3, (batch, 5, 6, 8)), jnp.bfloat16)
    _, plain = run_snr(features.astype(jnp.float32), True, False, jnp.float32)
    gradients, parts = run_snr(features, True, True, jnp.bfloat16)
    assert parts["restituted"].dtype == gradients[2].dtype == jnp.bfloat16
    assert all(parts[name].dtype == jnp.float32 for name in ("+", "0", "-"))
    for name, value in plain.items():
        scale = float(jnp.abs(value).max())
        np.testing.assert_allclose(parts[name].astype(jnp.float32), value, atol=0.02 * scale)
