import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from snr_jax import doctor
from snr_jax.core.labels import IGNORE
from snr_jax.data.domains import create_domain
from snr_jax.data.faults.survey import survey
from tests.data.tiny_sets import (
    TRAIN_IDS,
    natural_image,
    random_ids,
    save_palette,
    write_cityscapes,
    write_gta5,
)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def call(*arguments) -> int:
    return doctor.main(["doctor", *map(str, arguments)])


def test_counts_sizes_and_histogram(tmp_path):
    root = write_cityscapes(tmp_path, 3, "val")
    calls = []
    domain = create_domain("cityscapes", root)
    report = survey(domain, "val", progress=lambda *call: calls.append(call))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert (report.num_samples, report.faults, report.sizes) == (3, [], {(24, 48): 3})
    train_ids = [TRAIN_IDS[random_ids(i, 24, 48)] for i in range(3)]
    expected = sum(np.bincount(t.ravel(), minlength=256) for t in train_ids)
    assert report.pixels.tolist() == expected[:19].tolist()
    assert report.ignored == expected[IGNORE] and report.unknown == 0
    assert report.images.tolist() == [sum((t == c).any() for t in train_ids) for c in range(19)]


def test_goes_on_past_broken_files_and_names_them(tmp_path, capsys):
    root = write_gta5(tmp_path)
    (root / "images" / "00002.png").write_text("no image")
    (root / "labels" / "00003.png").write_text("no label")
    Image.fromarray(natural_image(4, 30, 40)).save(root / "images" / "00004.png")
    Image.fromarray(random_ids(5, 24, 40, np.array([7, 99], np.uint8))).save(
        root / "labels" / "00005.png"
    )
    assert call("--domain", "gta5", "--dir", root) == 1
    captured = capsys.readouterr()
    faults = [line for line in captured.out.splitlines() if line.startswith("FAULT")]
    names = ["images/00002.png", "labels/00003.png", "images/00004.png", "labels/00005.png"]
    assert len(faults) == 4
    for fault, name in zip(faults, names):
        assert str(root / name) in fault
    assert "label ids 99" in faults[3]
    assert captured.out.endswith("4 faults\n")
    assert "samples 5/5" in captured.err and "s left" in captured.err


def test_a_sound_set_and_one_that_cannot_be_listed(tmp_path, capsys):
    root = write_gta5(tmp_path, [1, 2])
    assert call("--domain", "gta5", "--dir", root, "--num_classes", "13") == 0
    out = capsys.readouterr().out
    assert "2 images of 40x24" in out and "no faults" in out and "terrain" not in out
    wrong = {
        ("--domain", "gta5", "--dir", root / "typo"): f"no directory {root / 'typo'}",
        ("--domain", "gta", "--dir", root): "Did you mean 'gta5'?",
        ("--domain", "gta5"): "--dir is missing; for instance --dir datasets/GTA5",
        ("--dir", root): "--domain is missing; for instance --domain gta5",
        ("--domain", "gta5", "--dir", root, "--split", "trian"): "no split 'trian'; it has train,",
        ("--domain", "gta5", "--dir", root, "--num_classes", "20"): "num_classes=20",
        ("--domian", "gta5"): "domian",
        ("gta5",): "unexpected argument 'gta5'",
    }
    for arguments, words in wrong.items():
        assert call(*arguments) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and words in captured.err
        assert captured.err.startswith("error: ") and captured.err.count("\n") == 1


def test_a_set_without_labels(tmp_path, capsys):
    root = str(write_cityscapes(tmp_path, 2, "train", labels=False))
    assert call("--domain", "cityscapes", "--dir", root) == 1
    assert "2 faults" in capsys.readouterr().out
    assert call("--domain", "cityscapes", "--dir", root, "--no_labels") == 0
    out = capsys.readouterr().out
    assert "2 of 2 images have no label" in out and "class" not in out


