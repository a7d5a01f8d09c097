"""Reads every file of a split and reports what is there and what is broken.

    python -m snr_jax.data.doctor --domain gta5 --dir datasets/GTA5 [--split train]

Exits 0 where all is well, 1 with faulty files, 2 where the split cannot be listed at all.
"""

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from snr_jax.core.errors import UserError
from snr_jax.core.labels import IGNORE, UNKNOWN, class_names
from snr_jax.data import decode
from snr_jax.data.domains import DOMAINS, Sample, list_samples


@dataclass(frozen=True)
class Report:
    num_samples: int
    notes: list[str]  # of list_samples
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
    progress: Callable[[int, int, float], None] | None = None,
    num_threads: int | None = None,
) -> Report:
    """Decodes every image and label of the split and goes on past the broken ones.

    `progress` is called after each sample with (done, total, seconds so far). Raises UserError as
    `list_samples` does: for a missing directory, an empty split, missing files.
    """
    samples, notes = list_samples(domain, directory, split, require_labels=require_labels)
    faults: list[str] = []
    sizes: Counter = Counter()
    pixels, images = np.zeros(256, np.int64), np.zeros(256, np.int64)
    start = time.monotonic()
    findings = _inspect_all(samples, domain, num_classes, num_threads or os.cpu_count() or 1)
    for done, finding in enumerate(findings, 1):
        faults += finding.faults
        if finding.size:
            sizes[finding.size] += 1
        if finding.histogram is not None:
            pixels += finding.histogram
            images += finding.histogram > 0
        if progress:
            progress(done, len(samples), time.monotonic() - start)
    return Report(
        num_samples=len(samples),
        notes=notes,
        faults=faults,
        sizes=dict(sizes.most_common()),
        pixels=pixels[:num_classes],
        images=images[:num_classes],
        ignored=int(pixels[IGNORE]),
        unknown=int(pixels[UNKNOWN]),
    )


def _inspect_all(
    samples: list[Sample], domain: str, num_classes: int, num_threads: int
) -> Iterator[decode.Finding]:
    def inspect(sample: Sample) -> decode.Finding:
        return decode.inspect(sample, domain=domain, num_classes=num_classes)

    pool = ThreadPoolExecutor(num_threads)
    try:
        yield from pool.map(inspect, samples)
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
    lines += [f"FAULT {fault}" for fault in report.faults]
    lines.append(f"{len(report.faults)} faults" if report.faults else "no faults")
    return "\n".join(lines)


def _make_progress_line(every_seconds: float) -> Callable[[int, int, float], None]:
    last = 0.0

    def show(done: int, total: int, seconds: float) -> None:
        nonlocal last
        if done < total and seconds - last < every_seconds:
            return
        last = seconds
        rate = done / max(seconds, 1e-9)
        left = (total - done) / rate
        end = "\r" if sys.stderr.isatty() and done < total else "\n"
        line = f"{done}/{total} samples, {rate:.1f}/s, {left:.0f} s left"
        print(f"{line:<60}", end=end, file=sys.stderr, flush=True)

    return show


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m snr_jax.data.doctor",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--domain", required=True, help=", ".join(DOMAINS))
    parser.add_argument("--dir", required=True, help="the data set's own folder")
    parser.add_argument("--split", default="train")
    parser.add_argument("--num_classes", type=int, default=19, choices=(19, 16, 13))
    parser.add_argument("--no_labels", action="store_true", help="labels may be missing")
    args = parser.parse_args(argv)
    try:
        report = check(
            args.domain,
            args.dir,
            args.split,
            num_classes=args.num_classes,
            require_labels=not args.no_labels,
            progress=_make_progress_line(0.5 if sys.stderr.isatty() else 10),
        )
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(describe(report))
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
