"""Checkpoints (orbax): the newest states of a run, and single sets of variables.

Every checkpoint is a folder with the item `variables` ({"params", "batch_stats"}) and the item
`meta` (JSON: the model's keyword arguments, where the values come from, a checksum per leaf); the
states of a run also hold `training` (step and optimiser). So whatever reads variables reads all.

    WORKDIR/checkpoints/latest/<step>/   the newest states, to go on from
    WORKDIR/checkpoints/final/           variables of the last step
    WORKDIR/checkpoints/best_source/     chosen by source validation
    WORKDIR/checkpoints/oracle_target/   chosen with target labels
"""

import errno
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from snr_jax.core.errors import UserError
from snr_jax.core.state import TrainState

NAMES = ("final", "best_source", "oracle_target")


def _checksums(tree) -> dict[str, int]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path): zlib.crc32(np.ascontiguousarray(leaf).data.cast("B"))
        if np.ndim(leaf)
        else zlib.crc32(np.asarray(leaf).tobytes())
        for path, leaf in leaves
    }


def _verify(path: Path, items: dict[str, Any], meta: dict) -> None:
    for name, tree in items.items():
        want, have = meta["checksums"][name], _checksums(tree)
        if want != have:
            keys = want.keys() | have.keys()
            wrong = sorted(key for key in keys if want.get(key) != have.get(key))
            raise UserError(
                f"{path} is damaged: {len(wrong)} of {len(keys)} tensors of {name!r} differ from "
                f"their checksums, {wrong[0]} the first. Use another checkpoint"
            )


def _composite(items: dict[str, Any], meta: dict) -> ocp.args.Composite:
    meta = {**meta, "checksums": {name: _checksums(tree) for name, tree in items.items()}}
    trees = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
    return ocp.args.Composite(**trees, meta=ocp.args.JsonSave(meta))


def _saving(what: str, save: Callable[[], Any], survivor: str) -> None:
    try:
        save()
    except Exception as error:  # orbax wraps the system's errors in several kinds
        raise UserError(
            f"{what} could not be saved ({_reason(error)}). {survivor} "
            "Free some space, or choose another --workdir, and start the same command again"
        ) from error


def _reason(error: BaseException) -> str:
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    text = str(error)
    full = os.strerror(errno.ENOSPC)  # TensorStore says it at the end of a long line
    return full if full in text else text.split("\n")[0][:300]


# ---------------------------------------------------------------- variables


def save_variables(path: str | os.PathLike, variables: dict, meta: dict) -> None:
    """Writes {"params", "batch_stats"} (numpy) and meta; an earlier one survives until it is whole.

    meta["model"] holds the keyword arguments of `DeepLab`. Raises UserError if the disk is full.
    """
    path = Path(path).absolute()
    new, old = path.with_name(path.name + ".new"), path.with_name(path.name + ".old")

    def save():
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            checkpointer.save(new, _composite({"variables": variables}, meta), force=True)

    def discard():
        if jax.process_index() == 0:
            for part in path.parent.glob(f"{new.name}*"):
                shutil.rmtree(part, ignore_errors=True)

    discard()  # what a killed process left
    try:
        _saving(f"the checkpoint {path}", save, "An earlier one under that name is untouched.")
    except UserError:
        discard()
        raise
    if jax.process_index() == 0:
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            path.rename(old)
        new.rename(path)
        shutil.rmtree(old, ignore_errors=True)


def find(path: str | os.PathLike) -> Path:
    """The checkpoint folder meant by a checkpoint, a run's folder, or its `checkpoints`.

    Of a run, the final variables, else the newest state. Raises UserError if there is none.
    """
    start = Path(path).absolute()
    for root in (start, start / "checkpoints"):
        newest = sorted((root / "latest").glob("[0-9]*"), key=lambda p: int(p.name), reverse=True)
        if start.name == "latest":
            newest = sorted(start.glob("[0-9]*"), key=lambda p: int(p.name), reverse=True)
        for candidate in (root, root / "final", *newest):
            if (candidate / "variables").is_dir() and (candidate / "meta").is_dir():
                return candidate
    raise UserError(
        f"{path} holds no checkpoint. Expected the folder of a run (--workdir), one of its "
        "checkpoints, or the output of scripts/convert_torch_ckpt.py"
    )


