"""DINOv2 as the transformers package writes it: config.json beside one or more safetensors."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from snr_jax.core.errors import UserError

CONFIG, TENSORS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
MODEL_TYPES = ("dinov2", "dinov2_with_registers")
# What no tensor tells, as all published ones have it and the network here computes it.
_PUBLISHED = {"hidden_act": "gelu", "layer_norm_eps": 1e-6, "use_swiglu_ffn": False}


class Folder(NamedTuple):
    """files: those of the tensors; named: the file that stands for all of them."""

    files: tuple[Path, ...]
    named: Path
    heads: int


def find(path: Path) -> Folder | None:
    """What a folder with a config.json holds; None for a path that is none.

    Raises UserError for another model, and for files that are missing or cannot be read.
    """
    file = path / CONFIG
    if not file.is_file():
        return None
    config = _table(file)
    if config.get("model_type") not in MODEL_TYPES:
        raise UserError(f"{file} has model_type {config.get('model_type')!r}; expected one of "
                        f"{', '.join(MODEL_TYPES)}. Of another network only a file whose names are "
                        "known can be read: give that file")
    for key, value in _PUBLISHED.items():
        if config.get(key, value) != value:
            raise UserError(f"{file} has {key} {config[key]!r}; expected {value!r}, as the "
                            "published ViT-S/14, B/14 and L/14 have it: another network")
    heads = config.get("num_attention_heads")
    if not isinstance(heads, int) or isinstance(heads, bool) or heads < 1:
        raise UserError(f"{file} has num_attention_heads {heads!r}; expected a whole number from 1 "
                        "on. Get the whole file")
    if (path / TENSORS).is_file():
        return Folder((path / TENSORS,), path / TENSORS, heads)
    return Folder(_shards(path), path / INDEX, heads)


def _shards(path: Path) -> tuple[Path, ...]:
    """The files that an index names, all of them there."""
    if not (path / INDEX).is_file():
        raise UserError(f"{path} holds neither {TENSORS} nor {INDEX}; expected one of them. "
                        "Download the folder again, or give its file of another name alone")
    places = _table(path / INDEX).get("weight_map")
    if not (isinstance(places, dict) and places
            and all(isinstance(name, str) and Path(name).name == name
                    for name in places.values())):
        raise UserError(f"{path / INDEX} has no weight_map from tensors to files of its folder. "
                        "Download it again")
    files = tuple(path / name for name in sorted(set(places.values())))
    if absent := [file.name for file in files if not file.is_file()]:
        raise UserError(f"{path} lacks {absent[0]}, which {INDEX} names. Download the folder again")
    return files


def _table(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read: {error}. Download it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} is no table. Download it again")
    return content
