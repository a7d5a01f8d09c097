"""Every key of a configuration: what it may hold, and where its value goes."""

import difflib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from snr_jax.core.errors import UserError
from snr_jax.core.losses import TARGET_LOSSES
from snr_jax.core.models.create import ATROUS, DTYPES
from snr_jax.core.models.deeplab import NORM_RESTITUTIONS
from snr_jax.core.self_training import STATISTICS, TEACHER_MODES, WEIGHTS
from snr_jax.data.domains import DOMAINS


class Legal(NamedTuple):
    """The values that a key may hold: in words, as messages and comments have them, and a test."""

    kind: str  # with the space before the range
    range: str
    accepts: Callable[[Any], bool]
    example: str = ""


class Key(NamedTuple):
    """arrives: "PART.ARGUMENT" for every argument of `arguments.PART_arguments` that it changes.

    Empty for the keys that train.py reads itself.
    """

    legal: Legal
    arrives: tuple[str, ...] = ()


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def _range(least: float, most: float) -> str:
    return f"at least {least}" if most == math.inf else f"{least} to {most}"


def whole(least: int, most: float = math.inf) -> Legal:
    def accepts(value: Any) -> bool:
        return _is_whole(value) and least <= value <= most

    return Legal("a whole number, ", _range(least, most), accepts)


def number(least: float, most: float, *, without: float | None = None) -> Legal:
    """without: the one of the bounds that is itself no legal value."""

    def accepts(value: Any) -> bool:
        return _is_number(value) and least <= value <= most and value != without

    words = _range(least, most) + (f", but not {without}" if without is not None else "")
    return Legal("a number, ", words, accepts)


def several(count: int, of: Legal, *, rising: bool = False, also: tuple | None = None) -> Legal:
    """`count` numbers, each within the range of `of`. also: a further value that is legal."""

    def accepts(value: Any) -> bool:
        if not isinstance(value, tuple | list) or len(value) != count:
            return False
        ordered = not rising or list(value) == sorted(value)
        return tuple(value) == also or (ordered and all(map(of.accepts, value)))

    kind = of.kind.removeprefix("a ").replace(", ", "s, ")
    kind = f"{count} {kind}" + ("the smaller first, " if rising else "")
    words = of.range + (f", or {also} for none" if also else "")
    least = of.range.removeprefix("at least ").split(" ")[0]
    return Legal(kind, words, accepts, f"({','.join([least] * count)})")


def one_of(*values: Any) -> Legal:
    def accepts(value: Any) -> bool:
        return any(type(value) is type(v) and value == v for v in values)

    return Legal("one of ", ", ".join(str(v) or '""' for v in values), accepts)


def text(*, empty: bool) -> Legal:
    def accepts(value: Any) -> bool:
        return isinstance(value, str) and (empty or bool(value.strip()))

    return Legal("a text" if empty else "a text that is not empty", "", accepts)


def _is_domain(value: Any) -> bool:
    return value in DOMAINS or (isinstance(value, str) and value.endswith((".yaml", ".yml")))


DOMAIN = Legal("one of ", f"{', '.join(DOMAINS)}, or a file as my_domain.yaml", _is_domain)
SWITCH = Legal("True or False", "", lambda value: isinstance(value, bool))
SIDES = several(2, whole(33, 8192))
STEPS = whole(1, 1_000_000_000)
STREAMS = "source_stream", "target_stream"
SPLITS = "source_split", "target_split", "source_val_split", "target_val_split"


def _in(parts: tuple[str, ...], argument: str) -> tuple[str, ...]:
    return tuple(f"{part}.{argument}" for part in parts)


