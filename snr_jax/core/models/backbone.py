"""What the rest of the house knows of a kind of network, beside how it is called."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn

from snr_jax.core.augment import Preprocessing

Size = tuple[int, int]  # height, width


class Backbone(NamedTuple):
    """A network's attribute `backbone`."""

    kind: str  # what a checkpoint calls it
    preprocessing: Preprocessing
    map_size: Callable[[Size], Size]  # of an image → at which its logits are kept until they count
    architecture: tuple[str, ...]  # arguments that give the variables their shapes and meaning
    class_outputs: tuple[str, ...]  # begin the paths of parameters with an output for each class
    check: Callable[[dict], None]  # ValueError for values of these arguments that cannot be


def architecture(model: nn.Module) -> dict:
    """The kind and those arguments of a network that checkpoints record."""
    known = model.backbone
    return {"backbone": known.kind, **{name: getattr(model, name) for name in known.architecture}}
