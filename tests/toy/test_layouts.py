"""Every layout is written and read back: by its domain, the look, and both streams of batches."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from snr_jax.core import labels
from snr_jax.core.errors import UserError
from snr_jax.data import decode, pipeline
from snr_jax.data.decode import tf
from snr_jax.data.domains import DOMAINS, create_domain
from snr_jax.data.faults.look import look
from snr_jax.data.samples import list_samples
from snr_jax.toy import layouts, writer
from snr_jax.toy.layouts import FIRST_INDEX, LAYOUTS
from snr_jax.toy.styles import draw_pair

ROOT = Path(__file__).resolve().parents[2]
HEIGHT, WIDTH, SEED = 32, 64, 5
CONDITIONS = ("fog", "night", "rain", "snow")
# layout, domain, number of classes, part of the data set, splits → samples
READ = [
    ("gta5", "gta5", 19, "", {"train": 3, "val": 2, "all": 5}),
    ("synthia", "synthia", 16, "", {"train": 3, "val": 2, "all": 5}),
    ("synthia", "synthia", 19, "", {"train": 3, "val": 2}),
    ("cityscapes", "cityscapes", 13, "", {"train": 3, "val": 2}),
    ("cityscapes_train_ids", "cityscapes", 19, "", {"train": 3, "val": 2}),
    *(("crosscity", "crosscity", 13, city, {"val": 2}) for city in ("Rio", "Taipei")),
    ("bdd100k", "bdd100k", 19, "", {"train": 3, "val": 2}),
    ("mapillary", "mapillary", 19, "", {"train": 3, "val": 2}),
    ("acdc", "acdc", 19, "", {"train": 12, "val": 8}),
    *(("acdc", f"acdc_{c}", 19, "", {"train": 3, "val": 2}) for c in CONDITIONS),
    ("dark_zurich", "dark_zurich", 19, "", {"val": 2}),
]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("toy")
    for name, layout in LAYOUTS.items():
        assert writer.write(name, root / layout.folder, num_train=3, num_val=2, seed=SEED,
                            height=HEIGHT, width=WIDTH)  # fmt: skip
    return root


def drawn(name: str, classes: int, split: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Images and trainIds of the split's streets, from the drawing and the classes' names."""
    names = labels.class_names(classes)
    table = np.full(256, labels.IGNORE, np.uint8)
    for c in labels.CLASSES:
        if c.name in names:
            table[c.label_id] = names.index(c.name)
    layout, number = LAYOUTS[name], {"train": 3, "val": 2}
    pairs = [draw_pair(SEED, FIRST_INDEX[f"{layout.role} {part}"] + i, HEIGHT, WIDTH, "source")
             for part in (("train", "val") if split == "all" else (split,))
             for i in range(number[part] * len(layout.parts))]  # fmt: skip
    return [(image, table[ids]) for image, ids in pairs]


def test_every_layout_and_domain_is_tried():
    assert {name for name, *_ in READ} | {"camvid", "camvid_ids"} == set(LAYOUTS)
    assert {domain for _, domain, *_ in READ} | {"camvid"} == set(DOMAINS)  # tests/data/test_camvid
    other_forms = {"CityscapesTrainIds", "CamVidIds"}
    assert {layout.folder for layout in LAYOUTS.values()} - other_forms == {
        domain.folder for domain in DOMAINS.values()
    }


@pytest.mark.parametrize("name, domain, classes, part, splits", READ)
def test_layout_is_read_as_it_was_drawn(name, domain, classes, part, splits, written):
    directory = str(written / LAYOUTS[name].folder / part)
    for split, number in splits.items():
        listing = list_samples(create_domain(domain, directory), split, classes=classes)
        samples = listing.samples
        assert len(samples) == number and listing.labels.ids == LAYOUTS[name].ids
        assert look(samples, listing.labels) == []
        (batch,) = pipeline.eval_batches(
            samples, listing.labels, size=(HEIGHT, WIDTH), batch_size=number, label_size="full"
        )
        assert batch["valid"].all()
        expected = drawn(name, classes, split)
        lossy = samples[0].image.endswith(".jpg")
        for image, label in zip(batch["image"], batch["label"]):
            same = [i for i, (_, other) in enumerate(expected) if np.array_equal(label, other)]
            assert len(same) == 1  # a street of that split, and of no other
            difference = np.abs(image.astype(int) - expected.pop(same[0])[0])
            assert difference.mean() < 8 if lossy else not difference.any()
        stream = pipeline.train_batches(
            samples, listing.labels, size=(HEIGHT, WIDTH), batch_size=number, seed=0
        )
        trained = next(stream)["label"]
        for label in batch["label"]:
            turned = (label, label[:, ::-1])
            assert any(np.array_equal(one, t) for one in trained for t in turned)
        assert trained[trained != labels.IGNORE].max() == classes - 1  # bicycles are everywhere


def test_training_images_of_crosscity_have_no_labels(written):
    listings = [
        list_samples(create_domain("crosscity", written / "NTHU" / city), "train", classes=13,
                     require_labels=False)
        for city in LAYOUTS["crosscity"].parts
    ]  # fmt: skip
    assert [len(listing.samples) for listing in listings] == [3, 3, 3, 3]
    assert not any(sample.label for listing in listings for sample in listing.samples)
    files = [s.image for listing in listings for s in listing.samples]
    assert len({Path(file).read_bytes() for file in files}) == 12  # each city has its streets
    with pytest.raises(UserError, match="labels are missing"):
        list_samples(create_domain("crosscity", written / "NTHU/Rome"), "train", classes=13)
    assert not (written / "NTHU/Rome/Labels/Train").exists()


