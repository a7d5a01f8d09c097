"""Scores of a confusion matrix. Counting is integer; division happens once, on the host."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from snr_jax.core.labels import Classes, class_names, positions_13_in_16


def confusion_matrix(label: jax.Array, prediction: jax.Array, num_classes: int) -> jax.Array:
    """int32 [C,C]: rows are labels, columns predictions. Labels outside 0..C-1 are left out.

    label, prediction: integers [N,H,W], predictions in 0..C-1.
    """
    # Equal forms. A GPU would count by atomic additions of all pixels to few addresses; a CPU
    # takes twenty times as long for the product.
    return lax.platform_dependent(
        label, prediction,
        cpu=partial(_counted, num_classes=num_classes),
        default=partial(_multiplied, num_classes=num_classes),
    )


def _counted(label: jax.Array, prediction: jax.Array, num_classes: int) -> jax.Array:
    label, prediction = label.astype(jnp.int32), prediction.astype(jnp.int32)
    valid = (label >= 0) & (label < num_classes)
    cell = jnp.where(valid, label * num_classes + prediction, num_classes**2)
    counts = jnp.bincount(cell.reshape(-1), length=num_classes**2 + 1)
    return counts[:-1].reshape(num_classes, num_classes).astype(jnp.int32)


def _multiplied(
    label: jax.Array, prediction: jax.Array, num_classes: int, limit: int = 2**24
) -> jax.Array:
    """Products of one-hot rows; sums in float32 are exact for up to `limit` pixels at a time."""
    classes = jnp.arange(num_classes)
    total = jnp.zeros((num_classes, num_classes), jnp.int32)
    rows = max(limit // label.shape[2], 1)
    for start in range(0, label.shape[1], rows):
        part = slice(start, start + rows)
        hot = (x[:, part].astype(jnp.int32)[..., None] == classes for x in (label, prediction))
        counts = jnp.einsum("nhwl,nhwp->nlp", *(x.astype(jnp.bfloat16) for x in hot),
                            preferred_element_type=jnp.float32)
        total += counts.astype(jnp.int32).sum(0, dtype=jnp.int32)
    return total


def joined(confusion: np.ndarray, parts: Sequence[int], num_classes: int) -> np.ndarray:
    """Confusion matrix [num_classes,num_classes] of one whose predictions are of finer classes.

    confusion: integers [C,C], rows are labels of the coarse classes, the first num_classes alone
    filled. parts: of each fine class, the coarse one that it is a part of.
    """
    result = np.zeros((num_classes, num_classes), confusion.dtype)
    np.add.at(result.T, np.asarray(parts), confusion[:num_classes].T)
    return result


def scores(confusion: np.ndarray) -> dict[str, float | list[float]]:
    """Scores in 0..1 of an integer confusion matrix [C,C] (rows are labels).

    Classes in neither labels nor predictions are NaN per class and left out of the means of IoU;
    class accuracy and precision leave out the classes that make them 0/0.
    """
    matrix = np.asarray(confusion).astype(np.float64)
    hits, labelled, predicted = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        iou = hits / (labelled + predicted - hits)
        accuracy, precision = hits / labelled, hits / predicted
        total = matrix.sum()
        return {
            "pixel_accuracy": float(hits.sum() / total),
            "class_accuracy": _mean(accuracy),
            "miou": _mean(iou),
            "fwiou": float(np.nansum(labelled * iou) / total),
            "precision": _mean(precision),
            "iou": [float(v) for v in iou],
        }


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def named_scores(confusion: np.ndarray, classes: Classes | None = None) -> dict:
    """`scores` with the IoU named: {"miou": ..., "iou": {"road": ..., ...}, ...}.

    classes: those of the matrix; by default those of the protocol of that size.

    A matrix of 16 classes is scored on 13 as well, as papers on SYNTHIA do: `miou_13` is the mean
    over the 13 classes of the IoU of the 16-class matrix. Wall, fence and pole stay in the matrix:
    a car predicted as a wall is a miss of the car, and a wall predicted as a car a false car.
    """
    result = scores(confusion)
    names = class_names(classes or len(confusion))
    named = {**result, "iou": dict(zip(names, result["iou"], strict=True))}
    if names == class_names(16):
        named["miou_13"] = _mean(np.array(result["iou"])[positions_13_in_16()])
    return named
