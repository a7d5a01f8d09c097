"""Scores of a network on a domain, and pictures of its predictions."""

import dataclasses
import itertools
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from snr_jax.core import metrics
from snr_jax.core.errors import UserError
from snr_jax.core.labels import IGNORE, Classes
from snr_jax.core.metrics import Counts
from snr_jax.core.models.backbone import Size
from snr_jax.core.models.create import Network, backbone_of
from snr_jax.core.models.layers import interpolation
from snr_jax.core.parallel import Parallel, create_parallel
from snr_jax.core.progress import progress_text
from snr_jax.core.steps import (
    Places,
    Tally,
    Window,
    make_eval_step,
    make_logits_step,
    make_predict_step,
    make_window_step,
)
from snr_jax.core.tiles import Averaging
from snr_jax.data import pipeline, prefetch
from snr_jax.data.domains import CONDITIONS, create_domain, distinct_names, is_own, origin
from snr_jax.data.identity import exchanged, meaning
from snr_jax.data.samples import Domain
from snr_jax.data.splits import Split, open_split
from snr_jax.report.pictures import colorize
from snr_jax.runs.averaging import Protocol, added, in_glimpses

logger = logging.getLogger(__name__)

PROTOCOLS = ("network", "full")


def evaluate(
    model: Network,
    variables: dict,
    split: Split,
    *,
    parallel: Parallel,
    batch_size: int = 1,
    protocol: str = "network",
    flip: bool = False,
    interrupt: Callable[[], None] = lambda: None,
) -> dict:
    """`metrics.named_scores` of what `count` counts, with its arguments."""
    total = count(
        model, variables, split, parallel=parallel, batch_size=batch_size, protocol=protocol,
        flip=flip, interrupt=interrupt,
    )
    return metrics.named_scores(total.confusion, split.labels.classes)


