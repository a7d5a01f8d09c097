"""One loop for generalisation and adaptation: they differ in the step and in the target stream."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax
from ml_collections import ConfigDict
from orbax.checkpoint import CheckpointManager

from snr_jax.core.errors import UserError
from snr_jax.core.models.deeplab import DeepLab, architecture
from snr_jax.core.parallel import Parallel, create_parallel
from snr_jax.core.state import TrainState, create_state, variable_shapes
from snr_jax.data import pipeline
from snr_jax.report import tables
from snr_jax.runs import checkpoints, experiment, network, states, validation
from snr_jax.runs.experiment import Log, Split
from snr_jax.runs.writer import Writer, create_writer


def train(config: ConfigDict, workdir: str) -> dict:
    """Runs the experiment, or goes on with it, and returns {domain: metrics} of the last step."""
    log = partial(print, flush=True) if jax.process_index() == 0 else (lambda line: None)
    experiment.check(config)
    experiment.claim(config, workdir)
    parallel = create_parallel()
    splits = experiment.open_splits(config, log)
    model = experiment.create_model(config, parallel)
    tx, schedule = experiment.create_optimizer(config)
    meta = partial(_meta, config, workdir, model)
    with states.open_manager(workdir, config.keep_checkpoints) as manager:
        state, resumed = _initial_state(config, model, tx, manager, log)
        _announce(config, workdir, model, state, parallel, log)
        with create_writer(workdir, resume_step=int(state.step) if resumed else 0) as writer:
            if not resumed:
                writer.write_hparams(experiment.to_dict(config))
            validate = partial(
                _validate, config, workdir, model, splits, parallel, meta, writer, log
            )
            state, results = _loop(
                config, state, experiment.create_step(config, model, tx, parallel),
                experiment.batches(config, splits, int(state.step)), parallel,
                report=partial(_report, config.num_steps, schedule, manager, writer, log),
                save=lambda state: states.save_state(manager, state, meta(state)),
                validate=validate, stopping=_stop_on_sigterm(manager), log=log,
            )
            host_state = parallel.unreplicate(state)
            if int(host_state.step) < config.num_steps:
                return {}
            if not results:  # the run was complete already
                results = validate(state, host_state)
    final = checkpoints.folder(workdir, "final")
    checkpoints.save_variables(final, host_state.variables, meta(host_state, results))
    log(tables.class_table(results))
    log(f"done: {final}")
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
    shapes = jax.eval_shape(lambda v: create_state(v, tx), variable_shapes(model))
    state = states.restore_state(manager, shapes, log)
    if state is not None:
        log(f"going on from the checkpoint of step {int(state.step)} in {manager.directory}")
        return state, True
    variables = network.initialize(model, config.seed, config.init_from, log)
    return jax.device_get(create_state(variables, tx)), False


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
    log(f"network           {params:,} parameters, {architecture(model)}, {config.model.dtype}")
    log(f"recipe            {config.recipe}: {task}, train_snr {config.optimizer.train_snr}, "
        f"restitution {experiment.restitution_weight(config)}, repeated_updates "
        f"{config.optimizer.repeated_updates}, multi-level {config.loss.lambda_seg}")
    log(f"devices           {parallel.num_devices} x {device.device_kind} ({device.platform})")
    log(f"steps             {int(state.step)} → {config.num_steps}, batch {config.batch_size}")
    log(f"results           {workdir} (tensorboard --logdir {workdir})")


def _meta(
    config: ConfigDict,
    workdir: str,
    model: DeepLab,
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
    scores = {name: scores["miou"] for name, scores in (results or {}).items()}
    return {"model": architecture(model), "source": source, "miou": scores}


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
    stopping: Callable[[int], bool],
    log: Log,
) -> tuple[TrainState, dict[str, dict]]:
    """The state on the devices at the end, and the scores of the last validation."""
    step, results, pending = int(state.step), {}, []
    state = parallel.replicate(state)
    first, since, started = step + 1, time.monotonic(), step
    with contextlib.closing(pipeline.prefetch_to_device(host_batches, parallel.shard)) as batches:
        while step < config.num_steps:
            state, metrics = step_fn(state, next(batches))
            step += 1
            pending.append(metrics)
            if parallel.must_wait or step == first:
                jax.block_until_ready(metrics)
            if step == first:
                log(f"first step after {tables.format_duration(time.monotonic() - since)}")
                since, started = time.monotonic(), step
            last = step == config.num_steps
            evaluating = step % config.eval_every_steps == 0 or last
            stop = stopping(step)
            saving = step % config.checkpoint_every_steps == 0 or evaluating or stop
            if step % config.log_every_steps == 0 or saving:
                rate = (step - started) / max(time.monotonic() - since, 1e-9)
                report(step, parallel.unreplicate(pending), rate)
                pending = []
            if not saving:
                continue
            pause = time.monotonic()
            host_state = parallel.unreplicate(state)
            if evaluating:  # before saving: a run killed meanwhile validates again
                results = validate(state, host_state)
            save(host_state)
            if stop and not last:
                log(f"SIGTERM: saved step {step}; the same command goes on from there")
                break
            since += time.monotonic() - pause
    return state, results


def _stop_on_sigterm(manager: CheckpointManager) -> Callable[[int], bool]:
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(True))

    def stopping(step: int) -> bool:
        # With several processes JAX takes SIGTERM itself, and all stop at the same step.
        preempted = jax.process_count() > 1 and manager.reached_preemption(step)
        return bool(asked) or preempted

    return stopping


def _report(
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
    log(tables.progress_line(step, num_steps, rate, means["loss_source"]) + others)


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
                "python -m snr_jax.data.doctor"
            )


def _validate(
    config: ConfigDict,
    workdir: str,
    model: DeepLab,
    splits: dict[str, Split],
    parallel: Parallel,
    meta: Callable[[TrainState, dict], dict],
    writer: Writer,
    log: Log,
    state: TrainState,
    host_state: TrainState,
) -> dict[str, dict]:
    """Scores both domains, writes scores and pictures, keeps the best by each."""
    start, step = time.monotonic(), int(host_state.step)
    results = validation.score(
        model, state.variables, splits, parallel=parallel,
        batch_size=config.eval.batch_size, flip=config.eval.flip, log=log,
    )
    for name, scores in results.items():
        writer.write_scalars(step, validation.scalars(name, scores))
    if jax.process_index() == 0:
        count = config.eval.num_pictures
        writer.write_images(step, validation.draw(model, host_state.variables, splits, count))
    writer.flush()
    validation.keep_best(workdir, splits, host_state.variables, meta(host_state, results), log)
    table = ", ".join(f"{name} mIoU {tables.percent(s['miou'])}" for name, s in results.items())
    log(f"step {step}: {table} ({tables.format_duration(time.monotonic() - start)})")
    return results
