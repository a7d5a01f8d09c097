"""Self-training with class mixing: weights, the loss, the teacher, against numbers by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from snr_jax.core import losses, mixing
from snr_jax.core.augment import to_network_input
from snr_jax.core.self_training import (
    label_target,
    make_classmix_step,
    pixel_weights,
    teacher_share,
)
from snr_jax.core.state import create_state
from snr_jax.core.steps import inside, within
from tests.core.tiny import Probe, assert_trees_close, batch, quick_jit, variables

OPTIMIZER = optax.sgd(0.1, momentum=0.9)  # the trace after one step is the gradient
LAMBDA, RESTITUTION, THRESHOLD, MASKED = 0.7, 0.05, 0.8, 0.4
CHOSEN = np.array([[True, False, True, False], [False, True, False, True]])  # the last is ignored

HIDDEN = np.ones((2, 33, 49))
HIDDEN[0, :, :20] = HIDDEN[1, :11] = 0


def plain(key, image, *, first_sample=0):
    return to_network_input(image)


def darker(key, image, *, first_sample=0):
    return to_network_input(image) / 2


def hide(key, image, *, first_sample=0):
    """The left of the first image, the top of the second."""
    return {"image": jnp.asarray(HIDDEN)[..., None] * image}


def given(key, label, num_classes, *, share, first_sample):
    return jnp.asarray(CHOSEN)


def data() -> dict:
    values = batch()
    random = np.random.default_rng(5)
    return values | {"target_image": random.integers(0, 256, (2, 33, 49, 3), np.uint8)}


def state_at(step: int = 0, seed: int = 1):
    """A student, and a teacher that differs from it."""
    state = create_state(variables(Probe()), OPTIMIZER, with_teacher=True)
    teacher = jax.tree.map(jnp.asarray, variables(Probe(), seed))
    return state.replace(step=jnp.asarray(step, jnp.int32), teacher=teacher)


def run(state, values, **options):
    arguments = {"lambda_target": LAMBDA, "threshold": THRESHOLD,
                 "prepare_source": plain, "prepare_target": plain,
                 "strengthen": darker, "choose_classes": given, "mask": hide, **options}
    step = make_classmix_step(model=Probe(), tx=OPTIMIZER, **arguments)
    return quick_jit(step)(state, values)


# --- by hand

@pytest.mark.parametrize("step, share", [(0, 0), (1, 0.5), (98, 98 / 99), (99, 0.99), (9999, 0.99)])
def test_teacher_share(step, share):
    assert float(teacher_share(jnp.asarray(step), 0.99)) == pytest.approx(share, abs=1e-7)


@pytest.mark.parametrize("step, share", [(0, 0.5), (1, 2 / 3), (997, 998 / 999), (998, 0.999),
                                         (9999, 0.999)])
def test_teacher_share_where_the_first_update_counts_as_the_second(step, share):
    """min(1 - 1 / (i + 2), 0.999): the published counters have moved when they are read."""
    assert float(teacher_share(jnp.asarray(step), 0.999, 2)) == pytest.approx(share, abs=1e-7)


def test_weights_by_hand():
    """Three of eight pixels are sure; the first row and the last count nothing."""
    sure = jnp.array([[[True, False], [False, True], [False, False], [True, False]]])
    by_share, share = pixel_weights(sure, weight="share", rows_left_out=(0, 0))
    assert float(share) == 0.375 and np.all(np.asarray(by_share) == 0.375)
    inside, share = pixel_weights(sure, weight="share", rows_left_out=(1, 1))
    assert float(share) == 0.375  # of all pixels
    np.testing.assert_array_equal(inside[0, :, 0], [0, 0.375, 0.375, 0])
    by_pixel, _ = pixel_weights(sure, weight="pixel", rows_left_out=(0, 1))
    np.testing.assert_array_equal(by_pixel[0], [[1, 0], [0, 1], [0, 0], [0, 0]])


def test_the_rim_counts_nothing_and_is_in_the_share():
    """Of two images of 3x4 the first has a rim, in the second every pixel counts; 6 are sure."""
    sure = np.zeros((2, 3, 4), bool)
    sure[0, 1] = sure[1, :2, 0] = True
    box = jnp.array([[1, 3, 0, 3], [0, 3, 0, 4]])
    options = {"is_inside": inside(box, (3, 4)), "rows_left_out": (0, 1)}
    by_pixel, share = pixel_weights(jnp.asarray(sure), weight="pixel", **options)
    assert float(share) == 0.25
    np.testing.assert_array_equal(by_pixel[0], [[0, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(by_pixel[1], sure[1])
    by_share, _ = pixel_weights(jnp.asarray(sure), weight="share", **options)
    np.testing.assert_array_equal(by_share[0] != 0, [[0] * 4, [1, 1, 1, 0], [0] * 4])
    np.testing.assert_array_equal(by_share[1], [[0.25] * 4, [0.25] * 4, [0] * 4])


def test_padding_is_neither_sure_nor_counted():
    """Of five pixels of image two are sure; of three of padding two."""
    sure = jnp.array([[[True, True], [False, True]], [[True, False], [False, False]]])
    is_image = within(jnp.array([[1, 1], [2, 2]]), (2, 2))
    assert is_image.tolist() == [[[True, False], [False, False]], [[True, True], [True, True]]]
    options = {"rows_left_out": (0, 0), "is_image": is_image}
    by_share, share = pixel_weights(sure, weight="share", **options)
    assert float(share) == pytest.approx(0.4)
    np.testing.assert_allclose(by_share, 0.4 * np.asarray(is_image), rtol=1e-6)
    by_pixel, _ = pixel_weights(sure, weight="pixel", **options)
    np.testing.assert_array_equal(by_pixel, [[[1, 0], [0, 0]], [[1, 0], [0, 0]]])


def test_weighted_cross_entropy_by_hand():
    """(1 * -log 0.5 + 0.25 * -log 0.25 + an ignored pixel as 0) / 3."""
    p = np.array([[[[0.5, 0.5], [0.25, 0.75], [0.9, 0.1]]]])
    label = np.array([[[1, 0, 255]]], np.uint8)
    weight = np.array([[[1, 0.25, 1]]])
    found = losses.mean(losses.weighted_cross_entropy(jnp.log(p), label, weight))
    assert float(found) == pytest.approx((np.log(2) + 0.25 * np.log(4)) / 3, rel=1e-6)


# --- the step against its parts

def parts(state, values, *, weight="share", rows=(0, 0), train=True, flip=False, masked=0.0):
    """Gradients, statistics, losses and the share of the same step, from separate passes."""
    model = Probe()

    def forward(params, stats, image, train=True):
        output, moved = model.apply(
            {"params": params, "batch_stats": stats}, image, train=train, mutable=["batch_stats"])
        return output, moved["batch_stats"]

    teacher, teacher_stats, maps = state.teacher, state.teacher["batch_stats"], []
    label_image = to_network_input(values["target_image"])
    for turned in (False, True)[: 1 + flip]:
        output, teacher_stats = quick_jit(forward, static_argnums=3)(
            teacher["params"], teacher_stats,
            np.flip(label_image, 2) if turned else label_image, train)
        p = np.asarray(jax.nn.softmax(output.main))
        maps.append(np.flip(p, 2) if turned else p)
    p = np.mean(maps, 0)
    sure = p.max(-1) >= THRESHOLD
    label, mask = values["source_label"], np.zeros(values["source_label"].shape, bool)
    for n, chosen in enumerate(CHOSEN):
        ids = [255 if c == 3 else c for c in np.flatnonzero(chosen)]
        mask[n] = np.isin(label[n], ids)
    weights = np.full(mask.shape, sure.mean()) if weight == "share" else sure.astype(float)
    weights[:, : rows[0]] = weights[:, mask.shape[1] - rows[1]:] = 0
    mix_label = np.where(mask, label, p.argmax(-1))
    mix_weight = np.where(mask, 1, weights)
    mix_image = np.where(mask[..., None], values["source_image"], values["target_image"])

    def source(params, stats):
        output, moved = forward(params, stats, to_network_input(values["source_image"]))
        ce = losses.mean(losses.cross_entropy(output.main, label))
        restitution = losses.restitution(losses.restitution_sums(output.restitution))
        return ce + RESTITUTION * restitution, (moved, ce, restitution)

    def pseudo(params, stats, image, label, weights, factor):
        output, moved = forward(params, stats, image)
        log_p = jax.nn.log_softmax(output.main)
        picked = jnp.take_along_axis(log_p, jnp.where(label == 255, 0, label)[..., None], -1)
        loss = -(weights * (label != 255) * picked[..., 0]).mean()
        return factor * loss, (moved, loss)

    of_pseudo = jax.grad(pseudo, has_aux=True)
    gradient, (moved, ce, restitution) = quick_jit(jax.grad(source, has_aux=True))(
        state.params, state.batch_stats)
    mix_gradient, (stats, loss) = quick_jit(of_pseudo)(
        state.params, moved, to_network_input(mix_image) / 2, mix_label, mix_weight, LAMBDA)
    gradient = jax.tree.map(np.add, gradient, mix_gradient)
    found = {"loss_source": ce, "loss_restitution": restitution, "loss_target": loss,
             "sure_share": sure.mean()}
    if masked:
        image = label_image / 2 * HIDDEN[..., None]
        more, (stats, found["loss_masked"]) = quick_jit(of_pseudo)(
            state.params, stats, image, p.argmax(-1), weights, masked)
        gradient = jax.tree.map(np.add, gradient, more)
    return gradient, stats, teacher_stats, found


@pytest.mark.parametrize("weight, rows, flip, masked", [
    ("share", (0, 0), False, 0.0), ("pixel", (5, 9), False, 0.0), ("share", (5, 9), True, MASKED),
])  # fmt: skip
def test_the_step_is_its_parts(weight, rows, flip, masked):
    state, values = state_at(step=3), data()
    after, metrics = run(state, values, restitution_weight=RESTITUTION, weight=weight,
                         rows_left_out=rows, teacher_flip=flip, masked_weight=masked)
    gradient, stats, teacher_stats, found = parts(
        state, values, weight=weight, rows=rows, flip=flip, masked=masked)
    assert 0.05 < found["sure_share"] < 0.95
    assert_trees_close(metrics, found, rtol=1e-4)
    assert_trees_close(after.opt_state[0].trace, gradient, rtol=1e-3, atol=1e-5)
    assert_trees_close(after.batch_stats, stats, rtol=1e-4, atol=1e-5)
    assert_trees_close(after.teacher["batch_stats"], teacher_stats, rtol=1e-4, atol=1e-5)
    expected = jax.tree.map(
        lambda t, s: 0.75 * np.asarray(t) + 0.25 * np.asarray(s),
        state.teacher["params"], after.params)
    assert_trees_close(after.teacher["params"], expected, rtol=1e-5, atol=1e-6)
    assert int(after.step) == 4


@pytest.mark.parametrize("weight", ["share", "pixel"])
def test_padding_of_the_target_has_no_pseudo_label(weight):
    """What is not pasted over it teaches nothing, and the share is that of the image."""
    state, values = state_at(step=3), data()
    extent = np.array([[20, 49], [33, 30]], np.int32)
    after, metrics = run(state, values | {"target_extent": extent}, weight=weight)
    output, _ = quick_jit(lambda image: Probe().apply(
        state.teacher, to_network_input(image), train=True, mutable=["batch_stats"])
    )(values["target_image"])
    p = np.asarray(jax.nn.softmax(output.main))
    is_image = np.zeros(p.shape[:3], bool)
    is_image[0, :20] = is_image[1, :, :30] = True
    sure = (p.max(-1) >= THRESHOLD)[is_image].mean()
    assert float(metrics["sure_share"]) == pytest.approx(sure, rel=1e-5)

    pseudo, _, _ = label_target(
        Probe(), state.teacher, to_network_input(values["target_image"]), threshold=THRESHOLD,
        weight=weight, rows_left_out=(0, 0), train=True, axis_name=None, extent=extent)
    assert (np.asarray(pseudo["label"])[~is_image] == 255).all()
    assert not np.asarray(pseudo["weight"])[~is_image].any()
    np.testing.assert_array_equal(
        np.asarray(pseudo["label"])[is_image], p.argmax(-1)[is_image])
    whole = values | {"target_extent": np.array([[33, 49]] * 2, np.int32)}
    same, expected = run(state, whole, weight=weight)[0], run(state, values, weight=weight)[0]
    assert_trees_close(same.params, expected.params, rtol=1e-5, atol=1e-6)
    assert not np.allclose(after.params["main"]["kernel"], same.params["main"]["kernel"],
                           rtol=1e-5, atol=1e-6)


def test_the_teacher_is_the_student_after_the_first_update():
    after, _ = run(state_at(step=0), data())
    assert_trees_close(after.teacher["params"], after.params, rtol=0)


def test_momentum_is_the_most_that_a_teacher_keeps():
    state = state_at(step=50)
    after, _ = run(state, data(), teacher_momentum=0.9)
    old, new, student = (np.asarray(tree["main"]["kernel"]) for tree in (
        state.teacher["params"], after.teacher["params"], after.params))
    np.testing.assert_allclose(new, 0.9 * old + 0.1 * student, rtol=1e-5)


def test_the_count_of_the_first_update_is_where_the_teacher_begins():
    state = state_at(step=0)
    after, _ = run(state, data(), teacher_count=4)
    old, new, student = (np.asarray(tree["main"]["kernel"]) for tree in (
        state.teacher["params"], after.teacher["params"], after.params))
    np.testing.assert_allclose(new, 0.75 * old + 0.25 * student, rtol=1e-5, atol=1e-7)


def test_the_rim_of_the_target_teaches_nothing():
    """Neither what lies in it of the mix nor, masked, of the target; no pixel counts, no loss."""
    state, values = state_at(step=3), data()
    options = {"masked_weight": MASKED, "choose_classes": lambda *_, **__: CHOSEN & False}
    none = values | {"target_inside": np.array([[0, 33, 49, 49], [33, 33, 0, 49]], np.int32)}
    _, metrics = run(state, none, **options)
    assert metrics["loss_target"] == metrics["loss_masked"] == 0 < metrics["sure_share"]


def test_a_teacher_in_evaluation_mode_sees_its_running_statistics():
    """They are then a mean of the student's, by the share of the parameters."""
    state, values = state_at(step=3), data()
    after, metrics = run(state, values, teacher_mode="eval")
    assert float(metrics["sure_share"]) == pytest.approx(
        float(parts(state, values, train=False)[3]["sure_share"]), abs=1e-6)
    expected = jax.tree.map(
        lambda t, s: 0.75 * np.asarray(t) + 0.25 * np.asarray(s),
        state.teacher["batch_stats"], after.batch_stats)
    assert_trees_close(after.teacher["batch_stats"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_frozen_batch_norm_moves_no_statistics(mode):
    state = state_at(step=3)
    after, _ = run(state, data(), freeze_bn=True, teacher_mode=mode)
    assert_trees_close(after.batch_stats, state.batch_stats, rtol=0)
    assert_trees_close(after.teacher["batch_stats"], state.teacher["batch_stats"], rtol=0)
    trace = flatten_dict(after.opt_state[0].trace, sep="/")
    assert np.asarray(trace["main/kernel"]).any()


def test_draws_are_a_function_of_seed_and_step():
    state, values = state_at(step=3), data()
    drawn = {"choose_classes": mixing.choose_classes, "strengthen": mixing.strong_augment}

    def step(**options):
        made = make_classmix_step(model=Probe(), tx=OPTIMIZER, prepare_source=plain,
                                  prepare_target=plain, **drawn, **options)
        return quick_jit(made)

    def loss(step, state):
        return float(step(state, values)[1]["loss_target"])

    base = step()
    there = loss(base, state)
    assert there == loss(base, state)
    assert there != loss(base, state.replace(step=jnp.asarray(4, jnp.int32)))
    assert there != loss(step(seed=1), state)
    assert there != loss(step(class_share=1.0), state)


def test_masks_and_their_colors_have_draws_of_their_own():
    """At one place a mask is not the coin of the colours, nor these the mix's."""
    keys = {}

    def noting(name):
        def note(key, image, *, first_sample=0):
            jax.debug.callback(
                lambda data: keys.setdefault(name, []).append(data.tobytes()),
                jax.random.key_data(key))
            seen = image.astype(float)
            return {"image": seen} if name == "mask" else seen
        return note

    made = make_classmix_step(
        model=Probe(), tx=OPTIMIZER, masked_weight=1.0, choose_classes=given,
        **{name: noting(name) for name in (
            "prepare_source", "prepare_target", "strengthen", "mask")})
    jax.block_until_ready(quick_jit(made)(state_at(step=3), data()))
    jax.effects_barrier()
    assert {name: len(of) for name, of in keys.items()} == {
        "prepare_source": 1, "prepare_target": 1, "strengthen": 2, "mask": 1}
    assert len({key for of in keys.values() for key in of}) == 5


def test_parts_of_a_batch_make_its_update():
    """With frozen statistics, and the share of sure pixels that of the whole batch."""
    state, values = state_at(step=3), data()
    (one, metrics), (two, same) = (
        run(state, values, freeze_bn=True, accumulate_steps=n, masked_weight=MASKED)
        for n in (1, 2))
    assert_trees_close(same, metrics, rtol=1e-5)
    assert_trees_close(two.params, one.params, rtol=1e-5, atol=1e-6)
    assert_trees_close(two.teacher, one.teacher, rtol=1e-5, atol=1e-6)


def test_the_student_may_be_left_with_the_statistics_of_the_teacher():
    """What it learns from is not touched by that."""
    state, values = state_at(step=3), data()
    (own, metrics), (after, same) = (
        run(state, values, statistics=whose) for whose in ("own", "teacher"))
    for found, expected in ((same, metrics), (after.params, own.params),
                            (after.teacher, own.teacher)):
        assert_trees_close(found, expected, rtol=1e-5, atol=1e-6)
    assert_trees_close(after.batch_stats, after.teacher["batch_stats"], rtol=0)
    assert (np.asarray(own.batch_stats["bn"]["mean"]) !=
            np.asarray(after.batch_stats["bn"]["mean"])).all()


@pytest.mark.parametrize("option, legal", [
    ({"teacher_mode": "both"}, "train, eval"), ({"weight": "image"}, "share, pixel"),
    ({"statistics": "none"}, "own, teacher"),
])  # fmt: skip
def test_unknown_words_are_refused(option, legal):
    with pytest.raises(ValueError, match=f"expected one of {legal}$"):
        make_classmix_step(model=Probe(), tx=OPTIMIZER, **option)
