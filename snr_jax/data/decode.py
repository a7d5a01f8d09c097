"""Image and label files to tensors, in TensorFlow; the arithmetic follows Pillow's.

TensorFlow serves tf.data alone. The first use of `tf` (or a call of `import_tensorflow`) starts it
quietly and without the GPUs, which belong to JAX; it has to come before any other import of it.
"""

from __future__ import annotations  # what they name would start TensorFlow

import contextlib
import ctypes
import functools
import io
import os
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from snr_jax.core.labels import IGNORE, UNKNOWN, Color
from snr_jax.data.samples import Labels


@functools.cache
def import_tensorflow() -> ModuleType:
    """The tensorflow module, with errors alone in its log, and without GPUs.

    It has to be the process's first import of tensorflow. Variables the user has set are kept.
    """
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":  # what JAX sets: warnings
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    import tensorflow

    tensorflow.config.set_visible_devices([], "GPU")
    return tensorflow


def keep_freed_memory() -> None:
    """Has glibc keep blocks of up to 32 MiB for the next image, where the C library is glibc.

    Else each image's megabytes are handed back, and taken again page by page: 5,000 faults, which
    all threads of a process wait for together. It is a setting of the process, so whoever begins a
    stream of images makes it, and no import does.
    """
    mmap_threshold, trim_threshold = -3, -1  # of mallopt; 32 MiB is the most it takes
    with contextlib.suppress(OSError, AttributeError):
        c_library = ctypes.CDLL(None)
        c_library.mallopt(mmap_threshold, 2**25)
        c_library.mallopt(trim_threshold, 2**29)


class _OnFirstUse(ModuleType):
    """TensorFlow: seconds to import, and absent where no data are read."""

    def __getattr__(self, name: str) -> Any:
        value = self.__dict__[name] = getattr(import_tensorflow(), name)
        return value


tf = _OnFirstUse("tensorflow")

# The bytes of a PNG file: signature 0-7, length and "IHDR" 8-15, width 16-19, height 20-23,
# bit depth 24, colour type 25, three more, then the header's CRC 29-32.
_HEADER_BYTES = 33
_GRAY, _PALETTE = 0, 3
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "GIF")
MAX_PIXELS = 2 * Image.MAX_IMAGE_PIXELS  # where Pillow calls a file a decompression bomb
# CRC(header as gray) xor CRC(header as palette): a CRC is linear, so neither size nor depth matter.
_CRC_CHANGE = [0x12, 0xB5, 0xAF, 0xEE]
Size = "Sequence[int] | tf.Tensor"  # height, width
Flag = "bool | tf.Tensor"
_BYTES = [bytes([i]) for i in range(256)]


def _refuse_huge(data: tf.Tensor) -> tf.Tensor:
    """The same content, where a PNG file's header does not claim more pixels than Pillow reads."""
    sides = tf.io.decode_raw(tf.strings.substr(data + 24 * b"\0", 16, 8), tf.int32, False)
    pixels = tf.reduce_prod(tf.cast(tf.bitcast(sides, tf.uint32), tf.int64))
    huge = pixels > tf.constant(MAX_PIXELS, tf.int64)
    message = f"its header claims more than {MAX_PIXELS} pixels"
    with tf.control_dependencies([tf.debugging.assert_equal(huge, False, message)]):
        return tf.identity(data)


def decode_indices(data: tf.Tensor) -> tf.Tensor:
    """The stored values of a gray or palette PNG of at most 8 bits, uint8 [H,W].

    TensorFlow would turn palette indices into colours, so the header is rewritten to call the
    file gray, and everything between it and the pixels (the palette) is cut out. libpng then
    scales 1-, 2- and 4-bit values to 0-255, which is undone. Raises InvalidArgumentError for
    another file.
    """
    data = _refuse_huge(data)
    header = tf.io.decode_raw(tf.strings.substr(data, 0, _HEADER_BYTES), tf.uint8)
    tf.debugging.assert_equal(tf.size(header), _HEADER_BYTES, "no PNG file")
    depth, color_type = header[24], header[25]
    indexed = color_type == _PALETTE
    tf.debugging.assert_equal(
        (indexed | (color_type == _GRAY)) & (depth <= 8),
        True,
        "a PNG with colours or 16 bits, where one with label ids (gray or palette) is needed",
    )
    change = tf.concat(
        [tf.zeros([25], tf.uint8), [_PALETTE], tf.zeros([3], tf.uint8), _CRC_CHANGE], 0
    )
    header = tf.bitwise.bitwise_xor(header, tf.where(indexed, change, tf.zeros_like(change)))
    header = tf.strings.reduce_join(tf.gather(_BYTES, tf.cast(header, tf.int32)))
    data = header + tf.strings.substr(data, _first_pixel_chunk(data), -1)
    steps = tf.bitwise.left_shift(tf.constant(1), tf.cast(depth, tf.int32)) - 1
    return tf.io.decode_png(data, channels=1)[..., 0] // tf.cast(255 // steps, tf.uint8)


