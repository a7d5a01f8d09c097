"""Every file of a split read whole: what it holds and what is broken, with the mend by name."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from snr_jax.core.errors import UserError
from snr_jax.core.labels import IGNORE, UNKNOWN, Classes, class_names
from snr_jax.core.progress import Show
from snr_jax.data import decode, layouts
from snr_jax.data.faults.doubts import (
    by_class,
    label_doubt,
    shape_doubt,
    teaches_one_class,
    turn_doubt,
)
from snr_jax.data.faults.inspection import Finding, difference, inspect, mended
from snr_jax.data.faults.look import label_fault
from snr_jax.data.layouts import Pairs
from snr_jax.data.samples import Domain, Labels, Sample, find


@dataclass(frozen=True)
class Fault:
    text: str  # names its files and the mend
    sample: Sample | None = None


@dataclass(frozen=True)
class Survey:
    layout: str  # the form of the data set that was found
    num_samples: int  # of the split
    num_read: int
    notes: list[str]
    warnings: list[Fault]  # training runs all the same
    faults: list[Fault]  # training would end there
    sizes: dict[tuple[int, int], int]  # (height, width) → images
    pixels: np.ndarray  # int64 [num_classes]: over all labels
    by_label: dict[str, np.ndarray]  # id → int64 [num_classes]: the pixels of one label
    ignored: int  # pixels without a class
    unknown: int  # pixels with an id that the data set does not define
    good: Sample | None  # the first without a fault
    labels: Labels

    @property
    def images(self) -> np.ndarray:
        """int [num_classes]: labels in which the class occurs."""
        return sum((pixels > 0 for pixels in self.by_label.values()), 0 * self.pixels)


def survey(
    domain: Domain,
    split: str,
    *,
    classes: int | Classes = 19,
    size: tuple[int, int] | None = None,
    require_labels: bool = True,
    read_labels: bool = True,
    training: bool = False,
    sample: int = 0,
    progress: Show = lambda done, total: None,
    num_threads: int | None = None,
) -> Survey:
    """Decodes `sample` images and labels spread over the split, all for 0, past the broken ones.

    Without `read_labels` no label is opened. size: at which images are seen. training: labels are
    learnt from, and those of one class alone are a fault. `progress` is called after each sample.
    Raises UserError for a missing directory, an unknown or empty split, and a set without labels
    that needs them.
    """
    layout, (found, _, _), notes, unread = find(domain, split)
    if require_labels and not layout.labels:
        raise UserError(f"{domain.name} has no labels; without them a set serves as the target of "
                        "training alone. Add the key labels to its file")
    labels = domain.labels(layout, classes)
    faults, warnings = _missing(found, labels, require_labels), _extra(unread)
    if hidden := {why: files for why, files in unread.items() if why == layouts.HIDDEN}:
        notes = [*notes, f"not read: {layouts.tell_unread(hidden)}"]
    samples, unlabelled = _there(found, read_labels)
    if unlabelled and not require_labels:
        notes = [*notes, f"{unlabelled} of {len(samples)} images have no label"]
    if 0 < sample < len(samples):
        spread = np.linspace(0, len(samples) - 1, sample).astype(int)
        samples = [samples[i] for i in dict.fromkeys(spread.tolist())]
    read: list[tuple[Sample, Finding]] = []
    for finding in _inspect_all(samples, labels, num_threads or os.cpu_count() or 1):
        read.append((samples[len(read)], finding))
        progress(len(read), len(samples))
    for one, finding in read:
        faults += [Fault(mended(text, labels), one) for text in finding.faults]
        warnings += _odd(one, finding)
    labelled = [(one, finding) for one, finding in read if finding.pixels is not None]
    by_id = sum((finding.pixels for _, finding in labelled), np.zeros(256, np.int64))
    sound = [(one, finding) for one, finding in read if not finding.faults]
    refused, doubted = _judged(sound, labels, training and len(read) == len(found))
    faults, warnings = faults + refused, warnings + doubted
    warnings += _doubted(read, size)
    pixels, number = by_class(by_id, labels), len(labels.classes)
    good = (one for one, finding in sound if not finding.blank)
    return Survey(
        layout=str(layout), num_samples=len(found), num_read=len(samples), notes=notes,
        warnings=warnings, faults=faults,
        sizes=dict(Counter(f.size for _, f in read if f.size).most_common()),
        pixels=pixels[:number],
        by_label={one.id: by_class(f.pixels, labels)[:number] for one, f in labelled},
        ignored=int(pixels[IGNORE]), unknown=int(pixels[UNKNOWN]), good=next(good, None),
        labels=labels,
    )


def _there(found: Pairs, read_labels: bool) -> tuple[list[Sample], int]:
    """The samples whose image is there, and how many of them have no label."""
    there = {
        id: (image, label if label and label.is_file() else None)
        for id, (image, label) in found.items() if image.is_file()
    }
    samples = [
        Sample(id, str(image), str(label) if label and read_labels else None)
        for id, (image, label) in sorted(there.items())
    ]
    return samples, sum(label is None for _, label in there.values())


def _doubted(read: Sequence[tuple[Sample, Finding]], size: tuple[int, int] | None) -> list[Fault]:
    """Warnings of the images' shapes where they are seen at a size, and of their EXIF."""
    shapes = [(one.image, finding.size) for one, finding in read if finding.size]
    turns = {one: finding.orientation for one, finding in read if not finding.faults}
    first = next((one for one, how in turns.items() if how != 1), None)
    return [
        *_named(shape_doubt(shapes, size) if size else None),
        *_named(turn_doubt([(one.image, how) for one, how in turns.items()]), first),
    ]


