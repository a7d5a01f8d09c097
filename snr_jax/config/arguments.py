"""The configuration as plain keyword arguments: one pure function per part of a run.

tests/config/test_keys.py says where each key arrives.
"""

import json
import math
import os
from functools import partial

from ml_collections import ConfigDict

from snr_jax.config.backbones import READINGS, kind_of
from snr_jax.core import augment, labels, losses, mixing
from snr_jax.core.colors import JITTERS, Jitter
from snr_jax.core.errors import UserError
from snr_jax.core.labels import Classes
from snr_jax.core.models.create import NETWORKS
from snr_jax.core.models.light_head import mask_size
from snr_jax.data import domains
from snr_jax.data.samples import Domain

TEACHER = "_teacher"  # the end of the names of its scores


def create_domains(config: ConfigDict) -> dict[str, Domain]:
    """The domains by side, source and target, with the places of their files.

    A set of one's own lies beside its file where `dir` is another domain's usual folder, which a
    configuration has by default. Raises UserError for a domain that does not exist, or whose own
    file cannot be read.
    """

    def create(spec: str, folder: str) -> Domain:
        beside = domains.is_own(spec) and (not folder or domains.is_usual(folder))
        return domains.create_domain(
            spec, None if beside else os.path.join(config.data.root, folder)
        )

    return {side: create(config[side].domain, config[side].dir) for side in ("source", "target")}


def split_name(config: ConfigDict, side: str) -> str:
    """What the scores of a side are called: its domain, with the side where both are called alike.

    So they are, too, where one is called as the other's teacher.
    """
    called = {side: domains.name_of(config[side].domain) for side in ("source", "target")}
    ends = ("", TEACHER) if has_teacher(config) else ("",)
    scored = {name + end for name in called.values() for end in ends}
    alike = config.target.val_split and len(scored) < 2 * len(ends)
    if alike or config.source.domain == config.target.domain:
        return f"{called[side]}_{side}"
    return called[side]


def split_arguments(config: ConfigDict, role: str) -> dict:
    """Arguments of `open_split`, but for the domain and its classes.

    role: source, target, source_val or target_val.
    """
    side, _, validation = role.partition("_")
    place = config[side]
    return {
        "split": place.val_split if validation else place.train_split,
        "size": tuple(place.size),
        "require_labels": role != "target",
        "prepared_in": "" if validation else config.data.prepared,
        "scale_range": None if validation else scale_range(config),
        "max_images": config.eval.max_images if validation else 0,
    }


def stream_arguments(config: ConfigDict, role: str) -> dict:
    """Arguments of `pipeline.train_batches`. Each domain's order has its own seed."""
    return {
        "batch_size": config.batch_size,
        "seed": 2 * config.seed + ("source", "target").index(role),
        "with_labels": role == "source",
        "scale_range": scale_range(config),
        "crop": tuple(config.data.crop) if any(config.data.crop) else None,
        "mirror": config.data.mirror,
        "crop_class_share": config.data.crop_class_share if role == "source" else 1.0,
        "rim": rim(config) if role == "target" else None,
    }


def scale_range(config: ConfigDict) -> tuple[float, float] | None:
    """The range, None where every image has the training size."""
    found = tuple(config.data.scale_range)
    return found if found != (1, 1) else None


def rim(config: ConfigDict) -> tuple[float, ...] | None:
    """What of a target image gets no pseudo label, None where nothing is left out."""
    found = tuple(config.mix.rim_left_out)
    return found if has_teacher(config) and any(found) else None


def rare_arguments(config: ConfigDict) -> dict:
    """Arguments of `rare.rare_classes`."""
    return {
        "temperature": config.source.rare_class_temperature,
        "min_pixels": config.source.rare_class_pixels,
    }


def model_arguments(config: ConfigDict, axis_name: str | None) -> dict:
    """Arguments of `create_model`. axis_name: of the devices, None for one."""
    kind = kind_of(config)
    synchronised = {"bn_axis_name": axis_name if config.sync_batch_norm else None}
    return {
        **{key: config.model[key] for key in ("backbone", "dtype", "remat")},
        **READINGS[kind].arguments(config),
        **(synchronised if hasattr(NETWORKS[kind], "bn_axis_name") else {}),
        "num_classes": config.num_classes,
        "restitution_heads": restitution_weight(config) > 0,
    }


def initial_arguments(config: ConfigDict) -> dict:
    """Arguments of `network.initialize`."""
    return {key: config[key] for key in ("seed", "init_from", "reset_heads")}


def schedule_arguments(config: ConfigDict) -> dict:
    """Arguments of `optim.poly_schedule`."""
    optimizer = config.optimizer
    times = math.sqrt(config.batch_size) if optimizer.rate_by_batch else 1
    return {
        "base_rate": optimizer.base_rate * times,
        "num_steps": optimizer.schedule_steps,
        "power": optimizer.schedule_power,
        "warmup_steps": optimizer.warmup_steps,
    }


