"""Segmentation of images of any size, in memory that the size of the image hardly moves.

The network sees the image at one size, or in tiles of one size, and its logits stay at stride 8.
The result is made of blocks of one shape, see `core.tiles`. So two small programs and one network
are compiled for all images.
"""

import functools
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import psutil
from PIL import Image

from snr_jax.core.augment import to_network_input
from snr_jax.core.errors import UserError
from snr_jax.core.models.backbone import Size
from snr_jax.core.models.create import backbone_of
from snr_jax.core.models.deeplab import RESNET
from snr_jax.core.tiles import BLOCK, Axis, add_share, axes, cut, starts

logger = logging.getLogger(__name__)

_CGROUP = Path("/sys/fs/cgroup")

# images uint8 RGB [B,h,w,3] → logits [h/8,w/8,C] of each
Program = Callable[[np.ndarray], Sequence[jax.Array]]
Network = Callable[[int, int, int], Program]  # of that height, width and number of images


def create_network(model: nn.Module, variables: dict) -> Network:
    """network(height, width, count) → the program for so many images of that size, compiled once.

    It says so where a size needs more than half of the free memory, and raises UserError where it
    needs more than all.
    """
    variables, known = jax.device_put(variables), backbone_of(model)

    def logits(variables: dict, images: jax.Array) -> tuple[jax.Array, ...]:
        x = to_network_input(images, known.preprocessing)
        size = known.map_size(images.shape[1:3])
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


# ---------------------------------------------------------------- images


@jax.jit
def _decide(total: jax.Array) -> tuple[jax.Array, jax.Array]:
    return total.argmax(-1).astype(jnp.uint8), total.max(-1)


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
    map_size: Callable[[Size], Size] = RESNET.map_size,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """trainIds uint8 [H,W] and the probability of the predicted class float32 [H,W], of each image.

    size: what the network sees of an image or of each tile; None: its own. tile: height and width
    in pixels; the whole image if None. An image smaller than a tile is padded with the mean colour.
    flip: averaged with the mirrored image. batch_size: images or tiles of one size that the network
    sees at a time; fewer go one by one, so that no further program is compiled. map_size: that of
    the network's `Backbone`.
    """
    tiles = [tile or (image.height, image.width) for image in images]
    cuts = [_cuts((image.height, image.width), of_image, map_size(size or of_image), overlap, flip)
            for image, of_image in zip(images, tiles, strict=True)]
    seen = itertools.chain.from_iterable(
        _seen(np.asarray(image), its, of_image, size or of_image)
        for image, of_image, its in zip(images, tiles, cuts, strict=True))
    logits = iter(_logits(network, seen, batch_size))
    results = []
    for image, its in zip(images, cuts, strict=True):
        maps = [(next(logits), one.row, one.column) for one in its]
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
    lengths: tuple[int, int], tile: tuple[int, int], of_map: Size, overlap: int, flip: bool
) -> list[Cut]:
    begins = [starts(*pair, overlap) for pair in zip(lengths, tile, strict=True)]
    rows, columns = zip(lengths, tile, begins, of_map, BLOCK, strict=True)
    return [
        Cut(top, left, mirrored, row, column)
        for mirrored in ((False, True) if flip else (False,))
        for top, row in zip(begins[0], axes(*rows), strict=True)
        for left, column in zip(begins[1], axes(*columns, mirrored), strict=True)
    ]


def _seen(
    image: np.ndarray, cuts: Iterable[Cut], tile: tuple[int, int], size: tuple[int, int]
) -> Iterator[np.ndarray]:
    """What the network sees of each tile, uint8 [*size,3]. image uint8 [H,W,3]."""
    for one in cuts:
        pixels = Image.fromarray(cut(image, one.top, one.left, tile))
        seen = np.asarray(pixels.resize(size[::-1], Image.Resampling.BICUBIC))
        yield seen[:, :: -1 if one.mirrored else 1]


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


def _block(maps: list[tuple[jax.Array, Axis, Axis]], rows: slice, columns: slice) -> jax.Array:
    """Sums of probabilities [*BLOCK,C]. Maps that do not reach into the block cost nothing."""
    total = jnp.zeros((*BLOCK, maps[0][0].shape[-1]), jnp.float32)
    for logits, row, column in maps:
        row, column = Axis(*(v[rows] for v in row)), Axis(*(v[columns] for v in column))
        if row.share.any() and column.share.any():
            total = add_share(total, logits, row, column)
    return total
