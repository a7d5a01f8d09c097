"""Checkpoints on disk: whole or not at all, damage noticed, the right one found."""

import errno
import os
import shutil
import subprocess
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from snr_jax.core.errors import UserError
from snr_jax.core.models.deeplab import DeepLab, architecture
from snr_jax.core.optim import param_groups, poly_schedule, sgd
from snr_jax.core.state import create_state, initial_variables
from snr_jax.runs import checkpoints, network

MODEL = DeepLab(stage_sizes=(1, 1, 1, 1), width=4, head_branches=4)


def meta_of(model=MODEL, **more):
    return {"model": architecture(model), "source": {"step": 3}, **more}


@pytest.fixture(scope="module")
def state():
    groups = param_groups(repeated_updates=False, train_snr=True, multi_level=False)
    optimizer = sgd(poly_schedule(0.1, 10), groups)
    return jax.device_get(create_state(initial_variables(MODEL, 0), optimizer))


def at_step(state, step: int):
    """The state with values that tell its step."""
    moved = jax.tree.map(lambda x: x + np.asarray(step, x.dtype), state)
    return moved.replace(step=np.int32(step))


def save_steps(workdir: Path, state, steps, keep=5) -> None:
    with checkpoints.open_manager(workdir, keep) as manager:
        for step in steps:
            checkpoints.save_state(manager, at_step(state, step), meta_of())


def restore(workdir: Path, state):
    lines = []
    with checkpoints.open_manager(workdir, 5) as manager:
        return checkpoints.restore_state(manager, state, lines.append), lines


def assert_equal(one, other) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()


