"""Reads every file of a split and reports what is there and what is broken.

    python -m snr_jax.data.doctor --domain gta5 --dir datasets/GTA5 [--split train]

Exits 0 where all is well, 1 with faulty files, 2 where the split cannot be listed at all.
"""

import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from absl import flags

from snr_jax import cli
from snr_jax.core.labels import IGNORE, UNKNOWN, class_names
from snr_jax.core.progress import Show, make_progress
from snr_jax.data.domains import DOMAINS, list_samples
from snr_jax.data.inspection import Finding, difference, inspect
from snr_jax.data.look import label_fault
from snr_jax.data.samples import Labels, Sample

FLAGS = flags.FlagValues()
flags.DEFINE_string("domain", None, f"One of {', '.join(DOMAINS)}.", flag_values=FLAGS)
flags.DEFINE_string("dir", None, "The data set's own folder.", flag_values=FLAGS)
flags.DEFINE_string("split", "train", "Split to read.", flag_values=FLAGS)
flags.DEFINE_enum(
    "num_classes", "19", ["19", "16", "13"], "Classes of the labels.", flag_values=FLAGS
)
flags.DEFINE_bool("no_labels", False, "Labels may be missing.", flag_values=FLAGS)


@dataclass(frozen=True)
class Report:
    num_samples: int
    notes: list[str]  # of list_samples
    differences: list[str]  # labels that differ from their images in size, by little
    faults: list[str]  # each names its file
    sizes: dict[tuple[int, int], int]  # (height, width) → images
    pixels: np.ndarray  # int64 [num_classes]: over all labels
    images: np.ndarray  # int64 [num_classes]: labels in which the class occurs
    ignored: int  # pixels without a class
    unknown: int  # pixels with an id that the data set does not define


def check(
    domain: str,
    directory: str,
    split: str,
    *,
    num_classes: int = 19,
    require_labels: bool = True,
    progress: Show = lambda done, total: None,
    num_threads: int | None = None,
) -> Report:
    """Decodes every image and label of the split and goes on past the broken ones.

    `progress` is called after each sample. Raises UserError as `list_samples` does: for a missing
    directory, an empty split, missing files.
    """
    samples, labels, notes = list_samples(
        domain, directory, split, classes=num_classes, require_labels=require_labels
    )
    faults: list[str] = []
    differences: list[str] = []
    sizes: Counter = Counter()
    by_id, images = np.zeros(256, np.int64), np.zeros(256, np.int64)
    findings = _inspect_all(samples, labels, num_threads or os.cpu_count() or 1)
    for done, (sample, finding) in enumerate(zip(samples, findings, strict=True), 1):
        faults += finding.faults
        if finding.size:
            sizes[finding.size] += 1
        if finding.pixels is not None:
            by_id += finding.pixels
            images += np.bincount(labels.lookup, weights=finding.pixels, minlength=256) > 0
            if not finding.faults and finding.size != finding.label_size:
                differences.append(difference(sample, finding.size, finding.label_size))
        progress(done, len(samples))
    fault = label_fault(by_id, labels) if by_id.any() else None
    faults += [fault] if fault else []
    pixels = np.bincount(labels.lookup, weights=by_id, minlength=256).astype(np.int64)
    return Report(
        num_samples=len(samples),
        notes=notes,
        differences=differences,
        faults=faults,
        sizes=dict(sizes.most_common()),
        pixels=pixels[:num_classes],
        images=images[:num_classes],
        ignored=int(pixels[IGNORE]),
        unknown=int(pixels[UNKNOWN]),
    )


def _inspect_all(
    samples: list[Sample], labels: Labels, num_threads: int
) -> Iterator[Finding]:
    def one(sample: Sample) -> Finding:
        return inspect(sample, labels)

    pool = ThreadPoolExecutor(num_threads)
    try:
        yield from pool.map(one, samples)
    finally:  # also after Ctrl-C, which must not wait for the rest
        pool.shutdown(cancel_futures=True)


def describe(report: Report) -> str:
    """The report as lines of text, faults last."""
    lines = [f"{report.num_samples} samples", *report.notes]
    lines += [f"{count} images of {w}x{h}" for (h, w), count in report.sizes.items()]
    total = int(report.pixels.sum()) + report.ignored + report.unknown
    if total:
        lines.append(f"{'class':<12} {'% of pixels':>11} {'in labels':>9}")
        for name, count, images in zip(
            class_names(len(report.pixels)), report.pixels, report.images, strict=True
        ):
            lines.append(f"{name:<12} {100 * count / total:>11.3f} {images:>9}")
        lines.append(f"{'ignored':<12} {100 * report.ignored / total:>11.3f}")
    lines += [f"SIZES {difference}" for difference in report.differences]
    if report.differences:
        lines.append(f"{len(report.differences)} labels differ from their images in size, by "
                     "little: each is resized to the training size by itself")
    lines += [f"FAULT {fault}" for fault in report.faults]
    lines.append(f"{len(report.faults)} faults" if report.faults else "no faults")
    return "\n".join(lines)


def command(args: flags.FlagValues) -> int:
    domain = cli.require(args, "domain", "--domain gta5")
    directory = cli.require(args, "dir", "--dir datasets/GTA5")
    report = check(
        domain, directory, args.split, num_classes=int(args.num_classes),
        require_labels=not args.no_labels, progress=make_progress("samples"),
    )
    print(describe(report))
    return 1 if report.faults else 0


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(argv, FLAGS, __doc__, command)


if __name__ == "__main__":
    sys.exit(main())
