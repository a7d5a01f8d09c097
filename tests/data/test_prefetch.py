import threading
import time

import pytest

from snr_jax.core.errors import UserError
from snr_jax.data.domains import create_domain
from snr_jax.data.pipeline import train_batches
from snr_jax.data.prefetch import prefetch_to_device
from snr_jax.data.samples import list_samples
from tests.data.tiny_sets import write_gta5


def prefetch_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "prefetch_to_device"]


def test_prefetch_keeps_order_and_stays_ahead():
    made = []

    def put(item):
        made.append(item)
        return item * 10

    stream = prefetch_to_device(iter(range(20)), put, depth=2)
    assert next(stream) == 0
    deadline = time.monotonic() + 5
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert made == [0, 1, 2, 3]  # one taken, two waiting, one in hand: no further ahead
    assert list(stream) == [10 * i for i in range(1, 20)]
    assert not prefetch_threads()


def test_prefetch_raises_errors_in_their_place():
    def items():
        yield 1
        raise UserError("file.png is broken")

    stream = prefetch_to_device(items(), lambda item: item)
    assert next(stream) == 1
    with pytest.raises(UserError, match=r"file\.png is broken"):
        next(stream)
    with pytest.raises(ZeroDivisionError):
        next(prefetch_to_device(iter([0]), lambda item: 1 // item))
    assert not prefetch_threads()


def test_prefetch_stops_with_its_consumer(tmp_path):
    gta5, labels, _ = list_samples(create_domain("gta5", write_gta5(tmp_path)), "train")
    stream = prefetch_to_device(
        train_batches(gta5, labels, size=(12, 20), batch_size=2, seed=0), lambda item: item
    )
    next(stream)
    assert len(prefetch_threads()) == 1
    stream.close()
    assert not prefetch_threads()
