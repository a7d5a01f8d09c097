"""Checkpoints (orbax): finding, reading and writing sets of variables.

Every checkpoint is a folder with the item `variables` ({"params", "batch_stats"}) and the item
`meta` (JSON: the model's keyword arguments, where the values come from, a checksum per leaf); the
states of a run also hold `training` (step and optimiser). So whatever reads variables reads all.

    WORKDIR/checkpoints/latest/<step>/   the newest states, to go on from (states.py)
    WORKDIR/checkpoints/final/           variables of the last step
    WORKDIR/checkpoints/teacher/         the mean teacher's, where there is one
    WORKDIR/checkpoints/best_source/     chosen by source validation
    WORKDIR/checkpoints/oracle_target/   chosen with target labels
    WORKDIR/checkpoints/set_aside/       what could not be read; nothing is deleted here

A weights folder (weights/folder.py), which holds the same in the layout of the public hubs, is
found and read like one of them.
"""

import errno
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from snr_jax.core.errors import UserError
from snr_jax.core.files import closed_folder, free_path, refuse_pattern, whole_path
from snr_jax.core.progress import root_log_kept
from snr_jax.process.several import raise_if_lost, root_of
from snr_jax.weights import folder as weights_folder
from snr_jax.workdir import metas

logger = logging.getLogger(__name__)

NAMES = ("final", "teacher", "best_source", "oracle_target")
_TEMPORARY = ".orbax-checkpoint-tmp"  # in the name of a folder that orbax is still writing


def folder(workdir: str | os.PathLike, name: str) -> Path:
    return whole_path(workdir) / "checkpoints" / name


