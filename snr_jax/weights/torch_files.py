"""Files of PyTorch and of safetensors as state dicts. No code from a file is run."""

import os
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import safetensors.torch
import torch

from snr_jax.core.errors import UserError
from snr_jax.weights.torch_names import NETWORKS, is_of_network

_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# All that a training checkpoint of the lineage holds besides tensors: numpy scalars. The pair is
# the name under which numpy before 2.0 pickled them.
_ALLOWED = [
    np.dtype,
    np.dtypes.Float64DType, np.dtypes.Float32DType,
    np.dtypes.Int64DType, np.dtypes.Int32DType, np.dtypes.BoolDType,
    np._core.multiarray.scalar,
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),
]


_NETWORK = re.compile(r"^(?:module\.|_orig_mod\.)*(model|ema_model)\.")
_OF_VFM_UDA = re.compile(r"^(?:module\.|_orig_mod\.|model\.)*network(_ema)?\.")


class TorchFile(NamedTuple):
    """The tensors of a file under their own names; kind: of the file, in words; notes: besides."""

    tensors: dict[str, np.ndarray]
    kind: str
    notes: tuple[str, ...]


def read_torch_file(path: str, network: str | None = None) -> TorchFile:
    """The tensors of a file. network: which of NETWORKS, where it holds several.

    Half-precision tensors come as float32, all others in their own dtype. What is no weight and of
    a name that the network does not have is left out, with a note. Raises UserError where the file
    is missing, damaged, of another kind, or asks for anything but tensors and numbers.
    """
    if not os.path.isfile(path):
        folder = " It is a folder without a config.json." if os.path.isdir(path) else ""
        raise UserError(f"{path}: no such file.{folder} Expected a PyTorch or safetensors file, or "
                        "a folder of the transformers package with its config.json")
    with open(path, "rb") as file:
        is_safetensors = file.read(9)[8:] == b"{"
    content, kind = _load_safetensors(path) if is_safetensors else _load_torch(path)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        others = ", ".join(str(key) for key in content if key != "state_dict") or "nothing"
        content, kind = content["state_dict"], f"{kind}: training checkpoint (also: {others})"
    content, notes = _one_network(path, content, network)
    if not isinstance(content, Mapping) or not any(map(torch.is_tensor, content.values())):
        raise UserError(f"{path}: no state dict in it (it holds: {_held(content)}); expected "
                        "tensors by name, or a dict with the key state_dict, model or ema_model"
                        f"{_way_out(content)}")
    tensors, left_out = {}, []
    for name, value in content.items():
        if (reason := _no_weight(str(name), value)) and not is_of_network(str(name)):
            left_out.append(f"{name} ({reason})")
        else:
            tensors[str(name)] = _to_numpy(path, str(name), value, reason)
    if left_out:
        notes.append(f"left out, since no weights of this network: {', '.join(left_out)}")
    return TorchFile(tensors, kind, tuple(notes))


def _one_network(path: str, content: object, wanted: str | None) -> tuple[object, list[str]]:
    """What a file holds of one network, and a note where it holds two.

    They lie under keys (DACS), or their names begin with them, as `ema_model.` (DAFormer).
    """
    if not isinstance(content, Mapping) or any(_OF_VFM_UDA.match(str(name)) for name in content):
        return content, []  # names that dinov2_names tells apart, and accounts for
    under = {name: content[name] for name in NETWORKS if _tensors(content.get(name))}
    begun = {match[1] for name in content if (match := _NETWORK.match(str(name)))}
    there = list(under) or [name for name in NETWORKS if name in begun]
    if wanted and wanted not in there:
        raise UserError(f"{path}: no network {wanted} in it (it has {' and '.join(there) or 'one'}"
                        f"{'' if there else ' without a name'}); leave --weights out")
    if not there or (not under and there == ["model"]):  # as Lightning, whose prefix is stripped
        return content, []
    taken = wanted or there[0]
    notes = [] if wanted or len(there) == 1 else [
        "the file holds the student (model) and its mean teacher (ema_model): the student was "
        "taken, as DACS scores it. For the teacher: --weights ema_model"]
    if under:
        others = ", ".join(str(key) for key in content if key != taken)
        return under[taken], [f"read from the file's key {taken} (also: {others})", *notes]
    chosen = {}
    for name, value in content.items():
        match = _NETWORK.match(str(name))
        if match is None or match[1] == taken:
            chosen[_NETWORK.sub("", str(name))] = value
    return chosen, notes


def _held(content: object) -> str:
    """What is in a file, in words: its keys, with the number of tensors under each."""
    if not isinstance(content, Mapping):
        return type(content).__name__
    counts = {key: _tensors(value) for key, value in content.items()}
    words = [f"{key} with {count} tensors" if count else str(key) for key, count in counts.items()]
    return ", ".join(words[:8]) + (", ..." if len(words) > 8 else "") or "nothing"


