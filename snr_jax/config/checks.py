"""Refusals of what no configuration may ask for, beyond the values of each key."""

from typing import Any

import jax
from ml_collections import ConfigDict

from snr_jax.config import arguments, keys
from snr_jax.config.backbones import READINGS, kind_of
from snr_jax.core.errors import UserError
from snr_jax.core.models.create import create_model


def check(config: ConfigDict) -> None:
    """Raises UserError for values that cannot be meant."""
    keys.check(config)
    if config.num_steps > config.optimizer.schedule_steps:
        raise UserError(
            f"num_steps is {config.num_steps}, after the end of the schedule. Set "
            f"--config.optimizer.schedule_steps to at least that (now "
            f"{config.optimizer.schedule_steps})"
        )
    _check_backbone(config)
    _check_optimizer(config)
    custom = config.data.jitter == "custom"
    for key in ("data.jitter_strengths", "data.jitter_probability"):
        _refuse_unread(config, key, custom, "data.jitter", "custom")
    _check_crop(config)
    if arguments.has_teacher(config):
        _check_mix(config)


def _is_changed(config: ConfigDict, key: str) -> bool:
    value, default = keys.values(config)[key], keys.KEYS[key].default
    return tuple(value) != default if isinstance(default, tuple) else value != default


def _refuse_unread(config: ConfigDict, key: str, is_read: bool, by: str, remedy: Any) -> None:
    """Raises UserError for a key that is set and not read, since the key `by` is not `remedy`."""
    values = keys.values(config)
    if _is_changed(config, key) and not is_read:
        raise UserError(f"{key} is {values[key]!r}, and {by} is {values[by]!r}, which does not "
                        f"read it. Set --config.{by}={remedy}")


def _check_backbone(config: ConfigDict) -> None:
    """Raises UserError for what a network of this kind does not have."""
    name, kind = config.model.backbone, kind_of(config)
    values, unread = keys.values(config), READINGS[kind].unread
    if changed := [key for key in unread if _is_changed(config, key)]:
        found = "; ".join(f"{key} is {values[key]!r}, and model.backbone {name} {unread[key]}"
                          for key in changed)
        defaults = " ".join(f"'--config.{key}={keys.KEYS[key].default}'" for key in changed)
        raise UserError(f"{found}. Leave them at their defaults, {defaults.replace(', ', ',')}, or "
                        f"choose another backbone (docs/backbones.md)")
    if kind == "dinov2":
        _check_transformer(config)
    if kind == "resnet" and config.mix.mask == "tokens":
        raise UserError(f"mix.mask is 'tokens', and model.backbone {name} is no transformer. Set "
                        "--config.mix.mask=blocks")
    try:  # sizes that do not fit together
        create_model(**arguments.model_arguments(config, None))
    except UserError as error:
        size = f" (model.vit_size, channels, blocks and heads, is {tuple(config.model.vit_size)})"
        raise UserError(f"{error}{size if kind == 'dinov2' else ''}") from None


def _check_transformer(config: ConfigDict) -> None:
    """Raises UserError for what a transformer leaves unread."""
    model = config.model
    if config.optimizer.repeated_updates:
        raise UserError(
            "optimizer.repeated_updates is True, which is how the release trains a ResNet, and "
            f"model.backbone is {model.backbone}. Set --config.optimizer.repeated_updates=False")
    after = tuple(model.snr_after)
    if after and model.norm_restitution == "none":
        raise UserError(f"model.snr_after is {after}, and model.norm_restitution is 'none'. Set "
                        "--config.model.norm_restitution=snr, or '--config.model.snr_after=()'")
    if not after and model.norm_restitution == "in":
        raise UserError("model.norm_restitution is 'in', and model.snr_after names no block that "
                        "it follows. Set '--config.model.snr_after=(2,5)', as far as there are "
                        "such blocks")