def test_one_broken_file_does_not_stop_the_threads(tmp_path):
    root = write_gta5(tmp_path, range(1, 13))
    Path(root / "images" / "00001.png").write_bytes(b"")
    report = survey(create_domain("gta5", root), "train", num_threads=4)
    assert len(report.faults) == 1 and report.sizes == {(24, 40): 11}


def test_labels_of_other_sizes_are_listed_and_no_fault(tmp_path, capsys):
    root = write_gta5(tmp_path, height=40, width=60)
    for name, height in (("00002", 39), ("00005", 41)):
        save_palette(random_ids(0, height, 60), root / "labels" / f"{name}.png")
    assert call("--domain", "gta5", "--dir", root) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = [line for line in lines if line.startswith("WARNING")]
    assert [str(root / f"labels/{name}.png") in line for name, line in
            zip(("00002", "00005"), listed, strict=True)] == [True, True]
    assert "is 60x39 and its image" in listed[0]


def test_labels_that_cannot_be_meant_are_a_fault(tmp_path, capsys):
    root = write_gta5(tmp_path, [1, 2])
    for number in (1, 2):
        save_palette(np.zeros((24, 40), np.uint8), root / "labels" / f"0000{number}.png")
    assert call("--domain", "gta5", "--dir", root) == 1
    assert "FAULT every pixel of the labels" in capsys.readouterr().out


DEFECTS = {  # what is planted in a set of GTA5 → words, file; the exit code
    "no_image": ("is missing. Unpack the images", "images/00002.png", 1),
    "no_label": ("is missing. Unpack the labels", "labels/00002.png", 1),
    "cut": ("is no image that can be decoded", "images/00002.png", 1),
    "text_label": ("is no label image that can be decoded", "labels/00002.png", 1),
    "shape": ("their shapes must agree within 5 %", "labels/00002.png", 1),
    "rows": ("Each is resized to the training size by itself", "labels/00002.png", 0),
    "blank": ("is blank, all of one colour", "images/00002.png", 0),
    "colours": ("a PNG with colours", "labels/00002.png", 1),
    "unknown": ("holds the label ids 77", "labels/00002.png", 1),
    "extra": ("extra images, that no pattern matches", "images/00002.jpg", 0),
    "train_ids": ("the labels look like trainIds", "labels/00001.png", 1),
    "one_of_train_ids": ("the labels look like trainIds", "labels/00002.png", 0),
    "ignored": ("every pixel of the labels", "labels/00002.png", 0),
    "second": ("second ones of an id", "images/00002.jpeg", 0),
    "turned": ("orientation 3 the first: training and eval", "images/00002.png", 0),
    "sideways": ("5 %: the EXIF orientation 6 turns", "images/00002.png", 1),
    "jpeg": ("has the suffix of a PNG and is none", "images/00002.png", 0),
}


def plant(defect: str, root: Path) -> None:
    image, label = root / "images" / "00002.png", root / "labels" / "00002.png"
    good, ids = natural_image(2, 24, 40), random_ids(2, 24, 40)
    if defect == "no_image":
        image.unlink()
    elif defect == "no_label":
        label.unlink()
    elif defect == "cut":
        image.write_bytes(image.read_bytes()[:900])
    elif defect == "text_label":
        label.write_text("a page that says: log in")
    elif defect == "shape":
        save_palette(random_ids(2, 40, 40), label)
    elif defect == "rows":
        save_palette(random_ids(2, 23, 40), label)
    elif defect == "blank":
        Image.fromarray(good * 0 + 9).save(image)
    elif defect == "colours":
        Image.fromarray(good).save(label)
    elif defect == "unknown":
        save_palette(np.where(ids == 7, 77, ids).astype(np.uint8), label)
    elif defect == "extra":
        Image.fromarray(good).save(image.with_suffix(".jpg"))
    elif defect == "one_of_train_ids":
        save_palette(random_ids(2, 24, 40, np.arange(19, dtype=np.uint8)), label)
    elif defect == "ignored":
        save_palette(ids * 0, label)
    elif defect == "second":
        Image.fromarray(good).save(image.with_suffix(".jpeg"))
    elif defect in ("turned", "sideways"):
        exif = Image.Exif()
        exif[0x0112] = 3 if defect == "turned" else 6
        good = good if defect == "turned" else good.transpose(1, 0, 2)
        Image.fromarray(good).save(image, exif=exif)
    elif defect == "jpeg":
        Image.fromarray(good).save(image, "JPEG")
    elif defect == "train_ids":
        for path in (root / "labels").iterdir():
            save_palette(random_ids(2, 24, 40, np.arange(19, dtype=np.uint8)), path)


