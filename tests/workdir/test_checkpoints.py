"""Checkpoints on disk: whole or not at all, damage noticed, the right one found."""

import errno
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from snr_jax.core.errors import Stopped, UserError
from snr_jax.core.models.backbone import architecture
from snr_jax.core.models.deeplab import DeepLab
from snr_jax.core.optim import param_groups, poly_schedule, sgd
from snr_jax.core.state import create_state, initial_variables
from snr_jax.process import several
from snr_jax.runs import network
from snr_jax.workdir import checkpoints, metas, states
from tests.commands import bound_by_permissions, said

ROOT = Path(__file__).resolve().parents[2]
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
    with states.open_manager(workdir, keep) as manager:
        for step in steps:
            states.save_state(manager, at_step(state, step), meta_of())


def restore(workdir: Path, state):
    with states.open_manager(workdir, 5) as manager, said() as lines:
        return states.restore_state(manager, state), lines


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


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


DAMAGES = (flip_bytes, truncate, remove_file, remove_meta)


# ---------------------------------------------------------------- states


def test_state_comes_back_bit_for_bit(state, tmp_path):
    save_steps(tmp_path, state, [1, 2, 3], keep=2)
    found, lines = restore(tmp_path, state)
    assert_equal(found, at_step(state, 3))
    assert lines == []
    latest = checkpoints.folder(tmp_path, "latest")
    assert {path.name for path in latest.iterdir()} == {"2", "3"}


def test_a_way_through_another_folder_is_a_path(tmp_path):
    """Of a path with ".." Orbax writes what it cannot read."""
    (tmp_path / "real/deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real/deep")
    way = tmp_path / "link/.."  # real, not tmp_path
    checkpoints.save_variables(way / "c", initial_variables(MODEL, 0), meta_of())
    assert (tmp_path / "real/c").is_dir()
    assert checkpoints.find(way / "c").path == tmp_path / "real/c"
    assert checkpoints.folder(way / "run", "final") == tmp_path / "real/run/checkpoints/final"


def test_no_checkpoint_no_state(state, tmp_path):
    assert restore(tmp_path, state) == (None, [])


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_state_falls_back_loudly(state, tmp_path, damage):
    save_steps(tmp_path, state, [1, 2, 3])
    newest = checkpoints.folder(tmp_path, "latest") / "3"
    damage(newest)
    found, lines = restore(tmp_path, state)
    assert_equal(found, at_step(state, 2))
    shelf = checkpoints.folder(tmp_path, "set_aside")
    assert lines[0].startswith(f"WARNING: {newest} cannot be used: ") and len(lines[0]) > 60
    assert lines[1:] == [
        "WARNING: going on from the older checkpoint of step 2",
        f"WARNING: {newest} was set aside as {shelf / '3-1'}",
    ]
    assert [path.name for path in shelf.iterdir()] == ["3-1"]
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
    before = contents(tmp_path)
    told = "differ from|Data corruption"  # found by our checksums, or while Orbax unpacks it
    with pytest.raises(UserError, match=rf"none of the 2 checkpoints .* can be used.*({told})"):
        restore(tmp_path, state)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE])