def _check_optimizer(config: ConfigDict) -> None:
    """Raises UserError for an optimiser that cannot be, or that does not read what is set."""
    optimizer = config.optimizer
    if optimizer.warmup_steps >= optimizer.schedule_steps:
        raise UserError(f"optimizer.warmup_steps is {optimizer.warmup_steps}; expected less than "
                        f"the {optimizer.schedule_steps} steps of the schedule. Set "
                        "--config.optimizer.warmup_steps to fewer, 0 for none")
    for key, kind in (("optimizer.momentum", "sgd"), ("optimizer.betas", "adamw")):
        _refuse_unread(config, key, optimizer.kind == kind, "optimizer.kind", kind)
    if optimizer.kind == "adamw" and optimizer.repeated_updates:
        raise UserError("optimizer.repeated_updates is True, and optimizer.kind is 'adamw': "
                        "repeated updates are SGD's alone. Set "
                        "--config.optimizer.repeated_updates=False")


def _check_crop(config: ConfigDict) -> None:
    """Raises UserError for a choice among crops where there is one alone."""
    is_cropped = any(config.data.crop) or arguments.scale_range(config)
    if config.data.crop_class_share < 1 and not is_cropped:
        raise UserError(
            f"data.crop_class_share is {config.data.crop_class_share}, and images are trained on "
            "as a whole. Set a crop, as '--config.data.crop=(512,512)', or "
            "--config.data.crop_class_share=1"
        )


def _check_mix(config: ConfigDict) -> None:
    """Raises UserError for a class mixing that cannot be."""
    source, target = tuple(config.source.size), tuple(config.target.size)
    if not any(config.data.crop) and source != target:
        raise UserError(
            f"loss.target is classmix, which pastes parts of source images of {source} into target "
            f"images of {target}: both must have one size. Set a crop, as '--config.data.crop="
            "(512,512)', or equal sizes"
        )
    height, width = tuple(config.data.crop) if any(config.data.crop) else target
    if sum(config.mix.rows_left_out) >= height:
        raise UserError(f"mix.rows_left_out is {tuple(config.mix.rows_left_out)}; expected less "
                        f"than the {height} rows of the images together")
    top, bottom, left, right = config.mix.rim_left_out
    if max(top + bottom, left + right) >= 1:
        raise UserError(f"mix.rim_left_out is {tuple(config.mix.rim_left_out)}; expected less than "
                        "1 of top and bottom together, and of left and right. Set "
                        "'--config.mix.rim_left_out=(0.03,0.25,0.03,0.03)'")
    _refuse_unread(config, "mix.jitter_strength", config.mix.jitter, "mix.jitter", True)
    _check_mask(config, height, width)
    if config.loss.lambda_seg:
        raise UserError(
            f"loss.lambda_seg is {config.loss.lambda_seg}: the guidance of the auxiliary head "
            "belongs to the other target losses. Set --config.loss.lambda_seg=0"
        )


def _check_mask(config: ConfigDict, height: int, width: int) -> None:
    """Raises UserError for a mask that nothing reads, or of blocks beyond the images."""
    for key in ("mix.mask", "mix.mask_block", "mix.mask_ratio"):
        _refuse_unread(config, key, config.mix.masked_weight > 0, "mix.masked_weight", 1)
    in_blocks = config.mix.mask == "blocks"
    _refuse_unread(config, "mix.mask_block", in_blocks, "mix.mask", "blocks")
    shorter = min(height, width)
    if config.mix.masked_weight and in_blocks and config.mix.mask_block > shorter:
        raise UserError(f"mix.mask_block is {config.mix.mask_block}; expected at most {shorter}, "
                        f"the shorter side of the images of {height}x{width}. Set "
                        f"--config.mix.mask_block={max(shorter // 16, 1)}")


def check_devices(config: ConfigDict) -> None:
    """Raises UserError if the training batch cannot be shared out evenly."""
    size, devices, steps = config.batch_size, jax.device_count(), config.accumulate_steps
    parts = devices * steps
    if size % parts:
        of = f"{devices} devices" + (f" x accumulate_steps {steps}" if steps > 1 else "")
        raise UserError(f"batch_size is {size}; expected a multiple of {parts} ({of}). Set "
                        f"--config.batch_size={max(parts, size - size % parts)}")
