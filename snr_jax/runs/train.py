"""One loop for generalisation and adaptation: they differ in the step and in the target stream."""

import signal
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from snr_jax.core.errors import UserError
from snr_jax.core.models.deeplab import DeepLab, architecture
from snr_jax.core.parallel import Parallel, create_parallel
from snr_jax.core.state import TrainState, create_state, variable_shapes
from snr_jax.data import pipeline
from snr_jax.report import tables
from snr_jax.report.pictures import panel
from snr_jax.runs import checkpoints, experiment, network
from snr_jax.runs.evaluation import evaluate, pictures
from snr_jax.runs.writer import create_writer


def train(config: ConfigDict, workdir: str) -> dict:
    """Runs the experiment, or goes on with it, and returns {domain: metrics} of the last step."""
    log = partial(print, flush=True) if jax.process_index() == 0 else (lambda line: None)
    experiment.check(config)
    experiment.claim(config, workdir)
    parallel = create_parallel()
    splits = experiment.open_splits(config, log)
    model = experiment.create_model(config, parallel)
    tx, schedule = experiment.create_optimizer(config)
    with checkpoints.open_manager(workdir, config.keep_checkpoints) as manager:
        state, resumed = _initial_state(config, model, tx, manager, log)
        _announce(config, workdir, model, state, parallel, log)
        with create_writer(workdir, resume_step=int(state.step) if resumed else 0) as writer:
            if not resumed:
                writer.write_hparams(experiment.to_dict(config))
            run = _Run(config, workdir, model, schedule, splits, parallel, manager, writer, log)
            return _loop(run, state, experiment.create_step(config, model, tx, parallel))


class _Run(NamedTuple):
    """What does not change while the loop runs."""

    config: ConfigDict
    workdir: str
    model: DeepLab
    schedule: object
    splits: dict[str, experiment.Split]
    parallel: Parallel
    manager: object
    writer: object
    log: object


# ---------------------------------------------------------------- before the first step


def _initial_state(config, model, tx, manager, log) -> tuple[TrainState, bool]:
    shapes = jax.eval_shape(lambda v: create_state(v, tx), variable_shapes(model))
    state = checkpoints.restore_state(manager, shapes, log)
    if state is not None:
        log(f"going on from the checkpoint of step {int(state.step)} in {manager.directory}")
        return state, True
    variables = network.initialize(model, config.seed, config.init_from, log)
    return jax.device_get(create_state(variables, tx)), False


def _announce(config, workdir, model, state, parallel, log) -> None:
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


# ---------------------------------------------------------------- the loop


def _loop(run: _Run, state: TrainState, step_fn) -> dict:
    config, parallel = run.config, run.parallel
    stop = _stop_on_sigterm()
    step = int(state.step)
    state = parallel.replicate(state)
    host_batches = experiment.batches(config, run.splits, step)
    batches = pipeline.prefetch_to_device(host_batches, parallel.shard)
    pending, results = [], {}
    since, started = time.monotonic(), step
    first = True
    try:
        while step < config.num_steps:
            state, metrics = step_fn(state, next(batches))
            step += 1
            pending.append(metrics)
            if parallel.must_wait or first:
                jax.block_until_ready(metrics)
            if first:
                run.log(f"first step after {tables.format_duration(time.monotonic() - since)}")
                since, started, first = time.monotonic(), step, False
            is_last = step == config.num_steps
            evaluating = step % config.eval_every_steps == 0 or is_last
            stopping = stop["now"] or _preempted(run, step)
            saving = step % config.checkpoint_every_steps == 0 or evaluating or stopping
            if step % config.log_every_steps == 0 or saving:
                fetched = [jax.tree.map(float, m) for m in parallel.unreplicate(pending)]
                rate = (step - started) / max(time.monotonic() - since, 1e-9)
                _log_losses(run, step, fetched, rate)
                pending = []
            if not saving:
                continue
            pause = time.monotonic()
            host_state = parallel.unreplicate(state)
            if evaluating:  # before saving: a run killed meanwhile validates again
                results = _validate(run, state, host_state)
            checkpoints.save_state(run.manager, host_state, _meta(run, host_state))
            if stopping and not is_last:
                run.log(f"SIGTERM: saved step {step}; the same command goes on from there")
                return {}
            since += time.monotonic() - pause
    finally:
        batches.close()
    final = parallel.unreplicate(state)
    if not results:  # the run was complete already
        results = _validate(run, state, final)
    checkpoints.save_variables(
        checkpoints.folder(run.workdir, "final"), final.variables, _meta(run, final, results)
    )
    run.log(tables.class_table(results))
    run.log(f"done: {checkpoints.folder(run.workdir, 'final')}")
    return results


