"""The newest states of a run (orbax), to go on from: WORKDIR/checkpoints/latest/<step>/."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from snr_jax.core.errors import UserError
from snr_jax.core.state import TrainState
from snr_jax.process.several import raise_if_lost
from snr_jax.workdir import metas
from snr_jax.workdir.checkpoints import (
    composite,
    folder,
    prove,
    reason_of,
    saving,
    set_aside,
    verify,
)

logger = logging.getLogger(__name__)
Manager = ocp.CheckpointManager  # of the newest states of a run


@contextmanager
def open_manager(workdir: str | os.PathLike, keep: int) -> Iterator[Manager]:
    """The newest `keep` states of a run, which are written while it goes on.

    The end of the block waits for the last. UserError there, too, if it cannot be written.
    """
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, cleanup_tmp_directories=True, enable_async_checkpointing=True
    )
    manager = ocp.CheckpointManager(folder(workdir, "latest"), options=options)
    # Its `save` would ask JAX too, by the run's step, and the loop counts the steps of its start.
    manager.reached_preemption = lambda step: False
    manager.unproven = None  # the step of a save of this start, until it was looked at
    try:
        yield manager
    finally:
        wait(manager)
        manager.close()


def save_state(manager: Manager, state: TrainState, meta: dict) -> None:
    """Begins to write a state, of which a copy is taken; waits for the one before.

    state: numpy leaves, of one replica. A step that is there already is left as it is. UserError
    if this one or the one before cannot be written.
    """
    wait(manager)
    step = int(state.step)
    if manager.latest_step() == step:
        return
    args = composite(_items(state), meta)
    manager.unproven = step
    _saving(manager, step, lambda: manager.save(step, args=args, force=True))


def wait(manager: Manager) -> None:
    """Returns when the state that is being written, if any, is whole; UserError if it fails."""
    _saving(manager, manager.latest_step(), manager.wait_until_finished)
    step, manager.unproven = manager.unproven, None
    if step is not None and jax.process_index() == 0:
        _saving(manager, step, lambda: prove(manager.directory / str(step)))


def last_good(manager: Manager, before: int) -> str:
    """The folder of the newest state of an earlier step, in words."""
    steps = [step for step in manager.all_steps() if step < before]
    return f"{manager.directory}/{max(steps)}" if steps else "none yet"


def _saving(manager: Manager, step: int | None, save: Callable[[], Any]) -> None:
    there = [int(path.name) for path in manager.directory.iterdir() if path.name.isdecimal()]
    good = f"The last good checkpoint is that of step {max(there)}." if there else ""
    saving(f"the state of step {step}", save, good)


def _items(state: TrainState) -> dict:
    """The items of its checkpoint; a state without a teacher has no item of that name."""
    training = {"step": state.step, "opt_state": state.opt_state}
    teacher = {"teacher": state.teacher} if state.teacher else {}
    return {"variables": state.variables, "training": training, **teacher}


def restore_state(manager: Manager, like: TrainState) -> TrainState | None:
    """The newest intact state, as numpy, or None if there is none at all.

    like: a state, or its shapes, whose structure the checkpoint must have. A checkpoint that
    cannot be read is passed over in favour of the one before it, and set aside: the reason may lie
    in the disk and not in the file. UserError, and nothing is moved, if none can be read.
    """
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), like)
    unusable, reason = [], None
    for step in sorted(manager.all_steps(), reverse=True):
        path = manager.directory / str(step)
        try:
            state = _read_state(manager, path, shapes)
        except Exception as error:  # orbax wraps the system's errors in several kinds
            raise_if_lost(error)
            unusable.append(path)
            reason = reason or reason_of(error)
            logger.warning("%s cannot be used: %s", path, reason_of(error))
            continue
        if unusable:
            logger.warning("going on from the older checkpoint of step %d", step)
            for broken in unusable:
                set_aside(broken)
            if jax.process_count() > 1:
                multihost_utils.sync_global_devices("set aside")
            manager.reload()
        return state
    if unusable:
        raise UserError(
            f"none of the {len(unusable)} checkpoints in {manager.directory} can be used (the "
            f"newest: {reason}). Nothing was changed. Mend that and start the same command again, "
            "or choose another --workdir"
        )
    return None


def _read_state(manager: Manager, path: Path, shapes: TrainState) -> TrainState:
    items = _items(shapes)
    trees = {name: ocp.args.StandardRestore(tree) for name, tree in items.items()}
    args = ocp.args.Composite(**trees, meta=ocp.args.JsonRestore())
    restored = manager.restore(int(path.name), args=args)
    found = {name: jax.tree.map(np.asarray, restored[name]) for name in items}
    verify(path, found, metas.checked(path, restored.meta))
    training = found["training"]
    return TrainState(
        training["step"], **found["variables"], opt_state=training["opt_state"],
        teacher=found.get("teacher", {}),
    )
