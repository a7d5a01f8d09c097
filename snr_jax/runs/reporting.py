"""What is told of the steps: a line, scalars, and an end if a loss is not finite."""

from collections.abc import Sequence

import numpy as np
import optax
from orbax.checkpoint import CheckpointManager

from snr_jax.core.errors import UserError
from snr_jax.core.progress import progress_text
from snr_jax.runs.experiment import Log
from snr_jax.workdir.metrics import Writer


def report(
    num_steps: int,
    schedule: optax.Schedule,
    manager: CheckpointManager,
    writer: Writer,
    log: Log,
    step: int,
    metrics: Sequence[dict],
    rate: float,
) -> None:
    """Means of the steps since the last line. A loss that is not finite stops the run."""
    losses = [{name: float(value) for name, value in m.items()} for m in metrics]
    _refuse_infinite(losses, step - len(losses) + 1, schedule, manager)
    means = {name: np.mean([m[name] for m in losses]) for name in losses[0]}
    scalars = {f"train/{name}": value for name, value in means.items()}
    scalars["train/learning_rate"] = float(schedule(step - 1))
    scalars["train/steps_per_second"] = rate
    writer.write_scalars(step, scalars)
    others = "".join(
        f"  {name.removeprefix('loss_')} {value:.4f}"
        for name, value in means.items() if name != "loss_source"
    )
    line = progress_text("step", step, num_steps, rate)
    log(f"{line}  loss {means['loss_source']:.3f}{others}")


def _refuse_infinite(
    losses: Sequence[dict[str, float]],
    first: int,
    schedule: optax.Schedule,
    manager: CheckpointManager,
) -> None:
    for at, of_step in enumerate(losses, start=first):
        bad = [name for name, value in of_step.items() if not np.isfinite(value)]
        if bad:
            # The state of the step before is what gave this loss.
            good = [s for s in manager.all_steps() if s < at - 1]
            good = f"{manager.directory}/{max(good)}" if good else "none yet"
            raise UserError(
                f"{bad[0]} is {of_step[bad[0]]} at step {at}, at the rate "
                f"{float(schedule(at - 1)):.3g}. The last good checkpoint: {good}. Start anew "
                "with a lower --config.optimizer.base_rate, or look at the data with "
                "python -m snr_jax.doctor"
            )
