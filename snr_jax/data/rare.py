"""Rare class sampling (DAFormer, arXiv 2111.14887): source images are drawn by their classes.

With f_c the share of class c in the pixels of all labels, P(c) is proportional to
exp((1 - f_c) / temperature): a class is drawn, then an image that holds it.
"""

import hashlib
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from snr_jax.core.errors import UserError
from snr_jax.core.files import written_whole
from snr_jax.core.labels import class_names
from snr_jax.core.progress import Show
from snr_jax.data import decode
from snr_jax.data.decode import tf
from snr_jax.data.faults.doubts import by_class
from snr_jax.data.faults.inspection import inspect, refusal
from snr_jax.data.samples import Labels, Sample

logger = logging.getLogger(__name__)


class RareClasses(NamedTuple):
    """P(c), float [C], and of every class the indices of the images that hold it."""

    probabilities: np.ndarray
    images: tuple[np.ndarray, ...]

    def draw(self, position: int, seed: int) -> tuple[int, int]:
        """Index of the image and class, at a position of the endless stream."""
        random = np.random.default_rng([seed, int(position), 1])
        chosen = int(random.choice(len(self.probabilities), p=self.probabilities))
        return int(random.choice(self.images[chosen])), chosen


def rare_classes(counts: np.ndarray, *, temperature: float, min_pixels: int) -> RareClasses:
    """counts int64 [num_samples, C]: pixels of each class in each label at its own size.

    A class that no image holds with `min_pixels` is never drawn. Raises UserError if none is held.
    """
    images = tuple(np.flatnonzero(of_class >= min_pixels) for of_class in counts.T)
    held = np.array([len(indices) > 0 for indices in images])
    if not held.any():
        raise UserError(
            f"no class has {min_pixels} pixels in any label, of at most {counts.max(initial=0)}. "
            "Set --config.source.rare_class_pixels to less"
        )
    share = counts.sum(0) / counts.sum()
    logits = np.where(held, (share[held].min() - share) / temperature, -np.inf)
    weights = np.exp(logits)
    return RareClasses(weights / weights.sum(), images)


def describe(rare: RareClasses, labels: Labels) -> str:
    """The classes that are drawn most, with their probability in percent."""
    order = np.argsort(-rare.probabilities)[:5]
    names = class_names(labels.classes)
    return ", ".join(f"{names[c]} {100 * rare.probabilities[c]:.1f}" for c in order)


def count_classes(
    samples: Sequence[Sample], labels: Labels, directory: str, *, show: Show
) -> np.ndarray:
    """int64 [num_samples, C]: pixels of each class in each label, at the size of its file.

    Every label is read once; the counts are kept beside the data, in `directory`. Raises UserError
    for a label that cannot be read.
    """
    kept = Path(directory) / f"class_counts_{_key(samples, labels, directory)}.npy"
    try:
        counts = np.load(kept)
        if counts.shape == (len(samples), len(labels.classes)):
            return counts
    except (OSError, ValueError):  # not there, or not whole: it is made anew
        pass

    def count(sample: Sample) -> np.ndarray:
        try:
            path = tf.constant(sample.label)
            ids = decode.read_label_ids(path, labels).numpy()
        except tf.errors.OpError as error:
            if faults := inspect(sample, labels).faults:
                raise refusal(faults, labels) from error
            raise
        by_id = np.bincount(ids.ravel(), minlength=256)
        return by_class(by_id, labels)[: len(labels.classes)]

    counts = np.zeros((len(samples), len(labels.classes)), np.int64)
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        for i, of_sample in enumerate(pool.map(count, samples)):
            counts[i] = of_sample
            show(i + 1, len(samples))
    finally:  # also after Ctrl-C, which must not wait for the rest
        pool.shutdown(cancel_futures=True)
    _keep(kept, counts)
    return counts


def _key(samples: Sequence[Sample], labels: Labels, directory: str) -> str:
    """Checksum of the ids, the sizes of the label files, and the classes that they are read as.

    Of one's own set, several of which may share a directory, also of each file's place and time.
    """
    digest = hashlib.sha256(labels.lookup.tobytes())
    if labels.colors:
        digest.update(repr(labels.colors).encode())
    for sample in samples:
        try:
            file = os.stat(sample.label)
        except OSError as error:
            raise UserError(
                f"{sample.label} cannot be read ({error.strerror}). Rare class sampling counts the "
                "label files once; unpack them there, or set "
                "--config.source.rare_class_temperature=0"
            ) from None
        digest.update(f"{sample.id} {file.st_size}\n".encode())
        if labels.ids == "own":
            place = os.path.relpath(sample.label, directory)
            digest.update(f"{place} {file.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:12]


def _keep(path: Path, counts: np.ndarray) -> None:
    try:
        with written_whole(path) as unfinished, unfinished.open("wb") as file:
            np.save(file, counts)
    except OSError as error:
        logger.info("the class counts cannot be kept in %s (%s); the next start makes them again",
                    path.parent, error.strerror)
