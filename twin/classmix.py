"""Self-training with class mixing in PyTorch: teacher, pseudo labels, mix, loss and training step.

The reference for the parity tests, with the conventions of twin/. The classes to
paste are given from outside and the step has no strong augmentation: nothing here draws. Jitter
and blur stand below by themselves, on RGB images in [0, 1].
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from twin import (
    IGNORE,
    DeepLab,
    Restitution,
    gradients_of,
    named_parameters,
    poly,
    sgd_step,
    source_losses,
)

# Teacher -------------------------------------------------------------------------------------


def teacher_momentum(i: int, most: float = 0.99) -> float:
    """min(1 - 1 / (i + 1), most), i counts the updates from 0: the first one copies the student."""
    return min(1 - 1 / (i + 1), most)


@torch.no_grad()
def update_teacher(
    teacher: DeepLab, student: DeepLab, momentum: float, *, statistics: bool = False
) -> None:
    """teacher = momentum teacher + (1 - momentum) student, of all parameters and in place.

    Batch norm's buffers are the teacher's own, moved by its forwards; with `statistics`, for a
    teacher in evaluation mode, which moves nothing, they are averaged as well.
    """
    pairs = list(zip(teacher.parameters(), student.parameters(), strict=True))
    if statistics:
        buffers = zip(teacher.buffers(), student.buffers(), strict=True)
        pairs += [(mine, theirs) for mine, theirs in buffers if mine.is_floating_point()]
    for mine, theirs in pairs:
        mine.lerp_(theirs, 1 - momentum)  # exact where momentum is 0 and where the two are equal


@torch.no_grad()
def pseudo_label(
    teacher: DeepLab,
    images: Tensor,
    threshold: float = 0.968,
    *,
    per_pixel: bool = False,
    evaluation: bool = False,
) -> tuple[Tensor, Tensor]:
    """Argmax of the main head [N, H, W] and the weight of these labels, max p >= threshold.

    The weight is q, the share of the batch's pixels that reach the threshold: one number. With
    `per_pixel` it is 1 on those pixels and 0 on the others, [N, H, W]; its mean is q again.
    `evaluation`: by the teacher's running statistics, which then stay.
    """
    teacher.train(not evaluation)
    main, _ = teacher(images)
    confidence, labels = main.softmax(1).max(1)
    confident = (confidence >= threshold).to(main.dtype)
    return labels, confident if per_pixel else confident.mean()


# Mix -----------------------------------------------------------------------------------------


def number_chosen(n: int) -> int:
    """How many of n classes are pasted: half of them, rounded up."""
    return (n + n % 2) // 2


def classes_of(label: Tensor) -> list[int]:
    """The classes in one label [H, W], ascending.

    A choice: the ignored id counts as one. Pasting it is the only way for an ignored pixel into
    the mix, and the method says what such a pixel counts there.
    """
    return label.unique().tolist()


def class_mask(labels: Tensor, classes: Sequence[Iterable[int]]) -> Tensor:
    """Where the label is one of its image's chosen classes: bool [N, H, W]."""
    return torch.stack([
        torch.isin(label, label.new_tensor(list(chosen)))
        for label, chosen in zip(labels, classes, strict=True)
    ])