def test_a_disk_that_fails_once_costs_no_state(state, tmp_path, monkeypatch, number):
    """The error is the disk's: moved back, the state is as good as before."""
    save_steps(tmp_path, state, [1, 2, 3])
    newest = checkpoints.folder(tmp_path, "latest") / "3"
    real = ocp.StandardCheckpointHandler.restore

    def broken(self, directory, *args, **kwargs):
        if newest in Path(str(directory)).parents:
            raise OSError(number, os.strerror(number), str(directory))
        return real(self, directory, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(ocp.StandardCheckpointHandler, "restore", broken)
        found, lines = restore(tmp_path, state)
    assert_equal(found, at_step(state, 2))
    assert os.strerror(number) in lines[0]
    aside = checkpoints.folder(tmp_path, "set_aside") / "3-1"
    assert_equal(checkpoints.load_variables(aside)[0], at_step(state, 3).variables)
    aside.rename(newest)
    assert_equal(restore(tmp_path, state)[0], at_step(state, 3))


def test_the_step_of_a_state_set_aside_is_saved_again(state, tmp_path):
    """By the same run, which has known that step as saved."""
    save_steps(tmp_path, state, [1, 2, 3])
    flip_bytes(checkpoints.folder(tmp_path, "latest") / "3")
    with states.open_manager(tmp_path, 5) as manager:
        states.restore_state(manager, state)
        states.save_state(manager, at_step(state, 3), meta_of())
    assert_equal(restore(tmp_path, state)[0], at_step(state, 3))


def test_what_was_set_aside_before_stays(state, tmp_path):
    save_steps(tmp_path, state, [1, 2, 3])
    for expected in (["3-1"], ["3-1", "3-2"]):
        truncate(checkpoints.folder(tmp_path, "latest") / "3")
        restore(tmp_path, state)
        shelf = checkpoints.folder(tmp_path, "set_aside")
        assert sorted(path.name for path in shelf.iterdir()) == expected
        save_steps(tmp_path, state, [3, 4], keep=4)
        assert sorted(path.name for path in shelf.iterdir()) == expected
        shutil.rmtree(checkpoints.folder(tmp_path, "latest") / "4")


def test_a_state_without_permission_to_read_it(state, tmp_path):
    """Once in a process that the permissions bind, which they do not bind root's."""
    save_steps(tmp_path, state, [1, 2])
    newest = checkpoints.folder(tmp_path, "latest") / "2"
    locked = next((newest / "meta").iterdir())
    locked.chmod(0)
    if os.access(locked, os.R_OK):
        drop = bound_by_permissions()
        test = f"{__file__}::test_a_state_without_permission_to_read_it"
        again = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-W", "error", test]
        result = subprocess.run([*drop, *again], capture_output=True, text=True, cwd=ROOT)
        assert result.returncode == 0 and "1 passed" in result.stdout, result.stdout
        return
    found, lines = restore(tmp_path, state)
    assert_equal(found, at_step(state, 1))
    assert os.strerror(errno.EACCES) in lines[0]
    with pytest.raises(UserError, match=r"set_aside/2-1 cannot be read: .*Permission denied"):
        checkpoints.find(checkpoints.folder(tmp_path, "set_aside") / "2-1")


@pytest.mark.parametrize("name", ["3.orbax-checkpoint-tmp", "notes", "3-old", "³"])
def test_other_names_among_the_states_are_no_steps(state, tmp_path, name):
    """As a kill in a save leaves them, and as every save makes them while it lasts."""
    save_steps(tmp_path, state, [1, 2])
    latest = checkpoints.folder(tmp_path, "latest")
    shutil.copytree(latest / "2", latest / name)
    for meant in (tmp_path, latest):
        assert checkpoints.find(meant).path == latest / "2"


def test_what_orbax_still_writes_is_no_checkpoint(state, tmp_path):
    save_steps(tmp_path, state, [1])
    latest = checkpoints.folder(tmp_path, "latest")
    (latest / "1").rename(latest / "1.orbax-checkpoint-tmp")
    for meant in (tmp_path, latest / "1.orbax-checkpoint-tmp"):
        with pytest.raises(UserError, match="holds no checkpoint"):
            checkpoints.find(meant)


# ---------------------------------------------------------------- a swap that was cut short

OLD, NEW = initial_variables(MODEL, 1), initial_variables(MODEL, 2)


@pytest.fixture
def swap(tmp_path):
    """A checkpoint, and one beside it under each of the names of the swap."""
    final = checkpoints.folder(tmp_path, "final")
    for path, variables in zip((final, *checkpoints._beside(final)), (OLD, NEW, OLD), strict=True):
        checkpoints.save_variables(path, variables, meta_of())
    return final, *checkpoints._beside(final)


@pytest.mark.parametrize(
    "present, expected",
    [("path new", OLD), ("new old", NEW), ("old", OLD), ("new", NEW), ("path old", OLD)],
)
def test_the_survivor_of_a_swap_is_found_and_takes_its_name(swap, tmp_path, present, expected):
    final, _, _ = swap
    for name, path in zip(("path", "new", "old"), swap, strict=True):
        if name not in present.split():
            shutil.rmtree(path)
    for meant in (tmp_path, final):
        found = checkpoints.find(meant)
        assert (found.name, found.run) == ("final", tmp_path)
        assert_equal(checkpoints.load_variables(found)[0], expected)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError, match="No space left"):
        fill_disk(patch, fill_up)
        checkpoints.save_variables(final, NEW, meta_of())
    assert_equal(checkpoints.load_variables(final)[0], expected)
    checkpoints.save_variables(final, NEW, meta_of())
    assert [path.name for path in final.parent.iterdir()] == ["final"]
    assert_equal(checkpoints.load_variables(final)[0], NEW)


