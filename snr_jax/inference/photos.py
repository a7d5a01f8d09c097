"""Images as users have them, in folders or in Python, and the files of their results."""

import contextlib
import errno
import fnmatch
import glob
import io
import itertools
import os
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from snr_jax.core.errors import UserError
from snr_jax.core.files import closed_folder, user_path
from snr_jax.core.labels import Classes, train_id_to_label_id
from snr_jax.report.pictures import colorize, overlay, write_png

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
_FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # Pillow's names of these
_STRIP = 256  # rows of a picture that are drawn at a time
_READING = threading.Lock()
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # of TIFF


class Photos(NamedTuple):
    """Image files, by their paths from a folder, sorted; and what else lies there, by name."""

    folder: Path
    paths: list[Path]
    others: list[str]


def find_images(given: Sequence[str], out: Path | None = None) -> Photos:
    """The image files of folders in any depth, of patterns as photos/*/*.jpg, and files.

    Of several, as a shell makes them of a pattern, the results mirror the folder that holds all.
    Hidden files and folders, files with other suffixes, empty folders, folders that were read
    under another name (a link may loop) and the folder `out` are left out. Raises UserError if
    there is nothing, no image in it, or a folder that cannot be read.
    """
    if len(given) > 1:  # absolute, to have a folder in common
        given = [os.path.abspath(text) for text in given]
    roots, chosens = zip(*map(_chosen, given), strict=True)
    root, chosen = Path(os.path.commonpath(roots)), list(itertools.chain(*chosens))
    found, others = _read_folders(chosen, out and out.resolve())
    images = {path for path in found if _is_image_name(path)}
    if not images:
        what = ", ".join(given[:3]) + (", ..." if len(given) > 3 else "")
        what += " is a file and" if len(given) == 1 and Path(what).is_file() else ""
        raise UserError(f"--images: {what} holds no {', '.join(SUFFIXES)} file")
    names = [path.relative_to(root).as_posix() for path in {*others, *found} - images]
    return Photos(root, sorted(path.relative_to(root) for path in images), sorted(names))


def _chosen(given: str) -> tuple[Path, list[Path]]:
    """The folder that the results of what is given mirror, and the files and folders meant."""
    path = Path(given)
    if os.path.lexists(given):
        return path if path.is_dir() else path.parent, [path]
    names = itertools.takewhile(lambda name: not glob.has_magic(name), path.parts)
    root = Path(*names)
    return root, _matching(given, root)


def _is_image_name(path: Path) -> bool:
    # A link to nowhere stays: the user means it, and is told that it cannot be read.
    return path.suffix.lower() in SUFFIXES and (path.is_file() or not path.exists())


def _matching(pattern: str, root: Path) -> list[Path]:
    """What a pattern stands for; ** stands for folders of any depth."""
    if "**" in pattern:  # glob would follow links that loop
        files, _ = _read_folders([root] if root.is_dir() else [], None)
        anywhere = str(Path(pattern)).replace("**/", "*")
        found = [path for path in files if fnmatch.fnmatchcase(str(path), anywhere)]
    else:
        found = sorted(map(Path, glob.glob(pattern)))
    if not found and (closed := closed_folder(pattern)):
        raise _closed(closed, os.strerror(errno.EACCES))
    if not found:
        kind = "nothing that matches" if glob.has_magic(pattern) else "no folder or file"
        raise UserError(f"--images: there is {kind} {pattern}")
    return found


def _closed(folder: Path, why: str) -> UserError:
    return UserError(f"--images: {folder} cannot be read: {why}. Mend its permissions (chmod +rx)")


