import itertools
import os
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from snr_jax.core.errors import UserError
from snr_jax.core.labels import IGNORE, class_names
from snr_jax.data.domains import create_domain
from snr_jax.data.pipeline import eval_batches, sample_at, train_batches
from snr_jax.data.samples import Sample, list_samples
from tests.data.tiny_sets import (
    TRAIN_IDS,
    labels_of,
    natural_image,
    random_ids,
    save_palette,
    write_cityscapes,
    write_gta5,
)

SIZE = (12, 20)
GTA5, CITYSCAPES = labels_of("gta5"), labels_of("cityscapes")
MEAN_COLOR = [123, 117, 104]


@pytest.fixture
def gta5(tmp_path) -> list[Sample]:
    return list_samples(create_domain("gta5", write_gta5(tmp_path)), "train")[0]


def take(samples, count, **options):
    keywords = {"labels": GTA5, "size": SIZE, "batch_size": 2, "seed": 7} | options
    return list(itertools.islice(train_batches(samples, **keywords), count))


def assert_equal(batches, expected):
    assert len(batches) == len(expected)
    for one, other in zip(batches, expected):
        assert one.keys() == other.keys()
        for key in one:
            assert np.array_equal(one[key], other[key])


def pillow_pair(sample: Sample, size=SIZE, mirror=False) -> tuple[np.ndarray, np.ndarray]:
    image, label = Image.open(sample.image), Image.open(sample.label)
    if mirror:
        image, label = ImageOps.mirror(image), ImageOps.mirror(label)
    image = image.resize(size[::-1], Image.Resampling.BICUBIC)
    label = label.resize(size[::-1], Image.Resampling.NEAREST)
    return np.asarray(image), TRAIN_IDS[np.asarray(label)]


def is_mirrored(sample: Sample, image: np.ndarray, label: np.ndarray, size=SIZE) -> bool:
    """Image and label are Pillow's of that sample, plain or mirrored before the resize."""
    for mirror in (False, True):
        expected_image, expected_label = pillow_pair(sample, size, mirror)
        if np.array_equal(label, expected_label):
            assert np.array_equal(image, expected_image)
            return mirror
    raise AssertionError("the label is neither Pillow's nor Pillow's of the mirrored file")


def test_training_batches_hold_what_pillow_reads_in_the_documented_order(gta5):
    for step, batch in enumerate(take(gta5, 6)):
        assert {k: (v.dtype, v.shape) for k, v in batch.items()} == {
            "image": (np.uint8, (2, *SIZE, 3)),
            "label": (np.uint8, (2, *SIZE)),
        }
        for row in range(2):
            sample = gta5[sample_at(2 * step + row, len(gta5), seed=7)]
            is_mirrored(sample, batch["image"][row], batch["label"][row])


WIDTHS = [(2048, (8, 1024)), (2048, (8, 1280)), (1914, (7, 1280))]


@pytest.mark.parametrize(("width", "size"), WIDTHS)
def test_mirror_comes_before_the_resize(tmp_path, width, size):
    """At even ratios a mirrored label has other nearest pixels than the label mirrored later."""
    root = write_gta5(tmp_path, [1], 10, width)
    samples, _, _ = list_samples(create_domain("gta5", root), "train")
    batches = take(samples, 8, batch_size=1, size=size)
    found = [is_mirrored(samples[0], b["image"][0], b["label"][0], size) for b in batches]
    assert set(found) == {False, True}
    after = pillow_pair(samples[0], size)[1][:, ::-1]
    assert (after != pillow_pair(samples[0], size, mirror=True)[1]).any() == (width == 2048)


def mirrors(samples, count=200, **options) -> list[bool]:
    """Of the first `count` positions of a stream, for samples that are dark on their left."""
    batches = take(samples, count, batch_size=1, **options)
    return [bool(b["image"][0, :, 0].mean() > b["image"][0, :, -1].mean()) for b in batches]


def test_mirrors_are_halves_drawn_anew_for_every_seed_and_position(gta5):
    """Source and target are streams of two seeds (`experiment.batches`)."""
    ramp = np.repeat(np.linspace(0, 255, 40).astype(np.uint8)[None, :, None], 24, 0).repeat(3, 2)
    for sample in gta5:
        Image.fromarray(ramp).save(sample.image)
    source, target = np.array(mirrors(gta5, seed=0)), np.array(mirrors(gta5, seed=1))
    for draws in (source, target):
        assert 70 <= draws.sum() <= 130  # 100 ± 4 standard deviations of 7
        by_epoch = draws.reshape(-1, len(gta5))
        assert len({tuple(epoch) for epoch in by_epoch}) > 20  # of 32
    assert 70 <= (source ^ target).sum() <= 130
    assert mirrors(gta5, seed=0, count=50, start_step=30) == source[30:80].tolist()
    assert mirrors(gta5, seed=0, count=50, scale_range=(1, 1), crop=SIZE) == source[:50].tolist()
    unlabelled = mirrors(gta5, seed=0, count=50, with_labels=False)
    assert unlabelled == source[:50].tolist()


