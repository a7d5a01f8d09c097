"""Schedules, groups, SGD's repeated updates and AdamW, by hand."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from snr_jax.core import optim
from snr_jax.core.models.deeplab import DeepLab
from snr_jax.core.models.light_head import ViTSegmenter
from snr_jax.core.optim import LEFT_ALONE, Group
from snr_jax.core.state import variable_shapes
from tests.core.tiny import network, quick_jit, variables


def test_poly_schedule():
    schedule = optim.poly_schedule(2.5e-4, 200_000)
    assert float(schedule(0)) == pytest.approx(2.5e-4)
    assert float(schedule(100_000)) == pytest.approx(2.5e-4 * 0.535887, rel=1e-5)  # 0.5^0.9
    assert float(schedule(80_000)) == pytest.approx(2.5e-4 * 0.631450, rel=1e-5)  # 0.6^0.9
    assert float(schedule(200_000)) == 0


def test_a_warm_up_rises_in_equal_parts_and_meets_the_fall():
    """Of 4 steps, as published: a thousandth, 0.334, 0.667, all of it; then 1 - i / 20."""
    schedule = optim.poly_schedule(2.0, 20, 1.0, warmup_steps=4)
    rates = [float(schedule(step)) for step in range(21)]
    expected = [0.001, 0.334, 0.667, 1] + [1 - i / 20 for i in range(4, 21)]
    np.testing.assert_allclose(rates, 2 * np.array(expected), rtol=1e-6, atol=1e-7)
    assert float(optim.poly_schedule(2.0, 20, 1.0, warmup_steps=1)(0)) == pytest.approx(0.002)
    plain, none = optim.poly_schedule(2.0, 20), optim.poly_schedule(2.0, 20, 0.9, warmup_steps=0)
    assert [float(plain(i)) for i in range(20)] == [float(none(i)) for i in range(20)]


# p = 1, g = 0.5, rate 0.1, decay 0.1, momentum 0.9. The gradient keeps growing by 0.1 p:
# 1: g = 0.5 + 0.1       v = 0.6                          p = 1 - 0.06
# 2: g = 0.6 + 0.094     v = 0.54 + 0.694 = 1.234         p = 0.94 - 0.1234
# 3: g = 0.694 + 0.08166 v = 1.1106 + 0.77566 = 1.88626   p = 0.8166 - 0.188626
# 4: g = 0.77566 + 0.0627974                              p = 0.627974 - 0.25360914
#                        v = 1.697634 + 0.8384574 = 2.5360914
REPEATED = {1: (0.94, 0.6), 2: (0.8166, 1.234), 3: (0.627974, 1.88626),
            4: (0.37436486, 2.5360914)}


def scalar_sgd(repeats, rate=1.0):
    return optim.sgd(optax.constant_schedule(0.1), ((r"p/x", Group(rate, repeats)),),
                     weight_decay=0.1)


@pytest.mark.parametrize("repeats", REPEATED)
def test_repeated_updates_by_hand(repeats):
    params = {"p": {"x": jnp.array(1.0)}}
    optimizer = scalar_sgd(repeats)
    updates, state = optimizer.update({"p": {"x": jnp.array(0.5)}}, optimizer.init(params), params)
    p, velocity = REPEATED[repeats]
    assert float(optax.apply_updates(params, updates)["p"]["x"]) == pytest.approx(p, rel=1e-6)
    assert float(state.velocity["p"]["x"]) == pytest.approx(velocity, rel=1e-6)
    assert int(state.count) == 1


def test_the_next_iteration_forgets_the_decay_and_keeps_the_momentum():
    optimizer = scalar_sgd(1)
    params = {"p": {"x": jnp.array(1.0)}}
    state = optimizer.init(params)
    for expected in (0.94, 0.8266):  # g = 0.5 + 0.094, v = 0.54 + 0.594, p = 0.94 - 0.1134
        updates, state = optimizer.update({"p": {"x": jnp.array(0.5)}}, state, params)
        params = optax.apply_updates(params, updates)
        assert float(params["p"]["x"]) == pytest.approx(expected, rel=1e-6)


def test_the_rate_of_a_group_multiplies_the_schedule():
    params = {"p": {"x": jnp.array(1.0)}}
    optimizer = scalar_sgd(1, rate=10.0)
    updates, _ = optimizer.update({"p": {"x": jnp.array(0.5)}}, optimizer.init(params), params)
    assert float(updates["p"]["x"]) == pytest.approx(-10 * 0.1 * 0.6, rel=1e-6)


# p = 1, rate 0.1, decay 0.1, betas (0.9, 0.999).
# g = 0.5:   m = 0.05 / 0.1, v = 0.00025 / 0.001: 0.5 / 0.5       p = 1 - 0.1 * (1 + 0.1)
# g = -0.25: m = (0.045 - 0.025) / 0.19 = 0.1052632
#            v = (0.00024975 + 0.0000625) / 0.001999 = 0.1562031: 0.2663371
#                                                    p = 0.89 - 0.1 * (0.2663371 + 0.089)
ADAMW = ((0.5, 0.89), (-0.25, 0.8544663))


@pytest.mark.parametrize("rate", [1.0, 0.1])
def test_adamw_by_hand(rate):
    """A group at a tenth of the rate goes a tenth as far, decay included, with the same means."""
    optimizer = optim.adamw(
        optax.constant_schedule(0.1 / rate), ((r"p/x", Group(rate, 1)),), weight_decay=0.1)
    params = {"p": {"x": jnp.array(1.0)}}
    state = optimizer.init(params)
    for gradient, expected in ADAMW:
        updates, state = optimizer.update({"p": {"x": jnp.array(gradient)}}, state, params)
        params = optax.apply_updates(params, updates)
        assert float(params["p"]["x"]) == pytest.approx(expected, rel=5e-6)  # 1 - 0.999^2 rounds
    assert int(state.count) == 2 and float(state.mu["p"]["x"]) == pytest.approx(0.02)


def test_adamw_updates_nothing_twice():
    optimizer = optim.adamw(optax.constant_schedule(0.1), ((r"p/x", Group(1.0, 3)),))
    with pytest.raises(ValueError, match="repeated updates are SGD's alone"):
        optimizer.init({"p": {"x": jnp.array(1.0)}})


@pytest.fixture(scope="module")
def resnet101():
    return variable_shapes(DeepLab())["params"]


def groups(**changes):
    return optim.param_groups(**{"repeated_updates": True, "train_snr": True, "multi_level": True,
                                 **changes})


def test_groups_of_the_release(resnet101):
    found = optim.assign_groups(resnet101, groups(train_snr=False, multi_level=False))
    assert len(found) == len(flatten_dict(resnet101))
    # 12 shortcut tensors, 297 others in the blocks, one stem convolution, 2 used branches.
    # Left alone: stem BN 2, SNR 18, auxiliary head 8, branches 18 and 24 of the main head 4.
    assert Counter(found.values()) == {
        Group(1.0, 4): 12, Group(1.0, 3): 297, Group(1.0, 1): 1, Group(10.0, 1): 4,
        LEFT_ALONE: 2 + 18 + 8 + 4}
    assert found["conv1/kernel"] == Group(1.0, 1)
    assert {p for p, g in found.items() if g.repeats == 4} == {
        f"layer{k}_0/downsample_{leaf}" for k in (1, 2, 3, 4)
        for leaf in ("conv/kernel", "bn/scale", "bn/bias")}
    assert {p for p, g in found.items() if g.rate == 10} == {
        f"layer6/conv2d_list_{i}/{leaf}" for i in (0, 1) for leaf in ("kernel", "bias")}
    assert found["bn1/scale"] == found["bn1/bias"] == LEFT_ALONE


def test_groups_of_the_standard_recipe(resnet101):
    found = optim.assign_groups(resnet101, groups(repeated_updates=False, head_branches=4))
    # The backbone's 310 and the 18 of SNR at the base rate, both heads entirely at ten times that.
    assert Counter(found.values()) == {
        Group(1.0, 1): 310 + 18, Group(10.0, 1): 16, LEFT_ALONE: 2}


def test_rates_of_snr_and_of_its_classifiers():
    shapes = variable_shapes(network(restitution_heads=True))["params"]
    found = optim.assign_groups(shapes, groups(snr_rate=3.0, head_rate=5.0))
    assert Counter(found.values())[Group(3.0, 1)] == 18 + 6
    assert found["layer5/conv2d_list_1/bias"] == Group(5.0, 1)


def test_the_rate_of_the_backbone(resnet101):
    """A tenth of the head's, as published with AdamW; SNR and the heads have rates of their own."""
    found = optim.assign_groups(resnet101, groups(
        repeated_updates=False, backbone_rate=0.1, head_rate=1.0, snr_rate=2.0))
    assert Counter(found.values()) == {
        Group(0.1, 1): 310, Group(2.0, 1): 18, Group(1.0, 1): 8, LEFT_ALONE: 2 + 8}


