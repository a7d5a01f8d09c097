"""One loop for generalisation and adaptation: they differ in the step and in the target stream."""

import contextlib
import logging
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental.multihost_utils import reached_preemption_sync_point
from ml_collections import ConfigDict

from snr_jax.config import arguments, checks
from snr_jax.core.errors import Stopped, UserError
from snr_jax.core.files import refuse_pattern
from snr_jax.core.models.backbone import architecture
from snr_jax.core.models.create import Network
from snr_jax.core.parallel import Parallel, create_parallel
from snr_jax.core.progress import format_duration, progress_text
from snr_jax.core.state import TrainState, create_state, variable_shapes
from snr_jax.data import prefetch
from snr_jax.process import signals
from snr_jax.process.signals import Stop, never
from snr_jax.report import tables
from snr_jax.runs import experiment, network, validation
from snr_jax.runs.experiment import Tools
from snr_jax.workdir import checkpoints, lock, record, states
from snr_jax.workdir.metrics import create_writer
from snr_jax.workdir.run import Run

logger = logging.getLogger(__name__)

FIRST_TRACED, LAST_TRACED = 10, 15  # of a start, from 1: compilation and first reads are over then

AfterStep = Callable[[int, dict], None]  # gets the step's number and metrics


def train(
    config: ConfigDict, workdir: str, stop: Stop = never, profile_dir: str = "",
    lengthen: bool = False,
) -> dict[str, dict]:
    """Runs the experiment, or goes on with it: {domain: metrics} of the last step.

    profile_dir: folder for a trace of a few steps, "" for none. lengthen: whether a run that is
    there may get more steps than it had. Raises `Stopped` once `stop` names
    a signal; what was done until then is saved. In a run of several processes JAX is asked besides.
    """
    checks.check(config)
    checks.check_devices(config)
    refuse_pattern(workdir)
    run = Run(config, workdir, experiment.open_splits(config), stop)
    for line in experiment.describe(run.splits):
        logger.info(line)
    if jax.process_count() == 1 and (results := record.finished(run)):
        return results  # before the lock, which writes
    with lock.locked_workdir(workdir):
        return record.finished(run) or _train(run, profile_dir, lengthen)


def _train(run: Run, profile_dir: str, lengthen: bool) -> dict[str, dict]:
    config, workdir = run.config, run.workdir
    record.claim(run, lengthen)
    experiment.look(run.splits)
    parallel = create_parallel()
    run.unless_stopped("stopped before the network was made; nothing is lost")
    model = experiment.create_model(config, parallel)
    tx, schedule = experiment.create_optimizer(config)
    with states.open_manager(workdir, config.keep_checkpoints) as manager:
        state, resumed = _initial_state(run, model, tx, manager)
        start = int(state.step)
        _announce(run, model, state, parallel)
        # Reads every label: after what may be refused in a moment.
        rare_classes = experiment.rare_classes(config, run.splits["source"])
        run.unless_stopped(f"stopped before step {start + 1}; nothing is lost")
        # At the last step something is missing, or the run would count as finished.
        validated = start < config.num_steps and record.validated(workdir, start)
        with (
            create_writer(workdir, start if resumed else 0, with_scores=validated) as writer,
            traced(profile_dir, start) as after_step,
        ):
            if not resumed:
                writer.write_hparams(arguments.to_dict(config))
            results = _loop(
                run, Tools(model, parallel, schedule, manager, writer), state,
                experiment.create_step(config, model, tx, parallel),
                experiment.batches(config, run.splits, start, rare_classes),
                validated=validated, after_step=after_step,
            )
    logger.info(tables.class_table(results))
    logger.info("done: %s", checkpoints.folder(workdir, "final"))
    if jax.distributed.is_initialized():  # of several processes main cannot know it alone
        asked = _asked(run.stop, config.num_steps - start + 1)
        signals.unless_asked(lambda: asked, "the run had come to its end, which is saved")
    return results


# ---------------------------------------------------------------- before the first step


