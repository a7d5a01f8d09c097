"""Weights of the published PyTorch lineage as variables of this project, and back.

State dicts are mappings from PyTorch names to numpy arrays; reading and writing PyTorch's files is
scripts/convert_torch_ckpt.py.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from snr_jax.core import labels
from snr_jax.core.augment import MEAN_BGR
from snr_jax.core.errors import UserError
from snr_jax.core.models.deeplab import DeepLab
from snr_jax.core.state import initial_variables
from snr_jax.weights import torch_names

TORCHVISION_MEAN = np.array([0.485, 0.456, 0.406])  # of RGB / 255
TORCHVISION_STD = np.array([0.229, 0.224, 0.225])
HEADS = ("layer5", "layer6")
FALLBACK_CLASSES = 19


class Conversion(NamedTuple):
    """Variables with the arguments of their `DeepLab`, and how they came about.

    found: what the file holds, as `torch_names.infer_architecture` says it. class_names: those of
    a class count that no benchmark has, else empty. heads: those whose weights are the file's.
    notes: sentences for the user.
    """

    variables: torch_names.Variables
    model: dict
    found: dict
    class_names: tuple[str, ...]
    heads: tuple[str, ...]
    account: torch_names.Account
    notes: tuple[str, ...]


def convert(
    raw: torch_names.StateDict,
    *,
    num_classes: int | None = None,
    class_names: Sequence[str] = (),
    variant: str | None = None,
    head_branches: int | None = None,
    reset_heads: bool = False,
    torchvision: bool = False,
    seed: int = 0,
) -> Conversion:
    """A state dict as variables; class count, variant and branches are the file's unless given.

    Tensors that the file lacks get initial values from `seed`. Raises UserError where the file is
    incomplete, of another network, holds values that no network has, or contradicts what is asked.
    """
    notes = _check_origin(raw, torchvision)
    state_dict = torch_names.strip_prefixes(raw)
    found = torch_names.infer_architecture(state_dict)
    heads = () if reset_heads else _heads(state_dict)
    branches, about_branches = _choose_branches(heads, head_branches)
    classes = choose_classes(found["num_classes"], num_classes, reset_heads)
    names = choose_names(classes, class_names)
    model = {
        **found,
        "num_classes": classes,
        "norm_restitution": variant or found["norm_restitution"],
        "head_branches": branches,
        "stride_in": "conv2" if torchvision else "conv1",
    }
    folded = fold_torchvision_input(state_dict) if torchvision else state_dict
    loaded, unused = torch_names.from_torch(folded)
    if reset_heads:
        unused += [name for name in state_dict if name.startswith(HEADS) and name not in unused]
        for head in HEADS:
            loaded["params"].pop(head, None)
    initial = initial_variables(DeepLab(**model), seed)
    variables, account = torch_names.merge(initial, loaded, unused)
    _require_complete(account, found["norm_restitution"], model["norm_restitution"])
    require_sound({name: state_dict[name] for name in account.matched})

    if foreign := torch_names.foreign_head(state_dict):
        notes.append(f"layer5 ({state_dict[foreign[0]].shape[0]} classes) is the single head of "
                     "another network, not the auxiliary head: left out, both heads keep initial "
                     "values")
    notes += about_branches
    if reset_heads:
        notes.append("--reset_heads: both heads keep initial values")
    if found["norm_restitution"] == "snr" and variant in ("in", "none"):
        notes.append(f"--variant {variant}: the file's layers were trained with the SNR tensors "
                     "that are left out")
    if torchvision:
        notes.append("--torchvision: the model gets stride_in conv2; the normalisation went into "
                     "conv1.weight and bn1.running_mean, exact except within 3 pixels of the "
                     "border, where zero padding means a colour one grey level away")
    if names:
        notes.append(f"classes {', '.join(names)}: recorded. Prediction takes them; training and "
                     "evaluation need a source of the same classes, described by a file of its own "
                     "(docs/data.md)")
    return Conversion(variables, model, found, names, heads, account, tuple(notes))


def describe(conversion: Conversion) -> str:
    """The account of every tensor, the notes and the model, as lines."""
    lines = [str(conversion.account)]
    for label, group in conversion.account.by_group().items():
        if group["missing"]:
            lines.append(f"new, kept at initial values, {label}: {', '.join(group['missing'])}")
        if group["unused"]:
            lines.append(f"unused, {label}: {', '.join(group['unused'])}")
    lines += [f"note: {note}" for note in conversion.notes]
    lines.append("model: " + ", ".join(f"{k}={v}" for k, v in conversion.model.items()))
    return "\n".join(lines)


def fold_torchvision_input(state_dict: torch_names.StateDict) -> dict[str, np.ndarray]:
    """ImageNet weights of torchvision made to take this project's input: BGR minus mean.

    The stem's BN follows its convolution at once, so with v = RGB/255 and x = BGR - M,
    W (v - m)/s = W' x + b where W'[:, BGR] = W[:, RGB]/(255 s) and b goes into the running mean.
    Exact but for the zero padding at the image border, which stands for another colour
    (by one grey level of 255).
    """
    folded = dict(state_dict)
    kernel = state_dict["conv1.weight"].astype(np.float64)  # [O, RGB, kh, kw]
    scaled = kernel / TORCHVISION_STD[:, None, None]
    shift = np.array(MEAN_BGR[::-1]) / 255 - TORCHVISION_MEAN  # [RGB]
    bias = np.einsum("ochw,c->o", scaled, shift)
    mean = state_dict["bn1.running_mean"]
    folded["conv1.weight"] = (scaled[:, ::-1] / 255).astype(state_dict["conv1.weight"].dtype)
    folded["bn1.running_mean"] = (mean.astype(np.float64) - bias).astype(mean.dtype)
    return folded


def to_published(
    variables: Mapping[str, Mapping], meta: Mapping, *, allow_four_branches: bool = False
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The state dict of a checkpoint for the published code, and notes for the user.

    Raises UserError where the published code would compute something else with the same weights.
    """
    model, notes = meta["model"], []
    if model["stride_in"] != "conv1":
        raise UserError(f"has stride_in={model['stride_in']}; the published code has the stride in "
                        "the first 1x1 convolution and would take the weights and be wrong. Only "
                        "networks with stride_in=conv1 can be exported")
    if model.get("exposure"):
        raise UserError("has exposure=True; the published code does not scale images to one "
                        "brightness and would compute something else. Only networks with "
                        "exposure=False can be exported")
    if model["head_branches"] != 2:
        if not allow_four_branches:
            raise UserError(
                "has head_branches=4; the published code of AdaptSegNet, MaxSquare and SNR sums 2 "
                "branches and would take the weights and be wrong. ADVENT's code sums 4: for it, "
                "add --allow_four_branches")
        notes.append("the heads sum 4 branches: right in ADVENT's code, wrong in that of "
                     "AdaptSegNet, MaxSquare and SNR, which sums 2")
    state_dict = torch_names.to_torch(variables)
    counters = meta.get("source", {}).get("num_batches_tracked", {})
    state_dict |= {name: np.array(value, np.int64) for name, value in counters.items()
                   if name in state_dict}
    if any(name.startswith("restitution") for name in variables["params"]):
        notes.append("the classifiers of the restitution loss are no part of the network: left out")
    if model["norm_restitution"] == "in":
        notes.append("the published code has no network with the instance norm alone; strict "
                     "loading there will ask for style_reid_laye*")
    return state_dict, notes