# ---- SYNTHIA's form -------------------------------------------------------------------------


def channels(path: Path) -> np.ndarray:
    """All three channels of a 16-bit PNG, uint16 [H,W,3]."""
    raw = path.read_bytes()
    assert raw[24:26] == bytes([16, 2])  # IHDR: 16 bits, RGB
    return tf.io.decode_png(raw, channels=3, dtype=tf.uint16).numpy()


def test_synthia_has_classes_and_instances_of_the_full_range(written):
    root = written / "RAND_CITYSCAPES"
    names = [f"{number:07d}.png" for number in (0, 1, 2, 9000, 9001)]
    for folder in ("RGB", "GT/LABELS"):
        assert sorted(path.name for path in (root / folder).iterdir()) == names
    pixels = np.stack([channels(root / "GT/LABELS" / name) for name in names])
    table = labels.ID_TABLES["synthia"]
    assert set(np.unique(pixels[..., 0])) <= {0, *table.names}
    instances = pixels[..., 1]
    assert instances.min() < 2**12 and instances.max() > 2**16 - 2**12
    assert len(np.unique(instances & 255)) > 64 and len(np.unique(instances >> 8)) > 64
    assert not pixels[..., 2].any()


def test_instances_do_not_matter(written, tmp_path):
    source = written / "RAND_CITYSCAPES"
    for name in ("0000000.png", "0000001.png"):
        for folder in ("RGB", "GT/LABELS"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "RGB" / name).write_bytes((source / "RGB" / name).read_bytes())
        pixels = channels(source / "GT/LABELS" / name)
        pixels[..., 1] = ~pixels[..., 1]
        (tmp_path / "GT/LABELS" / name).write_bytes(layouts.png_16(pixels))

    def read(root: Path) -> list[np.ndarray]:
        listing = list_samples(create_domain("synthia", root), "train", classes=16)
        batches = pipeline.eval_batches(
            listing.samples[:2], listing.labels, size=(HEIGHT, WIDTH), batch_size=2
        )
        return [batch["label"] for batch in batches]

    np.testing.assert_array_equal(read(tmp_path), read(source))


def test_16_bit_png_holds_what_it_was_given():
    pixels = np.random.default_rng(0).integers(0, 2**16, (7, 11, 3), np.uint16)
    raw = layouts.png_16(pixels)
    np.testing.assert_array_equal(tf.io.decode_png(raw, channels=3, dtype=tf.uint16), pixels)
    pixels[..., 0] %= 23
    np.testing.assert_array_equal(decode.decode_synthia(layouts.png_16(pixels)), pixels[..., 0])


def test_synthia_has_no_room_for_training_frames_among_those_of_validation(tmp_path):
    small = {"num_val": 1, "seed": 0, "height": HEIGHT, "width": WIDTH}
    with pytest.raises(UserError, match=r"--num_train is 9001.*9000"):
        writer.write("synthia", tmp_path / "x", num_train=9001, **small)
    assert not any(tmp_path.iterdir())


# ---- the others' forms ----------------------------------------------------------------------


def test_forms_of_labels_and_images(written):
    seen: set[int] = set()
    for path in (written / "Mapillary").rglob("*.png"):
        with Image.open(path) as label:
            assert label.mode == "P"
            ids, colors = np.asarray(label), np.asarray(label.convert("RGB"))
        assert (colors[ids == 13] == (128, 64, 128)).all() and not colors[ids == 65].any()
        seen |= set(ids.ravel().tolist())
    assert {13, 65} <= seen <= {*labels.ID_TABLES["mapillary"].names, 65}
    for folder in ("BDD100K/labels", "ACDC/gt", "DarkZurich/gt", "CityscapesTrainIds/gtFine"):
        for path in (written / folder).rglob("*.png"):
            with Image.open(path) as label:
                assert label.mode == "L" and set(np.unique(label)) <= {*range(19), 255}
    for folder in ("BDD100K", "Mapillary"):
        for path in (written / folder).rglob("*.jpg"):
            with Image.open(path) as image:
                assert image.format == "JPEG" and image.size == (WIDTH, HEIGHT)


# ---- the command ----------------------------------------------------------------------------


def call(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "scripts/make_toy_domains.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_command_draws_the_chosen_layouts(tmp_path):
    small = ("--num_train=1", "--num_val=1", "--height=32", "--width=64", "--workers=1")
    done = call("--out", str(tmp_path), "--layouts", "synthia,crosscity", "--style=night", *small)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["NTHU", "RAND_CITYSCAPES"]
    streets = [("RAND_CITYSCAPES/RGB/0009000.png", "source val", "source"),
               ("NTHU/Rio/Images/Test/pano_00000_2_180.png", "target val", "night")]  # fmt: skip
    for path, split, style in streets:
        expected, _ = draw_pair(0, FIRST_INDEX[split], 32, 64, style)
        np.testing.assert_array_equal(Image.open(tmp_path / path), expected)


def test_command_refuses_a_layout_that_there_is_not(tmp_path):
    refused = call("--out", str(tmp_path / "x"), "--layouts", "gta5,kitti")
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert "'gta5,kitti'" in refused.stderr and "synthia" in refused.stderr
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("flag", ["--height=8", "--width=100000000", "--seed=-1"])
def test_command_refuses_numbers_that_cannot_be_meant(tmp_path, flag):
    refused = call("--out", str(tmp_path / "x"), flag)
    assert refused.returncode == 2 and refused.stderr.startswith(f"error: flag {flag}: ")
    assert refused.stderr.count("\n") == 1 and not (tmp_path / "x").exists()
