"""One device equals many. The work is in replicas.py, which needs a JAX of its own."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from snr_jax.core.optim import SGDState
from snr_jax.core.parallel import create_parallel
from snr_jax.core.state import TrainState

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    path = tmp_path_factory.mktemp("replicas") / "found.npz"
    run = subprocess.run([sys.executable, "-m", "tests.core.replicas", path], cwd=ROOT,
                         capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-3000:]
    return dict(np.load(path))


def group(found, prefix):
    values = {key.removeprefix(prefix): v for key, v in found.items() if key.startswith(prefix)}
    assert values
    return values


def assert_equal(found, name, rtol, atol):
    one, many = group(found, f"one/{name}/"), group(found, f"many/{name}/")
    assert one.keys() == many.keys()
    for key, value in one.items():
        np.testing.assert_allclose(many[key], value, rtol=rtol, atol=atol, err_msg=key)


@pytest.mark.parametrize(
    "step", ["source", "iw_maxsquare", "hard", "source of eight", "adaptation of eight",
             "accumulated", "class mixing", "colors", "mixing padded", "padded", "stored"],
)  # fmt: skip
def test_a_training_step_on_many_devices_equals_one(found, step):
    """Parameters, momentum, statistics and losses, augmentation included.

    On two devices, and on eight. "accumulated": on one device in one piece, on two in two parts
    each, with frozen batch norm. "mixing padded": with masks, mirrored pseudo labels and a rim.
    "stored": with kernels as [O,kh,kw,I] on the two devices.
    """
    assert int(found[f"many/{step}/step"]) == 2
    assert_equal(found, step, rtol=1e-6, atol=1e-8)


def test_every_batch_norm_of_the_network_sees_the_whole_batch(found):
    assert_equal(found, "forward", rtol=1e-6, atol=1e-8)
    gradients = group(found, "one/forward/gradients/")
    assert np.abs(gradients["layer2_0/bn1/scale"]).max() > 1e-3  # below four batch norms


def test_the_steps_had_something_to_agree_on(found):
    metrics = group(found, "many/iw_maxsquare/metrics1/")
    assert metrics.keys() == {"loss_source", "loss_source_aux", "loss_restitution", "loss_target",
                              "loss_target_aux"}
    assert all(value != 0 for value in metrics.values())
    mixing = group(found, "many/class mixing/metrics1/")
    assert 0.05 < mixing["sure_share"] < 0.95 and mixing["loss_target"] > 0
    assert group(found, "many/mixing padded/metrics1/")["loss_masked"] > 0
    teacher = group(found, "many/class mixing/teacher/params/")
    student = group(found, "many/class mixing/params/")
    assert (teacher["main/kernel"] != student["main/kernel"]).any()  # after two updates
    momentum = group(found, "many/iw_maxsquare/momentum/")
    assert max(np.abs(value).max() for value in momentum.values()) > 1e-3


def test_losses_are_those_of_the_whole_batch(found):
    """Also with half of the batch nearly without valid pixels, gradients included."""
    values = group(found, "one/losses/")
    assert len(values) == 2 * 9
    for name, value in values.items():
        assert np.asarray(value).any() != name.startswith("nothing_valid/"), name
    assert_equal(found, "losses", rtol=1e-10, atol=1e-14)


def test_evaluation_counts_the_same_pixels(found):
    assert found["one/evaluation/confusion"].sum() > 1500
    assert_equal(found, "evaluation", rtol=0, atol=0)


def test_batch_norm_of_each_replica_alone(found):
    """Without synchronisation the replicas still agree on one state, but another one."""
    alone, together = group(found, "alone/source/"), group(found, "many/source/")
    assert all(np.isfinite(value).all() for value in alone.values())
    # The mean of the replicas' means is the mean; that of their variances lacks what lies between.
    key = "batch_stats/bn/"
    np.testing.assert_allclose(alone[key + "mean"], together[key + "mean"], rtol=1e-9)
    assert (alone[key + "var"] != together[key + "var"]).all()


@pytest.mark.parametrize("devices", ["one", "many"])
def test_values_come_back_from_the_devices_as_they_went(found, devices):
    np.testing.assert_array_equal(found[f"{devices}/round/a"], np.arange(6.0).reshape(2, 3))
    assert found[f"{devices}/round/b/c"] == 4 and found[f"{devices}/round/b/c"].shape == ()
    np.testing.assert_array_equal(found[f"{devices}/round/shard"], np.arange(8).reshape(4, 2))
    expected = {"one": [1, False], "many": [2, True]}
    assert list(found[f"{devices}/round/counts"]) == expected[devices]


def test_kernels_lie_as_ohwi_where_asked_and_nobody_sees_it():
    kernel = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    params = {"conv": {"kernel": kernel, "bias": np.ones(5, np.float32)},
              "gate": {"kernel": kernel[0, 0], "other": kernel}}
    state = TrainState(np.int32(0), params, {}, SGDState(np.int32(0), params), {"params": params})
    parallel = create_parallel(jax.devices()[:1], ohwi=True)
    there = parallel.replicate(state)
    for tree in (there.params, there.opt_state.velocity, there.teacher["params"]):
        assert tree["conv"]["kernel"].shape == (5, 2, 3, 4)
        assert tree["gate"]["kernel"].shape == (4, 5)  # of a product
        assert tree["gate"]["other"].shape == kernel.shape
    seen = []

    def step(state: TrainState, batch: jax.Array) -> tuple[TrainState, dict]:
        seen.append(state.params["conv"]["kernel"].shape)
        last = state.params["conv"]["kernel"][..., -1].sum()
        return state.replace(params=optax.tree.scale(2, state.params)), {"last": last}

    after, metrics = parallel.compile(step, 0)(there, jnp.zeros(1))
    assert seen == [kernel.shape] and metrics["last"] == kernel[..., -1].sum()
    back = parallel.unreplicate(after)
    np.testing.assert_array_equal(back.params["conv"]["kernel"], 2 * kernel)
    np.testing.assert_array_equal(back.opt_state.velocity["conv"]["kernel"], kernel)


def test_kernels_lie_as_they_are_on_a_cpu():
    kernel = np.zeros((2, 3, 4, 5), np.float32)
    there = create_parallel(jax.devices()[:1]).replicate({"kernel": kernel})
    assert there["kernel"].shape == kernel.shape
