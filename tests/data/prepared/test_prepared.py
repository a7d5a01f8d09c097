"""Prepared data: what they hold, what a kill leaves, and that a stream from them is the files'."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from scripts import prepare_data
from snr_jax.core.errors import UserError
from snr_jax.core.labels import IGNORE
from snr_jax.data.domains import DOMAINS, create_domain
from snr_jax.data.faults.look import look_at_prepared
from snr_jax.data.pipeline import train_batches
from snr_jax.data.prepared import spread, writing
from snr_jax.data.prepared.reading import RECORD, open_prepared
from snr_jax.data.samples import list_samples
from snr_jax.workdir import record
from tests.commands import PATTERN
from tests.data.tiny_sets import write_cityscapes, write_gta5

ROOT = Path(__file__).resolve().parents[3]
SIZE = (12, 20)  # half of the files': mirroring before and after the nearest resize differ
GTA5 = DOMAINS["gta5"]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_gta5(tmp_path_factory.mktemp("files"), ids=range(1, 8))


@pytest.fixture(scope="module", autouse=True)
def threads():
    """In the place of processes, which take seconds to start; `test_after_a_kill` has them."""
    with pytest.MonkeyPatch.context() as patch:
        executor = lambda workers, *_: ThreadPoolExecutor(workers)  # noqa: E731
        patch.setattr(spread, "ProcessPoolExecutor", executor)
        yield


def prepare(root, out, **options) -> Path:
    keywords = {"splits": ["train"], "size": SIZE, "images": "raw", "workers": 1,
                "identify": record.identity} | options
    return writing.prepare(create_domain("gta5", root), out, **keywords)


@pytest.fixture(scope="module", params=writing.IMAGE_KINDS)
def folder(threads, root, request, tmp_path_factory) -> Path:
    """A folder of prepared data with three shards, read-only for the tests."""
    out = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "SHARD_IMAGES", 3)
        prepare(root, out, images=request.param)
    return out


def opened(folder, root="elsewhere", split="train", size=SIZE):
    return open_prepared(folder, create_domain("gta5", root), split, size=size, classes=19)


def batches(samples, labels, count=9, **options) -> list[dict]:
    keywords = {"size": SIZE, "batch_size": 2, "seed": 3} | options
    return list(itertools.islice(train_batches(samples, labels, **keywords), count))


@pytest.mark.parametrize("options", [
    {}, {"start_step": 5}, {"crop": (7, 9)}, {"crop": (16, 24)}, {"with_labels": False},
    {"shard_index": 1, "shard_count": 2},
], ids=str)  # fmt: skip
def test_the_stream_is_that_of_the_files(folder, root, options):
    files = list_samples(create_domain("gta5", root), "train")
    samples, labels, prepared = opened(folder, root)
    assert samples == files.samples and labels.layout == files.labels.layout
    expected = batches(files.samples, files.labels, **options)
    found = batches(*opened(folder)[:2], prepared=prepared, **options)  # needs no file
    assert len(found) == len(expected) == 9
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            assert one[key].dtype == other[key].dtype and np.array_equal(one[key], other[key])


def test_in_a_folder_that_is_a_pattern(root, tmp_path):
    prepare(root, tmp_path / PATTERN)
    samples, labels, prepared = opened(tmp_path / PATTERN, root)
    expected = batches(samples, labels)
    for one, other in zip(batches(samples, labels, prepared=prepared), expected, strict=True):
        assert all(np.array_equal(one[key], other[key]) for key in other)


def test_the_record_of_a_run_is_that_of_the_files(folder, root):
    _, _, prepared = opened(folder)
    files = list_samples(create_domain("gta5", root), "train").samples
    assert prepared.identities["pairs"] == record.identity(files)
    assert prepared.identities["images"] == record.identity(files, labels=False)
    assert prepared.identities["pairs"] != prepared.identities["images"]


def test_tfds_reads_it(folder, root):
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(folder / "gta5_12x20")
    samples = list_samples(create_domain("gta5", root), "train").samples
    assert builder.info.splits["train"].num_examples == len(samples)
    found = builder.as_data_source("train")
    assert [example["id"].decode() for example in found] == [sample.id for sample in samples]
    assert found[0]["image"].shape == (*SIZE, 3) and found[0]["label"].shape == (*SIZE, 1)


def test_a_set_without_labels(tmp_path):
    root = write_cityscapes(tmp_path, 3, "train", labels=False)
    city = create_domain("cityscapes", root)
    writing.prepare(city, tmp_path / "out", splits=["train"], size=SIZE, images="raw", workers=1,
                    identify=record.identity)
    samples, labels, prepared = open_prepared(
        tmp_path / "out", city, "train", size=SIZE, classes=19)
    files = list_samples(create_domain("cityscapes", root), "train", require_labels=False)
    assert samples == files.samples
    expected = batches(files.samples, files.labels, with_labels=False)
    found = batches(samples, labels, with_labels=False, prepared=prepared)
    assert all(np.array_equal(a["image"], b["image"]) for a, b in zip(found, expected, strict=True))
    with pytest.raises(UserError, match="3 of 3 images have no label"):
        batches(samples, labels, prepared=prepared)


def test_another_size_or_split_is_not_there(folder):
    assert opened(folder, size=(24, 40)) is None
    with pytest.raises(UserError, match="holds the split train, not 'val'"):
        opened(folder, split="val")
    samples, labels, prepared = opened(folder)
    with pytest.raises(ValueError, match="prepared data of"):
        batches(samples, labels, prepared=prepared, size=(24, 40))


SCALES = {"scale_range": (0.5, 2.0), "crop": (14, 22)}  # of SIZE, up to the files' own 24x40


@pytest.fixture(scope="module")
def whole_size(root, threads, tmp_path_factory) -> Path:
    """Prepared at the files' own size and, smaller, at the size of training."""
    out = tmp_path_factory.mktemp("scales")
    for size in ((24, 40), SIZE):
        prepare(root, out, size=size, images="png")
    return out


