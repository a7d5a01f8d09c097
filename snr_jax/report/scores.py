"""Scores of many networks over seeds, as a picture: what a table of numbers says at a glance."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from snr_jax.report.chart import COLORS, INK, LINE, STYLE, bare, to_picture

Scores = Mapping[str, Mapping[str, Sequence[float]]]  # row → series → a value for each seed
_SHARE = 0.8  # of a row's height that its series take


def scores_picture(panels: Mapping[str, Scores]) -> np.ndarray:
    """A panel for each domain, by its title, side by side; uint8 RGB [h,w,3].

    A network is a row, and each series of it, as a way to adapt, a line from the mean less the
    deviation to the mean and it (of a sample), with a dot at the mean and a tick for each seed.
    Values are mIoU, fractions; a series without any is left out. One name has one colour.
    """
    rows = list(dict.fromkeys(row for scores in panels.values() for row in scores))
    series = dict.fromkeys(
        name for scores in panels.values() for values in scores.values() for name in values)
    colors = {name: COLORS[i % len(COLORS)] for i, name in enumerate(series)}
    with rc_context(STYLE):
        height = 1.3 + len(rows) * max(0.3, 0.13 * len(series))
        figure = Figure(figsize=(2.2 + 3.6 * len(panels), height), dpi=150, layout="constrained")
        places = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (title, scores) in zip(places, panels.items(), strict=True):
            _draw(axes, scores, rows, colors)
            axes.set_title(title, color=INK, loc="left")
        places[0].set_yticks(range(len(rows)), rows)
        places[0].set_ylim(len(rows) - 0.5, -0.5)
        handles = {name: line for axes in places
                   for line, name in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(handles.values(), handles, loc="outside lower center", frameon=False,
                      labelcolor=INK, ncols=min(len(handles), 3))
        return to_picture(figure)


def _draw(axes: Axes, scores: Scores, rows: Sequence[str], colors: Mapping[str, str]) -> None:
    named = dict.fromkeys(name for values in scores.values() for name in values)
    for at, name in enumerate(named):
        shift = _SHARE * ((at + 0.5) / len(named) - 0.5)
        color, label = colors[name], name
        for row, each in scores.items():
            values = 100 * np.array(each.get(name, ()), float)
            if not len(values):
                continue
            y, mean = rows.index(row) + shift, values.mean()
            deviation = values.std(ddof=1) if len(values) > 1 else 0
            axes.plot([mean - deviation, mean + deviation], [y, y], color=color, linewidth=1.2)
            axes.plot(values, np.full(len(values), y), "|", color=color, markersize=6)
            axes.plot(mean, y, "o", color=color, markersize=4.5, label=label)
            label = "_"  # once in the legend
    for edge in range(1, len(rows)):
        axes.axhline(edge - 0.5, color=LINE, linewidth=0.75)
    bare(axes, INK, LINE, axis="x")
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.set_xlabel("mIoU, %", loc="right", labelpad=2, color=INK)
