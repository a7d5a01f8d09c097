"""Reliability diagrams: of the pixels predicted with some probability, how many are right.

A network below the diagonal is surer than it may be, one above it less sure. Beneath stands the
share of the pixels in each bin.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from snr_jax.report.chart import (
    AXIS,
    COLORS,
    GRID,
    INK,
    LINE,
    STYLE,
    bare,
    stand_ins,
    to_picture,
    to_svg,
)

Reliability = Mapping[str, Sequence[float | None]]  # "pixels", "accuracy", "confidence" by bin
COLUMNS = 4  # panels side by side


def reliability_chart(series: Mapping[str, Reliability], colors: Sequence[str]) -> str:
    """One diagram with a line for each of the series; an `<svg>` for a page of CSS colours."""
    numbers = stand_ins([AXIS, GRID, *colors])
    with rc_context(STYLE):
        figure = Figure(figsize=(4.8, 4.4), layout="constrained")
        _draw(figure, series, [numbers[c] for c in colors], numbers[AXIS], numbers[GRID])
        return to_svg(figure, numbers)


def reliability_picture(panels: Mapping[str, Mapping[str, Reliability]]) -> np.ndarray:
    """A diagram for each of the panels, by its title, as a picture uint8 RGB [h,w,3]."""
    columns = min(len(panels), COLUMNS)
    rows = math.ceil(len(panels) / columns)
    with rc_context(STYLE):
        figure = Figure(figsize=(3.4 * columns, 3.5 * rows), dpi=150, layout="constrained")
        places = figure.subfigures(rows, columns, squeeze=False).flat
        for place, (title, series) in zip(places, panels.items()):
            colors = [COLORS[i % len(COLORS)] for i in range(len(series))]
            axes = _draw(place, series, colors, INK, LINE)
            axes.set_title(title, color=INK, loc="left")
            place.legend(loc="outside lower center", ncols=2, frameon=False, labelcolor=INK,
                         handlelength=1.2)
        return to_picture(figure)


def _draw(
    figure: Figure | SubFigure, series: Mapping[str, Reliability], colors: Sequence[str],
    ink: str, line: str,
) -> Axes:
    """Draws a diagram with its shares; the axes of the diagram."""
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    upper.plot([0, 1], [0, 1], color=ink, linewidth=0.8, linestyle="--")
    for (name, each), color in zip(series.items(), colors, strict=True):
        pixels = np.array(each["pixels"], float)
        held = pixels > 0
        confidence, accuracy = (
            np.array(each[key], float)[held] for key in ("confidence", "accuracy"))
        upper.plot(confidence, accuracy, color=color, label=name, marker="o", markersize=3.5,
                   clip_on=False)
        edges = np.linspace(0, 1, len(pixels) + 1)
        lower.stairs(pixels / max(pixels.sum(), 1), edges, color=color, linewidth=1.2)
    for axes in (upper, lower):
        bare(axes, ink, line)
        axes.set(xlim=(0, 1), ylim=(0, 1), xticks=np.linspace(0, 1, 6))
    upper.set_yticks(np.linspace(0, 1, 6))
    lower.set_yticks([0, 1])
    upper.set_ylabel("share that is right", color=ink)
    lower.set_ylabel("pixels", color=ink)
    lower.set_xlabel("probability of the predicted class", color=ink)
    return upper
