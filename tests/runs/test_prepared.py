"""A run from prepared data: it may go on with what a run from files has begun, and equals it."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

from snr_jax.data.domains import create_domain
from snr_jax.data.prepared import spread, writing
from snr_jax.workdir import checkpoints, record

ADAPT = "configs/gta2city_uda.py"
SHORT = {"num_steps": 4, "checkpoint_every_steps": 2, "eval_every_steps": 4,
         "eval.num_pictures": 0, "init_from": "", "eval.max_images": 1}


@pytest.fixture(scope="module")
def prepared(data_root, tmp_path_factory):
    """Source and target at the size of the tiny runs."""
    out = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:  # a process takes seconds to start
        executor = lambda workers, *_: ThreadPoolExecutor(workers)  # noqa: E731
        patch.setattr(spread, "ProcessPoolExecutor", executor)
        for name, folder in (("gta5", "GTA5"), ("cityscapes", "Cityscapes")):
            writing.prepare(
                create_domain(name, data_root / folder), out, splits=["train"], size=(33, 65),
                images="png", workers=1, identify=record.identity,
            )
    return out


def weights(workdir) -> dict:
    return checkpoints.find(workdir / "checkpoints" / "final").meta["checksums"]


def test_a_run_goes_on_from_prepared_data(prepared, command, train_flags, tmp_path):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    result = command("main", *train_flags(ADAPT, whole, SHORT))
    assert result.code == 0, result
    shutil.copytree(whole, halves)
    for name in ("final", "best_source", "oracle_target", "latest/4"):
        shutil.rmtree(halves / "checkpoints" / name)
    result = command(
        "main", *train_flags(ADAPT, halves, {**SHORT, "data.prepared": prepared})
    )
    assert result.code == 0, result
    assert f"gta5/train: 6 images, prepared in {prepared}/gta5_33x65" in result.out
    assert f"cityscapes/train: 6 images, prepared in {prepared}/cityscapes_33x65" in result.out
    assert weights(halves) == weights(whole)
    starts = json.loads((halves / "run.json").read_text())["starts"]
    assert [start["step"] for start in starts] == [0, 2]


def test_random_scales_run_and_are_not_those_of_the_files(
    prepared, refused, command, train_flags, tmp_path
):
    scales = {**SHORT, "data.scale_range": (0.5, 1.0), "data.crop": (33, 33), "num_steps": 1}
    stored, files = tmp_path / "stored", tmp_path / "files"
    flags = train_flags(ADAPT, stored, {**scales, "data.prepared": prepared})
    assert command("main", *flags).code == 0
    assert command("main", *train_flags(ADAPT, files, scales)).code == 0
    assert weights(stored) != weights(files)
    told = refused("main", *train_flags(ADAPT, files, {**scales, "data.prepared": prepared}))
    assert "data of source.resized_from: None there, [33, 65] now" in told


def test_what_prepared_data_cannot_give_is_refused(prepared, refused, train_flags, tmp_path):
    def error(**overrides):
        return refused("main", *train_flags(
            ADAPT, tmp_path / "run", {"init_from": "", "data.prepared": prepared, **overrides}))

    assert "gta5 up to 50x98" in error(**{"data.scale_range": (0.5, 1.5)})
    other = {"source.size": (33, 49), "target.size": (33, 49)}
    assert f"there is no {prepared}/gta5_33x49 and no {prepared}/cityscapes_33x49" in error(**other)
    assert "holds the split train, not 'val'" in error(**{"source.train_split": "val"})
    assert not (tmp_path / "run").exists()
