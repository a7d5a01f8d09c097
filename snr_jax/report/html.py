"""The report of a comparison: one HTML page with its tables, charts and pictures inside."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from snr_jax.core.labels import Classes, classes
from snr_jax.report import style
from snr_jax.report.chart import Curve, line_chart
from snr_jax.report.published import HEADER, Block, cells
from snr_jax.report.reliability import reliability_chart
from snr_jax.report.tables import Results, class_names, means, percent

NUM_COLORS = 6  # --c0 to --c5 of the template, each for light and dark


def render(
    *,
    title: str,
    summary: Mapping[str, Mapping[str, float]],
    results: Results,
    curves: Mapping[str, Mapping[str, Curve]] | None = None,
    calibration: Mapping[str, Mapping] | None = None,
    images: Sequence[Mapping[str, np.ndarray]] = (),
    notes: Mapping[str, str | Sequence[str]] | None = None,
    lead: str = "",
    known: int | Classes = 19,
    beside: Sequence[Block] = (),
    gaps: Mapping[str, style.StyleGap] | None = None,
) -> str:
    """The page, which needs no other file.

    Args:
      summary: run -> {domain: mIoU as a fraction}, runs in the order of their story, the target
        domain last. The headline compares each run with the one before.
      results: run -> metrics on the target, for the table and bars by class.
      curves: chart -> {series: (steps, values)}; a series named like a run has its colour.
      calibration: run -> {"ece", "reliability"} of `metrics.calibration`.
      images: a mapping per sample, caption -> uint8 [H,W,3].
      notes: how it was made; a text is a paragraph, a list is shown as lines of code.
      lead: a sentence under the title.
      known: the classes, for their colours.
      beside: scores of runs and published ones, by setting.
      gaps: run -> the style gap as its network sees it.
    """
    curves = curves or {}
    series = [name for chart in curves.values() for name in chart]
    names = dict.fromkeys([*summary, *results, *series])
    colors = {name: f"var(--c{i % NUM_COLORS})" for i, name in enumerate(names)}
    swatches = {c.name: f"rgb({','.join(map(str, c.color))})" for c in classes(known)}
    domains = list(next(iter(summary.values())))
    return _environment().get_template("report.html.j2").render(
        title=title, lead=lead, summary=summary,
        domains=domains,
        target=domains[-1],
        colors=colors,
        runs=[(run, colors[run]) for run in results],
        by_class=[
            (name, swatches.get(name), _cells([m["iou"].get(name) for m in results.values()]))
            for name in class_names(results)
        ],
        means=[(name, None, _cells(values)) for name, values in means(results).items()],
        charts=[
            (name, Markup(line_chart(chart, [colors[run] for run in chart])),
             [(run, colors[run]) for run in chart])
            for name, chart in curves.items()
        ],
        calibration=_calibration(calibration, colors) if calibration else None,
        images=images,
        columns=list(dict.fromkeys(name for row in images for name in row)),
        legend=[*swatches.items(), ("ignored", "rgb(0,0,0)")],
        notes=notes, blocks=beside, header=HEADER,
        style=_style(gaps, known, colors) if gaps else None,
    )


def _calibration(calibration: Mapping[str, Mapping], colors: Mapping[str, str]) -> dict:
    """The values of the section on calibration."""
    runs = [(run, colors[run]) for run in calibration]
    diagrams = {run: found["reliability"] for run, found in calibration.items()}
    return {
        "runs": runs,
        "errors": {run: found["ece"] for run, found in calibration.items()},
        "diagram": Markup(reliability_chart(diagrams, [color for _, color in runs])),
    }


def _style(gaps: Mapping[str, style.StyleGap], known: int | Classes, colors: Mapping) -> dict:
    """The values of the section on the style gap."""
    return {
        "header": style.HEADER,
        "rows": [row for run, gap in gaps.items() for row in style.cells(run, gap)],
        "images": next(iter(gaps.values())).images,
        "legend": style.legend(gaps, known),
        "runs": [
            (run, style.sentence(gap), any(place.after for place in gap.places), colors[run],
             Markup(style.channel_chart(gap, colors[run])),
             Markup(style.feature_chart(gap.points, known)))
            for run, gap in gaps.items()
        ],
    }


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    environment.filters |= {"percent": percent, "data_uri": data_uri, "cells": cells}
    environment.globals |= {"points": _points, "zip": zip}
    return environment


def _points(after: float, before: float, sign: str = "") -> str:
    """A difference of the rounded numbers that stand beside it, so that the reader's sum agrees."""
    return percent(round(after, 3) - round(before, 3), sign)


def _cells(values: Sequence[float | None]) -> list[tuple[str, bool]]:
    """The scores of a row as text, and whether each is the best of it."""
    texts = [percent(value) for value in values]
    best = max((text for text in texts if text != "-"), key=float, default=None)
    return [(text, text == best) for text in texts]


def data_uri(image: np.ndarray) -> str:
    """PNG, exact and small, for pictures of few colours; JPEG for photographs."""
    picture, buffer = Image.fromarray(image), io.BytesIO()
    if picture.getcolors(256):
        picture.save(buffer, kind := "png", optimize=True)
    else:
        picture.save(buffer, kind := "jpeg", quality=90, subsampling=0)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