def _initial_state(
    run: Run, model: Network, tx: optax.GradientTransformation, manager: states.Manager
) -> tuple[TrainState, bool]:
    """The state to begin with (numpy), and whether a run goes on with it."""
    create = partial(create_state, tx=tx, with_teacher=arguments.has_teacher(run.config))
    shapes = jax.eval_shape(create, variable_shapes(model))
    state = states.restore_state(manager, shapes)
    if state is not None:
        logger.info("going on from the checkpoint of step %d in %s", state.step, manager.directory)
        return state, True
    initial = arguments.initial_arguments(run.config)
    variables = network.initialize(model, **initial, classes=run.classes)
    return jax.device_get(create(variables)), False


def _announce(run: Run, model: Network, state: TrainState, parallel: Parallel) -> None:
    config = run.config
    params = sum(np.size(leaf) for leaf in jax.tree.leaves(state.params))
    device = jax.devices()[0]
    task = f"adaptation ({config.loss.target})" if config.loss.target else "generalisation"
    batch = f"batch {config.batch_size}"
    if config.accumulate_steps > 1:
        batch += f" in {config.accumulate_steps} parts"
    for line in (
        f"network           {params:,} parameters, {architecture(model)}",
        f"computes in       {jnp.dtype(model.dtype).name} (model.dtype {config.model.dtype})",
        f"recipe            {config.recipe}: {task}, train_snr {config.optimizer.train_snr}, "
        f"restitution {arguments.restitution_weight(config)}, repeated_updates "
        f"{config.optimizer.repeated_updates}, multi-level {config.loss.lambda_seg}",
        f"devices           {parallel.num_devices} x {device.device_kind} ({device.platform})",
        f"steps             {int(state.step)} → {config.num_steps}, {batch}",
        f"results           {run.workdir} (tensorboard --logdir {run.workdir})",
    ):
        logger.info(line)
    for side in ("source", "target"):
        share = padding(config, side) if side in run.splits else 0
        if share > 0.5:
            logger.warning("%.0f %% of a crop of %dx%d is padding beside %s images of %dx%d, which "
                           "costs time and teaches nothing. Set '--config.data.crop=(0,0)' for "
                           "whole images, or a smaller crop", 100 * share, *config.data.crop, side,
                           *config[side].size)


def padding(config: ConfigDict, side: str) -> float:
    """Share of a crop that the largest images of a side leave empty; 0 without a crop."""
    largest = (arguments.scale_range(config) or (1.0, 1.0))[1]
    sides = zip(config[side].size, config.data.crop, strict=True)
    return 1 - math.prod(min(1, largest * length / cut) if cut else 1 for length, cut in sides)


@contextlib.contextmanager
def traced(folder: str, start: int) -> Iterator[AfterStep]:
    """Within the block, a function to call after every step.

    It writes a trace of a few steps for TensorBoard's profiler below `folder`; with "" it does
    nothing. Of several processes the first one writes.
    """
    if not folder or jax.process_index() > 0:
        yield lambda step, metrics: None
        return
    Path(folder).mkdir(parents=True, exist_ok=True)  # a mistake is told before the first step
    first, last = start + FIRST_TRACED, start + LAST_TRACED
    done, tracing = start, False

    def after_step(step: int, metrics: dict) -> None:
        nonlocal done, tracing
        done = step
        if step not in (first - 1, last):
            return
        jax.block_until_ready(metrics)  # what is in flight belongs to the steps before
        tracing = step < last
        if tracing:
            jax.profiler.start_trace(folder)
        else:
            jax.profiler.stop_trace()
            logger.info("profile           steps %d to %d (tensorboard --logdir %s, with the "
                        "package tensorboard-plugin-profile)", first, last, folder)

    try:
        yield after_step
    finally:
        if tracing:
            jax.profiler.stop_trace()
        if done < last:
            logger.warning("--profile_dir: a trace is of steps %d to %d; this start ended with "
                           "step %d", first, last, done)


# ---------------------------------------------------------------- the loop