def _check_origin(raw: torch_names.StateDict, torchvision: bool) -> list[str]:
    """A note for files whose origin the names leave open; UserError where they contradict it."""
    state_dict = torch_names.strip_prefixes(raw)
    has_head = any(name.startswith(HEADS) for name in state_dict)
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
    notes = ["no head in the file: taken as a backbone with the stride in the first 1x1 "
             "convolution and BGR minus mean as input. If it comes from torchvision, or from "
             "OpenMMLab with style='pytorch', convert with --torchvision instead"]
    if any(name.startswith("decode_head.") for name in state_dict):
        notes.append("decode_head is another network's: left out, both heads keep initial values")
    return notes


def _heads(state_dict: torch_names.StateDict) -> tuple[str, ...]:
    """The heads of this network that a file (names without prefixes) has."""
    names = state_dict.keys() - set(torch_names.foreign_head(state_dict))
    return tuple(head for head in HEADS if any(name.startswith(f"{head}.") for name in names))


def _choose_branches(heads: tuple[str, ...], wanted: int | None) -> tuple[int, list[str]]:
    """How many branches of a head take part; nothing in a file says so. With notes."""
    if heads == ("layer6",):
        notes = ["layer6 without layer5 is the form of ADVENT's single-level networks, whose head "
                 "sums 4 branches; layer5 keeps initial values"]
        if wanted == 2:
            notes.append("--head_branches 2: a head of ADVENT computes something else with 2")
        return wanted or 4, notes
    if heads and wanted is None:
        return 2, ["the heads sum 2 branches (dilations 6 and 12), as those of AdaptSegNet, "
                   "MaxSquare and SNR do. ADVENT's sum 4 under the same names, and nothing in a "
                   "file tells them apart: convert ADVENT's files with --head_branches 4"]
    return wanted or 2, []


