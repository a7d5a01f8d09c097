"""What a crop adds beside an image is padding, whatever 255 means in the files."""

import itertools

import numpy as np
import pytest

from snr_jax.core.labels import IGNORE
from snr_jax.data import rare
from snr_jax.data.domains import create_domain
from snr_jax.data.pipeline import train_batches
from snr_jax.data.prepared import spread, writing
from snr_jax.data.prepared.reading import open_prepared
from snr_jax.data.samples import list_samples
from snr_jax.workdir import record
from tests.data.tiny_sets import write_masks

SIZE = (40, 80)
BACKGROUND, TARGET = 0, 1  # 0 and 255 in the files
MEAN_COLOR = [123, 117, 104]


@pytest.fixture(scope="module")
def domain(tmp_path_factory):
    return create_domain(write_masks(tmp_path_factory.mktemp("masks")))


def read(domain, count=6, prepared=None, **options):
    listing = list_samples(domain, "train", classes=domain.classes)
    keywords = {"size": SIZE, "batch_size": 2, "seed": 3, "mirror": False} | options
    return list(itertools.islice(
        train_batches(listing.samples, listing.labels, prepared=prepared, **keywords), count))


def assert_padded(batches, height, width):
    """The image is [height,width] of the crop; both classes are in it and neither beside it."""
    for batch in batches:
        inside = np.zeros(batch["label"].shape[1:], bool)
        inside[:height, :width] = True
        assert not inside.all()
        assert (batch["label"][:, ~inside] == IGNORE).all()
        assert (batch["image"][:, ~inside] == MEAN_COLOR).all()
        assert set(np.unique(batch["label"][:, inside])) == {BACKGROUND, TARGET}


@pytest.mark.parametrize("options, extent", [
    ({"crop": (80, 80)}, (40, 80)),
    ({"crop": (30, 100)}, (30, 80)),
    ({"scale_range": (0.5, 0.5)}, (20, 40)),
    ({"scale_range": (0.75, 0.75), "crop": (33, 65)}, (30, 60)),
], ids=str)  # fmt: skip
def test_padding_is_no_class_where_255_is_one(domain, options, extent):
    assert_padded(read(domain, **options), *extent)


def test_nor_for_rare_classes(domain):
    """No crop is chosen for its padding either: what it was drawn for is in the image."""
    samples, labels, _ = list_samples(domain, "train", classes=domain.classes)
    counts = rare.count_classes(samples, labels, domain.directory, show=lambda *_: None)
    assert counts.tolist() == 4 * [[1600, 1600]]
    drawn = rare.rare_classes(counts, temperature=1.0, min_pixels=1)
    assert_padded(read(domain, rare=drawn, crop=(80, 80)), 40, 80)


def test_nor_in_prepared_data(domain, tmp_path, monkeypatch):
    monkeypatch.setattr(spread, "in_processes",
                        lambda work, items, workers, watch: [work(item) for item in items])
    writing.prepare(domain, tmp_path, splits=["train"], size=SIZE, images="raw", workers=1,
                    identify=record.identity)
    for options in ({"crop": (80, 80)}, {"scale_range": (0.5, 1.0), "crop": (60, 80)}):
        _, _, prepared = open_prepared(
            tmp_path, domain, "train", size=SIZE, classes=domain.classes,
            scale_range=options.get("scale_range"))
        found, expected = read(domain, prepared=prepared, **options), read(domain, **options)
        for one, other in zip(found, expected, strict=True):
            assert (one["label"][:, 40:] == IGNORE).all()
            np.testing.assert_array_equal(one["label"], other["label"])


def test_the_target_says_what_is_image(domain):
    """Only where a sample may be smaller than its crop."""
    options = {"with_labels": False, "scale_range": (0.5, 1.5), "crop": (33, 90)}
    found = np.concatenate([batch["extent"] for batch in read(domain, count=20, **options)])
    assert found.dtype == np.int32 and found.max(0).tolist() == [33, 90]
    assert found[:, 0].min() < 30 and found[:, 1].min() < 60
    for batch in read(domain, **options):
        for image, (height, width) in zip(batch["image"], batch["extent"], strict=True):
            padded = (image == MEAN_COLOR).all(-1)
            assert padded[height:].all() and padded[:, width:].all()
            assert not padded[:height, :width].all(0).any()
    for options in ({}, {"crop": (33, 65)}, {"scale_range": (1.0, 2.0), "crop": (40, 80)}):
        assert read(domain, count=1, with_labels=False, **options)[0].keys() == {"image"}
    assert read(domain, count=1, crop=(80, 80))[0].keys() == {"image", "label"}
