"""PyTorch weights of the published lineage into a checkpoint of this project, and back.

    python scripts/convert_torch_ckpt.py IN.pth OUT_DIR [--num-classes N] [--variant snr|in|none]
    python scripts/convert_torch_ckpt.py --export CKPT_DIR OUT.pth [--prefix module.]

Reads training checkpoints and bare state dicts, PyTorch's old and new file formats, and
safetensors. No code from a file is run. Prints what became of every tensor.
"""

import argparse
import hashlib
import os
import re
import sys
import tempfile
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np

try:
    import safetensors.torch
    import torch
except ImportError as missing:
    print(f"error: reading PyTorch files needs {missing.name}: pip install torch safetensors",
          file=sys.stderr)
    sys.exit(2)

from snr_jax.cli import run_command
from snr_jax.core import torch_names
from snr_jax.core.errors import UserError
from snr_jax.core.models.deeplab import DeepLab
from snr_jax.core.state import initial_variables
from snr_jax.runs.checkpoints import load_variables, save_variables

# All that a training checkpoint of the lineage holds besides tensors: numpy scalars. The pair is
# the name under which numpy before 2.0 pickled them.
_ALLOWED = [
    np.dtype,
    np.dtypes.Float64DType, np.dtypes.Float32DType,
    np.dtypes.Int64DType, np.dtypes.Int32DType, np.dtypes.BoolDType,
    np._core.multiarray.scalar,
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),
]
_BGR_MEAN = np.array([104.00698793, 116.66876762, 122.67891434])
_TORCHVISION_MEAN = np.array([0.485, 0.456, 0.406])  # of RGB / 255
_TORCHVISION_STD = np.array([0.229, 0.224, 0.225])
_HEADS = ("layer5", "layer6")
_FALLBACK_CLASSES = 19