def _way_out(content: object) -> str:
    """The command that makes a readable file of one whose tensors lie under a key."""
    there = content if isinstance(content, Mapping) else {}
    keys = [key for key, value in there.items() if _tensors(value)]
    if not keys:
        return ""
    other = f" (or {', '.join(map(repr, keys[1:3]))})" if keys[1:] else ""
    return (f". Where PyTorch is, save one alone: torch.save(torch.load(IN)[{keys[0]!r}], OUT)"
            + other)


def _tensors(value: object) -> int:
    return sum(map(torch.is_tensor, value.values())) if isinstance(value, Mapping) else 0


def _load_safetensors(path: str) -> tuple[dict, str]:
    try:
        return safetensors.torch.load_file(path), "safetensors"
    except Exception as error:  # a broken file may raise anything; nothing is tried instead
        raise UserError(f"{path}: not a whole safetensors file ({error}); download or copy it "
                        "again") from error


def _load_torch(path: str) -> tuple[object, str]:
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            kind = _check_members(path)
            with torch.serialization.safe_globals(_ALLOWED):
                return torch.load(path, map_location="cpu", weights_only=True), kind
        except UserError:
            raise
        except Exception as error:  # a broken file may raise anything; nothing is tried instead
            # PyTorch's own text advises loading without the safeguard: it is not passed on.
            raise UserError(f"{path}: {_reason(error, map(str, warned))}") from error


def _check_members(path: str) -> str:
    """The kind of file; UserError where a part of it does not match its checksum.

    PyTorch writes checksums into its new format, a zip archive, and does not compare them when it
    reads. It can be told to write none (all are 0 then).
    """
    if not zipfile.is_zipfile(path):
        return "PyTorch, old format"
    with zipfile.ZipFile(path) as archive:
        if not any(member.CRC for member in archive.infolist()):
            return "PyTorch, without checksums"
        damaged = archive.testzip()
    if damaged:
        raise UserError(f"{path}: the part {damaged} differs from its checksum: the file is "
                        "damaged; download or copy it again")
    return "PyTorch"


def _reason(error: Exception, warned: Iterator[str]) -> str:
    """What is wrong with a file that PyTorch refuses, and what to do."""
    if wanted := re.search(r"GLOBAL:? ([A-Za-z_]\w*(?:\.\w+)+)", str(error)):
        return (f"refused, nothing of it was run: it asks for {wanted[1]}, and a checkpoint needs "
                "no more than tensors and numbers. If you trust its author, have them save "
                "model.state_dict() alone")
    if newer := re.search(r"Detected pickle protocol (\d+)", "\n".join(warned)):
        return (f"written with pickle protocol {newer[1]}, of which the safe reader knows protocol "
                "2 alone. Where it was made, load it and save it again with torch.save(content, "
                "file), which writes protocol 2")
    return (f"not a whole PyTorch file ({type(error).__name__}); expected the output of torch.save "
            "or safetensors: the file is truncated, damaged or of another kind; download or copy "
            "it again")


def _no_weight(name: str, value: object) -> str:
    """Why a value is no weight, in words; "" for one that is."""
    if not torch.is_tensor(value):
        return type(value).__name__
    if value.is_quantized or value.layout != torch.strided:
        return "quantized" if value.is_quantized else str(value.layout)
    if value.is_floating_point() and value.dtype in _FLOATS:
        return ""
    is_counter = name.endswith(".num_batches_tracked") and value.dtype in (torch.int64, torch.int32)
    return "" if is_counter else str(value.dtype)


def _to_numpy(path: str, name: str, value: object, reason: str) -> np.ndarray:
    """A tensor as numpy; UserError where `_no_weight` has a reason."""
    if reason.startswith("torch.") and value.layout == torch.strided:
        mend = ("Save it again with value.float() for each value" if value.is_floating_point() else
                _without(name))
        raise UserError(f"{path}: {name} holds {reason}; expected float32, float16 or bfloat16 "
                        f"weights. {mend}")
    if reason:
        raise UserError(f"{path}: {name} is not a dense tensor ({reason}); expected a state dict "
                        f"of dense tensors. {_without(name)}")
    value = value.detach()
    return (value.float() if value.dtype in (torch.bfloat16, torch.float16) else value).numpy()


def _without(name: str) -> str:
    return f"If the network does not need it, save the file again without {name!r}"


def write_torch_file(
    path: str | os.PathLike, state_dict: Mapping[str, np.ndarray], under: str = ""
) -> None:
    """Writes a state dict in PyTorch's old format, which all versions read.

    under: the key of a dict that it is put under; bare without one.
    """
    tensors = OrderedDict((name, torch.from_numpy(np.array(v))) for name, v in state_dict.items())
    torch.save({under: tensors} if under else tensors, path, _use_new_zipfile_serialization=False)
