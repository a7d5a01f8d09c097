"""Results as text: tables, percentages, durations, the progress line."""

import math
from collections.abc import Mapping

Results = Mapping[str, Mapping]  # run -> {"miou": fraction, "iou": {class: fraction or NaN}, ...}


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
