"""Counting of what is averaged: tiles of an image, at several scales, and the mirrored image."""

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from PIL import Image

from snr_jax.core.labels import IGNORE
from snr_jax.core.metrics import Counts
from snr_jax.core.models.backbone import Size
from snr_jax.core.models.create import Network, backbone_of
from snr_jax.core.parallel import Parallel
from snr_jax.core.steps import Tally, make_logits_step
from snr_jax.core.tiles import BLOCK, Averaging, Axis, add_share, axes, cut, starts


class Protocol(NamedTuple):
    """How a batch is counted."""

    put: Callable[[dict], Any]  # a host batch → what lies on the devices
    count: Callable[[dict, Any], Counts]  # variables, that → numpy, summed over the devices


class Glimpse(NamedTuple):
    """What the network sees of a batch at a time, and where that lies in the labels."""

    image: np.ndarray  # uint8 RGB [B,h,w,3]
    rows: Axis
    columns: Axis
    mirrored: Axis  # the columns in the map of the mirrored image


def glimpses_of(
    images: np.ndarray, scored: Size, size: Size, averaging: Averaging,
    map_size: Callable[[Size], Size],
) -> Iterator[Glimpse]:
    """What the network sees of images uint8 RGB [B,H,W,3], in the order of scales and places.

    Of each scale it covers labels of the size `scored`.
    size: what the network sees of the whole, without tiles, at scale 1. Tiles are those of the
    images at the size that is scored. map_size: that of the network's `Backbone`.
    """
    tile = averaging.tile or scored
    images = _resized(images, scored) if averaging.tile else images
    begins = [starts(*pair, averaging.overlap) for pair in zip(scored, tile, strict=True)]
    for seen in averaging.sizes(size):
        rows, columns = zip(scored, tile, begins, map_size(seen), BLOCK, strict=True)
        for top, row in zip(begins[0], axes(*rows), strict=True):
            for left, *pair in zip(begins[1], axes(*columns), axes(*columns, mirrored=True)):
                part = cut(images, top, left, tile) if averaging.tile else images
                yield Glimpse(_resized(part, seen), row, *pair)


def _resized(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 RGB [B,H,W,3] → [B,*size,3], by Pillow's bicubic as everywhere."""
    if images.shape[1:3] == size:
        return images
    sides = size[::-1]
    return np.stack([
        np.asarray(Image.fromarray(image).resize(sides, Image.Resampling.BICUBIC))
        for image in images
    ])


@lru_cache(maxsize=8)
def in_glimpses(
    model: Network, flip: bool, parallel: Parallel, tally: Tally, averaging: Averaging,
    size: tuple[int, int],
) -> Protocol:
    """Counts of batches whose images have their own size.

    The labels are counted in blocks of one shape, so that neither memory nor the number of
    programs grows with them: one program of the network and one of a block for each scale.
    """
    number = len(averaging.scales) * (1 + flip)
    map_size = backbone_of(model).map_size
    see = parallel.compile(make_logits_step(model=model, flip=flip))
    begin = parallel.compile(_nothing_of(model.num_classes))
    add = parallel.compile(jax.vmap(add_share, (0, 0, None, None)), donate=0)
    count_block = parallel.compile(_make_count(tally, number, parallel.axis_name))

    def put(batch: dict) -> tuple[list[Glimpse], list[tuple[tuple[slice, slice], dict]]]:
        scored = batch["label"].shape[1:]
        seen = [
            glimpse._replace(image=parallel.shard({"image": glimpse.image}))
            for glimpse in glimpses_of(batch["image"], scored, size, averaging, map_size)
        ]
        return seen, [(place, parallel.shard({"label": part}))
                      for place, part in _blocks(batch["label"])]

    def count(variables: dict, arrays: tuple) -> Counts:
        seen, blocks = arrays
        plain_and_mirrored = zip(*(see(variables, glimpse.image) for glimpse in seen), strict=True)
        maps = [
            (logits, glimpse.rows, columns)
            for mirrored, outputs in enumerate(plain_and_mirrored)
            for logits, glimpse in zip(outputs, seen, strict=True)
            for columns in [glimpse.mirrored if mirrored else glimpse.columns]
        ]
        found = []
        for (rows, columns), label in blocks:
            total = begin(label)
            for logits, row, column in maps:
                row, column = Axis(*(v[rows] for v in row)), Axis(*(v[columns] for v in column))
                if row.share.any() and column.share.any():
                    total = add(total, logits, *parallel.replicate((row, column)))
            found.append(parallel.unreplicate(count_block(total, label)))
        return added(found)

    return Protocol(put, count)


def added(counts: Iterable[Counts]) -> Counts:
    """The sum, int64."""
    return jax.tree.map(lambda *parts: np.sum(parts, axis=0, dtype=np.int64), *counts)


def _blocks(label: np.ndarray) -> Iterator[tuple[tuple[slice, slice], np.ndarray]]:
    """Labels [B,H,W], padded, as parts [B,*BLOCK] that cover them, each with its place."""
    lack = [(0, 0), *((0, -side % block) for side, block in zip(label.shape[1:], BLOCK))]
    label = np.pad(label, lack, constant_values=IGNORE)
    for top in range(0, label.shape[1], BLOCK[0]):
        for left in range(0, label.shape[2], BLOCK[1]):
            place = slice(top, top + BLOCK[0]), slice(left, left + BLOCK[1])
            yield place, label[:, *place]


def _nothing_of(num_classes: int) -> Callable[[dict], jax.Array]:
    return lambda batch: jnp.zeros((*batch["label"].shape, num_classes), jnp.float32)


def _make_count(tally: Tally, number: int, axis_name: str | None) -> Callable[..., Any]:
    """count(total, batch): the tally of the mean of `number` probabilities that were added up."""

    def count(total: jax.Array, batch: dict) -> Any:
        counts = tally(batch["label"], total / number)
        return lax.psum(counts, axis_name) if axis_name else counts

    return count