def _read_folders(chosen: Sequence[Path], out: Path | None) -> tuple[list[Path], list[Path]]:
    """The files in folders of any depth that are not hidden, and what is left out.

    Links to folders come last: a folder that is reached by several ways keeps its own.
    """
    files: list[Path] = []
    others: list[Path] = []
    links: list[Path] = []
    seen: set[Path] = set()
    named, todo = set(chosen), list(chosen[::-1])
    while todo or links:
        path = todo.pop() if todo else links.pop(0)
        hidden = path.name.startswith(".") and path not in named
        if not path.is_dir():
            (others if hidden else files).append(path)
            continue
        real = path.resolve()
        if hidden or real in seen or (real == out and path not in named):
            others.append(path)
            continue
        seen.add(real)
        try:
            inside = sorted(path.iterdir())
        except OSError as error:
            raise _closed(path, error.strerror) from None
        linked = [each for each in inside if each.is_symlink() and each.is_dir()]
        links += linked
        todo += sorted(set(inside) - set(linked), reverse=True)
        others += [] if inside else [path]
    return files, others


def result_names(paths: list[Path]) -> list[str]:
    """What the results of each image are named after: its path without the suffix, if no other
    image shares that.

    Else its whole path: photo.jpg and photo.png give photo.jpg_color.png and photo.png_color.png.
    """
    stems = Counter(path.with_suffix("") for path in paths)
    taken = set(paths)
    return [
        str(path if stems[stem] > 1 or stem in taken else stem)
        for path in paths for stem in [path.with_suffix("")]
    ]


def printable(name: str) -> str:
    """A file's name for the terminal: bytes of it that are no UTF-8 become "?"."""
    return name.encode(errors="replace").decode()


def read_image(path: str | os.PathLike) -> Image.Image:
    """An RGB image, turned as its EXIF says; 16-bit gray is scaled to 8 bits.

    Of several frames the first. Raises UserError for a file that is no image, is
    damaged, has more pixels than Pillow takes for harmless (179 million), or whose numbers have no
    agreed white (32-bit and float gray).
    """
    path = Path(path)
    try:
        with _without_warnings(), Image.open(path) as image:
            return _to_rgb(image)
    except Exception as error:  # a broken file may raise anything; nothing is tried instead
        raise UserError(f"cannot be read as an image: {_reason(path, error)}") from error


def read_bytes(content: bytes) -> Image.Image:
    """What `read_image` makes of a file, of the bytes of one; nothing is written anywhere.

    Of the formats that SUFFIXES name alone: Pillow has others that start programs. Raises UserError
    as `read_image`.
    """
    try:
        with _without_warnings(), Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            return _to_rgb(image)
    except UnidentifiedImageError as error:
        raise UserError("cannot be read as an image: it is damaged, or no file of "
                        f"{', '.join(_FORMATS[:-1])} or {_FORMATS[-1]}") from error
    except Exception as error:  # as in `read_image`
        raise UserError(f"cannot be read as an image: {_reason(Path(), error)}") from error


