"""Tiles and scales of an image, scored together, and the calibration that is scored beside."""

import copy
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from snr_jax import evaluate
from snr_jax.core import metrics
from snr_jax.core.labels import classes
from snr_jax.core.models.deeplab import map_size
from snr_jax.core.parallel import create_parallel
from snr_jax.core.tiles import Averaging, cut
from snr_jax.data import pipeline
from snr_jax.data.domains import create_domain
from snr_jax.data.splits import open_split
from snr_jax.inference import tiles
from snr_jax.runs import averaging, evaluation
from snr_jax.runs.validation import incomparable
from snr_jax.workdir.record import evaluation_settings
from tests.core.tiny import network, variables
from tests.data.tiny_sets import natural_image, random_ids, save_palette
from tests.runs.test_evaluate import (  # noqa: F401
    checkpoint,
    configured,
    evaluate_flags,
    read_record,
)

SEEN = (40, 60)
SIZES = [(40, 60), (40, 60), (70, 100)]
TILE = Averaging((40, 48), 9)


@pytest.fixture(autouse=True)
def small_blocks(cache, monkeypatch):
    """Labels that a few small blocks cover."""
    for module in (averaging, tiles):
        monkeypatch.setattr(module, "BLOCK", (32, 64))


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    folder = tmp_path_factory.mktemp("averaging") / "GTA5"
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for number, size in enumerate(SIZES, start=1):
        name = f"{number:05d}.png"
        Image.fromarray(natural_image(number, *size)).save(folder / "images" / name)
        save_palette(random_ids(number, *size), folder / "labels" / name)
    return open_split(create_domain("gta5", folder), "all", size=SEEN, classes=classes(19))


@pytest.fixture(scope="module")
def counted(split):
    """counted(**options) → `evaluation.count` of one network, each made once."""
    model, parallel = network(num_classes=19), create_parallel()
    on_devices = parallel.replicate(variables(model))
    done = {}

    def count(**options) -> metrics.Counts:
        key = tuple(sorted(options.items()))
        if key not in done:
            done[key] = evaluation.count(model, on_devices, split, parallel=parallel,
                                         batch_size=2, **options)
        return done[key]

    return count


def predicted(split, **options) -> np.ndarray:
    """The confusion matrix of what `predict` writes of the same images."""
    model = network(num_classes=19)
    segment = partial(tiles.segment, tiles.create_network(model, variables(model)), **options)
    total = np.zeros((19, 19), np.int64)
    for batch in pipeline.eval_batches(split.samples, split.labels, size=SEEN, batch_size=1,
                                       label_size="full", image_size="full"):  # fmt: skip
        ids, _ = segment(Image.fromarray(batch["image"][0]))
        label = batch["label"][0]
        np.add.at(total, (label[label < 19], ids[label < 19]), 1)
    return total


@pytest.mark.parametrize("flip", [False, True])
def test_tiles_score_what_predict_writes(split, counted, flip):
    found = counted(protocol="full", flip=flip, averaging=TILE).confusion
    expected = predicted(split, tile=TILE.tile, overlap=TILE.overlap, flip=flip)
    np.testing.assert_array_equal(found, expected)
    assert (found != counted(protocol="full", flip=flip).confusion).any()


def test_a_scale_is_the_size_at_which_predict_sees(split, counted):
    found = counted(protocol="full", averaging=Averaging(scales=(1.5,))).confusion
    np.testing.assert_array_equal(found, predicted(split, size=(60, 90)))
    found = counted(protocol="full", averaging=TILE._replace(scales=(1.5,))).confusion
    assert (found != counted(protocol="full", averaging=TILE).confusion).any()
    np.testing.assert_array_equal(
        found, predicted(split, tile=TILE.tile, overlap=TILE.overlap, size=(60, 72)))


@pytest.mark.parametrize("protocol", evaluation.PROTOCOLS)
def test_one_glimpse_is_the_whole(counted, protocol):
    """At scale 1 in one form of counting and in the other, and in one tile of all."""
    whole = counted(protocol=protocol, calibrated=True)
    one = counted(protocol=protocol, averaging=Averaging(), calibrated=True)
    same = [one, *([counted(protocol=protocol, averaging=Averaging(SEEN, 5), calibrated=True)]
                   if protocol == "network" else [])]
    for other in same:
        assert np.abs(whole.confusion - other.confusion).sum() <= 4  # ties that rounding decides
        np.testing.assert_array_equal(whole.confusion.sum(1), other.confusion.sum(1))
        errors = [metrics.calibration(counts.reliability)["ece"] for counts in (whole, other)]
        assert errors[0] == pytest.approx(errors[1], abs=1e-4)
    assert whole.reliability[:, 0].sum() == whole.confusion.sum()
    assert whole.reliability[:, 1].sum() == np.trace(whole.confusion)


def test_scales_are_averaged(split):
    """Two scales and the mirror, by the definition: the mean of four probabilities."""
    model, values = network(num_classes=19), variables(network(num_classes=19))
    chosen = split.first(1)
    parallel = create_parallel()
    found = evaluation.count(
        model, parallel.replicate(values), chosen, parallel=parallel, flip=True, calibrated=True,
        averaging=Averaging(scales=(1.0, 1.5)),
    )
    (batch,) = pipeline.eval_batches(chosen.samples, chosen.labels, size=SEEN, batch_size=1)
    p = []
    for size in (SEEN, (60, 90)):
        image = Image.fromarray(natural_image(1, *SIZES[0])).resize(
            size[::-1], Image.Resampling.BICUBIC)
        for step in (1, -1):
            bgr = np.asarray(image).astype(np.float32)[None, :, ::step, ::-1] - np.array(
                [104.00698793, 116.66876762, 122.67891434], np.float32)
            logits = jax.jit(partial(model.apply, train=False, output_size=SEEN))(values, bgr).main
            p.append(np.asarray(jax.nn.softmax(logits))[:, :, ::step])
    p = np.mean(p, axis=0)
    expected = metrics.count_confusion(batch["label"], p)
    assert np.abs(found.confusion - np.asarray(expected)).sum() <= 4
    errors = [metrics.calibration(np.asarray(counts))["ece"] for counts in (
        found.reliability, metrics.count_reliability(batch["label"], jax.numpy.asarray(p)))]
    assert errors[0] == pytest.approx(errors[1], abs=1e-4)