def _judged(
    sound: Sequence[tuple[Sample, Finding]], labels: Labels, training: bool
) -> tuple[list[Fault], list[Fault]]:
    """Faults and warnings of what labels without a fault hold, each alone and all together."""
    labelled = [(one, finding) for one, finding in sound if finding.pixels is not None]
    by_id = sum((finding.pixels for _, finding in labelled), np.zeros(256, np.int64))
    if by_id.any() and (fault := label_fault(by_id, labels)):
        first = labelled[0][0]
        return [Fault(f"{mended(fault, labels)}; {first.label} is the first", first)], []
    warnings, doubt = _suspect(labelled, labels), _named(label_doubt(by_id, labels))
    if training and teaches_one_class(by_id, labels):
        return doubt, warnings
    return [], warnings + doubt


def _named(doubt: str | None, sample: Sample | None = None) -> list[Fault]:
    return [Fault(doubt, sample)] if doubt else []


def _suspect(labelled: Sequence[tuple[Sample, Finding]], labels: Labels) -> list[Fault]:
    """Labels that cannot be meant, one by one."""
    reasons = ((one, label_fault(finding.pixels, labels)) for one, finding in labelled)
    return [
        Fault(f"{one.label}: {mended(reason, labels)}", one)
        for one, reason in reasons if reason
    ]


def _missing(found: Pairs, labels: Labels, require_labels: bool) -> list[Fault]:
    faults = []
    for id, (image, label) in sorted(found.items()):
        one = Sample(id, str(image), str(label) if label and label.is_file() else None)
        if not image.is_file():
            of = f", the image of {label}," if label and label.is_file() else ""
            mend = "Put it there" if labels.ids == "own" else "Unpack the images again"
            faults.append(Fault(f"{image}{of} {_absence(image)}. {mend}, or leave the id out of "
                                "the split", one))
        elif require_labels and not label.is_file():
            mend = "Put it there" if labels.ids == "own" else "Unpack the labels again"
            faults.append(Fault(
                f"{label}, the label of {image}, {_absence(label)}. {mend}, or leave the id out of "
                f"the split; expected: {labels.layout}", one
            ))
    return faults


def _absence(path: Path) -> str:
    """How a file is not there: missing, or behind a link to nowhere."""
    for place in (path, *path.parents):
        if place.is_symlink() and not place.exists():
            what = "is" if place == path else f"is missing: {place} is"
            return f"{what} a link to {place.readlink()}, which is not there"
    return "is missing"


