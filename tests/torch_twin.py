"""The method in PyTorch: network, losses, metrics, optimiser rule and both training steps.

The reference for the parity tests and for speed comparisons. Tensor names are those of the
published checkpoints, arrays are NCHW (images BGR minus mean), labels [N, H, W] with 255 ignored.
It computes in whatever dtype, device, memory format and autocast context it is given.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

IGNORE = 255
EXPANSION = 4
DILATIONS = (6, 12, 18, 24)  # of the heads' branches


# Network -------------------------------------------------------------------------------------


class Bottleneck(nn.Module):
    """1x1 (the stride is here) -> 3x3 dilated -> 1x1, each with batch norm, plus the shortcut."""

    def __init__(self, channels: int, planes: int, stride: int, dilation: int, first: bool):
        super().__init__()
        out = planes * EXPANSION
        self.conv1 = nn.Conv2d(channels, planes, 1, stride, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        if first:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )
        else:
            self.downsample = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class Gate(nn.Module):
    """Channel attention a = sigmoid(W2 relu(W1 mean_hw(R) + b1) + b2): [N, C, 1, 1]."""

    def __init__(self, channels: int):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // 16, 1)
        self.fc2 = nn.Conv2d(channels // 16, channels, 1)

    def forward(self, residual: Tensor) -> Tensor:
        pooled = residual.mean((2, 3), keepdim=True)
        return torch.sigmoid(self.fc2(F.relu(self.fc1(pooled))))


class Head(nn.Module):
    """Dilated 3x3 classifiers, summed; all four hold parameters, the first `branches` compute."""

    def __init__(self, channels: int, num_classes: int, branches: int):
        super().__init__()
        self.conv2d_list = nn.ModuleList(
            nn.Conv2d(channels, num_classes, 3, padding=d, dilation=d) for d in DILATIONS
        )
        self.branches = branches

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        logits = sum(conv(x) for conv in self.conv2d_list[: self.branches])
        logits = logits.to(self.conv2d_list[0].weight.dtype)  # float32 again under autocast
        return F.interpolate(logits, size, mode="bilinear", align_corners=True)


class DeepLab(nn.Module):
    """ResNet DeepLab-v2 at output stride 8 with two heads and, after layers 1 to 3, SNR.

    `norm_restitution` is "snr", "in" (instance norm alone) or "none".
    """

    def __init__(
        self,
        num_classes: int = 19,
        stage_sizes: Sequence[int] = (3, 4, 23, 3),
        width: int = 64,
        norm_restitution: str = "snr",
        head_branches: int = 2,
    ):
        super().__init__()
        if norm_restitution not in ("snr", "in", "none"):
            raise ValueError(f"norm_restitution is 'snr', 'in' or 'none', not {norm_restitution!r}")
        self.norm_restitution = norm_restitution
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        channels = width
        for layer, (size, stride, dilation) in enumerate(
            zip(stage_sizes, (1, 2, 1, 1), (1, 1, 2, 4), strict=True), 1
        ):
            planes = width * 2 ** (layer - 1)
            blocks = []
            for i in range(size):
                blocks.append(
                    Bottleneck(channels, planes, stride if i == 0 else 1, dilation, i == 0)
                )
                channels = planes * EXPANSION
            setattr(self, f"layer{layer}", nn.Sequential(*blocks))
        self.layer5 = Head(channels // 2, num_classes, head_branches)  # auxiliary
        self.layer6 = Head(channels, num_classes, head_branches)  # main
        snr_channels = {k: width * EXPANSION * 2 ** (k - 1) for k in (1, 2, 3)}
        if norm_restitution != "none":
            for k, c in snr_channels.items():
                setattr(self, f"IN{k}", nn.InstanceNorm2d(c, affine=True))
        if norm_restitution == "snr":
            for k, c in snr_channels.items():
                setattr(self, f"style_reid_laye{k}", Gate(c))  # sic: the published name
        for module in self.modules():  # batch norms and biases start as torch starts them
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.01)

    def restitute(self, features: Tensor, k: int) -> dict[str, Tensor]:
        """The SNR block after layer k: F, F~, gate, F~+ ("restituted") and F~- ("contaminated").

        "restituted" is what the next layer sees, in every variant.
        """
        if self.norm_restitution == "none":
            return {"features": features, "restituted": features}
        normalized = getattr(self, f"IN{k}")(features)
        if self.norm_restitution == "in":
            return {"features": features, "normalized": normalized, "restituted": normalized}
        residual = features - normalized
        gate = getattr(self, f"style_reid_laye{k}")(residual)
        return {
            "features": features,
            "normalized": normalized,
            "gate": gate,
            "restituted": normalized + gate * residual,
            "contaminated": normalized + (1 - gate) * residual,
        }

    def forward(self, images: Tensor, intermediates: bool = False) -> tuple:
        """Main and auxiliary logits [N, C, H, W]; then, if asked, the three dicts of restitute."""
        size = images.shape[2:]
        x = F.relu(self.bn1(self.conv1(images)))
        x = F.max_pool2d(x, 3, 2, 1, ceil_mode=True)
        blocks = []
        for k in (1, 2, 3):
            block = self.restitute(getattr(self, f"layer{k}")(x), k)
            blocks.append(block)
            x = block["restituted"]
        logits = self.layer6(self.layer4(x), size), self.layer5(x, size)
        return (*logits, blocks) if intermediates else logits


class Restitution(nn.Module):
    """The dual restitution loss; its 1x1 classifiers are no part of the exported network."""

    def __init__(self, num_classes: int = 19, width: int = 64):
        super().__init__()
        for k in (1, 2, 3):
            phi = nn.Conv2d(width * EXPANSION * 2 ** (k - 1), num_classes, 1)
            nn.init.normal_(phi.weight, 0.0, 0.01)
            setattr(self, f"restitution{k}", phi)

    def forward(self, blocks: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """Sum over the blocks, unweighted."""
        return sum(
            restitution(
                getattr(self, f"restitution{k}"),
                block["restituted"],
                block["normalized"],
                block["contaminated"],
            )
            for k, block in enumerate(blocks, 1)
        )


# Losses: logits [N, C, H, W] -> scalar -------------------------------------------------------


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


# Metrics -------------------------------------------------------------------------------------


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


# Optimiser -----------------------------------------------------------------------------------


def poly(base_rate: float, iteration: int, max_iterations: int) -> float:
    return base_rate * (1 - iteration / max_iterations) ** 0.9


def rate_multiplier(name: str) -> int:
    return 10 if re.match(r"layer[56]\.", name) else 1


def repetitions(name: str) -> int:
    """How often the release updates a parameter in one iteration: once per module that lists it."""
    if not re.match(r"layer[1-4]\.", name):
        return 1
    return 4 if ".downsample." in name else 3


def is_trained(name: str, train_snr: bool) -> bool:
    if name.startswith("bn1."):  # the stem's; blocks' names begin with their layer
        return False
    return train_snr or not re.match(r"IN\d\.|style_reid_laye\d\.", name)


@torch.no_grad()
def sgd_step(
    parameters: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    velocities: dict[str, Tensor],
    rate: float,
    *,
    repeated_updates: bool,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
) -> None:
    """Update in place the parameters that have a gradient, and their velocities (0 if absent).

    Every repetition does g += decay p; v = momentum v + g; p -= rate v, and g keeps growing.
    """

    def rule(name: str) -> tuple[int, int]:
        return rate_multiplier(name), repetitions(name) if repeated_updates else 1

    for (multiplier, repeats), group in groupby(sorted(gradients, key=rule), rule):
        names = list(group)
        p = [parameters[name] for name in names]
        g = [gradients[name] for name in names]
        v = [velocities.setdefault(name, torch.zeros_like(parameters[name])) for name in names]
        for _ in range(repeats):
            g = torch._foreach_add(g, p, alpha=weight_decay)
            torch._foreach_mul_(v, momentum)
            torch._foreach_add_(v, g)
            torch._foreach_add_(p, v, alpha=-rate * multiplier)


# Training steps ------------------------------------------------------------------------------


def named_parameters(model: DeepLab, phi: Restitution | None, train_snr: bool) -> dict[str, Tensor]:
    """The parameters that the recipe may train, by name."""
    modules = [model] if phi is None else [model, phi]
    pairs = (pair for module in modules for pair in module.named_parameters())
    return {name: p for name, p in pairs if is_trained(name, train_snr)}


def gradients_of(loss: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gradients of the parameters that the loss reaches."""
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {name: g for name, g in zip(parameters, found) if g is not None}


