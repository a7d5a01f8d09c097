"""A validation: scores, pictures of predictions, and what is kept of the networks."""

import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from snr_jax.config import arguments
from snr_jax.config.arguments import TEACHER
from snr_jax.core.models.backbone import architecture
from snr_jax.core.models.create import Network, changed
from snr_jax.core.parallel import Parallel
from snr_jax.core.progress import format_duration
from snr_jax.core.state import TrainState
from snr_jax.data import domains
from snr_jax.data.identity import meaning
from snr_jax.data.splits import Split
from snr_jax.report.pictures import panel
from snr_jax.report.tables import percent
from snr_jax.runs.evaluation import evaluate, own_devices, pictures
from snr_jax.runs.experiment import Tools
from snr_jax.workdir import checkpoints, record, states
from snr_jax.workdir.run import Run

logger = logging.getLogger(__name__)

# The splits that are scored, and the name under which the best variables by each are kept.
BEST = {"source_val": "best_source", "target_val": "oracle_target"}


def validate(
    run: Run, tools: Tools, state: TrainState, host_state: TrainState
) -> dict[str, dict]:
    """Scores the networks of a state, keeps what is the best or final, writes what it found.

    state: on the devices; host_state: the same as numpy. Raises `Stopped`.
    """
    config, step, start = run.config, int(host_state.step), time.monotonic()
    kept = f"stopped in the validation of step {step}, which is saved; the same command goes on"
    own = own_devices(tools.parallel)
    if own is not tools.parallel:
        state = own.replicate(host_state.replace(opt_state=()))
    results = {}
    for suffix, variables in networks(state).items():
        of_network = {role: s._replace(name=s.name + suffix) for role, s in run.splits.items()}
        results |= score(
            tools.model, variables, of_network, step=step, parallel=own,
            interrupt=lambda: run.unless_stopped(kept), **arguments.evaluation_arguments(config),
        )
    states.wait(tools.manager)  # what is kept of a step is never ahead of its state
    meta = describe(run, tools.model, step, results)
    keep_best(run, host_state.variables, meta)
    if step == config.num_steps:
        _keep_last(run, host_state, meta)
    if jax.process_index() == 0:
        count = config.eval.num_pictures
        tools.writer.write_images(step, draw(tools.model, host_state.variables, run.splits, count))
    # The last that a validation writes: `record.validated` takes it for its end.
    settings = {name: scores["settings"] for name, scores in results.items()}
    tools.writer.write_scalars(step, scalars(results), settings)
    tools.writer.flush()
    table = ", ".join(f"{name} mIoU {percent(scores['miou'])}" for name, scores in results.items())
    logger.info("step %d: %s (%s)", step, table, format_duration(time.monotonic() - start))
    return results


def networks(state: TrainState) -> dict[str, dict]:
    """The variables of student and, where there is one, teacher, by the suffix of their scores."""
    return {"": state.variables} | ({TEACHER: state.teacher} if state.teacher else {})


def describe(run: Run, model: Network, step: int, results: dict[str, dict]) -> dict:
    """What a checkpoint of this run says of itself."""
    source = {
        "kind": "run",
        "workdir": str(Path(run.workdir).absolute()),
        "step": step,
        "recipe": run.config.recipe,
        "input_size": tuple(run.config.target.size),
    }
    return {
        "model": architecture(model), "source": source, "scores": results,
        "class_names": [c.name for c in run.classes],
        "class_colors": [c.color for c in run.classes],
        "labels": {
            "domain": run.splits["source"].domain.spec,
            "numbers": meaning(run.splits["source"].labels)["numbers"],
        },
    }


def _keep_last(run: Run, state: TrainState, meta: dict) -> None:
    """Keeps the networks of the last step; the student's checkpoint says that the run is whole."""
    for suffix, variables in reversed(networks(state).items()):
        path = checkpoints.folder(run.workdir, "teacher" if suffix else "final")
        checkpoints.find_or_set_aside(path)
        checkpoints.save_variables(path, variables, meta)


# ---------------------------------------------------------------- scores


def score(
    model: Network,
    variables: dict,
    splits: Mapping[str, Split],
    *,
    step: int | None,
    parallel: Parallel,
    batch_size: int,
    flip: bool,
    interrupt: Callable[[], None] = lambda: None,
) -> dict[str, dict]:
    """Scores of every split that is scored, by its name, each with its "settings".

    variables: on the devices, from `parallel.replicate`. interrupt: called between batches; it may
    raise.
    """
    # A module without restitution classifiers and axis: evaluation needs neither.
    model = changed(model, restitution_heads=False, bn_axis_name=None)
    results = {}
    for split in (splits[role] for role in BEST if role in splits):
        settings = record.evaluation_settings(
            split, protocol="network", flip=flip, dtype=jnp.dtype(model.dtype).name
        )
        scores = evaluate(
            model, variables, split,
            parallel=parallel, batch_size=batch_size, flip=flip, interrupt=interrupt,
        )
        results[split.name] = {"settings": {**settings, "step": step}, **scores}
    return results


def teacher_name(split: str) -> str:
    """The name of the teacher's scores on the split of that name."""
    return f"{split}{TEACHER}"


def draw(
    model: Network, variables: dict, splits: Mapping[str, Split], count: int
) -> dict[str, np.ndarray]:
    """The first `count` images of every split that is scored: a panel uint8 [H,W,3] by name.

    variables: numpy, of one replica.
    """
    model = changed(model, restitution_heads=False, bn_axis_name=None)
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
            # One's own file may have moved: what lies in the set is compared itself.
            {k: domains.name_of(v) if k == "domain" else v
             for k, v in meta["scores"][domain]["settings"].items() if k != "step"}
            for meta in (best, new)
        )
        float(best["scores"][domain]["miou"]), int(best["scores"][domain]["settings"]["step"])
    except (KeyError, TypeError, ValueError, AttributeError):
        return [f"it has no score of {domain}"]
    later = {"meaning"} - there.keys()  # scores of before do not say what the numbers meant
    return [
        f"its score of {domain} is with {key} {there.get(key)!r}, not {here.get(key)!r}"
        for key in sorted((there.keys() | here.keys()) - later) if there.get(key) != here.get(key)
    ]


def keep_best(run: Run, variables: dict, meta: dict) -> None:
    """Keeps the variables under each name of BEST whose split they score best on.

    variables: numpy; meta: from `describe`. Scores of other settings are not compared: such a best
    is set aside, and the next ones compete anew.
    """
    for role, name in BEST.items():
        if role not in run.splits:
            continue
        path = checkpoints.folder(run.workdir, name)
        domain = run.splits[role].name
        best = checkpoints.find_or_set_aside(path)
        if best and (reasons := incomparable(best.meta, meta, domain)):
            logger.warning("%s cannot be compared: %s", path, "; ".join(reasons))
            checkpoints.set_aside(best.path)
            best = None
        if best is None or is_better(best.meta, meta, domain):
            checkpoints.save_variables(path, variables, meta)
