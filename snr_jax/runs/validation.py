"""One validation: scores, pictures of predictions, and the best variables so far."""

import math
from collections.abc import Callable, Mapping

import numpy as np

from snr_jax.core.models.deeplab import DeepLab
from snr_jax.core.parallel import Parallel
from snr_jax.report.pictures import panel
from snr_jax.runs import checkpoints
from snr_jax.runs.evaluation import evaluate, pictures
from snr_jax.runs.experiment import Log, Split

# The splits that are scored, and the name under which the best variables by each are kept.
BEST = {"source_val": "best_source", "target_val": "oracle_target"}


def score(
    model: DeepLab,
    variables: dict,
    splits: Mapping[str, Split],
    *,
    parallel: Parallel,
    batch_size: int,
    flip: bool,
    log: Log,
    check: Callable[[], None] = lambda: None,
) -> dict[str, dict]:
    """`metrics.report` of every split that is scored, by its name.

    variables: on the devices, from `parallel.replicate`. check: called between batches; it may
    raise.
    """
    # A module without restitution classifiers and axis: evaluation needs neither.
    model = model.clone(restitution_heads=False, bn_axis_name=None)
    return {
        split.name: evaluate(
            model, variables, split.samples, domain=split.domain, size=split.size,
            parallel=parallel, batch_size=batch_size, flip=flip, log=log, check=check,
        )
        for role, split in splits.items() if role in BEST
    }


def draw(
    model: DeepLab, variables: dict, splits: Mapping[str, Split], count: int
) -> dict[str, np.ndarray]:
    """The first `count` images of every split that is scored: a panel uint8 [H,W,3] by name.

    variables: numpy, of one replica.
    """
    model = model.clone(restitution_heads=False, bn_axis_name=None)
    return {
        f"eval/{split.name}": panel(
            pictures(model, variables, split.samples[:count], domain=split.domain, size=split.size)
        )
        for role, split in splits.items() if role in BEST and count
    }


def scalars(results: Mapping[str, Mapping]) -> dict[str, float]:
    """What is written of the scores, by the names of the metrics."""
    found = {}
    for split, scores in results.items():
        prefix = f"eval/{split}/network"
        found |= {f"{prefix}/iou/{name}": value for name, value in scores["iou"].items()}
        found |= {f"{prefix}/{key}": value for key, value in scores.items() if key != "iou"}
    return found


def is_better(best: Mapping, new: Mapping, domain: str) -> bool:
    """Whether the checkpoint with the meta `new` replaces that with `best` as the best by `domain`.

    Of equal scores the earlier stays. One of the same or a later step is of a validation that a
    run which was cut short comes to again, and counts no more. A score that is NaN is the worst.
    """
    if best["source"]["step"] >= new["source"]["step"]:
        return True
    there, here = best["miou"][domain], new["miou"][domain]
    return here > there or (math.isnan(there) and not math.isnan(here))


def keep_best(
    workdir: str, splits: Mapping[str, Split], variables: dict, meta: dict, log: Log
) -> None:
    """Keeps the variables under each name of BEST whose split they score best on.

    variables: numpy; meta: of `checkpoints.save_variables`, with "miou" by split.
    """
    for role, name in BEST.items():
        if role not in splits:
            continue
        path = checkpoints.folder(workdir, name)
        best = checkpoints.find_or_set_aside(path, log)
        if best is None or is_better(best.meta, meta, splits[role].name):
            checkpoints.save_variables(path, variables, meta)
