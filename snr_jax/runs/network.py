"""From a configuration or a checkpoint to a network with its variables."""

import logging
import shlex
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from snr_jax.config import arguments
from snr_jax.config.backbones import model_keys
from snr_jax.config.keys import KEYS
from snr_jax.core import labels
from snr_jax.core.errors import UserError
from snr_jax.core.files import whole_path
from snr_jax.core.labels import Classes, class_names
from snr_jax.core.models.backbone import architecture
from snr_jax.core.models.create import Network, backbone_of, create_model, create_recorded
from snr_jax.core.state import initial_variables
from snr_jax.weights.torch_names import merge
from snr_jax.workdir import checkpoints
from snr_jax.workdir.checkpoints import Checkpoint

logger = logging.getLogger(__name__)

NEW_HEADS = ". To train from its backbone alone, set --config.reset_heads"


def load(checkpoint: Checkpoint | str, **options: Any) -> tuple[Network, dict, dict]:
    """Model, variables (numpy) and meta of a checkpoint; options as of `create_model`."""
    variables, meta = checkpoints.load_variables(checkpoint)
    if meta.get("source", {}).get("heads") == []:  # of a file without any
        logger.warning("the heads have initial values: this network predicts nothing before it is "
                       "trained from by --config.init_from")
    model = create_recorded(meta["model"], **options)
    params = {k: v for k, v in variables["params"].items() if not k.startswith("restitution")}
    return model, {**variables, "params": params}, meta


def load_for(config: ConfigDict, checkpoint: Checkpoint) -> tuple[Network, dict, dict]:
    """What `load` gives, computed as configured; UserError if the configuration has another."""
    want = architecture(create_model(**arguments.model_arguments(config, None)))
    refuse_mismatch(str(checkpoint.path), checkpoint.meta["model"], want)
    model, variables, meta = load(checkpoint, **computation(config))
    source = arguments.create_domains(config)["source"]
    classes = arguments.create_classes(config.num_classes, source)
    return model, in_order(model, variables, meta, classes, str(checkpoint.path)), meta


def computation(config: ConfigDict) -> dict[str, str]:
    """The options of `create_model` that are no part of a network: how it is computed."""
    return {"dtype": config.model.dtype, "atrous": config.model.atrous}


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


def in_order(
    model: Network, variables: dict, meta: dict, classes: Classes, path: str, remedy: str = ""
) -> dict:
    """The variables of a checkpoint with the outputs of its heads in the order of `classes`.

    A line says so where theirs is another. Raises UserError, by name, where classes differ; remedy:
    another than those that it names.
    """
    there, here = class_names(classes_of(meta)), class_names(classes)
    if there == here:
        return variables
    if set(there) != set(here):
        lacking, new = ([name for name in one if name not in other]
                        for one, other in ((there, here), (here, there)))
        raise UserError(
            f"the heads of {path} know other classes than the configuration: "
            f"{_list(lacking)} there alone, {_list(new)} here alone. Set --config.source.domain to "
            f"that of its training, or give classes that mean the same the same name{remedy}"
        )
    logger.info("the classes of %s stand in another order (%s there; %s here): its heads are "
                "reordered by name", path, _list(there), _list(here))
    order = [there.index(name) for name in here]
    return _change_heads(model, variables, lambda leaf: np.take(leaf, order, axis=-1))


def _change_heads(
    model: Network, variables: dict, change: Callable[[np.ndarray], np.ndarray | None]
) -> dict:
    """The variables with other values for what has an output for each class; without, for None."""
    params = {
        name: change(leaf) if name.startswith(backbone_of(model).class_outputs) else leaf
        for name, leaf in flatten_dict(variables["params"], sep="/").items()
    }
    kept = {name: leaf for name, leaf in params.items() if leaf is not None}
    return {**variables, "params": unflatten_dict(kept, sep="/")}


