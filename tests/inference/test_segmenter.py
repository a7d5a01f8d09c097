"""The segmenter: the numbers of `predict`, from whatever an image is in Python."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from snr_jax.core.errors import UserError
from snr_jax.core.labels import class_names
from snr_jax.core.models.backbone import architecture
from snr_jax.core.models.deeplab import DeepLab
from snr_jax.core.state import initial_variables
from snr_jax.inference import photos, tiles
from snr_jax.inference.segmenter import Segmenter, load
from snr_jax.workdir import checkpoints


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """An untrained network, with kernels so large that its classes and confidences vary."""
    model = DeepLab(stage_sizes=(1, 1, 1, 1), width=4)
    variables = jax.tree_util.tree_map_with_path(
        lambda path, x: 15 * x if path[-1].key == "kernel" else x, initial_variables(model, 0)
    )
    meta = {"model": architecture(model), "scores": {"gta5": {"miou": 0.5}},
            "source": {"step": 0, "input_size": (33, 65)}}
    path = tmp_path_factory.mktemp("untrained") / "checkpoint"
    checkpoints.save_variables(path, variables, meta)
    return path


@pytest.fixture(scope="module")
def segmenter(checkpoint):
    return load(checkpoint)


def pixels(seed, *shape, dtype=np.uint8):
    most = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(0, most, shape, dtype, endpoint=True)


def same(one, other):
    return (one.labels == other.labels).all() and (one.confidence == other.confidence).all()


@pytest.mark.parametrize("flags, options", [
    ((), {}), (("--size=40,70", "--flip"), {"size": (40, 70), "flip": True}),
    (("--tile=40,50", "--overlap=20"), {"tile": (40, 50), "overlap": 20}),
    (("--size=own", "--dtype=bfloat16"), {"size": "own", "dtype": "bfloat16"}),
])  # fmt: skip
def test_the_numbers_are_those_of_predict(flags, options, checkpoint, command, tmp_path):
    (tmp_path / "images").mkdir()
    path = tmp_path / "images" / "a.jpg"
    Image.fromarray(pixels(1, 50, 90, 3)).save(path, exif=turned())
    result = command("predict", "--checkpoint", checkpoint, "--images", path, "--out", tmp_path,
                     "--confidence", *flags)
    assert result.code == 0, result
    result = load(str(checkpoint), **options)(path)
    assert result.labels.shape == (90, 50) and len(np.unique(result.labels)) > 1
    files = {kind: np.asarray(Image.open(tmp_path / f"a_{kind}.png"))
             for kind in ("trainIds", "confidence", "color", "overlay")}
    assert (files["trainIds"] == result.labels).all()
    assert (files["confidence"] == np.rint(255 * result.confidence)).all()
    assert (files["color"] == np.asarray(result.color())).all()
    assert (files["overlay"] == np.asarray(result.overlay())).all()


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned right by 90 degrees
    return exif


def test_an_image_is_the_same_in_every_form(segmenter, tmp_path):
    rgb = pixels(2, 40, 72, 3)
    Image.fromarray(rgb).save(tmp_path / "a.png", exif=turned())
    upright = np.rot90(rgb, -1)
    want = segmenter(upright)
    assert want.labels.dtype == np.uint8 and want.confidence.dtype == np.float32
    assert (want.image == upright).all() and class_names(want.classes) == class_names(19)
    with Image.open(tmp_path / "a.png") as opened:
        forms = [tmp_path / "a.png", str(tmp_path / "a.png"), opened, jax.numpy.asarray(upright),
                 np.concatenate([upright, pixels(3, 72, 40, 1)], -1),
                 upright.astype(np.uint16) * 256 + upright // 2]  # which is rounded up to it
        assert all(same(segmenter(form), want) for form in forms)
    deep = pixels(4, 40, 72, dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    gray = np.asarray(photos.read_image(tmp_path / "deep.png"))[..., 0]
    results = segmenter([deep, gray, Image.fromarray(gray), Image.fromarray(deep)])
    assert all(same(result, segmenter(tmp_path / "deep.png")) for result in results)


@pytest.mark.parametrize("image, words", [
    (np.zeros((4, 5, 3), np.float32), "shape (4, 5, 3) and dtype float32 is no image; expected"),
    (np.full((4, 5, 3), np.nan), "float64 is no image; expected uint8 (or uint16) [H,W,3] RGB"),
    (np.zeros((2, 4, 5, 3), np.uint8), "given as a list of its images: list(batch)"),
    (np.zeros((3, 40, 50), np.uint8), "Channels come last: image.transpose(1, 2, 0)"),
    (np.zeros((4, 5, 2), np.uint8), "shape (4, 5, 2) and dtype uint8 is no image"),
    (np.zeros((0, 5, 3), np.uint8), "shape (0, 5, 3)"), (np.zeros(7, np.uint8), "shape (7,)"),
    (np.zeros((4, 5), np.int64), "dtype int64"), (np.zeros((4, 5), bool), "dtype bool"),
    (Image.new("RGB", (0, 5)), "0x5 pixels is empty"),
    (Image.new("F", (4, 5)), "the PIL image cannot be read as an image: it holds floats"),
    ("nowhere.png", "nowhere.png: cannot be read as an image: No such file"),
    (Path("/"), "/: cannot be read as an image: Is a directory"),
    ("gs://bucket/a.png", "address of a bucket"),
    ([np.zeros((4, 5), np.uint8), "nowhere.png"], "images[1]: nowhere.png: cannot be read"),
])  # fmt: skip
def test_what_is_no_image_is_told_in_one_line(image, words, segmenter):
    with pytest.raises(UserError, match=re.escape(words)) as error:
        segmenter(image)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("image", [None, 7, b"\x89PNG", {"image": 1}])
def test_what_cannot_be_an_image_is_a_type_error(image, segmenter):
    for given in (image, [image]):
        with pytest.raises(TypeError, match=f"expected a path.* got {type(image).__name__}"):
            segmenter(given)


def test_a_list_goes_in_batches_with_the_results_in_its_order(segmenter, monkeypatch):
    seen = []
    monkeypatch.setattr(segmenter, "_network", spied(segmenter._network, seen))
    images = [pixels(i, 30 + i, 70, 3) for i in range(5)]
    together = segmenter((image for image in images), batch_size=2)
    assert seen == [(33, 65, 2), (33, 65, 2), (33, 65, 1)]
    for image, result in zip(images, together, strict=True):
        alone = segmenter(image)
        assert (result.image == image).all() and (result.labels == alone.labels).mean() > 0.999
        np.testing.assert_allclose(result.confidence, alone.confidence, rtol=1e-4)
    assert segmenter([]) == [] and isinstance(segmenter([images[0]]), list)
    with pytest.raises(UserError, match="batch_size is 0"):
        segmenter(images, batch_size=0)


def spied(network, seen):
    def network_told(*size):
        seen.append(size)
        return network(*size)

    return network_told


def test_tiles_of_several_images_and_sizes_share_batches(checkpoint, monkeypatch):
    """Of each size as many as there are; what is left over goes one by one."""
    segmenter, seen = load(checkpoint, tile=(40, 50), overlap=0, flip=True), []
    monkeypatch.setattr(segmenter, "_network", spied(segmenter._network, seen))
    images = [pixels(1, 40, 100, 3), pixels(2, 40, 50, 3)]  # two tiles and one, each mirrored too
    results = segmenter(images, batch_size=4)
    assert seen == [(40, 50, 4), (40, 50, 1), (40, 50, 1)]
    for image, result in zip(images, results, strict=True):
        np.testing.assert_allclose(result.confidence, segmenter(image).confidence, rtol=1e-4)


def test_threads_share_a_segmenter(checkpoint, segmenter):
    images = [pixels(i, 35, 60 + i, 3) for i in range(12)]
    compiled, fresh = [], load(checkpoint)
    network = fresh._network
    fresh._network = spied(network, compiled)
    want = [segmenter(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(fresh, images))
    assert all(map(same, found, want))
    assert network.cache_info().misses == 1  # compiled once, though all came at once


@pytest.mark.parametrize("options, words", [
    ({"size": (20, 80)}, "size is 20,80; expected HEIGHT,WIDTH in pixels"),
    ({"size": 512}, "size is 512; expected"), ({"size": (512.5, 1024)}, "size is 512.5,1024"),
    ({"size": "large"}, "size is large"), ({"tile": "own"}, "tile is own"),
    ({"overlap": 3}, "overlap is of tiles; give tile"),
    ({"tile": (40, 60), "overlap": 21}, "overlap is 21; expected 0 to 20"),
    ({"dtype": "float16"}, "dtype is 'float16'; expected one of auto, float32, bfloat16"),
])  # fmt: skip
def test_mistaken_options(options, words, checkpoint):
    with pytest.raises(UserError, match=f"^{re.escape(words)}"):
        load(checkpoint, **options)


def test_no_checkpoint_and_one_of_unknown_classes(tmp_path):
    with pytest.raises(UserError, match="holds no checkpoint"):
        load(tmp_path)
    model = DeepLab(num_classes=7, stage_sizes=(1, 1, 1, 1), width=4)
    with pytest.raises(UserError, match="7 classes and no names"):
        Segmenter(model, initial_variables(model, 0))
    with pytest.raises(UserError, match="has 7 classes and its meta names 2"):
        Segmenter(model, initial_variables(model, 0), {"class_names": ["a", "b"]})


def test_a_batch_that_does_not_fit_in_the_memory(segmenter, checkpoint, monkeypatch):
    fresh = load(checkpoint)
    fresh.prepare()
    monkeypatch.setattr(tiles, "_free_memory", lambda: 1000)
    image = pixels(1, 40, 50, 3)
    assert same(fresh(image), segmenter(image))
    with pytest.raises(UserError, match=r"33x65, 2 at a time, needs .* a smaller batch_size"):
        fresh([image] * 2, batch_size=2)


def test_other_variables_keep_the_view_and_lose_the_scores(checkpoint):
    segmenter = load(checkpoint, flip=True)
    variables = jax.tree.map(lambda x: x * 2, segmenter.variables)
    other = segmenter.with_variables(variables)
    assert repr(other) == "<Segmenter of 19 classes, sees images at 33x65 as in its training>"
    assert other.view == segmenter.view and other.classes == segmenter.classes
    assert set(other.meta) == {"model", "source"} and set(other.meta["source"]) == {"input_size"}
    variables["params"]["conv1"]["kernel"][:] = 0  # it has its own
    assert other.variables["params"]["conv1"]["kernel"].any()
    image = pixels(1, 40, 50, 3)
    assert not same(other(image), segmenter(image))
