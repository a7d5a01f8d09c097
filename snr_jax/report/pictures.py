"""Results for the eye: label maps in colour, overlays, captioned grids and their files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from snr_jax.core.errors import UserError
from snr_jax.core.files import written_whole
from snr_jax.core.labels import Classes, classes, palette

TINT = 0.5  # share of the class colour in an overlay
GAP = 4  # pixels between the cells of a panel


def colorize(train_ids: np.ndarray, which: int | Classes = 19) -> np.ndarray:
    """trainIds uint8 [H,W] in the official colours, uint8 [H,W,3] RGB; the rest is black."""
    return palette(which)[np.asarray(train_ids, np.uint8)]


def overlay(image: np.ndarray, train_ids: np.ndarray, which: int | Classes = 19) -> np.ndarray:
    """The image uint8 [H,W,3] tinted by class, uint8 [H,W,3]; ignored pixels stay untouched.

    Raises ValueError if the sizes differ.
    """
    if image.shape != (*train_ids.shape, 3):
        raise ValueError(f"image {image.shape} and trainIds {train_ids.shape} differ in size")
    mixed = (1 - TINT) * image + TINT * colorize(train_ids, which)
    mixed = np.clip(np.rint(mixed), 0, 255).astype(np.uint8)
    return np.where((train_ids < len(classes(which)))[..., None], mixed, image)


def panel(rows: Sequence[Mapping[str, np.ndarray]]) -> np.ndarray:
    """A grid of pictures under captions: a row per sample, a column per key; uint8 [H,W,3].

    Cells have the size of the first picture; others are scaled to it. A key that a row lacks
    leaves its cell blank.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    height, width = next(iter(rows[0].values())).shape[:2]
    font = ImageFont.load_default(size=min(max(width // 14, 10), 24))
    strip = sum(font.getmetrics()) + GAP
    canvas = Image.new(
        "RGB",
        (len(columns) * (width + GAP) - GAP, strip + len(rows) * (height + GAP) - GAP),
        "white",
    )
    for x, key in enumerate(columns):
        caption = Image.new("RGB", (width, strip), "white")  # its own, so that it cannot run over
        ImageDraw.Draw(caption).text((2, 0), key, fill="black", font=font)
        canvas.paste(caption, (x * (width + GAP), 0))
        for y, row in enumerate(rows):
            if key in row:
                # BOX averages where it shrinks and repeats pixels where it enlarges.
                cell = Image.fromarray(row[key]).resize((width, height), Image.Resampling.BOX)
                canvas.paste(cell, (x * (width + GAP), strip + y * (height + GAP)))
    return np.asarray(canvas)


def write_png(array: np.ndarray, path: Path) -> None:
    """Writes uint8 [H,W] or [H,W,3] whole or not at all. Raises UserError."""
    try:
        with written_whole(path) as unfinished:
            Image.fromarray(array).save(unfinished, format="PNG")
    except OSError as error:
        raise UserError(f"{path} could not be written: {error}") from None
