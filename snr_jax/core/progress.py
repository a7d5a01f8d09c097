"""Progress of long work as text: how much is done, how fast, how long it still takes.

What the package has to say goes to the loggers below "snr_jax"; commands show it on the terminal.
"""

import contextlib
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator

Show = Callable[[int, int], None]  # show(done, total)


class _Terminal(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        mark = "WARNING: " if record.levelno >= logging.WARNING else ""
        print(f"{mark}{record.getMessage()}", flush=True)


@contextlib.contextmanager
def log_on_terminal() -> Iterator[None]:
    """Within the block the package's log is printed to stdout, a line per message."""
    log = logging.getLogger("snr_jax")
    before = log.level, log.propagate, log.handlers[:]
    log.setLevel(logging.INFO)
    log.propagate, log.handlers[:] = False, [_Terminal()]
    try:
        yield
    finally:
        log.setLevel(before[0])
        log.propagate, log.handlers[:] = before[1:]


@contextlib.contextmanager
def root_log_kept() -> Iterator[None]:
    """Within the block absl, through which Orbax logs, sets up no log for the process.

    It does so, on stderr, for a process whose root logger has no handler, even while it is
    imported. What a program has set up itself gets the lines as ever.
    """
    logging.root.addHandler(nowhere := logging.NullHandler())
    try:
        yield
    finally:
        logging.root.removeHandler(nowhere)


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


def progress_text(what: str, done: int, total: int, rate: float) -> str:
    """ "images 120/800, 3.4/s, 3 min 20 s left"; "2.5 s each" below one per second.

    rate: per second, 0 if unknown.
    """
    left = (total - done) / rate if rate > 0 else math.inf
    speed = f"{rate:.1f}/s" if rate >= 1 or rate <= 0 else f"{1 / rate:.1f} s each"
    return f"{what} {done:>{len(str(total))}}/{total}, {speed}, {format_duration(left)} left"


def make_progress(
    what: str,
    logger: logging.Logger | None = None,
    every_seconds: float = 10.0,
    clock: Callable[[], float] = time.monotonic,
) -> Show:
    """A function that is called after every item and logs a line now and then, and at the end.

    Without a logger the lines go to stderr; on a terminal each replaces the one before, twice a
    second.
    """
    terminal = logger is None and sys.stderr.isatty()
    pause = 0.5 if terminal else every_seconds
    start = last = clock()

    def show(done: int, total: int) -> None:
        nonlocal last
        now = clock()
        if done < total and now - last < pause:
            return
        last = now
        line = progress_text(what, done, total, done / max(now - start, 1e-9))
        if logger is not None:
            logger.info(line)
        elif terminal:
            end = "\r" if done < total else "\n"
            print(f"{line:<70}", end=end, file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    return show
