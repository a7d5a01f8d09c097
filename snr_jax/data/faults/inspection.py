"""What is wrong with one sample's files, in words that name them.

tf.data's errors do not say which file they are about: whoever meets one asks here.
"""

from __future__ import annotations  # what they name would start TensorFlow

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from snr_jax.core.errors import UserError
from snr_jax.core.labels import IGNORE, UNKNOWN, class_names
from snr_jax.data import decode
from snr_jax.data.decode import tf
from snr_jax.data.faults.doubts import AS_STORED, MEND_TURNED
from snr_jax.data.samples import Labels, Sample

# Pillow's names for images without colours
GRAY_MODES = ("1", "L", "LA", "I", "I;16")
# Words of a fault → what mends it: the first that the fault holds.
MENDS = {
    "a TIFF file": "Convert it to PNG",
    "cannot be read": "Unpack the archive again, or mend the permissions of the file",
    "is no image": "Unpack the archive again, or leave the id out of the split",
    "is no label": "Take the data set's own label files, of ids and not of colours, as unpacked",
    "EXIF orientation": MEND_TURNED,
    "must agree": "Take image and label from the same release, neither resized nor cropped",
    "gray image": "Take the data set's own label files, of colours, as unpacked",
    "16 bits": "Save the masks again with 8 bits for a colour",
    "holds the colour": "Take the masks as they were drawn; a colour that is meant is named by "
                        "label_colors in the set's YAML file, as ignored where it is no class",
    "holds the label ids": "Take the labels of this data set, or name the ids in its YAML file",
    "look like trainIds": "Take the data set's own label files, as unpacked",
    "every pixel": "Take the data set's own label files, as unpacked",
}
# Of a set of one's own, which nobody has released: in the place of those.
OWN_MENDS = {
    "cannot be read": "Put the file in its place again, or mend its permissions",
    "is no image": "Save it again as PNG or JPEG, or move it away with its mask",
    "is no label": "Save the mask again as PNG: one of numbers is gray or palette, of at most 8 "
                   "bits, one of colours needs label_colors in the set's YAML file",
    "must agree": "Take image and mask of one size, neither resized nor cropped",
    "gray image": "Take masks that hold colours; for numbers write ids in the place of "
                  "label_colors in the set's YAML file",
    "every pixel": "Name what the masks hold in the set's YAML file, numbers by ids or colours by "
                   "label_colors",
}


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
    """The first pixel whose colour is none of those known, and how it may have come about.

    A mask of numbers, or of 16 bits that are no colours, is told as what it is.
    """
    data = tf.constant(Path(path).read_bytes())
    pixels, is_wide = decode.decode_image(data).numpy(), bool(decode.has_16_bits(data))
    with Image.open(path, formats=decode.IMAGE_FORMATS) as image:
        is_gray = image.mode in GRAY_MODES
    if is_gray and any(len(set(color)) > 1 for color, _ in labels.colors):
        bits = "16 bits" if is_wide else "at most 8 bits"
        return f"{path} is a gray image, of {bits}, where {labels.domain} expects masks of colours"
    if is_wide and not decode.fits_8_bits(data).numpy().all():
        return f"{path} holds colours of 16 bits that 8 cannot hold"
    unknown = ids == UNKNOWN
    row, column = np.argwhere(unknown)[0]
    color, number = pixels[row, column], len(np.unique(pixels[unknown], axis=0))
    nearest, id = min(labels.colors, key=lambda known: ((color - np.int32(known[0])) ** 2).sum())
    train_id = labels.lookup[id]
    of = class_names(labels.classes)[train_id] if train_id < UNKNOWN else "what is ignored"
    share = np.format_float_positional(100 * unknown.mean(), 2, fractional=False, trim="-")
    more = f", one of {number} such colours" if number > 1 else ""
    return (
        f"{path} holds the colour {color.tolist()} at row {row}, column {column} (from 0){more} in "
        f"{share} % of its pixels, which {labels.domain} does not define; the "
        f"nearest is {list(nearest)}, of {of}. Was the file resized with smoothing, or saved as "
        "JPEG?"
    )


def mended(fault: str, labels: Labels) -> str:
    """The fault with its mend, as two sentences."""
    return _sentences(fault, _mend(fault, labels))


def _mend(fault: str, labels: Labels) -> str:
    mends = MENDS | OWN_MENDS if labels.ids == "own" else MENDS
    found = (mend for words, mend in mends.items() if words in fault)
    return next(found, "Replace the file, or leave its id out of the split")


def _sentences(text: str, more: str) -> str:
    return f"{text}{'' if text.endswith('?') else '.'} {more}"


def refusal(faults: Sequence[str], labels: Labels) -> UserError:
    """The error that ends a command: the first of the faults, the mend, and who lists them all."""
    count = f"{len(faults)} faults, the first: " if len(faults) > 1 else ""
    told = _sentences("; ".join(faults[:3]), _mend(faults[0], labels))
    return UserError(f"{labels.domain}: {count}{told}; python -m snr_jax.doctor lists every fault")


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
    if data[:4] in (b"II*\0", b"MM\0*"):
        faults.append(f"{path} is no {what}: it is a TIFF file, which is not read")
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