def _extra(unread: Mapping[str, Sequence[Path]]) -> list[Fault]:
    """Images beside those of the split that are not read, but for hidden ones."""
    odd = {why: files for why, files in unread.items() if why != layouts.HIDDEN}
    if not odd:
        return []
    first = next(iter(odd.values()))[0]
    return [Fault(
        f"extra images, that no pattern matches or that are second ones of an id, are not read: "
        f"{layouts.tell_unread(odd)}. Convert them, name them in a pattern of your own, or move "
        "them away", Sample("", str(first), None)
    )]


def _odd(sample: Sample, finding: Finding) -> list[Fault]:
    odd = []
    if finding.blank:
        odd.append(Fault(f"{sample.image} is blank, all of one colour. Leave its id "
                         f"{sample.id} out of the split", sample))
    if finding.size and sample.image.endswith(".png") and not _is_png(sample.image):
        odd.append(Fault(f"{sample.image} has the suffix of a PNG and is none; it is read all the "
                         "same. Take the data set's own file: a JPEG has other pixels", sample))
    if finding.label_size and not finding.faults and finding.size != finding.label_size:
        words = difference(sample, finding.size, finding.label_size)
        odd.append(Fault(f"{words}. Each is resized to the training size by itself; for an exact "
                         "pair take both from the same release", sample))
    return odd


def _is_png(path: str) -> bool:
    with Path(path).open("rb") as file:
        return file.read(4) == b"\x89PNG"


def _inspect_all(samples: list[Sample], labels: Labels, num_threads: int) -> Iterator[Finding]:
    def one(sample: Sample) -> Finding:
        return inspect(sample, labels)

    decode.keep_freed_memory()
    pool = ThreadPoolExecutor(num_threads)
    try:
        yield from pool.map(one, samples)
    finally:  # also after Ctrl-C, which must not wait for the rest
        pool.shutdown(cancel_futures=True)


def table(found: Survey) -> list[tuple[str, str, str]]:
    """The class histogram: name, share of the pixels in percent, labels; empty without labels."""
    total = int(found.pixels.sum()) + found.ignored + found.unknown
    if not total:
        return []
    names = class_names(found.labels.classes)
    unknown = "unknown colours" if found.labels.colors else "unknown ids"
    return [
        (name, f"{100 * count / total:.3f}", str(images))
        for name, count, images in zip(names, found.pixels, found.images, strict=True)
    ] + [
        (name, f"{100 * count / total:.3f}", "")
        for name, count in (("ignored", found.ignored), (unknown, found.unknown))
        if count or name == "ignored"
    ]


def describe(found: Survey) -> str:
    """What was found as lines of text, faults last."""
    lines = [f"found: {found.layout}", f"{found.num_samples} samples", *found.notes]
    if found.num_read < found.num_samples:
        lines.append(f"{found.num_read} of them were read")
    lines += [f"{count} images of {w}x{h}" for (h, w), count in found.sizes.items()]
    if rows := table(found):
        width = max(len("class"), *(len(name) for name, _, _ in rows))
        rows = [("class", "% of pixels", "in labels"), *rows]
        lines += [f"{a:<{width}} {b:>11} {c:>9}".rstrip() for a, b, c in rows]
        names = class_names(found.labels.classes)
        missing = [name for name, images in zip(names, found.images) if not images]
        lines += [f"no label holds {', '.join(missing)}"] if missing else []
    lines += [f"WARNING {warning.text}" for warning in found.warnings]
    lines += [f"FAULT {fault.text}" for fault in found.faults]
    number = len(found.faults)
    lines.append(f"{number or 'no'} fault{'' if number == 1 else 's'}")
    return "\n".join(lines)


def statistics(found: Survey) -> dict:
    """What is kept for those who need the classes' shares: counts of pixels and of labels.

    "by_label": sample id → the pixels of each class, in the order of "classes".
    """
    names = class_names(found.labels.classes)
    return {
        "num_samples": found.num_samples,
        "num_read": found.num_read,
        "classes": {
            name: {"pixels": int(pixels), "labels": int(images)}
            for name, pixels, images in zip(names, found.pixels, found.images, strict=True)
        },
        "ignored": found.ignored,
        "unknown": found.unknown,
        "num_faults": len(found.faults),
        "by_label": {id: pixels.tolist() for id, pixels in found.by_label.items()},
    }
