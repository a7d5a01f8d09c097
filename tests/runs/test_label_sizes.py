"""The full protocol on labels of many sizes: exact, by two programs."""

import jax
import numpy as np
import pytest
from PIL import Image

from snr_jax.core.labels import IGNORE, classes
from snr_jax.core.models.deeplab import map_size
from snr_jax.core.parallel import create_parallel
from snr_jax.core.steps import make_eval_step
from snr_jax.data.domains import create_domain
from snr_jax.data.pipeline import eval_batches
from snr_jax.data.splits import open_split
from snr_jax.runs import evaluation
from tests.core.tiny import network, variables
from tests.data.tiny_sets import natural_image, random_ids, save_palette

SEEN = (33, 49)
SIZES = [(40, 60), (40, 60), (24, 40), (33, 49), (70, 100), (101, 150), (17, 25), (99, 147)]


@pytest.fixture
def split(tmp_path):
    for kind in ("images", "labels"):
        (tmp_path / "GTA5" / kind).mkdir(parents=True)
    for number, size in enumerate(SIZES, start=1):
        name = f"{number:05d}.png"
        Image.fromarray(natural_image(number, *size)).save(tmp_path / "GTA5/images" / name)
        save_palette(random_ids(number, *size), tmp_path / "GTA5/labels" / name)
    domain = create_domain("gta5", tmp_path / "GTA5")
    return open_split(domain, "all", size=SEEN, classes=classes(19))


@pytest.fixture
def compiled():
    """The programs that are compiled from here on, by their time."""
    times = []

    def listen(event: str, duration: float, **_) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            times.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield times
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize("flip", [False, True])
def test_counts_are_those_of_a_program_for_each_size(split, flip, compiled):
    model, parallel = network(num_classes=19), create_parallel()
    on_devices = parallel.replicate(variables(model))
    compiled.clear()
    found = evaluation.count(model, on_devices, split, parallel=parallel, batch_size=2,
                             protocol="full", flip=flip).confusion
    assert len(compiled) == 2  # the network, and a window of labels of any size
    step = jax.jit(make_eval_step(model=model, flip=flip))
    batches = eval_batches(
        split.samples, split.labels, size=SEEN, batch_size=2, label_size="full")
    expected = sum(
        np.asarray(step(on_devices, {key: b[key] for key in ("image", "label", "valid")}))
        for b in batches
    )
    np.testing.assert_array_equal(found, expected)
    assert (found.sum(0) > 0).sum() > 5  # classes that are predicted


def test_windows_cover_a_label_once():
    label = np.arange(2 * 70 * 100, dtype=np.int32).reshape(2, 70, 100)
    windows = evaluation.windowed(label, SEEN, map_size(SEEN), np.dtype(np.float32))
    parts = [part for part, _ in windows]
    assert {part.shape for part in parts} == {(2, *SEEN)} and len(parts) == 9
    seen = np.concatenate([part.ravel() for part in parts])
    assert sorted(seen[seen != IGNORE]) == [i for i in range(label.size) if i != IGNORE]
