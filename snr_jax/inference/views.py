"""How a network sees an image: at which size, whole or in tiles, and with the mirrored one."""

import operator
from collections.abc import Mapping
from typing import Any, NamedTuple

from snr_jax.core.errors import UserError
from snr_jax.core.models.deeplab import LEAST

PUBLISHED_SIZE = (512, 1024)  # at which the published Cityscapes numbers are scored
OWN = "own"
Size = tuple[int, int]  # height, width in pixels


class View(NamedTuple):
    """How `tiles.segment` has a network see an image.

    size: what it sees of the image, or of each tile; None: its own. tile: None for the whole image.
    overlap: pixels that neighbouring tiles share at least. flip: averaged with the mirrored image.
    why: where the size was nobody's choice, what it is, as in "as in its training".
    """

    size: Size | None = None
    tile: Size | None = None
    overlap: int = 0
    flip: bool = False
    why: str = ""

    def __str__(self) -> str:
        """In words: "at 512x1024 as in its training"."""
        seen = "at {}x{}".format(*self.size) if self.size else "at their own size"
        if self.tile:
            height, width = self.tile
            seen = f"in tiles of {height}x{width} that share {self.overlap} pixels or more, {seen}"
        return f"{seen} {self.why}".rstrip()


def create_view(
    meta: Mapping, *, size: Any = None, tile: Any = None, overlap: int | None = None,
    flip: bool = False, mark: str = "",
) -> View:
    """The view of a checkpoint's network that is asked for.

    meta: of the checkpoint. size, tile: height and width, as numbers or as the words of a command
    line; size may be "own" and is, by default, "own" with tiles and else that of the training, or
    512x1024 where none is recorded. overlap: by default an eighth of the tile's shorter side. mark:
    what stands before the names of these in messages. Raises UserError for what cannot be.
    """
    if tile is not None:
        tile = pixels(f"{mark}tile", tile)
        overlap = min(tile) // 8 if overlap is None else overlap
        if not 0 <= overlap <= min(tile) // 2:
            raise UserError(f"{mark}overlap is {overlap}; expected 0 to {min(tile) // 2}, half of "
                            "the tile's shorter side")
    elif overlap is not None:
        raise UserError(f"{mark}overlap is of tiles; give {mark}tile HEIGHT,WIDTH as well")
    why = ""
    if isinstance(size, str) and size == OWN:
        size = None
    elif size is not None:
        size = pixels(f"{mark}size", size, f", or {OWN}")
    elif tile is None:
        size, why = _default_size(meta)
    return View(size, tile, overlap or 0, flip, why)


def _default_size(meta: Mapping) -> tuple[Size, str]:
    if recorded := meta.get("source", {}).get("input_size"):
        return tuple(recorded), "as in its training"
    return PUBLISHED_SIZE, "as the published numbers are scored (the checkpoint records no size)"


def pixels(name: str, value: Any, other: str = "") -> Size:
    """Height and width, of two numbers or words. Raises UserError, with `name`, for others."""
    try:
        height, width = (int(v) if isinstance(v, str) else operator.index(v) for v in value)
        if min(height, width) < LEAST:
            raise ValueError
    except (TypeError, ValueError):
        given = ",".join(map(str, value)) if isinstance(value, list | tuple) else value
        raise UserError(f"{name} is {given}; expected HEIGHT,WIDTH in pixels, as 512,1024, of at "
                        f"least {LEAST} each{other}") from None
    return height, width
