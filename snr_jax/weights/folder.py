"""A weights folder: a network that travels, in the layout of the public hubs.

    model.safetensors   every tensor by its published PyTorch name and in PyTorch's layout
    config.json         what a checkpoint's meta says, and beside it what others need to know
    README.md           the model card, made from config.json

What is read back is what was written, bit for bit, or one line says what is wrong.
"""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from snr_jax.core.errors import UserError
from snr_jax.core.files import without_nan, written_whole
from snr_jax.core.models.create import NETWORKS, Network, create_recorded
from snr_jax.core.state import variable_shapes
from snr_jax.weights.card import card
from snr_jax.weights.kinds import KINDS
from snr_jax.weights.torch_names import Variables

TENSORS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
FORMAT = 1
ADVICE = ". Copy the folder again, or write it anew with snr_jax.save"
# Keys of config.json that are no part of a checkpoint's meta.
ABOUT = ("library", "format", "licence", "trained_on", "datasets", "checkpoint", "preprocessing")
_NEEDED = ("class_names", "class_colors", "preprocessing", "checksums", "checksum")
_EXTRA = "restitution"  # begins the modules of training alone
_COUNTER = ".num_batches_tracked"
_WEIGHTS, _COUNTS = ("F32", "F64"), ("I64",)


def is_weights_folder(path: Path) -> bool:
    """Whether it was meant as one: if a file is missing, reading it says so."""
    return (path / TENSORS).is_file() or (path / CONFIG).is_file()


def is_of_this_project(path: Path) -> bool:
    """Whether its config.json is one that `write` has written, as far as it can be read."""
    try:
        return json.loads((path / CONFIG).read_text(encoding="utf-8"))["library"] == "snr_jax"
    except (OSError, ValueError, RecursionError, TypeError, KeyError):
        return False


def preprocessing(meta: Mapping) -> dict:
    """What becomes of a photograph, uint8 RGB, before the first layer, as JSON gives it back.

    As `Preprocessing` says, which has 255 and 1 for what images of 0 to 255 are divided by first.
    exposure: whether each image is scaled to one mean brightness first. size: [height, width] that
    the network saw in training; None where that is not recorded.
    """
    size, model = meta.get("source", {}).get("input_size"), meta["model"]
    known = NETWORKS[model["backbone"]].backbone.preprocessing
    scaled = {} if known.channels == "BGR" else {
        "unit": known.unit, "deviation": list(known.deviation)}
    return {"channels": known.channels, "mean": list(known.mean), **scaled,
            "exposure": model.get("exposure", False), "size": size and list(size)}


# ---------------------------------------------------------------- writing


def write(path: str | os.PathLike, variables: Variables, meta: Mapping, about: Mapping) -> None:
    """Writes the folder whole or not at all.

    variables: numpy. meta: that of a checkpoint, with checksums and the names and colours of its
    classes. about: "licence", "trained_on", "datasets" and "checkpoint", as far as they are known.
    """
    config = {
        "library": "snr_jax", "format": FORMAT,
        **{key: about.get(key) or None
           for key in ("licence", "trained_on", "datasets", "checkpoint")},
        **{key: value for key, value in meta.items() if not key.startswith("checksum")},
        "preprocessing": preprocessing(meta),
        **{key: value for key, value in meta.items() if key.startswith("checksum")},
    }
    config = json.loads(json.dumps(config))
    counters = meta.get("source", {}).get("num_batches_tracked", {})
    tensors = _tensors(meta["model"]["backbone"], variables, counters)
    _require_fitting(tensors, _shapes(_network(meta)))
    numbers = sum(np.size(leaf) for path, leaf in flatten_dict(variables["params"]).items()
                  if not path[0].startswith(_EXTRA))
    with written_whole(path) as unfinished:
        unfinished.mkdir()
        write_tensors(unfinished / TENSORS, tensors)
        text = json.dumps(without_nan(config), indent=1, ensure_ascii=False, allow_nan=False)
        (unfinished / CONFIG).write_text(text + "\n", encoding="utf-8")
        text = card(Path(path).absolute().name, config, numbers)
        (unfinished / CARD).write_text(text, encoding="utf-8")


