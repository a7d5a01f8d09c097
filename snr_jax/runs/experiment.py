"""From a configuration to what a run consists of: data, network, optimiser, step, streams."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from snr_jax.config import arguments
from snr_jax.config.arguments import create_classes
from snr_jax.core import optim
from snr_jax.core.models.create import create_model as create_network
from snr_jax.core.models.deeplab import DeepLab
from snr_jax.core.parallel import Parallel
from snr_jax.core.progress import make_progress
from snr_jax.core.self_training import make_classmix_step
from snr_jax.core.steps import make_adaptation_step, make_source_step
from snr_jax.data import pipeline, rare
from snr_jax.data.faults import look as data_look
from snr_jax.data.prepared import reading
from snr_jax.data.rare import RareClasses
from snr_jax.data.splits import Log, Split, open_split

# ---------------------------------------------------------------- what a run consists of


def open_splits(config: ConfigDict, log: Log) -> dict[str, Split]:
    """source, source_val and, if configured, target (for adaptation) and target_val."""
    same_kind = config.source.domain == config.target.domain
    classes = create_classes(config)

    def opened(role: str) -> Split:
        title = role.replace("_val", " validation")[:17]
        split = open_split(
            **arguments.split_arguments(config, role), classes=classes,
            log=lambda line: log(f"{title:<17} {line}"),
        )
        return split._replace(name=f"{split.name}_{role.split('_')[0]}") if same_kind else split

    roles = ["source", *(["target"] if config.loss.target else []), "source_val"]
    splits = {role: opened(role) for role in roles}
    if config.data.prepared and not any(split.prepared for split in splits.values()):
        training = [splits[role] for role in roles if not role.endswith("_val")]
        reading.refuse(config.data.prepared, [(s.labels.domain, s.size) for s in training])
    if config.target.val_split:
        return splits | {"target_val": opened("target_val")}
    log("target validation none: target.val_split is empty")
    return splits


def look(splits: dict[str, Split], log: Log) -> None:
    """A quick look at every split, before work begins; raises UserError for what it cannot use."""
    warnings = []
    for role, split in splits.items():
        if split.prepared:  # every file was read when it was made
            continue
        show = make_progress(f"a look at {role}: images", log)
        warnings += data_look.look(
            split.samples, split.labels,
            with_labels=role != "target",  # training does not read a target's labels
            progress=lambda done, total, show=show: done < total and show(done, total),
        )
    warnings += data_look.shared({role: split.samples for role, split in splits.items()})
    for warning in warnings:
        log(f"WARNING {warning}")


def create_model(config: ConfigDict, parallel: Parallel) -> DeepLab:
    return create_network(**arguments.model_arguments(config, parallel.axis_name))


def create_optimizer(config: ConfigDict) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimiser and its base rate by step."""
    schedule = optim.poly_schedule(**arguments.schedule_arguments(config))
    groups = optim.param_groups(**arguments.groups_arguments(config))
    return optim.sgd(schedule, groups, **arguments.sgd_arguments(config)), schedule


def step_factory(config: ConfigDict) -> Callable:
    if arguments.has_teacher(config):
        return make_classmix_step
    return make_adaptation_step if config.loss.target else make_source_step


def create_step(
    config: ConfigDict, model: DeepLab, tx: optax.GradientTransformation, parallel: Parallel,
    **options: Any,
) -> Callable:
    """The compiled training step; it consumes the state it is given.

    options: of its factory, in place of those of the configuration.
    """
    options = arguments.step_arguments(config) | options
    step = step_factory(config)(
        model=model, optimizer=tx, axis_name=parallel.axis_name, **options)
    return parallel.compile(step, donate=0)


def rare_classes(config: ConfigDict, splits: dict[str, Split], log: Log) -> RareClasses | None:
    """How source images are drawn by their classes, where that is asked for."""
    if not config.source.rare_class_temperature:
        return None
    source = splits["source"]
    show = make_progress("counting the classes of source labels", log)
    directory = arguments.split_arguments(config, "source")["directory"]
    counts = rare.count_classes(source.samples, source.labels, directory, show=show, log=log)
    found = rare.rare_classes(counts, **arguments.rare_arguments(config))
    log(f"rare classes      drawn most, in %: {rare.describe(found, source.labels)}")
    return found


def batches(
    config: ConfigDict, splits: dict[str, Split], start_step: int,
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

    source = stream("source")
    if "target" not in splits:
        for batch in source:
            yield {"source_image": batch["image"], "source_label": batch["label"]}
        return
    for batch, target in zip(source, stream("target"), strict=True):
        yield {
            "source_image": batch["image"],
            "source_label": batch["label"],
            "target_image": target["image"],
        }
