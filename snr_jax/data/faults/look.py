"""A quick look at a split before work begins: the headers of all its files, a few labels whole."""

import logging
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image

from snr_jax.core.errors import UserError
from snr_jax.core.files import checksum
from snr_jax.core.labels import ID_TABLES, IGNORE, UNKNOWN, to_train_id
from snr_jax.data import decode
from snr_jax.data.faults import inspection
from snr_jax.data.faults.doubts import (
    absent,
    label_doubt,
    shape_doubt,
    teaches_one_class,
    turn_doubt,
)
from snr_jax.data.prepared.reading import Prepared
from snr_jax.data.samples import Labels, Sample

logger = logging.getLogger(__name__)

NUM_THREADS = 16  # they wait for the disk
NUM_DECODED = 16  # labels whose pixels are looked at
MOST_FAULTS = 20  # after so many the rest is not looked at
NUM_NAMED = 20
# The modes in which Pillow opens a label of that kind; None for any.
LABEL_MODES = {"indices": ("1", "L", "P"), "synthia": ("I;16", "RGB"), "colors": None}
# What stands at a whole file's end, in its last bytes.
ENDS = {"PNG": b"IEND", "JPEG": b"\xff\xd9", "MPO": b"\xff\xd9"}
TAIL_BYTES = 4096
T = TypeVar("T")
_LABEL_IDS = to_train_id(ID_TABLES["label_ids"])


class _Glance(NamedTuple):
    faults: list[str]
    difference: str | None = None  # of the sizes, where they differ by little
    size: tuple[int, int] | None = None  # of the image
    orientation: int = 1


