"""Names and layouts of DINOv2's published weights against the variables of `ViTSegmenter`.

Three kinds of files hold them: DINOv2's own (`blocks.0.attn.qkv.weight`), those of the transformers
package (`encoder.layer.0.attention.attention.query.weight`; query, key and value apart), and
VFM-UDA's trainings (`network.encoder.*`, `network.upscale.*`, `network.out.weight`, and the teacher
beside them as `network_ema.*`). All are read as the last kind without its first word, and written
in any of the three. A state dict is a mapping from PyTorch names to numpy arrays.
"""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from snr_jax.core.errors import UserError
from snr_jax.weights.torch_names import Account, StateDict, Variables, strip_prefixes

NETWORKS = ("network", "network_ema")
HEAD_WIDTH = 64  # of the published networks; the number of heads stands in no file
GROUPS = (  # what an account counts together: (label, pattern of names)
    ("patches and tokens", r"encoder\.(cls|mask|register_tokens|pos|patch|norm)"),
    ("blocks", r"encoder\.blocks\."),
    ("head", r"(upscale|out)\."),
    ("snr", r"encoder/snr_"),
    ("restitution classifiers", r"restitution_"),
    ("student or teacher, the other", r"network(_ema)?\."),
    ("other", r""),
)
_TRANSFORMERS = (  # (name in transformers, name in DINOv2); `{}` is a number
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.mask_token", "mask_token"),
    ("embeddings.register_tokens", "register_tokens"),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
    ("encoder.layer.{}.norm1.", "blocks.{}.norm1."),
    ("encoder.layer.{}.attention.attention.query.", "blocks.{}.attn.q."),
    ("encoder.layer.{}.attention.attention.key.", "blocks.{}.attn.k."),
    ("encoder.layer.{}.attention.attention.value.", "blocks.{}.attn.v."),
    ("encoder.layer.{}.attention.output.dense.", "blocks.{}.attn.proj."),
    ("encoder.layer.{}.layer_scale1.lambda1", "blocks.{}.ls1.gamma"),
    ("encoder.layer.{}.norm2.", "blocks.{}.norm2."),
    ("encoder.layer.{}.mlp.", "blocks.{}.mlp."),
    ("encoder.layer.{}.layer_scale2.lambda1", "blocks.{}.ls2.gamma"),
    ("layernorm.", "norm."),
)
_RENAMED = {f"attention.{new}_proj.": f"attention.attention.{old}." for new, old in
            (("q", "query"), ("k", "key"), ("v", "value"))} | {  # transformers 5 in memory
    "attention.o_proj.": "attention.output.dense."}


class Found(NamedTuple):
    """The tensors of one network under the names of VFM-UDA, and those that are none of it."""

    tensors: dict[str, np.ndarray]
    unused: tuple[str, ...]
    kind: str


def _renamed(name: str, old: str, new: str) -> str | None:
    """A name that begins as template `old`, begun as `new`; None where it does not."""
    match = re.match(re.escape(old).replace(r"\{\}", r"(\d+)"), name)
    return match and new.format(*match.groups()) + name[match.end():]


def _from_transformers(name: str) -> str | None:
    """'layernorm.bias' → 'norm.bias', whatever stands before; None for another network's name."""
    found = re.search(r"(^|\.)(embeddings\.|encoder\.layer\.|layernorm\.)", name)
    name = name[found.start(2):] if found else name
    for new, old in _RENAMED.items():
        name = name.replace(new, old)
    names = (_renamed(name, *row) for row in _TRANSFORMERS)
    return next(filter(None, names), None)


