"""What a run is, recorded once: WORKDIR/run.json, and what of it must stay when a run goes on.

    config    the configuration, model.dtype as it is computed in where that is "auto"
    initial   "random", or a checksum of the values that init_from names
    data      of every split the number of images and checksums of their ids and of a sample of
              them; where its labels are read, the classes and the numbers that mean them
    starts    every start of the run: time, step, versions of code and libraries, devices
    lengthened    a line for every time that the run got a longer schedule; absent if it never did

All but the starts make its results, up to rounding, and are compared; `fingerprint` and
`differences` do that for whoever keeps a number beside what it was made with. The starts are for
the reader.
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
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from snr_jax.config import keys
from snr_jax.config.arguments import schedule_arguments, to_dict
from snr_jax.core.errors import UserError
from snr_jax.core.files import write_text
from snr_jax.core.models.create import resolve_dtype
from snr_jax.core.optim import poly_schedule
from snr_jax.core.tiles import Averaging
from snr_jax.data import domains
from snr_jax.data.identity import checksum, exchanged, identity, is_known, meaning
from snr_jax.data.splits import Split
from snr_jax.report import tables
from snr_jax.workdir import checkpoints, metas
from snr_jax.workdir.metrics import read_scalars
from snr_jax.workdir.run import Run

logger = logging.getLogger(__name__)

RUN_FILE = "run.json"
# Keys that do not change what a run computes. The data may move: they are compared themselves.
FREE_KEYS = (
    "log_every_steps", "checkpoint_every_steps", "keep_checkpoints", "data.root", "data.prepared",
    "eval.batch_size", "eval.num_pictures",
)
# What of a split is recorded as a checksum, and what it says where it differs.
CHECKSUMS = {"ids": "its images have other names", "content": "its files hold something else"}
LENGTH = ("num_steps", "optimizer.schedule_steps")  # what --lengthen may change
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
    differing = [
        key for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and key not in FREE_KEYS
    ]
    meant = {
        role: exchanged(there["data"][role], here["data"][role])
        for role in here["data"] if role in there["data"]
    }
    moved = {key for key in differing if key.endswith(".domain")
             and _may_be_one(before.get(key, ""), now.get(key, ""))}
    # One's own set is what lies in it; its place is told where that differs.
    if not any(meant.values()) and all(key in moved for key in differing if key[:5] == "data "):
        differing = [key for key in differing if key not in moved]
    lines = [
        f"{key}: {CHECKSUMS.get(key.rpartition('.')[2]) or _values(before.get(key), now.get(key))}"
        for key in differing
    ]
    return lines + [f"data of {role}: {', '.join(words)}" for role, words in meant.items() if words]


def _may_be_one(spec: str, other: str) -> bool:
    """Whether two files of one's own may describe one set, which has moved."""
    both_own = domains.is_own(spec) and domains.is_own(other)
    return both_own and domains.name_of(spec) == domains.name_of(other)


def _values(before: Any, now: Any) -> str:
    return f"{before!r} there, {now!r} now"


def _comparable(record: Mapping) -> dict:
    """By key, without what `exchanged` compares."""
    data = {
        f"data of {role}": {k: v for k, v in of_split.items() if k not in ("classes", "numbers")}
        for role, of_split in record["data"].items()
    }
    found = _with_defaults(record["config"]) | flatten_dict(data, sep=".")
    return found | {"lengthened": record.get("lengthened")}


def _with_defaults(config: Mapping) -> dict:
    """The recorded keys, flat; one that came later has the value that was in force before it."""
    before = json.loads(json.dumps({key: row.default for key, row in keys.KEYS.items()}))
    before["model.dtype"] = resolve_dtype(before["model.dtype"])
    return before | flatten_dict(config, sep=".")


def configuration(record: Mapping) -> ConfigDict:
    """The configuration of a record, in which every key of today has a value."""
    return ConfigDict(unflatten_dict(_with_defaults(record["config"]), sep="."))


def _identity(split: Split, labels: bool) -> dict:
    """Prepared data keep what `identity` says of the files that they are made of."""
    if split.prepared:
        return split.prepared.identities["pairs" if labels else "images"]
    return identity(split.samples, labels=labels)


