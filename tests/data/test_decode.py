import io
import platform
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from snr_jax.core.labels import ID_TABLES, IGNORE, UNKNOWN, to_train_id
from snr_jax.data import decode
from snr_jax.data.decode import tf
from tests.data.tiny_sets import TRAIN_IDS, natural_image, random_ids, save_palette


def png_bytes(image: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


@pytest.mark.parametrize(("bits", "num_ids"), [(1, 2), (2, 4), (4, 16), (8, 35)])
def test_palette_indices_of_every_depth_equal_pillows(tmp_path, bits, num_ids):
    path = tmp_path / "label.png"
    ids = random_ids(0, 37, 53, np.arange(num_ids, dtype=np.uint8))
    save_palette(ids, path, bits=bits, num_colors=num_ids)
    data = path.read_bytes()
    assert data[24] == bits and data[25] == 3  # a palette file of that depth
    assert np.array_equal(decode.decode_indices(tf.constant(data)), ids)
    assert np.array_equal(Image.open(path), ids)


def test_palette_indices_survive_repeated_colours_and_extra_chunks(tmp_path):
    path = tmp_path / "label.png"
    ids = random_ids(1, 20, 30)
    image = Image.fromarray(ids).convert("P")
    image.putdata(ids.ravel().tolist())
    image.putpalette([7, 7, 7] * 256)
    image.save(path, transparency=0, gamma=0.45, dpi=(72, 72), optimize=False)
    assert np.array_equal(decode.decode_indices(tf.io.read_file(str(path))), ids)


@pytest.mark.parametrize("mode", ["1", "L"])
def test_gray_labels(mode):
    ids = random_ids(2, 20, 30, np.arange(2 if mode == "1" else 35, dtype=np.uint8))
    image = Image.fromarray(ids * 255).convert("1") if mode == "1" else Image.fromarray(ids)
    assert np.array_equal(decode.decode_indices(tf.constant(png_bytes(image))), ids)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "I;16"])
def test_other_kinds_of_png_are_no_labels(mode):
    size = (4, 4)
    image = Image.fromarray(np.zeros(size, np.uint16)) if mode == "I;16" else Image.new(mode, size)
    with pytest.raises(tf.errors.InvalidArgumentError, match="where one with label ids"):
        decode.decode_indices(tf.constant(png_bytes(image)))


def test_images_of_several_formats_equal_pillows():
    image = Image.fromarray(natural_image(3, 30, 40))
    for data in (png_bytes(image), png_bytes(image.convert("RGBA"))):
        assert np.array_equal(decode.decode_image(tf.constant(data)), image)
    gray = decode.decode_image(tf.constant(png_bytes(image.convert("L"))))
    assert np.array_equal(gray[..., 1], image.convert("L"))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95)
    assert np.array_equal(decode.decode_image(tf.constant(file.getvalue())), Image.open(file))


def image_of_extremes(seed, height, width):
    """Every channel 0 or 255: where a single pass with one rounding is up to 24 levels off."""
    return np.random.default_rng(seed).integers(0, 2, (height, width, 3), np.uint8) * np.uint8(255)


@pytest.mark.parametrize("size", [(72, 128), (51, 102), (64, 128), (105, 191), (160, 240)])
@pytest.mark.parametrize("draw", [natural_image, image_of_extremes])
def test_resized_images_equal_pillows_exactly(draw, size):
    image = draw(0, 105, 191)
    ours = decode.resize_image(tf.constant(image), size).numpy()
    pillow = Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC)
    assert ours.dtype == np.uint8 and np.array_equal(ours, pillow)


@pytest.mark.parametrize(
    ("length", "new_length"),
    [(1914, 1280), (1052, 720), (1046, 720), (2048, 1024), (2048, 1280), (1024, 640), (97, 331)],
)
def test_resized_labels_equal_pillows_exactly(length, new_length):
    """2048 → 1280 has centres on borders: Pillow's own rounding decides."""
    label = random_ids(length, length, 6)
    for turned, size in ((label, (new_length, 9)), (label.T.copy(), (9, new_length))):
        pillow = Image.fromarray(turned).resize(size[::-1], Image.Resampling.NEAREST)
        assert np.array_equal(decode.resize_label(tf.constant(turned), size), pillow)


def test_to_train_ids():
    ids = tf.constant([[7, 33, 0], [34, 255, 26]], tf.uint8)
    expected = [[0, 18, IGNORE], [IGNORE, IGNORE, 13]]
    assert decode.to_train_ids(ids, TRAIN_IDS).numpy().tolist() == expected


def synthia_bytes(classes: np.ndarray) -> bytes:
    """Class in the first of three 16-bit channels, instances of the full range in the second."""
    rng = np.random.default_rng(0)
    pixels = np.zeros((*classes.shape, 3), np.uint16)
    pixels[..., 0] = classes
    pixels[..., 1] = rng.integers(0, 2**16, classes.shape)
    return tf.io.encode_png(pixels).numpy()


def test_synthia_is_read_exactly_whatever_its_instances():
    classes = np.random.default_rng(1).integers(0, 23, (15, 17))
    ids = decode.decode_synthia(tf.constant(synthia_bytes(classes)))
    assert ids.dtype == tf.uint8 and np.array_equal(ids, classes)


def test_synthia_classes_beyond_eight_bits_are_no_class():
    ids = decode.decode_synthia(tf.constant(synthia_bytes(np.array([[256, 259, 65535, 22]]))))
    assert ids.numpy().tolist() == [[254, 254, 254, 22]]
    lookup = to_train_id(ID_TABLES["synthia"], 16)
    assert lookup[254] == UNKNOWN


def test_synthia_saved_with_eight_bits_is_refused():
    for image in (Image.new("RGB", (4, 3)), Image.new("L", (4, 3)), Image.new("I;16", (4, 3))):
        with pytest.raises(tf.errors.InvalidArgumentError, match="three channels with 16 bits"):
            decode.decode_synthia(tf.constant(png_bytes(image)))


IMAGES = """
import os, resource, sys
import numpy as np
from PIL import Image
from snr_jax.data import domains, pipeline
from snr_jax.data.samples import Sample

path = sys.argv[1]
Image.fromarray(np.zeros((1052, 1914, 3), np.uint8)).save(path)
domain = domains.create_domain("gta5")
images = pipeline.train_batches(
    [Sample("1", path, None)], domain.labels(domain.layouts[0], 19), size=(720, 1280),
    batch_size=1, seed=0, with_labels=False)
for number, _ in zip(range(41), images):
    if number == 20:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 20, flush=True)
os._exit(0)  # at an orderly end the threads of an endless stream may wait for Python for ever
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another library decides there")
def test_a_stream_keeps_memory_from_one_image_to_the_next(tmp_path):
    """Else a page of each of its megabytes is asked for anew: 2,500 a picture."""
    run = subprocess.run([sys.executable, "-c", IMAGES, tmp_path / "1.png"],
                         capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < 200