@pytest.mark.parametrize("defect", DEFECTS)
def test_planted_defects_are_named_with_their_mend(defect, tmp_path, capsys):
    root = write_gta5(tmp_path)
    plant(defect, root)
    words, file, code = DEFECTS[defect]
    page = tmp_path / "page.html"
    assert call("--domain", "gta5", "--dir", root, "--html", page) == code
    lines = capsys.readouterr().out.splitlines()
    found = [line for line in lines if line.startswith(("FAULT", "WARNING"))]
    assert len(found) == 1 and words in found[0] and str(root / file) in found[0], found
    assert found[0].startswith("FAULT" if code else "WARNING")
    mends = ("npack", "Take", "take", "Leave", "Convert", "mogrify")
    assert any(mend in found[0] for mend in mends)
    html = page.read_text()
    # The finding's own picture, in whatever of it can be read, and those of the good sample.
    assert words in html and "a good sample" in html and html.count("data:image/") >= 3


def test_synthia_labels_cut_to_8_bits(tmp_path, capsys):
    for folder in ("RGB", "GT/LABELS"):
        (tmp_path / folder).mkdir(parents=True)
        Image.fromarray(natural_image(1, 24, 40)).save(tmp_path / folder / "0000000.png")
    assert call("--domain", "synthia", "--dir", tmp_path, "--num_classes", "16") == 1
    out = capsys.readouterr().out
    assert f"FAULT {tmp_path / 'GT/LABELS/0000000.png'} is no label" in out
    assert "has cut the classes off" in out and "\n1 fault\n" in out


def with_config(tmp_path, *arguments) -> int:
    return call("--config", ROOT / "configs/gta2city_uda.py",
                f"--config.data.root={tmp_path}", *arguments)


def test_a_config_names_the_splits_and_the_target_needs_no_labels(tmp_path, capsys):
    gta5 = write_gta5(tmp_path)
    (gta5 / "train.txt").write_text("00001\n00002\n00003\n")
    (gta5 / "val.txt").write_text("00004\n00005\n")
    write_cityscapes(tmp_path, 3, "train")
    city = write_cityscapes(tmp_path, 2, "val")
    for label in (city / "gtFine/train").rglob("*.png"):
        label.write_text("nobody opens this")
    assert with_config(tmp_path, "--stats", "stats.json") == 0
    out = capsys.readouterr().out
    for title in ("source: gta5/train", "target: cityscapes/train", "source_val: gta5/val",
                  "target_val: cityscapes/val"):
        assert title in out
    stats = json.loads((tmp_path / "stats.json").read_text())
    assert set(stats) == {"gta5/train", "gta5/val", "cityscapes/val"}
    ids = [TRAIN_IDS[random_ids(i, 24, 48)] for i in range(2)]
    city = stats["cityscapes/val"]
    assert city["classes"]["car"]["pixels"] == sum((i == 13).sum() for i in ids)
    by_label = [np.bincount(i.ravel(), minlength=256)[:19].tolist() for i in ids]
    assert list(city["by_label"].values()) == by_label
    assert city["classes"]["car"]["labels"] == sum(counts[13] > 0 for counts in by_label)
    (gta5 / "labels" / "00005.png").unlink()
    assert with_config(tmp_path) == 1
    assert (tmp_path / "runs/class_stats/gta2city_uda.json").is_file()
    assert with_config(tmp_path, "--domain", "gta5") == 2
    for mistake in ("num_classes=20", "source.size=(0,0)", "num_steps=0", "batch_size=0"):
        assert with_config(tmp_path, f"--config.{mistake}") == 2
    assert with_config(tmp_path, "--html", tmp_path) == 2


