"""Segmentation of images of any size, in memory that the size of the image hardly moves.

The network sees the image at one size, or in tiles of one size, and its logits stay at stride 8.
The result is made of blocks of one shape: for each, the logits are upsampled, and averaged over
the tiles that reach into it. So two small programs and one network are compiled for all images.
"""

import functools
import itertools
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import psutil
from PIL import Image

from snr_jax.core.augment import MEAN_BGR, to_network_input
from snr_jax.core.errors import UserError
from snr_jax.core.models.deeplab import map_size
from snr_jax.core.models.layers import interpolation

logger = logging.getLogger(__name__)

BLOCK = (256, 512)  # height, width in pixels
_BEYOND = tuple(round(value) for value in MEAN_BGR[::-1])  # where a tile is larger than the image
_CGROUP = Path("/sys/fs/cgroup")

# images uint8 RGB [B,h,w,3] → logits [h/8,w/8,C] of each
Program = Callable[[np.ndarray], Sequence[jax.Array]]
Network = Callable[[int, int, int], Program]  # of that height, width and number of images


def create_network(model: nn.Module, variables: dict) -> Network:
    """network(height, width, count) → the program for so many images of that size, compiled once.

    It says so where a size needs more than half of the free memory, and raises UserError where it
    needs more than all.
    """
    variables = jax.device_put(variables)

    def logits(variables: dict, images: jax.Array) -> tuple[jax.Array, ...]:
        x, size = to_network_input(images), map_size(images.shape[1:3])
        return tuple(model.apply(variables, x, train=False, output_size=size).main)

    @functools.cache
    def network(height: int, width: int, count: int) -> Program:
        images = jax.ShapeDtypeStruct((count, height, width, 3), np.uint8)
        program = jax.jit(logits).lower(variables, images).compile()
        needed, free = program.memory_analysis().temp_size_in_bytes, _free_memory()
        if free is not None and needed > free / 2:
            batch, remedy = "", "--size 512,1024 or --tile 512,1024"
            if count > 1:
                batch, remedy = f", {count} at a time,", "a smaller batch_size"
            text = (f"a network that sees {height}x{width}{batch} needs about "
                    f"{needed / 2**30:.1f} GiB, and {max(free, 0) / 2**30:.1f} GiB are free")
            if needed > free:
                raise UserError(f"{text}; choose {remedy}")
            logger.info("note: %s", text)
        return functools.partial(program, variables)

    return network