def _loop(
    run: Run,
    tools: Tools,
    state: TrainState,
    step_fn: Callable[[TrainState, dict], tuple[TrainState, dict]],
    host_batches: Iterator[dict],
    *,
    validated: bool,
    after_step: AfterStep,
) -> dict[str, dict]:
    """The scores of the last step. validated: the state to begin with has been already.

    It waits for the device where it logs, saves and validates; states are written meanwhile.
    """
    config, parallel = run.config, tools.parallel

    def due(every: int) -> bool:
        return step % every == 0 or step == config.num_steps

    start = step = int(state.step)
    pending, results = [], {}
    host_state, state = state, parallel.replicate(state)
    if step and due(config.eval_every_steps) and not validated:
        results = validation.validate(run, tools, state, host_state)
    since, started = time.monotonic(), step
    with contextlib.closing(prefetch.prefetch_to_device(host_batches, parallel.shard)) as batches:
        while step < config.num_steps:
            batch = next(batches)
            with jax.profiler.StepTraceAnnotation("train", step_num=step + 1):
                state, metrics = step_fn(state, batch)
            step += 1
            pending.append(metrics)
            after_step(step, metrics)
            first = step == start + 1
            if parallel.must_wait or first:
                jax.block_until_ready(metrics)
            if first:
                logger.info("first step after %s", format_duration(time.monotonic() - since))
                since, started = time.monotonic(), step
            signalled, evaluating = _asked(run.stop, step - start), due(config.eval_every_steps)
            saving = evaluating or due(config.checkpoint_every_steps) or signalled
            if saving or due(config.log_every_steps):
                fetched = parallel.unreplicate(pending)  # waits for the steps
                rate = (step - started) / max(time.monotonic() - since, 1e-9)
                _tell(run, tools, step, fetched, rate)
                pending = []
            if not saving:
                continue
            pause = time.monotonic()
            host_state = parallel.unreplicate(state)
            meta = validation.describe(run, tools.model, step, {})
            states.save_state(tools.manager, host_state, meta)
            if signalled:
                raise Stopped.by(
                    signalled, f"step {step} is saved; the same command goes on from there"
                )
            if evaluating:  # after saving: a run stopped meanwhile goes on with it
                results = validation.validate(run, tools, state, host_state)
            since += time.monotonic() - pause
    return results


def _asked(stop: Stop, step: int) -> signal.Signals | None:
    """The signal that asks to stop; of several processes JAX lets all know it at one step.

    step: of this start, from 1, as JAX counts them: a signal that comes before the first names
    step 1, to which a run that goes on from step 10 would never come.
    """
    if not jax.distributed.is_initialized():
        return stop()
    # The process that was asked in another way, as by Ctrl-C, knows it alone.
    return (stop() or signal.SIGTERM) if reached_preemption_sync_point(step) else None


def _tell(run: Run, tools: Tools, step: int, metrics: Sequence[Mapping], rate: float) -> None:
    """Tells the means of the steps since the last line. A loss that is not finite ends the run."""
    losses = [{name: float(value) for name, value in m.items()} for m in metrics]
    _refuse_infinite(tools, losses, step - len(losses) + 1)
    means = {name: np.mean([m[name] for m in losses]) for name in losses[0]}
    scalars = {f"train/{name}": value for name, value in means.items()}
    scalars["train/learning_rate"] = float(tools.schedule(step - 1))
    scalars["train/steps_per_second"] = rate
    tools.writer.write_scalars(step, scalars)
    others = "".join(
        f"  {name.removeprefix('loss_')} {value:.4f}"
        for name, value in means.items() if name != "loss_source"
    )
    line = progress_text("step", step, run.config.num_steps, rate)
    logger.info("%s  loss %.3f%s", line, means["loss_source"], others)


def _refuse_infinite(tools: Tools, losses: Sequence[Mapping[str, float]], first: int) -> None:
    for at, of_step in enumerate(losses, start=first):
        for name, value in of_step.items():
            if not np.isfinite(value):
                # The state of the step before is what gave this loss.
                raise UserError(
                    f"{name} is {value} at step {at}, at the rate "
                    f"{float(tools.schedule(at - 1)):.3g}. The last good checkpoint: "
                    f"{states.last_good(tools.manager, at - 1)}. Start anew with a lower "
                    "--config.optimizer.base_rate, or look at the data with "
                    "python -m snr_jax.doctor"
                )
