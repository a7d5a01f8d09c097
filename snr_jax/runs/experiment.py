"""From a configuration to what a run consists of: data, network, optimiser, step, streams."""

import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import optax
from ml_collections import ConfigDict

from snr_jax.core import labels, optim
from snr_jax.core.errors import UserError
from snr_jax.core.labels import Classes
from snr_jax.core.models.deeplab import DeepLab
from snr_jax.core.parallel import Parallel
from snr_jax.core.progress import make_progress
from snr_jax.core.self_training import make_classmix_step
from snr_jax.core.steps import make_adaptation_step, make_source_step
from snr_jax.data import domains, pipeline, prepared, rare
from snr_jax.data import look as data_look
from snr_jax.data.prepared import Prepared
from snr_jax.data.rare import RareClasses
from snr_jax.data.samples import Labels, Sample
from snr_jax.runs import arguments, keys, network

Log = Callable[[str], None]


def to_dict(config: ConfigDict) -> dict:
    """Plain nested dict, lists for tuples: what JSON gives back."""
    return json.loads(config.to_json())


class Split(NamedTuple):
    """The samples of one domain's split, with what the pipeline needs to read them."""

    name: str  # of its scores: the domain, with the role where both domains are of one kind
    domain: str
    split: str
    size: tuple[int, int]
    samples: list[Sample]
    labels: Labels
    prepared: Prepared | None = None  # where training reads the samples at `size`; None: the files

    def first(self, count: int) -> "Split":
        """The first samples, in the order of the ids; all for 0."""
        return self._replace(samples=self.samples[: count or None])


def check(config: ConfigDict) -> None:
    """Raises UserError for values that cannot be meant."""
    keys.check(config)
    create_classes(config)
    if config.num_steps > config.optimizer.schedule_steps:
        raise UserError(
            f"num_steps is {config.num_steps}, after the end of the schedule. Set "
            f"--config.optimizer.schedule_steps to at least that (now "
            f"{config.optimizer.schedule_steps})"
        )
    if arguments.has_teacher(config):
        _check_mix(config)


def _check_mix(config: ConfigDict) -> None:
    """Raises UserError for a class mixing that cannot be."""
    source, target = tuple(config.source.size), tuple(config.target.size)
    if not any(config.data.crop) and source != target:
        raise UserError(
            f"loss.target is classmix, which pastes parts of source images of {source} into target "
            f"images of {target}: both must have one size. Set a crop, as '--config.data.crop="
            "(512,512)', or equal sizes"
        )
    height = (tuple(config.data.crop) if any(config.data.crop) else target)[0]
    if sum(config.mix.rows_left_out) >= height:
        raise UserError(f"mix.rows_left_out is {tuple(config.mix.rows_left_out)}; expected less "
                        f"than the {height} rows of the images together")
    if config.loss.lambda_seg:
        raise UserError(
            f"loss.lambda_seg is {config.loss.lambda_seg}: the guidance of the auxiliary head "
            "belongs to the other target losses. Set --config.loss.lambda_seg=0"
        )


def check_devices(config: ConfigDict) -> None:
    """Raises UserError if the training batch cannot be shared out evenly."""
    size, devices, steps = config.batch_size, jax.device_count(), config.accumulate_steps
    parts = devices * steps
    if size % parts:
        of = f"{devices} devices" + (f" x accumulate_steps {steps}" if steps > 1 else "")
        raise UserError(f"batch_size is {size}; expected a multiple of {parts} ({of}). Set "
                        f"--config.batch_size={max(parts, size - size % parts)}")


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
        prepared.refuse(config.data.prepared, [(s.labels.domain, s.size) for s in training])
    if config.target.val_split:
        return splits | {"target_val": opened("target_val")}
    log("target validation none: target.val_split is empty")
    return splits


def open_split(
    *, domain: str, directory: str, split: str, size: tuple[int, int], classes: Classes,
    require_labels: bool, max_images: int, log: Log, prepared_in: str = "",
    scale_range: tuple[float, float] | None = None,
) -> Split:
    """One split, named after its domain; log gets a line about it. prepared_in: a folder or ""."""
    known = domains.get_domain(domain)
    if prepared_in and (found := prepared.open_prepared(
        prepared_in, known, directory, split, size=size, classes=classes, scale_range=scale_range
    )):
        samples, labels, where = found
        log(f"{labels.domain}/{split}: {len(samples)} images, prepared in {where.folder}")
        return Split(labels.domain, domain, split, size, samples, labels, where).first(max_images)
    samples, labels, notes = domains.list_samples(
        domain, directory, split, classes=classes, require_labels=require_labels
    )
    log(f"{labels.domain}/{split}: {len(samples)} images in {directory}"
        + "".join(f"; {note}" for note in notes))
    return Split(labels.domain, domain, split, size, samples, labels).first(max_images)


def create_classes(config: ConfigDict) -> Classes:
    """The classes of the network: those of the source's own file, or of a protocol."""
    own = domains.get_domain(config.source.domain).classes
    if own is None:
        try:
            return labels.classes(config.num_classes)
        except ValueError as error:
            raise UserError(f"{error}, or those of a source domain's own file") from None
    if len(own) != config.num_classes:
        raise UserError(
            f"num_classes is {config.num_classes} and {config.source.domain} has {len(own)} "
            f"classes; set --config.num_classes={len(own)}"
        )
    return own


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
    return network.create_model(**arguments.model_arguments(config, parallel.axis_name))


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
    for batch, target in zip(source, stream("target"), strict=True):
        yield {
            "source_image": batch["image"],
            "source_label": batch["label"],
            "target_image": target["image"],
        }
