"""Patterns of files: what they find, and where they expect what is not there."""

from pathlib import Path

import pytest

from snr_jax.data import layouts
from snr_jax.data.layouts import Layout, Pairs

CITY = Layout(("left/{split}/*/*_left.png",), "fine/{split}/*/*_labelIds.png")


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def pairs(root: Path, layout: Layout, split: str) -> Pairs:
    return layouts.match(root, layout, split, layouts.create_list()).pairs


def test_partners_have_the_same_stars(tmp_path):
    touch(tmp_path, "left/train/a/a_1_left.png", "fine/train/a/a_1_labelIds.png",
          "left/val/a/a_2_left.png", "left/train/a/a_1_right.png", "left/train/a/deep/a_3_left.png")
    assert pairs(tmp_path, CITY, "train") == {
        "a_1": (tmp_path / "left/train/a/a_1_left.png", tmp_path / "fine/train/a/a_1_labelIds.png")
    }


def test_a_missing_partner_is_expected_at_its_place(tmp_path):
    touch(tmp_path, "left/val/b/x_left.png", "fine/val/c/y_labelIds.png")
    found = pairs(tmp_path, CITY, "val")
    assert found["x"][1] == tmp_path / "fine/val/b/x_labelIds.png"
    assert found["y"][0] == tmp_path / "left/val/c/y_left.png"


def test_equal_names_in_two_folders_stay_apart(tmp_path):
    touch(tmp_path, "left/val/b/x_left.png", "left/val/c/x_left.png")
    assert sorted(pairs(tmp_path, CITY, "val")) == ["b/x", "c/x"]


def test_several_kinds_of_images(tmp_path):
    touch(tmp_path, "Train/1.jpg", "Train/2.png", "Train/.2.png", "Train/readme.txt")
    layout = Layout(("{split}/*.png", "{split}/*.jpg"), "")
    found = pairs(tmp_path, layout, "Train")
    assert {id: path.name for id, (path, _) in found.items()} == {"1": "1.jpg", "2": "2.png"}
    assert all(label is None for _, label in found.values())


@pytest.mark.parametrize("name", ["a+b", "a(1)", "ä ö"])
def test_names_are_no_patterns(tmp_path, name):
    touch(tmp_path, f"left/val/b/{name}_left.png")
    assert list(pairs(tmp_path, CITY, "val")) == [name]
