"""Image and label files to tensors, in TensorFlow; the arithmetic follows Pillow's.

TensorFlow serves tf.data alone: importing this module (or calling `import_tensorflow`) before
anything else that needs it starts it quietly and without the GPUs, which belong to JAX.
"""

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from snr_jax.core.labels import IGNORE, UNKNOWN
from snr_jax.data.domains import Sample, get_domain


def import_tensorflow():
    """The tensorflow module, with errors alone in its log, and without GPUs.

    It has to be the process's first import of tensorflow. Variables the user has set are kept.
    """
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow

    tensorflow.config.set_visible_devices([], "GPU")
    return tensorflow


tf = import_tensorflow()

# The bytes of a PNG file: signature 0-7, length and "IHDR" 8-15, width 16-19, height 20-23,
# bit depth 24, colour type 25, three more, then the header's CRC 29-32.
_HEADER_BYTES = 33
_GRAY, _PALETTE = 0, 3
# CRC(header as gray) xor CRC(header as palette): a CRC is linear, so neither size nor depth matter.
_CRC_CHANGE = [0x12, 0xB5, 0xAF, 0xEE]
Size = Sequence[int] | tf.Tensor  # height, width
Flag = bool | tf.Tensor
_BYTES = [bytes([i]) for i in range(256)]


def decode_indices(data: tf.Tensor) -> tf.Tensor:
    """The stored values of a gray or palette PNG of at most 8 bits, uint8 [H,W].

    TensorFlow would turn palette indices into colours, so the header is rewritten to call the
    file gray, and everything between it and the pixels (the palette) is cut out. libpng then
    scales 1-, 2- and 4-bit values to 0-255, which is undone. Raises InvalidArgumentError for
    another file.
    """
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


def _first_pixel_chunk(data):
    """Where the first IDAT chunk begins. A chunk: length, type (4 bytes each), content, CRC."""

    def is_other(start):
        return tf.strings.substr(data, start + 4, 4) != b"IDAT"

    def following(start):
        length = tf.strings.substr(data, start, 4)
        return [start + 12 + tf.io.decode_raw(length, tf.int32, little_endian=False)[0]]

    return tf.while_loop(is_other, following, [_HEADER_BYTES], maximum_iterations=100)[0]


LABEL_DECODERS = {"indices": decode_indices}  # Domain.label_kind → file content → uint8 [H,W]


def decode_image(data: tf.Tensor) -> tf.Tensor:
    """PNG, JPEG, BMP or GIF (first frame) to uint8 RGB [H,W,3], equal to Pillow's."""
    image = tf.cond(
        tf.strings.substr(data, 0, 3) == b"\xff\xd8\xff",
        # The default's fast cosine transform is off by up to 7 levels.
        lambda: tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE"),
        lambda: tf.io.decode_image(data, channels=3, expand_animations=False),
    )
    return tf.ensure_shape(image, [None, None, 3])


def resize_image(image: tf.Tensor, size: Size, mirror: Flag = False) -> tf.Tensor:
    """Mirror if asked, then Pillow's bicubic, bit for bit, uint8 [H,W,3] → uint8 [h,w,3].

    Pillow does it itself, in the threads of tf.data: TensorFlow's own is slower and up to 24 levels
    off where colours saturate, since Pillow rounds and clips between its two passes.
    """

    def bicubic(pixels: np.ndarray, size: np.ndarray, mirror: np.ndarray) -> np.ndarray:
        height, width = map(int, size)
        picture = Image.fromarray(pixels[:, ::-1] if mirror else pixels)
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
    return tf.gather(tf.gather(label, rows), columns, axis=1)


def _nearest(length: tf.Tensor, new_length: "int | tf.Tensor") -> tf.Tensor:
    # Pillow adds up the step in float64 instead of multiplying. That decides where a pixel's centre
    # falls on a border: from 2048 to 1280 columns exact arithmetic differs in 133 of them.
    step = tf.cast(length, tf.float64) / tf.cast(new_length, tf.float64)
    centres = tf.cumsum(tf.concat([[step * 0.5], tf.fill([new_length - 1], step)], 0))
    return tf.minimum(tf.cast(centres, tf.int32), length - 1)