KEYS = {
    "recipe": Key(text(empty=False)),
    "seed": Key(
        whole(0, 1_000_000_000), ("initial.seed", "step.seed", *_in(STREAMS, "seed"))),
    "num_classes": Key(
        whole(2, 254), ("model.num_classes",)),
    "init_from": Key(text(empty=True), ("initial.init_from",)),
    "model.norm_restitution": Key(
        one_of(*NORM_RESTITUTIONS),
        ("model.norm_restitution", "model.restitution_heads", "step.restitution_weight")),
    "model.stage_sizes": Key(several(4, whole(1, 100)), ("model.stage_sizes",)),
    "model.width": Key(whole(4, 1024), ("model.width",)),
    "model.head_branches": Key(
        one_of(2, 4), ("model.head_branches", "groups.head_branches")),
    "model.stride_in": Key(one_of("conv1", "conv2"), ("model.stride_in",)),
    "model.dtype": Key(one_of("auto", *DTYPES), ("model.dtype",)),
    "model.atrous": Key(one_of("auto", *ATROUS), ("model.atrous",)),
    "model.remat": Key(SWITCH, ("model.remat",)),
    "data.root": Key(text(empty=False), ("domains.source_directory", "domains.target_directory")),
    "data.prepared": Key(text(empty=True), _in(SPLITS[:2], "prepared_in")),
    "data.scale_range": Key(
        several(2, number(0.1, 10), rising=True),
        _in((*SPLITS[:2], *STREAMS), "scale_range")),
    "data.crop": Key(several(2, whole(33, 8192), also=(0, 0)), _in(STREAMS, "crop")),
    "data.mirror": Key(SWITCH, _in(STREAMS, "mirror")),
    "data.blur": Key(SWITCH, ("step.prepare",)),
    "source.domain": Key(DOMAIN, ("domains.source_domain",)),
    "source.dir": Key(
        text(empty=True), ("domains.source_directory",)),
    "source.train_split": Key(text(empty=False), ("source_split.split",)),
    "source.val_split": Key(text(empty=False), ("source_val_split.split",)),
    "source.rare_class_temperature": Key(number(0, 100), ("rare.temperature",)),
    "source.rare_class_pixels": Key(whole(1), ("rare.min_pixels",)),
    "source.size": Key(SIDES, ("source_split.size", "source_val_split.size")),
    "target.domain": Key(DOMAIN, ("domains.target_domain",)),
    "target.dir": Key(
        text(empty=True), ("domains.target_directory",)),
    "target.train_split": Key(text(empty=False), ("target_split.split",)),
    "target.val_split": Key(text(empty=True), ("target_val_split.split",)),
    "target.size": Key(SIDES, ("target_split.size", "target_val_split.size")),
    "batch_size": Key(whole(1, 4096), _in(STREAMS, "batch_size")),
    "accumulate_steps": Key(whole(1, 4096), ("step.accumulate_steps",)),
    "sync_batch_norm": Key(SWITCH, ("model.bn_axis_name",)),
    "freeze_bn": Key(SWITCH, ("step.freeze_bn",)),
    "optimizer.base_rate": Key(number(0, 10, without=0), ("schedule.base_rate",)),
    "optimizer.schedule_steps": Key(STEPS, ("schedule.num_steps",)),
    "optimizer.momentum": Key(number(0, 1, without=1), ("sgd.momentum",)),
    "optimizer.weight_decay": Key(number(0, 1), ("sgd.weight_decay",)),
    "optimizer.head_rate": Key(number(0, 1000), ("groups.head_rate",)),
    "optimizer.snr_rate": Key(number(0, 1000), ("groups.snr_rate",)),
    "optimizer.train_snr": Key(SWITCH, ("groups.train_snr",)),
    "optimizer.repeated_updates": Key(SWITCH, ("groups.repeated_updates",)),
    "loss.restitution_weight": Key(
        number(0, 1000), ("model.restitution_heads", "step.restitution_weight")),
    "loss.lambda_seg": Key(number(0, 1000), ("step.lambda_seg", "groups.multi_level")),
    "loss.target": Key(one_of("", *TARGET_LOSSES, "classmix"), ("step.target_loss",)),
    "loss.lambda_target": Key(number(0, 1000), ("step.lambda_target",)),
    "loss.threshold": Key(number(0, 1), ("step.guidance_threshold", "step.target_loss")),
    "loss.iw_ratio": Key(number(0, 1), ("step.target_loss",)),
    "mix.teacher_momentum": Key(number(0, 1), ("step.teacher_momentum",)),
    "mix.teacher_mode": Key(one_of(*TEACHER_MODES), ("step.teacher_mode",)),
    "mix.threshold": Key(number(0, 1), ("step.threshold",)),
    "mix.weight": Key(one_of(*WEIGHTS), ("step.weight",)),
    "mix.class_share": Key(number(0, 1), ("step.class_share",)),
    "mix.rows_left_out": Key(several(2, whole(0, 8192)), ("step.rows_left_out",)),
    "mix.statistics": Key(one_of(*STATISTICS), ("step.statistics",)),
    "mix.jitter": Key(SWITCH, ("step.strengthen",)),
    "mix.blur": Key(SWITCH, ("step.strengthen",)),
    "num_steps": Key(STEPS),
    "log_every_steps": Key(whole(1)),
    "eval_every_steps": Key(whole(1)),
    "checkpoint_every_steps": Key(whole(1)),
    "keep_checkpoints": Key(whole(1)),
    "eval.batch_size": Key(whole(1, 4096), ("evaluation.batch_size",)),
    "eval.flip": Key(SWITCH, ("evaluation.flip",)),
    "eval.max_images": Key(
        whole(0), ("source_val_split.max_images", "target_val_split.max_images")),
    "eval.num_pictures": Key(whole(0)),
}  # fmt: skip


def values(config: ConfigDict) -> dict[str, Any]:
    """Key, as "model.width" → its value."""
    return flatten_dict(config.to_dict(), sep=".")


def check(config: ConfigDict) -> None:
    """Raises UserError for a key that is missing, unknown, or of a value that is not legal."""
    found = values(config)
    for key in sorted(KEYS.keys() ^ found.keys()):
        what = "lacks the key" if key in KEYS else "has a key that nothing reads:"
        raise UserError(f"the configuration {what} {key}. configs/default.py lists every key")
    for key, (legal, _) in KEYS.items():
        if not legal.accepts(found[key]):
            example = f", as '--config.{key}={legal.example}'" if legal.example else ""
            near = difflib.get_close_matches(str(found[key]).lower(), legal.range.split(", "), n=1)
            guess = f". Did you mean {near[0]!r}?" if near else ""
            raise UserError(
                f"{key} is {found[key]!r}; expected {legal.kind}{legal.range}{example}{guess}"
            )
