"""A network from its arguments, in the forms that are fast where it runs."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from snr_jax.core.errors import UserError
from snr_jax.core.models.backbone import Backbone, architecture
from snr_jax.core.models.deeplab import RESNET, DeepLab
from snr_jax.core.models.dinov2 import SIZES
from snr_jax.core.models.light_head import ViTSegmenter

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
ATROUS = ("native", "space_to_batch", "weight_gradient")
Network = DeepLab | ViTSegmenter
NETWORKS = {network.backbone.kind: network for network in (DeepLab, ViTSegmenter)}
# name → kind, and the arguments that the name stands for.
BACKBONES = {"resnet101": ("resnet", {}),
             **{f"dinov2_{size}": ("dinov2", SIZES[size]) for size in SIZES}}


def changed(model: Network, **options: Any) -> Network:
    """The network with those of the options that its kind has."""
    return model.clone(**{name: value for name, value in options.items() if hasattr(model, name)})


def backbone_of(model: nn.Module) -> Backbone:
    """Its attribute `backbone`; a network of one's own without it is taken for a ResNet's."""
    return getattr(model, "backbone", RESNET)


def resolve_dtype(name: str) -> str:
    """A key of DTYPES; "auto" is float32 on a CPU, which has no faster one, and else bfloat16."""
    if name != "auto":
        return name
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def create_model(
    *, backbone: str = "resnet101", dtype: str = "auto", atrous: str = "auto", **arguments: Any
) -> Network:
    """The network of the named arguments: a Flax module, of which nothing is computed yet.

    backbone: one of BACKBONES, or a kind of NETWORKS, whose default sizes are those of ResNet-101
    and ViT-B/14. arguments: of `DeepLab`, as num_classes=19, stage_sizes=(3, 4, 23, 3), width=64,
    or of `ViTSegmenter`. dtype: of `resolve_dtype`. atrous: one of ATROUS, or auto, for a ResNet.
    Of equal forms the backend's faster ones are taken. Raises UserError for an architecture, a
    backbone or a dtype that does not exist.
    """
    choices = {kind: (kind, {}) for kind in NETWORKS} | BACKBONES
    options = ("dtype", dtype, ("auto", *DTYPES)), ("backbone", backbone, choices)
    for name, value, legal in options:
        if value not in legal:
            raise UserError(f"{name} is {value!r}; expected one of {', '.join(legal)}")
    kind, size = choices[backbone]
    dtype = resolve_dtype(dtype)
    forms = _FORMS[kind](dtype, atrous)
    model = NETWORKS[kind](**{"dtype": DTYPES[dtype], **forms, **size, **arguments})
    try:
        model.backbone.check(architecture(model))
    except ValueError as error:
        raise UserError(f"model.{error}") from None
    return model


def create_recorded(record: Mapping[str, Any], **options: Any) -> Network:
    """The network of an `architecture` that a checkpoint holds; options as of `create_model`."""
    kind = record["backbone"]
    names = NETWORKS[kind].backbone.architecture
    return create_model(backbone=kind, **{name: record[name] for name in names}, **options)


def _forms() -> dict[str, Any]:
    on_cpu = jax.default_backend() == "cpu"
    return {"pointwise": "product" if on_cpu else "convolution", "affine_snr": not on_cpu}


def _resnet_forms(dtype: str, atrous: str) -> dict[str, Any]:
    if atrous == "auto":
        atrous = "native" if jax.default_backend() == "cpu" else "weight_gradient"
    sums = "pallas" if jax.default_backend() == "gpu" else "xla"
    return _forms() | {"atrous": atrous, "bn_sums": sums}


def _dinov2_forms(dtype: str, atrous: str) -> dict[str, Any]:
    in_half = jax.default_backend() == "gpu" and dtype == "bfloat16"
    return _forms() | {"attention": "cudnn" if in_half else "xla"}


_FORMS = {"resnet": _resnet_forms, "dinov2": _dinov2_forms}
