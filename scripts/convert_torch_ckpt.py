"""PyTorch weights of the published lineage into a checkpoint of this project, and back.

    python scripts/convert_torch_ckpt.py IN.pth OUT_DIR
    python scripts/convert_torch_ckpt.py IN.pth OUT_DIR --num_classes 19 --variant snr
    python scripts/convert_torch_ckpt.py --export CHECKPOINT OUT.pth [--prefix module.]

Reads training checkpoints and bare state dicts, PyTorch's old and new file formats, and
safetensors. No code from a file is run. Prints what became of every tensor. Damage inside the
numbers is noticed in PyTorch's new format, which has checksums; the other formats have none.
"""

import hashlib
import os
import re
import sys
import tempfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from absl import flags

from snr_jax import cli
from snr_jax.core.errors import UserError
from snr_jax.core.torch_names import strip_prefixes
from snr_jax.runs import conversion
from snr_jax.runs.checkpoints import load_variables, save_variables

try:
    import safetensors.torch
    import torch
except ImportError as missing:
    print(f"error: reading PyTorch files needs {missing.name}: pip install torch safetensors",
          file=sys.stderr)
    sys.exit(2)

# All that a training checkpoint of the lineage holds besides tensors: numpy scalars. The pair is
# the name under which numpy before 2.0 pickled them.
_ALLOWED = [
    np.dtype,
    np.dtypes.Float64DType, np.dtypes.Float32DType,
    np.dtypes.Int64DType, np.dtypes.Int32DType, np.dtypes.BoolDType,
    np._core.multiarray.scalar,
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),
]

FLAGS = flags.FlagValues()
flags.DEFINE_bool("export", False, "Checkpoint to PyTorch file.", flag_values=FLAGS)
flags.DEFINE_integer(
    "num_classes", None, "Of the network; the file's own if none, "
    f"{conversion.FALLBACK_CLASSES} where it has no head.", lower_bound=1, flag_values=FLAGS,
)
flags.DEFINE_list(
    "class_names", [], "In the order of their numbers; needed for other counts than 19, 16, 13.",
    flag_values=FLAGS,
)
flags.DEFINE_enum(
    "variant", None, ["snr", "in", "none"], "The network to fill: with SNR, with its instance norm "
    "alone, without; the file's own if none.", flag_values=FLAGS,
)
flags.DEFINE_enum(
    "head_branches", None, ["2", "4"], "Branches that a head sums, which no file says: 2 in "
    "AdaptSegNet, MaxSquare and SNR, 4 in ADVENT. If none, 4 for a file without layer5 "
    "(ADVENT's single-level form), else 2.", flag_values=FLAGS,
)
flags.DEFINE_bool(
    "reset_heads", False, "Give both heads initial values, whatever the file holds.",
    flag_values=FLAGS,
)
flags.DEFINE_bool(
    "torchvision", False, "The file is torchvision's ImageNet ResNet.", flag_values=FLAGS)
flags.DEFINE_integer("seed", 0, "Of the initial values.", lower_bound=0, flag_values=FLAGS)
flags.DEFINE_enum(
    "prefix", "", ["", "module."], "With --export: what every name begins with.",
    flag_values=FLAGS,
)
flags.DEFINE_bool(
    "allow_four_branches", False, "With --export: also a network whose heads sum 4 branches, for "
    "ADVENT's code.", flag_values=FLAGS,
)
OF_EXPORT = ("prefix", "allow_four_branches")
OF_CONVERT = ("num_classes", "class_names", "variant", "head_branches", "reset_heads",
              "torchvision", "seed")


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
        held = (", ".join(map(str, list(content)[:5])) if isinstance(content, Mapping)
                else type(content).__name__)
        raise UserError(f"{path}: no state dict in it (it holds: {held or 'nothing'}); expected "
                        "tensors by name, or a dict with the key state_dict")
    return {str(name): _to_numpy(path, name, value) for name, value in content.items()}, kind


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
        raise UserError(f"{path}: {name} is not a dense tensor; expected a state dict of "
                        "dense tensors")
    value = value.detach()
    if value.dtype in (torch.bfloat16, torch.float16):
        value = value.float()
    if not (value.is_floating_point() or name.endswith(".num_batches_tracked")):
        raise UserError(f"{path}: {name} holds {value.dtype}; expected floating-point weights")
    return value.numpy()