def test_an_uncovered_parameter_is_an_error():
    params = {"conv1": {"kernel": jnp.ones(1)}, "extra": {"kernel": jnp.ones(1)}}
    with pytest.raises(ValueError, match="no parameter group covers extra/kernel"):
        optim.sgd(optax.constant_schedule(0.1), groups()).init(params)
    with pytest.raises(ValueError, match="covers layer1_0/conv1/kernel2"):  # the whole path counts
        optim.assign_groups({"layer1_0": {"conv1": {"kernel2": jnp.ones(1)}}},
                            ((r"layer1_0/conv1/kernel", LEFT_ALONE),))


@pytest.mark.parametrize("kind", optim.KINDS)
def test_what_is_left_alone_stays_bit_for_bit_and_has_no_momentum(kind):
    params = variables(network())["params"]
    arranged = groups(train_snr=False, multi_level=False, repeated_updates=kind == "sgd")
    make = {"sgd": optim.sgd, "adamw": optim.adamw}[kind]
    optimizer = make(optim.poly_schedule(0.1, 10), arranged)
    state = optimizer.init(params)
    gradients = jax.tree.map(jnp.ones_like, params)

    @quick_jit
    def step(params, state):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    after, state = step(*step(params, state))
    kept = {"sgd": ("velocity",), "adamw": ("mu", "nu")}[kind]
    after = flatten_dict(after, sep="/")
    before = flatten_dict(params, sep="/")
    for path, group in optim.assign_groups(params, arranged).items():
        for name in kept:
            tree = flatten_dict(getattr(state, name), sep="/")
            assert (path in tree) == (group != LEFT_ALONE), path
        if group == LEFT_ALONE:
            np.testing.assert_array_equal(after[path], before[path], err_msg=path)
        else:
            assert (np.asarray(after[path]) != before[path]).all(), path


TINY_VIT = {"width": 16, "depth": 1, "heads": 2, "grid": 3, "snr_after": (0,),
            "restitution_heads": True}


@pytest.mark.parametrize(("options", "rates"), [
    ({"masked_tokens": True}, (0.1, 0.1, 1, 1)),
    ({"masked_tokens": False, "backbone_rate": 0.5}, (0, 0.5, 1, 1)),
    ({"masked_tokens": True, "backbone_rate": 0.0, "snr_rate": 2.0}, (0, 0, 2, 1)),
])
def test_groups_cover_a_vit(options, rates):
    params = variable_shapes(ViTSegmenter(**TINY_VIT))["params"]
    assigned = optim.assign_groups(params, optim.vit_groups(**options))
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
