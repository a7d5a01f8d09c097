"""Scores as text."""

import math
from collections.abc import Mapping

Results = Mapping[str, Mapping]  # run -> {"miou": fraction, "iou": {class: fraction or NaN}, ...}


def class_table(results: Results) -> str:
    """IoU in % with a column per run, a row per class and the mean last; "-" for NaN."""
    rows = [["class", *results]] + [
        [name, *(percent(m["iou"].get(name, math.nan)) for m in results.values())]
        for name in class_names(results)
    ]
    mean = ["mIoU", *(percent(m["miou"]) for m in results.values())]
    widths = [max(len(row[i]) for row in [*rows, mean]) for i in range(len(mean))]

    def aligned(row: list[str]) -> str:
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:]))]
        return "  ".join(cells)

    rule = "-" * len(aligned(mean))
    body = [aligned(row) for row in rows]
    return "\n".join([body[0], rule, *body[1:], rule, aligned(mean)])


def percent(fraction: float | None, sign: str = "") -> str:
    """0.4123 gives "41.2"; NaN and None, a class without pixels, give "-"."""
    known = fraction is not None and math.isfinite(fraction)
    return f"{100 * fraction:{sign}.1f}" if known else "-"


def class_names(results: Results) -> list[str]:
    """The classes of any of the runs, in the order of their first appearance."""
    return list(dict.fromkeys(name for metrics in results.values() for name in metrics["iou"]))
