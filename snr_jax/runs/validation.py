"""One validation: scores, pictures of predictions, and the best variables so far."""

from collections.abc import Mapping

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
) -> dict[str, dict]:
    """`metrics.report` of every split that is scored, by its name.

    variables: on the devices, from `parallel.replicate`.
    """
    # A module without restitution classifiers and axis: evaluation needs neither.
    model = model.clone(restitution_heads=False, bn_axis_name=None)
    return {
        split.name: evaluate(
            model, variables, split.samples, domain=split.domain, size=split.size,
            parallel=parallel, batch_size=batch_size, flip=flip, log=log,
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


def scalars(split: str, scores: Mapping) -> dict[str, float]:
    """What is written of one split's scores, by the names of the metrics."""
    prefix = f"eval/{split}/network"
    by_class = {f"{prefix}/iou/{name}": value for name, value in scores["iou"].items()}
    return by_class | {f"{prefix}/{key}": scores[key] for key in scores if key != "iou"}


def keep_best(workdir: str, splits: Mapping[str, Split], variables: dict, meta: dict) -> None:
    """Keeps the variables under each name of BEST whose split they score best on.

    variables: numpy; meta: of `checkpoints.save_variables`, with "miou" by split.
    """
    for role, name in BEST.items():
        if role not in splits:
            continue
        path, scored = checkpoints.folder(workdir, name), splits[role].name
        if path.exists():
            best = checkpoints.load_meta(path)
            earlier = best["source"]["step"] < meta["source"]["step"]
            if earlier and best["miou"][scored] >= meta["miou"][scored]:
                continue
        checkpoints.save_variables(path, variables, meta)