def read_torch_file(path: str) -> tuple[dict[str, np.ndarray], str]:
    """The tensors of a file under their own names, and the kind of file in words.

    Half-precision tensors come as float32, all others in their own dtype. Raises UserError where
    the file is missing, truncated, of another kind, or asks for anything but tensors and numbers.
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
    try:
        with torch.serialization.safe_globals(_ALLOWED), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True), "PyTorch"
    except Exception as error:  # a broken file may raise anything; nothing is tried instead
        # PyTorch's own text advises loading without the safeguard: it is not passed on.
        wanted = re.search(r"GLOBAL:? ([A-Za-z_]\w*(?:\.\w+)+)", str(error))
        if wanted:
            raise UserError(
                f"{path}: refused, nothing of it was run: it asks for {wanted[1]}, and a "
                "checkpoint needs no more than tensors and numbers. If you trust its author, have "
                "them save model.state_dict() alone") from error
        raise UserError(
            f"{path}: not a whole PyTorch file ({type(error).__name__}); expected the output of "
            "torch.save or safetensors: the file is truncated, damaged or of another kind; "
            "download or copy it again") from error


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


def fold_torchvision_input(state_dict: torch_names.StateDict) -> dict[str, np.ndarray]:
    """ImageNet weights of torchvision made to take this project's input: BGR minus mean.

    The stem's BN follows its convolution at once, so with v = RGB/255 and x = BGR - M,
    W (v - m)/s = W' x + b where W'[:, BGR] = W[:, RGB]/(255 s) and b goes into the running mean.
    Exact but for the zero padding at the image border, which stands for another colour
    (by one grey level of 255).
    """
    folded = dict(state_dict)
    kernel = state_dict["conv1.weight"].astype(np.float64)  # [O, RGB, kh, kw]
    scaled = kernel / _TORCHVISION_STD[:, None, None]
    shift = _BGR_MEAN[::-1] / 255 - _TORCHVISION_MEAN  # [RGB]
    bias = np.einsum("ochw,c->o", scaled, shift)
    mean = state_dict["bn1.running_mean"]
    folded["conv1.weight"] = (scaled[:, ::-1] / 255).astype(state_dict["conv1.weight"].dtype)
    folded["bn1.running_mean"] = (mean.astype(np.float64) - bias).astype(mean.dtype)
    return folded


def _check_origin(raw: dict, torchvision: bool) -> list[str]:
    """A note for files whose origin the names leave open; UserError where they contradict it."""
    state_dict = torch_names.strip_prefixes(raw)
    has_head = any(name.startswith(_HEADS) for name in state_dict)
    if torchvision and has_head:
        raise UserError("has DeepLab heads, so it is no ImageNet network of torchvision: "
                        "leave --torchvision out")
    if torchvision and not {"conv1.weight", "bn1.running_mean"} <= state_dict.keys():
        raise UserError("no conv1.weight or bn1.running_mean; --torchvision expects "
                        "torchvision's ResNet-101")
    if "fc.weight" in state_dict and not has_head and not torchvision:
        raise UserError(
            "refused: fc.weight makes it an ImageNet classifier, as torchvision's. Those "
            "have the stride in the 3x3 convolution (here: in the first 1x1) and take RGB/255 "
            "normalised by mean and deviation (here: BGR minus mean), so their weights would load "
            "and be wrong. Convert with --torchvision, which sets the model's stride_in to conv2 "
            "and folds the normalisation into the stem; if the file does have this project's "
            "stride and input, remove fc.* from it")
    if has_head or torchvision or any("Scale." in name for name in raw):
        return []
    return ["no head in the file: taken as a backbone with the stride in the first 1x1 "
            "convolution and BGR minus mean as input. If it comes from torchvision, convert with "
            "--torchvision instead"]


def convert(source: str, target: str, *, num_classes: int | None = None,
            variant: str | None = None, reset_heads: bool = False, torchvision: bool = False,
            seed: int = 0) -> torch_names.Report:
    """Writes the checkpoint directory `target` from the PyTorch file `source`; prints the account.

    Class count and variant are the file's own unless given. Tensors that the file lacks get
    initial values from `seed`. Raises UserError, leaving nothing behind, where the file is
    unreadable, another network, or disagrees with what is asked.
    """
    _require_absent(target)
    raw, kind = read_torch_file(source)
    try:
        notes = _check_origin(raw, torchvision)
        state_dict = torch_names.strip_prefixes(raw)
        found = torch_names.infer_architecture(state_dict)
        model_kwargs = {
            **found,
            "num_classes": _choose_classes(found["num_classes"], num_classes, reset_heads),
            "norm_restitution": variant or found["norm_restitution"],
            "head_branches": 2,
            "stride_in": "conv2" if torchvision else "conv1",
        }
        if torchvision:
            state_dict = fold_torchvision_input(state_dict)
        loaded, unused = torch_names.from_torch(state_dict)
        if reset_heads:
            unused += [name for name in state_dict
                       if name.startswith(_HEADS) and name not in unused]
            for head in _HEADS:
                loaded["params"].pop(head, None)
        initial = initial_variables(DeepLab(**model_kwargs), seed)
        variables, report = torch_names.merge(initial, loaded, unused)
        _require_complete(report, found["norm_restitution"], model_kwargs["norm_restitution"])
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    if foreign := torch_names.foreign_head(state_dict):
        notes.append(f"layer5 ({state_dict[foreign[0]].shape[0]} classes) is the single head of "
                     "another network, not the auxiliary head: left out, both heads keep initial "
                     "values")
    if reset_heads:
        notes.append("--reset-heads: both heads keep initial values")
    if found["norm_restitution"] == "snr" and variant in ("in", "none"):
        notes.append(f"--variant {variant}: the file's layers were trained with the SNR tensors "
                     "that are left out")
    if torchvision:
        notes.append("--torchvision: the model gets stride_in conv2; the normalisation went into "
                     "conv1.weight and bn1.running_mean, exact except within 3 pixels of the "
                     "border, where zero padding means a colour one grey level away")
    print(f"{source}: {kind}, {len(raw)} tensors; heads for {found['num_classes'] or 'no'} "
          f"classes, blocks {found['stage_sizes']}, width {found['width']}, "
          f"norm_restitution {found['norm_restitution']}")
    _print_account(report, notes, raw)
    print("model: " + ", ".join(f"{key}={value}" for key, value in model_kwargs.items()))
    meta = {"model": model_kwargs, "source": _source(source, kind, state_dict)}
    with _renamed_when_done(target) as unfinished:
        save_variables(unfinished, variables, meta)
    print(f"wrote {target}")
    return report


def _choose_classes(found: int | None, wanted: int | None, reset: bool) -> int:
    if found and wanted and found != wanted and not reset:
        raise UserError(f"its heads have {found} classes, --num-classes asks for {wanted}: leave "
                        "--num-classes out to keep the heads, or add --reset-heads to give both "
                        "heads initial values")
    return wanted or found or _FALLBACK_CLASSES


def _require_complete(report: torch_names.Report, found: str, variant: str) -> None:
    """UserError unless the whole backbone, and of every other part all or nothing, was matched."""
    groups = report.by_group()
    backbone = [groups.get(group, {"matched": [], "missing": []}) for group in torch_names.BACKBONE]
    matched = sum(len(group["matched"]) for group in backbone)
    missing = [name for group in backbone for name in group["missing"]]
    if matched < len(missing):
        raise UserError(
            f"only {matched} of the backbone's {matched + len(missing)} tensors are in the file: "
            f"missing {_examples(missing)}; not recognised {_examples(report.unused)}. Likely "
            "cause: another network, or other names for its tensors")
    for label, group in groups.items():
        # A file with the instance norm alone may start an SNR network: its gates are new.
        if group["matched"] and label not in torch_names.BACKBONE and (
                label != "snr" or found == variant):
            missing += group["missing"]
    if missing:
        raise UserError(f"{len(missing)} required tensors are missing: {_examples(missing)}. "
                        "Likely cause: an incomplete file; get the whole one")


def _examples(names: list[str] | tuple[str, ...]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more if names else "none"


def _print_account(report: torch_names.Report, notes: list[str], raw: dict) -> None:
    print(report)
    counters = sum(name.endswith(".num_batches_tracked") for name in raw)
    print(f"({counters} num_batches_tracked counters besides, which no result depends on)")
    for label, group in report.by_group().items():
        if group["missing"]:
            print(f"new, kept at initial values, {label}: {', '.join(group['missing'])}")
        if group["unused"]:
            print(f"unused, {label}: {', '.join(group['unused'])}")
    for note in notes:
        print(f"note: {note}")


def _source(path: str, kind: str, state_dict: dict) -> dict:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    # Kept for the way back alone, so that an untouched checkpoint returns bit for bit.
    counters = {name: int(value) for name, value in state_dict.items()
                if name.endswith(".num_batches_tracked") and value}
    return {"file": os.path.basename(path), "sha256": digest, "kind": kind,
            "num_batches_tracked": counters}


def export(source: str, target: str, *, prefix: str = "") -> None:
    """Writes the checkpoint directory `source` as a PyTorch state dict for the published code.

    In PyTorch's old format, which every version reads. Raises UserError where the published code
    would compute something else with the same weights.
    """
    _require_absent(target)
    variables, meta = load_variables(source)
    model_kwargs = meta["model"]
    if model_kwargs.get("stride_in", "conv1") != "conv1":
        raise UserError(f"{source}: has stride_in={model_kwargs['stride_in']}; the published code "
                        "has the stride in the first 1x1 convolution and would take the weights "
                        "and be wrong. Only networks with stride_in=conv1 can be exported")
    state_dict = torch_names.to_torch(variables)
    counters = meta.get("source", {}).get("num_batches_tracked", {})
    state_dict |= {name: np.array(value, np.int64) for name, value in counters.items()
                   if name in state_dict}
    tensors = OrderedDict((prefix + name, torch.from_numpy(np.array(value)))
                          for name, value in state_dict.items())
    with _renamed_when_done(target) as unfinished:
        torch.save(tensors, unfinished, _use_new_zipfile_serialization=False)
    print(f"wrote {target}: {len(tensors)} tensors, {model_kwargs['num_classes']} classes, "
          f"norm_restitution {model_kwargs['norm_restitution']}")
    if any(name.startswith("restitution") for name in variables["params"]):
        print("note: the classifiers of the restitution loss are no part of the network: left out")
    if model_kwargs["norm_restitution"] == "in":
        print("note: the published code has no network with the instance norm alone; strict "
              "loading there will ask for style_reid_laye*")


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


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise ValueError
    return value


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="IN.pth, or CKPT_DIR with --export")
    parser.add_argument("target", help="OUT_DIR, or OUT.pth with --export")
    parser.add_argument("--num-classes", type=_positive, help="default: the file's own, else "
                        f"{_FALLBACK_CLASSES}")
    parser.add_argument("--variant", choices=("snr", "in", "none"), help="the network to fill: "
                        "with SNR, with its instance norm alone, without; default: the file's own")
    parser.add_argument("--reset-heads", action="store_true",
                        help="give both heads initial values, whatever the file holds")
    parser.add_argument("--torchvision", action="store_true",
                        help="the file is torchvision's ImageNet ResNet")
    parser.add_argument("--seed", type=int, default=0, help="of the initial values; default 0")
    parser.add_argument("--export", action="store_true", help="checkpoint to PyTorch file")
    parser.add_argument("--prefix", choices=("", "module."), default="",
                        help="with --export: what every name begins with")
    args = parser.parse_args(argv)
    of_convert = (args.num_classes, args.variant, args.reset_heads, args.torchvision)
    if args.export and any(of_convert):
        parser.error("--num-classes, --variant, --reset-heads and --torchvision are not for "
                     "--export: the checkpoint says what it holds")
    if args.prefix and not args.export:
        parser.error("--prefix is for --export alone: prefixes in a file are found by themselves")
    if args.export:
        export(args.source, args.target, prefix=args.prefix)
    else:
        convert(args.source, args.target, num_classes=args.num_classes, variant=args.variant,
                reset_heads=args.reset_heads, torchvision=args.torchvision, seed=args.seed)


if __name__ == "__main__":
    sys.exit(run_command(main))
