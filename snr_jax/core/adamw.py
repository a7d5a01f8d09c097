"""AdamW with parameter groups, and the schedule of VFM-UDA (arXiv 2406.09896)."""

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from snr_jax.core.optim import LEFT_ALONE, Group, Groups, assign_groups


def warmup_linear(
    base_rate: float, *, warmup_steps: int = 1500, num_steps: int = 40_000, start: float = 1e-3
) -> optax.Schedule:
    """base_rate times a line from `start`, at 0, to 1 at warmup_steps - 1; then 1 - i / num_steps.

    As published: the second line does not begin where the first ends, but where it would be by
    then, had it begun at 0.
    """

    def schedule(count: jax.Array) -> jax.Array:
        i = jnp.asarray(count, jnp.result_type(float))
        warm = start + (1 - start) * i / max(warmup_steps - 1, 1)
        return base_rate * jnp.where(i < warmup_steps, warm, jnp.maximum(1 - i / num_steps, 0))

    return schedule


def vit_groups(
    *, masked_tokens: bool, encoder_rate: float = 0.1, snr_rate: float = 1.0,
    freeze_encoder: bool = False,
) -> Groups:
    """(pattern of the whole path, Group) of `ViTSegmenter`; the first match counts.

    encoder_rate: of the head's. masked_tokens: the loss reaches the token that stands for masked
    patches, which is left alone else. freeze_encoder: the head is trained alone, and SNR.
    """
    encoder = LEFT_ALONE if freeze_encoder else Group(encoder_rate, 1)
    return (
        (r"encoder/snr_\d+/.+|restitution_\d+/.+", Group(snr_rate, 1)),
        (r"encoder/mask_token", encoder if masked_tokens else LEFT_ALONE),
        (r"encoder/.+", encoder),
        (r"head/.+", Group(1.0, 1)),
    )


def adamw(
    schedule: optax.Schedule,
    groups: Groups,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.01,
) -> optax.GradientTransformation:
    """p -= rate (m^ / (sqrt(v^) + epsilon) + weight_decay p), as PyTorch's AdamW.

    rate: the schedule's times the group's. What is left alone has no moments. The state counts the
    updates in `count`.
    """
    adam = optax.scale_by_adam(b1, b2, epsilon)

    def trained(params: dict, tree: dict) -> dict:
        assigned = assign_groups(params, groups)
        return unflatten_dict({path: value for path, value in flatten_dict(tree, sep="/").items()
                               if assigned[path].repeats}, sep="/")

    def init(params: dict) -> optax.OptState:
        return adam.init(trained(params, params))

    def update(
        gradients: dict, state: optax.OptState, params: dict
    ) -> tuple[dict, optax.OptState]:
        base_rate = schedule(state.count)
        directions, state = adam.update(trained(params, gradients), state)
        directions, assigned = flatten_dict(directions, sep="/"), assign_groups(params, groups)
        updates = {}
        for path, p in flatten_dict(params, sep="/").items():
            if path not in directions:
                updates[path] = jnp.zeros_like(p)
                continue
            rate = jnp.asarray(base_rate * assigned[path].rate, p.dtype)
            updates[path] = -rate * (directions[path] + weight_decay * p)
        return unflatten_dict(updates, sep="/"), state

    return optax.GradientTransformation(init, update)
