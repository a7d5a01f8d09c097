"""Prediction: any image in, results of its own size out."""

import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from snr_jax.core.labels import palette, train_id_to_label_id
from snr_jax.core.models.deeplab import DeepLab, architecture
from snr_jax.core.state import initial_variables
from snr_jax.report import pictures
from snr_jax.runs import checkpoints, network, prediction

SIZES = {  # name → height, width; few different ones, since each is compiled anew
    "photo.jpg": (40, 72), "drawing.png": (33, 65), "gray.png": (40, 72), "alpha.png": (33, 65),
    "indexed.png": (40, 72), "deep.png": (33, 65), "strip.png": (1, 90), "dot.png": (1, 1),
}  # fmt: skip
MODES = {"gray.png": "L", "alpha.png": "RGBA", "indexed.png": "P", "deep.png": "I;16"}


def draw(path, height, width):
    rng = np.random.default_rng(height * width)
    rgb = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
    if MODES.get(path.name) == "I;16":
        rgb = Image.fromarray(rng.integers(0, 65536, (height, width), np.uint16))
    elif path.name in MODES:
        rgb = rgb.convert(MODES[path.name])
    rgb.save(path)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """An untrained network: what it says is of no matter here."""
    model = DeepLab(stage_sizes=(1, 1, 1, 1), width=4)
    meta = {"model": architecture(model), "source": {"step": 0, "input_size": (33, 65)}}
    path = tmp_path_factory.mktemp("untrained") / "checkpoint"
    checkpoints.save_variables(path, initial_variables(model, 0), meta)
    return path


@pytest.fixture(scope="module")
def done():
    return {}


@pytest.fixture
def predicted(done, checkpoint, command, tmp_path_factory):
    """Result of the command, the folders of images and results; run once."""
    if not done:
        images, out = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("out") / "new"
        for name, size in SIZES.items():
            draw(images / name, *size)
        (images / "notes.txt").write_text("no image, and not called one")
        result = command("predict", "--checkpoint", checkpoint, "--images", images,
                         "--out", out, "--confidence")
        assert result.code == 0, result
        done.update(result=result, images=images, out=out)
    return done


@pytest.mark.parametrize("name", SIZES)
def test_results_agree_and_have_the_size_of_the_image(name, predicted):
    stem = name.split(".")[0]

    def result(kind):
        return Image.open(predicted["out"] / f"{stem}_{kind}.png")

    height, width = SIZES[name]
    ids = np.asarray(result("trainIds"))
    assert ids.shape == (height, width) and ids.max() < 19
    for kind, mode in {"trainIds": "L", "labelIds": "L", "confidence": "L", "color": "RGB",
                       "overlay": "RGB"}.items():  # fmt: skip
        assert result(kind).size == (width, height) and result(kind).mode == mode
    assert (np.asarray(result("labelIds")) == train_id_to_label_id()[ids]).all()
    assert (np.asarray(result("color")) == palette()[ids]).all()
    image = prediction.read_image(predicted["images"] / name)
    assert (np.asarray(result("overlay")) == pictures.overlay(np.asarray(image), ids)).all()
    assert np.asarray(result("confidence")).min() >= 255 // 19


def test_nothing_else_is_written(predicted):
    kinds = ("color", "overlay", "trainIds", "labelIds", "confidence")
    expected = {f"{name.split('.')[0]}_{kind}.png" for name in SIZES for kind in kinds}
    assert {path.name for path in predicted["out"].iterdir()} == expected
    out = predicted["result"].out
    assert "8 images, seen by the network at 33x65" in out and "8/8 images" in out
    assert predicted["result"].err == ""


def test_prediction_is_the_network_s(predicted, checkpoint):
    """At the network's size there is no resizing between."""
    model, variables, _ = network.load(str(checkpoint))
    image = np.asarray(Image.open(predicted["images"] / "drawing.png")).astype(np.float32)
    bgr = image[None, :, :, ::-1] - np.array([104.00698793, 116.66876762, 122.67891434], "f4")
    logits = np.asarray(jax.jit(lambda x: model.apply(variables, x, train=False).main)(bgr)[0])
    ids = np.asarray(Image.open(predicted["out"] / "drawing_trainIds.png"))
    assert (logits.argmax(-1) == ids).mean() > 0.999
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    confidence = np.asarray(Image.open(predicted["out"] / "drawing_confidence.png"))
    np.testing.assert_allclose(confidence, 255 * p.max(-1), atol=0.51)


