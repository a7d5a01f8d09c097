"""From a configuration to what a run consists of: data, network, optimiser, step, streams."""

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import optax
from ml_collections import ConfigDict

from snr_jax.config import arguments
from snr_jax.config.backbones import kind_of
from snr_jax.core import optim
from snr_jax.core.models.create import Network
from snr_jax.core.models.create import create_model as create_network
from snr_jax.core.parallel import Parallel
from snr_jax.core.progress import make_progress
from snr_jax.core.self_training import make_classmix_step
from snr_jax.core.steps import make_adaptation_step, make_source_step
from snr_jax.data import pipeline, rare
from snr_jax.data.faults import look as data_look
from snr_jax.data.prepared import reading
from snr_jax.data.rare import RareClasses
from snr_jax.data.splits import Split, open_split
from snr_jax.workdir import states
from snr_jax.workdir.metrics import Writer

logger = logging.getLogger(__name__)


class Tools(NamedTuple):
    """What the loop of a run works with."""

    model: Network
    parallel: Parallel
    schedule: optax.Schedule
    manager: states.Manager
    writer: Writer


def open_splits(config: ConfigDict) -> dict[str, Split]:
    """source, source_val and, if configured, target (for adaptation) and target_val.

    Raises UserError for domains, classes, folders and splits that cannot be read.
    """
    sides = arguments.create_domains(config)
    classes = arguments.create_classes(config.num_classes, sides["source"])

    def opened(role: str) -> Split:
        side = role.partition("_")[0]
        split = open_split(
            sides[side], classes=classes, **arguments.split_arguments(config, role)
        )
        return split._replace(name=arguments.split_name(config, side))

    training = ["source", *(["target"] if config.loss.target else [])]
    splits = {role: opened(role) for role in (*training, "source_val")}
    if config.data.prepared and not any(split.prepared for split in splits.values()):
        wanted = [(splits[role].domain.name, splits[role].size) for role in training]
        reading.refuse(config.data.prepared, wanted)
    if config.target.val_split:
        splits["target_val"] = opened("target_val")
    return splits


def describe(splits: Mapping[str, Split]) -> list[str]:
    """A line for every split, and one where none is scored on the target."""
    titles = {role: role.replace("_val", " validation")[:17] for role in splits}
    lines = [f"{titles[role]:<17} {split.told}" for role, split in splits.items()]
    if "target_val" not in splits:
        lines.append("target validation none: target.val_split is empty")
    return lines


def look(splits: Mapping[str, Split]) -> None:
    """A quick look at every split, before work begins; raises UserError for what it cannot use."""
    warnings = []
    for role, split in splits.items():
        if split.prepared:  # every file was read when it was made
            if role == "source":
                warnings += data_look.look_at_prepared(
                    split.prepared, len(split.samples), split.labels)
            warnings += data_look.look_at_sizes(
                split.labels.domain, split.samples, split.prepared.sizes, split.size)
            continue
        show = make_progress(f"a look at {role}: images", logger)
        warnings += data_look.look(
            split.samples, split.labels,
            size=split.size, training=role == "source",
            with_labels=role != "target",  # training does not read a target's labels
            progress=lambda done, total, show=show: done < total and show(done, total),
        )
    warnings += data_look.shared({role: split.samples for role, split in splits.items()})
    for warning in warnings:
        logger.warning(warning)


def create_model(config: ConfigDict, parallel: Parallel) -> Network:
    return create_network(**arguments.model_arguments(config, parallel.axis_name))


def create_optimizer(config: ConfigDict) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimiser and its base rate by step."""
    schedule = optim.poly_schedule(**arguments.schedule_arguments(config))
    groups = optim.GROUPS[kind_of(config)](**arguments.groups_arguments(config))
    make = optim.adamw if config.optimizer.kind == "adamw" else optim.sgd
    return make(schedule, groups, **arguments.optimizer_arguments(config)), schedule


def step_factory(config: ConfigDict) -> Callable:
    if arguments.has_teacher(config):
        return make_classmix_step
    return make_adaptation_step if config.loss.target else make_source_step


def create_step(
    config: ConfigDict, model: Network, tx: optax.GradientTransformation, parallel: Parallel,
    **options: Any,
) -> Callable:
    """The compiled training step; it consumes the state it is given.

    options: of its factory, in place of those of the configuration.
    """
    options = arguments.step_arguments(config) | options
    step = step_factory(config)(
        model=model, tx=tx, axis_name=parallel.axis_name, **options)
    return parallel.compile(step, donate=0)


def rare_classes(config: ConfigDict, source: Split) -> RareClasses | None:
    """How source images are drawn by their classes, where that is asked for."""
    if not config.source.rare_class_temperature:
        return None
    show = make_progress("counting the classes of source labels", logger)
    counts = rare.count_classes(source.samples, source.labels, source.domain.directory, show=show)
    found = rare.rare_classes(counts, **arguments.rare_arguments(config))
    logger.info("rare classes      drawn most, in %%: %s", rare.describe(found, source.labels))
    return found


def batches(
    config: ConfigDict, splits: Mapping[str, Split], start_step: int,
    rare_classes: RareClasses | None = None,
) -> Iterator[dict]:
    """The streams joined under the names of steps.py."""

    def stream(role: str) -> Iterator[dict]:
        split = splits[role]
        return pipeline.train_batches(
            split.samples, split.labels, size=split.size, start_step=start_step,
            shard_index=jax.process_index(), shard_count=jax.process_count(),
            prepared=split.prepared, rare=rare_classes if role == "source" else None,
            **arguments.stream_arguments(config, role),
        )

    def named(source: dict) -> dict:
        return {"source_image": source["image"], "source_label": source["label"]}

    if "target" not in splits:
        yield from map(named, stream("source"))
        return
    for source, target in zip(stream("source"), stream("target"), strict=True):
        yield named(source) | {
            f"target_{key}": target[key] for key in ("image", "extent", "inside") if key in target
        }
