"""A thread that makes items ahead of whoever consumes them."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")


def prefetch_to_device(iterator: Iterator[T], put: Callable, depth: int = 2) -> Iterator:
    """`put(item)` for every item, made ahead of the consumer by a thread, `depth` at most waiting.

    An error of the iterator or of `put` is raised to the consumer at its place in the order.
    Closing the generator (or leaving it to the garbage collector) ends the thread.
    """
    waiting: queue.Queue = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def offer(kind: str, value: object) -> None:
        while not stop.is_set():
            try:
                return waiting.put((kind, value), timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in iterator:
                offer("item", put(item))
                if stop.is_set():
                    return
            offer("end", None)
        except BaseException as error:
            offer("error", error)

    thread = threading.Thread(target=work, name="prefetch_to_device", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = waiting.get()
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value
    finally:
        stop.set()
        thread.join()
