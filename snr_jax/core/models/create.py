"""A network from its arguments, in the forms that are fast where it runs."""

from typing import Any

import jax
import jax.numpy as jnp

from snr_jax.core.errors import UserError
from snr_jax.core.models.deeplab import DeepLab, architecture, check_architecture

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
ATROUS = ("native", "space_to_batch", "weight_gradient")


def resolve_dtype(name: str) -> str:
    """A key of DTYPES; "auto" is float32 on a CPU, which has no faster one, and else bfloat16."""
    if name != "auto":
        return name
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def create_model(*, dtype: str = "auto", atrous: str = "auto", **arguments: Any) -> DeepLab:
    """DeepLab of the named arguments: a Flax module, of which nothing is computed yet.

    arguments: of `DeepLab`, as num_classes=19, stage_sizes=(3, 4, 23, 3), width=64; those are
    ResNet-101. dtype: of `resolve_dtype`. atrous: one of ATROUS, or auto. Of the equal forms of a
    convolution the backend's faster ones are taken. Raises UserError for an architecture or dtype
    that does not exist.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise UserError(f"dtype is {dtype!r}; expected one of auto, {', '.join(DTYPES)}")
    on_cpu = jax.default_backend() == "cpu"
    if atrous == "auto":
        atrous = "native" if on_cpu else "weight_gradient"
    forms = {"pointwise": "product" if on_cpu else "convolution", "affine_snr": not on_cpu,
             "bn_sums": "pallas" if jax.default_backend() == "gpu" else "xla"}
    model = DeepLab(dtype=DTYPES[resolve_dtype(dtype)], atrous=atrous, **forms, **arguments)
    try:
        check_architecture(architecture(model))
    except ValueError as error:
        raise UserError(f"model.{error}") from None
    return model