def mix(source: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """The source's pixels where the mask [N, H, W] is set, the target's elsewhere.

    For images [N, C, H, W] and labels [N, H, W]; both domains have one size.
    """
    if source.shape != target.shape:
        raise ValueError(f"source {tuple(source.shape)} and target {tuple(target.shape)} differ")
    return torch.where(mask.unsqueeze(1) if source.dim() == 4 else mask, source, target)


def mix_loss(logits: Tensor, labels: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    """sum w cross-entropy / (N H W), w = 1 on pasted pixels and `weight` elsewhere, ignored ones 0.

    Unlike the source's cross-entropy, the mean runs over the ignored pixels too.
    """
    weights = torch.where(mask, torch.ones_like(weight), weight)
    pixel = F.cross_entropy(logits, labels.long(), ignore_index=IGNORE, reduction="none")
    return (weights * pixel).mean()


# Training step -------------------------------------------------------------------------------


def classmix_step(
    model: DeepLab,
    teacher: DeepLab,
    velocities: dict[str, Tensor],
    images: Tensor,
    labels: Tensor,
    target_images: Tensor,
    classes: Sequence[Iterable[int]],
    iteration: int,
    *,
    base_rate: float,
    max_iterations: int,
    threshold: float = 0.968,
    most_momentum: float = 0.99,
    weight_per_pixel: bool = False,
    teacher_evaluation: bool = False,
    repeated_updates: bool = False,
    train_snr: bool = True,
    phi: Restitution | None = None,
    restitution_weight: float = 0.01,
    freeze_bn: bool = False,
) -> dict[str, Tensor]:
    """One step on a labelled source and an unlabelled target batch of one size, in place.

    `classes` are those to paste, per image. The mix's forward sees the running statistics that
    the source's has moved; `freeze_bn` holds the teacher's too. Returns the terms and q.
    """
    pseudo_labels, weight = pseudo_label(
        teacher,
        target_images,
        threshold,
        per_pixel=weight_per_pixel,
        evaluation=teacher_evaluation or freeze_bn,
    )
    mask = class_mask(labels, classes)
    mixed_images = mix(images, target_images, mask)
    mixed_labels = mix(labels.long(), pseudo_labels, mask)

    model.train(not freeze_bn)
    parameters = named_parameters(model, phi, train_snr)
    losses = source_losses(
        model, images, labels, lambda_seg=0.0, phi=phi, restitution_weight=restitution_weight
    )
    gradients = gradients_of(sum(losses.values()), parameters)
    main, _ = model(mixed_images)
    losses["loss_mix"] = mix_loss(main, mixed_labels, mask, weight)
    for name, g in gradients_of(losses["loss_mix"], parameters).items():
        gradients[name] = gradients[name] + g if name in gradients else g
    rate = poly(base_rate, iteration, max_iterations)
    sgd_step(parameters, gradients, velocities, rate, repeated_updates=repeated_updates)
    update_teacher(
        teacher, model, teacher_momentum(iteration, most_momentum),
        statistics=teacher_evaluation and not freeze_bn,
    )
    return {name: loss.detach() for name, loss in losses.items()} | {"q": weight.mean()}


# Strong augmentation: RGB images [N, 3, H, W] in [0, 1] -> the same ---------------------------
# A factor is a number or, one per image, [N, 1, 1, 1].


def grey(images: Tensor) -> Tensor:
    """0.299 R + 0.587 G + 0.114 B: [N, 1, H, W]."""
    return (images * images.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)


def adjust_brightness(images: Tensor, factor: float | Tensor) -> Tensor:
    """x f, clipped."""
    return (factor * images).clamp(0, 1)


def adjust_contrast(images: Tensor, factor: float | Tensor) -> Tensor:
    """f x + (1 - f) m, clipped; m is the mean of the image's grey."""
    mean = grey(images).mean((1, 2, 3), keepdim=True)
    return (factor * images + (1 - factor) * mean).clamp(0, 1)


def adjust_saturation(images: Tensor, factor: float | Tensor) -> Tensor:
    """f x + (1 - f) grey, clipped."""
    return (factor * images + (1 - factor) * grey(images)).clamp(0, 1)


def adjust_hue(images: Tensor, turns: float | Tensor) -> Tensor:
    """The hue h of HSV, once round in [0, 1), becomes h + turns; saturation and value stay.

    With V the largest channel and D the largest minus the smallest, 6 h is (G - B) / D,
    2 + (B - R) / D or 4 + (R - G) / D as R, G or B is the largest. Back: channel n = 5, 3, 1 is
    V - D max(0, min(k, 4 - k, 1)), k = n + 6 h modulo 6.
    """
    value = images.amax(1, keepdim=True)
    spread = value - images.amin(1, keepdim=True)
    red, green, blue = images.split(1, 1)
    d = torch.where(spread > 0, spread, torch.ones_like(spread))  # grey has no hue: it stays
    sextant = torch.where(
        value == red,
        (green - blue) / d,
        torch.where(value == green, 2 + (blue - red) / d, 4 + (red - green) / d),
    )
    k = (images.new_tensor([5, 3, 1]).view(3, 1, 1) + sextant + 6 * turns) % 6
    return value - spread * torch.minimum(k, 4 - k).clamp(0, 1)


ADJUSTMENTS = {
    "brightness": adjust_brightness,
    "contrast": adjust_contrast,
    "saturation": adjust_saturation,
    "hue": adjust_hue,
}


def colour_jitter(images: Tensor, factors: Mapping[str, float | Tensor]) -> Tensor:
    """Each adjustment named, in the order of `factors`: the method draws factors and no order.

    Neutral are 1 and, for the hue, 0; ±0.25 about them is the method's range.
    """
    for name, factor in factors.items():
        images = ADJUSTMENTS[name](images, factor)
    return images


def blur_size(side: int) -> int:
    """Taps along a side: the largest odd number up to a tenth of it, the tenth rounded up."""
    tenth = math.ceil(0.1 * side)
    return tenth - (tenth + 1) % 2


def gaussian_blur(images: Tensor, sigma: float, sizes: tuple[int, int] | None = None) -> Tensor:
    """Weights exp(-k^2 / (2 sigma^2)) / their sum along y and x, mirrored at the rim.

    `sizes` (odd, y and x) are those of blur_size when None. They hold 4 sigma to either side for
    every sigma up to 1.15 from a side of 101 on; on smaller images they cut the tails.
    """
    height, width = sizes or map(blur_size, images.shape[2:])
    for size, shape in ((height, (1, 1, -1, 1)), (width, (1, 1, 1, -1))):
        k = torch.arange(size, dtype=images.dtype, device=images.device) - size // 2
        weights = torch.exp(-(k**2) / (2 * sigma**2))
        kernel = (weights / weights.sum()).view(shape).expand(3, 1, -1, -1)
        pad = (0, 0, size // 2, size // 2) if shape[2] == -1 else (size // 2, size // 2, 0, 0)
        images = F.conv2d(F.pad(images, pad, mode="reflect"), kernel, groups=3)
    return images
