"""What is said of one sample's files."""

import dataclasses

import numpy as np
from PIL import Image

from snr_jax.data.faults.inspection import inspect
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
    assert inspect(sample, GTA5) == ([], (20, 30), None, None, False)


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
