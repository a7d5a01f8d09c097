"""The style gap of two domains: its numbers, what they say in words, and its pictures."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from snr_jax.core.labels import Classes, classes
from snr_jax.report.chart import AXIS, GRID, STYLE, bare, stand_ins, to_svg

BEFORE = AXIS  # colour of what comes before IN or SNR
HEADER = ("network", "place", "channels", "means, before", "after", "deviations, before", "after")
EPSILON = 1e-5  # of a variance, as instance norm has it: a dead channel has a deviation too


class Moments(NamedTuple):
    """Of a domain's features at one place: mean and deviation of each channel, [C]."""

    mean: np.ndarray
    deviation: np.ndarray


class Distance(NamedTuple):
    """Between two domains at one place, of each channel [C].

    means: |difference of the means| over the pooled deviation, the root of the mean variance.
    deviations: |log(deviation of the source / deviation of the target)|.
    """

    means: np.ndarray
    deviations: np.ndarray


class Place(NamedTuple):
    """A block's features. after: IN or SNR, None where there is none."""

    name: str
    before: Distance
    after: Distance | None


class Points(NamedTuple):
    """A class of an image each: its features in two dimensions.

    of: "PCA" or "t-SNE" → [n,2]. train_id, is_target: [n].
    """

    of: dict[str, np.ndarray]
    train_id: np.ndarray
    is_target: np.ndarray


class StyleGap(NamedTuple):
    """The gap as one network sees it.

    matched: share of the target's points whose nearest point of the source is of the same class,
    NaN without points. images: of the source and of the target.
    """

    places: tuple[Place, ...]
    points: Points
    matched: float
    images: tuple[int, int]


def moments(means: np.ndarray, variances: np.ndarray) -> Moments:
    """Of all images together, from those of each of equal size. [N,C] → Moments."""
    means, variances = np.asarray(means, np.float64), np.asarray(variances, np.float64)
    whole = variances.mean(0) + means.var(0)
    return Moments(means.mean(0), np.sqrt(whole + EPSILON))


def distance(source: Moments, target: Moments) -> Distance:
    pooled = np.sqrt((source.deviation**2 + target.deviation**2) / 2)
    return Distance(np.abs(source.mean - target.mean) / pooled,
                    np.abs(np.log(source.deviation / target.deviation)))


# ---------------------------------------------------------------- numbers and words


def cells(name: str, gap: StyleGap) -> list[tuple[str, ...]]:
    """The rows of the table, in the order of HEADER: means over the channels."""
    found = []
    for place in gap.places:
        numbers = [
            f"{getattr(side, kind).mean():.2f}" if side else "-"
            for kind in Distance._fields for side in (place.before, place.after)
        ]
        found.append((name, place.name, str(len(place.before.means)), *numbers))
    return found


def sentence(gap: StyleGap) -> str:
    """What one sees of one network."""
    changed = [place for place in gap.places if place.after]
    shown = changed or gap.places[:-1]  # after the last layer there never is one

    def mean(side: str, kind: str) -> float:
        return float(np.mean([getattr(getattr(place, side), kind).mean() for place in shown]))

    means, deviations = (mean("before", kind) for kind in Distance._fields)
    where = "after " + ", ".join(place.name for place in shown)
    text = (f"{where} the two domains' means lie {means:.2f} deviations apart and their deviations "
            f"differ by a factor of {np.exp(deviations):.2f}")
    if changed:
        after, factor = mean("after", "means"), np.exp(mean("after", "deviations"))
        word = "nearer" if after < means else "farther"
        text += f"; the normalisation brings the means {word}, to {after:.2f}, the factor to "
        text += f"{factor:.2f}"
    else:
        text += ", and nothing normalises them"
    if np.isfinite(gap.matched):
        text += (f". Of the target's features by class {100 * gap.matched:.0f} % lie nearest to "
                 "one of their own class in the source")
    return text[0].upper() + text[1:] + "."


def legend(gaps: Mapping[str, StyleGap], known: int | Classes) -> list[tuple[str, str]]:
    """The classes that have points, with their colours."""
    held = sorted({int(i) for gap in gaps.values() for i in gap.points.train_id})
    every = classes(known)
    return [(every[i].name, _css(every[i].color)) for i in held]


# ---------------------------------------------------------------- pictures


def channel_chart(gap: StyleGap, color: str) -> str:
    """The distance of every channel as bars, the largest first, before and after; one `<svg>`."""
    numbers = stand_ins([AXIS, GRID, color])
    with rc_context(STYLE):
        figure = Figure(figsize=(9.6, 3.6), layout="constrained")
        grid = figure.subplots(2, len(gap.places), squeeze=False, sharey="row")
        for row, kind in zip(grid, Distance._fields, strict=True):
            for axes, place in zip(row, gap.places, strict=True):
                sides = ((place.before, BEFORE, 0.45), (place.after, color, 0.75))
                for side, css, alpha in sides:
                    if side:
                        values = np.sort(getattr(side, kind))[::-1]
                        axes.stairs(values, fill=True, color=numbers[css], alpha=alpha)
                bare(axes, numbers[AXIS], numbers[GRID], axis="y")
                axes.xaxis.set_visible(False)
                axes.yaxis.set_major_locator(MaxNLocator(3))
                axes.set(xlim=(0, len(place.before.means)))
                axes.set_ylim(bottom=0)
            row[0].set_ylabel(kind, color=numbers[AXIS])
        for axes, place in zip(grid[0], gap.places, strict=True):
            axes.set_title(place.name, color=numbers[AXIS], fontsize=8.6)
        return to_svg(figure, numbers)


def feature_chart(points: Points, known: int | Classes) -> str:
    """The points of PCA and t-SNE: a disc of the source, a triangle of the target; one `<svg>`."""
    numbers = stand_ins([AXIS, GRID])
    colors = np.array([np.array(each.color) / 255 for each in classes(known)])
    with rc_context({**STYLE, "axes.autolimit_mode": "data"}):
        figure = Figure(figsize=(9.6, 4.4), layout="constrained")
        for axes, (name, places) in zip(figure.subplots(1, len(points.of), squeeze=False)[0],
                                        points.of.items(), strict=True):
            for is_target, marker in ((False, "o"), (True, "^")):
                chosen = points.is_target == is_target
                face = colors[points.train_id[chosen]]
                axes.scatter(*places[chosen].T, s=26, marker=marker, alpha=0.8, linewidths=0.6,
                             c=face, edgecolors=numbers[AXIS] if is_target else "none")
            bare(axes, numbers[AXIS], numbers[GRID], axis="y")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.margins(0.04)
            axes.set_title(name, color=numbers[AXIS], fontsize=8.6)
        return to_svg(figure, numbers)


def _css(color: Sequence[int]) -> str:
    return f"rgb({','.join(map(str, color))})"
