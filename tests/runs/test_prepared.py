"""A run from prepared data: it may go on with what a run from files has begun, and equals it."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

from snr_jax.configs import gta2city_uda
from snr_jax.data.domains import create_domain
from snr_jax.data.prepared import spread, writing
from snr_jax.data.prepared.reading import RECORD
from snr_jax.runs import experiment
from snr_jax.workdir import checkpoints, record
from tests.commands import said

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


def test_images_that_the_size_squeezes_are_said(data_root, tmp_path, monkeypatch):
    """When they are prepared, again too, and by every run from them, for source and target."""
    monkeypatch.setattr(spread, "ProcessPoolExecutor", lambda workers, *_: ThreadPoolExecutor(1))

    def prepare(name: str, folder: str) -> list[str]:
        with said() as lines:
            writing.prepare(
                create_domain(name, data_root / folder), tmp_path, splits=["train"], size=(65, 33),
                images="png", workers=1, identify=record.identity,
            )
        return doubts(lines)

    def doubts(lines: list[str]) -> list[str]:
        return [line.partition(", /")[0] for line in lines if line.startswith("WARNING: ")]

    doubt = ("to be seen at 65x33 (height x width), 6 of 6 images are squeezed or stretched by "
             "more than 1.6")
    assert prepare("gta5", "GTA5") == [f"WARNING: gta5/train: {doubt}"]
    assert prepare("cityscapes", "Cityscapes") == [f"WARNING: cityscapes/train: {doubt}"]
    config = gta2city_uda.get_config()
    config.update_from_flattened_dict({
        "data.root": str(data_root), "data.prepared": str(tmp_path), "init_from": "",
        "source.size": (65, 33), "target.size": (65, 33),
    })

    def look() -> list[str]:
        splits = experiment.open_splits(config)
        with said() as lines:
            experiment.look({role: splits[role] for role in ("source", "target")})
        return doubts(lines)

    assert look() == [f"WARNING: {name}: {doubt}" for name in ("gta5", "cityscapes")]
    older = tmp_path / "gta5_65x33" / RECORD  # as it was before sizes were kept
    older.write_text(json.dumps({k: v for k, v in json.loads(older.read_text()).items()
                                 if k != "sizes"}))
    assert look() == [f"WARNING: cityscapes: {doubt}"]
    assert prepare("gta5", "GTA5") == [f"WARNING: gta5/train: {doubt}"]


def test_what_prepared_data_cannot_give_is_refused(prepared, refused, train_flags, tmp_path):
    def error(**overrides):
        return refused("main", *train_flags(
            ADAPT, tmp_path / "run", {"init_from": "", "data.prepared": prepared, **overrides}))

    assert "gta5 up to 50x98" in error(**{"data.scale_range": (0.5, 1.5)})
    other = {"source.size": (33, 49), "target.size": (33, 49)}
    assert f"there is no {prepared}/gta5_33x49 and no {prepared}/cityscapes_33x49" in error(**other)
    assert "holds the split train, not 'val'" in error(**{"source.train_split": "val"})
    assert not (tmp_path / "run").exists()