def _joined(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """query, key and value of each block as one tensor. Raises UserError where one is missing."""
    joined = {}
    for name, value in tensors.items():
        part = re.fullmatch(r"(.*\.attn\.)[qkv]\.(weight|bias)", name)
        if not part:
            joined[name] = value
            continue
        names = [f"{part[1]}{letter}.{part[2]}" for letter in "qkv"]
        if absent := [name for name in names if name not in tensors]:
            raise UserError(f"{name} without {', '.join(absent)}; expected query, key and value of "
                            "a block: the file is incomplete, get the whole one")
        joined[f"{part[1]}qkv.{part[2]}"] = np.concatenate([tensors[name] for name in names])
    return joined


def read_names(raw: StateDict, network: str = "network") -> Found:
    """One network's tensors of a file of any of the three kinds, in their own layouts.

    network: of a training of VFM-UDA the student's ("network") or the teacher's ("network_ema").
    Raises UserError for another kind of file, and for a teacher that is not there.
    """
    state_dict = strip_prefixes(raw)
    if any(name.split(".")[0] in NETWORKS for name in state_dict):
        mine = {name.removeprefix(f"{network}."): value for name, value in state_dict.items()
                if name.startswith(f"{network}.")}
        if not mine:
            raise UserError(f"no tensor {network}.*; expected those of a training of VFM-UDA, and "
                            "of its student (--weights model: network) and its mean teacher "
                            "(--weights ema_model: network_ema) the other alone is there: ask for "
                            "that")
        others = tuple(name for name in state_dict if not name.startswith(f"{network}."))
        return Found(_one_mask_token(mine), others, f"a training of VFM-UDA, its {network}")
    if "encoder.patch_embed.proj.weight" in state_dict:
        return Found(_one_mask_token(state_dict), (), "a segmenter of VFM-UDA")
    if "patch_embed.proj.weight" in state_dict:
        own = {f"encoder.{name}": value for name, value in state_dict.items()}
        return Found(own, (), "DINOv2's own")
    if any(name.endswith("embeddings.patch_embeddings.projection.weight") for name in state_dict):
        names = {name: _from_transformers(name) for name in state_dict}
        tensors = {f"encoder.{mine}": state_dict[name] for name, mine in names.items() if mine}
        strange = tuple(name for name, mine in names.items() if not mine)
        return Found(_joined(tensors), strange, "Dinov2Model of transformers")
    examples = ", ".join(list(state_dict)[:3]) or "nothing"
    raise UserError("no patch embedding under a known name (patch_embed.proj.weight, "
                    "network.encoder.patch_embed.proj.weight, "
                    "embeddings.patch_embeddings.projection.weight); expected DINOv2's weights, "
                    f"found {examples} ...")


def recognises(raw: StateDict) -> bool:
    """Whether a file is of one of the three kinds."""
    return any(re.search(r"(^|\.)patch_embed(dings\.projection|\.proj)\.weight$", name)
               for name in raw)


def _one_mask_token(state_dict: StateDict) -> dict[str, np.ndarray]:
    """Without the second name of the mask token, which PyTorch loads last."""
    state_dict = dict(state_dict)
    second = state_dict.pop("token_masking.mask_token", None)
    return state_dict if second is None else state_dict | {"encoder.mask_token": second}


def infer_architecture(tensors: StateDict, heads: int | None = None) -> dict:
    """Arguments of `ViTSegmenter` from names and shapes; `num_classes` is None without a head.

    heads: by default one for each 64 channels. Raises UserError for another kind of network.
    """
    kernel, position = (tensors.get(f"encoder.{name}") for name in
                        ("patch_embed.proj.weight", "pos_embed"))
    if np.ndim(kernel) != 4 or np.ndim(position) != 3:
        raise UserError(f"patch_embed.proj.weight has the shape {np.shape(kernel)}, pos_embed "
                        f"{np.shape(position)}; expected four axes and three, as DINOv2's")
    width, patch = kernel.shape[0], kernel.shape[2]
    grid = math.isqrt(position.shape[1] - 1)
    if grid * grid != position.shape[1] - 1:
        raise UserError(f"pos_embed has {position.shape[1]} positions; expected one and a square")
    found = (re.match(r"encoder\.blocks\.(\d+)\.", name) for name in tensors)
    blocks = {int(match[1]) for match in found if match}
    if not blocks or blocks != set(range(len(blocks))):
        raise UserError(f"it has the blocks {sorted(blocks)}; expected 0, 1, ... without gaps: the "
                        "file is incomplete or another network")
    if any(".mlp.w12." in name for name in tensors):
        raise UserError("its blocks have mlp.w12, as ViT-g/14's; expected ViT-S/14, B/14 or L/14, "
                        "with mlp.fc1")
    if not heads and width % HEAD_WIDTH:
        raise UserError(f"its tokens have {width} channels, no multiple of {HEAD_WIDTH}, and the "
                        "number of heads stands in no file: give it")
    registers, out = (tensors.get(name) for name in ("encoder.register_tokens", "out.weight"))
    return {
        "num_classes": None if out is None else int(out.shape[0]),
        "width": int(width), "depth": len(blocks), "heads": heads or width // HEAD_WIDTH,
        "patch": int(patch), "grid": grid,
        "registers": 0 if registers is None else int(registers.shape[1]),
    }


def _name_of(path: tuple[str, ...]) -> str | None:
    """('encoder', 'blocks_0', 'ls1', 'gamma') → 'encoder.blocks.0.ls1.gamma'; None without one."""
    if path[0].startswith("restitution_") or path[1].startswith("snr_"):
        return None
    *modules, leaf = path[1:] if path[0] == "head" else path
    modules = [re.sub(r"^(blocks|upscale)_(\d+)$", r"\1.\2", module) for module in modules]
    return ".".join([*modules, "weight" if leaf in ("kernel", "scale") else leaf])


def _path_of(name: str, axes: int) -> tuple[str, ...]:
    """The inverse of `_name_of`. axes: of the tensor, by which weights have two names here."""
    module, _, leaf = name.rpartition(".")
    modules = re.sub(r"\b(blocks|upscale)\.(\d+)", r"\1_\2", module).split(".")
    if leaf == "weight":
        leaf = "scale" if axes == 1 else "kernel"
    return (*(() if modules[0] == "encoder" else ("head",)), *modules, leaf)


def _to_ours(name: str, value: np.ndarray) -> np.ndarray:
    """A tensor in our layout."""
    if not name.endswith(".weight") or np.ndim(value) not in (2, 4):
        return np.asarray(value)
    if np.ndim(value) == 2:
        value = value.T  # [I,O]
    elif name.endswith("patch_embed.proj.weight"):
        value = value.transpose(2, 3, 1, 0).reshape(-1, len(value))  # [p*p*3,O]
    elif re.fullmatch(r"upscale\.[03]\.weight", name):
        value = value.transpose(0, 2, 3, 1).reshape(len(value), -1)  # [I,4*O]
    else:
        value = value.transpose(2, 3, 1, 0)  # [H,W,I,O]
    return np.ascontiguousarray(value)


def _to_theirs(name: str, value: np.ndarray) -> np.ndarray:
    """The inverse of `_to_ours`."""
    if not name.endswith(".weight") or np.ndim(value) not in (2, 4):
        return np.asarray(value)
    if name.endswith("patch_embed.proj.weight"):
        side = math.isqrt(len(value) // 3)
        value = value.reshape(side, side, 3, -1).transpose(3, 2, 0, 1)
    elif re.fullmatch(r"upscale\.[03]\.weight", name):
        value = value.reshape(len(value), 2, 2, -1).transpose(0, 3, 1, 2)
    else:
        value = value.T if np.ndim(value) == 2 else value.transpose(3, 2, 0, 1)
    return np.ascontiguousarray(value)


def fill(
    initial: Variables, tensors: StateDict, unused: tuple[str, ...] = ()
) -> tuple[Variables, Account]:
    """Initial variables with a file's tensors in their places, and an account of every tensor.

    tensors: under the names of VFM-UDA, as `read_names` gives them; unused: what else is in the
    file. Missing ones keep their initial values. Raises UserError naming tensors of other shapes.
    """
    flat = flatten_dict(initial["params"])
    named = {path: _name_of(path) for path in flat}
    loaded = {path: _to_ours(name, tensors[name]) for path, name in named.items()
              if name in tensors}
    wrong = [f"{named[path]} has {np.shape(tensors[named[path]])}, expected "
             f"{_to_theirs(named[path], np.empty(flat[path].shape)).shape}"
             for path, value in loaded.items() if value.shape != flat[path].shape]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise UserError(f"{len(wrong)} tensors do not fit: {'; '.join(wrong[:5])}{more}. Likely "
                        "cause: another number of classes or size of network; set the model to "
                        "what the file holds")
    names = set(filter(None, named.values()))
    account = Account(
        matched=tuple(name for name in named.values() if name in tensors),
        missing=tuple(name or "/".join(path) for path, name in named.items()
                      if name not in tensors),
        unused=(*(name for name in tensors if name not in names), *unused),
        groups=GROUPS,
    )
    return {"params": unflatten_dict(flat | loaded), "batch_stats": {}}, account


def to_segmenter(variables: Mapping[str, Mapping]) -> dict[str, np.ndarray]:
    """The state dict of variables under the names of VFM-UDA's network: encoder.*, upscale.*, out.

    The classifiers of the restitution loss are left out. Raises UserError for SNR blocks, which the
    published network does not have.
    """
    state_dict = {}
    for path, value in flatten_dict(variables["params"]).items():
        if (name := _name_of(path)) is not None:
            state_dict[name] = _to_theirs(name, np.asarray(value))
        elif path[1].startswith("snr_"):
            raise UserError(f"{'/'.join(path)} has no name in the published network, which has no "
                            "SNR blocks and would compute something else. A file takes networks "
                            "with snr_after=() alone, a weights folder every one")
    return state_dict


def from_segmenter(state_dict: StateDict) -> Variables:
    """The inverse of `to_segmenter`, for the tensors of one network under these names alone."""
    flat = {_path_of(name, np.ndim(value)): _to_ours(name, value)
            for name, value in state_dict.items()}
    return {"params": unflatten_dict(flat), "batch_stats": {}}


def to_vfm_uda(
    student: Mapping[str, Mapping], teacher: Mapping[str, Mapping] | None = None
) -> dict[str, np.ndarray]:
    """network.* and network_ema.* of a training of VFM-UDA; without a teacher both are the same."""
    state_dict = {}
    for prefix, variables in zip(NETWORKS, (student, teacher or student), strict=True):
        tensors = to_segmenter(variables)
        tensors["token_masking.mask_token"] = tensors["encoder.mask_token"]
        state_dict |= {f"{prefix}.{name}": value for name, value in tensors.items()}
    return state_dict


def to_dinov2(variables: Mapping[str, Mapping]) -> dict[str, np.ndarray]:
    """The backbone alone under DINOv2's own names."""
    return {name.removeprefix("encoder."): value for name, value in to_segmenter(variables).items()
            if name.startswith("encoder.")}


def to_transformers(variables: Mapping[str, Mapping]) -> dict[str, np.ndarray]:
    """The backbone alone as `Dinov2Model` of transformers has it in its files."""
    apart = {}
    for name, value in to_dinov2(variables).items():
        parts = np.split(value, 3) if ".attn.qkv." in name else [value]
        for letter, part in zip("qkv", parts, strict=False):
            apart[name.replace(".attn.qkv.", f".attn.{letter}.")] = part
    names = {name: next(filter(None, (_renamed(name, old, new) for new, old in _TRANSFORMERS)))
             for name in apart}
    return {names[name]: value for name, value in apart.items()}