def test_behind_a_broken_survivor_is_another(swap):
    """Cut between the two renamings: the new one is whole but for the disk, the old one waits."""
    final, new, old = swap
    shutil.rmtree(final)
    remove_meta(new)
    with said() as lines:
        assert_equal(checkpoints.load_variables(checkpoints.find_or_set_aside(final))[0], OLD)
        assert str(new) in lines[0] and lines[1].endswith("set_aside/final.new-checkpoint-1")
        checkpoints.set_aside(old)
        assert checkpoints.find_or_set_aside(final) is None and len(lines) == 3


def test_an_interrupted_save_leaves_the_earlier_one_alone(tmp_path, monkeypatch):
    save = ocp.Checkpointer.save

    def interrupted(*arguments, **named):
        save(*arguments, **named)
        raise KeyboardInterrupt

    checkpoints.save_variables(tmp_path / "a", OLD, meta_of())
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ocp.Checkpointer, "save", interrupted)
        checkpoints.save_variables(tmp_path / "a", NEW, meta_of())
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert_equal(checkpoints.load_variables(tmp_path / "a")[0], OLD)


def test_folders_of_others_beside_a_checkpoint_stay(tmp_path):
    """scripts/convert_torch_ckpt.py writes where the user says."""
    others = ["a.new", "a.old", "a.newer", "b", "b.orbax-checkpoint-tmp"]
    for other in others:
        (tmp_path / other).mkdir()
    checkpoints.save_variables(tmp_path / "a", OLD, meta_of())
    checkpoints.save_variables(tmp_path / "a", NEW, meta_of())
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, "a"])


def test_a_checkpoint_that_a_training_replaces_meanwhile(tmp_path):
    """What was found is what is read, or nothing: never another one under its meta."""
    checkpoints.save_variables(tmp_path / "a", OLD, meta_of())
    found = checkpoints.find(tmp_path / "a")
    checkpoints.save_variables(tmp_path / "a", NEW, meta_of())
    with pytest.raises(UserError, match=r"/a was replaced while it was read.*same command again"):
        checkpoints.load_variables(found)
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(UserError, match="was replaced while it was read"):
        checkpoints.load_variables(found)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "3", "{}", '{"model": [], "checksums": {"variables": {}}}']
)
def test_a_broken_meta(tmp_path, content):
    path = checkpoints.folder(tmp_path, "best_source")
    checkpoints.save_variables(path, OLD, meta_of())
    (path / "meta" / "metadata").write_text(content)
    with pytest.raises(UserError, match=rf"{path} cannot be read.*Use another checkpoint"):
        checkpoints.find(path)
    with said() as lines:
        assert checkpoints.find_or_set_aside(path) is None
        assert str(path) in lines[0] and lines[1].endswith("set_aside/best_source-1")
        assert not path.exists()
        assert checkpoints.find_or_set_aside(path) is None and len(lines) == 2