def write_tensors(path: str | os.PathLike, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a safetensors file of arrays in PyTorch's layout."""
    # The library writes the memory as it lies; others read "pt" as a sign of the layout.
    in_order = {name: np.asarray(value, order="C") for name, value in tensors.items()}
    Path(path).write_bytes(save(in_order, {"format": "pt"}))  # save_file is for its owner alone


def _tensors(
    kind: str, variables: Variables, counters: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """Every variable by its name in the file; counters: those of batch norms that are not 0."""
    flat = flatten_dict(variables)
    own = {path: name for path in flat if _is_own(kind, name := ".".join(path[1:]))}
    published = {path: leaf for path, leaf in flat.items() if path not in own}
    tensors = KINDS[kind].names_out(unflatten_dict(published))
    tensors |= {name: np.array(n, np.int64) for name, n in counters.items() if name in tensors}
    return tensors | {name: flat[path] for path, name in own.items()}


def _is_own(kind: str, name: str) -> bool:
    return re.match(KINDS[kind].own, name) is not None


def _require_fitting(have: Mapping[str, np.ndarray], want: Mapping[str, tuple[int, ...]]) -> None:
    """UserError for tensors that could not be read back as those of the network."""
    odd = [name for name in want.keys() | have.keys()
           if name not in have or have[name].shape != want.get(name)]
    if odd:
        raise UserError(f"{len(odd)} tensors are not those of the model, {min(odd)} among them; "
                        "expected its variables, in their shapes")
    for name, value in have.items():
        if value.dtype not in (np.float32, np.float64) and not name.endswith(_COUNTER):
            raise UserError(f"{name} is {value.dtype}; expected float32, in which parameters and "
                            "statistics are kept whatever the network computes in")


def _with_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: v if key == "settings" else _with_nan(v) for key, v in value.items()}
    return math.nan if value is None else value


# ---------------------------------------------------------------- reading


def read_config(path: Path) -> tuple[dict, dict]:
    """The meta of a folder's network, not yet checked, and the keys ABOUT that stand beside it.

    Raises UserError for a file that is missing, no JSON, or not of a weights folder.
    """
    file = path / CONFIG
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file} is missing, without which {TENSORS} does not say what network it "
                        f"is of{ADVICE}. A file of PyTorch alone is read by "
                        "scripts/convert_torch_ckpt.py") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read: {error}{ADVICE}") from None
    if not isinstance(config, dict) or config.get("library") != "snr_jax":
        found = config if isinstance(config, dict) else {}
        whose = next((f" (its {key} is {found[key]!r})" for key in
                      ("library", "model_type", "architectures", "library_name") if key in found),
                     "")
        raise UserError(f"{file} is of another project{whose}; expected what snr_jax.save writes, "
                        "with library snr_jax. Weights of the published PyTorch lineage are read "
                        "by scripts/convert_torch_ckpt.py")
    if config.get("format") != FORMAT:
        raise UserError(f"{file} has format {config.get('format')!r}; this version reads {FORMAT}. "
                        "Install the version of snr_jax that wrote it, or a later one")
    if lacking := [key for key in _NEEDED if key not in config]:
        raise UserError(f"{file} lacks {lacking[0]!r}{ADVICE}")
    for key in ("licence", "trained_on", "checkpoint"):
        if not isinstance(config.get(key), str | None):
            raise UserError(f"{file} has {key} {config[key]!r}; expected a text, or null. "
                            "Mend it there")
    names = config.get("datasets") or []
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise UserError(f"{file} has datasets {names!r}; expected a list of names, or null. "
                        "Mend it there")
    meta = {key: value for key, value in config.items() if key not in ABOUT}
    if isinstance(meta.get("scores"), dict):
        meta["scores"] = _with_nan(meta["scores"])
    return meta, {key: config[key] for key in ABOUT if key in config}


