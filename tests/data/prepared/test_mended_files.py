"""Prepared data and faults of the files: what is refused, and what goes on after the mend."""

import re
import shlex
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts import prepare_data
from snr_jax.core.errors import UserError
from snr_jax.data.domains import create_domain
from snr_jax.data.identity import identity
from snr_jax.data.prepared import spread, writing
from snr_jax.data.splits import Split, open_split
from tests.data.tiny_sets import write_two_classes

SIZE = (33, 65)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """That of a set of five pairs, of which two make a shard."""
    executor = lambda workers, *_: ThreadPoolExecutor(workers)  # noqa: E731
    monkeypatch.setattr(spread, "ProcessPoolExecutor", executor)  # a process takes seconds to start
    monkeypatch.setattr(writing, "SHARD_IMAGES", 2)
    write_two_classes(tmp_path / "set", 0, count=5)
    return tmp_path


def domain(folder):
    return create_domain(str(folder / "set/data.yaml"))


def mask(folder, number) -> Path:
    return folder / f"set/masks/train/{number}.png"


def prepare(folder, **options) -> Path:
    keywords = {"splits": ["train"], "size": SIZE, "images": "png", "workers": 1,
                "identify": identity} | options
    return writing.prepare(domain(folder), folder / "out", **keywords)


def refusal(folder, **options) -> str:
    with pytest.raises(UserError) as refused:
        prepare(folder, **options)
    return str(refused.value)


def opened(folder, **options) -> Split:
    return open_split(domain(folder), "train", size=SIZE, classes=domain(folder).classes,
                      prepared_in=str(folder / "out"), **options)


def break_mask(folder, number) -> bytes:
    """The content that it had."""
    content = mask(folder, number).read_bytes()
    mask(folder, number).write_bytes(b"no image")
    return content


def name_number(folder) -> None:
    path = folder / "set/data.yaml"
    path.write_text(path.read_text().replace("9: thing", "9: thing, 5: thing"))


def exchange_ids(folder) -> None:
    path = folder / "set/data.yaml"
    path.write_text(path.read_text().replace("0: ground, 9: thing", "9: ground, 0: thing"))


# ---------------------------------------------------------------- labels that are missing


def test_a_split_with_some_labels_is_refused_before_anything_is_written(folder):
    kept = {number: mask(folder, number).read_bytes() for number in (1, 3)}
    for number in kept:
        mask(folder, number).unlink()
    assert refusal(folder).startswith(
        f"data/train: 2 of 5 images have no label, the first would be {mask(folder, 1)}. Put the "
        "labels there, or ")
    assert not (folder / "out").exists()
    for number, content in kept.items():
        mask(folder, number).write_bytes(content)
    prepare(folder)
    assert "pairs" in opened(folder).prepared.identities


def test_a_source_without_labels_is_refused_with_the_command_that_mends_it(folder):
    shutil.move(folder / "set/masks/train", folder / "kept")
    out = prepare(folder)
    assert opened(folder, require_labels=False).samples[0].label is None  # a target may lack them
    words = "data_33x65 holds no labels of the split 'train'"
    with pytest.raises(UserError, match=words):
        opened(folder)
    shutil.move(folder / "kept", folder / "set/masks/train")
    with pytest.raises(UserError, match=words) as refused:
        opened(folder)
    assert "different: train has masks/train/0.png now alone" in refusal(folder)
    shutil.rmtree(out)
    assert prepare_data.main(shlex.split(str(refused.value).partition("anew: python ")[2])) == 0
    assert opened(folder).prepared.folder == out


# ---------------------------------------------------------------- mended files and their YAML


def stored_label(split, index) -> np.ndarray:
    return split.prepared.reader(True)(np.int64(index), False)["label"].numpy()


def test_without_a_whole_shard_it_is_begun_anew(folder):
    """Whatever has changed: the file that was broken, what its numbers mean, the arguments."""
    content = break_mask(folder, 0)
    assert "masks/train/0.png" in refusal(folder)
    partial = folder / "out/data_33x65.partial"
    left = partial / "snr_jax-train.array_record-00000-of-00009"  # without a note: not whole
    left.write_bytes(b"of other shards")
    assert not any(partial.glob("snr_jax-*.json"))
    mask(folder, 0).write_bytes(content)
    name_number(folder)
    path = prepare(folder, images="raw")
    assert not partial.exists() and not (path / left.name).exists()
    assert opened(folder).prepared.identities["pairs"] == identity(opened(folder).samples)


def test_a_shard_of_a_changed_file_is_made_anew_and_the_others_are_kept(folder):
    content = break_mask(folder, 4)
    assert "masks/train/4.png" in refusal(folder)
    partial = folder / "out/data_33x65.partial"
    names = [f"snr_jax-train.array_record-{number:05d}-of-00003" for number in range(3)]
    assert [(partial / f"{name}.json").exists() for name in names] == [True, True, False]
    kept = (partial / names[1]).stat().st_mtime_ns
    mask(folder, 4).write_bytes(content)
    changed = np.full((33, 65), 9, np.uint8)
    changed[:, :7] = 0
    Image.fromarray(changed).save(mask(folder, 1))
    path = prepare(folder)
    assert (path / names[1]).stat().st_mtime_ns == kept
    split = opened(folder)
    assert np.array_equal(stored_label(split, 1), changed)
    assert split.prepared.identities["pairs"] == identity(split.samples)


def test_what_a_folder_with_whole_shards_has_of_others_is_said_in_words(folder):
    content = break_mask(folder, 4)
    refusal(folder)
    mask(folder, 4).write_bytes(content)
    assert "images is png there, raw now" in refusal(folder, images="raw")
    assert "splits are train there, train,val now" in refusal(folder, splits=["train", "val"])
    exchange_ids(folder)
    told = refusal(folder)
    assert re.search(r"data_33x65.partial holds other data \(different: the number 0 in labels is "
                     r"ground there, thing now; .*\)\. Choose another --out, or remove it", told)


def test_what_a_finished_folder_has_of_others_is_said_in_words(folder):
    out = prepare(folder)
    image = Image.open(mask(folder, 0)).transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    image.save(mask(folder, 0))
    assert f"{out} holds other data (different: {mask(folder, 0)})" in refusal(folder)
    for kind in ("images", "masks"):
        shutil.copy(folder / f"set/{kind}/train/0.png", folder / f"set/{kind}/train/7.png")
    assert "different: train has masks/train/7.png now alone" in refusal(folder)


def test_classes_of_colours_in_another_order_are_other_data(folder):
    """A colour is stored as the place of its class, so the stored labels would be exchanged."""
    for label in (folder / "set/masks/train").iterdir():
        Image.open(label).convert("RGB").save(label)
    path = folder / "set/data.yaml"
    text = path.read_text().partition("ids:")[0]
    path.write_text(text + "label_colors: {ground: [0, 0, 0], thing: [9, 9, 9]}\n")
    prepare(folder)
    assert opened(folder).prepared
    path.write_text(path.read_text().replace("ground: , thing: ", "thing: , ground: "))
    with pytest.raises(UserError, match=r"not prepared from data.*class 0 is ground there, thing"):
        opened(folder)
    assert "different: class 0 is ground there, thing now; class 1 " in refusal(folder)