def rewrite(path: Path, change, with_checksum: bool = False) -> None:
    """Changes the meta on disk, which has no checksum of itself then, or a right one."""
    file = path / "meta/metadata"
    meta = json.loads(file.read_text())
    meta.pop(metas.OWN)
    change(meta)
    if with_checksum:
        meta[metas.OWN] = metas.checksum(meta)
    file.write_text(json.dumps(meta))


SCORES = {"gta5": {"settings": {"step": 3, "size": [33, 65]}, "miou": 0.25,
                   "iou": {"road": 0.5, "sky": math.nan}}}
NAMED = {"scores": SCORES, "class_names": [f"class {i}" for i in range(19)],
         "class_colors": [[i, i, i] for i in range(19)]}


@pytest.mark.parametrize("with_checksum", [False, True])
@pytest.mark.parametrize(
    "change, words",
    [
        (lambda m: m.update(source=[]), "has source []; expected a table"),
        (lambda m: m.pop("model"), "lacks 'model'"),
        (lambda m: m["model"].pop("width"), "lacks 'model.width'"),
        (lambda m: m["model"].update(width="4"), "has model.width '4'; expected a whole number"),
        (lambda m: m["model"].update(stage_sizes=1), "model.stage_sizes 1; expected 4 whole"),
        (lambda m: m["model"].update(norm_restitution="snt"), "'snt'; expected one of none, in, s"),
        (lambda m: m["source"].update(step=2.5), "has source.step 2.5; expected a whole number"),
        (lambda m: m["source"].update(input_size=[33]), "has source.input_size [33]; expected 2"),
        (lambda m: m.update(class_names=5), "has class_names 5; expected a list"),
        (lambda m: m.update(class_names=["a", "b", "c"]), "has 3 class_names for 19 classes"),
        (lambda m: m.update(class_colors=[[0, 0, 256]] * 19), "has class_colors [[0, 0, 256]"),
        (lambda m: m.update(scores=[]), "has scores []; expected a table"),
        (lambda m: m["scores"].update(gta5=1), "has scores.gta5 1; expected a table"),
        (lambda m: m["scores"]["gta5"].update(miou="0.9"), "scores.gta5.miou '0.9'; expected a nu"),
        (lambda m: m["scores"]["gta5"]["iou"].update(sky="x"), "scores.gta5.iou.sky 'x'; expected"),
        (lambda m: m["scores"]["gta5"].update(settings=3), "scores.gta5.settings 3; expected a ta"),
        (lambda m: m["checksums"].update(variables=3), "has checksums.variables 3; expected a tab"),
    ],
)  # fmt: skip
def test_a_meta_of_wrong_kinds(change, words, with_checksum, tmp_path):
    checkpoints.save_variables(tmp_path / "a", OLD, meta_of(**NAMED))
    rewrite(tmp_path / "a", lambda meta: None)
    before = checkpoints.find(tmp_path / "a").meta  # one of before there was a checksum of it
    assert str(before["scores"]) == str(SCORES)
    rewrite_anew = with_checksum and "checksums" not in words
    (tmp_path / "a/meta/metadata").write_text(json.dumps({**before, metas.OWN: 0}))
    rewrite(tmp_path / "a", change, rewrite_anew)
    with pytest.raises(UserError) as error:
        checkpoints.load_variables(tmp_path / "a")
    message = str(error.value)
    assert message.startswith(f"{tmp_path}/a cannot be read: its meta ") and words in message
    assert message.endswith(". Use another checkpoint") and "\n" not in message


def test_a_flipped_bit_in_a_meta_is_noticed(tmp_path):
    """Of every one: what it changes is refused; 1e-05 and 1E-05 are one number."""
    checkpoints.save_variables(tmp_path / "a", OLD, meta_of(**NAMED))
    meta = (tmp_path / "a/meta/metadata").read_bytes()
    whole = json.loads(meta)
    refused = 0
    for at, bit in itertools.product(range(len(meta)), range(8)):
        flipped = bytearray(meta)
        flipped[at] ^= 1 << bit
        try:
            found = json.loads(flipped)
        except ValueError:
            continue  # orbax says so
        if metas.fault(found):
            refused += 1
        else:
            assert str(found) == str(whole), (at, bit)
    assert refused > 1000


