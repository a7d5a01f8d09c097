"""One loop for generalisation and adaptation: they differ in the step and in the target stream."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental.multihost_utils import reached_preemption_sync_point
from ml_collections import ConfigDict
from orbax.checkpoint import CheckpointManager

from snr_jax.config import arguments, checks
from snr_jax.core.errors import Stopped
from snr_jax.core.labels import Classes
from snr_jax.core.models.deeplab import DeepLab, architecture
from snr_jax.core.parallel import Parallel, create_parallel
from snr_jax.core.progress import format_duration
from snr_jax.core.state import TrainState, create_state, variable_shapes
from snr_jax.data import prefetch
from snr_jax.data.splits import Log, Split
from snr_jax.process import signals
from snr_jax.process.signals import Stop, never
from snr_jax.report import tables
from snr_jax.runs import evaluation, experiment, network, profiling, reporting, validation
from snr_jax.workdir import checkpoints, lock, record, states
from snr_jax.workdir.metrics import Writer, create_writer


def train(
    config: ConfigDict, workdir: str, stop: Stop = never, profile_dir: str = ""
) -> dict[str, dict]:
    """Runs the experiment, or goes on with it: {domain: metrics} of the last step.

    profile_dir: folder for a trace of a few steps, "" for none. Raises `Stopped` once `stop` names
    a signal; what was done until then is saved. In a run of several processes JAX is asked instead.
    """
    log = partial(print, flush=True) if jax.process_index() == 0 else (lambda line: None)
    checks.check(config)
    checks.check_devices(config)
    splits = experiment.open_splits(config, log)
    if jax.process_count() == 1 and (results := record.finished(config, splits, workdir, log)):
        return results  # before the lock, which writes
    with lock.locked_workdir(workdir, log):
        return record.finished(config, splits, workdir, log) or _train(
            config, splits, workdir, stop, profile_dir, log
        )


def _train(
    config: ConfigDict, splits: dict[str, Split], workdir: str, stop: Stop, profile_dir: str,
    log: Log,
) -> dict[str, dict]:
    record.claim(config, splits, workdir, log)
    experiment.look(splits, log)
    parallel = create_parallel()
    signals.unless_asked(stop, "stopped before the network was made; nothing is lost")
    model = experiment.create_model(config, parallel)
    tx, schedule = experiment.create_optimizer(config)
    meta = partial(_meta, config, workdir, model, splits["source"].labels.classes)
    rare_classes = experiment.rare_classes(config, splits, log)
    with states.open_manager(workdir, config.keep_checkpoints) as manager:
        state, resumed = _initial_state(config, model, tx, manager, log)
        start = int(state.step)
        _announce(config, workdir, model, state, parallel, log)
        signals.unless_asked(stop, f"stopped before step {start + 1}; nothing is lost")
        # At the last step something is missing, or the run would count as finished.
        validated = start < config.num_steps and record.validated(workdir, start)
        with (
            create_writer(workdir, start if resumed else 0, with_scores=validated) as writer,
            profiling.traced(profile_dir, start, log) as after_step,
        ):
            if not resumed:
                writer.write_hparams(arguments.to_dict(config))
            results = _loop(
                config, state, experiment.create_step(config, model, tx, parallel),
                experiment.batches(config, splits, start, rare_classes), parallel,
                report=partial(reporting.report, config.num_steps, schedule, manager, writer, log),
                save=lambda state: states.save_state(manager, state, meta(state)),
                validate=partial(
                    _validate, config, workdir, model, splits, parallel, meta,
                    partial(states.wait, manager), writer, log, stop,
                ),
                validated=validated, asked=partial(_asked, stop, start), after_step=after_step,
                log=log,
            )
    log(tables.class_table(results))
    log(f"done: {checkpoints.folder(workdir, 'final')}")
    return results


# ---------------------------------------------------------------- before the first step


def _initial_state(
    config: ConfigDict,
    model: DeepLab,
    tx: optax.GradientTransformation,
    manager: CheckpointManager,
    log: Log,
) -> tuple[TrainState, bool]:
    """The state to begin with (numpy), and whether a run goes on with it."""
    create = partial(create_state, tx=tx, with_teacher=arguments.has_teacher(config))
    shapes = jax.eval_shape(create, variable_shapes(model))
    state = states.restore_state(manager, shapes, log)
    if state is not None:
        log(f"going on from the checkpoint of step {int(state.step)} in {manager.directory}")
        return state, True
    variables = network.initialize(model, **arguments.initial_arguments(config), log=log)
    return jax.device_get(create(variables)), False


def _announce(
    config: ConfigDict,
    workdir: str,
    model: DeepLab,
    state: TrainState,
    parallel: Parallel,
    log: Log,
) -> None:
    params = sum(np.size(leaf) for leaf in jax.tree.leaves(state.params))
    device = jax.devices()[0]
    task = f"adaptation ({config.loss.target})" if config.loss.target else "generalisation"
    log(f"network           {params:,} parameters, {architecture(model)}")
    log(f"computes in       {jnp.dtype(model.dtype).name} (model.dtype {config.model.dtype})")
    log(f"recipe            {config.recipe}: {task}, train_snr {config.optimizer.train_snr}, "
        f"restitution {arguments.restitution_weight(config)}, repeated_updates "
        f"{config.optimizer.repeated_updates}, multi-level {config.loss.lambda_seg}")
    log(f"devices           {parallel.num_devices} x {device.device_kind} ({device.platform})")
    batch = f"batch {config.batch_size}"
    if config.accumulate_steps > 1:
        batch += f" in {config.accumulate_steps} parts"
    log(f"steps             {int(state.step)} → {config.num_steps}, {batch}")
    log(f"results           {workdir} (tensorboard --logdir {workdir})")


def _meta(
    config: ConfigDict,
    workdir: str,
    model: DeepLab,
    classes: Classes,
    state: TrainState,
    results: dict[str, dict] | None = None,
) -> dict:
    """What a checkpoint of this run says of itself."""
    source = {
        "kind": "run",
        "workdir": str(Path(workdir).absolute()),
        "step": int(state.step),
        "recipe": config.recipe,
        "input_size": tuple(config.target.size),
    }
    return {
        "model": architecture(model), "source": source, "scores": results or {},
        "class_names": [c.name for c in classes], "class_colors": [c.color for c in classes],
    }


# ---------------------------------------------------------------- the loop


def _loop(
    config: ConfigDict,
    state: TrainState,
    step_fn: Callable[[TrainState, dict], tuple[TrainState, dict]],
    host_batches: Iterator[dict],
    parallel: Parallel,
    *,
    report: Callable[[int, Sequence[dict], float], None],
    save: Callable[[TrainState], None],
    validate: Callable[[TrainState, TrainState], dict[str, dict]],
    validated: bool,
    asked: Callable[[int], signal.Signals | None],
    after_step: Callable[[int, dict], None],
    log: Log,
) -> dict[str, dict]:
    """The scores of the last step. validated: the state to begin with has been already.

    It waits for the device where it logs, saves and validates; states are written meanwhile.
    """

    def due(every: int) -> bool:
        return step % every == 0 or step == config.num_steps

    step, pending, results = int(state.step), [], {}
    host_state, state = state, parallel.replicate(state)
    if step and due(config.eval_every_steps) and not validated:
        results = validate(state, host_state)
    first, since, started = step + 1, time.monotonic(), step
    with contextlib.closing(prefetch.prefetch_to_device(host_batches, parallel.shard)) as batches:
        while step < config.num_steps:
            batch = next(batches)
            with jax.profiler.StepTraceAnnotation("train", step_num=step + 1):
                state, metrics = step_fn(state, batch)
            step += 1
            pending.append(metrics)
            after_step(step, metrics)
            if parallel.must_wait or step == first:
                jax.block_until_ready(metrics)
            if step == first:
                log(f"first step after {format_duration(time.monotonic() - since)}")
                since, started = time.monotonic(), step
            signalled, evaluating = asked(step), due(config.eval_every_steps)
            saving = evaluating or due(config.checkpoint_every_steps) or signalled
            if saving or due(config.log_every_steps):
                fetched = parallel.unreplicate(pending)  # waits for the steps
                rate = (step - started) / max(time.monotonic() - since, 1e-9)
                report(step, fetched, rate)
                pending = []
            if not saving:
                continue
            pause = time.monotonic()
            host_state = parallel.unreplicate(state)
            save(host_state)
            if signalled:
                raise Stopped.by(
                    signalled, f"step {step} is saved; the same command goes on from there"
                )
            if evaluating:  # after saving: a run stopped meanwhile goes on with it
                results = validate(state, host_state)
            since += time.monotonic() - pause
    return results


def _asked(stop: Stop, start: int, step: int) -> signal.Signals | None:
    """The signal that asks to stop; of several processes JAX lets all know it at one step.

    JAX counts the steps of this start from 1, since a signal that comes before the first of them
    names step 1: a run that goes on from step 10 would never come to that.
    """
    if not jax.distributed.is_initialized():
        return stop()
    return signal.SIGTERM if reached_preemption_sync_point(step - start) else None


def _validate(
    config: ConfigDict,
    workdir: str,
    model: DeepLab,
    splits: dict[str, Split],
    parallel: Parallel,
    meta: Callable[[TrainState, dict], dict],
    until_saved: Callable[[], None],
    writer: Writer,
    log: Log,
    stop: Stop,
    state: TrainState,
    host_state: TrainState,
) -> dict[str, dict]:
    """Scores both domains, keeps what is the best by each, or final, and writes what it found."""
    start, step = time.monotonic(), int(host_state.step)
    kept = f"stopped in the validation of step {step}, which is saved; the same command goes on"
    own = evaluation.own_devices(parallel)
    score = partial(
        validation.score, model, step=step, parallel=own,
        **arguments.evaluation_arguments(config), log=log,
        check=lambda: signals.unless_asked(stop, kept),
    )
    there = state if own is parallel else own.replicate(host_state.replace(opt_state=()))
    results = score(there.variables, splits)
    last = {"final": host_state.variables}
    if host_state.teacher:
        results |= score(there.teacher, validation.of_teacher(splits))
        last = {"teacher": host_state.teacher, **last}
    until_saved()  # what is kept of a step is never ahead of its state
    described = meta(host_state, results)
    validation.keep_best(workdir, splits, host_state.variables, described, log)
    if step == config.num_steps:
        for name, variables in last.items():
            path = checkpoints.folder(workdir, name)
            checkpoints.find_or_set_aside(path, log)
            checkpoints.save_variables(path, variables, described)
    if jax.process_index() == 0:
        count = config.eval.num_pictures
        writer.write_images(step, validation.draw(model, host_state.variables, splits, count))
    # The last that a validation writes: `record.validated` takes it for its end.
    settings = {name: scores["settings"] for name, scores in results.items()}
    writer.write_scalars(step, validation.scalars(results), settings)
    writer.flush()
    table = ", ".join(f"{name} mIoU {tables.percent(s['miou'])}" for name, s in results.items())
    log(f"step {step}: {table} ({format_duration(time.monotonic() - start)})")
    return results
