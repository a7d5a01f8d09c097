"""Data that breaks, or is broken: found before the first step, and never at the state's cost."""

import json
import shutil
from pathlib import Path

import pytest

from configs import gta2city_uda
from snr_jax.runs import experiment
from snr_jax.workdir import checkpoints
from tests.commands import said

GENERALISE = "configs/gta5_dg.py"
LAST = "leftImg8bit/val/aachen/aachen_000002_000019_leftImg8bit.png"


@pytest.fixture
def own_root(data_root, tmp_path) -> Path:
    """A copy of the data, to break."""
    return shutil.copytree(data_root, tmp_path / "sets")


def cut(path: Path) -> bytes:
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return whole


def test_a_broken_validation_file_is_found_before_the_first_step(
    own_root, refused, train_flags, tmp_path
):
    path = own_root / "Cityscapes" / LAST
    cut(path)
    workdir = tmp_path / "run"
    error = refused("main", *train_flags(GENERALISE, workdir, {"data.root": own_root}))
    assert f"cityscapes: {path} is no image that can be decoded" in error
    assert not (workdir / "metrics.jsonl").exists()


def test_a_file_that_breaks_later_costs_no_step(
    own_root, refused, command, train_flags, tmp_path, monkeypatch
):
    """The validation of step 10 ends the run; mended, the same command goes on with it."""
    path, look, whole = own_root / "Cityscapes" / LAST, experiment.look, []
    workdir = tmp_path / "run"
    options = {"data.root": own_root, "num_steps": 11}
    arguments = train_flags(GENERALISE, workdir, options)

    def look_and_break(*args) -> None:
        look(*args)
        whole.append(cut(path))

    monkeypatch.setattr(experiment, "look", look_and_break)
    assert str(path) in refused("main", *arguments)
    assert (checkpoints.folder(workdir, "latest") / "10").exists()
    path.write_bytes(whole[0])
    monkeypatch.setattr(experiment, "look", look)
    assert command("main", *arguments).code == 0
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    scored = [line["step"] for line in lines if "eval/cityscapes/network/miou" in line]
    assert scored == [10, 11]
    trained = [line["step"] for line in lines if "train/loss_source" in line]
    assert trained == list(range(1, 12))


def test_warnings_are_said_once_at_the_start(own_root):
    """Shared images, and a label of another size; a target's labels are not looked at."""
    config = gta2city_uda.get_config()
    config.data.root = str(own_root)
    config.source.val_split = "train"
    config.target.train_split = "val"
    for label in (own_root / "Cityscapes/gtFine/val").glob("*/*.png"):
        label.write_bytes(b"")
    splits = experiment.open_splits(config)
    del splits["target_val"]
    with said() as lines:
        experiment.look(splits)
    assert len(lines) == 1 and "WARNING: source and source_val share 6 images" in lines[0]
