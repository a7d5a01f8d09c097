"""The meta of a checkpoint: what it holds, of which kinds, and a checksum of itself."""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from snr_jax.config.legal import SWITCH, Legal, one_of, several, text, whole
from snr_jax.core.errors import UserError
from snr_jax.core.models.create import NETWORKS
from snr_jax.core.models.deeplab import NORM_RESTITUTIONS

OWN = "checksum"  # the key of the meta's own; older checkpoints have none
ADVICE = ". Use another checkpoint"


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_score(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)  # nan is one


def _list_of(of: Legal) -> Legal:
    def accepts(value: Any) -> bool:
        return isinstance(value, list | tuple) and all(map(of.accepts, value))

    return Legal(f"a list, each {of.words}", accepts)


TABLE, SCORE = Legal("a table", _is_table), Legal("a number", _is_score)
KINDS = {
    "model": TABLE, "model.backbone": one_of(*NETWORKS), "model.num_classes": whole(1),
    "model.stage_sizes": several(4, whole(1)),
    "model.width": whole(1), "model.norm_restitution": one_of(*NORM_RESTITUTIONS),
    "model.head_branches": one_of(2, 4), "model.stride_in": one_of("conv1", "conv2"),
    "model.exposure": SWITCH, "model.depth": whole(1), "model.heads": whole(1),
    "model.patch": whole(1), "model.grid": whole(1), "model.registers": whole(0),
    "model.snr_after": _list_of(whole(0)),
    "checksums": TABLE, "checksums.variables": TABLE,
    "source": TABLE, "source.step": whole(0), "source.input_size": several(2, whole(1)),
    "source.heads": _list_of(text(empty=False)), "source.num_batches_tracked": TABLE,
    "scores": TABLE, "class_names": _list_of(text(empty=False)),
    "class_colors": _list_of(several(3, whole(0, 255))),
}  # fmt: skip
FIRST = "resnet"  # the kind of every network whose meta does not say it
LATER = {FIRST: {"exposure": False}}  # arguments of a kind that came later, as they were before
REQUIRED = ("model", "checksums", "checksums.variables")


def checksum(meta: Mapping) -> int:
    """Of all but itself, in the one form that JSON has for it."""
    rest = {name: value for name, value in meta.items() if name != OWN}
    return zlib.crc32(json.dumps(rest, sort_keys=True).encode())


def checked(path: Path, meta: Any, *, called: str = "its meta", advice: str = ADVICE) -> dict:
    """The meta, with what older ones do not say.

    Raises UserError where it is damaged or holds what no checkpoint does. called: what the message
    calls it; advice: the remedy there.
    """
    if reason := fault(meta):
        raise UserError(f"{path} cannot be read: {reason.replace('its meta', called)}{advice}")
    kind = _kind(meta["model"])
    return {**meta, "model": {"backbone": kind} | LATER.get(kind, {}) | meta["model"]}


def _kind(model: Mapping) -> str:
    return model.get("backbone", FIRST)


def signed(meta: Mapping, checksums: Mapping[str, Mapping[str, int]]) -> dict:
    """The meta with the checksums of its items, in place of earlier ones, and of itself."""
    meta = {**meta, "checksums": checksums}
    return {**meta, OWN: checksum(meta)}


def fault(meta: Any) -> str:
    """What is wrong with a meta, in words; "" for one that is whole."""
    if not _is_table(meta):
        return f"its meta is {_short(meta)}; expected a table"
    for key, legal in KINDS.items():
        value, there = meta, True
        for part in key.split("."):
            there = there and part in value
            value = value[part] if there else None
        if not there and key in REQUIRED:
            return f"its meta lacks {key!r}"
        if there and not legal.accepts(value):
            return f"its meta has {key} {_short(value)}; expected {legal.words}"
    if lacking := _lacking(meta["model"]):
        return f"its meta lacks 'model.{lacking}'"
    # The name of the checksum is as open to damage as the rest: no other value is a number.
    if any(isinstance(value, int) for name, value in meta.items() if name != OWN) or not all(
        map(_is_table, meta["checksums"].values())
    ):
        return "its meta is damaged: it names a checksum of nothing"
    if meta.get(OWN, checksum(meta)) != checksum(meta):
        return "its meta is damaged: it differs from its checksum"
    return _odd_scores(meta.get("scores", {})) or _odd_classes(meta)


def _lacking(model: Mapping) -> str:
    """An argument of its kind of network that a meta does not hold."""
    kind = _kind(model)
    optional = LATER.get(kind, {})
    return next((key for key in NETWORKS[kind].backbone.architecture
                 if key not in model and key not in optional), "")


def _odd_scores(scores: Mapping) -> str:
    for split, of_split in scores.items():
        rows = {f"scores.{split}": (of_split, TABLE)}
        if _is_table(of_split):
            tables = {k: v for k, v in of_split.items() if k in ("iou", "settings")}
            rows |= {f"scores.{split}.{k}": (v, TABLE) for k, v in tables.items()}
            numbers = {k: v for k, v in of_split.items() if k not in tables}
            if _is_table(tables.get("iou")):
                numbers |= {f"iou.{k}": v for k, v in tables["iou"].items()}
            rows |= {f"scores.{split}.{k}": (v, SCORE) for k, v in numbers.items()}
        for key, (value, legal) in rows.items():
            if not legal.accepts(value):
                return f"its meta has {key} {_short(value)}; expected {legal.words}"
    return ""


def _odd_classes(meta: Mapping) -> str:
    count = meta["model"]["num_classes"]
    for key in ("class_names", "class_colors"):
        if key in meta and len(meta[key]) != count:
            return f"its meta has {len(meta[key])} {key} for {count} classes"
    return ""


def _short(value: Any) -> str:
    words = repr(value)
    return words if len(words) <= 60 else f"{words[:57]}..."
