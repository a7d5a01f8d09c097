"""Line charts as SVG that lives inside a page and takes the page's fonts and colours."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

Curve = tuple[Sequence[float], Sequence[float]]  # steps, values
LEFT, TOP, RIGHT, BOTTOM, WIDTH, HEIGHT = 46, 10, 460, 232, 480, 272


def line_chart(curves: Mapping[str, Curve], colors: Sequence[str]) -> str:
    """The curves over the steps, one `<svg>`; colours are CSS, one per curve.

    Values that are not finite are left out. A curve of at most 20 points has them marked; one
    of 40 or more is drawn faint under its moving average over a twentieth of its length. The
    page styles `svg text`, `.grid`, `polyline` and `.faint`.
    """
    points = []
    for steps, values in curves.values():
        steps, values = np.asarray(steps, float), np.asarray(values, float)
        points.append((steps[np.isfinite(values)], values[np.isfinite(values)]))
    all_steps, all_values = (np.concatenate([[0.0], *(p[i] for p in points)]) for i in (0, 1))
    if len(all_values) > 1 and all_values[1:].max() < 0:
        all_values = all_values[1:]  # the axis of values starts at zero unless all are negative
    xs = _ticks(all_steps.min(), all_steps.max())
    ys = _ticks(all_values.min(), all_values.max())

    def x_of(step: float) -> str:
        return f"{LEFT + (step - xs[0]) / (xs[-1] - xs[0]) * (RIGHT - LEFT):.1f}"

    def y_of(value: float) -> str:
        return f"{BOTTOM - (value - ys[0]) / (ys[-1] - ys[0]) * (BOTTOM - TOP):.1f}"

    def line(steps: np.ndarray, values: np.ndarray, style: str) -> str:
        path = " ".join(f"{x_of(s)},{y_of(v)}" for s, v in zip(steps, values))
        return f'<polyline points="{path}" {style}/>'

    marks = []
    for y in ys:
        marks.append(f'<path class="grid" d="M{LEFT} {y_of(y)}H{RIGHT}"/>')
        marks.append(_label(LEFT - 7, float(y_of(y)) + 4, "end", f"{y:.4g}"))
    marks += [_label(x_of(x), BOTTOM + 19, "middle", f"{x:.6g}") for x in xs]
    marks.append(_label(RIGHT, BOTTOM + 36, "end", "step"))
    for (steps, values), color in zip(points, colors):
        style = f'style="stroke:{color}"'
        window = len(values) // 20
        if window > 1:
            marks.append(line(steps, values, f'class="faint" {style}'))
            kernel = np.ones(window)
            count = np.convolve(np.ones_like(values), kernel, "same")
            values = np.convolve(values, kernel, "same") / count
        marks.append(line(steps, values, style))
        if len(values) <= 20:
            dot = f'r="3" style="fill:{color}"'
            marks += [
                f'<circle cx="{x_of(s)}" cy="{y_of(v)}" {dot}/>' for s, v in zip(steps, values)
            ]
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}">{"".join(marks)}</svg>'


def _label(x: float | str, y: float, anchor: str, text: str) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{text}</text>'


def _ticks(low: float, high: float) -> np.ndarray:
    """Round numbers, 1, 2 or 5 times a power of ten apart, that enclose low and high."""
    rough = (high - low if high > low else 1.0) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(m for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return step * np.arange(first, max(last, first + 1) + 1)