def look(
    samples: Sequence[Sample],
    labels: Labels,
    *,
    size: tuple[int, int] | None = None,
    with_labels: bool = True,
    training: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """Warnings about the split; `progress(done, total)` is called after each sample.

    size: at which images are seen. training: the labels are learnt from. The classes that no label
    holds of those that are looked at are told in the log. Raises UserError, naming files, for those
    that are missing, cut short or no images, for images and labels of different shapes, for labels
    that cannot be meant (`label_fault`), and of training where no label teaches a second class.
    """
    if not with_labels:
        samples = [Sample(sample.id, sample.image, None) for sample in samples]
    pool = ThreadPoolExecutor(NUM_THREADS)
    try:
        glances = _glances(samples, labels, pool, progress)
        faults = [fault for glance in glances for fault in glance.faults]
        findings = [] if faults else _findings(
            lambda sample: inspection.inspect(sample, labels), samples, labels, pool, training)
    finally:  # also after Ctrl-C, which must not wait for the rest
        pool.shutdown(cancel_futures=True)
    faults += [fault for finding in findings for fault in finding.faults]
    if faults:
        raise inspection.refusal(faults, labels)
    differences = [glance.difference for glance in glances if glance.difference]
    sizes = [glance.size for glance in glances]
    turns = [(sample.image, glance.orientation) for sample, glance in zip(samples, glances)]
    return [
        *([_differ(labels.domain, differences)] if differences else []),
        *(look_at_sizes(labels.domain, samples, sizes, size) if size else []),
        *_named(labels.domain, turn_doubt(turns)),
        *_named(labels.domain, _judge(findings, labels, training)),
    ]


def header_sizes(samples: Sequence[Sample]) -> list[tuple[int, int] | None]:
    """Height and width of the images; None for one that does not look whole."""
    with warnings.catch_warnings(), ThreadPoolExecutor(NUM_THREADS) as pool:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        headers = pool.map(lambda one: _header(one.image, decode.IMAGE_FORMATS), samples)
        return [size for size, _ in headers]


def look_at_sizes(
    domain: str, samples: Sequence[Sample], sizes: Iterable[Sequence[int] | None],
    seen: tuple[int, int],
) -> list[str]:
    """A warning where images of these (height, width) lose their shape when they are `seen`."""
    known = [(one.image, tuple(size)) for one, size in zip(samples, sizes) if size]
    return _named(domain, shape_doubt(known, seen))


def look_at_prepared(prepared: Prepared, count: int, labels: Labels) -> list[str]:
    """Warnings about so many labels of training; the files were read when it was made.

    Raises UserError as `look` for labels that cannot be meant, and for a damaged record.
    """
    read = prepared.reader(with_labels=True)

    def inspect(index: int) -> inspection.Finding:
        try:
            label = read(decode.tf.constant(index), decode.tf.constant(False))["label"].numpy()
        except (decode.tf.errors.OpError, RuntimeError) as error:  # the latter of array_record
            raise prepared.fault(error) from error
        pixels = np.bincount(label.ravel(), minlength=256)
        return inspection.Finding([], None, label.shape, pixels)

    pool = ThreadPoolExecutor(NUM_THREADS)
    try:
        findings = _findings(inspect, range(count), labels, pool, training=True)
    finally:
        pool.shutdown(cancel_futures=True)
    return _named(labels.domain, _judge(findings, labels, training=True))


def _glances(
    samples: Sequence[Sample], labels: Labels, pool: ThreadPoolExecutor,
    progress: Callable[[int, int], None],
) -> list[_Glance]:
    """What the headers say of each, up to so many faults."""
    glances, faults = [], 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        for found in pool.map(lambda sample: _glance(sample, labels), samples):
            glances.append(found)
            faults += len(found.faults)
            progress(len(glances), len(samples))
            if faults >= MOST_FAULTS:
                break
    return glances


def _findings(
    inspect: Callable[[T], inspection.Finding], samples: Sequence[T], labels: Labels,
    pool: ThreadPoolExecutor, training: bool,
) -> list[inspection.Finding]:
    """Of some samples, spread over the split, and of all while they teach one class alone."""
    spread = np.linspace(0, len(samples) - 1, NUM_DECODED).astype(int)
    chosen = [samples[i] for i in dict.fromkeys(spread.tolist())]
    findings = list(pool.map(inspect, chosen))
    pixels = _pixels(findings)
    others = [one for one in samples if one not in chosen]
    if training and others and teaches_one_class(pixels, labels):
        logger.info("note: %s: %d labels hold one class alone; looking at the other %d",
                    labels.domain, len(chosen), len(others))
        for finding in pool.map(inspect, others):
            findings.append(finding)
            pixels += _pixels([finding])
            if not teaches_one_class(pixels, labels):
                break
    return findings


def _pixels(findings: Iterable[inspection.Finding]) -> np.ndarray:
    """int64 [256]: the pixels of the labels by the files' own ids."""
    found = (finding.pixels for finding in findings if finding.pixels is not None)
    return sum(found, np.zeros(256, np.int64))


def _judge(
    findings: Sequence[inspection.Finding], labels: Labels, training: bool
) -> str | None:
    """Why the labels may not be meant. Raises UserError where they cannot be."""
    pixels = _pixels(findings)
    if not pixels.any():
        return None
    fault, doubt = label_fault(pixels, labels), label_doubt(pixels, labels)
    if training and teaches_one_class(pixels, labels):
        fault = fault or f"{doubt}. Nothing else can be learnt from them"
    if fault:
        raise UserError(f"{labels.domain}: {fault}")
    if missing := absent(pixels, labels):
        logger.info("note: %s: of the %d labels that were looked at none holds %s",
                    labels.domain, len(findings), ", ".join(missing))
    return doubt


def _named(domain: str, doubt: str | None) -> list[str]:
    return [f"{domain}: {doubt}"] if doubt else []


def _glance(sample: Sample, labels: Labels) -> _Glance:
    size, turn = _header(sample.image, decode.IMAGE_FORMATS)
    formats = decode.IMAGE_FORMATS if labels.colors else ("PNG",)
    label_size = size
    if sample.label:
        label_size, _ = _header(sample.label, formats, LABEL_MODES[labels.kind])
    if size is None or label_size is None or not decode.alike(size, label_size):
        found = inspection.inspect(sample, labels)  # decides
        if found.faults or found.label_size is None:
            return _Glance(found.faults, None, found.size, found.orientation)
        size, label_size, turn = found.size, found.label_size, found.orientation
    if size == label_size:
        return _Glance([], None, size, turn)
    return _Glance([], inspection.difference(sample, size, label_size), size, turn)


def _header(
    path: str, formats: Sequence[str], modes: Sequence[str] | None = None
) -> tuple[tuple[int, int] | None, int]:
    """Height and width, and the EXIF orientation, of a file that looks whole; else None, and 1."""
    try:
        with open(path, "rb") as file, Image.open(file, formats=formats) as image:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            whole = ENDS.get(image.format, b"") in file.read()
            if whole and image.mode in (modes or image.mode):
                return image.size[::-1], inspection.orientation(image)
    except Exception:  # whatever the parser meets in a broken file
        pass
    return None, 1


def _differ(domain: str, differences: Sequence[str]) -> str:
    more = ", ..." if len(differences) > NUM_NAMED else ""
    return (
        f"{domain}: {len(differences)} labels differ from their images in size, by little: "
        f"{', '.join(differences[:NUM_NAMED])}{more}. Each is resized by itself"
    )


def label_fault(pixels: np.ndarray, labels: Labels) -> str | None:
    """Why labels cannot be meant, if so. pixels: int64 [256], their number by the files' own ids.

    No pixel of theirs has a class; or they are trainIds where label ids are needed: the highest is
    the one of vegetation to bicycle, and most pixels mean nothing as label ids. In labels of that
    kind vegetation, sky, people and cars are above 18.
    """
    present = np.flatnonzero(pixels)
    highest = present[present < IGNORE].max(initial=0)
    of_no_class = pixels[:IGNORE][_LABEL_IDS[:IGNORE] >= UNKNOWN].sum()
    is_train_ids = 8 <= highest <= 18 and of_no_class > pixels[:IGNORE].sum() / 2
    if labels.ids == "label_ids" and is_train_ids:
        return (
            "the labels look like trainIds (0 to 18), where label ids (7 to 33) are needed. "
            f"Expected: {labels.layout}"
        )
    if not pixels[labels.lookup < UNKNOWN].any():
        ids = "" if labels.colors else f" (ids {', '.join(map(str, present[:8]))})"
        return (
            f"every pixel of the labels that were looked at is ignored{ids}. Are they those of a "
            f"test set, or of another data set? Expected: {labels.layout}"
        )
    return None


def shared(splits: Mapping[str, Sequence[Sample]]) -> list[str]:
    """Warnings where a split of training has images of one of validation ("..._val"), or copies."""
    validation = [name for name in splits if name.endswith("_val")]
    images = {sample.image for samples in splits.values() for sample in samples}
    sizes = {image: _bytes(image) for image in images}
    return [
        f"{name} and {other} share {len(both)} images, {min(both)} the first: the network is "
        f"scored on what it was trained on"
        for name in splits if name not in validation
        for other in validation if (both := _twice(splits[name], splits[other], sizes))
    ]


def _twice(
    training: Sequence[Sample], validation: Sequence[Sample], sizes: Mapping[str, int]
) -> set[str]:
    """The images of validation that are among those of training, by path or by content."""
    paths = {sample.image for sample in training}
    both = {sample.image for sample in validation if sample.image in paths}
    others = [one.image for one in validation if one.image not in both and sizes[one.image]]
    wanted = {sizes[image] for image in others}
    # All files of some formats, as BMP, have one size: a piece of each tells most apart.
    pieces = {path: _middle(path) for path in paths if sizes[path] in wanted}
    known = set(pieces.values())
    likely = {image: piece for image in others if known and (piece := _middle(image)) in known}
    wanted = set(likely.values())
    contents = {checksum(path) for path, piece in pieces.items() if piece in wanted}
    return both | {image for image in likely if checksum(image) in contents}


def _middle(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            file.seek(os.fstat(file.fileno()).st_size // 2)
            return file.read(256)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _bytes(path: str) -> int:
    """The size of a file; 0 where it is not there, as behind prepared data."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
