"""SGD as the published code runs it: poly schedule, parameter groups, repeated updates."""

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


LEFT_ALONE = Group(0.0, 0)  # no gradient step, no decay, no momentum
Groups = Sequence[tuple[str, Group]]


class SGDState(NamedTuple):
    count: jax.Array
    velocity: dict  # the tree of the parameters, of those that are trained


def poly_schedule(
    base_rate: float = 2.5e-4, num_steps: int = 200_000, power: float = 0.9
) -> optax.Schedule:
    """base_rate * (1 - i / num_steps)^power; as published by default."""
    schedule = optax.polynomial_schedule(base_rate, 0.0, power, num_steps)
    # An integer count would make the rate a float32 even where float64 is asked for.
    return lambda count: schedule(jnp.asarray(count, jnp.result_type(float)))


def param_groups(
    *,
    repeated_updates: bool,
    train_snr: bool,
    multi_level: bool,
    head_branches: int = 2,
    head_rate: float = 10.0,
    snr_rate: float = 1.0,
) -> Groups:
    """(pattern of the whole path, Group) in the published arrangement; the first match counts.

    repeated_updates: the release lists a backbone tensor once per enclosing module, so that SGD
    steps the stem once, the shortcuts four times and the rest three times in an iteration.
    multi_level: the loss reaches the auxiliary head. What no loss reaches is left alone.
    """
    shortcut, block = (4, 3) if repeated_updates else (1, 1)
    head = Group(head_rate, 1)
    used = f"conv2d_list_[0-{head_branches - 1}]/(kernel|bias)"
    return (
        (r"bn1/(scale|bias)", LEFT_ALONE),
        (r"conv1/kernel", Group(1.0, 1)),
        (r"layer[1-4]_\d+/downsample_(conv|bn)/\w+", Group(1.0, shortcut)),
        (r"layer[1-4]_\d+/(conv|bn)\d/\w+", Group(1.0, block)),
        (r"snr\d/\w+/\w+", Group(snr_rate, 1) if train_snr else LEFT_ALONE),
        (r"restitution\d/\w+", Group(snr_rate, 1)),
        (rf"layer6/{used}", head),
        (rf"layer5/{used}", head if multi_level else LEFT_ALONE),
        (r"layer[56]/conv2d_list_\d/(kernel|bias)", LEFT_ALONE),
    )


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