def load_meta(path: str | os.PathLike) -> dict:
    """The meta of a checkpoint, without reading its arrays."""
    path = find(path)
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        restored = checkpointer.restore(path, ocp.args.Composite(meta=ocp.args.JsonRestore()))
    return _with_tuples(restored.meta)


def load_variables(path: str | os.PathLike) -> tuple[dict, dict]:
    """Variables (numpy) and meta of a checkpoint. Raises UserError for a missing or damaged one."""
    path = find(path)
    items = ocp.args.Composite(variables=ocp.args.StandardRestore(), meta=ocp.args.JsonRestore())
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            restored = checkpointer.restore(path, items)
    except Exception as error:
        raise UserError(f"{path} cannot be read: {_reason(error)}") from error
    variables = jax.tree.map(np.asarray, restored.variables)
    _verify(path, {"variables": variables}, restored.meta)
    return variables, _with_tuples(restored.meta)


def _with_tuples(meta: dict) -> dict:
    """JSON has no tuples; the model's arguments do."""
    model = {k: tuple(v) if isinstance(v, list) else v for k, v in meta.get("model", {}).items()}
    return {**meta, "model": model}


# ---------------------------------------------------------------- states of a run


def folder(workdir: str | os.PathLike, name: str) -> Path:
    return Path(workdir).absolute() / "checkpoints" / name


def open_manager(workdir: str | os.PathLike, keep: int) -> ocp.CheckpointManager:
    """The newest `keep` states of a run. Use it in a `with`."""
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, cleanup_tmp_directories=True, enable_async_checkpointing=False
    )
    return ocp.CheckpointManager(folder(workdir, "latest"), options=options)


def save_state(manager: ocp.CheckpointManager, state: TrainState, meta: dict) -> None:
    """state: numpy leaves, of one replica. A step that is there already is left as it is."""
    step = int(state.step)
    if manager.latest_step() == step:
        return
    training = {"step": state.step, "opt_state": state.opt_state}
    items = {"variables": state.variables, "training": training}
    last = manager.latest_step()
    _saving(
        f"the state of step {step}",
        lambda: manager.save(step, args=_composite(items, meta), force=True),
        f"The last good checkpoint is that of step {last}." if last is not None else "",
    )


def restore_state(
    manager: ocp.CheckpointManager, like: TrainState, log: Callable[[str], None] = print
) -> TrainState | None:
    """The newest intact state, as numpy, or None if there is none at all.

    like: a state, or its shapes, whose structure the checkpoint must have. A damaged checkpoint
    is passed over with a message in favour of the one before it; UserError if all are damaged.
    """
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), like)
    training = {"step": shapes.step, "opt_state": shapes.opt_state}
    items = {"variables": shapes.variables, "training": training}
    steps = sorted(manager.all_steps(), reverse=True)
    for step in steps:
        path = manager.directory / str(step)
        try:
            trees = {name: ocp.args.StandardRestore(tree) for name, tree in items.items()}
            args = ocp.args.Composite(**trees, meta=ocp.args.JsonRestore())
            restored = manager.restore(step, args=args)
            found = {name: jax.tree.map(np.asarray, restored[name]) for name in items}
            _verify(path, found, restored.meta)
        except Exception as error:
            log(f"WARNING: {path} cannot be used: {_reason(error)}")
            continue
        if step != steps[0]:
            log(f"WARNING: going on from the older checkpoint of step {step}")
            for damaged in steps[: steps.index(step)]:
                manager.delete(damaged)
        return TrainState(found["training"]["step"], **found["variables"],
                          opt_state=found["training"]["opt_state"])
    if steps:
        raise UserError(
            f"none of the {len(steps)} checkpoints in {manager.directory} can be used. Remove the "
            "folder to start again, or choose another --workdir"
        )
    return None