def test_glimpses_cover_a_label_once():
    """Every pixel has shares that sum to 1 for each scale, and sees its own place."""
    images = np.random.default_rng(0).integers(0, 256, (1, 70, 100, 3), np.uint8)
    asked = Averaging((40, 48), 9, (1.0, 1.5))
    found = list(averaging.glimpses_of(images, (70, 100), SEEN, asked, map_size))
    assert {seen.image.shape for seen in found} == {(1, 40, 48, 3), (1, 60, 72, 3)}
    shares = sum(np.outer(seen.rows.share, seen.columns.share) for seen in found)
    np.testing.assert_allclose(shares[:70, :100], 2, atol=1e-5)
    assert not shares[70:].any() and not shares[:, 100:].any()
    np.testing.assert_array_equal(found[0].image, images[:, :40, :48])


def test_a_tile_beyond_the_image_is_padded():
    image = np.zeros((2, 3, 4, 3), np.uint8)
    part = cut(image, 1, 2, (4, 5))
    assert part.shape == (2, 4, 5, 3) and not part[:, :2, :2].any()
    assert (part[:, 2:] == (123, 117, 104)).all() and (part[:, :, 2:] == (123, 117, 104)).all()


# ---------------------------------------------------------------- settings


def settings(split, **options) -> dict:
    return evaluation_settings(split, flip=False, dtype="float32", **options)


def test_settings_say_what_was_used_and_nothing_else(split):
    plain = settings(split, protocol="full")
    assert plain == settings(split, protocol="full", averaging=Averaging())
    assert not {"tile", "overlap", "scales"} & plain.keys() and plain["size"] == list(SEEN)
    tiled = settings(split, protocol="full", averaging=TILE)
    assert tiled == plain | {"tile": [40, 48], "overlap": 9, "size": "own"}
    assert settings(split, protocol="network", averaging=TILE)["size"] == list(SEEN)
    scaled = settings(split, protocol="full", averaging=Averaging(scales=(0.75, 1.0)))
    assert scaled == plain | {"scales": [0.75, 1.0]}


def test_scores_of_other_averages_are_not_compared(split):
    def meta(**options):
        scores = {"settings": settings(split, protocol="network", **options) | {"step": 1},
                  "miou": 0.5}
        return {"scores": {"gta5": scores}}

    assert incomparable(meta(), meta(averaging=Averaging()), "gta5") == []
    for other in (TILE, Averaging(scales=(2.0,))):
        assert incomparable(meta(), meta(averaging=other), "gta5")
        assert incomparable(meta(averaging=other), meta(), "gta5")


# ---------------------------------------------------------------- the command


QUIET = ("--protocol=network", "--pictures=0")


def test_the_command(evaluate_flags, command, tmp_path):  # noqa: F811
    result = command("evaluate", *evaluate_flags, *QUIET, "--flip=yes", "--tile=33,40",
                     "--scales=1,1.5", "--out", tmp_path)
    assert result.code == 0, result
    results = read_record(tmp_path)["results"]
    ((name, scores),) = results.items()
    found = scores["settings"]
    assert (found["tile"], found["overlap"], found["scales"]) == ([33, 40], 4, [1.0, 1.5])
    assert found["flip"] and name == "network+tile+scales+flip"
    assert sum(scores["reliability"]["pixels"]) > 0 and 0 < scores["ece"] < 1
    line = f"{name}: mIoU {100 * scores['miou']:.1f}, ECE {100 * scores['ece']:.1f}"
    assert line in result.out.splitlines()
    assert Image.open(tmp_path / "reliability.png").width > 300


@pytest.mark.parametrize("given", [[], ["--scales=1"], ["--scales=1.0"]])
def test_scale_1_is_no_scale(given):
    args = copy.deepcopy(evaluate.FLAGS)
    args(["evaluate", *given])
    assert evaluate._averaging(args) is None


@pytest.mark.parametrize(
    "flags, words",
    [
        (("--tile=40",), "--tile is 40; expected HEIGHT,WIDTH in pixels, as 512,1024, of at least"),
        (("--tile=32,64",), "of at least 33 each"),
        (("--overlap=8",), "give --tile HEIGHT,WIDTH as well"),
        (("--tile=40,60", "--overlap=21"), "--overlap is 21; expected 0 to 20"),
        (("--scales=",), "--scales is ''; expected numbers from 0.25 to 4.0, each once"),
        (("--scales=1,x",), "--scales is '1,x'; expected numbers"),
        (("--scales=1,1.0",), "each once"),
        (("--scales=nan",), "--scales is 'nan'"),
        (("--scales=5",), "--scales is '5'; expected numbers from 0.25 to 4.0"),
        (("--scales=0.5,1",), "at 0.5 the network would see cityscapes at 16x32; expected"),
    ],
)  # fmt: skip
def test_mistakes(flags, words, evaluate_flags, refused, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    assert words in refused("evaluate", *evaluate_flags, *flags, "--out", out)
    assert not Path(out).exists()
