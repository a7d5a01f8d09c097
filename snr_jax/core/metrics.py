"""Scores of what is counted: confusion matrices, and how far the confidence can be trusted.

Counting is integer; division happens once, on the host.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from snr_jax.core.labels import Classes, class_names, positions_13_in_16

BINS = 15  # of the confidence, equally wide, as Guo et al. (2017) have them
_UNITS = 2**16  # of the confidence, per 1: sums of whole numbers are exact in any order


class Counts(NamedTuple):
    """What is counted of a batch (int32, on devices) or of a set (int64, on the host).

    confusion [C,C]; reliability [BINS,4] of `count_reliability`, None where it is not asked for.
    """

    confusion: jax.Array | np.ndarray
    reliability: jax.Array | np.ndarray | None


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


def count_confusion(label: jax.Array, p: jax.Array) -> jax.Array:
    """`confusion_matrix` of labels [N,H,W] and class probabilities [N,H,W,C]."""
    return confusion_matrix(label, p.argmax(-1), p.shape[-1])


def count_reliability(label: jax.Array, p: jax.Array, parts: Sequence[int] = ()) -> jax.Array:
    """int32 [BINS,4] by the predicted class's probability, bin i being (i, i + 1] / BINS.

    The columns: pixels, those of them that are right, and the sum of the probabilities, whole ones
    and 65536ths. Labels outside 0..C-1 are left out. label: integers [N,H,W]; p: class
    probabilities [N,H,W,C]. parts: as of `joined`; then the classes are the coarse ones.
    """
    valid = (label >= 0) & (label < p.shape[-1])
    predicted = p.argmax(-1)
    if parts:
        is_part = np.asarray(parts)[:, None] == np.arange(max(parts) + 1)
        p = jnp.einsum("nhwc,cd->nhwd", p, is_part.astype(p.dtype), precision="highest")
        predicted = jnp.asarray(parts)[predicted]
    confidence = jnp.take_along_axis(p, predicted[..., None], -1)[..., 0]
    units = jnp.clip(jnp.round(confidence * _UNITS), 1, _UNITS).astype(jnp.int32)
    place = jnp.where(valid, (units * BINS - 1) // _UNITS, BINS)
    values = jnp.stack([jnp.ones_like(units), predicted == label, units], -1)
    # Equal forms, as of the confusion matrix. A row of 2^15 pixels fits into 32 bits.
    rows = lax.platform_dependent(place, values, cpu=_added, default=_compared)
    pixels, right, units = (rows[..., i] for i in range(3))  # [N,H,BINS] each
    whole, rest = (units // _UNITS).sum(1), (units % _UNITS).sum(1)
    of_images = (pixels.sum(1), right.sum(1), whole + rest // _UNITS, rest % _UNITS)
    return jnp.stack(of_images, -1).sum(0)


def _added(place: jax.Array, values: jax.Array) -> jax.Array:
    """Sums by row and bin, int32 [N,H,BINS,k]. place [N,H,W], BINS is none; values [N,H,W,k]."""
    images, height, _ = place.shape
    cell = jnp.arange(images * height).reshape(images, height, 1) * (BINS + 1) + place
    sums = jnp.zeros((images * height * (BINS + 1), values.shape[-1]), jnp.int32)
    sums = sums.at[cell.reshape(-1)].add(values.reshape(-1, values.shape[-1]))
    return sums.reshape(images, height, BINS + 1, -1)[:, :, :BINS]


def _compared(place: jax.Array, values: jax.Array) -> jax.Array:
    there = place[..., None] == jnp.arange(BINS)  # [N,H,W,BINS]
    return jnp.where(there[..., None], values[..., None, :], 0).sum(2)


def calibration(reliability: np.ndarray) -> dict:
    """The expected calibration error, and the diagram of [BINS,4] counts.

    {"ece": Σ pixels / all * |accuracy - confidence|, "reliability": {"pixels", "accuracy",
    "confidence"}}, lists of BINS; NaN in an empty bin (Naeini et al. 2015, Guo et al. 2017).
    """
    pixels, right, whole, parts = np.asarray(reliability).astype(np.float64).T
    with np.errstate(invalid="ignore", divide="ignore"):
        accuracy, confidence = right / pixels, (whole + parts / _UNITS) / pixels
        error = np.nansum(pixels * np.abs(accuracy - confidence)) / pixels.sum()
    return {
        "ece": float(error),
        "reliability": {"pixels": [int(n) for n in pixels], "accuracy": accuracy.tolist(),
                        "confidence": confidence.tolist()},
    }


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
