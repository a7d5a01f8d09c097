"""Where the pixels of an image lie in the logits of its tiles, and the sum of their probabilities.

The result is made of blocks of one shape: for each, the logits are upsampled, and averaged over
the tiles that reach into it.
"""

import math
from typing import NamedTuple

import jax
import numpy as np

from snr_jax.core.augment import MEAN_BGR
from snr_jax.core.models.layers import interpolated, interpolation

BLOCK = (256, 512)  # height, width in pixels
_BEYOND = tuple(round(value) for value in MEAN_BGR[::-1])  # where a tile is larger than the image


class Averaging(NamedTuple):
    """What a network sees of an image, whose probabilities are averaged.

    tile: height and width of tiles, in pixels of the size that is scored; None: the whole.
    overlap: pixels that neighbouring tiles share at least. scales: factors of the size at which
    each tile, or the whole, is seen.
    """

    tile: tuple[int, int] | None = None
    overlap: int = 0
    scales: tuple[float, ...] = (1.0,)

    def sizes(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """Height and width that the network sees, by scale. size: of the whole, at scale 1."""
        return [tuple(round(side * scale) for side in self.tile or size) for scale in self.scales]


def cut(images: np.ndarray, top: int, left: int, tile: tuple[int, int]) -> np.ndarray:
    """A tile of images uint8 RGB [...,H,W,3]; beyond their end it has the mean colour."""
    part = images[..., top : top + tile[0], left : left + tile[1], :]
    if part.shape[-3:-1] == tile:
        return part
    padded = np.empty((*images.shape[:-3], *tile, 3), np.uint8)
    padded[:] = _BEYOND
    padded[..., : part.shape[-3], : part.shape[-2], :] = part
    return padded


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
def add_share(total: jax.Array, logits: jax.Array, rows: Axis, columns: Axis) -> jax.Array:
    """total float [b,B,C] plus a map's share of the probabilities. logits [h,w,C]."""
    x = interpolated(logits, 0, rows.low, rows.high, rows.weight)
    p = jax.nn.softmax(interpolated(x, 1, columns.low, columns.high, columns.weight))
    return total + p * (rows.share[:, None] * columns.share)[..., None]