def checksums(tree: Any) -> dict[str, int]:
    """One of every leaf (numpy), by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path): zlib.crc32(np.ascontiguousarray(leaf).data.cast("B"))
        if np.ndim(leaf)
        else zlib.crc32(np.asarray(leaf).tobytes())
        for path, leaf in leaves
    }


def verify(path: Path, items: dict[str, Any], meta: dict, advice: str = metas.ADVICE) -> None:
    """Raises UserError where a leaf differs from the checksum that the meta has for it.

    advice: the remedy that it names.
    """
    for name, tree in items.items():
        want, have = meta["checksums"][name], checksums(tree)
        if want != have:
            keys = want.keys() | have.keys()
            wrong = sorted(key for key in keys if want.get(key) != have.get(key))
            raise UserError(
                f"{path} is damaged: {len(wrong)} of {len(keys)} tensors of {name!r} differ from "
                f"their checksums, {wrong[0]} the first{advice}"
            )


def composite(items: dict[str, Any], meta: dict) -> ocp.args.Composite:
    """What orbax is to save: the items, and the meta with checksums of them and of itself."""
    meta = metas.signed(meta, {name: checksums(tree) for name, tree in items.items()})
    trees = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
    return ocp.args.Composite(**trees, meta=ocp.args.JsonSave(meta))


def prove(path: Path) -> None:
    """Raises UserError where a checkpoint could not be restored: a look, not a reading.

    Every array that the meta has a checksum of must be one that TensorStore finds there.
    """
    try:  # without orbax, which would wait for the other processes of a run
        meta = json.loads((path / "meta/metadata").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {reason_of(error)}{metas.ADVICE}") from error
    for name, sums in metas.checked(path, meta)["checksums"].items():
        base = {"driver": "file", "path": f"{path / name}/"}
        try:
            there = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
            found = sum(key.endswith(b"/.zarray") for key in there.list().result())
        except Exception as error:  # TensorStore has several kinds for a file that is damaged
            raise UserError(f"{path} cannot be read: {reason_of(error)}{metas.ADVICE}") from error
        if found != len(sums):
            raise UserError(f"{path} cannot be read: of {len(sums)} arrays of {name} {found} are "
                            f"there{metas.ADVICE}")


def saving(what: str, save: Callable[[], Any], survivor: str) -> None:
    try:
        save()
    except Exception as error:  # orbax wraps the system's errors in several kinds
        raise_if_lost(error)
        reason = reason_of(error)
        remedy = "Free some space" if os.strerror(errno.ENOSPC) in reason else "Mend that"
        raise UserError(
            f"{what} could not be saved ({reason}).{survivor and ' '}{survivor} "
            f"{remedy}, or choose another --workdir, and start the same command again"
        ) from error


def reason_of(error: BaseException) -> str:
    """What the first error of a chain says, in a line, and without advice to a reader."""
    root = root_of(error)
    text = str(root).removesuffix(metas.ADVICE)
    if " " not in text:  # as that of a KeyError, which is no sentence
        text = f"{type(root).__name__} {text}".strip()
    full = os.strerror(errno.ENOSPC)  # TensorStore says it at the end of a long line
    return full if full in text else text.split("\n")[0][:300]


# ---------------------------------------------------------------- finding and reading


class Checkpoint(NamedTuple):
    """A checkpoint, looked up once: whoever reads it or writes beside it takes this value."""

    path: Path  # the folder of its items
    meta: dict  # "model", "source", "checksums", and what else its writer had to say
    run: Path | None  # the folder of the run that it belongs to
    name: str  # within its run, as "final" or "latest/14"; else the folder's name

    @property
    def step(self) -> int | None:
        """The step of its run; None for converted weights."""
        return self.meta.get("source", {}).get("step")


def find(path: str | os.PathLike) -> Checkpoint:
    """The checkpoint meant by its folder, a run's folder or its `checkpoints`, a weights folder.

    Of a run, the final variables, else the newest state. Where a save was cut short between the
    old and the new one, the survivor. Raises UserError if there is none, or its meta is damaged.
    """
    start = whole_path(path)
    try:
        meant = _meant(start)
        if meant is None and start.is_symlink() and not start.exists():
            raise FileNotFoundError(f"it is a link to {start.readlink()}, which is not there")
    except OSError as error:
        closed = error.filename and closed_folder(error.filename)
        remedy = f". Mend the permissions of the folder {closed} (chmod +rx)" if closed else ""
        raise UserError(f"{path} cannot be read: {reason_of(error)}{remedy}") from error
    if meant is None:
        raise UserError(
            f"{path} holds no checkpoint. Expected the folder of a run (--workdir), one of its "
            "checkpoints, a weights folder, or the output of scripts/convert_torch_ckpt.py"
        )
    if "\\" in str(meant):
        raise UserError(f"{meant} holds a \\, which the library that reads checkpoints takes for a "
                        "/. Rename that folder")
    run, name = _place(meant)
    survivor = _survivor(meant)
    return Checkpoint(survivor, _read_meta(survivor), run, name)


def _meant(start: Path) -> Path | None:
    if _TEMPORARY in start.name:
        return None
    for root in (start, start / "checkpoints"):
        states = root if root.name == "latest" else root / "latest"
        for candidate in (root, root / "final", *_steps(states)):
            if _is_checkpoint(_survivor(candidate)):
                return candidate
    # The last, since a config.json may lie anywhere.
    return start if weights_folder.is_weights_folder(start) else None


def _steps(latest: Path) -> list[Path]:
    """The states in a folder, the newest first; what orbax is still writing is none."""
    steps = [path for path in latest.glob("*") if path.name.isdecimal()]
    return sorted(steps, key=lambda path: int(path.name), reverse=True)


def newest_step(workdir: str | os.PathLike) -> int | None:
    """The step of a run's newest state, whole or not; None for a run without one."""
    steps = _steps(folder(workdir, "latest"))
    return int(steps[0].name) if steps else None


def _is_checkpoint(path: Path) -> bool:
    """Whether it was meant as one: if an item is missing, reading it says so."""
    return (path / "variables").is_dir() or (path / "meta").is_dir()


def _is_weights(path: Path) -> bool:
    return weights_folder.is_weights_folder(path) and not _is_checkpoint(path)


def _place(path: Path) -> tuple[Path | None, str]:
    for folder in (path.parent, path.parent.parent):
        inside = path.relative_to(folder)
        if folder.name == "checkpoints" and inside.parts[0] in (*NAMES, "latest", "set_aside"):
            return folder.parent, inside.as_posix()
    return None, path.name


def _restore(path: Path, **items: Any) -> dict[str, Any]:
    try:
        with root_log_kept(), ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            restored = checkpointer.restore(path, ocp.args.Composite(**items))
        return {name: restored[name] for name in items}
    except Exception as error:
        raise_if_lost(error)
        raise UserError(
            f"{path} cannot be read: {reason_of(error)}{metas.ADVICE}"
        ) from error