def _convert(args: flags.FlagValues, source: str, target: str) -> None:
    """Writes the checkpoint `target` from the PyTorch file `source`, or nothing."""
    raw, kind = read_torch_file(source)
    options = {name: args[name].value for name in OF_CONVERT}
    if args.head_branches:
        options["head_branches"] = int(args.head_branches)
    try:
        converted = conversion.convert(raw, **options)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    found = converted.found
    print(f"{source}: {kind}, {len(raw)} tensors; heads for {found['num_classes'] or 'no'} "
          f"classes, blocks {found['stage_sizes']}, width {found['width']}, "
          f"norm_restitution {found['norm_restitution']}")
    counters = sum(name.endswith(".num_batches_tracked") for name in raw)
    print(f"({counters} of them num_batches_tracked counters, which no result depends on)")
    print(conversion.describe(converted))
    meta = {"model": converted.model, "source": _source(source, kind, raw, converted.heads)}
    if converted.class_names:
        meta["class_names"] = list(converted.class_names)
    with _renamed_when_done(target) as unfinished:
        save_variables(unfinished, converted.variables, meta)
    print(f"wrote {target}")


def _source(path: str, kind: str, raw: dict[str, np.ndarray], heads: tuple[str, ...]) -> dict:
    """Where the values come from, for the checkpoint's meta. heads: those of the file."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    # Kept for the way back alone, so that an untouched checkpoint returns bit for bit.
    counters = {name: int(value) for name, value in strip_prefixes(raw).items()
                if name.endswith(".num_batches_tracked") and value}
    return {"file": os.path.basename(path), "sha256": digest, "kind": kind, "heads": list(heads),
            "num_batches_tracked": counters}


def _export(args: flags.FlagValues, source: str, target: str) -> None:
    """Writes the checkpoint `source` as a PyTorch state dict, in the format all versions read."""
    variables, meta = load_variables(source)
    try:
        state_dict, notes = conversion.to_published(
            variables, meta, allow_four_branches=args.allow_four_branches)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    tensors = OrderedDict((args.prefix + name, torch.from_numpy(np.array(value)))
                          for name, value in state_dict.items())
    with _renamed_when_done(target) as unfinished:
        torch.save(tensors, unfinished, _use_new_zipfile_serialization=False)
    print(f"wrote {target}: {len(tensors)} tensors, {meta['model']['num_classes']} classes, "
          f"norm_restitution {meta['model']['norm_restitution']}")
    for note in notes:
        print(f"note: {note}")


def _require_absent(path: str) -> None:
    if os.path.isdir(path) and not os.listdir(path):
        return
    if os.path.lexists(path):
        raise UserError(f"{path}: exists already; expected a new name, or remove it first")


@contextmanager
def _renamed_when_done(path: str) -> Iterator[str]:
    """A name to write to: moved to `path` on success, removed on failure."""
    path = os.path.abspath(path)
    parent, name = os.path.split(path)
    os.makedirs(parent, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=parent) as folder:
        unfinished = os.path.join(folder, name)
        yield unfinished
        os.replace(unfinished, path)


def command(args: flags.FlagValues, source: str, target: str) -> None:
    foreign = [f"--{name}" for name in (OF_CONVERT if args.export else OF_EXPORT)
               if args[name].present]
    if foreign:
        why = ("the checkpoint says what it holds" if args.export else
               "leave it out, or add --export")
        raise UserError(f"{', '.join(foreign)}: not {'with' if args.export else 'without'} "
                        f"--export: {why}")
    _require_absent(target)
    (_export if args.export else _convert)(args, source, target)


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(argv, FLAGS, __doc__, command, arguments=("IN", "OUT"))


if __name__ == "__main__":
    sys.exit(main())