def test_every_epoch_is_another_permutation():
    epochs = [[sample_at(10 * e + i, 10, seed=3) for i in range(10)] for e in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != [sample_at(i, 10, seed=4) for i in range(10)]


AUGMENTED = {"scale_range": (0.5, 2.0), "crop": (14, 18)}


@pytest.mark.parametrize("options", [{}, AUGMENTED], ids=["plain", "augmented"])
def test_a_stream_opened_later_goes_on_bit_for_bit(gta5, options):
    whole = take(gta5, 20, **options)
    assert_equal(take(gta5, 13, start_step=7, **options), whole[7:])
    assert_equal(take(gta5, 20, **options), whole)


def checksums(samples) -> list[int]:
    batches = take(samples, 4, **AUGMENTED)
    return [zlib.crc32(b["image"].tobytes() + b["label"].tobytes()) for b in batches]


def test_another_process_gives_the_same_and_starts_quietly(gta5):
    code = (
        "import sys; from tests.data.test_pipeline import *;"
        "print(*checksums(list_samples(create_domain('gta5', sys.argv[1]), 'train')[0]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(gta5[0].image).parents[1])],
        env={key: value for key, value in os.environ.items() if not key.startswith("TF_")},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert list(map(int, done.stdout.split())) == checksums(gta5)
    assert done.stderr == ""


@pytest.mark.parametrize("options", [{}, AUGMENTED], ids=["plain", "augmented"])
def test_shards_together_are_the_global_batch(gta5, options):
    whole = take(gta5, 3, batch_size=4, **options)
    shards = [
        take(gta5, 3, batch_size=4, shard_index=i, shard_count=2, **options) for i in range(2)
    ]
    joined = [{k: np.concatenate([a[k], b[k]]) for k in a} for a, b in zip(*shards)]
    assert_equal(joined, whole)
    with pytest.raises(ValueError, match="no shard 0 of 3 in batches of 4"):
        take(gta5, 1, batch_size=4, shard_count=3)
    with pytest.raises(ValueError, match="no shard 2 of 2"):
        take(gta5, 1, batch_size=4, shard_index=2, shard_count=2)


def test_a_set_smaller_than_a_batch(gta5):
    (batch,) = take(gta5[:2], 1, batch_size=5)
    order = [sample_at(i, 2, seed=7) for i in range(5)]
    for row, index in enumerate(order):
        is_mirrored(gta5[index], batch["image"][row], batch["label"][row])


def test_a_target_without_labels(tmp_path):
    root = write_cityscapes(tmp_path, 3, "train", labels=False)
    samples, _, _ = list_samples(create_domain("cityscapes", root), "train", require_labels=False)
    (batch,) = take(samples, 1, labels=CITYSCAPES, with_labels=False)
    assert list(batch) == ["image"]
    match = r"3 of 3 images have no label, .*aachen_000000_000019_leftImg8bit.png"
    with pytest.raises(UserError, match=match):
        take(samples, 1, labels=CITYSCAPES)
    with pytest.raises(UserError, match=match):
        next(eval_batches(samples, labels=CITYSCAPES, size=SIZE, batch_size=2))


def test_fewer_classes_ignore_the_rest(gta5):
    (batch,) = take(gta5, 1, labels=labels_of("gta5", 13))
    (of_19,) = take(gta5, 1)
    names, all_names = class_names(13), class_names()
    kept = [names.index(name) if name in names else IGNORE for name in all_names]
    expected = np.array([*kept, *[IGNORE] * (256 - 19)])
    assert np.array_equal(batch["label"], expected[of_19["label"]])


def test_crop_without_scale_is_a_window_of_the_resized_sample(gta5):
    offsets = set()
    whole = take(gta5, 10, batch_size=1)
    for cropped, resized in zip(take(gta5, 10, batch_size=1, crop=(5, 8)), whole):
        windows = np.lib.stride_tricks.sliding_window_view(resized["label"][0], (5, 8))
        ((top, left),) = np.argwhere((windows == cropped["label"][0]).all((2, 3)))
        window = resized["image"][0, top : top + 5, left : left + 8]
        assert np.array_equal(cropped["image"][0], window)
        offsets.add((top, left))
    assert len(offsets) > 5


def test_small_samples_are_padded_below_and_right(gta5):
    for batch in take(gta5, 3, scale_range=(0.5, 0.5), crop=(16, 32)):
        assert batch["image"].shape == (2, 16, 32, 3)
        inside = np.zeros((16, 32), bool)
        inside[:6, :10] = True  # half of SIZE
        for image, label in zip(batch["image"], batch["label"]):
            assert (image[~inside] == MEAN_COLOR).all() and (label[~inside] == IGNORE).all()
            assert not (image[inside] == MEAN_COLOR).all(-1).any()


def test_scales_fill_their_range(gta5):
    """The width that the picture takes on a large canvas tells the factor."""
    batches = take(gta5, 40, batch_size=1, scale_range=(0.5, 2.0), crop=(24, 40))
    widths = [(b["image"][0] != MEAN_COLOR).any((0, 2)).sum() / SIZE[1] for b in batches]
    assert 0.5 <= min(widths) < 0.7 and 1.8 < max(widths) <= 2.0


def test_no_stream_has_a_tuning_thread_that_its_end_would_wait_for(gta5, monkeypatch):
    import tensorflow as tf  # at the head it would start before the package has quieted it

    opened, iterate = [], tf.data.Dataset.as_numpy_iterator

    def watched(dataset):
        opened.append(dataset.options().autotune.enabled)
        return iterate(dataset)

    monkeypatch.setattr(tf.data.Dataset, "as_numpy_iterator", watched)
    take(gta5, 1)
    next(eval_batches(gta5, GTA5, size=SIZE, batch_size=2, label_size="network"))
    assert opened == [False, False]


@pytest.mark.parametrize("label_size", ["network", "full"])
def test_evaluation_pads_and_masks_the_last_batch(tmp_path, label_size):
    samples, _, _ = list_samples(create_domain("cityscapes", write_cityscapes(tmp_path)), "val")
    options = {"labels": CITYSCAPES, "size": SIZE, "batch_size": 2, "label_size": label_size}
    batches = list(eval_batches(samples, **options))
    ids = [sample.id for sample in samples]
    assert [b["id"] for b in batches] == [ids[:2], ids[2:4], [ids[4], ""]]
    assert [b["valid"].tolist() for b in batches] == [[True, True], [True, True], [True, False]]
    height, width = SIZE if label_size == "network" else (24, 48)
    for batch in batches:
        assert batch["image"].shape == (2, *SIZE, 3) and batch["image"].dtype == np.uint8
        assert batch["label"].shape == (2, height, width) and batch["label"].dtype == np.uint8
    assert (batches[2]["label"][1] == IGNORE).all() and (batches[2]["image"][1] == 0).all()
    image, label = pillow_pair(samples[4])
    if label_size == "full":
        label = TRAIN_IDS[np.asarray(Image.open(samples[4].label))]
    assert np.array_equal(batches[2]["label"][0], label)
    assert np.array_equal(batches[2]["image"][0], image)


def test_full_size_labels_of_several_sizes_end_batches_early(gta5):
    for sample, height in ((gta5[1], 26), (gta5[2], 26)):
        Image.fromarray(natural_image(0, height, 40)).save(sample.image)
        save_palette(random_ids(0, height, 40), Path(sample.label))
    options = {"labels": GTA5, "size": SIZE, "batch_size": 2}
    full = list(eval_batches(gta5, label_size="full", **options))
    assert [b["id"] for b in full] == [["00001", ""], ["00002", "00003"], ["00004", "00005"]]
    assert [b["label"].shape[1] for b in full] == [24, 26, 24]
    assert sum(b["valid"].sum() for b in full) == 5
    network = list(eval_batches(gta5, **options))
    assert [b["id"] for b in network] == [["00001", "00002"], ["00003", "00004"], ["00005", ""]]
    with pytest.raises(ValueError, match="label_size is 'own'"):
        next(eval_batches(gta5, label_size="own", **options))


def break_image(sample):
    Path(sample.image).write_bytes(Path(sample.image).read_bytes()[:600])
    return f"{sample.image} is no image that can be decoded"


def break_label(sample):
    Path(sample.label).write_text("no PNG")
    return f"{sample.label} is no label image that can be decoded"


def remove_image(sample):
    Path(sample.image).unlink()
    return f"{sample.image} cannot be read"


def change_size(sample):
    Image.fromarray(natural_image(0, 26, 40)).save(sample.image)
    return f"{sample.label} is 40x24 and its image {sample.image} 40x26"


def change_ids(sample):
    ids = random_ids(0, 24, 40)
    ids[3, 5] = 35  # one pixel, and one that the resize to SIZE leaves out
    save_palette(ids, Path(sample.label))
    return f"{sample.label} holds the label ids 35, which gta5 does not define"


@pytest.mark.parametrize("spoil", [break_image, break_label, remove_image, change_size, change_ids])
def test_errors_name_the_file(gta5, spoil):
    expected = spoil(gta5[3])
    with pytest.raises(UserError) as caught:
        take(gta5, 3, scale_range=None)
    assert expected in str(caught.value)
    batches = eval_batches(gta5, labels=GTA5, size=SIZE, batch_size=1)
    good = [next(batches)["id"] for _ in range(3)]
    assert good == [["00001"], ["00002"], ["00003"]]
    with pytest.raises(UserError) as caught:
        next(batches)
    assert expected in str(caught.value)


def test_no_samples():
    with pytest.raises(UserError, match="at least one sample"):
        take([], 1)