def read_image(path: tf.Tensor) -> tf.Tensor:
    """The file as uint8 RGB [H,W,3]. Raises tf.errors.OpError; `inspect` tells what is wrong."""
    return decode_image(tf.io.read_file(path))


def read_label_ids(path: tf.Tensor, *, label_kind: str, lookup: np.ndarray) -> tf.Tensor:
    """The file's own ids, uint8 [H,W]. Raises tf.errors.OpError as `read_image`.

    Also for ids that `lookup` (uint8 [256]: file id → trainId) does not know. It is applied later,
    by `to_train_ids`, when the label is small.
    """
    ids = LABEL_DECODERS[label_kind](tf.io.read_file(path))
    last = np.flatnonzero(lookup[:IGNORE] != UNKNOWN)[-1]  # the defined ids are 0 to last, and 255
    tf.debugging.assert_equal(tf.reduce_any((ids > last) & (ids < IGNORE)), False, "unknown id")
    return ids


def to_train_ids(ids: tf.Tensor, lookup: np.ndarray) -> tf.Tensor:
    """uint8 ids of any shape to trainIds of the same, 255 ignored."""
    return tf.gather(tf.constant(lookup), tf.cast(ids, tf.int32))


class Finding(NamedTuple):
    """What one sample's files hold."""

    faults: list[str]  # each names its file; empty: the sample is good
    size: tuple[int, int] | None  # height, width of the image
    histogram: np.ndarray | None  # int64 [256]: the label's pixels by trainId


def inspect(sample: Sample, *, domain: str, num_classes: int = 19) -> Finding:
    """Reads one sample on its own and says in words what is wrong with it, if anything.

    tf.data's errors do not say which file they are about: the pipeline asks here.
    """
    known = get_domain(domain)
    faults: list[str] = []
    image = _attempt(read_image, sample.image, "no image that can be decoded", faults)
    size = None if image is None else (int(image.shape[0]), int(image.shape[1]))
    if sample.label is None:
        return Finding(faults, size, None)

    def read_ids(path):
        return LABEL_DECODERS[known.label_kind](tf.io.read_file(path))

    ids = _attempt(read_ids, sample.label, "no label image that can be decoded", faults)
    if ids is None:
        return Finding(faults, size, None)
    if size and ids.shape != size:
        faults.append(
            f"{sample.image} is {size[1]}x{size[0]} and {sample.label} is "
            f"{ids.shape[1]}x{ids.shape[0]} (width x height); they must be the same"
        )
    lookup = known.lookup(num_classes)
    counts = np.bincount(ids.numpy().ravel(), minlength=256)
    unknown = np.flatnonzero((counts > 0) & (lookup == UNKNOWN))
    if unknown.size:
        shown = ", ".join(map(str, unknown[:8])) + (", ..." if unknown.size > 8 else "")
        legal = np.flatnonzero(lookup != UNKNOWN)
        faults.append(
            f"{sample.label} holds the label ids {shown}, which {domain} does not define "
            f"(it has {legal[0]} to {legal[legal < IGNORE][-1]}, and {IGNORE} for nothing); "
            f"expected: {known.layout}"
        )
    histogram = np.bincount(lookup, weights=counts, minlength=256).astype(np.int64)
    return Finding(faults, size, histogram)


def _attempt(read, path: str, complaint: str, faults: list[str]):
    try:
        return read(path)
    except tf.errors.InvalidArgumentError as error:
        faults.append(f"{path} is {complaint}: {_first_words(error)}")
    except tf.errors.OpError as error:
        faults.append(f"{path} cannot be read: {_first_words(error)}")


def _first_words(error) -> str:
    # "{{function_node ...}} message [Op:DecodeImage] name: ": the message alone is for people.
    words = error.message.split("}} ")[-1].split(" [Op:")[0].strip()
    return words.splitlines()[0] if words else type(error).__name__
