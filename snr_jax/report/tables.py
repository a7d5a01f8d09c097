"""Results for the eye: label maps in colour, captioned grids, tables and the progress line."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from snr_jax.core.labels import palette

Results = Mapping[str, Mapping]  # run -> {"miou": fraction, "iou": {class: fraction or NaN}, ...}


# ---------------------------------------------------------------- pictures


def colorize(train_ids: np.ndarray, num_classes: int = 19) -> np.ndarray:
    """trainIds uint8 [H,W] in the official colours, uint8 [H,W,3] RGB; the rest is black."""
    return palette(num_classes)[np.asarray(train_ids, np.uint8)]


def overlay(
    image: np.ndarray, train_ids: np.ndarray, num_classes: int = 19, alpha: float = 0.5
) -> np.ndarray:
    """The image uint8 [H,W,3] tinted by class, uint8 [H,W,3]; ignored pixels stay untouched.

    `alpha` is the share of the class colour, 0 to 1. Raises ValueError if the sizes differ.
    """
    if image.shape != (*train_ids.shape, 3):
        raise ValueError(f"image {image.shape} and trainIds {train_ids.shape} differ in size")
    mixed = (1 - alpha) * image + alpha * colorize(train_ids, num_classes)
    mixed = np.clip(np.rint(mixed), 0, 255).astype(np.uint8)
    return np.where((train_ids < num_classes)[..., None], mixed, image)


def panel(rows: Sequence[Mapping[str, np.ndarray]], gap: int = 4) -> np.ndarray:
    """A grid of pictures under captions: a row per sample, a column per key; uint8 [H,W,3].

    Cells have the size of the first picture; others are scaled to it. A key that a row lacks
    leaves its cell blank.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    height, width = next(iter(rows[0].values())).shape[:2]
    font = ImageFont.load_default(size=min(max(width // 14, 10), 24))
    strip = sum(font.getmetrics()) + gap
    canvas = Image.new(
        "RGB",
        (len(columns) * (width + gap) - gap, strip + len(rows) * (height + gap) - gap),
        "white",
    )
    for x, key in enumerate(columns):
        caption = Image.new("RGB", (width, strip), "white")  # its own, so that it cannot run over
        ImageDraw.Draw(caption).text((2, 0), key, fill="black", font=font)
        canvas.paste(caption, (x * (width + gap), 0))
        for y, row in enumerate(rows):
            if key in row:
                # BOX averages where it shrinks and repeats pixels where it enlarges.
                cell = Image.fromarray(row[key]).resize((width, height), Image.Resampling.BOX)
                canvas.paste(cell, (x * (width + gap), strip + y * (height + gap)))
    return np.asarray(canvas)


# ---------------------------------------------------------------- text


def class_table(results: Results, markdown: bool = False) -> str:
    """IoU in % with a column per run, a row per class and the mean last; "-" for NaN."""
    rows = [["class", *results]] + [
        [name, *(percent(m["iou"].get(name, math.nan)) for m in results.values())]
        for name in class_names(results)
    ]
    mean = ["mIoU", *(percent(m["miou"]) for m in results.values())]
    widths = [max(len(row[i]) for row in [*rows, mean]) for i in range(len(mean))]

    def aligned(row: list[str], gap: str) -> str:
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:]))]
        return gap.join(cells)

    if markdown:
        rule = "|".join(["-" * (widths[0] + 2), *("-" * (w + 1) + ":" for w in widths[1:])])
        lines = [f"| {aligned(row, ' | ')} |" for row in [*rows, mean]]
        return "\n".join([lines[0], f"|{rule}|", *lines[1:]])
    rule = "-" * len(aligned(mean, "  "))
    body = [aligned(row, "  ") for row in rows]
    return "\n".join([body[0], rule, *body[1:], rule, aligned(mean, "  ")])


def format_duration(seconds: float) -> str:
    """ "45 s", "2 min 10 s", "3 h 05 min"; "?" if unknown."""
    if not math.isfinite(seconds):
        return "?"
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def progress_line(
    step: int, num_steps: int, rate: float, loss: float, eta: float | None = None
) -> str:
    """ "step 120/800  3.4 steps/s  2 min 10 s left  loss 0.412".

    `rate` in steps per second; `eta` in seconds, by default the steps left over the rate.
    """
    if eta is None:
        eta = (num_steps - step) / rate if rate > 0 else math.inf
    speed = f"{rate:.1f} steps/s" if rate >= 1 or rate <= 0 else f"{1 / rate:.1f} s/step"
    count = f"{step:>{len(str(num_steps))}}/{num_steps}"
    return f"step {count}  {speed}  {format_duration(eta)} left  loss {loss:.3f}"


def percent(fraction: float | None, sign: str = "") -> str:
    """0.4123 gives "41.2"; NaN and None, a class without pixels, give "-"."""
    known = fraction is not None and math.isfinite(fraction)
    return f"{100 * fraction:{sign}.1f}" if known else "-"


def class_names(results: Results) -> list[str]:
    """The classes of any of the runs, in the order of their first appearance."""
    return list(dict.fromkeys(name for metrics in results.values() for name in metrics["iou"]))