def test_a_flipped_bit_in_a_file_of_a_meta(tmp_path):
    path = checkpoints.folder(tmp_path, "best_source")
    checkpoints.save_variables(path, OLD, meta_of(**NAMED))
    file = path / "meta/metadata"
    file.write_text(file.read_text().replace('"miou": 0.25', '"miou": 0.75'))
    with pytest.raises(UserError, match="cannot be read: its meta is damaged: it differs from its"):
        checkpoints.find(path)
    with said() as lines:
        assert checkpoints.find_or_set_aside(path) is None
    assert "Use another checkpoint" not in "".join(lines)


def test_an_error_without_a_sentence_names_its_kind(tmp_path, monkeypatch):
    def broken(*_, **__):
        raise KeyError(0)

    checkpoints.save_variables(tmp_path / "a", OLD, meta_of())
    monkeypatch.setattr(ocp.Checkpointer, "restore", broken)
    with pytest.raises(UserError, match="a cannot be read: KeyError 0"):
        checkpoints.find(tmp_path / "a")


def test_a_link_to_nothing(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match=r"a cannot be read: it is a link to .*gone, which is not"):
        checkpoints.find(tmp_path / "a")


# ---------------------------------------------------------------- what cannot be read again


@pytest.mark.parametrize("name", ["exp[1]", "a\\b", "a*", "a?", "\udcff"])
def test_a_path_that_a_library_reads_as_a_pattern(name, tmp_path):
    with pytest.raises(UserError, match="for which nothing that is saved there could be read"):
        checkpoints.save_variables(tmp_path / name / "a", OLD, meta_of())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["x]y", "x y", "x%5B", "x{1}", "~", "é", "$HOME", "#1", "-a"])
def test_a_path_of_other_odd_letters(name, tmp_path):
    checkpoints.save_variables(tmp_path / name / "a", OLD, meta_of())
    assert_equal(checkpoints.load_variables(tmp_path / name / "a")[0], OLD)


def test_what_was_saved_is_looked_at_before_it_counts(state, tmp_path, monkeypatch):
    """Orbax does not notice that it has merged nothing."""
    checkpoints.save_variables(tmp_path / "exp/a", OLD, meta_of())
    for module in (checkpoints, states):
        monkeypatch.setattr(module, "refuse_pattern", lambda path: None, raising=False)
    (tmp_path / "exp").rename(tmp_path / "exp[1]")
    with pytest.raises(UserError, match=r"read: of \d+ arrays of variables 0 are there\)"):
        checkpoints.save_variables(tmp_path / "exp[1]/a", NEW, meta_of())
    assert_equal(checkpoints.load_variables(tmp_path / "exp[1]/a")[0], OLD)
    with pytest.raises(UserError, match="the state of step 1 could not be saved"):
        save_steps(tmp_path / "exp[1]", state, [1, 2])


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
    assert checkpoints.find(tmp_path / "a").meta["source"] == {"step": 3}
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
        found = checkpoints.find(meant)
        assert (found.path, found.run, found.name) == (latest / "10", tmp_path, "latest/10")
    final = checkpoints.folder(tmp_path, "final")
    checkpoints.save_variables(final, state.variables, meta_of())
    for meant in (tmp_path, tmp_path / "checkpoints", final):
        found = checkpoints.find(meant)
        assert (found.path, found.run, found.name) == (final, tmp_path, "final")
        assert found.step == 3 and found.meta["model"] == architecture(MODEL)
    assert checkpoints.find(latest / "9").path == latest / "9"
    shutil.copytree(final, tmp_path / "copied")
    found = checkpoints.find(tmp_path / "copied")
    assert (found.run, found.name) == (None, "copied")
    checkpoints.load_variables(latest / "9")  # a state serves as variables


# ---------------------------------------------------------------- no space left


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


async def fill_up(*_, **__):
    no_space()


