"""The training command and mistakes in it: one line that says how to mend it, and code 2."""

import shutil

import numpy as np
import pytest
from PIL import Image

from snr_jax.core.models.backbone import architecture
from snr_jax.core.models.deeplab import DeepLab
from snr_jax.core.state import initial_variables
from snr_jax.workdir import checkpoints

DG, UDA = "configs/gta5_dg.py", "configs/gta2city_uda.py"


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((), "--config is missing; for instance --config configs/gta5_dg.py"),
        (("--config", "configs/none.py"), "there is no file configs/none.py"),
        (("--config", "configs/none.py", "--config.seed=1"), "there is no file configs/none.py"),
        (("--config", "configs"), "there is no file configs"),
        (("--config.seed=1",), "--config.seed is a key of no configuration"),
        (("--config", f"{DG}:papre"), "'papre'; there are paper, release, standard"),
        (("--config", DG, "--config.optimizer.base_rat=1"), "Did you mean 'optimizer.base_rate'?"),
        (("--config", DG, "--config.nun_steps=1"), "Did you mean 'num_steps'?"),
        (("--config", DG, "--config.model.widht=1"), "no key 'model.widht'. Did you mean"),
        (("--config", DG, "--config.data.scale-range="), "Did you mean 'data.scale_range'?"),
        (("--config", DG, "--config.base_rate=1"), "Did you mean 'optimizer.base_rate'?"),
        (("--config", DG, "--config.model=x"), "no key 'model'"),
        (("--config", DG, "--config.batch_size=two"),
         "batch_size is 'two'; expected a whole number, 1 to 4096"),
        (("--config", DG, "--config.batch_size"), "batch_size has no value; expected a whole"),
        (("--config", DG, "--config.batch_size", "--config.seed=1"), "batch_size has no value"),
        (("--config", DG, "--config.optimizer.base_rate=fast"), "base_rate is 'fast'; expected a"),
        (("--config", DG, "--config.data.crop=(8,"), "data.crop is '(8,'; expected 2 whole"),
        (("--config", DG, "--config.data.crop=x.y"), "data.crop is 'x.y'; expected 2 whole"),
        (("--config", DG, "--config.data.root="), "data.root is ''; expected a text that is not e"),
        (("--config", DG, "--workdir=W", "--config.source.size=720"), "source.size is (720,)"),
        (("--config", DG, "--config.freeze_bn=perhaps"),
         "freeze_bn is 'perhaps'; expected True or False"),
        (("--config", DG, "--workdri=x"), "workdri"),
        (("--config", DG, "runs/x"), "unexpected argument 'runs/x'"),
        (("--config", DG, "--workdir=W", "--config.loss.target=maxsquar"), "iw_maxsquare, "),
        (("--config", DG, "--workdir=W", "--config.num_classes=20"), "19, 16 or 13"),
        (("--config", DG, "--workdir=W", "--config.num_steps=0"), "num_steps is 0"),
        (("--config", DG, "--workdir=W", "--config.recipe=release"), f"--config {DG}:release"),
        (("--config", f"{DG}:paper", "--config.recipe", "release"), f"--config {DG}:release"),
        (("--config", DG, "--config.optimizer.base_rate=nan"), "optimizer.base_rate is nan"),
        (("--config", DG, "--config.optimizer.weight_decay=nan"), "optimizer.weight_decay is nan"),
        (("--config", DG, "--config.batch_size=2.5"), "batch_size is '2.5'"),
        (("--config", DG, "--config.seed=-1"), "seed is -1"),
        (("--config", DG, "--config.seed", "-1"), "seed is -1"),
        (("--config", DG, "--config.data.crop=(8,8)"), "data.crop is (8, 8)"),
        (("--config", DG, "--config.data.crop", "(65,65)", "--config.data.crop", "(8,9)"),
         "data.crop is (8, 9)"),
        (("--config", DG, "--config.data.crop=(65,65)", "--config.data.crop=(8,9)"),
         "data.crop is (8, 9)"),
        (("--config", DG, "--config.source.size=65", "--config.source.size=129"),
         "source.size is (129,)"),
    ],
)
def test_mistaken_flags(arguments, words, refused, tmp_path):
    arguments = [a.replace("--workdir=W", f"--workdir={tmp_path}/w") for a in arguments]
    assert words in refused("main", *arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text, words",
    [
        ("x = 1\n", "has no function get_config that returns a ConfigDict"),
        ("def get_config(:\n", "SyntaxError: "),
        ("import nothing_of_that_name\n", "No module named 'nothing_of_that_name'"),
        ("def get_config():\n    return 1 / 0\n", "ZeroDivisionError: division by zero ("),
        ("def get_config():\n    return open('/none')\n", "No such file or directory: '/none'"),
        ("def get_config():\n    pass\n", "has no function get_config that returns a ConfigDict"),
    ],
)
def test_file_that_is_no_configuration(text, words, refused, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(text)
    for more in ((), ("--config.seed=1",)):
        error = refused("main", "--config", path, "--workdir", tmp_path / "w", *more)
        assert error.startswith("error: --config") and words in error


def test_missing_data(refused, train_flags, tmp_path):
    error = refused("main", *train_flags(DG, tmp_path / "w", {"data.root": tmp_path}))
    assert f"there is no directory {tmp_path}/GTA5" in error
    assert "Set config.data.root to the folder that holds GTA5/" in error


def test_empty_split(refused, train_flags, data_root, tmp_path):
    shutil.copytree(data_root, tmp_path / "sets")
    shutil.rmtree(tmp_path / "sets/Cityscapes/leftImg8bit/val")
    shutil.rmtree(tmp_path / "sets/Cityscapes/gtFine/val")
    flags = {"data.root": tmp_path / "sets"}
    error = refused("main", *train_flags(DG, tmp_path / "w", flags))
    assert "the split 'val'" in error and "Cityscapes is empty" in error
    assert "leftImg8bit/<split>/*/*_leftImg8bit.png" in error
    (tmp_path / "sets/GTA5/train.txt").write_text("")
    assert "the split 'train'" in refused("main", *train_flags(DG, tmp_path / "w", flags))


def test_source_without_labels(refused, train_flags, data_root, tmp_path):
    shutil.copytree(data_root, tmp_path / "sets")
    (tmp_path / "sets/GTA5/labels/00002.png").unlink()
    error = refused("main", *train_flags(DG, tmp_path / "w", {"data.root": tmp_path / "sets"}))
    assert "1 of 6 labels are missing" in error and "labels/00002.png" in error


def out_of_range(root):
    path = root / "GTA5/labels/00003.png"
    ids = np.array(Image.open(path))
    ids[5, 6] = 99
    Image.fromarray(ids).save(path)
    return f"{path} holds the label ids 99, which gta5 does not define"


def no_image(root):
    path = root / "GTA5/images/00004.png"
    path.write_text("not found")
    return f"{path} is no image that can be decoded"


def other_size(root):
    path = root / "GTA5/images/00005.png"
    Image.open(path).resize((60, 40)).save(path)
    return f"{root}/GTA5/labels/00005.png is 72x40 and its image {path} 60x40"


def link_to_nowhere(root):
    path = root / "GTA5/labels/00003.png"
    path.unlink()
    path.symlink_to(root / "elsewhere.png")
    return f"{path} cannot be read: No such file or directory"


@pytest.mark.parametrize("spoil", [out_of_range, no_image, other_size, link_to_nowhere])
def test_broken_files_are_named(spoil, refused, train_flags, data_root, tmp_path):
    shutil.copytree(data_root, tmp_path / "sets")
    words = spoil(tmp_path / "sets")
    # The look at the start sees the headers of all and the pixels of up to sixteen.
    flags = {"data.root": tmp_path / "sets"}
    assert words in refused("main", *train_flags(DG, tmp_path / "w", flags))
    assert not checkpoints.folder(tmp_path / "w", "final").exists()


@pytest.mark.parametrize(
    "change, words",
    [
        ({"num_classes": 16}, "num_classes 16 there, 19 here"),
        ({"stage_sizes": (1, 2, 1, 1)}, "stage_sizes (1, 2, 1, 1) there, (1, 1, 1, 1) here"),
    ],
)
def test_initial_values_of_another_network(change, words, refused, train_flags, tmp_path):
    model = DeepLab(**{"stage_sizes": (1, 1, 1, 1), "width": 4, **change})
    meta = {"model": architecture(model), "source": {}}
    checkpoints.save_variables(tmp_path / "other", initial_variables(model, 0), meta)
    flags = train_flags(UDA, tmp_path / "w", {"init_from": tmp_path / "other"})
    error = refused("main", *flags)
    assert words in error and str(tmp_path / "other") in error


def test_initial_values_from_nowhere(refused, train_flags, tmp_path):
    flags = train_flags(UDA, tmp_path / "w", {"init_from": tmp_path / "nothing"})
    assert f"{tmp_path}/nothing holds no checkpoint" in refused("main", *flags)


def test_workdir_that_cannot_be_written(refused, train_flags, tmp_path):
    (tmp_path / "file").write_text("")
    for workdir in (tmp_path / "file", tmp_path / "file" / "run"):
        error = refused("main", *train_flags(DG, workdir))
        assert f"{workdir}: " in error and "Choose another folder" in error


def test_in_a_process_of_its_own(process, train_flags, tmp_path):
    """The exit code and the two streams as a shell sees them."""
    running = process("main", *train_flags(DG, tmp_path / "w", {"data.root": tmp_path}))
    out, err = running.communicate(timeout=300)
    assert running.returncode == 2 and out == ""
    assert err.startswith("error: gta5: there is no directory") and err.count("\n") == 1


# ---------------------------------------------------------------- a run that has ended


@pytest.fixture
def ended(generalised, tmp_path):
    """A copy of the finished run, and its command."""
    shutil.copytree(generalised.workdir, tmp_path / "run")
    return tmp_path / "run", generalised.arguments_in(tmp_path / "run")


def test_a_final_that_is_gone_is_made_anew(ended, command):
    workdir, arguments = ended
    final = checkpoints.folder(workdir, "final")
    before, meta = checkpoints.load_variables(final)
    shutil.rmtree(final / "variables")
    result = command("main", *arguments)
    assert result.code == 0 and "cannot be read: of " in result.out
    assert (checkpoints.folder(workdir, "set_aside") / "final-1/meta").is_dir()
    after, again = checkpoints.load_variables(final)
    assert str(again["scores"]) == str(meta["scores"])
    assert (after["params"]["conv1"]["kernel"] == before["params"]["conv1"]["kernel"]).all()
    assert "is complete since step 20" in command("main", *arguments).out


def test_a_final_that_nothing_can_make_anew(ended, refused):
    workdir, arguments = ended
    final = checkpoints.folder(workdir, "final")
    shutil.rmtree(final / "variables")
    shutil.rmtree(checkpoints.folder(workdir, "latest"))
    error = refused("main", *arguments)
    assert f"is complete, but {final} cannot be read: of " in error
    assert "Put a copy back, use its best_source, or choose another --workdir" in error
    assert (final / "meta").is_dir()


def test_a_run_is_lengthened(ended, command, refused):
    workdir, arguments = ended
    more = [*arguments, "--config.num_steps=22", "--config.optimizer.schedule_steps=22"]
    assert "or add --lengthen" in refused("main", *more)
    result = command("main", *more, "--lengthen")
    assert result.code == 0 and "lengthened        from 20 to 22 steps" in result.out
    assert "learning rate     jumps at step 20 from 0 to 0." in result.out
    assert checkpoints.find(workdir).step == 22
    assert "is complete since step 22" in command("main", *more).out
