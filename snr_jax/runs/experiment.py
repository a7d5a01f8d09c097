"""From a configuration to what a run consists of: data, network, optimiser, step, streams."""

import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import optax
from ml_collections import ConfigDict

from snr_jax.core import labels, losses, optim
from snr_jax.core.errors import UserError
from snr_jax.core.models.deeplab import DeepLab
from snr_jax.core.parallel import Parallel
from snr_jax.core.steps import make_adaptation_step, make_source_step
from snr_jax.data import domains, pipeline
from snr_jax.runs import network

Log = Callable[[str], None]
# Keys that hold several numbers: how many, and the least of each.
LISTS = (
    ("source.size", 2, 33), ("target.size", 2, 33), ("data.crop", 2, 0),
    ("data.scale_range", 2, 0.1), ("model.stage_sizes", 4, 1),
)


def to_dict(config: ConfigDict) -> dict:
    """Plain nested dict, lists for tuples: what JSON gives back."""
    return json.loads(config.to_json())


class Split(NamedTuple):
    """The samples of one domain's split, with what the pipeline needs to read them."""

    name: str  # of its scores: the domain, with the role where both domains are of one kind
    domain: str
    split: str
    size: tuple[int, int]
    samples: list[domains.Sample]


def check(config: ConfigDict) -> None:
    """Raises UserError for values that cannot be meant."""
    try:
        labels.classes(config.num_classes)
    except ValueError as error:
        raise UserError(str(error)) from None
    for key, length, least in LISTS:
        group, name = key.split(".")
        value = config[group][name]
        numbers = all(isinstance(v, int | float) and v >= least for v in value)
        if len(value) != length or not numbers:
            raise UserError(
                f"{key} is {tuple(value)}; expected {length} numbers of at least {least}, as "
                f"'--config.{key}=({','.join([str(least)] * length)})'"
            )
    target = config.loss.target
    if target and target not in losses.TARGET_LOSSES:
        raise UserError(
            f"loss.target is {target!r}; expected one of {', '.join(losses.TARGET_LOSSES)}, or "
            "empty for generalisation"
        )
    if config.num_steps > config.optimizer.schedule_steps:
        raise UserError(
            f"num_steps is {config.num_steps}, after the end of the schedule. Set "
            f"--config.optimizer.schedule_steps to at least that (now "
            f"{config.optimizer.schedule_steps})"
        )
    for key in ("num_steps", "log_every_steps", "eval_every_steps", "checkpoint_every_steps"):
        if config[key] < 1:
            raise UserError(f"{key} is {config[key]}; expected at least 1")
    for key, size in (("batch_size", config.batch_size),
                      ("eval.batch_size", config.eval.batch_size)):
        if size < 1:
            raise UserError(f"{key} is {size}; expected at least 1")


def check_devices(config: ConfigDict) -> None:
    """Raises UserError if the training batch cannot be shared out evenly."""
    size, devices = config.batch_size, jax.device_count()
    if size % devices:
        raise UserError(f"batch_size is {size}; expected a multiple of the {devices} devices. Set "
                        f"--config.batch_size={max(devices, size - size % devices)}")


def open_splits(config: ConfigDict, log: Log) -> dict[str, Split]:
    """source, source_val and, if configured, target (for adaptation) and target_val."""

    def open_split(place, split, role, **options) -> Split:
        directory = os.path.join(config.data.root, place.dir)
        samples, notes = domains.list_samples(place.domain, directory, split, **options)
        log(f"{role:<17} {place.domain}/{split}: {len(samples)} images in {directory}"
            + "".join(f"; {note}" for note in notes))
        name = f"{place.domain}_{role.split()[0]}" if same_kind else place.domain
        return Split(name, place.domain, split, tuple(place.size), samples)

    source, target, limit = config.source, config.target, config.eval.max_images or None
    same_kind = source.domain == target.domain
    splits = {"source": open_split(source, source.train_split, "source")}
    if config.loss.target:
        splits["target"] = open_split(
            target, target.train_split, "target", require_labels=False
        )
    for role, place in (("source_val", source), ("target_val", target)):
        if role == "target_val" and not place.val_split:
            log("target validation none: target.val_split is empty")
            continue
        split = open_split(place, place.val_split, f"{role.replace('_', ' ')}idation"[:17])
        splits[role] = split._replace(samples=split.samples[:limit])
    return splits


