"""A trace of some steps, for TensorBoard's profiler."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from snr_jax.runs.experiment import Log

FIRST, LAST = 10, 15  # steps of a start, from 1: compilation and the first reads are over by then


@contextmanager
def traced(folder: str, start: int, log: Log) -> Iterator[Callable[[int, dict], None]]:
    """Within the block, a function to call after every step with its number and metrics.

    It writes a trace of steps start + FIRST to start + LAST below `folder`; with "" it does
    nothing. Of several processes the first one writes.
    """
    if not folder or jax.process_index() > 0:
        yield lambda step, metrics: None
        return
    Path(folder).mkdir(parents=True, exist_ok=True)  # a mistake is told before the first step
    first, last = start + FIRST, start + LAST
    done, tracing = start, False

    def after_step(step: int, metrics: dict) -> None:
        nonlocal done, tracing
        done = step
        if step not in (first - 1, last):
            return
        jax.block_until_ready(metrics)  # what is in flight belongs to the steps before
        tracing = step < last
        if tracing:
            jax.profiler.start_trace(folder)
        else:
            jax.profiler.stop_trace()
            log(f"profile           steps {first} to {last} (tensorboard --logdir {folder}, with "
                "the package tensorboard-plugin-profile)")

    try:
        yield after_step
    finally:
        if tracing:
            jax.profiler.stop_trace()
        if done < last:
            log(f"WARNING: --profile_dir: a trace is of steps {first} to {last}; this start ended "
                f"with step {done}")