async def fill_up_later(*_, **__):
    """As the disk is full when the run goes on already."""
    return [SimpleNamespace(result=no_space)]


async def write_nothing(*_, **__):
    return []


def fill_disk(patch, fault):
    patch.setattr(ocp.StandardCheckpointHandler, "async_save", fault)
    # Its thread would wait for its folder for five minutes, and this process for the thread.
    patch.setattr(ocp.JsonCheckpointHandler, "async_save", write_nothing)


@pytest.mark.parametrize("fault", [fill_up, fill_up_later])
def test_full_disk_spares_the_old_state(fault, state, tmp_path, monkeypatch):
    save_steps(tmp_path, state, [1])
    with monkeypatch.context() as patch, pytest.raises(UserError) as error:
        fill_disk(patch, fault)
        save_steps(tmp_path, state, [2])
    message = str(error.value)
    assert "the state of step 2 could not be saved" in message and "No space left" in message
    assert "last good checkpoint is that of step 1" in message and "Free some space" in message
    assert_equal(restore(tmp_path, state)[0], at_step(state, 1))
    save_steps(tmp_path, state, [2])
    assert_equal(restore(tmp_path, state)[0], at_step(state, 2))


def test_a_full_disk_stops_the_run_at_the_next_state(state, tmp_path, monkeypatch):
    wanted = pytest.raises(UserError, match="the state of step 1 could not be saved")
    with wanted, states.open_manager(tmp_path, 5) as manager:
        with monkeypatch.context() as patch:
            fill_disk(patch, fill_up_later)
            states.save_state(manager, at_step(state, 1), meta_of())
        states.save_state(manager, at_step(state, 2), meta_of())
        pytest.fail("the next state was saved")
    assert list(checkpoints.folder(tmp_path, "latest").glob("[12]")) == []


def test_a_state_is_written_while_the_run_goes_on(state, tmp_path, monkeypatch):
    """It is a copy, absent until it is whole, and the end of the run waits for it."""
    release, save = threading.Event(), ocp.StandardCheckpointHandler.async_save
    saved = jax.tree.map(np.array, at_step(state, 1))

    async def slow(*arguments, **named):
        futures = await save(*arguments, **named)
        return [*futures, SimpleNamespace(result=lambda timeout=None: release.wait(60))]

    with monkeypatch.context() as patch:
        patch.setattr(ocp.StandardCheckpointHandler, "async_save", slow)
        with states.open_manager(tmp_path, 5) as manager:
            states.save_state(manager, saved, meta_of())
            for leaf in jax.tree.leaves(saved.variables):
                leaf[...] = 0  # as the device's memory, which the next step takes
            assert not (checkpoints.folder(tmp_path, "latest") / "1").exists()
            release.set()
    assert_equal(restore(tmp_path, state)[0], at_step(state, 1))


def test_full_disk_spares_the_old_variables(tmp_path, monkeypatch):
    variables = initial_variables(MODEL, 1)
    checkpoints.save_variables(tmp_path / "a", variables, meta_of())
    with monkeypatch.context() as patch, pytest.raises(UserError, match="No space left"):
        fill_disk(patch, fill_up)
        checkpoints.save_variables(tmp_path / "a", initial_variables(MODEL, 2), meta_of())
    assert_equal(checkpoints.load_variables(tmp_path / "a")[0], variables)
    checkpoints.save_variables(tmp_path / "a", initial_variables(MODEL, 2), meta_of())
    assert_equal(checkpoints.load_variables(tmp_path / "a")[0], initial_variables(MODEL, 2))


# ---------------------------------------------------------------- another process is gone


def lose_another(*_, **__):
    try:
        raise jax.errors.JaxRuntimeError("UNKNOWN: Gloo AllGather failed: Connection reset by peer")
    except jax.errors.JaxRuntimeError as error:
        raise ValueError("orbax could not go on") from error


async def lose_another_later(*_, **__):
    return [SimpleNamespace(result=lose_another)]


