"""SGD and AdamW as the published codes run them: schedule, parameter groups, repeated updates."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict


class Group(NamedTuple):
    """rate multiplies the base rate; repeats is the number of SGD updates in one iteration."""

    rate: float
    repeats: int


KINDS = ("sgd", "adamw")
WARMUP_START = 1e-3  # share of the rate in the first step of a warm-up
LEFT_ALONE = Group(0.0, 0)  # no gradient step, no decay, no momentum
Groups = Sequence[tuple[str, Group]]


class SGDState(NamedTuple):
    count: jax.Array
    velocity: dict  # the tree of the parameters, of those that are trained


def poly_schedule(
    base_rate: float = 2.5e-4, num_steps: int = 200_000, power: float = 0.9, warmup_steps: int = 0
) -> optax.Schedule:
    """base_rate * (1 - i / num_steps)^power; as published for SGD by default.

    The rates of the first `warmup_steps` steps rise in equal parts from a thousandth of base_rate
    to all of it instead; the next is that of the formula, as VFM-UDA runs it (arXiv 2406.09896).
    """
    falling = optax.polynomial_schedule(base_rate, 0.0, power, num_steps)

    def schedule(count: jax.Array | int) -> jax.Array:
        # An integer count would make the rate a float32 even where float64 is asked for.
        count = jnp.asarray(count, jnp.result_type(float))
        if not warmup_steps:
            return falling(count)
        share = WARMUP_START + (1 - WARMUP_START) * count / max(warmup_steps - 1, 1)
        return jnp.where(count < warmup_steps, base_rate * share, falling(count))

    return schedule


def param_groups(
    *,
    repeated_updates: bool,
    train_snr: bool,
    multi_level: bool,
    head_branches: int = 2,
    backbone_rate: float = 1.0,
    head_rate: float = 10.0,
    snr_rate: float = 1.0,
) -> Groups:
    """(pattern of the whole path, Group) in the published arrangement; the first match counts.

    repeated_updates: the release lists a backbone tensor once per enclosing module, so that SGD
    steps the stem once, the shortcuts four times and the rest three times in an iteration.
    multi_level: the loss reaches the auxiliary head. What no loss reaches is left alone, and so is
    a backbone of rate 0.
    """
    shortcut, block = (4, 3) if repeated_updates else (1, 1)

    def backbone(repeats: int) -> Group:
        return Group(backbone_rate, repeats) if backbone_rate else LEFT_ALONE

    head = Group(head_rate, 1)
    used = f"conv2d_list_[0-{head_branches - 1}]/(kernel|bias)"
    return (
        (r"bn1/(scale|bias)", LEFT_ALONE),
        (r"conv1/kernel", backbone(1)),
        (r"layer[1-4]_\d+/downsample_(conv|bn)/\w+", backbone(shortcut)),
        (r"layer[1-4]_\d+/(conv|bn)\d/\w+", backbone(block)),
        (r"snr\d/\w+/\w+", Group(snr_rate, 1) if train_snr else LEFT_ALONE),
        (r"restitution\d/\w+", Group(snr_rate, 1)),
        (rf"layer6/{used}", head),
        (rf"layer5/{used}", head if multi_level else LEFT_ALONE),
        (r"layer[56]/conv2d_list_\d/(kernel|bias)", LEFT_ALONE),
    )


def vit_groups(
    *, masked_tokens: bool, train_snr: bool = True, backbone_rate: float = 0.1,
    head_rate: float = 1.0, snr_rate: float = 1.0,
) -> Groups:
    """(pattern of the whole path, Group) of `ViTSegmenter`; the first match counts.

    masked_tokens: the loss reaches the token that stands for masked patches, which is left alone
    else. A backbone of rate 0 is left alone as well.
    """
    backbone = Group(backbone_rate, 1) if backbone_rate else LEFT_ALONE
    return (
        (r"encoder/snr_\d+/.+", Group(snr_rate, 1) if train_snr else LEFT_ALONE),
        (r"restitution_\d+/.+", Group(snr_rate, 1)),
        (r"encoder/mask_token", backbone if masked_tokens else LEFT_ALONE),
        (r"encoder/.+", backbone),
        (r"head/.+", Group(head_rate, 1)),
    )


GROUPS = {"resnet": param_groups, "dinov2": vit_groups}  # by the kind of network


def assign_groups(params: dict, groups: Groups) -> dict[str, Group]:
    """Path → Group. A parameter that no pattern covers is a ValueError."""
    assigned, uncovered = {}, []
    for path in flatten_dict(params, sep="/"):
        for pattern, group in groups:
            if re.fullmatch(pattern, path):
                assigned[path] = group
                break
        else:
            uncovered.append(path)
    if uncovered:
        raise ValueError(f"no parameter group covers {', '.join(uncovered)}")
    return assigned


def sgd(
    schedule: optax.Schedule,
    groups: Groups,
    *,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
) -> optax.GradientTransformation:
    """PyTorch 1.0's SGD. Per repetition: g += decay * p; v = momentum * v + g; p -= rate * v.

    The gradient keeps the decay of the earlier repetitions, as that version did.
    """

    def init(params: dict) -> SGDState:
        assigned = assign_groups(params, groups)
        velocity = {
            path: jnp.zeros_like(p)
            for path, p in flatten_dict(params, sep="/").items()
            if assigned[path].repeats
        }
        return SGDState(jnp.zeros([], jnp.int32), unflatten_dict(velocity, sep="/"))

    def update(gradients: dict, state: SGDState, params: dict) -> tuple[dict, SGDState]:
        assigned = assign_groups(params, groups)
        gradients = flatten_dict(gradients, sep="/")
        base_rate = schedule(state.count)
        old_velocity = flatten_dict(state.velocity, sep="/")
        velocity, updates = {}, {}
        for path, start in flatten_dict(params, sep="/").items():
            group = assigned[path]
            if not group.repeats:
                updates[path] = jnp.zeros_like(start)
                continue
            p, g, v = start, gradients[path], old_velocity[path]
            rate = jnp.asarray(base_rate * group.rate, p.dtype)
            for _ in range(group.repeats):
                g = g + weight_decay * p
                v = momentum * v + g
                p = p - rate * v
            updates[path], velocity[path] = p - start, v
        velocity = unflatten_dict(velocity, sep="/")
        return unflatten_dict(updates, sep="/"), SGDState(state.count + 1, velocity)

    return optax.GradientTransformation(init, update)


def adamw(
    schedule: optax.Schedule,
    groups: Groups,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.01,
) -> optax.GradientTransformation:
    """AdamW (arXiv 1711.05101), as PyTorch's: p -= rate * (m / (sqrt(v) + 1e-8) + decay * p).

    m and v are the means of the gradient and of its square, free of their bias to 0; decay is of
    every parameter that is trained. State: optax's, with trees of those alone. Raises ValueError
    for a group of repeated updates.
    """
    adam = optax.scale_by_adam(*betas)

    def trained(tree: dict, params: dict) -> tuple[dict, dict[str, Group]]:
        """The leaves of the parameters that have an update, and the groups of these by path."""
        assigned = {k: g for k, g in assign_groups(params, groups).items() if g.repeats}
        if any(group.repeats > 1 for group in assigned.values()):
            raise ValueError("repeated updates are SGD's alone")
        leaves = flatten_dict(tree, sep="/")
        return unflatten_dict({path: leaves[path] for path in assigned}, sep="/"), assigned

    def init(params: dict) -> optax.ScaleByAdamState:
        return adam.init(trained(params, params)[0])

    def update(
        gradients: dict, state: optax.ScaleByAdamState, params: dict
    ) -> tuple[dict, optax.ScaleByAdamState]:
        base_rate = schedule(state.count)
        gradients, assigned = trained(gradients, params)
        directions, state = adam.update(gradients, state)
        directions = flatten_dict(directions, sep="/")

        def change(path: str, p: jax.Array) -> jax.Array:
            if path not in assigned:
                return jnp.zeros_like(p)
            rate = jnp.asarray(base_rate * assigned[path].rate, p.dtype)
            return -rate * (directions[path] + weight_decay * p)

        updates = {path: change(path, p) for path, p in flatten_dict(params, sep="/").items()}
        return unflatten_dict(updates, sep="/"), state

    return optax.GradientTransformation(init, update)