def test_sixteen_bits_are_scaled(tmp_path):
    deep = np.array([[0, 257 * 100, 65535]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "a.png")
    image = np.asarray(prediction.read_image(tmp_path / "a.png"))
    assert image.tolist() == [[[0] * 3, [100] * 3, [255] * 3]]


def test_size_flip_and_no_confidence(checkpoint, command, tmp_path):
    (tmp_path / "images").mkdir()
    draw(tmp_path / "images" / "a.png", 48, 80)
    for size in ("own", "40,70"):
        out = tmp_path / size
        result = command("predict", "--checkpoint", checkpoint, "--images",
                         tmp_path / "images", "--out", out, f"--size={size}", "--flip")
        assert result.code == 0, result
        assert ("their own size" if size == "own" else "40x70") in result.out
        assert Image.open(out / "a_trainIds.png").size == (80, 48)
        assert not (out / "a_confidence.png").exists()


def test_image_that_is_none(checkpoint, refused, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    draw(images / "a.png", 33, 65)
    (images / "b.png").write_text("<html>not found</html>")
    draw(images / "c.png", 33, 65)
    (images / "c.png").write_bytes((images / "c.png").read_bytes()[:900])
    out = tmp_path / "out"
    flags = ["--checkpoint", checkpoint, "--images", images, "--out", out]
    error = refused("predict", *flags)
    assert f"{images / 'b.png'} is no image that can be read" in error
    assert all(path.name.startswith("a_") for path in out.iterdir())
    (images / "b.png").unlink()
    assert str(images / "c.png") in refused("predict", *flags)


@pytest.mark.parametrize(
    "files, words", [((), "holds no"), (("a.txt",), "holds no"), (("a.png", "a.jpg"), "called a")]
)
def test_folder_without_clear_images(files, words, refused, tmp_path):
    for name in files:
        (tmp_path / name).write_bytes(b"")
    error = refused("predict", "--checkpoint=c", "--images", tmp_path, f"--out={tmp_path}/o")
    assert str(tmp_path) in error and words in error


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--images=i", "--out=o"), "--checkpoint is missing; for instance --checkpoint runs/"),
        (("--checkpoint=c", "--out=o"), "--images is missing"),
        (("--checkpoint=c", "--images=i", "--out=o"), "there is no folder i"),
        (("--checkpoint=c", "--images=configs"), "configs holds no"),
        (("--confidense",), "confidense"),
        (("photo.jpg",), "unexpected argument 'photo.jpg'"),
    ],
)
def test_mistaken_flags(arguments, words, refused):
    assert words in refused("predict", *arguments)


@pytest.mark.parametrize("size", ["40", "0,0", "20,80", "a,b", "1,2,3"])
def test_mistaken_size(size, checkpoint, refused, tmp_path):
    draw(tmp_path / "a.png", 40, 40)
    error = refused("predict", "--checkpoint", checkpoint, "--images", tmp_path,
                    "--out", tmp_path / "out", f"--size={size}")
    assert f"--size is {size}; expected HEIGHT,WIDTH" in error


def test_checkpoint_that_is_none(refused, tmp_path):
    draw(tmp_path / "a.png", 40, 40)
    error = refused("predict", "--checkpoint", tmp_path, "--images", tmp_path, "--out=o")
    assert f"{tmp_path} holds no checkpoint" in error


def test_damaged_checkpoint(checkpoint, process, tmp_path):
    """Told in one line on the terminal, though the libraries have much to say about it."""
    path = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, path)
    draw(tmp_path / "a.png", 40, 40)
    largest = max(path.rglob("d/*"), key=lambda file: file.stat().st_size)
    largest.unlink()
    running = process("predict", "--checkpoint", path, "--images", tmp_path, "--out", tmp_path)
    _, err = running.communicate(timeout=300)
    assert running.returncode == 2
    assert err.startswith(f"error: {path} cannot be read") and err.count("\n") == 1