def test_random_scales_are_those_of_the_files_where_these_are_stored_whole(whole_size, root):
    """Mirrored before the nearest resize, too: at even ratios the order shows."""
    files = list_samples(create_domain("gta5", root), "train")
    samples, labels, prepared = opened_scaled(whole_size, SCALES["scale_range"])
    assert prepared.size == (24, 40)
    found = batches(samples, labels, prepared=prepared, **SCALES)
    for one, other in zip(found, batches(files.samples, files.labels, **SCALES), strict=True):
        assert all(np.array_equal(one[key], other[key]) for key in ("image", "label"))


def test_at_factor_one_nothing_is_resized_twice(folder, root):
    """A mirrored label is the one that was stored mirrored."""
    files = list_samples(create_domain("gta5", root), "train")
    samples, labels, prepared = opened_scaled(folder, (1.0, 1.0))
    found = batches(samples, labels, prepared=prepared, scale_range=(1.0, 1.0))
    for one, other in zip(found, batches(files.samples, files.labels), strict=True):
        assert all(np.array_equal(one[key], other[key]) for key in ("image", "label"))


def test_random_scales_of_a_smaller_size_are_near_those_of_the_files(whole_size, root):
    options = {"scale_range": (0.6, 1.0), "crop": (12, 20)}
    files = list_samples(create_domain("gta5", root), "train")
    samples, labels, prepared = opened_scaled(whole_size, options["scale_range"])
    assert prepared.size == SIZE  # the smallest that reaches the upper end
    found = batches(samples, labels, prepared=prepared, **options)
    expected = batches(files.samples, files.labels, **options)
    for one, other in zip(found, expected, strict=True):
        # The same sides, mirrored alike, cut at the same places; only resized in two steps.
        assert one["image"].shape == other["image"].shape
        assert np.abs(one["image"].astype(int) - other["image"]).mean() < 6
        assert ((one["label"] == IGNORE) | np.isin(one["label"], other["label"])).all()
    assert any((a["image"] != b["image"]).any() for a, b in zip(found, expected, strict=True))


