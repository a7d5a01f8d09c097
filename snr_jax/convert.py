"""PyTorch weights of the published lineages into a checkpoint of this project, and back.

    python scripts/convert_torch_ckpt.py IN.pth OUT_DIR
    python scripts/convert_torch_ckpt.py IN.pth OUT_DIR --num_classes 19 --variant snr
    python scripts/convert_torch_ckpt.py dinov2_vitb14_pretrain.pth OUT_DIR
    python scripts/convert_torch_ckpt.py --export CHECKPOINT OUT.pth [--prefix module.]
    python scripts/convert_torch_ckpt.py --export CHECKPOINT OUT.pth [--layout vfm_uda]
    python scripts/convert_torch_ckpt.py --export CHECKPOINT FOLDER [--licence mit]

Reads training checkpoints and bare state dicts of ResNet DeepLab-v2 and of DINOv2 (its own files,
trainings of VFM-UDA, a folder of the transformers package), PyTorch's old and new file formats, and
safetensors. No code from a file is run. Prints what became of every tensor. Damage inside the
numbers is noticed in PyTorch's new format, which has checksums; the other formats have none.

An export is a PyTorch file (.pth, .pt), its tensors alone (.safetensors), or, under a name without
these endings, a weights folder (docs/weights.md): the network with all that its use needs.
"""

import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags

from snr_jax import cli
from snr_jax.core.errors import UserError
from snr_jax.core.files import checksum, refuse_existing, refuse_pattern, written_whole
from snr_jax.core.models.backbone import architecture
from snr_jax.core.models.create import NETWORKS as MODELS
from snr_jax.runs.network import flags_to_start
from snr_jax.runs.weights import FILES, save, teacher_beside
from snr_jax.weights import conversion, hugging_face, kinds
from snr_jax.weights.dinov2_conversion import LAYOUTS
from snr_jax.weights.folder import CARD, CONFIG, TENSORS, is_of_this_project, write_tensors
from snr_jax.weights.torch_names import NETWORKS, strip_prefixes
from snr_jax.workdir.checkpoints import find, load_variables, save_variables

