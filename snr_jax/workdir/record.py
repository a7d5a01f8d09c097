"""What a run is, recorded once: WORKDIR/run.json, and what of it must stay when a run goes on.

    config    the configuration, model.dtype as it is computed in where that is "auto"
    initial   "random", or a checksum of the values that init_from names
    data      of every split the number of images and checksums of their ids and of a sample of
              them; where its labels are read, the classes and the numbers that mean them
    starts    every start of the run: time, step, versions of code and libraries, devices

The first three make its results, up to rounding, and are compared; `fingerprint` and `differences`
do that for whoever keeps a number beside what it was made with. The starts are for the reader.
"""

import importlib.metadata
import json
import logging
import os
import platform
import subprocess
import time
import zlib
from collections.abc import Mapping
from pathlib import Path

import jax
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from snr_jax.config.arguments import to_dict
from snr_jax.core.errors import UserError
from snr_jax.core.files import write_text
from snr_jax.core.models.create import resolve_dtype
from snr_jax.data.identity import checksum, exchanged, identity, is_known, meaning
from snr_jax.data.splits import Split
from snr_jax.report import tables
from snr_jax.workdir import checkpoints
from snr_jax.workdir.metrics import read_scalars
from snr_jax.workdir.run import Run

logger = logging.getLogger(__name__)

RUN_FILE = "run.json"
# Keys that do not change what a run computes. The data may move: they are compared themselves.
FREE_KEYS = (
    "log_every_steps", "checkpoint_every_steps", "keep_checkpoints", "data.root", "data.prepared",
    "eval.batch_size", "eval.num_pictures",
)
LIBRARIES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "pillow", "tensorflow-cpu",
    "tensorflow",
)


def fingerprint(config: ConfigDict, splits: Mapping[str, Split]) -> dict:
    """What determines the results of a run: {"config", "initial", "data"}, as JSON gives it back.

    To keep a number with what it was made with, and make it again where that has changed:

        here = fingerprint(config, experiment.open_splits(config))
        if "made_with" not in entry or differences(entry["made_with"], here): ...make it again...
        entry["made_with"] = here
    """
    data = {
        role: {"domain": split.domain.spec, "split": split.split,
               **_identity(split, labels=role != "target"),
               **(meaning(split.labels) if role != "target" else {})}
        for role, split in splits.items()
    }
    recorded = to_dict(config)
    # "auto" is another number format on another backend, and so another run.
    recorded["model"]["dtype"] = resolve_dtype(config.model.dtype)
    return {"config": recorded, "initial": _initial(config.init_from), "data": data}


def differences(there: Mapping, here: Mapping) -> list[str]:
    """What differs between two fingerprints and changes results, a line each; [] if nothing.

    Initial values that are gone by now are compared by their path alone.
    """
    before, now = _comparable(there), _comparable(here)
    if None not in (there["initial"], here["initial"]):
        before["init_from"], now["init_from"] = there["initial"], here["initial"]
    lines = [
        f"{key}: {before.get(key)!r} there, {now.get(key)!r} now"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and key not in FREE_KEYS
    ]
    meant = {
        role: exchanged(there["data"][role], here["data"][role])
        for role in here["data"] if role in there["data"]
    }
    return lines + [f"data of {role}: {', '.join(words)}" for role, words in meant.items() if words]


def _comparable(record: Mapping) -> dict:
    """By key, without what `exchanged` compares."""
    data = {
        f"data of {role}": {k: v for k, v in of_split.items() if k not in ("classes", "numbers")}
        for role, of_split in record["data"].items()
    }
    return flatten_dict(record["config"], sep=".") | flatten_dict(data, sep=".")


def _identity(split: Split, labels: bool) -> dict:
    """Prepared data keep what `identity` says of the files that they are made of."""
    if split.prepared:
        return split.prepared.identities["pairs" if labels else "images"]
    return identity(split.samples, labels=labels)


def evaluation_settings(split: Split, *, protocol: str, flip: bool, dtype: str) -> dict:
    """What a score depends on besides the network. Scores of other settings are not compared."""
    return {
        "domain": split.domain.spec, "split": split.split, **identity(split.samples),
        "size": list(split.size), "classes": len(split.labels.classes),
        "protocol": protocol, "flip": flip, "dtype": dtype,
        # The name of a known set says what its numbers mean, the count which classes they are.
        **({} if is_known(split.labels) else {"meaning": checksum(meaning(split.labels))}),
    }