def _read_meta(path: Path) -> dict:
    if _is_weights(path):
        raw, about = weights_folder.read_config(path)
        file, advice = path / weights_folder.CONFIG, weights_folder.ADVICE
        meta = metas.checked(file, raw, called="it", advice=advice)
        weights_folder.check_about(path, meta, about)
    else:
        meta = metas.checked(path, _restore(path, meta=ocp.args.JsonRestore())["meta"])
    # JSON has no tuples; the model's arguments do.
    model = {k: tuple(v) if isinstance(v, list) else v for k, v in meta["model"].items()}
    return {**meta, "model": model}


def load_variables(checkpoint: Checkpoint | str | os.PathLike) -> tuple[dict, dict]:
    """Variables (numpy) and meta of a checkpoint, found or still to be found.

    Raises UserError for one that is missing, damaged, or replaced since it was found.
    """
    found = checkpoint if isinstance(checkpoint, Checkpoint) else find(checkpoint)
    try:
        variables = _read_variables(found)
    except UserError as error:
        if _is_another_now(found):
            raise UserError(
                f"{found.path} was replaced while it was read: a training goes on there. Start "
                "the same command again"
            ) from error
        raise
    return variables, found.meta


def _read_variables(found: Checkpoint) -> dict:
    """Numpy, each leaf compared with its checksum."""
    if _is_weights(found.path):
        variables = weights_folder.read_variables(found.path, found.meta)
        file = found.path / weights_folder.TENSORS
        verify(file, {"variables": variables}, found.meta, weights_folder.ADVICE)
        return variables
    restored = _restore(found.path, variables=ocp.args.StandardRestore())
    variables = jax.tree.map(np.asarray, restored["variables"])
    verify(found.path, {"variables": variables}, found.meta)
    return {"batch_stats": {}} | variables  # orbax leaves out what is empty


def _is_another_now(found: Checkpoint) -> bool:
    if not found.path.exists():
        return True
    try:
        return _read_meta(found.path)["checksums"] != found.meta["checksums"]
    except UserError:
        return False


# ---------------------------------------------------------------- writing variables


def save_variables(path: str | os.PathLike, variables: dict, meta: dict) -> None:
    """Writes {"params", "batch_stats"} (numpy) and meta; an earlier one survives until it is whole.

    meta["model"] is the network's `architecture`. Raises UserError if the disk is full.
    """
    path = whole_path(path)
    refuse_pattern(path)
    new, old = _beside(path)

    def save() -> None:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            checkpointer.save(new, composite({"variables": variables}, meta), force=True)
        if jax.process_index() == 0:
            prove(new)
            if path.exists():
                path.rename(old)
            new.rename(path)
            shutil.rmtree(old, ignore_errors=True)

    _finish_swap(path)
    try:
        saving(f"the checkpoint {path}", save, "An earlier one under that name is untouched.")
    finally:  # of a save that failed or was interrupted
        _finish_swap(path)


def _beside(path: Path) -> tuple[Path, Path]:
    """Where the new one is written, and where the old one waits until that has its name."""
    return tuple(path.with_name(f"{path.name}.{age}-checkpoint") for age in ("new", "old"))


def _survivor(path: Path) -> Path:
    """The folder itself; if a save was cut short between its two renamings, what holds it now."""
    if path.exists():
        return path
    return next((other for other in _beside(path) if _is_checkpoint(other)), path)


def find_or_set_aside(path: Path) -> Checkpoint | None:
    """The checkpoint of a run in this folder, or what a save that was cut short left beside it.

    Broken ones are set aside, None if no other is there.
    """
    for place in (path, *_beside(path)):
        if not place.exists():
            continue
        try:
            found = find(place)
            prove(found.path)
            return found
        except UserError as error:
            logger.warning("%s", str(error).removesuffix(metas.ADVICE))
            set_aside(place)
    return None


def _finish_swap(path: Path) -> None:
    """Gives a survivor its name and removes what else a save that was cut short has left."""
    if jax.process_index() > 0:
        return
    survivor = _survivor(path)
    if survivor != path:
        survivor.rename(path)
    new, old = _beside(path)
    for part in (old, new, *path.parent.glob(f"*{_TEMPORARY}*")):
        if part == old or part.name.split(_TEMPORARY)[0] == new.name:
            shutil.rmtree(part, ignore_errors=True)


def set_aside(path: Path) -> None:
    """Moves a checkpoint of a run that cannot be used to where nothing reads or deletes it."""
    shelf = next(above for above in path.parents if above.name == "checkpoints") / "set_aside"
    target = free_path(shelf / path.name)
    if jax.process_index() == 0:
        shelf.mkdir(exist_ok=True)
        path.rename(target)
    logger.warning("%s was set aside as %s", path, target)