def count(
    model: Network,
    variables: dict,
    split: Split,
    *,
    parallel: Parallel,
    batch_size: int = 1,
    protocol: str = "network",
    flip: bool = False,
    averaging: Averaging | None = None,
    calibrated: bool = False,
    interrupt: Callable[[], None] = lambda: None,
) -> Counts:
    """Counts int64 over the samples of the split: confusion [C,C], rows are labels of its classes.

    averaging: of tiles and scales; None: the whole image, once. calibrated: whether the reliability
    is counted too.
    parallel: over the devices of this process (`own_devices`). Of several processes each reads and
    counts its part, in its own time, since nothing is exchanged before the sum at the end.
    variables: on the devices, from `parallel.replicate`. batch_size: images over all devices,
    rounded up to a multiple of them. interrupt: called between batches; it may raise.
    """
    parts, number = tuple(split.labels.parts), len(split.labels.classes)
    tally = _tally(calibrated, parts)
    if averaging:
        put, counted = in_glimpses(
            model, flip, parallel, tally, averaging, tuple(split.size))
    else:
        put, counted = _COUNTED_AT[protocol](model, flip, parallel, tally)
    processes = jax.process_count()
    samples = split.samples[jax.process_index() :: processes]
    batch_size = -(-batch_size // processes)
    batch_size += -batch_size % parallel.num_devices
    batches = pipeline.eval_batches(
        samples, split.labels, size=split.size, batch_size=batch_size, label_size=protocol,
        image_size="full" if averaging else "network",
    ) if samples else ()

    total = Counts(np.zeros((model.num_classes,) * 2, np.int64),
                   np.zeros((metrics.BINS, 4), np.int64) if calibrated else None)
    done, start = 0, time.monotonic()
    last_line = start
    for images, arrays in prefetch.prefetch_to_device(
        batches, lambda batch: (int(batch["valid"].sum()), put(batch))
    ):
        total = jax.tree.map(np.add, total, counted(variables, arrays))
        interrupt()
        done += images
        if time.monotonic() - last_line > 10:
            last_line = time.monotonic()
            rate = done / (last_line - start)
            title = f"{split.name}, {protocol}: images"
            logger.info(progress_text(title, done, len(samples), rate))
    total = total if processes == 1 else jax.tree.map(_summed, total)
    if parts:
        total = total._replace(confusion=metrics.joined(total.confusion, parts, number))
    return total


def _summed(counts: np.ndarray) -> np.ndarray:
    """The sum of an int64 array over the processes; as bytes, since JAX has 32 bits."""
    gathered = multihost_utils.process_allgather(counts.view(np.uint8))
    return np.ascontiguousarray(gathered).view(np.int64).sum(0)


@lru_cache(maxsize=8)
def own_devices(parallel: Parallel) -> Parallel:
    """`parallel` over the devices of this process alone; the same value at every call."""
    return parallel if jax.process_count() == 1 else create_parallel(jax.local_devices())


def unlike_training(meta: dict, config: ConfigDict) -> list[str]:
    """Notes, in words, where a configuration is not that of the checkpoint's training.

    The network can be scored all the same, but the user may not mean it.
    """
    source = meta.get("source", {})
    pairs = {
        "recipe": (source.get("recipe"), config.recipe),
        "target.size": (source.get("input_size"), config.target.size),
    }
    return [
        f"the network was trained with {key} {_shown(there)}, the configuration has {_shown(here)}"
        for key, (there, here) in pairs.items()
        if there is not None and _shown(there) != _shown(here)
    ]


def _shown(value: str | Sequence[int]) -> str:
    return value if isinstance(value, str) else "x".join(map(str, value))


@lru_cache(maxsize=8)
def _tally(calibrated: bool, parts: tuple[int, ...]) -> Tally:
    """What is counted of labels and probabilities; the same function at every call."""

    def tally(label: jax.Array, p: jax.Array) -> Counts:
        found = metrics.count_reliability(label, p, parts) if calibrated else None
        return Counts(metrics.count_confusion(label, p), found)

    return tally


@lru_cache(maxsize=8)
def _at_network_size(model: Network, flip: bool, parallel: Parallel, tally: Tally) -> Protocol:
    step = parallel.compile(
        make_eval_step(model=model, flip=flip, tally=tally, axis_name=parallel.axis_name))

    def put(batch: dict) -> dict:
        return parallel.shard({key: batch[key] for key in ("image", "label", "valid")})

    def count(variables: dict, arrays: dict) -> Counts:
        return jax.tree.map(np.asarray, parallel.unreplicate(step(variables, arrays)))

    return Protocol(put, count)


@lru_cache(maxsize=8)
def _at_label_size(model: Network, flip: bool, parallel: Parallel, tally: Tally) -> Protocol:
    """In windows of the network's size: two programs, in place of one per label size."""
    see = parallel.compile(make_logits_step(model=model, flip=flip))
    add = parallel.compile(make_window_step(tally=tally, axis_name=parallel.axis_name))
    dtype = np.promote_types(model.dtype, np.float32)
    map_size = backbone_of(model).map_size

    def put(batch: dict) -> tuple[dict, list[tuple[dict, Window]]]:
        size = batch["image"].shape[1:3]
        windows = [
            (parallel.shard({"label": label}), parallel.replicate(window))
            for label, window in windowed(batch["label"], size, map_size(size), dtype)
        ]
        return parallel.shard({"image": batch["image"]}), windows

    def count(variables: dict, arrays: tuple[dict, list[tuple[dict, Window]]]) -> Counts:
        image, windows = arrays
        maps = see(variables, image)
        return added(parallel.unreplicate(add(maps, *one)) for one in windows)

    return Protocol(put, count)


_COUNTED_AT = {"network": _at_network_size, "full": _at_label_size}


def windowed(
    label: np.ndarray, size: Size, map_size: Size, dtype: np.dtype
) -> Iterator[tuple[np.ndarray, Window]]:
    """Labels [B,H,W], padded, as parts [B,*size] that cover them, each with its window.

    size: what the network sees of their images. map_size, dtype: of its logits.
    """

    def places(length: int, side: int, map_length: int) -> list[list[Places]]:
        """Of each part along a side: plain and mirrored; beyond the end whatever is there."""
        tables = interpolation(map_length, length, dtype)
        index = np.arange(-(-length // side) * side).clip(max=length - 1).reshape(-1, side)
        return [[Places(*(table[i] for table in tables)) for i in (part, length - 1 - part)]
                for part in index]

    sides = zip(label.shape[1:], size, map_size)
    rows, columns = (places(*side) for side in sides)
    lack = [(0, 0), *((0, -length % side) for length, side in zip(label.shape[1:], size))]
    label = np.pad(label, lack, constant_values=IGNORE)
    for (i, (row, _)), (j, (plain, mirrored)) in itertools.product(
        enumerate(rows), enumerate(columns)
    ):
        top, left = i * size[0], j * size[1]
        part = label[:, top : top + size[0], left : left + size[1]]
        yield part, Window(row, plain, mirrored)


@lru_cache(maxsize=8)
def _compiled_prediction(model: Network, size: tuple[int, int]) -> Callable:
    probabilities = make_predict_step(model=model)
    return jax.jit(lambda v, x: probabilities(v, x, size).argmax(-1).astype(jnp.uint8))


def pictures(
    model: Network,
    variables: dict,
    split: Split,
    known: Classes | None = None,
) -> list[dict[str, np.ndarray]]:
    """{"input", "label", "prediction"}, uint8 RGB [h,w,3] each, per sample. variables: numpy.

    known: the network's classes, where they are others than the split's. Parts of the split's
    classes are drawn as these.
    """
    parts = np.array(split.labels.parts, np.uint8)
    predict = _compiled_prediction(model, tuple(split.size))
    variables = jax.device_put(variables)

    def prediction(image: np.ndarray) -> np.ndarray:
        predicted = np.asarray(predict(variables, image))[0]
        if parts.size:
            return colorize(parts[predicted], split.labels.classes)
        return colorize(predicted, known or split.labels.classes)

    return [
        {
            "input": batch["image"][0],
            "label": colorize(batch["label"][0], split.labels.classes),
            "prediction": prediction(batch["image"]),
        }
        for batch in pipeline.eval_batches(
            split.samples, split.labels, size=split.size, batch_size=1
        )
    ]


# ---------------------------------------------------------------- several domains in one table


class Rows(NamedTuple):
    """What is scored, by the name of its row, in the order of the table."""

    splits: dict[str, Split]
    parts: dict[str, tuple[str, ...]]  # row → the rows whose counts it is the sum of
    in_mean: tuple[str, ...]

    @property
    def read(self) -> dict[str, Split]:
        """The rows without parts: their images are read, each once."""
        return {name: split for name, split in self.splits.items() if name not in self.parts}


def open_rows(
    entries: Sequence[str], *, root: str, split: str, size: tuple[int, int] | None,
    max_images: int, classes: Classes,
) -> Rows:
    """A row for each entry: DOMAIN, or DOMAIN=DIR for another folder below `root` than its own.

    ACDC has a row for each condition besides. size: None for each domain its own. Raises UserError
    as `open_split`, and for an entry that is named twice.
    """

    listed = {
        entry: [f"acdc_{c}{entry[len('acdc'):]}" for c in CONDITIONS]
        for entry in entries if entry.partition("=")[0] == "acdc"
    }
    every = list(dict.fromkeys([*entries, *(part for parts in listed.values() for part in parts)]))
    names = dict(zip(every, distinct_names(every), strict=True))

    def opened(entry: str) -> Split:
        domain = _domain(entry, root)
        found = open_split(
            domain, split, size=size or domain.train_size, classes=classes, max_images=max_images
        )
        return found._replace(name=names[entry])

    splits: dict[str, Split] = {}
    parts: dict[str, tuple[str, ...]] = {}
    in_mean = {}  # what is scored → its row
    for entry in entries:
        if entry in listed:
            found = [opened(part) for part in listed[entry]]
            samples = [sample for part in found for sample in part.samples]
            domain = create_domain("acdc", found[0].domain.directory)
            whole = found[0]._replace(name=entry, domain=domain, samples=samples)
            parts[entry] = tuple(part.name for part in found)
            splits |= {part.name: part for part in found}
        else:
            whole = opened(entry)
        place = (whole.domain.name, origin(whole.domain))
        if place in in_mean or whole.name in in_mean.values():
            raise UserError(f"--domains names {whole.name} twice; leave one out")
        splits[whole.name] = whole
        in_mean[place] = whole.name
    return Rows(splits, parts, tuple(in_mean.values()))


def _domain(entry: str, root: str) -> Domain:
    """DOMAIN, or DOMAIN=DIR for another folder below `root` than its own."""
    name, _, folder = (entry, "", "") if is_own(entry) else entry.partition("=")
    domain = create_domain(name)
    if folder or not is_own(name):
        place = os.path.join(root, folder or domain.folder)
        domain = dataclasses.replace(domain, directory=place)
    return domain


def read_otherwise(meta: dict, rows: Rows) -> list[str]:
    """Notes on rows of the set that the network was trained on, whose numbers meant others then."""
    there = meta.get("labels", {})
    return [
        f"the labels of {name} are read otherwise than in training: {', '.join(words)}"
        for name, split in rows.read.items() if split.domain.spec == there.get("domain")
        if (words := exchanged({"numbers": there.get("numbers")},
                               {"numbers": meaning(split.labels)["numbers"]}))
    ]


def with_sums(counts: Mapping[str, Counts], rows: Rows) -> dict[str, dict]:
    """`metrics.named_scores` of every row, with `metrics.calibration` where that was counted.

    counts: of the rows without parts.
    """
    results = {}
    for name, split in rows.splits.items():
        total = added(counts[part] for part in rows.parts.get(name, (name,)))
        scores = metrics.named_scores(total.confusion, split.labels.classes)
        found = total.reliability
        results[name] = scores | ({} if found is None else metrics.calibration(found))
    return results


def means(results: Mapping[str, Mapping[str, Mapping]], in_mean: Sequence[str]) -> dict[str, dict]:
    """Means of each mIoU and "ece" over the domains, by column, of {row: {column: scores}}."""
    columns = results[in_mean[0]]
    return {
        column: {
            key: float(np.mean([results[name][column][key] for name in in_mean]))
            for key in ("miou", "miou_13", "ece") if key in columns[column]
        }
        for column in columns
    }