def largest_file(path: Path) -> Path:
    return max((p for p in path.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip_bytes(path: Path) -> None:
    """Eight bytes in the middle of the largest array file."""
    file = largest_file(path / "variables")
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 8] = bytes(b ^ 0xFF for b in content[middle : middle + 8])
    file.write_bytes(content)


def truncate(path: Path) -> None:
    file = largest_file(path / "variables")
    os.truncate(file, file.stat().st_size // 2)


def remove_file(path: Path) -> None:
    largest_file(path / "variables").unlink()


def remove_meta(path: Path) -> None:
    shutil.rmtree(path / "meta")


DAMAGES = (flip_bytes, truncate, remove_file, remove_meta)


# ---------------------------------------------------------------- states


def test_state_comes_back_bit_for_bit(state, tmp_path):
    save_steps(tmp_path, state, [1, 2, 3], keep=2)
    found, lines = restore(tmp_path, state)
    assert_equal(found, at_step(state, 3))
    assert lines == []
    latest = checkpoints.folder(tmp_path, "latest")
    assert {path.name for path in latest.iterdir()} == {"2", "3"}


def test_no_checkpoint_no_state(state, tmp_path):
    assert restore(tmp_path, state) == (None, [])


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_state_falls_back_loudly(state, tmp_path, damage):
    save_steps(tmp_path, state, [1, 2, 3])
    newest = checkpoints.folder(tmp_path, "latest") / "3"
    damage(newest)
    found, lines = restore(tmp_path, state)
    assert_equal(found, at_step(state, 2))
    assert lines[0].startswith(f"WARNING: {newest} cannot be used")
    assert lines[1] == "WARNING: going on from the older checkpoint of step 2"
    save_steps(tmp_path, state, [3])  # the damaged one does not stand in the way
    assert_equal(restore(tmp_path, state)[0], at_step(state, 3))


def test_checksum_names_the_tensors(state, tmp_path):
    save_steps(tmp_path, state, [1])
    path = checkpoints.folder(tmp_path, "latest") / "1"
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        args = ocp.args.Composite(
            variables=ocp.args.StandardRestore(), meta=ocp.args.JsonRestore()
        )
        restored = checkpointer.restore(path, args)
        variables = jax.tree.map(np.array, restored.variables)
        variables["params"]["snr2"]["fc1"]["bias"][0] += 1e-6
        changed = ocp.args.Composite(
            variables=ocp.args.StandardSave(variables), meta=ocp.args.JsonSave(restored.meta)
        )
        checkpointer.save(tmp_path / "changed", changed)
    with pytest.raises(UserError, match=r"1 of \d+ tensors.*snr2.*fc1.*bias"):
        checkpoints.load_variables(tmp_path / "changed")


def test_all_damaged(state, tmp_path):
    save_steps(tmp_path, state, [1, 2])
    for step in (1, 2):
        flip_bytes(checkpoints.folder(tmp_path, "latest") / str(step))
    with pytest.raises(UserError, match=r"none of the 2 checkpoints .* can be used"):
        restore(tmp_path, state)


def test_leftover_of_a_killed_save_is_no_checkpoint(state, tmp_path):
    save_steps(tmp_path, state, [1])
    latest = checkpoints.folder(tmp_path, "latest")
    shutil.copytree(latest / "1", latest / "2.orbax-checkpoint-tmp")
    found, lines = restore(tmp_path, state)
    assert_equal(found, at_step(state, 1))
    assert lines == []


# ---------------------------------------------------------------- variables


def test_variables_come_back_with_their_meta(tmp_path):
    variables = initial_variables(MODEL, 1)
    checkpoints.save_variables(tmp_path / "a", variables, meta_of(miou={"gta5": 0.5}))
    loaded, meta = checkpoints.load_variables(tmp_path / "a")
    assert_equal(loaded, variables)
    assert meta["model"] == architecture(MODEL) and meta["miou"] == {"gta5": 0.5}
    assert checkpoints.load_meta(tmp_path / "a")["source"] == {"step": 3}
    checkpoints.save_variables(tmp_path / "a", initial_variables(MODEL, 2), meta_of())
    assert_equal(checkpoints.load_variables(tmp_path / "a")[0], initial_variables(MODEL, 2))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_variables_are_refused(tmp_path, damage):
    path = tmp_path / "a"
    checkpoints.save_variables(path, initial_variables(MODEL, 1), meta_of())
    damage(path)
    with pytest.raises(UserError, match=str(path)):
        checkpoints.load_variables(path)


def test_which_checkpoint_a_folder_means(state, tmp_path):
    with pytest.raises(UserError, match=r"holds no checkpoint.*--workdir"):
        checkpoints.find(tmp_path)
    with pytest.raises(UserError, match="holds no checkpoint"):
        checkpoints.load_variables(tmp_path / "nowhere")
    save_steps(tmp_path, state, [9, 10])
    latest = checkpoints.folder(tmp_path, "latest")
    for meant in (tmp_path, tmp_path / "checkpoints", latest, latest / "10"):
        assert checkpoints.find(meant) == latest / "10"
    final = checkpoints.folder(tmp_path, "final")
    checkpoints.save_variables(final, state.variables, meta_of())
    for meant in (tmp_path, tmp_path / "checkpoints", final):
        assert checkpoints.find(meant) == final
    assert checkpoints.find(latest / "9") == latest / "9"
    checkpoints.load_variables(latest / "9")  # a state serves as variables


# ---------------------------------------------------------------- no space left


async def fill_up(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_full_disk_spares_the_old_state(state, tmp_path, monkeypatch):
    save_steps(tmp_path, state, [1])
    with monkeypatch.context() as patch, pytest.raises(UserError) as error:
        patch.setattr(ocp.StandardCheckpointHandler, "async_save", fill_up)
        save_steps(tmp_path, state, [2])
    message = str(error.value)
    assert "the state of step 2 could not be saved" in message and "No space left" in message
    assert "last good checkpoint is that of step 1" in message and "Free some space" in message
    assert_equal(restore(tmp_path, state)[0], at_step(state, 1))
    save_steps(tmp_path, state, [2])
    assert_equal(restore(tmp_path, state)[0], at_step(state, 2))


def test_full_disk_spares_the_old_variables(tmp_path, monkeypatch):
    variables = initial_variables(MODEL, 1)
    checkpoints.save_variables(tmp_path / "a", variables, meta_of())
    with monkeypatch.context() as patch, pytest.raises(UserError, match="No space left"):
        patch.setattr(ocp.StandardCheckpointHandler, "async_save", fill_up)
        checkpoints.save_variables(tmp_path / "a", initial_variables(MODEL, 2), meta_of())
    assert_equal(checkpoints.load_variables(tmp_path / "a")[0], variables)
    checkpoints.save_variables(tmp_path / "a", initial_variables(MODEL, 2), meta_of())
    assert_equal(checkpoints.load_variables(tmp_path / "a")[0], initial_variables(MODEL, 2))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MiB; mounting one is root's privilege."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(tmp_path)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("cannot mount a small file system here")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_truly_full_disk(state, small_disk):
    """A state takes 1.2 MB: the third does not fit."""
    save_steps(small_disk, state, [1])
    with pytest.raises(UserError, match=r"could not be saved.*last good checkpoint"):
        save_steps(small_disk, state, range(2, 6))
    found, lines = restore(small_disk, state)
    assert_equal(found, at_step(state, int(found.step)))
    assert lines == []


# ---------------------------------------------------------------- as initial values


def test_plain_network_starts_one_with_snr(tmp_path):
    plain = MODEL.clone(norm_restitution="none")
    variables = initial_variables(plain, 5)
    checkpoints.save_variables(tmp_path / "plain", variables, meta_of(plain))
    lines = []
    started = network.initialize(MODEL, 0, str(tmp_path / "plain"), lines.append)
    fresh = initial_variables(MODEL, 0)
    assert jax.tree.structure(started) == jax.tree.structure(fresh)
    for name, values in started["params"].items():
        assert_equal(values, (fresh if name.startswith("snr") else variables)["params"][name])
    assert_equal(started["batch_stats"], variables["batch_stats"])
    text = "\n".join(lines)
    new = text.split("new, at their initial values: ")[1].split(", ")
    assert len(new) == 18 and all(name.startswith(("IN", "style_reid")) for name in new)
    assert str(tmp_path / "plain") in lines[0]


@pytest.mark.parametrize(
    "change, there, here",
    [
        ({"num_classes": 13}, "num_classes 13 there", "19 here"),
        ({"width": 8}, "width 8 there", "4 here"),
        ({"stage_sizes": (1, 2, 1, 1)}, "stage_sizes (1, 2, 1, 1) there", "(1, 1, 1, 1) here"),
        ({"norm_restitution": "in"}, "norm_restitution in there", "snr here"),
        ({"stride_in": "conv2"}, "stride_in conv2 there", "conv1 here"),
    ],
)
def test_another_network_is_refused(tmp_path, change, there, here):
    other = MODEL.clone(**change)
    checkpoints.save_variables(tmp_path / "a", initial_variables(other, 0), meta_of(other))
    with pytest.raises(UserError) as error:
        network.initialize(MODEL, 0, str(tmp_path / "a"), [].append)
    message = str(error.value)
    assert there in message and here in message and str(tmp_path / "a") in message
    assert "Set --config." in message or "Set '--config." in message
