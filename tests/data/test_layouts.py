"""Patterns of files: what they find, where they expect what is not there, what they leave out."""

import os
import unicodedata
from pathlib import Path

import pytest

from snr_jax.core.errors import UserError
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


def test_suffixes_count_in_any_case(tmp_path):
    touch(tmp_path, "left/val/b/x_left.PNG", "fine/val/b/x_labelIds.Png", "left/val/b/y_LEFT.png")
    assert pairs(tmp_path, CITY, "val") == {
        "x": (tmp_path / "left/val/b/x_left.PNG", tmp_path / "fine/val/b/x_labelIds.Png")
    }
    touch(tmp_path, "left/val/b/x_left.png")  # written as in the pattern
    found = layouts.match(tmp_path, CITY, "val", layouts.create_list())
    assert found.pairs["x"][0].name == "x_left.png"
    assert found.second == (tmp_path / "left/val/b/x_left.PNG",)


@pytest.mark.parametrize("folder, image, label", [("NFC", "NFD", "NFC"), ("NFD", "NFC", "NFD")])
def test_names_have_one_unicode_form(folder, image, label, tmp_path):
    half, city, x = "h\u00e4lfte", "m\u00fcnchen", "stra\u00dfe_\u00f6"
    split = unicodedata.normalize(folder, half)
    image, label = (
        f"{kind}/{split}/{unicodedata.normalize(form, f'{city}/{x}')}_{end}"
        for kind, form, end in (("left", image, "left.png"), ("fine", label, "labelIds.png"))
    )
    touch(tmp_path, image, label)
    assert pairs(tmp_path, CITY, half) == {x: (tmp_path / image, tmp_path / label)}


def test_two_stars_are_folders_of_any_depth(tmp_path):
    names = ("tree/0.jpg", "tree/a/1.jpg", "tree/a/b/2.jpg", "tree/a/b/0.jpg", "tree/.x/3.jpg")
    touch(tmp_path, *names, "gt/0.png", "gt/a/b/0.png", "gt/a/1.png", "gt/a/b/2.png")
    (tmp_path / "tree/a/loop").symlink_to(tmp_path / "tree")
    (tmp_path / "tree/a/self").symlink_to("self")
    found = pairs(tmp_path, Layout(("tree/**/*.jpg",), "gt/**/*.png"), "")
    assert {id: tuple(path.relative_to(tmp_path).as_posix() for path in pair)
            for id, pair in found.items()} == {
        "0": ("tree/0.jpg", "gt/0.png"), "a/1": ("tree/a/1.jpg", "gt/a/1.png"),
        "a/b/2": ("tree/a/b/2.jpg", "gt/a/b/2.png"), "a/b/0": ("tree/a/b/0.jpg", "gt/a/b/0.png"),
    }  # fmt: skip


def test_equal_names_of_two_patterns_stay_two_samples(tmp_path):
    touch(tmp_path, "front/train/1.jpg", "rear/train/1.jpg", "rear/train/2.jpg")
    layout = Layout(("front/{split}/*.jpg", "rear/{split}/*.jpg"), "")
    assert sorted(pairs(tmp_path, layout, "train")) == [
        "front/train/1", "rear/train/1", "rear/train/2"
    ]  # fmt: skip
    touch(tmp_path, "gt/train/1.png")
    with pytest.raises(UserError, match=r"front/train/1.jpg and rear/train/1.jpg have the same la"):
        pairs(tmp_path, layout._replace(labels="gt/{split}/*.png"), "train")


def test_a_file_of_two_patterns_is_one_sample(tmp_path):
    touch(tmp_path, "a/x1.jpg", "a/x2.JPG")
    layout = Layout(("a/*.jpg", "a/*.JPG", "a/x*.jpg"), "")
    found = layouts.match(tmp_path, layout, "", layouts.create_list())
    assert sorted(found.pairs) == ["x1", "x2"] and not found.second