def groups_arguments(config: ConfigDict) -> dict:
    """Arguments of the network's function in `optim.GROUPS`."""
    keys = ("train_snr", "backbone_rate", "head_rate", "snr_rate")
    rates = {key: config.optimizer[key] for key in keys}
    return rates | READINGS[kind_of(config)].groups(config)


def optimizer_arguments(config: ConfigDict) -> dict:
    """Arguments of the optimiser that `optimizer.kind` chooses, of `optim`."""
    optimizer = config.optimizer
    found = {"weight_decay": optimizer.weight_decay}
    if optimizer.kind == "adamw":
        return found | {"betas": tuple(optimizer.betas)}
    return found | {"momentum": optimizer.momentum}


def step_arguments(config: ConfigDict) -> dict:
    """Arguments of the factory that `step_factory` chooses."""
    seen = {"preprocessing": NETWORKS[kind_of(config)].backbone.preprocessing}
    arguments = {
        "seed": config.seed,
        "restitution_weight": restitution_weight(config),
        "freeze_bn": config.freeze_bn,
        "accumulate_steps": config.accumulate_steps,
        "prepare_source": partial(augment.augment, with_blur=config.data.blur, **seen,
                                  jitter=jitter(config), strong_blur=config.data.strong_blur),
    }
    if config.loss.target:
        arguments["prepare_target"] = partial(augment.augment, with_blur=config.data.blur, **seen)
    if has_teacher(config):
        mix = config.mix
        return arguments | {
            "lambda_target": config.loss.lambda_target,
            "teacher_momentum": mix.teacher_momentum, "teacher_count": mix.teacher_count,
            "teacher_mode": mix.teacher_mode, "teacher_flip": mix.teacher_flip,
            "threshold": mix.threshold, "weight": mix.weight, "class_share": mix.class_share,
            "rows_left_out": tuple(mix.rows_left_out), "statistics": mix.statistics,
            "masked_weight": mix.masked_weight,
            "strengthen": partial(mixing.strong_augment, with_jitter=mix.jitter, **seen,
                                  with_blur=mix.blur, strength=mix.jitter_strength),
            "mask": partial(mixing.mask_tokens, grid=mask_size, ratio=mix.mask_ratio)
            if mix.mask == "tokens" else
            partial(mixing.mask_blocks, block=mix.mask_block, ratio=mix.mask_ratio),
        }  # fmt: skip
    arguments["lambda_seg"] = config.loss.lambda_seg
    if not config.loss.target:
        return arguments
    options = {
        "iw_maxsquare": {"ratio": config.loss.iw_ratio},
        "iw_entropy": {"ratio": config.loss.iw_ratio},
        "hard": {"threshold": config.loss.threshold},
    }.get(config.loss.target, {})
    return arguments | {
        "target_loss": partial(losses.TARGET_LOSSES[config.loss.target], **options),
        "lambda_target": config.loss.lambda_target,
        "guidance_threshold": config.loss.threshold,
    }


def jitter(config: ConfigDict) -> Jitter | None:
    """How the source's colours change: of a published setting, or the configuration's own."""
    if config.data.jitter == "custom":
        return Jitter(*config.data.jitter_strengths, probability=config.data.jitter_probability)
    return JITTERS.get(config.data.jitter)


def evaluation_arguments(config: ConfigDict) -> dict:
    """Arguments of `evaluate`, in a validation."""
    return {"batch_size": config.eval.batch_size, "flip": config.eval.flip}


def restitution_weight(config: ConfigDict) -> float:
    """The weight, 0 where there is no restitution whose parts the loss could compare."""
    found = READINGS[kind_of(config)].arguments(config)["norm_restitution"]
    return config.loss.restitution_weight if found == "snr" else 0.0


def has_teacher(config: ConfigDict) -> bool:
    """Whether the state of a run holds a mean teacher."""
    return config.loss.target == "classmix"


def create_classes(num_classes: int, source: Domain) -> Classes:
    """The classes of the network: those of the source's own file, or of a protocol.

    Raises UserError for a number that neither has.
    """
    own = source.classes
    if own is None:
        try:
            return labels.classes(num_classes)
        except ValueError as error:
            raise UserError(f"{error}, or those of a source domain's own file") from None
    if len(own) != num_classes:
        raise UserError(
            f"num_classes is {num_classes} and {source.spec} has {len(own)} classes; set "
            f"--config.num_classes={len(own)}"
        )
    return own


def to_dict(config: ConfigDict) -> dict:
    """Plain nested dict, lists for tuples: what JSON gives back."""
    return json.loads(config.to_json())