def _list(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > 8 else ""
    return (", ".join(names[:8]) or "none") + more


def refuse_mismatch(
    path: str, have: dict, want: dict, allowed: tuple[str, ...] = (), remedy: str = ""
) -> None:
    """UserError where a checkpoint's arguments `have` are not the configuration's `want`.

    remedy: another than those that it names, for another number of classes.
    """
    names = want if have["backbone"] == want["backbone"] else ("backbone",)
    differing = [k for k in names if have[k] != want[k] and k not in allowed]
    if differing:
        pairs = "; ".join(f"{k} {have[k]} there, {want[k]} here" for k in differing)
        remedies = " ".join(_flags(model_keys(have), model_keys(want), allowed))
        raise UserError(
            f"the checkpoint {path} is of another network than the configuration: {pairs}. "
            + (f"Set {remedies}, or choose" if remedies else "Choose") + " another checkpoint"
            + remedy * (differing == ["num_classes"])
        )


def _flags(there: dict, here: dict, allowed: tuple[str, ...]) -> list[str]:
    """Of the keys `there`, those that `here`, or by default, are others.

    They are quoted, since a shell chokes on the parentheses of stage_sizes.
    """
    return [
        shlex.quote(f"--config.{key}={value}".replace(", ", ",")) for key, value in there.items()
        if here.get(key, KEYS[key].default) != value and key.split(".")[-1] not in allowed
    ]


def flags_to_start(path: str, have: dict) -> str:
    """The flags of snr_jax.main for a training from `path`, whose network's arguments are `have`.

    They are beside the defaults: a configuration with a network of its own may want others.
    """
    flags = _flags(model_keys(have), {}, _may_differ(have))
    return " ".join([shlex.quote(f"--config.init_from={path}"), *flags])


def _may_differ(have: dict) -> tuple[str, ...]:
    """Arguments of the network in which a training may differ from what it starts from.

    Branches and SNR change which parameters exist or are used, not what the others mean.
    """
    allowed = ("head_branches",)
    if not have.get("exposure"):  # as every file of PyTorch
        allowed += ("exposure",)
    if have["norm_restitution"] == "none":
        allowed += ("norm_restitution", "snr_after")
    return allowed


def initialize(
    model: Network, seed: int, init_from: str, reset_heads: bool = False, *,
    classes: Classes | None = None,
) -> dict:
    """Initial variables (numpy): random, or those of a checkpoint with an account of every tensor.

    A network without SNR may start one with it; the tensors that are new then are named.
    reset_heads: what has an output for each class stays random. classes: in whose order the
    checkpoint's heads are put, as `in_order`; None where its classes are the run's.
    """
    initial = initial_variables(model, seed)
    if not init_from:
        logger.info("initial values    random. The published numbers start from published "
                    "weights: scripts/convert_torch_ckpt.py, then --config.init_from")
        return initial
    found = checkpoints.find(init_from)
    if found.name.startswith("latest/") and found.path != whole_path(init_from):
        raise UserError(
            f"init_from: {init_from} is a run that has not finished. Finish it first (its own "
            f"command goes on with it), or name its checkpoint: --config.init_from={found.path}"
        )
    loaded, meta = checkpoints.load_variables(found)
    there, here = meta["model"], architecture(model)
    allowed = (*_may_differ(there), *["num_classes"] * reset_heads)
    refuse_mismatch(init_from, there, here, allowed, NEW_HEADS)
    # Else the heads have initial values, of no class yet.
    trained = meta.get("source", {}).get("heads") != [] and not reset_heads
    if reset_heads:
        loaded = _change_heads(model, loaded, lambda leaf: None)
    if classes is not None and trained:
        loaded = in_order(model, loaded, meta, classes, init_from, NEW_HEADS)
    variables, account = merge(initial, loaded)
    logger.info("initial values from %s\n%s", found.path, account)
    if account.missing:
        logger.info("new, at their initial values: %s", ", ".join(account.missing))
    there, here = (of.get("head_branches") for of in (there, here))
    if there != here and trained:
        logger.warning("the heads of %s were trained as sums of %d branches and are used here as "
                       "sums of %d. Set --config.model.head_branches=%d to keep what they compute",
                       init_from, there, here, there)
    return variables
