"""Files of PyTorch and of safetensors as state dicts. No code from a file is run."""

import os
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping

import numpy as np
import safetensors.torch
import torch

from snr_jax.core.errors import UserError

# All that a training checkpoint of the lineage holds besides tensors: numpy scalars. The pair is
# the name under which numpy before 2.0 pickled them.
_ALLOWED = [
    np.dtype,
    np.dtypes.Float64DType, np.dtypes.Float32DType,
    np.dtypes.Int64DType, np.dtypes.Int32DType, np.dtypes.BoolDType,
    np._core.multiarray.scalar,
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),
]


def read_torch_file(path: str) -> tuple[dict[str, np.ndarray], str]:
    """The tensors of a file under their own names, and the kind of file in words.

    Half-precision tensors come as float32, all others in their own dtype. Raises UserError where
    the file is missing, damaged, of another kind, or asks for anything but tensors and numbers.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file; expected a PyTorch or safetensors file")
    with open(path, "rb") as file:
        is_safetensors = file.read(9)[8:] == b"{"
    content, kind = _load_safetensors(path) if is_safetensors else _load_torch(path)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        others = ", ".join(str(key) for key in content if key != "state_dict")
        content, kind = content["state_dict"], f"{kind}: training checkpoint (also: {others})"
    if not isinstance(content, Mapping) or not any(map(torch.is_tensor, content.values())):
        raise UserError(f"{path}: no state dict in it (it holds: {_held(content)}); expected "
                        f"tensors by name, or a dict with the key state_dict{_way_out(content)}")
    return {str(name): _to_numpy(path, name, value) for name, value in content.items()}, kind


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


def _to_numpy(path: str, name: str, value: object) -> np.ndarray:
    if not torch.is_tensor(value) or value.is_quantized or value.layout != torch.strided:
        kind = type(value).__name__
        if torch.is_tensor(value):
            kind = "quantized" if value.is_quantized else str(value.layout)
        raise UserError(f"{path}: {name} is not a dense tensor ({kind}); expected a state dict of "
                        f"dense tensors. {_without(name)}")
    value = value.detach()
    if value.dtype in (torch.bfloat16, torch.float16):
        value = value.float()
    if not (value.is_floating_point() or name.endswith(".num_batches_tracked")):
        raise UserError(f"{path}: {name} holds {value.dtype}; expected floating-point weights. "
                        f"{_without(name)}")
    if value.dtype not in (torch.float32, torch.float64, torch.int64, torch.int32):
        raise UserError(f"{path}: {name} holds {value.dtype}; expected float32, float16 or "
                        "bfloat16. Save it again with value.float() for each value")
    return value.numpy()


def _without(name: str) -> str:
    return f"If the network does not need it, save the file again without {name!r}"


def write_torch_file(path: str | os.PathLike, state_dict: Mapping[str, np.ndarray]) -> None:
    """Writes a bare state dict in PyTorch's old format, which all versions read."""
    tensors = OrderedDict((name, torch.from_numpy(np.array(v))) for name, v in state_dict.items())
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
