"""Sets that are called alike: names that differ, prepared data and counts that are not mixed up."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from snr_jax.core.errors import UserError
from snr_jax.core.labels import CLASSES
from snr_jax.data import rare
from snr_jax.data.domains import create_domain, distinct_names
from snr_jax.data.identity import exchanged, identity, meaning
from snr_jax.data.prepared import spread, writing
from snr_jax.data.prepared.reading import RECORD, open_prepared
from snr_jax.data.samples import list_samples
from tests.data.tiny_sets import labels_of, write_two_classes

SIZE = (17, 33)


@pytest.mark.parametrize("specs, names", [
    (["gta5", "cityscapes"], ["gta5", "cityscapes"]),
    (["/a/data.yaml"], ["data"]),
    (["/a/lake.yaml", "/a/sea.yaml"], ["lake", "sea"]),
    (["/a/data.yaml", "/b/data.yaml", "gta5"], ["a_data", "b_data", "gta5"]),
    (["/a/x/data.yaml", "/b/x/data.yaml", "/c/data.yaml"], ["a_x_data", "b_x_data", "c_data"]),
    (["gta5", "/a/gta5.yaml"], ["gta5", "a_gta5"]),
    (["/a/data.yaml", "/b/data.yaml", "/a_data.yaml"], None),
    (["/a/data.yaml", "/a/data.yml"], None),
])  # fmt: skip
def test_names_differ_and_stay_short(specs, names):
    found = distinct_names(specs)
    assert len(set(found)) == len(specs) and not any("/" in name for name in found)
    assert names is None or found == names


def test_what_is_exchanged_is_named():
    nineteen = meaning(labels_of("cityscapes"))
    assert nineteen["classes"][0] == "road" and nineteen["numbers"]["7"] == "road"
    assert len(nineteen["numbers"]) == len(CLASSES) and exchanged(nineteen, nineteen) == []
    moved = {**nineteen, "numbers": {**nineteen["numbers"], "7": "sidewalk"}}
    assert exchanged(nineteen, moved) == [
        "the number 7 in labels is road there, sidewalk now"]
    assert exchanged({}, moved) == exchanged(moved, {"images": 3}) == []  # records of before
    reversed_names = {**nineteen, "classes": nineteen["classes"][::-1]}
    assert exchanged(nineteen, reversed_names) == [
        "class 0 is road there, bicycle now", "class 1 is sidewalk there, motorcycle now",
        "class 2 is building there, train now", "15 more"]


# ---------------------------------------------------------------- prepared data


@pytest.fixture
def sets(tmp_path):
    with pytest.MonkeyPatch.context() as patch:  # a process takes seconds to start
        executor = lambda workers, *_: ThreadPoolExecutor(workers)  # noqa: E731
        patch.setattr(spread, "ProcessPoolExecutor", executor)
        for seed, name in enumerate(("source", "target")):
            write_two_classes(tmp_path / name, seed)
        yield tmp_path


def prepare(sets, name):
    return writing.prepare(create_domain(str(sets / name / "data.yaml")), sets / "out",
                           splits=["train"], size=SIZE, images="png", workers=1, identify=identity)


def opened(sets, name, **options):
    domain = create_domain(str(sets / name / "data.yaml"))
    return open_prepared(sets / "out", domain, "train", size=SIZE, classes=domain.classes,
                         **options)


def exchange_ids(path):
    path.write_text(path.read_text().replace("0: ground, 9: thing", "9: ground, 0: thing"))


@pytest.mark.parametrize("scales", [{}, {"scale_range": (0.5, 1.0)}], ids=["plain", "scales"])
def test_prepared_data_of_another_set_are_not_read(sets, scales):
    first = prepare(sets, "source")
    assert first.name == "data_17x33"
    assert opened(sets, "source", **scales)[2].folder == first
    assert opened(sets, "target", **scales) is None
    second = prepare(sets, "target")
    assert second.name == "target_data_17x33" and prepare(sets, "target") == second
    for name, folder in (("source", first), ("target", second)):
        samples, _, prepared = opened(sets, name, **scales)
        assert prepared.folder == folder
        assert samples == list_samples(create_domain(str(sets / name / "data.yaml")), "train",
                                       classes=2 * CLASSES[:1]).samples


def test_prepared_data_without_images_are_those_of_the_place(sets):
    """A set whose own files are gone is not that of another place under its name."""
    first = prepare(sets, "source")
    for name in ("source", "target"):
        shutil.rmtree(sets / name / "images")
    assert opened(sets, "source")[2].folder == first and opened(sets, "target") is None


def test_prepared_data_of_changed_files_or_numbers_are_refused(sets):
    folder = prepare(sets, "source")
    exchange_ids(sets / "source/data.yaml")
    words = "data_17x33 was not prepared from data as it is.*the number 0 in labels is ground there"
    with pytest.raises(UserError, match=words):
        opened(sets, "source")
    exchange_ids(sets / "target/data.yaml")  # of another set: nothing to do with it
    assert opened(sets, "target") is None
    write_two_classes(sets / "source", 7)
    with pytest.raises(UserError, match=r"data_17x33 was not prepared.*other content.*anew"):
        opened(sets, "source")
    assert list((sets / "out").iterdir()) == [folder]


def test_moved_files_and_folders_of_before_are_the_same_set(sets):
    folder = prepare(sets, "source")
    shutil.move(sets / "source", sets / "moved")
    assert opened(sets, "moved")[2].folder == folder and prepare(sets, "moved") == folder
    record = json.loads((folder / RECORD).read_text())
    (folder / RECORD).write_text(json.dumps(
        {key: value for key, value in record.items() if key not in ("set", "numbers")}))
    assert opened(sets, "moved")[2].folder == folder and prepare(sets, "moved") == folder
    with pytest.raises(UserError, match="other content"):  # it does not say whose it is
        opened(sets, "target")


# ---------------------------------------------------------------- class counts


def test_counts_of_two_sets_in_one_directory_differ(tmp_path):
    """The same ids, and files of the same length."""
    write_two_classes(tmp_path, 0, count=1)
    text = (tmp_path / "data.yaml").read_text()
    (tmp_path / "other.yaml").write_text(text.replace("masks/", "others/"))
    for kind, value in (("masks", 0), ("others", 9)):
        (tmp_path / kind / "train").mkdir(parents=True, exist_ok=True)
        mask = Image.fromarray(np.full((33, 65), value, np.uint8))
        mask.save(tmp_path / kind / "train/0.png", compress_level=0)

    def counts(name):
        domain = create_domain(str(tmp_path / f"{name}.yaml"))
        samples, labels, _ = list_samples(domain, "train", classes=domain.classes)
        found = rare.count_classes(samples, labels, domain.directory, show=lambda *_: None)
        return found.tolist(), os.stat(samples[0].label).st_size

    (first, size), (second, other) = counts("data"), counts("other")
    assert size == other and first == [[33 * 65, 0]] and second == [[0, 33 * 65]]
    assert counts("data")[0] == first