FLAGS = flags.FlagValues()
flags.DEFINE_bool(
    "export", False, "Write a PyTorch file or a weights folder from a checkpoint.",
    flag_values=FLAGS,
)
flags.DEFINE_enum(
    "weights", None, NETWORKS, "Which network of a file of self-training to read: the "
    "student (model) or its mean teacher (ema_model), in VFM-UDA's network.* or network_ema.*. By "
    "default the student, which DACS scores.",
    flag_values=FLAGS,
)
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
flags.DEFINE_integer(
    "attention_heads", None, "Heads of a transformer's attention, which no file of tensors says: "
    "by default those of its config.json, or one for each 64 channels.", lower_bound=1,
    flag_values=FLAGS,
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
flags.DEFINE_enum(
    "layout", None, LAYOUTS, "With --export of a transformer to a file: the names of its tensors, "
    "VFM-UDA's training or, of the backbone alone, DINOv2's or the transformers package's. By "
    f"default {LAYOUTS[0]}.", flag_values=FLAGS,
)
flags.DEFINE_string(
    "licence", "", "With --export FOLDER: that of the weights, as mit, cc-by-nc-4.0 or words.",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "trained_on", "", "With --export FOLDER: the data, in words; by default what the run records.",
    flag_values=FLAGS,
)
OF_FILE, OF_FOLDER = ("prefix", "allow_four_branches", "layout"), ("licence", "trained_on")
OF_CONVERT = ("num_classes", "class_names", "variant", "head_branches", "attention_heads",
              "reset_heads", "torchvision", "seed")


class _Input(NamedTuple):
    """What was given: tensors, words and notes on the file, the kind of network.

    said: flags that another file tells, by name. file: what stands for all, and what it is called.
    """

    tensors: dict[str, np.ndarray]
    words: str
    notes: tuple[str, ...]
    kind: str
    said: dict
    file: tuple[str, str]


def _convert(args: flags.FlagValues, source: str, target: str) -> None:
    """Writes the checkpoint `target` from the PyTorch file or folder `source`, or nothing."""
    if is_of_this_project(Path(source)):
        raise UserError(f"{source} is a weights folder, which --checkpoint and --config.init_from "
                        f"take as it is. For other heads of its network, give {source}/{TENSORS}")
    found = _read(args, source)
    kind, raw = kinds.KINDS[found.kind], found.tensors
    _refuse_foreign(args, found.kind, source)
    options = found.said | {
        name: args[name].value for name in OF_CONVERT if args[name].value not in (None, [])
        and not _foreign(name, found.kind)}
    try:
        converted = kind.read(raw, args.weights, **options)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    print(f"{source}: {found.words}, {len(raw)} tensors; {kind.told(converted.found, raw)}")
    print(conversion.describe(converted))
    for note in found.notes:
        print(f"note: {note}")
    meta = {"model": architecture(MODELS[found.kind](**converted.model)),
            "source": _source(found, converted.heads)}
    if converted.class_names:
        meta["class_names"] = list(converted.class_names)
    with written_whole(target) as unfinished:
        save_variables(unfinished, converted.variables, meta)
    to_start = flags_to_start(target, meta["model"])
    print(f"wrote {target}; a training starts from it with {to_start}")


def _read(args: flags.FlagValues, source: str) -> _Input:
    from snr_jax.weights import torch_files

    folder = hugging_face.find(Path(source))
    files = [torch_files.read_torch_file(str(file), args.weights)
             for file in (folder.files if folder else (source,))]
    tensors = {name: value for file in files for name, value in file.tensors.items()}
    notes = tuple(note for file in files for note in file.notes)
    if folder:
        name = f"{Path(source).absolute().name}/{folder.named.name}"
        return _Input(tensors, f"a folder of the transformers package, {files[0].kind}", notes,
                      "dinov2", {"attention_heads": folder.heads}, (str(folder.named), name))
    return _Input(tensors, files[0].kind, notes, kinds.of_file(tensors),
                  _of_folder(Path(source), args), (source, os.path.basename(source)))


def _of_folder(file: Path, args: flags.FlagValues) -> dict:
    """What the config.json beside a weights folder's tensors says and their names do not."""
    if file.name != TENSORS or not is_of_this_project(file.parent):
        return {}
    meta = find(file.parent).meta
    model, names = meta["model"], meta.get("class_names", [])
    kind = kinds.KINDS[model["backbone"]]
    if odd := [f"{key} {model[key]}" for key, value in kind.unsaid.items() if model[key] != value]:
        raise UserError(f"{file} is of a network with {', '.join(odd)}, which a file of PyTorch "
                        f"cannot say; --checkpoint and --config.init_from take {file.parent}")
    fitting = {"class_names": names} if args.num_classes in (None, len(names)) else {}
    return {flag: model[key] for key, flag in kind.said.items()} | fitting


def _foreign(flag: str, kind: str) -> bool:
    """Whether a flag is one of another kind of network."""
    return any(flag in other.flags for name, other in kinds.KINDS.items() if name != kind)


def _refuse_foreign(args: flags.FlagValues, kind: str, source: str) -> None:
    """Raises UserError for flags of another kind of network."""
    if odd := [f"--{name}" for name in args if args[name].present and _foreign(name, kind)]:
        raise UserError(f"{', '.join(odd)}: not for a {kinds.KINDS[kind].called}, as which "
                        f"{source} is read: leave it out")


def _source(found: _Input, heads: tuple[str, ...]) -> dict:
    """Where the values come from, for the checkpoint's meta. heads: those of the file."""
    path, name = found.file
    # Kept for the way back alone, so that an untouched checkpoint returns bit for bit.
    counters = {name: int(value) for name, value in strip_prefixes(found.tensors).items()
                if name.endswith(".num_batches_tracked") and value}
    return {"file": name, "sha256": checksum(path), "kind": found.words, "heads": list(heads),
            "num_batches_tracked": counters}


def _export_folder(args: flags.FlagValues, source: str, target: str) -> None:
    """Writes the checkpoint `source` as a weights folder."""
    save(source, target, licence=args.licence, trained_on=args.trained_on)
    print(f"wrote {target}: {', '.join((TENSORS, CONFIG, CARD))}. Read the card before you pass "
          "the folder on")


def _export_file(args: flags.FlagValues, source: str, target: str) -> None:
    """Writes the checkpoint `source` as a state dict, .pth in the format all versions read."""
    found = find(source)
    name = found.meta["model"]["backbone"]
    _refuse_foreign(args, name, source)
    kind = kinds.KINDS[name]
    variables, meta = load_variables(found)
    options = {flag: args[flag].value for flag in kind.flags
               if flag in OF_FILE and args[flag].present}
    try:
        export = kind.export(variables, meta, partial(teacher_beside, found), **options)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    tensors = {args.prefix + name: value for name, value in export.tensors.items()}
    with written_whole(target) as unfinished:
        if target.endswith(FILES[-1]):
            write_tensors(unfinished, tensors)
        else:
            from snr_jax.weights import torch_files

            torch_files.write_torch_file(unfinished, tensors, export.under)
    print(f"wrote {target}: {len(tensors)} tensors, {export.told}")
    for note in export.notes:
        print(f"note: {note}")


def command(args: flags.FlagValues, source: str, target: str) -> None:
    to_file = target.endswith(FILES)
    _refuse_flags(args, to_file)
    refuse_existing(target)
    if not args.export:
        refuse_pattern(target)
        _convert(args, source, target)
    else:
        (_export_file if to_file else _export_folder)(args, source, target)


def _refuse_flags(args: flags.FlagValues, to_file: bool) -> None:
    """Raises UserError for flags of what is not done."""
    def present(names: Sequence[str]) -> str:
        return ", ".join(f"--{name}" for name in names if args[name].present)

    if not args.export and (odd := present(OF_FILE + OF_FOLDER)):
        raise UserError(f"{odd}: not without --export: leave it out, or add --export")
    if args.export and (odd := present((*OF_CONVERT, "weights"))):
        raise UserError(f"{odd}: not with --export: the checkpoint says what it holds")
    if args.export and (odd := present(OF_FOLDER if to_file else OF_FILE)):
        raise UserError(f"{odd}: not with this export; {', '.join(FILES)} are files, every other "
                        "name is a weights folder. Leave it out, or choose another name")


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(argv, FLAGS, __doc__, command, arguments=("IN", "OUT"))


if __name__ == "__main__":
    sys.exit(main())