def _first_pixel_chunk(data: tf.Tensor) -> tf.Tensor:
    """Where the first IDAT chunk begins. A chunk: length, type (4 bytes each), content, CRC."""
    end = tf.strings.length(data)
    padded = data + 8 * b"\0"  # so that a file that ends too early can be read on

    def is_other(start: tf.Tensor) -> tf.Tensor:
        return tf.strings.substr(padded, start + 4, 4) != b"IDAT"

    def following(start: tf.Tensor) -> list[tf.Tensor]:
        length = tf.io.decode_raw(tf.strings.substr(padded, start, 4), tf.int32, False)[0]
        return [tf.minimum(start + 12 + tf.clip_by_value(length, 0, end), end)]

    start = tf.while_loop(is_other, following, [_HEADER_BYTES], maximum_iterations=1000)[0]
    tf.debugging.assert_equal(is_other(start), False, "it ends before its pixels")
    return start


def decode_synthia(data: tf.Tensor) -> tf.Tensor:
    """The class of a SYNTHIA label: the first of three 16-bit channels, uint8 [H,W].

    The others hold instances. Classes beyond 254 become 254, which no data set defines.
    """
    data = _refuse_huge(data)
    header = tf.io.decode_raw(tf.strings.substr(data, 0, _HEADER_BYTES), tf.uint8)
    tf.debugging.assert_equal(tf.size(header), _HEADER_BYTES, "no PNG file")
    tf.debugging.assert_equal(
        header[24:26], tf.constant([16, 2], tf.uint8),
        "a PNG of another kind, where one of three channels with 16 bits is needed: the program "
        "that saved it again has cut the classes off",
    )
    classes = tf.io.decode_png(data, channels=3, dtype=tf.uint16)[..., 0]
    return tf.cast(tf.minimum(classes, 254), tf.uint8)


def decode_colors(data: tf.Tensor, colors: Sequence[tuple[Color, int]]) -> tf.Tensor:
    """The ids of the colours in an image of any format, uint8 [H,W]; 254 for one that has none.

    An alpha channel is left out, palettes are looked up. 16 bits that 8 cannot hold are no colour.
    """
    number = np.array([65536, 256, 1], np.int32)
    known = sorted((int(number @ color), id) for color, id in colors)
    keys, ids = (tf.constant(column) for column in zip(*known, strict=True))
    pixels = tf.tensordot(tf.cast(decode_image(data), tf.int32), number, 1)
    pixels = tf.cond(has_16_bits(data), lambda: tf.where(fits_8_bits(data), pixels, -1),
                     lambda: pixels)
    flat = tf.reshape(pixels, [-1])
    place = tf.minimum(tf.searchsorted(keys, flat), len(known) - 1)
    found = tf.where(tf.gather(keys, place) == flat, tf.gather(ids, place), UNKNOWN)
    return tf.cast(tf.reshape(found, tf.shape(pixels)), tf.uint8)


def has_16_bits(data: tf.Tensor) -> tf.Tensor:
    """Whether the content is that of a PNG file of 16 bits, bool []."""
    padded = data + _HEADER_BYTES * b"\0"
    is_png = tf.strings.substr(padded, 0, 4) == b"\x89PNG"
    return is_png & (tf.strings.substr(padded, 24, 1) == b"\x10")


def fits_8_bits(data: tf.Tensor) -> tf.Tensor:
    """Where the pixels of a PNG of 16 bits lose nothing when they are cut to 8, bool [H,W]."""
    wide = tf.cast(tf.io.decode_png(data, channels=3, dtype=tf.uint16), tf.int32)
    return tf.reduce_all(wide % 257 == 0, -1)


# Labels.kind → file content → uint8 [H,W]; "colors" besides, which needs the colours
LABEL_DECODERS = {"indices": decode_indices, "synthia": decode_synthia}


def decode_label(data: tf.Tensor, labels: Labels) -> tf.Tensor:
    """The file's own ids, uint8 [H,W]."""
    if labels.kind == "colors":
        return decode_colors(data, labels.colors)
    return LABEL_DECODERS[labels.kind](data)


