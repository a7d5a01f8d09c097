from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from snr_jax.core.labels import IGNORE, label_id_to_train_id
from snr_jax.data import doctor
from tests.data.tiny_sets import natural_image, random_ids, write_cityscapes, write_gta5


def test_counts_sizes_and_histogram(tmp_path):
    root = write_cityscapes(tmp_path, 3, "val")
    calls = []
    report = doctor.check("cityscapes", str(root), "val", progress=lambda *call: calls.append(call))
    assert (report.num_samples, report.faults, report.sizes) == (3, [], {(24, 48): 3})
    train_ids = [label_id_to_train_id()[random_ids(i, 24, 48)] for i in range(3)]
    expected = sum(np.bincount(t.ravel(), minlength=256) for t in train_ids)
    assert report.pixels.tolist() == expected[:19].tolist()
    assert report.ignored == expected[IGNORE] and report.unknown == 0
    assert report.images.tolist() == [sum((t == c).any() for t in train_ids) for c in range(19)]
    assert [call[:2] for call in calls] == [(1, 3), (2, 3), (3, 3)]


def test_goes_on_past_broken_files_and_names_them(tmp_path, capsys):
    root = write_gta5(tmp_path)
    (root / "images" / "00002.png").write_text("no image")
    (root / "labels" / "00003.png").write_text("no label")
    Image.fromarray(natural_image(4, 30, 40)).save(root / "images" / "00004.png")
    Image.fromarray(random_ids(5, 24, 40, np.array([7, 99], np.uint8))).save(
        root / "labels" / "00005.png"
    )
    assert doctor.main(["--domain", "gta5", "--dir", str(root)]) == 1
    captured = capsys.readouterr()
    faults = [line for line in captured.out.splitlines() if line.startswith("FAULT")]
    names = ["images/00002.png", "labels/00003.png", "images/00004.png", "labels/00005.png"]
    assert len(faults) == 4
    for fault, name in zip(faults, names):
        assert str(root / name) in fault
    assert "label ids 99" in faults[3]
    assert captured.out.endswith("4 faults\n")
    assert "5/5 samples" in captured.err and "s left" in captured.err


def test_a_sound_set_and_one_that_cannot_be_listed(tmp_path, capsys):
    root = write_gta5(tmp_path, [1, 2])
    assert doctor.main(["--domain", "gta5", "--dir", str(root), "--num_classes", "13"]) == 0
    out = capsys.readouterr().out
    assert "2 images of 40x24" in out and "no faults" in out and "terrain" not in out
    assert doctor.main(["--domain", "gta5", "--dir", str(root / "typo")]) == 2
    assert f"no directory {root / 'typo'}" in capsys.readouterr().err


def test_a_set_without_labels(tmp_path, capsys):
    root = str(write_cityscapes(tmp_path, 2, "train", labels=False))
    assert doctor.main(["--domain", "cityscapes", "--dir", root]) == 2
    assert doctor.main(["--domain", "cityscapes", "--dir", root, "--no_labels"]) == 0
    out = capsys.readouterr().out
    assert "2 of 2 images have no label" in out and "class" not in out


def test_one_broken_file_does_not_stop_the_threads(tmp_path):
    root = write_gta5(tmp_path, range(1, 13))
    Path(root / "images" / "00001.png").write_bytes(b"")
    report = doctor.check("gta5", str(root), "train", num_threads=4)
    assert len(report.faults) == 1 and report.sizes == {(24, 40): 11}


@pytest.mark.parametrize("seconds", [0.0, 1000.0])
def test_progress_lines_are_as_rare_as_asked(capsys, seconds):
    show = doctor._make_progress_line(seconds)
    for done in range(1, 6):
        show(done, 5, done * 2.0)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == (5 if seconds == 0 else 1)
    assert lines[-1].strip() == "5/5 samples, 0.5/s, 0 s left"
