"""Rare class sampling: probabilities by hand, what is drawn, crops that hold it, kept counts."""

import itertools
import os

import numpy as np
import pytest

from snr_jax.core.errors import UserError
from snr_jax.data import rare
from snr_jax.data.domains import create_domain
from snr_jax.data.pipeline import train_batches
from snr_jax.data.samples import list_samples
from tests.commands import said
from tests.data.tiny_sets import labels_of, save_palette, write_gta5

GTA5 = labels_of("gta5")
ROAD_ID, CAR_ID, ROAD, CAR = 7, 26, 0, 13
HEIGHT, WIDTH = 40, 60


@pytest.fixture
def gta5(tmp_path):
    """Three labels of road alone; in the last, 3x4 pixels of car in the lower right corner."""
    root = write_gta5(tmp_path, ids=range(1, 4), height=HEIGHT, width=WIDTH)
    for path in sorted((root / "labels").iterdir()):
        ids = np.full((HEIGHT, WIDTH), ROAD_ID, np.uint8)
        if path.stem == "00003":
            ids[-3:, -4:] = CAR_ID
        save_palette(ids, path)
    return root, list_samples(create_domain("gta5", root), "all")[0]


def count(gta5):
    root, samples = gta5
    shown = []
    counts = rare.count_classes(
        samples, GTA5, str(root), show=lambda *progress: shown.append(progress))
    return counts, shown


def test_probabilities_by_hand():
    """f = 0.9, 0.1, 0: exp(-0.8 / 0.5) to 1; the third class no image holds."""
    counts = np.array([[50, 0, 0], [40, 10, 0]])
    found = rare.rare_classes(counts, temperature=0.5, min_pixels=10)
    weight = np.exp(-1.6)
    np.testing.assert_allclose(
        found.probabilities, [weight / (1 + weight), 1 / (1 + weight), 0], rtol=1e-12)
    assert [i.tolist() for i in found.images] == [[0, 1], [1], []]
    # With more pixels asked for, the second class is not held either.
    found = rare.rare_classes(counts, temperature=0.5, min_pixels=11)
    assert found.probabilities.tolist() == [1, 0, 0]
    with pytest.raises(UserError, match=r"no class has 51 pixels .* at most 50.*rare_class_pixels"):
        rare.rare_classes(counts, temperature=0.5, min_pixels=51)


def test_a_low_temperature_is_finite():
    found = rare.rare_classes(np.array([[10**9, 1]]), temperature=1e-3, min_pixels=1)
    assert found.probabilities.tolist() == [0, 1]


def test_draws_follow_the_probabilities_and_the_seed():
    counts = np.array([[60, 0], [60, 0], [0, 40]])
    found = rare.rare_classes(counts, temperature=0.2, min_pixels=1)
    draws = [found.draw(position, seed=3) for position in range(2000)]
    assert draws == [found.draw(position, seed=3) for position in range(2000)]
    assert draws != [found.draw(position, seed=4) for position in range(2000)]
    images, classes = np.array(draws).T
    expected = 1 / (1 + np.exp(-0.5 / 0.2))  # f is 0.75 and 0.25
    assert (classes == 1).mean() == pytest.approx(expected, abs=0.03)
    assert set(images[classes == 0]) == {0, 1} and set(images[classes == 1]) == {2}


def test_counts_are_of_the_files_and_kept(gta5):
    counts, shown = count(gta5)
    assert counts.shape == (3, 19) and counts.sum(0)[[ROAD, CAR]].tolist() == [7188, 12]
    assert counts[:, CAR].tolist() == [0, 0, 12] and shown[-1] == (3, 3)
    again, shown = count(gta5)
    np.testing.assert_array_equal(again, counts)
    assert not shown, "the labels were read again"


def test_other_labels_are_counted_anew(gta5):
    count(gta5)
    _, samples = gta5
    save_palette(np.random.default_rng(0).choice([7, 26], (HEIGHT, WIDTH)).astype(np.uint8),
                 samples[0].label)
    counts, shown = count(gta5)
    assert counts[0, CAR] > 500 and shown


def test_a_broken_cache_is_made_anew(gta5):
    root, _ = gta5
    expected, _ = count(gta5)
    kept, = root.glob("class_counts_*.npy")
    kept.write_bytes(kept.read_bytes()[:40])
    counts, shown = count(gta5)
    np.testing.assert_array_equal(counts, expected)
    assert shown and not list(root.glob("*.tmp"))


def test_a_folder_that_cannot_be_written_is_said(gta5):
    _, samples = gta5
    with said() as lines:
        counts = rare.count_classes(samples, GTA5, "/proc/nowhere", show=lambda *_: None)
    assert counts[:, CAR].tolist() == [0, 0, 12]
    assert "cannot be kept in /proc/nowhere" in lines[0]


def test_broken_and_missing_labels_are_named(gta5):
    _, samples = gta5
    path = samples[1].label
    with open(path, "wb") as file:
        file.write(b"no PNG")
    with pytest.raises(UserError, match=r"00002\.png is no label"):
        count(gta5)
    os.remove(path)
    with pytest.raises(UserError, match=r"00002\.png cannot be read .*rare_class_temperature=0"):
        count(gta5)


# --- in the stream

def batches(gta5, number, start_step=0, **options):
    _, samples = gta5
    counts, _ = count(gta5)
    keywords = {
        "size": (HEIGHT, WIDTH), "batch_size": 2, "seed": 5, "mirror": False,
        "rare": rare.rare_classes(counts, temperature=0.01, min_pixels=1), **options,
    }
    stream = train_batches(samples, GTA5, start_step=start_step, **keywords)
    return list(itertools.islice(stream, number))


def test_the_stream_shows_the_rare_class(gta5):
    for batch in batches(gta5, 5):  # cars have nearly all of the probability
        assert (batch["label"] == CAR).any((1, 2)).all()


def test_a_crop_is_drawn_until_it_holds_the_class(gta5):
    """A tenth of the crops of 33x50 hold a pixel of the car: one of ten tries mostly does."""
    held = [(b["label"] == CAR).any((1, 2)) for b in batches(gta5, 30, crop=(33, 33))]
    plain = [(b["label"] == CAR).any((1, 2)) for b in batches(
        gta5, 60, crop=(33, 33), rare=None)]
    assert np.mean(held) > 2 * 3 * np.mean(plain)  # every third image has a car at all
    for batch in batches(gta5, 3, crop=(33, 33)):
        assert batch["image"].shape == (2, 33, 33, 3)


def test_the_stream_is_a_function_of_seed_and_step(gta5):
    whole = batches(gta5, 4, crop=(33, 33))
    for one, other in zip(batches(gta5, 2, start_step=2, crop=(33, 33)), whole[2:], strict=True):
        np.testing.assert_array_equal(one["image"], other["image"])
        np.testing.assert_array_equal(one["label"], other["label"])
    halves = [batches(gta5, 2, crop=(33, 33), shard_index=i, shard_count=2) for i in (0, 1)]
    for one, first, second in zip(whole, *halves):
        np.testing.assert_array_equal(
            one["label"], np.concatenate([first["label"], second["label"]]))