def decode_image(data: tf.Tensor) -> tf.Tensor:
    """PNG, JPEG, BMP or GIF (first frame) to uint8 RGB [H,W,3], equal to Pillow's.

    Of a PNG TensorFlow checks every checksum, which Pillow does not. The other formats have none,
    and TensorFlow's JPEG decoder writes to stderr what it then raises.
    """

    def pillow(data: bytes | np.ndarray) -> np.ndarray:
        content = io.BytesIO(np.asarray(data, object).item())  # bytes in tf.data, an array else
        with Image.open(content, formats=IMAGE_FORMATS) as image:
            return np.asarray(image.convert("RGB"))

    image = tf.cond(
        tf.strings.substr(data, 0, 4) == b"\x89PNG",
        lambda: tf.io.decode_png(_refuse_huge(data), channels=3),
        lambda: tf.numpy_function(pillow, [data], tf.uint8),
    )
    return tf.ensure_shape(image, [None, None, 3])


def resize_image(image: tf.Tensor, size: Size, mirror: Flag = False) -> tf.Tensor:
    """Mirror if asked, then Pillow's bicubic, bit for bit, uint8 [H,W,3] → uint8 [h,w,3].

    Pillow does it itself, in the threads of tf.data: TensorFlow's own is slower and up to 24 levels
    off where colours saturate, since Pillow rounds and clips between its two passes.
    """

    def bicubic(pixels: np.ndarray, size: np.ndarray, mirror: np.ndarray) -> np.ndarray:
        height, width = map(int, size)
        picture = Image.fromarray(pixels)
        if mirror:  # a third of the time of numpy's
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))

    resized = tf.numpy_function(bicubic, [image, size, mirror], tf.uint8)
    return tf.ensure_shape(resized, [None, None, 3])


def resize_label(label: tf.Tensor, size: Size, mirror: Flag = False) -> tf.Tensor:
    """Nearest neighbour, uint8 [H,W] → uint8 [h,w]; equal to Pillow's for every size.

    `mirror` comes before it: at even ratios the nearest pixel of a mirrored label is another one.
    """
    width = tf.shape(label)[1]
    rows = _nearest(tf.shape(label)[0], size[0])
    columns = _nearest(width, size[1])
    columns = tf.where(mirror, width - 1 - columns, columns)
    # Columns as rows: gathering single bytes takes twice as long as rows and two transposes.
    return tf.transpose(tf.gather(tf.transpose(tf.gather(label, rows)), columns))


def _nearest(length: tf.Tensor, new_length: int | tf.Tensor) -> tf.Tensor:
    # Pillow adds up the step in float64 instead of multiplying. That decides where a pixel's centre
    # falls on a border: from 2048 to 1280 columns exact arithmetic differs in 133 of them.
    step = tf.cast(length, tf.float64) / tf.cast(new_length, tf.float64)
    centres = tf.cumsum(tf.concat([[step * 0.5], tf.fill([new_length - 1], step)], 0))
    return tf.minimum(tf.cast(centres, tf.int32), length - 1)


def alike(size: Size, other: Size) -> bool | tf.Tensor:
    """Whether two sizes (height, width; int or int64) have aspect ratios within 5 %.

    Some labels of GTA5 differ from their images by a few rows; the release resizes each by itself.
    """
    one, two = size[1] * other[0], other[1] * size[0]
    return 20 * abs(one - two) <= two


def read_image(path: tf.Tensor) -> tf.Tensor:
    """The file as uint8 RGB [H,W,3]. Raises tf.errors.OpError; `inspection` tells what is wrong."""
    return decode_image(tf.io.read_file(path))


def read_label_ids(path: tf.Tensor, labels: Labels) -> tf.Tensor:
    """The file's own ids, uint8 [H,W]. Raises tf.errors.OpError as `read_image`.

    Also for ids that `labels.lookup` does not know. It is applied later, by `to_train_ids`, when
    the label is small.
    """
    ids = decode_label(tf.io.read_file(path), labels)
    # The defined ids are 0 to last, and 255.
    last = np.flatnonzero(labels.lookup[:IGNORE] != UNKNOWN)[-1]
    tf.debugging.assert_equal(tf.reduce_any((ids > last) & (ids < IGNORE)), False, "unknown id")
    return ids


def to_train_ids(ids: tf.Tensor, lookup: np.ndarray) -> tf.Tensor:
    """uint8 ids of any shape to trainIds of the same, 255 ignored."""
    return tf.gather(tf.constant(lookup), tf.cast(ids, tf.int32))
