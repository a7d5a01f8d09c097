"""Where nothing is found, the message says what lies near and what to do."""

import pytest

from snr_jax.core.errors import UserError
from snr_jax.data.domains import create_domain
from snr_jax.data.samples import list_samples
from tests.data.test_layout_rows import touch

GTA5, CITY = "images/00001.png labels/00001.png", "leftImg8bit/val/ulm/ulm_1_leftImg8bit.png"
CASES = {  # domain, split, files → words
    "doubled": ("gta5", "all", "images/images/00001.png labels/labels/00001.png",
                "images/images/00001.png: move what is in {root}/images/images to {root}/images"),
    "jpg": ("gta5", "all", "images/00001.jpg images/00002.jpg labels/00001.png",
            "There is images/00001.jpg and 1 more as it, .jpg where .png is expected"),
    "jpg_alone": ("gta5", "all", "images/00001.jpg", ".jpg where .png is expected"),
    "flat": ("gta5", "all", "00001.png", "There is 00001.png, without a folder images"),
    "zip_folder": ("cityscapes", "val", f"leftImg8bit_trainvaltest/{CITY}",
                   "move what is in {root}/leftImg8bit_trainvaltest to {root}"),
    "two_levels": ("cityscapes", "val", f"a/b/{CITY}", "move what is in {root}/a/b to {root}"),
    "inner": ("cityscapes", "val", CITY.replace("val/", "val/val/"),
              "There is leftImg8bit/val/val/ulm/ulm_1_leftImg8bit.png"),
    "no_cities": ("cityscapes", "val", CITY.replace("ulm/", ""), "without folders at that place"),
    "other_case": ("crosscity", "val", "images/Test/1.png", "images in the place of Images"),
    "other_split": ("cityscapes", "val", CITY.replace("val", "train"),
                    "leftImg8bit/train in the place of leftImg8bit/val"),
    "labels_nested": ("cityscapes", "val",
                      f"{CITY} gtFine_t/gtFine/val/ulm/ulm_1_gtFine_labelIds.png",
                      "move what is in {root}/gtFine_t to {root}"),
    "colour_labels": ("cityscapes", "val", f"{CITY} gtFine/val/ulm/ulm_1_gtFine_color.png",
                      "lie ulm_1_gtFine_color.png, and no *_gtFine_labelIds.png: take the labels"),
    "other_release": ("cityscapes", "val", f"{CITY} gtCoarse/val/ulm/ulm_1_gtCoarse_labelIds.png",
                      "In {root} there is gtCoarse, leftImg8bit, and no gtFine"),
    "polygons": ("cityscapes", "val", f"{CITY} gtFine/val/ulm/ulm_1_gtFine_polygons.json",
                 "lie ulm_1_gtFine_polygons.json, and no *_gtFine_labelIds.png"),
    "other_ids": ("mapillary", "val", "validation/images/a.jpg validation/v2.0/labels/a.png",
                  "if these are the labels meant, move what is in {root}/validation/v2.0"),
    "city": ("crosscity", "val", "Rio/Images/Test/1.png Rome/Images/Test/1.png",
             "There is: Rio, Rome."),
    "city_hint": ("crosscity", "val", "Rome/Images/Test/1.png", "crosscity=NTHU/Rome"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_near_is_said_with_the_mend(case, tmp_path):
    domain, split, files, words = CASES[case]
    touch(tmp_path, *files.split())
    with pytest.raises(UserError) as error:
        list_samples(create_domain(domain, tmp_path), split)
    assert words.format(root=tmp_path) in str(error.value)


def test_the_folder_above_is_meant(tmp_path):
    touch(tmp_path, f"set/{CITY}")
    with pytest.raises(UserError, match=f"give the one above, {tmp_path}/set"):
        list_samples(create_domain("cityscapes", tmp_path / "set/leftImg8bit"), "val")


def test_signs_of_other_patterns_are_explained(tmp_path):
    touch(tmp_path, "a/1.jpg")
    (tmp_path / "x.yaml").write_text("images: 'a/[0-9]*.jpg'\nsplits: [train]")
    with pytest.raises(UserError, match=r"a/\[0-9\]\*.jpg.*a pattern \[ is a sign like any other"):
        list_samples(create_domain(str(tmp_path / "x.yaml")), "train", require_labels=False)


def test_some_missing_tell_what_is_not_read_there(tmp_path):
    touch(tmp_path, *GTA5.split(), "images/00002.tif", "labels/00002.png")
    with pytest.raises(UserError, match=r"1 of 2 images.*1 of another suffix \(images/00002.tif\)"):
        list_samples(create_domain("gta5", tmp_path), "all")


def test_the_start_of_a_run_tells_what_is_not_read(tmp_path):
    touch(tmp_path, *GTA5.split(), "images/00002.jpg", "images/._00001.png")
    notes = list_samples(create_domain("gta5", tmp_path), "all").notes
    assert notes[-1] == (
        "not read: 1 hidden (images/._00001.png); 1 of another suffix (images/00002.jpg)"
    )
