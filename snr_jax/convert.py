"""PyTorch weights of the published lineage into a checkpoint of this project, and back.

    python scripts/convert_torch_ckpt.py IN.pth OUT_DIR
    python scripts/convert_torch_ckpt.py IN.pth OUT_DIR --num_classes 19 --variant snr
    python scripts/convert_torch_ckpt.py --export CHECKPOINT OUT.pth [--prefix module.]

Reads training checkpoints and bare state dicts, PyTorch's old and new file formats, and
safetensors. No code from a file is run. Prints what became of every tensor. Damage inside the
numbers is noticed in PyTorch's new format, which has checksums; the other formats have none.
"""

import os
import sys
from collections.abc import Sequence

import numpy as np
from absl import flags

from snr_jax import cli
from snr_jax.core.errors import UserError
from snr_jax.core.files import checksum, refuse_pattern, written_whole
from snr_jax.weights import conversion
from snr_jax.weights.torch_names import strip_prefixes
from snr_jax.workdir.checkpoints import load_variables, save_variables

try:
    from snr_jax.weights import torch_files
except ImportError as missing:
    print(f"error: reading PyTorch files needs {missing.name}: pip install torch safetensors",
          file=sys.stderr)
    sys.exit(2)

FLAGS = flags.FlagValues()
flags.DEFINE_bool("export", False, "Write a PyTorch file from a checkpoint.", flag_values=FLAGS)
flags.DEFINE_integer(
    "num_classes", None, "Classes of the network; by default the file's own, "
    f"{conversion.FALLBACK_CLASSES} where it has no head.", lower_bound=1, flag_values=FLAGS,
)
flags.DEFINE_list(
    "class_names", [], "Names of the classes in order; needed for other counts than 19, 16, 13.",
    flag_values=FLAGS,
)
flags.DEFINE_enum(
    "variant", None, ["snr", "in", "none"], "The network to fill: with SNR, with its instance norm "
    "alone, without; by default the file's own.", flag_values=FLAGS,
)
flags.DEFINE_enum(
    "head_branches", None, ["2", "4"], "Branches that a head sums, which no file says: 2 in "
    "AdaptSegNet, MaxSquare and SNR, 4 in ADVENT. By default 4 for a file without layer5 "
    "(ADVENT's single-level form), else 2.", flag_values=FLAGS,
)
flags.DEFINE_bool(
    "reset_heads", False, "Give both heads initial values, whatever the file holds.",
    flag_values=FLAGS,
)
flags.DEFINE_bool(
    "torchvision", False, "The file is torchvision's ImageNet ResNet.", flag_values=FLAGS)
flags.DEFINE_integer("seed", 0, "Seed of the initial values.", lower_bound=0, flag_values=FLAGS)
flags.DEFINE_enum(
    "prefix", "", ["", "module."], "With --export: what every name begins with.",
    flag_values=FLAGS,
)
flags.DEFINE_bool(
    "allow_four_branches", False, "With --export: also where the heads sum 4 branches, for "
    "ADVENT's code.", flag_values=FLAGS,
)
OF_EXPORT = ("prefix", "allow_four_branches")
OF_CONVERT = ("num_classes", "class_names", "variant", "head_branches", "reset_heads",
              "torchvision", "seed")


def _convert(args: flags.FlagValues, source: str, target: str) -> None:
    """Writes the checkpoint `target` from the PyTorch file `source`, or nothing."""
    raw, kind = torch_files.read_torch_file(source)
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
    with written_whole(target) as unfinished:
        save_variables(unfinished, converted.variables, meta)
    print(f"wrote {target}")


def _source(path: str, kind: str, raw: dict[str, np.ndarray], heads: tuple[str, ...]) -> dict:
    """Where the values come from, for the checkpoint's meta. heads: those of the file."""
    # Kept for the way back alone, so that an untouched checkpoint returns bit for bit.
    counters = {name: int(value) for name, value in strip_prefixes(raw).items()
                if name.endswith(".num_batches_tracked") and value}
    return {"file": os.path.basename(path), "sha256": checksum(path), "kind": kind,
            "heads": list(heads),
            "num_batches_tracked": counters}


def _export(args: flags.FlagValues, source: str, target: str) -> None:
    """Writes the checkpoint `source` as a PyTorch state dict, in the format all versions read."""
    variables, meta = load_variables(source)
    try:
        state_dict, notes = conversion.to_published(
            variables, meta, allow_four_branches=args.allow_four_branches)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    tensors = {args.prefix + name: value for name, value in state_dict.items()}
    with written_whole(target) as unfinished:
        torch_files.write_torch_file(unfinished, tensors)
    print(f"wrote {target}: {len(tensors)} tensors, {meta['model']['num_classes']} classes, "
          f"norm_restitution {meta['model']['norm_restitution']}")
    for note in notes:
        print(f"note: {note}")


def _require_absent(path: str) -> None:
    if os.path.isdir(path) and not os.listdir(path):
        return
    if os.path.lexists(path):
        raise UserError(f"{path}: exists already; expected a new name, or remove it first")


def command(args: flags.FlagValues, source: str, target: str) -> None:
    foreign = [f"--{name}" for name in (OF_CONVERT if args.export else OF_EXPORT)
               if args[name].present]
    if foreign:
        why = ("the checkpoint says what it holds" if args.export else
               "leave it out, or add --export")
        raise UserError(f"{', '.join(foreign)}: not {'with' if args.export else 'without'} "
                        f"--export: {why}")
    _require_absent(target)
    if not args.export:
        refuse_pattern(target)
    (_export if args.export else _convert)(args, source, target)


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(argv, FLAGS, __doc__, command, arguments=("IN", "OUT"))


if __name__ == "__main__":
    sys.exit(main())
