"""Initial values and the state they make."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from snr_jax.core.state import create_state, initial_variables, variable_shapes
from tests.core.tiny import network

MODEL = network(width=16, restitution_heads=True)


@pytest.fixture(scope="module")
def initial():
    return flatten_dict(initial_variables(MODEL, 0), sep="/")


def test_initial_values_have_the_models_shapes(initial):
    shapes = flatten_dict(variable_shapes(MODEL), sep="/")
    assert {k: v.shape for k, v in initial.items()} == {k: v.shape for k, v in shapes.items()}
    assert {v.dtype for v in initial.values()} == {np.dtype("float32")}


def test_initial_values_have_the_published_distribution(initial):
    kernels = np.concatenate([v.reshape(-1) for k, v in initial.items() if k.endswith("/kernel")])
    assert abs(kernels.mean()) < 1e-4 and abs(kernels.std() - 0.01) < 1e-4
    for path, value in initial.items():
        if path.endswith(("scale", "var")):
            assert (value == 1).all(), path
        elif path.endswith(("mean", "norm/bias")) or ("bn" in path and path.endswith("bias")):
            assert (value == 0).all(), path
    bias = initial["params/snr3/fc2/bias"]  # fan-in 256 / 16 = 16
    assert 0.2 < np.abs(bias).max() < 1 / 4 and abs(bias.mean()) < 0.05
    bias = initial["params/layer6/conv2d_list_3/bias"]  # fan-in 9 * 512
    assert 0 < np.abs(bias).max() < 1 / np.sqrt(9 * 512)


def test_a_value_depends_on_the_seed_and_its_own_path(initial):
    again = flatten_dict(initial_variables(MODEL, 0), sep="/")
    other = flatten_dict(initial_variables(MODEL, 1), sep="/")
    without = flatten_dict(initial_variables(network(width=16, norm_restitution="none"), 0),
                           sep="/")
    assert len(without) < len(initial)
    for path, value in initial.items():
        np.testing.assert_array_equal(again[path], value)
        np.testing.assert_array_equal(without.get(path, value), value)
        if path.endswith("kernel"):
            assert (other[path] != value).any()


def test_create_state():
    variables = {"params": {"a": np.ones(2, np.float32)}, "batch_stats": {"m": np.zeros(2)}}
    state = create_state(variables, optax.sgd(0.1, momentum=0.9))
    assert state.step.dtype == jnp.int32 and state.step.shape == () and int(state.step) == 0
    np.testing.assert_array_equal(state.variables["params"]["a"], np.ones(2))
    np.testing.assert_array_equal(state.opt_state[0].trace["a"], np.zeros(2))
