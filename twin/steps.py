"""The optimiser rule and both training steps in PyTorch."""

import re
from collections.abc import Callable, Mapping
from itertools import groupby

import torch
from torch import Tensor

from twin.losses import cross_entropy, guidance, maxsquare
from twin.network import DeepLab, Restitution


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
