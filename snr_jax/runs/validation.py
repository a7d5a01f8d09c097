"""One validation: scores, pictures of predictions, and the best variables so far."""

import math
from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np

from snr_jax.core.models.deeplab import DeepLab
from snr_jax.core.parallel import Parallel
from snr_jax.report.pictures import panel
from snr_jax.runs.evaluation import evaluate, pictures
from snr_jax.runs.experiment import Log, Split
from snr_jax.workdir import checkpoints, record

# The splits that are scored, and the name under which the best variables by each are kept.
BEST = {"source_val": "best_source", "target_val": "oracle_target"}


def score(
    model: DeepLab,
    variables: dict,
    splits: Mapping[str, Split],
    *,
    step: int,
    parallel: Parallel,
    batch_size: int,
    flip: bool,
    log: Log,
    check: Callable[[], None] = lambda: None,
) -> dict[str, dict]:
    """`metrics.report` of every split that is scored, by its name, with the score's "settings".

    variables: on the devices, from `parallel.replicate`. check: called between batches; it may
    raise.
    """
    # A module without restitution classifiers and axis: evaluation needs neither.
    model = model.clone(restitution_heads=False, bn_axis_name=None)
    results = {}
    for split in (splits[role] for role in BEST if role in splits):
        settings = record.evaluation_settings(
            split, protocol="network", flip=flip, dtype=jnp.dtype(model.dtype).name
        )
        scores = evaluate(
            model, variables, split,
            parallel=parallel, batch_size=batch_size, flip=flip, log=log, check=check,
        )
        results[split.name] = {"settings": {**settings, "step": step}, **scores}
    return results


def of_teacher(splits: Mapping[str, Split]) -> dict[str, Split]:
    """The same splits, under the names of the teacher's scores."""
    return {role: s._replace(name=teacher_name(s.name)) for role, s in splits.items()}


def teacher_name(split: str) -> str:
    """Of the teacher's scores on the split of that name."""
    return f"{split}_teacher"


def draw(
    model: DeepLab, variables: dict, splits: Mapping[str, Split], count: int
) -> dict[str, np.ndarray]:
    """The first `count` images of every split that is scored: a panel uint8 [H,W,3] by name.

    variables: numpy, of one replica.
    """
    model = model.clone(restitution_heads=False, bn_axis_name=None)
    return {
        f"eval/{split.name}": panel(
            pictures(model, variables, split.first(count))
        )
        for role, split in splits.items() if role in BEST and count
    }


def scalars(results: Mapping[str, Mapping]) -> dict[str, float]:
    """What is written of the scores, by the names of the metrics."""
    found = {}
    for split, scores in results.items():
        prefix = f"eval/{split}/network"
        found |= {f"{prefix}/iou/{name}": value for name, value in scores["iou"].items()}
        others = {key: scores[key] for key in scores if key not in ("iou", "settings")}
        found |= {f"{prefix}/{key}": value for key, value in others.items()}
    return found


def is_better(best: Mapping, new: Mapping, domain: str) -> bool:
    """Whether the checkpoint with the meta `new` replaces that with `best` as the best by `domain`.

    Of equal scores the earlier stays. One of the same or a later step is of a validation that a
    run which was cut short comes to again, and counts no more. A score that is NaN is the worst.
    """
    there, here = best["scores"][domain], new["scores"][domain]
    if there["settings"]["step"] >= here["settings"]["step"]:
        return True
    there, here = there["miou"], here["miou"]
    return here > there or (math.isnan(there) and not math.isnan(here))


def incomparable(best: Mapping, new: Mapping, domain: str) -> list[str]:
    """Why the scores by `domain` in two metas cannot be compared; [] if they can."""
    try:
        there, here = (
            {k: v for k, v in meta["scores"][domain]["settings"].items() if k != "step"}
            for meta in (best, new)
        )
        float(best["scores"][domain]["miou"]), int(best["scores"][domain]["settings"]["step"])
    except (KeyError, TypeError, ValueError, AttributeError):
        return [f"it has no score of {domain}"]
    return [
        f"its score of {domain} is with {key} {there.get(key)!r}, not {here.get(key)!r}"
        for key in sorted(there.keys() | here.keys()) if there.get(key) != here.get(key)
    ]


def keep_best(
    workdir: str, splits: Mapping[str, Split], variables: dict, meta: dict, log: Log
) -> None:
    """Keeps the variables under each name of BEST whose split they score best on.

    variables: numpy; meta: of `checkpoints.save_variables`, with the results of `score`. Scores of
    other settings are not compared: such a best is set aside, and the next ones compete anew.
    """
    for role, name in BEST.items():
        if role not in splits:
            continue
        path = checkpoints.folder(workdir, name)
        domain = splits[role].name
        best = checkpoints.find_or_set_aside(path, log)
        if best and (reasons := incomparable(best.meta, meta, domain)):
            log(f"WARNING: {path} cannot be compared: {'; '.join(reasons)}")
            checkpoints.set_aside(best.path, log)
            best = None
        if best is None or is_better(best.meta, meta, domain):
            checkpoints.save_variables(path, variables, meta)