@pytest.mark.parametrize("pattern", ["a//{split}/*.png", "./a/{split}//*.png", "b/../a/x/*.png"])
def test_slashes_and_dots(pattern, tmp_path):
    touch(tmp_path, "a/x/1.png", "b/1.txt")
    assert list(pairs(tmp_path, Layout((pattern,), ""), "x")) == ["1"]


def test_signs_of_other_patterns_are_names(tmp_path):
    root = tmp_path / "set [1] {a,b}"
    touch(root, "a[0-9]/x?.png", "a1/x1.png")
    assert list(pairs(root, Layout(("a[0-9]/*.png",), ""), "")) == ["x?"]


@pytest.mark.parametrize("closed", ["left/train/b", "left/train", "fine/train/a"])
def test_a_folder_that_cannot_be_read_is_no_empty_one(closed, tmp_path, monkeypatch):
    touch(tmp_path, "left/train/a/1_left.png", "left/train/b/2_left.png",
          "fine/train/a/1_labelIds.png")
    denied = tmp_path / closed

    def refuse(real):  # as for users who are not root
        def call(path, *rest, **options):
            if Path(path) == denied:
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, *rest, **options)
        return call

    monkeypatch.setattr(layouts.os, "scandir", refuse(os.scandir))
    with pytest.raises(UserError, match=f"the folder {denied} cannot be read: Permission denied"):
        pairs(tmp_path, CITY, "train")


def test_what_is_not_read_is_counted_with_the_reason(tmp_path):
    touch(tmp_path, "a/train/1.png", "a/train/2.tif", "a/train/2.webp", "a/train/._1.png",
          "a/train/notes.txt", "a/train/1.PNG", "a/train/more/deep/3.png", "a/val/4.png")
    (tmp_path / "a/train/loop").symlink_to(tmp_path / "a")
    layout = Layout(("a/{split}/*.png",), "")
    listed = layouts.create_list()
    found = layouts.match(tmp_path, layout, "train", listed)
    unread = layouts.unread(tmp_path, layout, ["train", "val"], "train", found, listed)
    assert {why: [path.name for path in files] for why, files in unread.items()} == {
        "of another suffix": ["2.tif", "2.webp"], "hidden": ["._1.png"],
        "second ones of an id": ["1.PNG"], "in a deeper folder": ["3.png"],
    }
    assert "2 of another suffix (a/train/2.tif, a/train/2.webp)" in layouts.tell_unread(
        unread, tmp_path)


def test_a_folder_without_any_file_of_the_pattern_is_looked_at_too(tmp_path):
    touch(tmp_path, "left/train/a/1_left.png", "left/train/b/2_left.jpg",
          "fine/train/a/1_labelIds.png", "fine/train/a/1_color.png", "left/train/b/2_right.png")
    listed = layouts.create_list()
    found = layouts.match(tmp_path, CITY, "train", listed)
    unread = layouts.unread(tmp_path, CITY, ["train"], "train", found, listed)
    assert {why: [path.name for path in files] for why, files in unread.items()} == {
        "of another suffix": ["2_left.jpg"], "of another name": ["2_right.png"],
    }  # fmt: skip


def test_folders_are_listed_once(tmp_path, monkeypatch):
    touch(tmp_path, *(f"left/train/{c}/{c}_left.png" for c in "abc"), "fine/train/a/a_labelIds.png")
    calls = []
    real = os.scandir
    monkeypatch.setattr(layouts.os, "scandir", lambda path: calls.append(path) or real(path))
    listed = layouts.create_list()
    for _ in range(2):
        found = layouts.match(tmp_path, CITY, "train", listed)
        layouts.unread(tmp_path, CITY, ["train", "val"], "train", found, listed)
    assert len(calls) == len(set(calls))


def test_labels_and_other_splits_below_are_no_surprise(tmp_path):
    touch(tmp_path, "1.png", "gt/1.png", "val/2.png", "val/gt/2.png")
    layout, folders = Layout(("{split}/*.png",), "{split}/gt/*.png"), [".", "val"]
    listed = layouts.create_list()
    found = layouts.match(tmp_path, layout, ".", listed)
    assert list(found.pairs) == ["1"]
    assert not layouts.unread(tmp_path, layout, folders, ".", found, listed)
