"""Data that breaks, or is broken: found before the first step, and never at the state's cost."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from snr_jax.configs import gta2city_uda, gta5_dg
from snr_jax.core.errors import UserError
from snr_jax.data.domains import create_domain
from snr_jax.data.prepared import spread, writing
from snr_jax.runs import experiment
from snr_jax.workdir import checkpoints, record
from tests.commands import said
from tests.data.tiny_sets import write_masks

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


def masks_config(spec: str, **changes) -> ConfigDict:
    config = gta5_dg.get_config()
    config.num_classes, config.target.val_split, config.source.domain = 2, "", spec
    config.update_from_flattened_dict({"source.size": (20, 40), **changes})
    return config


def test_labels_that_teach_one_class_end_a_run_at_its_start(tmp_path, monkeypatch):
    """From files and from prepared data; named as the refusal says, they are good."""
    monkeypatch.setattr(spread, "ProcessPoolExecutor",
                        lambda workers, *_: ThreadPoolExecutor(workers))
    for name, ids in (("bare", ""), ("named", "{0: background, 255: target}")):
        spec, out = write_masks(tmp_path / name, ids=ids), str(tmp_path / f"{name}_prepared")
        writing.prepare(create_domain(spec), out, splits=["train"], size=(20, 40), images="raw",
                        workers=1, identify=record.identity)
        for prepared in ("", out):
            splits = experiment.open_splits(masks_config(spec, **{"data.prepared": prepared}))
            assert bool(splits["source"].prepared) == bool(prepared)
            if ids:
                with said() as lines:
                    experiment.look(splits)
                assert lines == []
            else:
                with pytest.raises(UserError, match=r"one class alone, background.*key ids"):
                    experiment.look(splits)


def test_exchanged_height_and_width_are_told_at_the_start(tmp_path):
    splits = experiment.open_splits(masks_config(
        write_masks(tmp_path), **{"source.size": (40, 20)}))
    with said() as lines:
        experiment.look(splits)
    assert len(lines) == 2  # the source and its validation
    for line in lines:
        assert line.startswith("WARNING: set: to be seen at 40x20 (height x width), 4 of 4 images")
