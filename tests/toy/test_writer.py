"""Toy domains: the same pixels for the same arguments, in the layouts that the readers expect."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from snr_jax.core import labels
from snr_jax.core.errors import UserError
from snr_jax.toy import writer
from snr_jax.toy.scenes import draw_scene
from snr_jax.toy.styles import STYLES, apply_style, draw_pair

ROOT = Path(__file__).resolve().parents[2]
SIZE = {"height": 32, "width": 64}
SMALL = {"num_train": 3, "num_val": 2, "seed": 5, **SIZE}
LEGAL = {c.label_id for c in labels.CLASSES} | {0, 1, 4}  # 1: own bonnet, 4: static things


def _read_all(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def test_scene_is_a_function_of_seed_and_index():
    first, again = draw_scene(3, 7, 48, 96), draw_scene(3, 7, 48, 96)
    for a, b in zip(first, again):
        np.testing.assert_array_equal(a, b)
    assert first.albedo.shape == (48, 96, 3) and first.albedo.dtype == np.float32
    assert first.label_ids.shape == first.depth.shape == first.light.shape == (48, 96)
    assert first.label_ids.dtype == np.uint8
    for other in (draw_scene(3, 8, 48, 96), draw_scene(4, 7, 48, 96)):
        assert (other.label_ids != first.label_ids).mean() > 0.05


def test_scene_values_are_in_range_and_the_street_is_in_perspective():
    for index in range(8):
        scene = draw_scene(0, index, 64, 128)
        for values in (scene.albedo, scene.light):
            assert values.min() >= 0 and values.max() <= 1  # no NaN passes this
        road = scene.label_ids == 7
        rows = [scene.depth[row][road[row]].mean() for row in range(64) if road[row].any()]
        assert (np.diff(rows) < 0).all()  # nearer, the lower in the image
        assert scene.depth[scene.label_ids == 23].min(initial=400) == 400  # sky is the farthest


def test_street_has_the_classes():
    scenes = [draw_scene(0, index, 64, 128).label_ids for index in range(40)]
    pixels = np.bincount(np.concatenate(scenes, axis=None), minlength=256)
    present = np.array([[(s == c.label_id).any() for s in scenes] for c in labels.CLASSES])
    assert present.any(axis=1).all()  # all 19 somewhere
    assert (present.mean(axis=1) > 0.5).sum() >= 13  # 13 in most of the scenes
    assert set(np.flatnonzero(pixels)) <= LEGAL
    assert pixels[[1, 4]].all()  # and some that are ignored
    assert all(pixels[c.label_id] > 0.002 * pixels.sum() for c in labels.CLASSES)


def test_style_changes_the_image_and_never_the_label():
    pairs = {name: draw_pair(1, 2, style=name, **SIZE) for name in STYLES}
    source_image, source_label = pairs["source"]
    assert {"source", "clear", "dusk", "haze", "night"} <= set(STYLES)
    for name, (image, label_ids) in pairs.items():
        assert image.dtype == np.uint8 and image.shape == (32, 64, 3)
        np.testing.assert_array_equal(label_ids, source_label)
        if name != "source":
            assert np.abs(image.astype(int) - source_image).mean() > 10


def test_styles_are_what_their_names_say():
    look = {name: np.float32([draw_pair(2, i, style=name, **SIZE)[0] for i in range(6)])
            for name in STYLES}  # fmt: skip
    assert look["night"].mean() < 0.7 * look["source"].mean()
    assert look["haze"].std() < 0.8 * look["source"].std()
    assert look["dusk"][..., 0].mean() > 1.15 * look["dusk"][..., 2].mean()  # red over blue
    saturation = {name: (x.max(-1) - x.min(-1)).mean() for name, x in look.items()}
    assert saturation["clear"] < saturation["source"]


def test_style_jitter_comes_from_the_generator():
    scene = draw_scene(0, 0, **SIZE)
    first, same, other = (apply_style(scene, "dusk", np.random.default_rng(s)) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()


def test_gta5_layout(tmp_path):
    directory = tmp_path / "GTA5"
    assert writer.write("gta5", directory, **SMALL)
    assert (directory / "train.txt").read_text().split() == ["00001", "00002", "00003"]
    assert (directory / "val.txt").read_text().split() == ["00004", "00005"]
    assert len(_read_all(directory)) == 5 * 2 + 3
    for name in ("00001", "00005"):
        image = Image.open(directory / f"images/{name}.png")
        label = Image.open(directory / f"labels/{name}.png")
        assert (image.mode, label.mode) == ("RGB", "P")
        assert image.size == label.size == (64, 32)
        raw = (directory / f"labels/{name}.png").read_bytes()
        assert (raw[24], raw[25]) == (8, 3)  # IHDR: eight bits, palette
        indices = np.asarray(label)
        assert set(np.unique(indices)) <= LEGAL
        colors = np.asarray(label.convert("RGB"))
        for c in labels.CLASSES:
            assert (colors[indices == c.label_id] == c.color).all()
        assert not colors[np.isin(indices, (0, 1, 4))].any()  # what has no class is black
    for kind, expected in zip(("images", "labels"), draw_pair(5, 0, style="source", **SIZE)):
        written = np.asarray(Image.open(directory / kind / "00001.png"))
        np.testing.assert_array_equal(written, expected)


def test_cityscapes_layout(tmp_path):
    directory = tmp_path / "Cityscapes"
    assert writer.write("cityscapes", directory, style="haze", **SMALL)
    for split, number, cities in (("train", 3, 3), ("val", 2, 2)):
        images = sorted((directory / "leftImg8bit" / split).glob("*/*_leftImg8bit.png"))
        assert len(images) == number and len({path.parent for path in images}) == cities
        for path in images:
            assert path.name.startswith(f"{path.parent.name}_0000")
            stem = path.name.removesuffix("_leftImg8bit.png")
            label = directory / "gtFine" / split / path.parent.name / f"{stem}_gtFine_labelIds.png"
            with Image.open(path) as image, Image.open(label) as ids:
                assert (image.mode, ids.mode) == ("RGB", "L")
                assert image.size == ids.size == (64, 32)
                assert set(np.unique(np.asarray(ids))) <= LEGAL
    assert len(_read_all(directory)) == 5 * 2 + 1


def test_no_street_is_in_two_splits(tmp_path):
    writer.write("gta5", tmp_path / "GTA5", **SMALL)
    writer.write("cityscapes", tmp_path / "Cityscapes", style="source", **SMALL)
    files = [*tmp_path.glob("GTA5/labels/*.png"), *tmp_path.glob("Cityscapes/gtFine/*/*/*.png")]
    assert len(files) == 10
    assert len({np.asarray(Image.open(path)).tobytes() for path in files}) == 10


def test_more_images_leave_the_first_ones_as_they_were(tmp_path):
    writer.write("gta5", tmp_path / "few", **SMALL)
    writer.write("gta5", tmp_path / "more", **{**SMALL, "num_train": 4})
    few, more = _read_all(tmp_path / "few"), _read_all(tmp_path / "more")
    assert few["images/00003.png"] == more["images/00003.png"]
    assert few["images/00004.png"] == more["images/00005.png"]  # the first of val


def test_same_arguments_are_drawn_once_and_others_refused(tmp_path):
    directory = tmp_path / "Cityscapes"
    write = partial(writer.write, "cityscapes")
    assert write(directory, style="dusk", **SMALL)
    before = _read_all(directory)
    assert not write(directory, style="dusk", **SMALL)
    with pytest.raises(UserError, match=r"style.*--replace"):
        write(directory, style="night", **SMALL)
    assert _read_all(directory) == before
    assert write(directory, style="night", **SMALL, replace=True)
    assert _read_all(directory) != before


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe"])
def test_damaged_marker_is_of_another_set(tmp_path, content):
    directory = tmp_path / "GTA5"
    directory.mkdir()
    (directory / writer.MARKER).write_bytes(content)
    with pytest.raises(UserError, match=r"another toy data set.*--replace"):
        writer.write("gta5", directory, **SMALL)
    assert writer.write("gta5", directory, **SMALL, replace=True)
    assert not writer.write("gta5", directory, **SMALL)


def test_foreign_directory_is_left_alone(tmp_path):
    directory = tmp_path / "GTA5"
    directory.mkdir()
    (directory / "real.png").write_bytes(b"real data")
    for replace in (False, True):
        with pytest.raises(UserError, match="no toy data set"):
            writer.write("gta5", directory, **SMALL, replace=replace)
    assert _read_all(directory) == {"real.png": b"real data"}


def test_unknown_style_names_the_right_ones(tmp_path):
    with pytest.raises(UserError, match=r"'dawn'.*source, clear, dusk, haze, night"):
        writer.write("cityscapes", tmp_path / "x", style="dawn", **SMALL)
    assert not (tmp_path / "x").exists()


def test_interrupted_drawing_leaves_nothing_under_the_final_name(tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        writer.write("gta5", tmp_path / "GTA5", **SMALL, progress=stop)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "GTA5.partial/images").mkdir(parents=True)
    (tmp_path / "GTA5.partial/images/9.png").write_text("of a drawing that was killed")
    assert writer.write("gta5", tmp_path / "GTA5", **SMALL)
    assert not (tmp_path / "GTA5/images/9.png").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["GTA5"]


def test_drawing_needs_no_tensorflow():
    code = "import sys, snr_jax.toy.writer; assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_command_line(tmp_path):
    command = [sys.executable, str(ROOT / "scripts/make_toy_domains.py"), "--out", str(tmp_path),
               "--num_train", "3", "--num_val", "2", "--seed", "5", "--height", "32", "--width",
               "64"]  # fmt: skip

    def call(*more):
        return subprocess.run([*command, *more], capture_output=True, text=True, check=False)

    drawn = call("--style", "night")
    assert drawn.returncode == 0, drawn.stderr
    assert "images 5/5" in drawn.stderr and "s left" in drawn.stderr
    again = call("--style", "night")
    assert again.returncode == 0 and again.stdout.count("already there") == 2
    other = call("--style", "haze")
    assert other.returncode == 2 and "--replace" in other.stderr and "Traceback" not in other.stderr
    # Two processes draw what one draws.
    writer.write("gta5", tmp_path / "alone", **SMALL)
    assert _read_all(tmp_path / "alone") == _read_all(tmp_path / "GTA5")
