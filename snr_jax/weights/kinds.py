"""What differs in files by the kind of network: one row for each.

A third kind is a row here, with its names and its conversion beside those of the others.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from snr_jax.weights import conversion, dinov2_conversion, dinov2_names, torch_names
from snr_jax.weights.conversion import Conversion
from snr_jax.weights.torch_names import StateDict, Variables

# Student and teacher, in the words of the command: what names begin with in VFM-UDA's trainings.
_IN_VFM_UDA = dict(zip(torch_names.NETWORKS, dinov2_names.NETWORKS, strict=True))


class Export(NamedTuple):
    """A state dict for the published code; under: the key that it lies under in a .pth, or none.

    told: what the network is, in words. notes: sentences for the user.
    """

    tensors: dict[str, Any]
    told: str
    notes: list[str]
    under: str = ""


class Kind(NamedTuple):
    """How the networks of one kind stand in files.

    A folder holds what the published network has under its names, and what it has not, which `own`
    matches, under the path that the variable has here, joined by dots.
    """

    called: str
    # (state dict, the network asked for, of torch_names.NETWORKS) and flags by name → Conversion.
    read: Callable[..., Conversion]
    told: Callable[[Mapping, StateDict], str]  # what was found in a file, and its tensors
    # (variables, meta, reads the variables of the teacher beside it or None), flags → Export.
    export: Callable[..., Export]
    flags: tuple[str, ...]  # of the command, for this kind alone
    unsaid: dict[str, Any]  # arguments that no tensor tells, as every file of PyTorch has them
    said: dict[str, str]  # arguments that no tensor tells, and the flags that do
    names_out: Callable[[Variables], dict]  # of what the published network has
    names_in: Callable[[StateDict], Variables]
    own: str


def _read_resnet(raw: StateDict, network: str | None, **options: Any) -> Conversion:
    if "head_branches" in options:
        options["head_branches"] = int(options["head_branches"])
    return conversion.convert(raw, **options)


def _told_resnet(found: Mapping, raw: StateDict) -> str:
    counters = sum(name.endswith(".num_batches_tracked") for name in raw)
    return (f"heads for {found['num_classes'] or 'no'} classes, blocks {found['stage_sizes']}, "
            f"width {found['width']}, norm_restitution {found['norm_restitution']}\n"
            f"({counters} of them num_batches_tracked counters, which no result depends on)")


def _export_resnet(variables: Variables, meta: Mapping, teacher: Any, **options: Any) -> Export:
    tensors, notes = conversion.to_published(variables, meta, **options)
    model = meta["model"]
    return Export(tensors, f"{model['num_classes']} classes, norm_restitution "
                  f"{model['norm_restitution']}", notes)


def _read_dinov2(raw: StateDict, network: str | None, **options: Any) -> Conversion:
    return dinov2_conversion.convert(raw, network=_IN_VFM_UDA[network or "model"], **options)


def _told_dinov2(found: Mapping, raw: StateDict) -> str:
    return (f"head for {found['num_classes'] or 'no'} classes, {found['depth']} blocks, width "
            f"{found['width']}, {found['heads']} heads of attention, {found['registers']} "
            f"registers, positions {found['grid']}x{found['grid']}")


def _export_dinov2(
    variables: Variables, meta: Mapping, teacher: Callable[[], Variables | None],
    layout: str = dinov2_conversion.LAYOUTS[0],
) -> Export:
    beside = teacher() if layout == "vfm_uda" else None
    tensors, notes = dinov2_conversion.to_published(variables, layout, beside)
    what = f"{meta['model']['num_classes']} classes" if layout == "vfm_uda" else "the backbone"
    return Export(tensors, f"{what}, layout {layout}", notes,
                  "state_dict" if layout == "vfm_uda" else "")


KINDS = {
    "resnet": Kind(
        "ResNet", _read_resnet, _told_resnet, _export_resnet,
        flags=("variant", "head_branches", "torchvision", "allow_four_branches"),
        unsaid={"stride_in": "conv1", "exposure": False}, said={"head_branches": "head_branches"},
        names_out=torch_names.to_torch, names_in=lambda tensors: torch_names.from_torch(tensors)[0],
        own=r"restitution",
    ),
    "dinov2": Kind(
        "DINOv2 transformer", _read_dinov2, _told_dinov2, _export_dinov2,
        flags=("attention_heads", "layout"),
        unsaid={"snr_after": ()}, said={"heads": "attention_heads"},
        names_out=dinov2_names.to_segmenter, names_in=dinov2_names.from_segmenter,
        own=r"restitution_|encoder\.snr_",
    ),
}


def of_file(raw: StateDict) -> str:
    """The kind of network that a file's names are of; another network is taken for a ResNet."""
    return "dinov2" if dinov2_names.recognises(raw) else "resnet"