def check_about(path: Path, meta: Mapping, about: Mapping) -> None:
    """Raises UserError where config.json asks for another input than the network has."""
    want, have = preprocessing(meta), about.get("preprocessing")
    if have != want:
        given = have if isinstance(have, dict) else {}
        key = next((key for key in want if given.get(key) != want[key]), next(iter(want)))
        raise UserError(f"{path / CONFIG} has preprocessing.{key} {given.get(key)!r}; this network "
                        f"was trained with {want[key]!r}{ADVICE}")


def read_variables(path: Path, meta: Mapping) -> Variables:
    """The variables (numpy) of a folder, of the names, shapes and dtypes that its meta tells.

    Their values are not compared with their checksums here. Raises UserError for a file that is
    missing or damaged, and for a missing, further, misshapen or other tensor.
    """
    file = path / TENSORS
    try:
        want = _shapes(_network(meta))
    except UserError as error:
        raise UserError(f"{path / CONFIG} has {error}{ADVICE}") from error
    try:
        with safe_open(file, framework="numpy") as opened:
            names = opened.keys()
            slices = {name: opened.get_slice(name) for name in names}
            have = {name: (tuple(one.get_shape()), one.get_dtype()) for name, one in slices.items()}
            _refuse_others(file, have, want)
            tensors = {name: opened.get_tensor(name) for name in names}
    except FileNotFoundError:
        raise UserError(f"{file} is missing{ADVICE}") from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} is no whole safetensors file ({_reason(file, error)}){ADVICE}"
                        ) from None
    kind = meta["model"]["backbone"]
    own = {("params", *name.split(".")): value for name, value in tensors.items()
           if _is_own(kind, name)}
    variables = KINDS[kind].names_in({k: v for k, v in tensors.items() if not _is_own(kind, k)})
    return {name: {} for name in variables} | unflatten_dict(flatten_dict(variables) | own)


def _network(meta: Mapping) -> Network:
    """The network of a meta, with the classifiers of its training where it holds them."""
    with_extra = any(f"['{_EXTRA}" in key for key in meta["checksums"]["variables"])
    model = {key: tuple(value) if isinstance(value, list) else value
             for key, value in meta["model"].items()}
    return create_recorded(model, restitution_heads=with_extra)


@lru_cache(maxsize=4)
def _shapes(network: Network) -> dict[str, tuple[int, ...]]:
    """The shape of each of its tensors, by its name in the file."""
    flat = {path: np.zeros(leaf.shape, np.int8)
            for path, leaf in flatten_dict(variable_shapes(network)).items()}
    tensors = _tensors(network.backbone.kind, unflatten_dict(flat), {})
    return {name: value.shape for name, value in tensors.items()}


def _refuse_others(
    file: Path, have: Mapping[str, tuple[tuple[int, ...], str]],
    want: Mapping[str, tuple[int, ...]],
) -> None:
    if missing := [name for name in want if name not in have]:
        raise UserError(f"{file} lacks {_examples(missing)}, which the network of {CONFIG} has"
                        f"{ADVICE}")
    if further := [name for name in have if name not in want]:
        raise UserError(f"{file} holds {_examples(further)}, which the network of {CONFIG} does "
                        f"not have{ADVICE}")
    for name, (shape, dtype) in have.items():
        if shape != want[name]:
            raise UserError(f"{file}: {name} has the shape {shape}; the network of {CONFIG} has "
                            f"{want[name]}: one of the two files is of another network{ADVICE}")
        legal = _COUNTS if name.endswith(_COUNTER) else _WEIGHTS
        if dtype not in legal:
            raise UserError(f"{file}: {name} is {dtype}; expected {' or '.join(legal)}{ADVICE}")


def _examples(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _reason(file: Path, error: Exception) -> str:
    with open(file, "rb") as opened:
        if opened.read(20).startswith(b"version https://git"):
            return "it is a pointer of Git LFS, which git lfs pull replaces by the file"
    return str(error)