def source_losses(
    model: DeepLab,
    images: Tensor,
    labels: Tensor,
    *,
    lambda_seg: float,
    phi: Restitution | None,
    restitution_weight: float,
) -> dict[str, Tensor]:
    """Weighted terms; the auxiliary one with lambda_seg alone, restitution with `phi` alone."""
    main, aux, blocks = model(images, intermediates=True)
    losses = {"loss_source": cross_entropy(main, labels)}
    if lambda_seg:
        losses["loss_source_aux"] = lambda_seg * cross_entropy(aux, labels)
    if phi is not None:
        losses["loss_restitution"] = restitution_weight * phi(blocks)
    return losses


def source_step(
    model: DeepLab,
    velocities: dict[str, Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    rate: float,
    repeated_updates: bool = False,
    train_snr: bool = True,
    phi: Restitution | None = None,
    restitution_weight: float = 0.01,
    freeze_bn: bool = False,
) -> dict[str, Tensor]:
    """One step on labelled images, in place. Returns the weighted terms of the loss."""
    model.train(not freeze_bn)
    parameters = named_parameters(model, phi, train_snr)
    losses = source_losses(
        model, images, labels, lambda_seg=0.0, phi=phi, restitution_weight=restitution_weight
    )
    gradients = gradients_of(sum(losses.values()), parameters)
    sgd_step(parameters, gradients, velocities, rate, repeated_updates=repeated_updates)
    return {name: loss.detach() for name, loss in losses.items()}


def adaptation_step(
    model: DeepLab,
    velocities: dict[str, Tensor],
    source_images: Tensor,
    source_labels: Tensor,
    target_images: Tensor,
    *,
    rate: float,
    target_loss: Callable[[Tensor], Tensor] = maxsquare,
    lambda_target: float = 0.1,
    multi: bool = False,
    lambda_seg: float = 0.1,
    threshold: float = 0.95,
    repeated_updates: bool = False,
    train_snr: bool = True,
    phi: Restitution | None = None,
    restitution_weight: float = 0.01,
    freeze_bn: bool = False,
) -> dict[str, Tensor]:
    """One step on a labelled source and an unlabelled target batch, in place.

    The target's forward sees the running statistics that the source's has moved. `multi` adds
    the auxiliary head in both domains, `phi` the restitution loss on the source batch.
    """
    model.train(not freeze_bn)
    parameters = named_parameters(model, phi, train_snr)
    losses = source_losses(
        model,
        source_images,
        source_labels,
        lambda_seg=lambda_seg if multi else 0.0,
        phi=phi,
        restitution_weight=restitution_weight,
    )
    gradients = gradients_of(sum(losses.values()), parameters)
    main, aux = model(target_images)
    target = {"loss_target": lambda_target * target_loss(main)}
    if multi:
        target["loss_target_aux"] = lambda_seg * lambda_target * guidance(main, aux, threshold)
    for name, g in gradients_of(sum(target.values()), parameters).items():
        gradients[name] = gradients[name] + g if name in gradients else g
    sgd_step(parameters, gradients, velocities, rate, repeated_updates=repeated_updates)
    return {name: loss.detach() for name, loss in {**losses, **target}.items()}
