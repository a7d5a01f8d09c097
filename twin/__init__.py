"""The method in PyTorch, written from the papers: for parity tests and to compare speed with."""

from twin.losses import (
    IGNORE,
    TARGET_LOSSES,
    confusion_matrix,
    cross_entropy,
    entropy,
    guidance,
    hard,
    image_weights,
    iw_entropy,
    iw_maxsquare,
    maxsquare,
    metrics,
    restitution,
)
from twin.network import (
    DeepLab,
    Head,
    Restitution,
)
from twin.steps import (
    adaptation_step,
    gradients_of,
    named_parameters,
    poly,
    repetitions,
    sgd_step,
    source_losses,
    source_step,
)

__all__ = [
    "IGNORE",
    "TARGET_LOSSES",
    "DeepLab",
    "Head",
    "Restitution",
    "adaptation_step",
    "confusion_matrix",
    "cross_entropy",
    "entropy",
    "gradients_of",
    "guidance",
    "hard",
    "image_weights",
    "iw_entropy",
    "iw_maxsquare",
    "maxsquare",
    "metrics",
    "named_parameters",
    "poly",
    "repetitions",
    "restitution",
    "sgd_step",
    "source_losses",
    "source_step",
]