def _preempted(run: _Run, step: int) -> bool:
    """With several processes JAX takes SIGTERM itself, and all stop at the same step."""
    return jax.process_count() > 1 and run.manager.reached_preemption(step)


def _stop_on_sigterm() -> dict[str, bool]:
    stop = {"now": False}

    def ask(*_):
        stop["now"] = True

    signal.signal(signal.SIGTERM, ask)
    return stop


def _log_losses(run: _Run, step: int, fetched: list[dict], rate: float) -> None:
    """Means of the steps since the last line. A loss that is not finite stops the run."""
    first = step - len(fetched) + 1
    for offset, losses_of_step in enumerate(fetched):
        bad = [name for name, value in losses_of_step.items() if not np.isfinite(value)]
        if bad:
            at = first + offset
            # The state of the step before is what gave this loss.
            good = [s for s in run.manager.all_steps() if s < at - 1]
            good = f"{run.manager.directory}/{max(good)}" if good else "none yet"
            raise UserError(
                f"{bad[0]} is {losses_of_step[bad[0]]} at step {at}, at the rate "
                f"{float(run.schedule(at - 1)):.3g}. The last good checkpoint: {good}. Start anew "
                "with a lower --config.optimizer.base_rate, or look at the data with "
                "python -m snr_jax.data.doctor"
            )
    means = {name: np.mean([m[name] for m in fetched]) for name in fetched[0]}
    scalars = {f"train/{name}": value for name, value in means.items()}
    scalars["train/learning_rate"] = float(run.schedule(step - 1))
    scalars["train/steps_per_second"] = rate
    run.writer.write_scalars(step, scalars)
    line = tables.progress_line(step, run.config.num_steps, rate, means["loss_source"])
    others = "".join(
        f"  {name.removeprefix('loss_')} {value:.4f}"
        for name, value in means.items() if name != "loss_source"
    )
    run.log(line + others)


def _meta(run: _Run, state: TrainState, results: dict | None = None) -> dict:
    source = {
        "kind": "run",
        "workdir": str(Path(run.workdir).absolute()),
        "step": int(state.step),
        "recipe": run.config.recipe,
        "input_size": tuple(run.config.target.size),
    }
    scores = {name: scores["miou"] for name, scores in (results or {}).items()}
    return {"model": architecture(run.model), "source": source, "miou": scores}


def _validate(run: _Run, state: TrainState, host_state: TrainState) -> dict:
    """Scores and pictures of both domains; keeps the best by each, under its name."""
    step = int(host_state.step)
    start = time.monotonic()
    results, images = {}, {}
    # A module without restitution classifiers and axis: evaluation needs neither.
    model = run.model.clone(restitution_heads=False, bn_axis_name=None)
    roles = [role for role in ("source_val", "target_val") if role in run.splits]
    for role in roles:
        split = run.splits[role]
        common = {"domain": split.domain, "size": split.size}
        results[split.name] = scores = evaluate(
            model, state.variables, split.samples, parallel=run.parallel,
            batch_size=run.config.eval.batch_size, flip=run.config.eval.flip, log=run.log, **common,
        )
        prefix = f"eval/{split.name}/network"
        scalars = {f"{prefix}/iou/{name}": value for name, value in scores["iou"].items()}
        scalars |= {f"{prefix}/{k}": v for k, v in scores.items() if k != "iou"}
        run.writer.write_scalars(step, scalars)
        if run.config.eval.num_pictures and jax.process_index() == 0:
            chosen = split.samples[: run.config.eval.num_pictures]
            rows = pictures(model, host_state.variables, chosen, **common)
            images[f"eval/{split.name}"] = panel(rows)
    run.writer.write_images(step, images)
    run.writer.flush()
    for role in roles:
        name = {"source_val": "best_source", "target_val": "oracle_target"}[role]
        _keep_best(run, name, run.splits[role].name, host_state, results)
    table = ", ".join(f"{name} mIoU {tables.percent(s['miou'])}" for name, s in results.items())
    run.log(f"step {step}: {table} ({tables.format_duration(time.monotonic() - start)})")
    return results


def _keep_best(run: _Run, name: str, scored: str, state: TrainState, results: dict) -> None:
    path = checkpoints.folder(run.workdir, name)
    meta = _meta(run, state, results)
    score = meta["miou"][scored]
    if path.exists():
        best = checkpoints.load_meta(path)
        if best["source"]["step"] < meta["source"]["step"] and best["miou"][scored] >= score:
            return
    checkpoints.save_variables(path, state.variables, meta)


