"""The published warm-up and AdamW's groups, by hand."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from snr_jax.core.adamw import adamw, vit_groups, warmup_linear
from snr_jax.core.models.light_head import ViTSegmenter
from snr_jax.core.optim import LEFT_ALONE, Group, assign_groups
from snr_jax.core.state import variable_shapes

TINY = {"width": 16, "depth": 1, "heads": 2, "grid": 3, "snr_after": (0,),
        "restitution_heads": True}


def test_warmup_linear():
    schedule = warmup_linear(2.0, warmup_steps=1500, num_steps=40_000)
    for step, rate in ((0, 0.002), (1499, 2.0), (1500, 2 * (1 - 1500 / 40_000)), (20_000, 1.0),
                       (40_000, 0.0), (50_000, 0.0)):
        assert float(schedule(step)) == pytest.approx(rate, rel=1e-6)
    assert float(schedule(600)) == pytest.approx(2 * (0.001 + 0.999 * 600 / 1499), rel=1e-6)
    assert float(warmup_linear(1.0, warmup_steps=1)(0)) == pytest.approx(1e-3)


def test_adamw_by_hand():
    """p = 2, g = 0.5: m^ / sqrt(v^) = 1 in the first step, so p - 0.1 * 0.5 (1 + 0.1 * 2)."""
    params = {"p": {"x": jnp.array(2.0)}, "q": {"x": jnp.array(2.0)}}
    groups = (("p/x", Group(0.5, 1)), ("q/x", LEFT_ALONE))
    optimizer = adamw(optax.constant_schedule(0.1), groups, weight_decay=0.1)
    state = optimizer.init(params)
    gradients = {"p": {"x": jnp.array(0.5)}, "q": {"x": jnp.array(0.5)}}
    updates, state = optimizer.update(gradients, state, params)
    params = optax.apply_updates(params, updates)
    assert float(params["p"]["x"]) == pytest.approx(1.94, rel=1e-6)
    assert float(params["q"]["x"]) == 2.0
    assert list(state.mu) == list(state.nu) == ["p"] and int(state.count) == 1
    # g = -0.5: m = 0.045 - 0.05, m^ = -0.005 / 0.19; v^ = 0.25 still.
    updates, _ = optimizer.update({"p": {"x": jnp.array(-0.5)}, "q": gradients["q"]}, state, params)
    expected = -0.05 * (-0.005 / 0.19 / 0.5 + 0.1 * 1.94)
    assert float(updates["p"]["x"]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("options", "rates"), [
    ({"masked_tokens": True}, (0.1, 0.1, 1, 1)),
    ({"masked_tokens": False, "encoder_rate": 0.5}, (0, 0.5, 1, 1)),
    ({"masked_tokens": True, "freeze_encoder": True, "snr_rate": 2.0}, (0, 0, 2, 1)),
])
def test_groups_cover_the_network(options, rates):
    params = variable_shapes(ViTSegmenter(**TINY))["params"]
    assigned = assign_groups(params, vit_groups(**options))
    assert assigned.keys() == flatten_dict(params, sep="/").keys()
    kinds = {"mask": ("encoder/mask_token",), "encoder": ("encoder/",),
             "snr": ("encoder/snr_0/", "restitution_0/"), "head": ("head/",)}

    def kind_of(path):
        order = ("mask", "snr", "encoder", "head")
        return next(kind for kind in order if path.startswith(kinds[kind]))

    expected = dict(zip(("mask", "encoder", "snr", "head"), rates, strict=True))
    for path, group in assigned.items():
        assert np.isclose(group.rate, expected[kind_of(path)]), path
        assert group.repeats == bool(group.rate)