def _initial(init_from: str) -> str | None:
    if not init_from:
        return "random"
    try:
        sums = checkpoints.find(init_from).meta["checksums"]["variables"]
    except UserError:  # whoever needs the values says what is wrong
        return None
    return f"{zlib.crc32(json.dumps(sums, sort_keys=True).encode()):08x}"


# ---------------------------------------------------------------- the file


def claim(run: Run) -> None:
    """Records a run that begins, or compares one that goes on with its record and adds the start.

    A folder without a state holds no run yet: the start may have failed over a mistake. Raises
    UserError for a run of other settings or data, and for a damaged record.
    """
    workdir = run.workdir
    here, starts = fingerprint(run.config, run.splits), []
    step = checkpoints.newest_step(workdir)
    start = _start(step or 0)
    if step is not None and (Path(workdir) / RUN_FILE).exists():
        there = read(workdir)
        _refuse_differences(there, here, workdir)
        here["initial"] = here["initial"] or there["initial"]
        starts = there["starts"]
        for line in _changes(starts[-1], start):
            logger.info("since the last start %s", line)
    elif step is not None:
        logger.warning("%s holds states of a run and no %s: whether they are of this configuration "
                       "and data is not known", workdir, RUN_FILE)
    if jax.process_index() == 0:
        record = {**here, "starts": [*starts, start]}
        write_text(Path(workdir) / RUN_FILE, json.dumps(record, indent=1) + "\n")


def read(workdir: str | os.PathLike) -> dict:
    """The record of a run. Raises UserError, with the ways to go on, for a damaged one."""
    path = Path(workdir) / RUN_FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        kinds = {"config": dict, "initial": str | None, "data": dict, "starts": list}
        wrong = [key for key, kind in kinds.items() if not isinstance(record[key], kind)]
        whole = record["starts"] and all("time" in start for start in record["starts"])
        if wrong or not whole:
            raise KeyError(*wrong or ["starts"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise UserError(
            f"{path} is damaged ({reason}). It records what the run is. Put a copy of it back, "
            "remove it to go on with the present configuration and data, or choose another "
            "--workdir"
        ) from None
    return record


def finished(run: Run) -> dict | None:
    """The recorded scores of the last step, by split, if the run is complete. Only reads.

    They are told besides. Raises UserError if the run there is of other settings or data.
    """
    workdir, num_steps = run.workdir, run.config.num_steps
    try:
        final = checkpoints.find(checkpoints.folder(workdir, "final"))
    except UserError:
        return None
    complete = final.step == num_steps and validated(workdir, num_steps)
    results = final.meta.get("scores")
    known = isinstance(results, dict) and results and (Path(workdir) / RUN_FILE).exists()
    if not complete or not known:
        return None
    there = read(workdir)
    _refuse_differences(there, fingerprint(run.config, run.splits), workdir)
    logger.info("the run in %s is complete since step %d, begun %s; nothing is written", workdir,
                final.step, there["starts"][0]["time"])
    logger.info(tables.class_table(results))
    logger.info("done: %s", final.path)
    return results


def validated(workdir: str | os.PathLike, step: int) -> bool:
    """Whether the validation of a step has ended: its line of scores is the last that it writes."""
    scores = (steps for name, (steps, _) in read_scalars(workdir).items() if name[:5] == "eval/")
    return any(step in steps for steps in scores)


def _refuse_differences(there: Mapping, here: Mapping, workdir: str) -> None:
    differing = differences(there, here)
    if differing:
        raise UserError(
            f"{workdir} holds a run of another configuration or of other data "
            f"({'; '.join(differing)}). Choose another --workdir, or set them as they were to go "
            "on with it"
        )


# ---------------------------------------------------------------- versions


def _start(step: int) -> dict:
    device = jax.devices()[0]
    return {
        "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "step": step,
        "code": {"version": _version("snr_jax"), **_commit()},
        "libraries": {"python": platform.python_version()}
        | {name: version for name in LIBRARIES if (version := _version(name))},
        "devices": {"count": jax.device_count(), "kind": device.device_kind,
                    "platform": device.platform, "processes": jax.process_count()},
    }


def _changes(before: Mapping, now: Mapping) -> list[str]:
    old, new = (
        flatten_dict({k: v for k, v in start.items() if k not in ("time", "step")}, sep=".")
        for start in (before, now)
    )
    return [
        f"{key} has changed from {old.get(key)} to {new.get(key)}"
        for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)
    ]


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> dict:
    """The commit of the code and whether files differ from it; None where there is no git."""
    here = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # not just any repository around it
        return {"commit": git("rev-parse", "HEAD"),
                "modified": bool(git("status", "--porcelain", "--", "."))}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "modified": None}
