"""DINOv2's published weights as variables of `ViTSegmenter`; the way back is `dinov2_names`."""

from collections.abc import Sequence

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
from snr_jax.weights.torch_names import Account, StateDict

HEAD = "upscale, out"


def convert(
    raw: StateDict,
    *,
    network: str = "network",
    num_classes: int | None = None,
    class_names: Sequence[str] = (),
    heads: int | None = None,
    snr_after: Sequence[int] = (),
    reset_heads: bool = False,
    seed: int = 0,
) -> Conversion:
    """A state dict of any of the three kinds as variables, with the arguments of `ViTSegmenter`.

    network: of a training of VFM-UDA the student ("network") or the teacher ("network_ema").
    heads: of the attention; by default one for each 64 channels. snr_after: blocks after which SNR
    is put, with initial values, as the file's lack has them from `seed`. Raises UserError where the
    file is incomplete, of another network, or holds values that no network has.
    """
    found = dinov2_names.read_names(raw, network)
    arguments = dinov2_names.infer_architecture(found.tensors, heads)
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
    if not head:
        notes.append("no head in the file: it keeps initial values")
    if head and reset_heads:
        notes.append("--reset_heads: the head keeps initial values")
    if "encoder.mask_token" in account.missing:
        notes.append("no mask token in the file: it keeps initial values, which masked consistency "
                     "alone would see")
    return notes
