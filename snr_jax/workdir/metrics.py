"""What a run leaves behind for TensorBoard (event files) and for scripts (metrics.jsonl)."""

import json
import logging
import math
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from snr_jax.core.errors import UserError
from snr_jax.core.files import without_nan, write_text

if TYPE_CHECKING:  # it starts TensorFlow
    from clu.metric_writers import MetricWriter

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
SETTINGS = "settings"  # the key of a line of scores


def create_writer(
    workdir: str | os.PathLike, resume_step: int = 0, with_scores: bool = True
) -> "Writer":
    """The writer of a run, a context manager that flushes and closes.

    `resume_step` is the step of the checkpoint that the run goes on from: lines of later steps
    leave metrics.jsonl, since they will be written again, and without `with_scores` the scores of
    that step too; 0 starts the file afresh. In a run of several processes the first alone writes.
    Raises UserError for a file with broken lines.
    """
    from snr_jax.data.decode import import_tensorflow

    import_tensorflow()  # quietly, before clu does
    from clu import metric_writers

    if jax.process_index() > 0:
        return Writer(metric_writers.MultiWriter([]), os.devnull)
    os.makedirs(workdir, exist_ok=True)
    path = os.path.join(workdir, METRICS_FILE)
    if os.path.exists(path) or resume_step:
        lines = _read_lines(path) if resume_step else []
        _tell_missing(path, lines, resume_step)
        last = resume_step - (not with_scores)
        kept = [x for x in lines if x["step"] <= (last if SETTINGS in x else resume_step)]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
    events = metric_writers.AsyncWriter(metric_writers.SummaryWriter(os.fspath(workdir)))
    return Writer(events, path)


class Writer:
    """Event files through clu, in the background, and one JSON line per `write_scalars`.

    An error of the background thread is raised by a later call, at the latest by `flush`.
    """

    def __init__(self, events: "MetricWriter", metrics_path: str):
        self._events = events
        self._lines = open(metrics_path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115

    def write_scalars(
        self, step: int, scalars: Mapping[str, float], settings: Mapping[str, Mapping] | None = None
    ) -> None:
        """Numbers or 0-d arrays by name; a value that is not finite becomes null in the file.

        settings: of scores, by the split; for the file alone.
        """
        step = int(step)
        values = {name: np.asarray(value).item() for name, value in scalars.items()}
        self._events.write_scalars(step, values)
        line = {"step": step, "time": round(time.time(), 3), **without_nan(values)}
        if settings is not None:
            line[SETTINGS] = settings
        try:
            self._lines.write(json.dumps(line) + "\n")
        except OSError as error:  # a full disk does not say of which file
            error.filename = error.filename or self._lines.name
            raise

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Images uint8 [H,W,3] RGB by name, for TensorBoard."""
        self._events.write_images(int(step), {k: np.asarray(v)[None] for k, v in images.items()})

    def write_hparams(self, hparams: Mapping) -> None:
        """A configuration, nested dicts, for TensorBoard's table of runs."""
        self._events.write_hparams({
            key: value if isinstance(value, bool | int | float) else str(value)
            for key, value in flatten_dict(hparams, sep=".").items()
        })

    def flush(self) -> None:
        self._lines.flush()
        self._events.flush()

    def close(self) -> None:
        self._lines.close()
        self._events.close()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def read_scalars(workdir: str | os.PathLike) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Steps int64 [K] and values float64 [K] of every scalar in WORKDIR/metrics.jsonl.

    In the order of the steps; of two values for one step the later line counts; null reads as
    NaN. A torn last line, left by a killed run, is passed over; a broken line elsewhere raises
    UserError. An absent file gives an empty dict.
    """
    path = os.path.join(workdir, METRICS_FILE)
    series: dict[str, dict[int, float]] = {}
    for line in _read_lines(path):
        for name, value in line.items():
            if name not in ("step", "time", SETTINGS):
                value = math.nan if value is None else value
                series.setdefault(name, {})[line["step"]] = value
    return {
        name: (np.array(sorted(by_step)), np.array([float(by_step[s]) for s in sorted(by_step)]))
        for name, by_step in series.items()
    }


def _tell_missing(path: str, lines: list[dict], resume_step: int) -> None:
    """Warns where lines are gone: one is written before a state of its step is saved."""
    last = max((line["step"] for line in lines if line["step"] <= resume_step), default=0)
    if last < resume_step:
        logger.warning("%s has no lines of steps %d to %d, which the run has done: its curves lack "
                       "them. Put a copy back to have them", path, last + 1, resume_step)


def _read_lines(path: str) -> list[dict]:
    if not os.path.exists(path):
        return []
    with open(path, encoding="utf-8", errors="replace") as file:
        lines = file.read().splitlines()
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or not isinstance(record.get("step"), int):
                raise ValueError("no object with a step")
            odd = [k for k, v in record.items()
                   if k != SETTINGS and not isinstance(v, int | float | None)]
            if odd:
                raise ValueError(f"{odd[0]} is no number")
            records.append(record)
        except ValueError as error:
            if number < len(lines):
                raise UserError(
                    f"{path}, line {number} is damaged ({error}). Remove that line to go on "
                    "without it, or put a copy of the file back"
                ) from None
    return records
