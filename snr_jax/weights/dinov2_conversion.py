"""DINOv2's published weights as variables of `ViTSegmenter`, and back."""

from collections.abc import Sequence

import numpy as np

from snr_jax.core.errors import UserError
from snr_jax.core.models.light_head import DINOV2, ViTSegmenter
from snr_jax.core.state import initial_variables
from snr_jax.weights import dinov2_names
from snr_jax.weights.conversion import (
    Conversion,
    choose_classes,
    choose_names,
    examples,
    require_sound,
)
from snr_jax.weights.torch_names import Account, StateDict, Variables

HEAD = "upscale, out"
LAYOUTS = ("vfm_uda", "dinov2", "transformers")  # of files that are written


def convert(
    raw: StateDict,
    *,
    network: str = "network",
    num_classes: int | None = None,
    class_names: Sequence[str] = (),
    attention_heads: int | None = None,
    snr_after: Sequence[int] = (),
    reset_heads: bool = False,
    seed: int = 0,
) -> Conversion:
    """A state dict of any of the three kinds as variables, with the arguments of `ViTSegmenter`.

    network: of a training of VFM-UDA the student ("network") or the teacher ("network_ema").
    attention_heads: by default one for each 64 channels. snr_after: blocks after which SNR
    is put, with initial values, as the file's lack has them from `seed`. Raises UserError where the
    file is incomplete, of another network, or holds values that no network has.
    """
    found = dinov2_names.read_names(raw, network)
    arguments = dinov2_names.infer_architecture(found.tensors, attention_heads)
    has_head = arguments["num_classes"] is not None and not reset_heads
    classes = choose_classes(arguments["num_classes"], num_classes, reset_heads)
    names = choose_names(classes, class_names)
    model = arguments | {"num_classes": classes, "snr_after": tuple(sorted(snr_after)),
                         "norm_restitution": "snr" if snr_after else "none"}
    try:
        DINOV2.check(model)
    except ValueError as error:
        raise UserError(str(error)) from None
    head = [name for name in found.tensors if name.startswith(("upscale.", "out."))]
    left_out = head if reset_heads else []
    tensors = {name: value for name, value in found.tensors.items() if name not in left_out}
    initial = initial_variables(ViTSegmenter(**model), seed)
    variables, account = dinov2_names.fill(initial, tensors, (*left_out, *found.unused))
    _require_complete(account, has_head)
    require_sound({name: tensors[name] for name in account.matched})
    return Conversion(variables, model, arguments, names, (HEAD,) if has_head else (), account,
                      tuple(_notes(found, account, head, reset_heads)))


def _require_complete(account: Account, has_head: bool) -> None:
    """UserError unless the whole backbone was matched, and the head, where the file has one.

    A mask token may be missing: not every file has one.
    """
    needed = ("encoder.", "upscale.", "out.") if has_head else ("encoder.",)
    missing = [name for name in account.missing
               if name.startswith(needed) and name != "encoder.mask_token"]
    if missing:
        raise UserError(f"{len(missing)} required tensors are missing: {examples(missing)}; not "
                        f"recognised {examples(account.unused)}. Likely cause: an incomplete file; "
                        "get the whole one")


def _notes(
    found: dinov2_names.Found, account: Account, head: Sequence[str], reset_heads: bool
) -> list[str]:
    """Sentences for the user."""
    notes = [f"the file is {found.kind}"]
    if any(name.startswith(f"{dinov2_names.NETWORKS[1]}.") for name in found.unused):
        notes.append("it holds the student (network) and its mean teacher (network_ema): the "
                     "student was taken. For the teacher: --weights ema_model")
    if not head:
        notes.append("no head in the file: it keeps initial values")
    if head and reset_heads:
        notes.append("--reset_heads: the head keeps initial values")
    if "encoder.mask_token" in account.missing:
        notes.append("no mask token in the file: it keeps initial values, which masked consistency "
                     "alone would see")
    return notes


def to_published(
    variables: Variables, layout: str, teacher: Variables | None = None
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The state dict of variables in one of LAYOUTS, and notes for the user.

    teacher: the mean teacher's, for the layout vfm_uda. Raises UserError for SNR blocks.
    """
    notes = []
    if any(name.startswith("restitution") for name in variables["params"]):
        notes.append("the classifiers of the restitution loss are no part of the network: left out")
    if layout == "vfm_uda":
        has = "those of the run's teacher" if teacher else "the same once more"
        notes.append(f"network.* are the tensors asked for, network_ema.* {has}")
        return dinov2_names.to_vfm_uda(variables, teacher), notes
    notes.append("the head has no place in this layout: left out")
    if layout == "dinov2":
        return dinov2_names.to_dinov2(variables), notes
    notes.append("Dinov2Model.from_pretrained reads it as model.safetensors beside a config.json "
                 "(docs/weights.md has one)")
    return dinov2_names.to_transformers(variables), notes
