"""Scores of a network on a domain, and pictures of its predictions."""

import time
from collections.abc import Callable, Sequence
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from snr_jax.core import metrics
from snr_jax.core.models.deeplab import DeepLab
from snr_jax.core.parallel import Parallel, create_parallel
from snr_jax.core.progress import progress_text
from snr_jax.core.steps import make_eval_step, make_predict_step
from snr_jax.data import pipeline, prefetch
from snr_jax.report.pictures import colorize
from snr_jax.runs.experiment import Split

PROTOCOLS = ("network", "full")


def evaluate(
    model: DeepLab,
    variables: dict,
    split: Split,
    *,
    parallel: Parallel,
    batch_size: int = 1,
    protocol: str = "network",
    flip: bool = False,
    log: Callable[[str], None] = print,
    check: Callable[[], None] = lambda: None,
) -> dict:
    """`metrics.report` of what `count` counts, with its arguments."""
    total = count(
        model, variables, split, parallel=parallel, batch_size=batch_size, protocol=protocol,
        flip=flip, log=log, check=check,
    )
    return metrics.report(total, split.labels.classes)


def count(
    model: DeepLab,
    variables: dict,
    split: Split,
    *,
    parallel: Parallel,
    batch_size: int = 1,
    protocol: str = "network",
    flip: bool = False,
    log: Callable[[str], None] = print,
    check: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Confusion matrix int64 [C,C] over the samples of the split, rows are labels.

    parallel: over the devices of this process (`own_devices`). Of several processes each reads and
    counts its part, in its own time, since nothing is exchanged before the sum at the end.
    variables: on the devices, from `parallel.replicate`. batch_size: images over all devices,
    rounded up to a multiple of them. check: called between batches; it may raise.
    """
    step = _compiled_step(model, flip, parallel)
    processes = jax.process_count()
    samples = split.samples[jax.process_index() :: processes]
    batch_size = -(-batch_size // processes)
    batch_size += -batch_size % parallel.num_devices
    batches = pipeline.eval_batches(
        samples, split.labels, size=split.size, batch_size=batch_size, label_size=protocol,
    ) if samples else ()

    def put(batch: dict) -> tuple[int, dict]:
        arrays = {key: batch[key] for key in ("image", "label", "valid")}
        return int(batch["valid"].sum()), parallel.shard(arrays)

    total = np.zeros((model.num_classes,) * 2, np.int64)
    done, start = 0, time.monotonic()
    last_line = start
    for number, arrays in prefetch.prefetch_to_device(batches, put):
        total += np.asarray(parallel.unreplicate(step(variables, arrays)))
        check()
        done += number
        if time.monotonic() - last_line > 10:
            last_line = time.monotonic()
            rate = done / (last_line - start)
            log(progress_text(f"{split.name}, {protocol}: images", done, len(samples), rate))
    return total if processes == 1 else _summed(total)


def _summed(counts: np.ndarray) -> np.ndarray:
    """The sum of an int64 array over the processes; as bytes, since JAX has 32 bits."""
    gathered = multihost_utils.process_allgather(counts.view(np.uint8))
    return np.ascontiguousarray(gathered).view(np.int64).sum(0)


@lru_cache(maxsize=8)
def own_devices(parallel: Parallel) -> Parallel:
    """As `parallel`, over the devices of this process alone; the same value at every call."""
    return parallel if jax.process_count() == 1 else create_parallel(jax.local_devices())


def differences(meta: dict, config: ConfigDict) -> list[str]:
    """In words, where a configuration is not that of the checkpoint's training.

    The network fits all the same (`network.refuse_mismatch`), but the user may not mean it.
    """
    source = meta.get("source", {})
    pairs = {
        "recipe": (source.get("recipe"), config.recipe),
        "target.size": (source.get("input_size"), config.target.size),
    }
    return [
        f"the network was trained with {key} {_shown(there)}, the configuration has {_shown(here)}"
        for key, (there, here) in pairs.items()
        if there is not None and _shown(there) != _shown(here)
    ]


def _shown(value: str | Sequence[int]) -> str:
    return value if isinstance(value, str) else "x".join(map(str, value))


@lru_cache(maxsize=8)
def _compiled_step(model: DeepLab, flip: bool, parallel: Parallel) -> Callable:
    return parallel.compile(make_eval_step(model=model, flip=flip, axis_name=parallel.axis_name))


@lru_cache(maxsize=8)
def _compiled_prediction(model: DeepLab, size: tuple[int, int]) -> Callable:
    probabilities = make_predict_step(model=model)
    return jax.jit(lambda v, x: probabilities(v, x, size).argmax(-1).astype(jnp.uint8))


def pictures(
    model: DeepLab,
    variables: dict,
    split: Split,
) -> list[dict[str, np.ndarray]]:
    """{"input", "label", "prediction"}, uint8 RGB [h,w,3] each, per sample. variables: numpy."""
    predict = _compiled_prediction(model, tuple(split.size))
    variables = jax.device_put(variables)
    return [
        {
            "input": batch["image"][0],
            "label": colorize(batch["label"][0], split.labels.classes),
            "prediction": colorize(
                np.asarray(predict(variables, batch["image"]))[0], split.labels.classes
            ),
        }
        for batch in pipeline.eval_batches(
            split.samples, split.labels, size=split.size, batch_size=1
        )
    ]
