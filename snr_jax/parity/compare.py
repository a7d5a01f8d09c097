"""Losses, metrics and forward passes against golden numbers, each with its tolerance."""

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from snr_jax.core import losses, metrics
from snr_jax.parity.golden import Arrays, Network, draw_image, nchw, nhwc, with_ignore
from snr_jax.weights import torch_names

ROUNDED = 1e-6  # arrays that were rounded to float32 at the end
FLOAT64 = 1e-8
IMAGE_WISE = 1e-6  # the published image-wise weights are float32 whatever the logits are
RATIO = 1e-12  # scores: quotients and means of the same integers
SCORES = {  # name in the folder → name in snr_jax.core.metrics
    "iou": "iou", "pixel_accuracy": "pixel_accuracy", "mean_accuracy": "class_accuracy",
    "mean_iou": "miou", "fw_iou": "fwiou", "mean_precision": "precision",
}
Networks = Callable[[str], Network]


class Row(NamedTuple):
    """One line of the table: the errors of some arrays, by their keys in the file."""

    quantity: str
    errors: dict[str, float]
    tolerance: float

    @property
    def worst(self) -> str:
        """The key of the largest error."""
        return max(self.errors, key=lambda key: np.nan_to_num(self.errors[key], nan=np.inf))

    @property
    def passed(self) -> bool:
        """Whether every error is within the tolerance; a NaN is not."""
        return all(error <= self.tolerance for error in self.errors.values())


def error(
    ours: np.typing.ArrayLike, golden: np.typing.ArrayLike, scale: np.ndarray | None = None
) -> float:
    """Largest difference over the largest magnitude of `scale`, by default of the golden array.

    Equal arrays have the error 0. If the largest magnitude is 0, unequal arrays have an infinite
    error. Arrays of different shapes, and a NaN in one array alone, have an infinite error.
    """
    ours, golden = np.asarray(ours, np.float64), np.asarray(golden, np.float64)
    if ours.shape != golden.shape or (np.isnan(ours) != np.isnan(golden)).any():
        return np.inf
    difference = np.abs(np.nan_to_num(ours) - np.nan_to_num(golden)).max(initial=0)
    size = np.abs(np.nan_to_num(golden if scale is None else scale)).max(initial=0)
    return 0.0 if difference == 0 else float(difference / size) if size else np.inf


def _loss_function(name: str, arrays: Arrays) -> Callable | None:
    """The loss of that name as f(logits, aux), or None."""
    plain, _, threshold = name.partition("_threshold_")
    options = {"threshold": float(threshold)} if threshold else {}
    if name == "cross_entropy":
        labels = with_ignore(arrays["labels"])
        return lambda logits, aux: losses.mean(losses.cross_entropy(logits, labels))
    if plain == "self_guidance_aux":
        return lambda logits, aux: losses.mean(losses.guidance(logits, aux, **options))
    if plain in losses.TARGET_LOSSES:
        return lambda logits, aux: losses.mean(losses.TARGET_LOSSES[plain](logits, **options))
    return None


def compare_losses(arrays: Arrays) -> Iterator[Row]:
    """Values and gradients of every loss whose name is known."""
    logits, aux = nhwc(arrays["logits"]), nhwc(arrays["logits_aux"])
    for name in dict.fromkeys(key.split("/")[0] for key in arrays if "/" in key):
        if (function := _loss_function(name, arrays)) is None:
            continue
        keys = {part: f"{name}/{part}" for part in ("value", "grad", "grad_aux")}
        count = len(arrays.get(keys["grad"], logits))  # some are of the first image alone
        value, gradients = jax.value_and_grad(function, argnums=(0, 1))(logits[:count], aux[:count])
        ours = dict(zip(keys, (value, *map(nchw, gradients)), strict=True))
        tolerance = IMAGE_WISE if name.startswith("iw_") else FLOAT64
        for part, key in keys.items():
            if key in arrays:
                yield Row(f"losses/{key}", {key: error(ours[part], arrays[key])}, tolerance)


def compare_metrics(arrays: Arrays) -> Iterator[Row]:
    """Confusion matrices and scores."""
    for kind in dict.fromkeys(key.split("/")[0] for key in arrays if key.endswith("/gt")):
        label, prediction = with_ignore(arrays[f"{kind}/gt"]), arrays[f"{kind}/pred"]
        num_classes = len(arrays[f"{kind}/confusion"])
        confusion = np.asarray(metrics.confusion_matrix(
            jnp.asarray(label), jnp.asarray(prediction), num_classes))
        key = f"{kind}/confusion"
        yield Row(f"metrics/{key}", {key: error(confusion, arrays[key])}, 0.0)
        ours = metrics.scores(confusion)
        keys = {f"{kind}/{name}": ours[mine] for name, mine in SCORES.items()}
        errors = {key: error(value, arrays[key]) for key, value in keys.items() if key in arrays}
        yield Row(f"metrics/{kind}/scores", errors, RATIO)


def compare_forward(arrays: Arrays, networks: Networks, salt: str) -> Iterator[Row]:
    """Logits of both heads, and running statistics after one forward in training mode."""
    for main in (key for key in arrays if re.fullmatch("[^/]+/(eval|train)/main", key)):
        kind, mode, _ = main.split("/")
        network = networks(kind)
        batch, _, *size = arrays[main].shape
        image = draw_image("eval_input", size, salt, batch)
        forward = partial(network.model.apply, train=mode == "train", mutable=["batch_stats"])
        output, updated = jax.jit(forward)(network.variables, image)
        for head in ("main", "aux"):
            key = f"{kind}/{mode}/{head}"
            errors = {key: error(nchw(getattr(output, head)), arrays[key])}
            yield Row(f"forward/{key}", errors, ROUNDED)
        moved = torch_names.to_torch({"params": {}, **updated})
        keys = {f"{kind}/{mode}/{name}": value for name, value in moved.items()}
        errors = {key: error(keys[key], arrays[key]) for key in arrays if key in keys}
        if errors:
            yield Row(f"forward/{kind}/{mode}/running statistics", errors, FLOAT64)
