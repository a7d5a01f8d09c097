"""What the keys of a configuration mean to each kind of network: a row of READINGS for each."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from snr_jax.core.models.create import BACKBONES
from snr_jax.core.models.deeplab import RESNET
from snr_jax.core.models.light_head import DINOV2

Values = dict[str, Any]


class Reading(NamedTuple):
    """Of one kind, beside what all kinds read alike."""

    arguments: Callable[[ConfigDict], Values]  # of `create_model`
    keys: Callable[[Mapping[str, Any]], Values]  # back, from what a checkpoint records
    groups: Callable[[ConfigDict], Values]  # of its function in `optim.GROUPS`
    unread: Mapping[str, str]  # keys that it does not read, and why


def kind_of(config: ConfigDict) -> str:
    """The kind of network, a key of READINGS."""
    return BACKBONES[config.model.backbone][0]


def masks_tokens(config: ConfigDict) -> bool:
    """Whether a loss sees images of which a transformer's tokens are hidden."""
    return (config.loss.target == "classmix" and config.mix.masked_weight > 0
            and config.mix.mask == "tokens")


# ---------------------------------------------------------------- ResNet


_OF_RESNET = tuple(key for key in RESNET.architecture if key != "num_classes")


def _resnet_arguments(config: ConfigDict) -> Values:
    return {key: config.model[key] for key in (*_OF_RESNET, "atrous")}


def _resnet_keys(record: Mapping[str, Any]) -> Values:
    return {"model.backbone": "resnet101"} | {f"model.{key}": record[key] for key in _OF_RESNET}


def _resnet_groups(config: ConfigDict) -> Values:
    return {"repeated_updates": config.optimizer.repeated_updates,
            "multi_level": config.loss.lambda_seg > 0,
            "head_branches": config.model.head_branches}


# ---------------------------------------------------------------- DINOv2


_VIT_SIZE = ("width", "depth", "heads")  # what model.vit_size holds


def _dinov2_arguments(config: ConfigDict) -> Values:
    model, after = config.model, tuple(sorted(config.model.snr_after))
    own = dict(zip(_VIT_SIZE, model.vit_size)) if any(model.vit_size) else {}
    return own | {"registers": model.registers, "snr_after": after,
                  "norm_restitution": model.norm_restitution if after else "none"}


def _dinov2_keys(record: Mapping[str, Any]) -> Values:
    """Without patch and grid, of which one is published."""
    size = {key: record[key] for key in _VIT_SIZE}
    name = next((name for name, (_, of_name) in BACKBONES.items() if of_name == size), None)
    keys = ("registers", "snr_after", "norm_restitution")
    return {"model.backbone": name or "dinov2_s",
            "model.vit_size": (0, 0, 0) if name else tuple(size.values()),
            **{f"model.{key}": record[key] for key in keys}}


def _dinov2_groups(config: ConfigDict) -> Values:
    return {"masked_tokens": masks_tokens(config)}


# ---------------------------------------------------------------- all


READINGS = {
    RESNET.kind: Reading(
        _resnet_arguments, _resnet_keys, _resnet_groups,
        dict.fromkeys(("model.vit_size", "model.registers", "model.snr_after"),
                      "is no transformer")),
    DINOV2.kind: Reading(
        _dinov2_arguments, _dinov2_keys, _dinov2_groups, {
            **dict.fromkeys(("model.stage_sizes", "model.width", "model.stride_in",
                             "model.exposure", "model.atrous"), "is no ResNet"),
            "model.head_branches": "has no dilated convolutions",
            **dict.fromkeys(("freeze_bn", "mix.teacher_mode", "mix.statistics"),
                            "has no batch norm, whose statistics it chooses"),
            "loss.lambda_seg": "has no auxiliary head",
        }),
}


def model_keys(record: Mapping[str, Any]) -> Values:
    """The keys of a network's configuration, from what a checkpoint records of it."""
    return {"num_classes": record["num_classes"]} | READINGS[record["backbone"]].keys(record)