def _free_memory() -> int | None:
    """Bytes that the computation can take; None if that is not known."""
    if jax.default_backend() != "cpu":
        stats = jax.local_devices()[0].memory_stats()
        return stats and stats["bytes_limit"] - stats["bytes_in_use"]
    free = psutil.virtual_memory().available
    try:  # of a container
        limit, used = (int((_CGROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
    except (OSError, ValueError):  # there is none, or the limit is "max"
        return free
    return min(free, limit - used)


# ---------------------------------------------------------------- where pixels lie in the logits


class Axis(NamedTuple):
    """For every row (or column) of the image: its place in a map of logits, and the map's share.

    The value is low * (1 - weight) + high * weight. Arrays of one length, padded to whole blocks
    with a share of 0.
    """

    low: np.ndarray  # int32
    high: np.ndarray  # int32
    weight: np.ndarray  # float32
    share: np.ndarray  # float32; over all maps they sum to 1


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin that cover the length, evenly spread, sharing at least `overlap` pixels."""
    count = max(math.ceil((length - overlap) / (tile - overlap)), 1)
    return [round(i * (length - tile) / max(count - 1, 1)) for i in range(count)]


def axes(
    length: int, tile: int, begins: list[int], map_length: int, block: int, mirrored: bool = False
) -> list[Axis]:
    """An Axis per tile. In an overlap the shares fall off linearly towards the tile's end.

    mirrored: for the map of a mirrored tile.
    """
    low, high, weight = interpolation(map_length, tile, np.dtype(np.float32))
    place = np.arange(-(-length // block) * block) - np.array(begins)[:, None]  # [tiles, pixels]
    inside = (place >= 0) & (place < tile) & (np.arange(place.shape[1]) < length)
    height = np.where(inside, np.minimum(place + 1, tile - place), 0)
    share = (height / np.maximum(height.sum(0), 1)).astype(np.float32)
    place = np.where(inside, tile - 1 - place if mirrored else place, 0)
    return [Axis(low[p], high[p], weight[p], s) for p, s in zip(place, share, strict=True)]


@jax.jit
def _add(total: jax.Array, logits: jax.Array, rows: Axis, columns: Axis) -> jax.Array:
    """total float [b,B,C] plus a map's share of the probabilities. logits [h,w,C]."""

    def upsampled(x: jax.Array, axis: Axis, dimension: int) -> jax.Array:
        weight = jnp.expand_dims(axis.weight, [d for d in range(3) if d != dimension])
        low, high = (jnp.take(x, index, dimension) for index in (axis.low, axis.high))
        return low * (1 - weight) + high * weight

    p = jax.nn.softmax(upsampled(upsampled(logits, rows, 0), columns, 1))
    return total + p * (rows.share[:, None] * columns.share)[..., None]


@jax.jit
def _decide(total: jax.Array) -> tuple[jax.Array, jax.Array]:
    return total.argmax(-1).astype(jnp.uint8), total.max(-1)


# ---------------------------------------------------------------- images


def segment(
    network: Network, image: Image.Image, **options: Any
) -> tuple[np.ndarray, np.ndarray]:
    """trainIds and the probability of the predicted class of one image, as `segment_all`."""
    (result,) = segment_all(network, [image], **options)
    return result


def segment_all(
    network: Network,
    images: Sequence[Image.Image],
    *,
    size: tuple[int, int] | None = None,
    tile: tuple[int, int] | None = None,
    overlap: int = 0,
    flip: bool = False,
    batch_size: int = 1,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """trainIds uint8 [H,W] and the probability of the predicted class float32 [H,W], of each image.

    size: what the network sees of an image or of each tile; None: its own. tile: height and width
    in pixels; the whole image if None. An image smaller than a tile is padded with the mean colour.
    flip: averaged with the mirrored image. batch_size: images or tiles of one size that the network
    sees at a time; fewer go one by one, so that no further program is compiled.
    """
    tiles = [tile or (image.height, image.width) for image in images]
    cuts = [_cuts((image.height, image.width), of_image, size or of_image, overlap, flip)
            for image, of_image in zip(images, tiles, strict=True)]
    seen = (_seen(image, cut, of_image, size or of_image)
            for image, of_image, its in zip(images, tiles, cuts, strict=True) for cut in its)
    logits = iter(_logits(network, seen, batch_size))
    results = []
    for image, its in zip(images, cuts, strict=True):
        maps = [(next(logits), cut.row, cut.column) for cut in its]
        labels, total = _assembled(maps, (image.height, image.width))
        results.append((labels, total / (1 + flip)))
    return results


class Cut(NamedTuple):
    """A tile of an image, and where the image's rows and columns lie in the map of it."""

    top: int
    left: int
    mirrored: bool
    row: Axis
    column: Axis


def _cuts(
    lengths: tuple[int, int], tile: tuple[int, int], size: tuple[int, int], overlap: int, flip: bool
) -> list[Cut]:
    begins = [starts(*pair, overlap) for pair in zip(lengths, tile, strict=True)]
    rows, columns = zip(lengths, tile, begins, map_size(size), BLOCK, strict=True)
    return [
        Cut(top, left, mirrored, row, column)
        for mirrored in ((False, True) if flip else (False,))
        for top, row in zip(begins[0], axes(*rows), strict=True)
        for left, column in zip(begins[1], axes(*columns, mirrored), strict=True)
    ]


def _seen(
    image: Image.Image, cut: Cut, tile: tuple[int, int], size: tuple[int, int]
) -> np.ndarray:
    """What the network sees of a tile, uint8 [*size,3]."""
    seen = _cut(image, cut.top, cut.left, tile).resize(size[::-1], Image.Resampling.BICUBIC)
    return np.asarray(seen)[:, :: -1 if cut.mirrored else 1]


def _logits(network: Network, seen: Iterable[np.ndarray], batch_size: int) -> list[jax.Array]:
    """The network's map [h,w,C] of each of uint8 [H,W,3]; a batch runs as soon as it is full."""
    maps: dict[int, jax.Array] = {}

    def run(batch: list[tuple[int, np.ndarray]]) -> None:
        places, images = zip(*batch, strict=True)
        program = network(*images[0].shape[:2], len(batch))
        maps.update(zip(places, program(np.stack(images)), strict=True))

    waiting: dict[tuple[int, int], list[tuple[int, np.ndarray]]] = {}  # by their size
    for place, image in enumerate(seen):
        batch = waiting.setdefault(image.shape[:2], [])
        batch.append((place, image))
        if len(batch) == batch_size:
            run(batch)
            batch.clear()
    for one in itertools.chain(*waiting.values()):
        run([one])
    return [maps[place] for place in range(len(maps))]


def _assembled(
    maps: list[tuple[jax.Array, Axis, Axis]], lengths: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """trainIds and the sum of the predicted class's probabilities, block by block."""
    classes, confidence = np.empty(lengths, np.uint8), np.empty(lengths, np.float32)
    for top in range(0, lengths[0], BLOCK[0]):
        for left in range(0, lengths[1], BLOCK[1]):
            place = slice(top, top + BLOCK[0]), slice(left, left + BLOCK[1])
            block = _decide(_block(maps, *place))
            for whole, part in zip((classes, confidence), block, strict=True):
                target = whole[place]
                target[:] = np.asarray(part)[: target.shape[0], : target.shape[1]]
    return classes, confidence


def _cut(image: Image.Image, top: int, left: int, tile: tuple[int, int]) -> Image.Image:
    box = (left, top, min(left + tile[1], image.width), min(top + tile[0], image.height))
    cut = image.crop(box)
    if cut.size == tile[::-1]:
        return cut
    padded = Image.new("RGB", tile[::-1], _BEYOND)
    padded.paste(cut)
    return padded


def _block(maps: list[tuple[jax.Array, Axis, Axis]], rows: slice, columns: slice) -> jax.Array:
    """Sums of probabilities [*BLOCK,C]. Maps that do not reach into the block cost nothing."""
    total = jnp.zeros((*BLOCK, maps[0][0].shape[-1]), jnp.float32)
    for logits, row, column in maps:
        row, column = Axis(*(v[rows] for v in row)), Axis(*(v[columns] for v in column))
        if row.share.any() and column.share.any():
            total = _add(total, logits, row, column)
    return total
