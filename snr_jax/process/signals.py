"""SIGTERM, Ctrl-C and a terminal that closes (SIGHUP) ask a run to stop.

It saves its state, and the same command goes on with it.
"""

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from snr_jax.core.errors import Stopped

Stop = Callable[[], signal.Signals | None]  # the signal that asked to stop, None while none has

# `timeout` and some schedulers send their signal twice at once: that is one request.
SAME_REQUEST_SECONDS = 1.0
PATIENCE_SECONDS = 2.0  # a run that has not stopped by then says what it waits for


def never() -> None:
    """Answers None, as a `Stop` for runs that no signal asks to stop."""


def unless_asked(stop: Stop, message: str) -> None:
    """Raises `Stopped` with the message if a signal has asked to stop."""
    if asked := stop():
        raise Stopped.by(asked, message)


@contextlib.contextmanager
def on_signals(
    signals: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP),
    forward: signal.Signals | None = None,
) -> Iterator[Stop]:
    """Keeps the first of `signals` within the block; a second one ends the process at once.

    A thread reads them, since Python's own handlers wait for the end of a compilation. The signal
    `forward`, if any, is sent on to this process after the first. Ignored signals (nohup) stay
    ignored. Only in the main thread; the handlers before are restored.
    """
    asked: list[signal.Signals] = []
    read, write = os.pipe()
    os.set_blocking(write, False)
    watched = [s for s in signals if signal.getsignal(s) is not signal.SIG_IGN]
    wakeup = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    handlers = {s: signal.signal(s, lambda *_: None) for s in watched}
    thread = threading.Thread(target=_watch, args=(read, watched, asked, forward), daemon=True)
    thread.start()
    try:
        yield lambda: asked[0] if asked else None
    finally:
        for watched_signal, handler in handlers.items():
            signal.signal(watched_signal, handler)
        signal.set_wakeup_fd(wakeup)
        os.close(write)
        thread.join()
        os.close(read)


def _watch(
    read: int,
    signals: Sequence[signal.Signals],
    asked: list[signal.Signals],
    forward: signal.Signals | None,
) -> None:
    """Reads the numbers of the signals, one byte each, until the pipe is closed."""
    since, told = 0.0, False
    while True:
        wait = PATIENCE_SECONDS if asked and not told else None
        if not select.select([read], [], [], wait)[0]:
            told = True
            _say(f"{asked[0].name}: stopping as soon as the compilation, step or saving under way "
                 "is over; once more ends it at once")
            continue
        numbers = os.read(read, 64)
        if not numbers:
            return
        for number in numbers:
            if number not in signals:
                continue
            if not asked:
                asked.append(signal.Signals(number))
                since = time.monotonic()
                if forward is not None:
                    os.kill(os.getpid(), forward)
            elif time.monotonic() - since > SAME_REQUEST_SECONDS:
                _say(f"{signal.Signals(number).name} once more: ended at once; the same command "
                     "goes on from the last checkpoint")
                os._exit(128 + number)


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads it any more
        os.write(2, f"{line}\n".encode())  # the main thread may hold the lock of sys.stderr
