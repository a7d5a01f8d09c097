"""A function over many items: in the processes of this machine, or on Apache Beam.

Beam is for what is too slow on one machine. It is an optional requirement: requirements-beam.txt.
Any of its runners will do. Its workers need this package, and the same files at the same paths.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from typing import NamedTuple, TypeVar

from snr_jax.core.errors import UserError

T = TypeVar("T")
Work, Watch = Callable[[T], object], Callable[[], None]  # watch: called now and then; it may raise


class Beam(NamedTuple):
    runner: str  # a name that Beam knows, as DirectRunner
    options: Sequence[str] = ()  # of the pipeline, as "direct_num_workers=4"


def in_processes(work: Work, items: Sequence[T], workers: int, watch: Watch) -> None:
    """Raises what `work` raises, after those that have begun are through."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _begin_worker) as pool:
        try:
            waiting = {pool.submit(work, item) for item in items}
            while waiting:
                watch()
                finished, waiting = wait(waiting, 0.5, FIRST_COMPLETED)
                for future in finished:
                    future.result()
            watch()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _begin_worker() -> None:
    """Signals are the parent's to answer; a worker whose parent was killed ends."""
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)

    def follow() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def on_beam(work: Work, items: Sequence[T], beam: Beam, watch: Watch) -> None:
    """Raises UserError where Beam is not installed, and for a pipeline that fails."""
    try:
        import apache_beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise UserError(
            f"Apache Beam cannot be imported ({error}). Install it with pip install -r "
            "requirements-beam.txt, or leave out --beam_runner"
        ) from None
    failures: list[BaseException] = []

    def pipeline() -> None:
        try:
            options = PipelineOptions([f"--{option}" for option in beam.options])
            with apache_beam.Pipeline(runner=beam.runner, options=options) as steps:
                # Create alone may leave all items with one worker.
                steps | apache_beam.Create(items) | apache_beam.Reshuffle() | apache_beam.Map(work)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=pipeline, name="beam", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.5)
        watch()
    if failures:
        lines = str(failures[0]).strip().splitlines() or [type(failures[0]).__name__]
        raise UserError(
            f"Beam's {beam.runner} failed: {lines[-1]}. The same command goes on with what is "
            "there; python -m snr_jax.doctor names broken files"
        ) from failures[0]
