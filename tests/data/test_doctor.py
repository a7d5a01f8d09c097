from pathlib import Path

import numpy as np
from PIL import Image

from snr_jax.core.labels import IGNORE
from snr_jax.data import doctor
from tests.data.tiny_sets import (
    TRAIN_IDS,
    natural_image,
    random_ids,
    save_palette,
    write_cityscapes,
    write_gta5,
)


def call(*arguments) -> int:
    return doctor.main(["doctor", *map(str, arguments)])


def test_counts_sizes_and_histogram(tmp_path):
    root = write_cityscapes(tmp_path, 3, "val")
    calls = []
    report = doctor.check("cityscapes", str(root), "val", progress=lambda *call: calls.append(call))
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
    assert call("--domain", "cityscapes", "--dir", root) == 2
    assert call("--domain", "cityscapes", "--dir", root, "--no_labels") == 0
    out = capsys.readouterr().out
    assert "2 of 2 images have no label" in out and "class" not in out


def test_one_broken_file_does_not_stop_the_threads(tmp_path):
    root = write_gta5(tmp_path, range(1, 13))
    Path(root / "images" / "00001.png").write_bytes(b"")
    report = doctor.check("gta5", str(root), "train", num_threads=4)
    assert len(report.faults) == 1 and report.sizes == {(24, 40): 11}


def test_labels_of_other_sizes_are_listed_and_no_fault(tmp_path, capsys):
    root = write_gta5(tmp_path, height=40, width=60)
    for name, height in (("00002", 39), ("00005", 41)):
        save_palette(random_ids(0, height, 60), root / "labels" / f"{name}.png")
    assert call("--domain", "gta5", "--dir", root) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = [line for line in lines if line.startswith("SIZES")]
    assert [str(root / f"labels/{name}.png") in line for name, line in
            zip(("00002", "00005"), listed, strict=True)] == [True, True]
    assert "is 60x39 and its image" in listed[0] and "2 labels differ" in "\n".join(lines)


def test_labels_that_cannot_be_meant_are_a_fault(tmp_path, capsys):
    root = write_gta5(tmp_path, [1, 2])
    for number in (1, 2):
        save_palette(np.zeros((24, 40), np.uint8), root / "labels" / f"0000{number}.png")
    assert call("--domain", "gta5", "--dir", root) == 1
    assert "FAULT every pixel of the labels" in capsys.readouterr().out