def create_model(config: ConfigDict, parallel: Parallel) -> DeepLab:
    return network.create_model(
        **config.model,
        num_classes=config.num_classes,
        restitution_heads=restitution_weight(config) > 0,
        bn_axis_name=parallel.axis_name if config.sync_batch_norm else None,
    )


def restitution_weight(config: ConfigDict) -> float:
    """The loss compares the parts of the restitution; without one there is nothing to compare."""
    return config.loss.restitution_weight if config.model.norm_restitution == "snr" else 0.0


def _groups(config: ConfigDict) -> optim.Groups:
    return optim.param_groups(
        repeated_updates=config.optimizer.repeated_updates,
        train_snr=config.optimizer.train_snr,
        multi_level=config.loss.lambda_seg > 0,
        head_branches=config.model.head_branches,
        head_rate=config.optimizer.head_rate,
        snr_rate=config.optimizer.snr_rate,
    )


def create_optimizer(config: ConfigDict) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimiser and its base rate by step."""
    schedule = optim.poly_schedule(config.optimizer.base_rate, config.optimizer.schedule_steps)
    tx = optim.sgd(
        schedule,
        _groups(config),
        momentum=config.optimizer.momentum,
        weight_decay=config.optimizer.weight_decay,
    )
    return tx, schedule


def create_step(config: ConfigDict, model: DeepLab, tx, parallel: Parallel) -> Callable:
    """The compiled training step; it consumes the state it is given."""
    common = {
        "model": model,
        "optimizer": tx,
        "seed": config.seed,
        "lambda_seg": config.loss.lambda_seg,
        "restitution_weight": restitution_weight(config),
        "freeze_bn": config.freeze_bn,
        "axis_name": parallel.axis_name,
    }
    if not config.loss.target:
        return parallel.compile(make_source_step(**common), donate=0)
    target_loss = losses.TARGET_LOSSES[config.loss.target]
    options = {
        "iw_maxsquare": {"ratio": config.loss.iw_ratio},
        "iw_entropy": {"ratio": config.loss.iw_ratio},
        "hard": {"threshold": config.loss.threshold},
    }.get(config.loss.target, {})
    step = make_adaptation_step(
        **common,
        target_loss=partial(target_loss, **options),
        lambda_target=config.loss.lambda_target,
        guidance_threshold=config.loss.threshold,
    )
    return parallel.compile(step, donate=0)


def batches(config: ConfigDict, splits: dict[str, Split], start_step: int) -> Iterator[dict]:
    """The streams joined under the names of steps.py. Each domain's order has its own seed."""
    scale = tuple(config.data.scale_range)
    crop = tuple(config.data.crop)

    def stream(role: str, number: int, with_labels: bool) -> Iterator[dict]:
        split = splits[role]
        return pipeline.train_batches(
            split.samples, domain=split.domain, size=split.size, batch_size=config.batch_size,
            seed=2 * config.seed + number, start_step=start_step, num_classes=config.num_classes,
            with_labels=with_labels, scale_range=scale if scale != (1, 1) else None,
            crop=crop if any(crop) else None,
            shard_index=jax.process_index(), shard_count=jax.process_count(),
        )

    source = stream("source", 0, True)
    if "target" not in splits:
        for batch in source:
            yield {"source_image": batch["image"], "source_label": batch["label"]}
    for batch, target in zip(source, stream("target", 1, False), strict=True):
        yield {
            "source_image": batch["image"],
            "source_label": batch["label"],
            "target_image": target["image"],
        }
