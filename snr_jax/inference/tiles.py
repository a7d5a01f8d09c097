"""Segmentation of images of any size, in memory that the size of the image hardly moves.

The network sees the image at one size, or in tiles of one size, and its logits stay at stride 8.
The result is made of blocks of one shape, see `core.tiles`. So two small programs and one network
are compiled for all images.
"""

import functools
import logging
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import psutil
from PIL import Image

from snr_jax.core.augment import to_network_input
from snr_jax.core.errors import UserError
from snr_jax.core.models.deeplab import DeepLab, map_size
from snr_jax.core.tiles import BLOCK, Axis, add_share, axes, cut, starts

logger = logging.getLogger(__name__)

_CGROUP = Path("/sys/fs/cgroup")

Program = Callable[[np.ndarray], jax.Array]  # image uint8 RGB [h,w,3] → logits [h/8,w/8,C]
Network = Callable[[int, int], Program]  # of that height and width


def create_network(model: DeepLab, variables: dict) -> Network:
    """network(height, width) → the program for images of that size, compiled once.

    It says so where a size needs more than half of the free memory, and raises UserError where it
    needs more than all.
    """
    variables = jax.device_put(variables)

    def logits(variables: dict, image: jax.Array) -> jax.Array:
        x = to_network_input(image[None])
        return model.apply(variables, x, train=False, output_size=map_size(image.shape[:2])).main[0]

    @functools.cache
    def network(height: int, width: int) -> Program:
        image = jax.ShapeDtypeStruct((height, width, 3), np.uint8)
        program = jax.jit(logits).lower(variables, image).compile()
        needed, free = program.memory_analysis().temp_size_in_bytes, _free_memory()
        if free is not None and needed > free / 2:
            text = (f"a network that sees {height}x{width} needs about {needed / 2**30:.1f} GiB, "
                    f"and {max(free, 0) / 2**30:.1f} GiB are free")
            if needed > free:
                raise UserError(f"{text}; choose --size 512,1024 or --tile 512,1024")
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


# ---------------------------------------------------------------- an image


@jax.jit
def _decide(total: jax.Array) -> tuple[jax.Array, jax.Array]:
    return total.argmax(-1).astype(jnp.uint8), total.max(-1)


def segment(
    network: Network,
    image: Image.Image,
    *,
    size: tuple[int, int] | None = None,
    tile: tuple[int, int] | None = None,
    overlap: int = 0,
    flip: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """trainIds uint8 [H,W] and the probability of the predicted class float32 [H,W].

    size: what the network sees of the image or of each tile; None: its own. tile: height and width
    in pixels; the whole image if None. An image smaller than a tile is padded with the mean colour.
    flip: averaged with the mirrored image.
    """
    lengths = image.height, image.width
    tile = tile or lengths
    size = size or tile
    begins = [starts(*pair, overlap) for pair in zip(lengths, tile, strict=True)]
    rows, columns = zip(lengths, tile, begins, map_size(size), BLOCK, strict=True)
    maps = []  # logits [h,w,C] with their rows and columns
    for mirrored in (False, True) if flip else (False,):
        for top, row in zip(begins[0], axes(*rows), strict=True):
            for left, column in zip(begins[1], axes(*columns, mirrored), strict=True):
                seen = Image.fromarray(cut(np.asarray(image), top, left, tile))
                seen = seen.resize(size[::-1], Image.Resampling.BICUBIC)
                pixels = np.asarray(seen)[:, :: -1 if mirrored else 1]
                maps.append((network(*size)(pixels), row, column))
    classes, confidence = np.empty(lengths, np.uint8), np.empty(lengths, np.float32)
    for top in range(0, lengths[0], BLOCK[0]):
        for left in range(0, lengths[1], BLOCK[1]):
            place = slice(top, top + BLOCK[0]), slice(left, left + BLOCK[1])
            block = _decide(_block(maps, *place))
            for whole, part in zip((classes, confidence), block, strict=True):
                target = whole[place]
                target[:] = np.asarray(part)[: target.shape[0], : target.shape[1]]
    return classes, confidence / (1 + flip)


def _block(maps: list[tuple[jax.Array, Axis, Axis]], rows: slice, columns: slice) -> jax.Array:
    """Sums of probabilities [*BLOCK,C]. Maps that do not reach into the block cost nothing."""
    total = jnp.zeros((*BLOCK, maps[0][0].shape[-1]), jnp.float32)
    for logits, row, column in maps:
        row, column = Axis(*(v[rows] for v in row)), Axis(*(v[columns] for v in column))
        if row.share.any() and column.share.any():
            total = add_share(total, logits, row, column)
    return total
