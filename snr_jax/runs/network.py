"""From a configuration or a checkpoint to a network with its variables."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from snr_jax.core import labels
from snr_jax.core.errors import UserError
from snr_jax.core.labels import Classes
from snr_jax.core.models.deeplab import ARCHITECTURE, DeepLab, architecture, check_architecture
from snr_jax.core.state import initial_variables
from snr_jax.core.torch_names import merge
from snr_jax.runs import checkpoints
from snr_jax.runs.checkpoints import Checkpoint

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
ATROUS = ("native", "space_to_batch", "weight_gradient")


def resolve_dtype(name: str) -> str:
    """A key of DTYPES; "auto" is float32 on a CPU, which has no faster one, and else bfloat16."""
    if name != "auto":
        return name
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def create_model(*, dtype: str = "auto", atrous: str = "auto", **arguments: Any) -> DeepLab:
    """DeepLab of the named arguments. Raises UserError for an architecture that does not exist.

    dtype: of `resolve_dtype`. atrous: one of ATROUS, or auto. Of the equal forms of a convolution
    the backend's faster ones are taken.
    """
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


def load(checkpoint: Checkpoint | str, **options: Any) -> tuple[DeepLab, dict, dict]:
    """Model, variables (numpy) and meta of a checkpoint; options as of `create_model`."""
    variables, meta = checkpoints.load_variables(checkpoint)
    model = create_model(**{key: meta["model"][key] for key in ARCHITECTURE}, **options)
    params = {k: v for k, v in variables["params"].items() if not k.startswith("restitution")}
    return model, {**variables, "params": params}, meta


def classes_of(meta: dict) -> Classes:
    """The classes of a checkpoint: by the names that it holds, or of a protocol.

    Raises UserError where neither tells.
    """
    if "class_names" in meta:
        return labels.own_classes(meta["class_names"], meta.get("class_colors", ()))
    count = meta["model"]["num_classes"]
    try:
        return labels.classes(count)
    except ValueError:
        raise UserError(
            f"the checkpoint has {count} classes and no names for them. Convert its PyTorch file "
            "again with --class_names, or with --num_classes 19 --reset_heads for its backbone"
        ) from None


def refuse_mismatch(path: str, have: dict, want: dict, allowed: tuple[str, ...] = ()) -> None:
    """UserError where a checkpoint's arguments `have` are not the configuration's `want`."""
    differing = [k for k in ARCHITECTURE if have[k] != want[k] and k not in allowed]
    if differing:
        pairs = "; ".join(f"{k} {have[k]} there, {want[k]} here" for k in differing)
        keys = " ".join(  # quoted, since a shell chokes on the parentheses of stage_sizes
            shlex.quote(f"--config.{'' if k == 'num_classes' else 'model.'}{k}={have[k]}")
            for k in differing
        )
        raise UserError(
            f"the checkpoint {path} is of another network than the configuration: {pairs}. "
            f"Set {keys.replace(', ', ',')}, or choose another checkpoint"
        )


def initialize(
    model: DeepLab, seed: int, init_from: str, log: Callable[[str], None] = print
) -> dict:
    """Initial variables (numpy): random, or those of a checkpoint with an account of every tensor.

    A network without SNR may start one with it; the tensors that are new then are named.
    """
    initial = initial_variables(model, seed)
    if not init_from:
        log("initial values    random. The published numbers start from ImageNet+COCO weights: "
            "scripts/convert_torch_ckpt.py, then --config.init_from")
        return initial
    found = checkpoints.find(init_from)
    if found.name.startswith("latest/") and found.path != Path(init_from).absolute():
        raise UserError(
            f"init_from: {init_from} is a run that has not finished. Finish it first (its own "
            f"command goes on with it), or name its checkpoint: --config.init_from={found.path}"
        )
    loaded, meta = checkpoints.load_variables(found)
    want = architecture(model)
    # Branches and SNR change which parameters exist or are used, not what the others mean.
    allowed = ("head_branches",)
    if meta["model"]["norm_restitution"] == "none":
        allowed += ("norm_restitution",)
    refuse_mismatch(init_from, meta["model"], want, allowed)
    variables, account = merge(initial, loaded)
    log(f"initial values from {found.path}\n{account}")
    if account.missing:
        log(f"new, at their initial values: {', '.join(account.missing)}")
    there, here = meta["model"]["head_branches"], model.head_branches
    if there != here and meta.get("source", {}).get("heads") != []:  # [] where they are initial
        log(f"WARNING: the heads of {init_from} were trained as sums of {there} branches and are "
            f"used here as sums of {here}. Set --config.model.head_branches={there} to keep what "
            "they compute")
    return variables
