"""Charts: SVG that lives inside a page and takes its fonts and colours, or a picture of its own."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Curve = tuple[Sequence[float], Sequence[float]]  # steps, values
AXIS, GRID = "var(--soft)", "var(--line)"
# The colours of the page by day, for a picture of its own.
INK, LINE = "#5c6570", "#d4d8dd"
COLORS = ("#2f6fd6", "#d9622b", "#2a9d74", "#8b5fc7", "#b08a10", "#868e99")
STYLE = {
    "axes.autolimit_mode": "round_numbers",
    "axes.xmargin": 0,
    "axes.ymargin": 0,
    "font.size": 8.6,  # of 345.6 points of width
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "snr_jax",  # names inside do not change from one drawing to the next
}


def stand_ins(colors: Sequence[str]) -> dict[str, str]:
    """CSS colour → the number that stands for it, until `to_svg`: matplotlib takes no CSS."""
    return {css: f"#0102{i:02x}" for i, css in enumerate(dict.fromkeys(colors))}


def to_svg(figure: Figure, numbers: Mapping[str, str]) -> str:
    """One `<svg>` for a page, with its CSS colours. numbers: of `stand_ins`."""
    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    svg = buffer.getvalue()
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg[svg.index("<svg") :])  # a page needs none
    for css, number in numbers.items():
        svg = svg.replace(number, css)
    return svg


def to_picture(figure: Figure) -> np.ndarray:
    """What the figure shows, uint8 RGB [h,w,3]."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def bare(axes: Axes, ink: str, line: str, **grid: Any) -> None:
    """Draws no frame and no ticks, and a grid behind what is shown. grid: as `Axes.grid` takes."""
    axes.set_frame_on(False)
    axes.tick_params(length=0, labelcolor=ink)
    axes.grid(color=line, linewidth=0.75, **grid)
    axes.set_axisbelow(True)


def line_chart(curves: Mapping[str, Curve], colors: Sequence[str]) -> str:
    """The curves over the steps, one `<svg>`; colours are CSS, one per curve.

    Values that are not finite are left out. A curve of at most 20 points has them marked; one
    of 40 or more is drawn faint under its moving average over a twentieth of its length. The
    page defines the colours --soft of the text and --line of the grid.
    """
    numbers = stand_ins([AXIS, GRID, *colors])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.8, 2.72), layout="constrained")
        axes = figure.add_subplot()
        shown = [
            _draw(axes, steps, values, numbers[color])
            for (steps, values), color in zip(curves.values(), colors, strict=True)
        ]
        highest = max((max(values) for values in shown if len(values)), default=0)
        # The axis of values starts at zero unless all are negative.
        axes.update_datalim([(0, min(highest, 0))])
        axes.autoscale_view()
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
            axis.set_major_formatter("{x:.6g}")
        bare(axes, numbers[AXIS], numbers[GRID], axis="y", clip_on=False)
        axes.tick_params(pad=6)
        axes.set_xlabel("step", loc="right", labelpad=2, color=numbers[AXIS])
        return to_svg(figure, numbers)


def _draw(axes: Axes, steps: Sequence[float], values: Sequence[float], color: str) -> np.ndarray:
    """Draws one curve; its finite values."""
    steps, values = np.asarray(steps, float), np.asarray(values, float)
    steps, values = steps[np.isfinite(values)], values[np.isfinite(values)]
    window = len(values) // 20
    smooth = values
    if window > 1:
        axes.plot(steps, values, color=color, linewidth=0.75, alpha=0.3, clip_on=False)
        smooth = _moving_average(values, window)
    marker = "o" if len(values) <= 20 else None
    axes.plot(steps, smooth, color=color, marker=marker, markersize=4, clip_on=False)
    return values


def _moving_average(values: np.ndarray, window: int) -> np.ndarray:
    """The mean over `window` values around each; fewer at the ends."""
    kernel = np.ones(window)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones_like(values), kernel, "same")