def test_a_scale_beyond_what_is_stored_is_refused(whole_size, folder):
    words = (r"up to 30x50 \(height x width\).* holds 12x20, 24x40: up to 2 times"
             r".*--domain gta5 --size 30,50")
    with pytest.raises(UserError, match=words):
        opened_scaled(whole_size, (0.5, 2.5))
    assert opened_scaled(folder / "elsewhere", (0.5, 1.0)) is None


def test_scaled_pixels_are_other_data_for_the_record_of_a_run(whole_size, folder):
    plain, scaled = opened(folder)[2], opened_scaled(whole_size, (0.5, 2.0))[2]
    assert scaled.identities["pairs"] == plain.identities["pairs"] | {"resized_from": [24, 40]}


def opened_scaled(folder, scale_range):
    return open_prepared(folder, create_domain("gta5", "elsewhere"), "train", size=SIZE,
                         classes=19, scale_range=scale_range)


def test_a_changed_shard_is_found(root, tmp_path):
    path = prepare(root, tmp_path)
    (shard,) = path.glob("*.array_record-*")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match="does not agree with its checksum"):
        prepare(root, tmp_path)
    samples, labels, prepared = opened(tmp_path)
    with pytest.raises(UserError, match="record of the split 'train' cannot be read"):
        look_at_prepared(prepared, len(samples), labels)
    shard.write_bytes(content[:-1])
    with pytest.raises(UserError, match=f"{shard.name} is missing or not whole"):
        opened(tmp_path)
    shard.write_bytes(bytes(len(content)))
    with pytest.raises(UserError, match="record of the split 'train' cannot be read"):
        samples, labels, prepared = opened(tmp_path)
        batches(samples, labels, prepared=prepared)
    (path / RECORD).write_text("{}")
    with pytest.raises(UserError, match="cannot be read"):
        opened(tmp_path)


@pytest.mark.parametrize("options", [{"images": "png"}, {"splits": ["all"]}], ids=str)
def test_other_arguments_are_refused(root, tmp_path, options):
    path = prepare(root, tmp_path)
    before = {file: file.stat().st_mtime_ns for file in path.iterdir()}
    with pytest.raises(UserError, match="holds other data"):
        prepare(root, tmp_path, **options)
    prepare(root, tmp_path)  # the same: nothing is done
    assert before == {file: file.stat().st_mtime_ns for file in path.iterdir()}


@pytest.mark.parametrize("sides", [
    "32,65", "33,32", "8193,65", "33,8193", "0,65", "-33,65", "33", "33,65,3", "33,x", "33.5,65",
])
def test_sides_that_no_image_may_have(sides, tmp_path, capsys):
    argv = ["prepare_data", "--domain=gta5", f"--dir={tmp_path}", f"--out={tmp_path}/out"]
    assert prepare_data.main([*argv, f"--size={sides}"]) == 2
    assert capsys.readouterr().err == (
        f"error: --size is {sides}; expected HEIGHT,WIDTH, 2 whole numbers, 33 to 8192, as "
        "--size 720,1280\n")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("sides", ["33,8192", "8192,33"])
def test_sides_at_the_bounds(sides, tmp_path, capsys):
    argv = ["prepare_data", "--domain=gta5", f"--dir={tmp_path}", f"--out={tmp_path}/out"]
    assert prepare_data.main([*argv, f"--size={sides}"]) == 2
    assert "--size" not in (told := capsys.readouterr().err) and str(tmp_path) in told


def test_no_split_is_refused(root, tmp_path):
    with pytest.raises(UserError, match="no split is named"):
        prepare(root, tmp_path, splits=[])
    assert list(tmp_path.iterdir()) == []