def test_a_sample_is_spread_over_the_split(tmp_path, capsys):
    root = write_gta5(tmp_path, range(1, 10))
    for number in (1, 5, 9):
        (root / "images" / f"{number:05d}.png").write_text("broken")
    assert call("--domain", "gta5", "--dir", root, "--sample", "3") == 1
    out = capsys.readouterr().out
    assert "9 samples" in out and "3 of them were read" in out and out.endswith("3 faults\n")


def test_a_domain_of_ones_own(tmp_path, capsys):
    write_gta5(tmp_path, [1, 2])
    (tmp_path / "mine.yaml").write_text(
        "images: GTA5/images/*.png\nlabels: GTA5/labels/*.png\nsplits: [train]\n"
        "classes: {way: , car: }\nids: {7: way, 26: car}\n"
    )
    assert call("--domain", "mine.yaml") == 0
    out = capsys.readouterr().out
    assert "way" in out and "car" in out and "road" not in out


def test_a_page_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    root = write_gta5(tmp_path, [1, 2])
    (tmp_path / "page.html").write_text("before")

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(doctor.os, "replace", full)
    assert call("--domain", "gta5", "--dir", root, "--html", tmp_path / "page.html") == 2
    assert (tmp_path / "page.html").read_text() == "before"
    assert not list(tmp_path.glob("*.tmp*"))


def test_the_folder_of_ones_own_set_counts(tmp_path, capsys):
    write_gta5(tmp_path, [1, 2])
    write_gta5(tmp_path / "other", [3])
    (tmp_path / "mine.yaml").write_text("images: GTA5/images/*.png\nsplits: [train]\n")
    for flags, count in ((), 2), (("--dir", tmp_path / "other"), 1):
        assert call("--domain", "mine.yaml", "--no_labels", *flags) == 0
        assert f"\n{count} samples" in capsys.readouterr().out
    assert call("--domain", "mine.yaml", "--no_labels", "--dir", "nowhere") == 2
    assert "there is no directory nowhere" in capsys.readouterr().err


def test_what_is_not_read_is_counted(tmp_path, capsys):
    root = write_gta5(tmp_path)
    for name in ("00001.JPG", "00002.tif", "more/00001.png", "._00001.png"):
        (root / "images" / name).parent.mkdir(exist_ok=True)
        (root / "images" / name).write_bytes(b"")
    assert call("--domain", "gta5", "--dir", root) == 0
    lines = capsys.readouterr().out.splitlines()
    (warning,) = [line for line in lines if line.startswith("WARNING")]
    assert f"2 of another suffix ({root}/images/00001.JPG, {root}/images/00002.tif)" in warning
    assert f"1 in a deeper folder ({root}/images/more/00001.png)" in warning
    assert f"not read: 1 hidden ({root}/images/._00001.png)" in lines


def test_links_to_nowhere_are_named(tmp_path, capsys):
    write_gta5(tmp_path, [1, 2])
    (tmp_path / "mine.yaml").write_text(
        "images: GTA5/images/*.png\nlabels: GTA5/labels/*.png\nsplits: [train]\n"
        "classes: {way: , car: }\nids: {7: way, 26: car}\n"
    )
    label = tmp_path / "GTA5/labels/00002.png"
    label.unlink()
    label.symlink_to("/nowhere/x.png")
    assert call("--domain", "mine.yaml") == 1
    out = capsys.readouterr().out
    assert "is a link to /nowhere/x.png, which is not there. Put it there" in out
    assert "npack" not in out and out.endswith("\n1 fault\n")
