"""A network as a weights folder, from whatever holds it."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from snr_jax.config.arguments import TEACHER
from snr_jax.core.errors import UserError
from snr_jax.core.files import refuse_existing
from snr_jax.core.models.backbone import architecture
from snr_jax.core.models.create import Network as Model
from snr_jax.data import domains
from snr_jax.runs.network import classes_of
from snr_jax.toy.writer import MARKER
from snr_jax.weights import folder as weights_folder
from snr_jax.workdir import checkpoints, metas, record
from snr_jax.workdir.checkpoints import Checkpoint

FILES = (".pth", ".pt", ".safetensors")  # what an export that is no folder ends with


class Network(Protocol):
    """What has a network in memory, as a `Segmenter`."""

    model: Model
    variables: dict
    meta: dict


class _Content(NamedTuple):
    """about: what is known of "licence", "trained_on", "datasets" and "checkpoint"."""

    variables: dict
    meta: dict
    about: dict


def save(
    source: str | os.PathLike | Checkpoint | Network, folder: str | os.PathLike, *,
    licence: str = "", trained_on: str = "",
) -> Path:
    """Writes a weights folder, whole or not at all; its path.

    source: the path of a run, a checkpoint or a weights folder, or what has a model, variables and
    a meta. licence: an identifier as "mit", or words. trained_on: a sentence; by default what the
    run's record says. Of a weights folder both stay as they were, unless given. Raises UserError
    for a source that cannot be read, and for a folder that is there already.
    """
    if Path(folder).suffix in FILES:
        raise UserError(f"{folder} ends as a file; a weights folder is written. Choose another "
                        "name, or write the file by snr-jax convert --export")
    refuse_existing(folder)
    is_path = isinstance(source, str | os.PathLike | Checkpoint)
    variables, meta, about = _on_disk(source) if is_path else _in_memory(source)
    given = {"licence": licence, "trained_on": trained_on}
    about |= {key: text.strip() for key, text in given.items() if text.strip()}
    sums = {"variables": checkpoints.checksums(variables)}
    weights_folder.write(folder, variables, metas.signed(_travelling(meta), sums), about)
    return Path(folder)


def _on_disk(source: str | os.PathLike | Checkpoint) -> _Content:
    found = source if isinstance(source, Checkpoint) else checkpoints.find(source)
    variables, meta = checkpoints.load_variables(found)
    if weights_folder.is_weights_folder(found.path):
        return _Content(variables, meta, weights_folder.read_config(found.path)[1])
    if found.run:  # a teacher has scores beside its student's, under names of its own
        is_teacher = found.name == "teacher"
        of_it = {name: scores for name, scores in meta.get("scores", {}).items()
                 if name.endswith(TEACHER) == is_teacher}
        meta = {**meta, "scores": of_it}
    return _Content(variables, meta, {**_data(found, meta), "checkpoint": found.run and found.name})


def _in_memory(source: Network) -> _Content:
    """What it was read from is told of it only as far as it is still that."""
    variables = jax.tree.map(np.asarray, jax.device_get(dict(source.variables)))
    meta = {**source.meta, "model": architecture(source.model)}
    view = getattr(source, "view", None)
    # What it computes depends on the size that was chosen; one that nobody chose is not invented.
    if view and view.size and not view.tile and not view.why:
        meta["source"] = {**meta.get("source", {}), "input_size": list(view.size)}
    there = meta.get("checksums", {}).get("variables", {})
    if any(there.get(key) != value for key, value in checkpoints.checksums(variables).items()):
        kept = {key: value for key, value in meta.get("source", {}).items() if key == "input_size"}
        meta = {key: meta[key] for key in ("model", "class_names", "class_colors") if key in meta}
        meta["source"] = kept
    elif any(name.endswith(TEACHER) for name in meta.get("scores", {})):
        meta.pop("scores")  # of teacher and student, and which of them this is nothing says
    return _Content(variables, meta, _data(None, meta))


def teacher_beside(found: Checkpoint) -> dict | None:
    """The variables of the mean teacher that a run saved with its last step; None without one."""
    path = found.run and checkpoints.folder(found.run, "teacher")
    if not path or found.name != "final" or not path.is_dir():
        return None
    teacher = checkpoints.find(path)
    return checkpoints.load_variables(teacher)[0] if teacher.step == found.step else None


def _data(found: Checkpoint | None, meta: Mapping) -> dict:
    """What a network was trained on, as far as its run or its meta says: a sentence and names."""
    if found and found.run and (found.run / record.RUN_FILE).is_file():
        there = record.read(found.run)
        begun, words, names = there["config"].get("init_from"), [], []
        for role in (role for role in ("source", "target") if role in there["data"]):
            of, drawn = there["data"][role], _is_drawn(there["config"], role)
            name = domains.name_of(of["domain"])
            words.append(f"{'drawings laid out as ' if drawn else ''}{name} ({of['split']}, "
                         f"{of['images']} images)")
            names += [] if drawn or name in names else [name]
        start = f"the weights {Path(begun).name}" if begun else "random values"
        return {"trained_on": f"{' and, without labels, '.join(words)}, from {start}",
                "datasets": names}
    name = domains.name_of(meta.get("labels", {}).get("domain", ""))
    return {"trained_on": name, "datasets": [name] if name else []}


def _is_drawn(config: Mapping, role: str) -> bool:
    """Whether toys lie where a run found the data of a side, named as what they imitate."""
    root, side = config.get("data", {}).get("root", ""), config.get(role, {}).get("dir", "")
    return (Path(root) / side / MARKER).is_file()


def _travelling(meta: Mapping) -> dict:
    """The meta with all that reading it needs elsewhere, and without paths of this machine."""
    classes = classes_of(dict(meta))
    meta = {**meta, "class_names": [c.name for c in classes],
            "class_colors": [list(c.color) for c in classes],
            "source": {key: v for key, v in meta.get("source", {}).items() if key != "workdir"}}
    return _named(meta)


def _named(value: Any) -> Any:
    """The same with the name of each domain, where its value may be the path of a file."""
    if not isinstance(value, dict):
        return value
    return {key: domains.name_of(v) if key == "domain" and isinstance(v, str) else _named(v)
            for key, v in value.items()}