def test_a_broken_file_is_named_and_nothing_gets_the_final_name(tmp_path):
    root = write_gta5(tmp_path)
    (root / "labels/00003.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"labels/00003.png is no label image"):
        prepare(root, tmp_path / "out")
    assert not (tmp_path / "out/gta5_12x20").exists()


def test_on_beam_the_same_records_are_made(root, tmp_path, monkeypatch):
    pytest.importorskip("apache_beam", reason="optional: requirements-beam.txt")
    monkeypatch.setattr(writing, "SHARD_IMAGES", 3)
    beam = spread.Beam("DirectRunner", ["direct_num_workers=1"])
    for name, how in (("beam", {"beam": beam}), ("processes", {})):
        assert len(list(prepare(root, tmp_path / name, **how).glob("*.array_record-*"))) == 3
    streams = [batches(*opened(tmp_path / name)[:2], prepared=opened(tmp_path / name)[2])
               for name in ("beam", "processes")]
    for one, other in zip(*streams, strict=True):
        assert all(np.array_equal(one[key], other[key]) for key in one)


def test_a_pipeline_that_fails_is_one_line(root, tmp_path):
    pytest.importorskip("apache_beam", reason="optional: requirements-beam.txt")
    with pytest.raises(UserError, match=r"Beam's NoRunner failed: .*The same command goes on"):
        prepare(root, tmp_path, beam=spread.Beam("NoRunner"))


def test_without_beam_the_requirement_is_named(root, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)  # as if it were not installed
    with pytest.raises(UserError, match=r"pip install -r requirements-beam\.txt"):
        prepare(root, tmp_path, beam=spread.Beam("DirectRunner"))


def test_workers_elsewhere_are_noticed(root, tmp_path, monkeypatch):
    """On a file system of their own they leave nothing here."""
    monkeypatch.setattr(writing, "_write_shard", lambda shard: 7)
    with pytest.raises(UserError, match=r"array_record-00000-of-00001 is not there.*all of them"):
        prepare(root, tmp_path)


def test_too_little_space_is_said_before(root, tmp_path, monkeypatch):
    usage = writing.shutil._ntuple_diskusage(10, 10, 1000)
    monkeypatch.setattr(writing.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"GB are needed and 0\.0 GB are free"):
        prepare(root, tmp_path)
    assert not list(tmp_path.rglob("*.array_record*"))


@pytest.mark.parametrize("asked", [signal.SIGKILL, signal.SIGTERM], ids=str)
def test_after_a_kill_the_rest_is_made(tmp_path, asked):
    root = write_gta5(tmp_path, ids=range(1, 161), height=240, width=400)
    out = tmp_path / "out"
    command = [sys.executable, "scripts/prepare_data.py", "--domain=gta5", f"--dir={root}",
               f"--out={out}", "--size=120,200", "--workers=1", "--splits=all"]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
                               text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    partial = out / "gta5_120x200.partial"
    while not (notes := list(partial.glob("*-of-00005.json"))) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(asked)
    told = process.communicate()[1]
    if asked == signal.SIGTERM:
        assert process.returncode == 143 and told.endswith(f"the same command goes on in {out}\n")
    assert notes and partial.exists() and not (out / "gta5_120x200").exists()
    whole = {note.name.removesuffix(".json"): os.stat(str(note).removesuffix(".json")).st_mtime_ns
             for note in notes}
    assert 0 < len(whole) < 5
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
                          text=True, capture_output=True, check=True)
    assert "of 160 images are there from an earlier start" in done.stdout
    final = out / "gta5_120x200"
    assert {name: (final / name).stat().st_mtime_ns for name in whole} == whole
    assert not list(final.glob("*.tmp")) and not partial.exists()
    assert len(json.loads((final / RECORD).read_text())["shards"]) == 5
    files = list_samples(create_domain("gta5", root), "all")
    samples, labels, prepared = open_prepared(
        out, create_domain("gta5", root), "all", size=(120, 200), classes=19)
    pairs = zip(batches(samples, labels, 80, size=(120, 200), prepared=prepared),
                batches(files.samples, files.labels, 80, size=(120, 200)), strict=True)
    assert all(np.array_equal(one[key], other[key]) for one, other in pairs for key in one)
