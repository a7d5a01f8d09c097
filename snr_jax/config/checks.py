"""Refusals of what no configuration may ask for, beyond the values of each key."""

import jax
from ml_collections import ConfigDict

from snr_jax.config import arguments, keys
from snr_jax.core.errors import UserError


def check(config: ConfigDict) -> None:
    """Raises UserError for values that cannot be meant."""
    keys.check(config)
    if config.num_steps > config.optimizer.schedule_steps:
        raise UserError(
            f"num_steps is {config.num_steps}, after the end of the schedule. Set "
            f"--config.optimizer.schedule_steps to at least that (now "
            f"{config.optimizer.schedule_steps})"
        )
    _check_jitter(config)
    if arguments.has_teacher(config):
        _check_mix(config)


def _check_jitter(config: ConfigDict) -> None:
    """Raises UserError for strengths of a jitter that has its own, or none."""
    for key in ("jitter_strengths", "jitter_probability"):
        value, default = config.data[key], keys.KEYS[f"data.{key}"].default
        changed = tuple(value) != default if isinstance(default, tuple) else value != default
        if changed and config.data.jitter != "custom":
            raise UserError(f"data.{key} is {value!r}, and data.jitter is {config.data.jitter!r}, "
                            "which does not read it. Set --config.data.jitter=custom")


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