def choose_classes(found: int | None, wanted: int | None, reset: bool) -> int:
    if found and wanted and found != wanted and not reset:
        raise UserError(f"its heads have {found} classes, --num_classes asks for {wanted}: leave "
                        "--num_classes out to keep the heads, or add --reset_heads to give both "
                        "heads initial values")
    return wanted or found or FALLBACK_CLASSES


def choose_names(num_classes: int, given: Sequence[str]) -> tuple[str, ...]:
    """Names of the classes where no benchmark gives them."""
    try:
        known = labels.class_names(num_classes)
    except ValueError:
        if len(given) == num_classes == len(set(given)) and all(given):
            return tuple(given)
        got = f"--class_names has {', '.join(given)}" if given else "--class_names is missing"
        raise UserError(f"{num_classes} classes are those of no benchmark (19, 16, 13), so they "
                        f"need {num_classes} different names in the order of their numbers, as "
                        f"--class_names road,car,...; {got}") from None
    if given and tuple(given) != known:
        raise UserError(f"{num_classes} classes are those of the benchmarks: {','.join(known)}; "
                        "leave --class_names out")
    return ()


def _require_complete(account: torch_names.Account, found: str, variant: str) -> None:
    """UserError unless the whole backbone, and of every other part all or nothing, was matched."""
    groups = account.by_group()
    backbone = [groups.get(group, {"matched": [], "missing": []}) for group in torch_names.BACKBONE]
    matched = sum(len(group["matched"]) for group in backbone)
    missing = [name for group in backbone for name in group["missing"]]
    if matched < len(missing):
        raise UserError(
            f"only {matched} of the backbone's {matched + len(missing)} tensors are in the file: "
            f"missing {examples(missing)}; not recognised {examples(account.unused)}. Likely "
            "cause: another network, or other names for its tensors")
    for label, group in groups.items():
        # A file with the instance norm alone may start an SNR network: its gates are new.
        if group["matched"] and label not in torch_names.BACKBONE and (
                label != "snr" or found == variant):
            missing += group["missing"]
    if missing:
        raise UserError(f"{len(missing)} required tensors are missing: {examples(missing)}. "
                        "Likely cause: an incomplete file; get the whole one")


def require_sound(state_dict: torch_names.StateDict) -> None:
    """UserError for values that no trained network has."""
    endless = [name for name, value in state_dict.items() if not np.isfinite(value).all()]
    negative = [name for name, value in state_dict.items()
                if name.endswith(".running_var") and (value < 0).any()]
    faults = [f"{what} in {examples(names)}" for what, names in
              (("NaN or infinity", endless), ("negative variances", negative)) if names]
    if faults:
        raise UserError(f"{'; '.join(faults)}. Likely cause: a training that diverged or a damaged "
                        "file; choose an earlier checkpoint, or copy the file again")


def examples(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more if names else "none"