def evaluation_settings(
    split: Split, *, protocol: str, flip: bool, dtype: str, averaging: Averaging | None = None
) -> dict:
    """What a score depends on besides the network. Scores of other settings are not compared.

    Tiles of the labels' own size are of the image's own: "size" is "own" then.
    """
    tile, overlap, scales = averaging or Averaging()
    return {
        "domain": split.domain.spec, "split": split.split, **identity(split.samples),
        "size": "own" if tile and protocol == "full" else list(split.size),
        "classes": len(split.labels.classes),
        "protocol": protocol, "flip": flip, "dtype": dtype,
        **({"tile": list(tile), "overlap": overlap} if tile else {}),
        **({"scales": list(scales)} if scales != Averaging().scales else {}),
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


def claim(run: Run, lengthen: bool = False) -> None:
    """Records a run that begins, or compares one that goes on with its record and adds the start.

    A folder without a state holds no run yet: the start may have failed over a mistake. lengthen:
    whether it may have more steps than it had. Raises UserError for a run of other settings or
    data, and for a damaged record.
    """
    workdir = run.workdir
    here, starts = fingerprint(run.config, run.splits), []
    step = checkpoints.newest_step(workdir)
    start = _start(step or 0)
    if step is not None and (Path(workdir) / RUN_FILE).exists():
        there = read(workdir)
        longer = _refuse_differences(there, here, workdir, lengthen)
        here["initial"] = here["initial"] or there["initial"]
        if lengthened := [*there.get("lengthened", []), *_tell_longer(run.config, longer, step)]:
            here["lengthened"] = lengthened
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
        reason = _fault(record)
    except (ValueError, RecursionError) as error:
        record, reason = None, str(error)
    if reason:
        raise UserError(
            f"{path} is damaged ({reason}). It records what the run is. Put a copy of it back, "
            "remove it to go on with the present configuration and data, or choose another "
            "--workdir"
        )
    return record


def _fault(record: Any) -> str:
    """What is wrong with a record that is whole JSON, in words; "" if nothing."""
    if not isinstance(record, dict):
        return "it is no table"
    kinds = {"config": dict, "initial": str | None, "data": dict, "starts": list}
    for key, kind in kinds.items():
        if key not in record or not isinstance(record[key], kind):
            return f"its {key!r} is {record.get(key)!r}"[:80]
    config = flatten_dict(record["config"], sep=".")
    if absent := [key for key in ("seed", "num_steps", "source.domain") if key not in config]:
        return f"its 'config' lacks {absent[0]!r}"
    sections = {key.partition(".")[0] for key in keys.KEYS if "." in key}
    for key in sorted(config.keys() & (keys.KEYS.keys() | sections)):
        if key in sections:
            return f"its 'config' has no table {key!r}"
        if not keys.KEYS[key].legal.accepts(config[key]):
            return f"its 'config' has {keys.refusal(key, config[key])}"
    for role in {"source", "source_val"} | record["data"].keys():
        of_split = record["data"].get(role)
        rows = isinstance(of_split, dict) and (of_split.get("images"), of_split.get("split"))
        if not (rows and isinstance(rows[0], int) and isinstance(rows[1], str)):
            return f"its 'data' has no images and split of {role}"
    starts = record["starts"]
    whole = all(isinstance(s, dict) and isinstance(s.get("time"), str) for s in starts)
    if not (starts and whole):
        return "its 'starts' lack a time"
    if not isinstance(record.get("lengthened", []), list):
        return "its 'lengthened' is no list"
    return ""


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
    try:
        checkpoints.prove(final.path)
    except UserError as error:
        if checkpoints.newest_step(workdir) is not None:
            return None  # it is made anew from there
        raise UserError(
            f"the run in {workdir} is complete, but {str(error).removesuffix(metas.ADVICE)}, and "
            "no state is left to make it anew. Put a copy back, use its best_source, or choose "
            "another --workdir to train again"
        ) from None
    logger.info("the run in %s is complete since step %d, begun %s; nothing is written", workdir,
                final.step, there["starts"][0]["time"])
    logger.info(tables.class_table(results))
    logger.info("done: %s", final.path)
    return results


def validated(workdir: str | os.PathLike, step: int) -> bool:
    """Whether the validation of a step has ended: its line of scores is the last that it writes."""
    scores = (steps for name, (steps, _) in read_scalars(workdir).items() if name[:5] == "eval/")
    return any(step in steps for steps in scores)


def _refuse_differences(
    there: Mapping, here: Mapping, workdir: str, lengthen: bool = False
) -> dict[str, tuple[int, int]]:
    """The keys of a run that is to be lengthened: key → its value there and here; else {}."""
    differing = differences(there, {**here, "lengthened": there.get("lengthened")})
    longer = _longer(there, here)
    others = [line for line in differing if line.partition(":")[0] not in longer]
    if others or (longer and not lengthen):
        way = "" if others else ", or add --lengthen, which goes on with it to the new length"
        raise UserError(
            f"{workdir} holds a run of another configuration or of other data "
            f"({'; '.join(differing)}). Choose another --workdir, or set them as they were to go "
            f"on with it{way}"
        )
    return longer


def _longer(there: Mapping, here: Mapping) -> dict[str, tuple[int, int]]:
    old, new = _with_defaults(there["config"]), _with_defaults(here["config"])
    pairs = {key: (old[key], new[key]) for key in LENGTH if old[key] != new[key]}
    return pairs if "num_steps" in pairs and all(a < b for a, b in pairs.values()) else {}


def _tell_longer(
    config: ConfigDict, longer: Mapping[str, tuple[int, int]], step: int
) -> list[str]:
    """Says what becomes of a run that is lengthened; of a change of its schedule also the line."""
    if not longer:
        return []
    before, now = longer["num_steps"]
    logger.info("lengthened        from %d to %d steps; checkpoints/final is that of step %d until "
                "the end", before, now, before)
    if "optimizer.schedule_steps" not in longer:
        logger.info("learning rate     as before: the run is that of %d steps from its start", now)
        return []
    old, new = longer["optimizer.schedule_steps"]
    schedule = {**schedule_arguments(config), "base_rate": 1.0}
    shares = [float(poly_schedule(**schedule | {"num_steps": steps})(step)) for steps in (old, new)]
    logger.info("learning rate     jumps at step %d from %.3g to %.3g of base_rate, as it falls to "
                "0 in %d steps and not in %d: the run is not that of %d steps from its start",
                step, *shares, new, old, now)
    return [f"from step {step} on schedule_steps {new}, before {old}"]


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
