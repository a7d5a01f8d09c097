"""What is wrong with one sample's files, in words that name them.

tf.data's errors do not say which file they are about: whoever meets one asks here.
"""

from __future__ import annotations  # what they name would start TensorFlow

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from snr_jax.core.labels import IGNORE, UNKNOWN, class_names
from snr_jax.data import decode
from snr_jax.data.decode import tf
from snr_jax.data.faults.doubts import AS_STORED
from snr_jax.data.samples import Labels, Sample


class Finding(NamedTuple):
    """What one sample's files hold."""

    faults: list[str]  # each names its file; empty: the sample is good
    size: tuple[int, int] | None  # height, width of the image
    label_size: tuple[int, int] | None
    pixels: np.ndarray | None  # int64 [256]: the label's pixels by the file's own ids
    blank: bool = False  # the image is of one colour
    orientation: int = 1  # of the image, by its EXIF; 1: as stored


def inspect(sample: Sample, labels: Labels) -> Finding:
    """Decodes one sample's image and, where it has one, its label."""
    faults: list[str] = []
    image = _attempt(decode.decode_image, sample.image, "image that can be decoded", faults)
    size = None if image is None else image.shape[:2]
    blank = image is not None and bool((image == image[:1, :1]).all())
    turned = 1 if image is None else _stored_orientation(sample.image)
    if sample.label is None:
        return Finding(faults, size, None, None, blank, turned)
    ids = _attempt(
        lambda data: decode.decode_label(data, labels), sample.label,
        "label image that can be decoded", faults,
    )
    if ids is None:
        return Finding(faults, size, None, None, blank, turned)
    if size and not decode.alike(size, ids.shape):
        sideways = turned >= 5 and decode.alike(size[::-1], ids.shape)
        cause = (f": the EXIF orientation {turned} turns the image by 90 degrees, and {AS_STORED}"
                 if sideways else "")
        faults.append(
            f"{difference(sample, size, ids.shape)}; their shapes must agree within 5 %{cause}"
        )
    pixels = np.bincount(ids.ravel(), minlength=256)
    unknown = np.flatnonzero((pixels > 0) & (labels.lookup == UNKNOWN))
    if unknown.size and labels.colors:
        faults.append(_unknown_color(sample.label, ids, labels))
    elif unknown.size:
        shown = ", ".join(map(str, unknown[:8])) + (", ..." if unknown.size > 8 else "")
        legal = np.flatnonzero(labels.lookup != UNKNOWN)
        faults.append(
            f"{sample.label} holds the label ids {shown}, which {labels.domain} does not define "
            f"(it has {legal[0]} to {legal[legal < IGNORE][-1]}, and {IGNORE} for nothing); "
            f"expected: {labels.layout}"
        )
    return Finding(faults, size, ids.shape, pixels, blank, turned)


def _unknown_color(path: str, ids: np.ndarray, labels: Labels) -> str:
    """The first pixel whose colour is none of those known, and how it may have come about."""
    pixels = decode.decode_image(tf.constant(Path(path).read_bytes())).numpy()
    unknown = ids == UNKNOWN
    row, column = np.argwhere(unknown)[0]
    color, number = pixels[row, column], len(np.unique(pixels[unknown], axis=0))
    nearest, id = min(labels.colors, key=lambda known: ((color - np.int32(known[0])) ** 2).sum())
    train_id = labels.lookup[id]
    of = class_names(labels.classes)[train_id] if train_id < UNKNOWN else "what is ignored"
    more = f", one of {number} such colours" if number > 1 else ""
    return (
        f"{path} holds the colour {color.tolist()} at row {row}, column {column} (from 0){more} in "
        f"{100 * unknown.mean():.2g} % of its pixels, which {labels.domain} does not define; the "
        f"nearest is {list(nearest)}, of {of}. Was the file resized with smoothing, or saved as "
        "JPEG?"
    )


def difference(sample: Sample, size: tuple[int, int], label_size: tuple[int, int]) -> str:
    """Both sizes (height, width) in words."""
    return (
        f"{sample.label} is {label_size[1]}x{label_size[0]} and its image {sample.image} "
        f"{size[1]}x{size[0]} (width x height)"
    )


def orientation(image: Image.Image) -> int:
    """How the EXIF of an open image turns it, 1 to 8; 1 is not at all. No pixel is decoded."""
    # Not the file's own method: for a PNG that decodes all pixels, in search of what comes after.
    value = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
    return value if value in range(2, 9) else 1


def _stored_orientation(path: str) -> int:
    try:
        with Image.open(path, formats=decode.IMAGE_FORMATS) as image:
            return orientation(image)
    except Exception:  # whatever the parser meets in a broken file
        return 1


def _attempt(
    read: Callable[[tf.Tensor], tf.Tensor], path: str, what: str, faults: list[str]
) -> np.ndarray | None:
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        faults.append(f"{path} cannot be read: {error.strerror}")
        return None
    try:
        return read(tf.constant(data)).numpy()
    except Exception as error:  # whatever a decoder meets in a broken file
        faults.append(f"{path} is no {what}: {_first_words(error)}")
        return None


def _first_words(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"it is none of {', '.join(decode.IMAGE_FORMATS)}"
    # "{{function_node ...}} message [Op:DecodePng] name: ": the message alone is for people.
    words = getattr(error, "message", str(error)).split("}} ")[-1].split(" [Op:")[0].strip()
    return words.splitlines()[0] if words else type(error).__name__
