"""Scores as text."""

import math
from collections.abc import Mapping, Sequence

Results = Mapping[str, Mapping]  # run -> {"miou": fraction, "iou": {class: fraction or NaN}, ...}


def class_table(results: Results) -> str:
    """IoU in % with a column per run, a row per class and the means last; "-" for NaN."""
    rows = [["class", *results]] + [
        [name, *(percent(m["iou"].get(name, math.nan)) for m in results.values())]
        for name in class_names(results)
    ]
    last = [[name, *map(percent, values)] for name, values in means(results).items()]
    head, *lines = aligned([*rows, *last])
    rule, split = "-" * len(head), len(lines) - len(last)
    return "\n".join([head, rule, *lines[:split], rule, *lines[split:]])


def domain_table(results: Mapping[str, Mapping[str, Mapping]], means: Mapping) -> str:
    """mIoU in % with a row per domain of {domain: {run: scores}}, a column per run, the mean last.

    Networks of 16 classes have a further column per run, for the 13 classes.
    """
    columns = [(run, key) for run in means for key in ("miou", "miou_13") if key in means[run]]
    names = ["domain", *(run + (" (13)" if key == "miou_13" else "") for run, key in columns)]
    head, *lines, last = aligned([names] + [
        [name, *(percent(scores[run][key]) for run, key in columns)]
        for name, scores in [*results.items(), ("mean", means)]
    ])
    rule = "-" * len(head)
    return "\n".join([head, rule, *lines, rule, last])


def means(results: Results) -> dict[str, list[float | None]]:
    """The means over classes by name: mIoU, and that over 13 where a run of 16 classes has it."""
    found = {"mIoU": [metrics["miou"] for metrics in results.values()]}
    if any("miou_13" in metrics for metrics in results.values()):
        found["mIoU of 13"] = [metrics.get("miou_13") for metrics in results.values()]
    return found


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows as lines of equal columns, the first column to the left and the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:]))])
        for row in rows
    ]


def percent(fraction: float | None, sign: str = "") -> str:
    """0.4123 gives "41.2"; NaN and None, a class without pixels, give "-"."""
    known = fraction is not None and math.isfinite(fraction)
    return f"{100 * fraction:{sign}.1f}" if known else "-"


def class_names(results: Results) -> list[str]:
    """The classes of any of the runs, in the order of their first appearance."""
    return list(dict.fromkeys(name for metrics in results.values() for name in metrics["iou"]))
