"""What is said of one sample's files."""

import dataclasses

import numpy as np
import pytest
from PIL import Image, ImageFile

from snr_jax.data.faults.inspection import inspect, orientation
from snr_jax.data.samples import Sample
from tests.data.tiny_sets import labels_of, natural_image, random_ids, save_palette

GTA5 = labels_of("gta5")


def good_sample(tmp_path) -> Sample:
    Image.fromarray(natural_image(0, 20, 30)).save(tmp_path / "image.png")
    save_palette(random_ids(0, 20, 30), tmp_path / "label.png")
    return Sample("1", str(tmp_path / "image.png"), str(tmp_path / "label.png"))


def test_inspect_a_good_sample(tmp_path):
    finding = inspect(good_sample(tmp_path), GTA5)
    assert finding.faults == [] and finding.size == finding.label_size == (20, 30)
    assert np.array_equal(finding.pixels, np.bincount(random_ids(0, 20, 30).ravel(), minlength=256))


def test_inspect_without_a_label(tmp_path):
    sample = dataclasses.replace(good_sample(tmp_path), label=None)
    assert inspect(sample, GTA5) == ([], (20, 30), None, None, False, 1)


def test_inspect_names_the_file_and_the_fault(tmp_path):
    sample = good_sample(tmp_path)

    def faults() -> str:
        return "; ".join(inspect(sample, GTA5).faults)

    whole = (tmp_path / "image.png").read_bytes()
    (tmp_path / "image.png").write_bytes(whole[: len(whole) // 2])
    assert f"{sample.image} is no image that can be decoded: Invalid PNG data" in faults()
    (tmp_path / "image.png").write_text("not an image")
    assert f"{sample.image} is no image that can be decoded: " in faults()
    (tmp_path / "image.png").unlink()
    assert f"{sample.image} cannot be read: " in faults() and "No such file" in faults()

    Image.fromarray(natural_image(0, 22, 30)).save(sample.image)
    assert f"{sample.label} is 30x20 and its image {sample.image} 30x22" in faults()
    Image.fromarray(natural_image(0, 40, 60)).save(sample.image)
    assert faults() == ""  # of one shape
    Image.fromarray(natural_image(0, 21, 30)).save(sample.image)
    assert faults() == ""  # 5 %
    Image.fromarray(natural_image(0, 20, 30)).save(sample.image)
    assert faults() == ""

    save_palette(random_ids(0, 20, 30, np.array([7, 40, 200, 255], np.uint8)), sample.label)
    assert f"{sample.label} holds the label ids 40, 200, which gta5 does not define" in faults()
    Image.fromarray(natural_image(0, 20, 30)).save(sample.label)
    assert f"{sample.label} is no label image that can be decoded: a PNG with colours" in faults()
    (tmp_path / "label.png").write_text("short")
    assert f"{sample.label} is no label image that can be decoded: no PNG file" in faults()


def save_turned(path: str, height: int, width: int, orientation: int, kind: str = "JPEG") -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(natural_image(0, height, width)).save(path, kind, exif=exif)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_what_exif_turns_is_told_without_decoding(tmp_path, monkeypatch, kind):
    sample = good_sample(tmp_path)
    save_turned(sample.image, 20, 30, 3, kind)
    finding = inspect(sample, GTA5)
    assert finding.faults == [] and finding.orientation == 3  # labels may fit what is stored
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)
    with Image.open(sample.image) as image:
        assert orientation(image) == 3


def test_shapes_that_agree_once_turned_have_a_cause(tmp_path):
    sample = good_sample(tmp_path)
    save_turned(sample.image, 30, 20, 6)
    (fault,) = inspect(sample, GTA5).faults
    assert "must agree within 5 %: the EXIF orientation 6 turns the image" in fault
    for height, width, how in ((30, 20, 3), (30, 20, 1), (60, 20, 6)):
        save_turned(sample.image, height, width, how)
        (fault,) = inspect(sample, GTA5).faults
        assert fault.endswith("within 5 %")
