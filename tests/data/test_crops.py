"""Which crop is taken, by its classes, and where in it the whole image's rim lies."""

import itertools

import numpy as np
import pytest
from PIL import Image

from snr_jax.core.labels import IGNORE
from snr_jax.data import rare
from snr_jax.data.domains import create_domain
from snr_jax.data.pipeline import train_batches
from snr_jax.data.samples import list_samples
from tests.data.tiny_sets import labels_of, save_palette, write_gta5

GTA5 = labels_of("gta5")
SIZE = HEIGHT, WIDTH = (24, 40)
ROAD, CAR, NOTHING = 7, 26, 0  # ids of the files
CROP = (24, 14)


@pytest.fixture
def make(tmp_path):
    """make(ids of a row) → three samples whose labels have it in every row."""

    def write(row):
        samples = list_samples(
            create_domain("gta5", write_gta5(tmp_path, [1, 2, 3], *SIZE)), "train")[0]
        for sample in samples:
            save_palette(np.tile(np.array(row, np.uint8), (HEIGHT, 1)), sample.label)
        return samples

    return write


def read(samples, count=40, **options):
    keywords = {"size": SIZE, "batch_size": 2, "seed": 5, "mirror": False, "crop": CROP, **options}
    batches = list(itertools.islice(train_batches(samples, GTA5, **keywords), count))
    return {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}


def shares(labels):
    """Of each label the largest share of a class, among the pixels that have one."""
    counts = np.array([np.bincount(x.ravel(), minlength=256)[:IGNORE] for x in labels])
    return counts.max(1) / np.maximum(counts.sum(1), 1)


# --- by classes

def test_a_crop_is_drawn_again_until_no_class_has_most_of_it(make):
    """7 of 27 places are right, and (20 / 27)^11 is 4 %; a first place that is right stays."""
    samples = make([ROAD] * 30 + [CAR] * 10)
    plain, chosen = read(samples), read(samples, crop_class_share=0.75)
    right = shares(plain["label"]) <= 0.75
    assert 0.1 < right.mean() < 0.5 and (shares(chosen["label"]) <= 0.75).mean() > 0.85
    for key in plain:
        np.testing.assert_array_equal(chosen[key][right], plain[key][right])
    late = read(samples, count=10, start_step=30, crop_class_share=0.75)
    for key in late:
        np.testing.assert_array_equal(late[key], chosen[key][60:])


@pytest.mark.parametrize("row, share, is_right", [
    ([ROAD] * 3 + [CAR], 0.75, True), ([ROAD] * 3 + [CAR], 0.74, False),
    ([ROAD, ROAD, CAR, NOTHING], 0.6, False), ([NOTHING] * 4, 0.75, False),
])  # fmt: skip
def test_what_has_no_class_does_not_count(row, share, is_right, make):
    """All crops of 8 columns are alike: the first stays, or the last of eleven is taken."""
    samples = make(row * 10)
    options = {"count": 10, "crop": (24, 8)}
    plain, chosen = read(samples, **options), read(samples, crop_class_share=share, **options)
    same = (plain["image"] == chosen["image"]).all((1, 2, 3))
    assert same.all() if is_right else same.mean() < 0.5


def test_a_crop_holds_the_rare_class_and_enough_of_others(make):
    samples = make([CAR] * 20 + [ROAD] * 20)
    counts = np.zeros((3, 19), int)
    counts[:, 13] = 5
    drawn = rare.rare_classes(counts, temperature=0.01, min_pixels=1)
    alone, both = read(samples, rare=drawn), read(samples, rare=drawn, crop_class_share=0.75)
    assert (shares(alone["label"]) > 0.75).mean() > 0.3
    held = (both["label"] == 13).any((1, 2))
    assert ((shares(both["label"]) <= 0.75) & held).mean() > 0.9


# --- the rim

RIM = (0.125, 0.25, 0.1, 0.2)  # of 24x40: rows 3 to 18, columns 4 to 32


@pytest.fixture
def places(make):
    """Samples whose images tell the row and the column of each pixel."""
    samples = make([ROAD] * WIDTH)
    image = np.zeros((*SIZE, 3), np.uint8)
    image[..., 0], image[..., 1] = np.mgrid[:HEIGHT, :WIDTH] * 5
    for sample in samples:
        Image.fromarray(image).save(sample.image)
    return samples


@pytest.mark.parametrize("scale, crop, mirror", [
    (1, (14, 18), True), (1, None, True), (2, (30, 33), True), (1, (14, 18), False),
    (1, (30, 44), True), (0.5, (9, 15), True),
], ids=str)  # fmt: skip
def test_the_rest_of_the_whole_image(scale, crop, mirror, places):
    """Whatever the scale, the crop and the mirror: where row and column are those of the rest."""
    found = read(places, count=12, with_labels=False, rim=RIM, crop=crop, mirror=mirror,
                 scale_range=None if scale == 1 else (scale, scale))
    height, width = crop or SIZE
    assert found["inside"].dtype == np.int32 and found["inside"].shape == (24, 4)
    mirrored, starts = [], set()
    for image, box in zip(found["image"], found["inside"], strict=True):
        top, end, left, stop = box
        inside = np.zeros((height, width), bool)
        inside[top:end, left:stop] = True
        row, column = np.moveaxis(image[..., :2].astype(int), 2, 0) / 5  # of the file
        rest = (row > 2.5) & (row < 17.5) & (column > 3.5) & (column < 31.5)
        rest &= image[..., 2] < 50  # not the mean colour beyond the image
        np.testing.assert_array_equal(inside, rest)
        mirrored.append(column[0, 0] > column[0, 5])
        starts.add((top, left))
    assert np.mean(mirrored) == pytest.approx(0.5 * mirror, abs=0.3 * mirror)
    assert len(starts) > 1 or crop in (None, (30, 44))


def test_without_a_rim_a_batch_is_as_ever(places):
    assert read(places, count=1, with_labels=False).keys() == {"image"}
    plain, more = (read(places, count=5, with_labels=False, rim=rim) for rim in (None, RIM))
    np.testing.assert_array_equal(more["image"], plain["image"])
    late = read(places, count=2, with_labels=False, rim=RIM, start_step=3)
    np.testing.assert_array_equal(late["inside"], more["inside"][6:])
