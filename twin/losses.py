"""The losses and metrics in PyTorch and numpy: logits [N, C, H, W] → scalar."""


import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

IGNORE = 255


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over valid pixels; 0 with a zero gradient where there is none."""
    total = F.cross_entropy(logits, labels.long(), ignore_index=IGNORE, reduction="sum")
    return total / (labels != IGNORE).sum().clamp(min=1)


def maxsquare(logits: Tensor) -> Tensor:
    """- sum p^2 / (2 N C H W)."""
    return -(logits.softmax(1) ** 2).mean() / 2


def entropy(logits: Tensor) -> Tensor:
    """- sum p log p / (N C H W), gradient through both p."""
    return -(logits.softmax(1) * logits.log_softmax(1)).mean()


def image_weights(logits: Tensor, ratio: float = 0.2) -> Tensor:
    """w_(argmax) of every pixel, [N, H, W], from each image's own predictions; no gradient."""
    predicted = logits.argmax(1)
    counts = F.one_hot(predicted, logits.shape[1]).sum((1, 2)).to(logits.dtype)  # [N, C]
    total = counts.sum(1, keepdim=True)
    weights = 1 / (counts**ratio * total ** (1 - ratio)).clamp(min=1)
    return weights.gather(1, predicted.flatten(1)).view(predicted.shape)


def iw_maxsquare(logits: Tensor) -> Tensor:
    """- sum_pixels w sum_c p^2 / (N C)."""
    n, c = logits.shape[:2]
    return -(image_weights(logits) * (logits.softmax(1) ** 2).sum(1)).sum() / (n * c)


def iw_entropy(logits: Tensor) -> Tensor:
    """- sum_pixels w sum_c p log p / (N C)."""
    n, c = logits.shape[:2]
    pixel = (logits.softmax(1) * logits.log_softmax(1)).sum(1)
    return -(image_weights(logits) * pixel).sum() / (n * c)


def hard(logits: Tensor, threshold: float = 0.95) -> Tensor:
    """Cross-entropy against the prediction itself where it is confident."""
    confidence, predicted = logits.softmax(1).max(1)
    return cross_entropy(logits, predicted.masked_fill(confidence <= threshold, IGNORE))


def guidance(logits: Tensor, logits_aux: Tensor, threshold: float = 0.95) -> Tensor:
    """Cross-entropy of the auxiliary head against both heads' mean where one is confident."""
    main, aux = logits.softmax(1), logits_aux.softmax(1)
    unsure = (main.amax(1) <= threshold) & (aux.amax(1) <= threshold)
    return cross_entropy(logits_aux, ((main + aux) / 2).argmax(1).masked_fill(unsure, IGNORE))


def restitution(
    classifier: nn.Conv2d, restituted: Tensor, normalized: Tensor, contaminated: Tensor
) -> Tensor:
    """softplus(H(F~+) - H(F~)) + softplus(H(F~) - H(F~-)), H the entropy's mean over all pixels."""

    def mean_entropy(features: Tensor) -> Tensor:
        logits = classifier(features).to(classifier.weight.dtype)  # float32 under autocast
        return -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()

    h = mean_entropy(normalized)
    return F.softplus(mean_entropy(restituted) - h) + F.softplus(h - mean_entropy(contaminated))


TARGET_LOSSES = {f.__name__: f for f in (maxsquare, iw_maxsquare, entropy, iw_entropy, hard)}


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts int64 [C, C], rows labels, columns predictions; labels outside 0..C-1 left out."""
    labels, predicted = np.asarray(labels, np.int64), np.asarray(predicted, np.int64)
    valid = (labels >= 0) & (labels < num_classes)
    pairs = labels[valid] * num_classes + predicted[valid]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def metrics(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Fractions; what is 0/0 is NaN in `iou` and left out of the means."""
    hits = np.diag(confusion)
    of_label, of_prediction = confusion.sum(1), confusion.sum(0)
    with np.errstate(invalid="ignore"):
        iou = hits / (of_label + of_prediction - hits)
        return {
            "iou": iou,
            "mean_iou": np.nanmean(iou),
            "pixel_accuracy": hits.sum() / confusion.sum(),
            "mean_accuracy": np.nanmean(hits / of_label),
            "mean_precision": np.nanmean(hits / of_prediction),
            "fw_iou": np.nansum(of_label * iou) / confusion.sum(),
        }