def to_photo(image: Any) -> Image.Image:
    """An image as Python has it as RGB, converted as `read_image` does.

    image: a path; a PIL image; an array uint8 or uint16 [H,W,3] RGB, [H,W,4] RGBA or [H,W] gray.
    Raises UserError as `read_image`, with the path, and for another array; TypeError for what is
    none of these.
    """
    if isinstance(image, str | os.PathLike):
        path = user_path(os.fspath(image))
        try:
            return read_image(path)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
    if isinstance(image, Image.Image):
        try:
            with _without_warnings():
                photo = _to_rgb(image)
        except Exception as error:
            name = getattr(image, "filename", "")
            raise UserError(f"{name or 'the PIL image'} cannot be read as an image: "
                            f"{_reason(Path(name), error)}") from error
        if 0 in photo.size:
            raise UserError(f"a PIL image of {photo.width}x{photo.height} pixels is empty")
        return photo
    if hasattr(image, "__array__"):
        return _from_array(np.asarray(image))
    raise TypeError("expected a path, a PIL image or an array, uint8 [H,W,3] RGB, or a list of "
                    f"these; got {type(image).__name__}")


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Within the block nothing warns of 89 million pixels on, or of odd metadata.

    One thread at a time: the filters of warnings are the process's, and each puts its own back.
    """
    with _READING, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _to_rgb(image: Image.Image) -> Image.Image:
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    photometric, bits = tags.get(_PHOTOMETRIC), tags.get(_BITS_PER_SAMPLE)
    is_png = image.format == "PNG"  # of which older Pillows give 16 bits as "I"
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and is_png):
        if bits not in (None, (16,), 16):
            raise ValueError(f"it has {bits} bits per pixel; 8 or 16 are read")
        values = np.asarray(image)
        values = 65535 - values if photometric == _WHITE_IS_ZERO else values
        image = Image.fromarray(_eight_bits(values))
    if image.mode in ("I", "F"):
        kind = {"I": "signed or 32-bit integers", "F": "floats"}[image.mode]
        raise ValueError(f"it holds {kind}, which have no agreed white; convert it "
                         "to 8 or 16 bits")
    return image.convert("RGB")


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """0..65535 → 0..255, rounded."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _from_array(values: np.ndarray) -> Image.Image:
    shape, dtype = values.shape, values.dtype
    of_image = len(shape) == 2 or (len(shape) == 3 and shape[2] in (3, 4))
    if not of_image or 0 in shape or dtype.kind != "u" or dtype.itemsize > 2:
        hint = ""
        if len(shape) == 4:
            hint = ". A batch is given as a list of its images: list(batch)"
        elif len(shape) == 3 and not of_image and shape[0] in (3, 4):
            hint = ". Channels come last: image.transpose(1, 2, 0)"
        elif dtype.kind == "f":
            hint = ". Of values from 0 to 1: (255 * image).round().astype('uint8')"
        raise UserError(f"an array of shape {shape} and dtype {dtype} is no image; expected uint8 "
                        f"(or uint16) [H,W,3] RGB, [H,W,4] RGBA or [H,W] gray{hint}")
    values = values if dtype.itemsize == 1 else _eight_bits(values)
    return Image.fromarray(np.ascontiguousarray(values)).convert("RGB")


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return f"{str(error).split(', could be')[0]}; scale it down first"
    if path.is_symlink() and not path.exists():
        return "it is a link to a file that is not there"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    # Pillow names the path again.
    text = str(error).replace(f" '{path}'", "").replace(f" {str(path)!r}", "")
    return " ".join(text.split()) or type(error).__name__


def write_results(
    prefix: Path,
    image: np.ndarray,
    classes: np.ndarray,
    known: int | Classes,
    confidence: np.ndarray | None = None,
) -> None:
    """PREFIX_color.png, _overlay, _trainIds, _labelIds and, where it is given, _confidence.

    image uint8 RGB [H,W,3], classes uint8 [H,W] trainIds, confidence float [H,W] in 0..1. Each
    file is written whole or not at all. Raises UserError if that fails.
    """
    pictures = {
        "color": draw_color(classes, known),
        "overlay": draw_overlay(image, classes, known),
        "trainIds": classes,
        "labelIds": train_id_to_label_id(known)[classes],
    }
    if confidence is not None:
        pictures["confidence"] = _strips(lambda p: np.rint(p * 255).astype(np.uint8), confidence)
    for kind, array in pictures.items():
        write_png(array, prefix.with_name(f"{prefix.name}_{kind}.png"))


def draw_color(classes: np.ndarray, known: int | Classes) -> np.ndarray:
    """`pictures.colorize`, in strips."""
    return _strips(lambda c: colorize(c, known), classes)


def draw_overlay(image: np.ndarray, classes: np.ndarray, known: int | Classes) -> np.ndarray:
    """`pictures.overlay`, in strips."""
    return _strips(lambda i, c: overlay(i, c, known), image, classes)


def _strips(draw: Callable[..., np.ndarray], *arrays: np.ndarray) -> np.ndarray:
    """draw(*arrays), some rows at a time: drawing takes a multiple of the picture's memory."""
    tops = range(0, len(arrays[0]), _STRIP)
    return np.concatenate([draw(*(array[top : top + _STRIP] for array in arrays)) for top in tops])