@pytest.mark.parametrize("what", ["save a state", "save variables", "read a state", "find"])
def test_a_lost_process_is_no_fault_of_the_disk(what, state, tmp_path, monkeypatch):
    """Nothing is set aside, and nobody is told to free space."""
    save_steps(tmp_path, state, [1, 2])
    final = checkpoints.folder(tmp_path, "final")
    checkpoints.save_variables(final, initial_variables(MODEL, 1), meta_of())
    act = {
        "save a state": lambda: save_steps(tmp_path, state, [3]),
        "save variables": lambda: checkpoints.save_variables(final, state.variables, meta_of()),
        "read a state": lambda: restore(tmp_path, state),
        "find": lambda: checkpoints.find_or_set_aside(final),
    }[what]
    with monkeypatch.context() as patch:
        distributed = SimpleNamespace(is_initialized=lambda: True)
        patch.setattr(several, "jax", SimpleNamespace(distributed=distributed))
        fill_disk(patch, lose_another_later)
        patch.setattr(ocp.StandardCheckpointHandler, "restore", lose_another)
        if what == "find":  # the manager of the states reads JSON of its own
            patch.setattr(ocp.JsonCheckpointHandler, "restore", lose_another)
        with said() as lines, pytest.raises(Stopped) as stopped:
            act()
    assert lines == [] and str(stopped.value) == several.GONE and stopped.value.exit_code == 1
    assert not checkpoints.folder(tmp_path, "set_aside").exists()
    assert_equal(restore(tmp_path, state)[0], at_step(state, 2))
    assert_equal(checkpoints.load_variables(final)[0], initial_variables(MODEL, 1))


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
    with said() as lines:
        started = network.initialize(MODEL, 0, str(tmp_path / "plain"))
    fresh = initial_variables(MODEL, 0)
    assert jax.tree.structure(started) == jax.tree.structure(fresh)
    for name, values in started["params"].items():
        assert_equal(values, (fresh if name.startswith("snr") else variables)["params"][name])
    assert_equal(started["batch_stats"], variables["batch_stats"])
    text = "\n".join(lines)
    new = text.split("new, at their initial values: ")[1].split(", ")
    assert len(new) == 18 and all(name.startswith(("IN", "style_reid")) for name in new)
    assert str(tmp_path / "plain") in lines[0]


def test_a_checkpoint_from_before_a_key_has_what_was_in_force(tmp_path):
    meta = meta_of(MODEL)
    del meta["model"]["exposure"]
    checkpoints.save_variables(tmp_path / "old", initial_variables(MODEL, 0), meta)
    assert checkpoints.load_variables(tmp_path / "old")[1]["model"] == architecture(MODEL)
    assert network.load(str(tmp_path / "old"))[0].exposure is False
    exposed = MODEL.clone(exposure=True)  # it may begin with the weights of one without
    started = network.initialize(exposed, 1, str(tmp_path / "old"))
    assert_equal(started["params"], initial_variables(MODEL, 0)["params"])


@pytest.mark.parametrize(
    "change, there, here",
    [
        ({"num_classes": 13}, "num_classes 13 there", "19 here"),
        ({"width": 8}, "width 8 there", "4 here"),
        ({"stage_sizes": (1, 2, 1, 1)}, "stage_sizes (1, 2, 1, 1) there", "(1, 1, 1, 1) here"),
        ({"norm_restitution": "in"}, "norm_restitution in there", "snr here"),
        ({"stride_in": "conv2"}, "stride_in conv2 there", "conv1 here"),
        ({"exposure": True}, "exposure True there", "False here"),
    ],
)
def test_another_network_is_refused(tmp_path, change, there, here):
    other = MODEL.clone(**change)
    checkpoints.save_variables(tmp_path / "a", initial_variables(other, 0), meta_of(other))
    with pytest.raises(UserError) as error:
        network.initialize(MODEL, 0, str(tmp_path / "a"))
    message = str(error.value)
    assert there in message and here in message and str(tmp_path / "a") in message
    assert "Set --config." in message or "Set '--config." in message
