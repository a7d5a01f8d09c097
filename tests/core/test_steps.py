"""The compiled steps: the order of the domains, one update, and what they are a function of."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from snr_jax.core import losses, optim
from snr_jax.core.augment import augment, to_network_input
from snr_jax.core.colors import JITTERS
from snr_jax.core.models.deeplab import DeepLab
from snr_jax.core.self_training import make_classmix_step
from snr_jax.core.state import TrainState, create_state, initial_variables
from snr_jax.core.steps import (
    Stream,
    Term,
    View,
    make_adaptation_step,
    make_eval_step,
    make_predict_step,
    make_source_step,
    make_update,
    prepared,
)
from tests.core.tiny import (
    NUM_CLASSES,
    Probe,
    assert_trees_close,
    batch,
    network,
    quick_jit,
    variables,
)

# With momentum the trace after one step is the gradient itself.
OPTIMIZER = optax.sgd(0.1, momentum=0.9)
COLORS = partial(augment, jitter=JITTERS["robustnet"], strong_blur=True)


def plain(key, image, *, first_sample=0):
    return to_network_input(image)


@pytest.fixture(scope="module")
def probe_state():
    return create_state(variables(Probe()), OPTIMIZER)


def trace(state: TrainState):
    return state.opt_state[0].trace


# --- the adaptation step of the real network, against its parts

LAMBDA_TARGET, LAMBDA_SEG, RESTITUTION = 0.2, 0.3, 0.05


@pytest.fixture(scope="module")
def adapted():
    """(state before, state after, metrics, and the same from separate passes)."""
    model = network(restitution_heads=True)
    state = create_state(variables(model), OPTIMIZER)
    data = batch()
    step = make_adaptation_step(
        model=model, tx=OPTIMIZER, target_loss=losses.iw_maxsquare,
        lambda_target=LAMBDA_TARGET, lambda_seg=LAMBDA_SEG, guidance_threshold=0.6,
        restitution_weight=RESTITUTION, prepare_source=plain, prepare_target=plain,
    )
    after, metrics = quick_jit(step)(state, data)

    def forward(params, stats, image):
        values = {"params": params, "batch_stats": stats}
        output, moved = model.apply(values, to_network_input(image), train=True,
                                    mutable=["batch_stats"])
        return output, moved["batch_stats"]

    def source(params, stats):
        output, moved = forward(params, stats, data["source_image"])
        label = data["source_label"]
        parts = {
            "loss_source": losses.mean(losses.cross_entropy(output.main, label)),
            "loss_source_aux": losses.mean(losses.cross_entropy(output.aux, label)),
            "loss_restitution": losses.restitution(losses.restitution_sums(output.restitution)),
        }
        total = (parts["loss_source"] + LAMBDA_SEG * parts["loss_source_aux"]
                 + RESTITUTION * parts["loss_restitution"])
        return total, (moved, parts)

    def target(params, stats):
        output, moved = forward(params, stats, data["target_image"])
        parts = {
            "loss_target": losses.mean(losses.iw_maxsquare(output.main)),
            "loss_target_aux": losses.mean(
                losses.guidance(output.main, output.aux, threshold=0.6)),
        }
        total = (LAMBDA_TARGET * parts["loss_target"]
                 + LAMBDA_SEG * LAMBDA_TARGET * parts["loss_target_aux"])
        return total, (moved, parts)

    run_source = quick_jit(jax.grad(source, has_aux=True))
    run_target = quick_jit(jax.grad(target, has_aux=True))
    source_gradient, (moved, source_parts) = run_source(state.params, state.batch_stats)
    target_gradient, (stats, target_parts) = run_target(state.params, moved)
    gradient = jax.tree.map(np.add, source_gradient, target_gradient)
    return state, after, metrics, stats, gradient, source_parts | target_parts


def test_statistics_move_by_the_source_and_then_by_the_target(adapted):
    state, after, _, stats, _, _ = adapted
    assert_trees_close(after.batch_stats, stats, rtol=1e-4, atol=1e-6)
    for path, value in flatten_dict(after.batch_stats, sep="/").items():
        assert (np.asarray(value) != flatten_dict(state.batch_stats, sep="/")[path]).all(), path


def test_the_two_gradients_make_one_update(adapted):
    state, after, _, _, gradient, _ = adapted
    size = max(float(np.abs(g).max()) for g in jax.tree.leaves(gradient))
    assert_trees_close(trace(after), gradient, rtol=1e-3, atol=1e-5 * size)
    expected = jax.tree.map(lambda p, g: np.asarray(p) - 0.1 * np.asarray(g), state.params,
                            trace(after))
    assert_trees_close(after.params, expected, rtol=1e-5, atol=1e-6)
    assert int(after.step) == 1 and after.step.dtype == jnp.int32


def test_metrics_are_the_unweighted_losses(adapted):
    _, _, metrics, _, _, parts = adapted
    assert metrics.keys() == parts.keys()
    assert_trees_close(metrics, parts, rtol=1e-4)
    assert parts["loss_target_aux"] > 0  # some pixels are above the threshold


# --- what can be worked out by hand on the probe

def test_running_mean_by_hand(probe_state):
    """m → 0.9 m + 0.1 s → 0.81 m + 0.09 s + 0.1 t: means of the source s and of the target t."""
    data = batch()
    step = make_adaptation_step(model=Probe(), tx=OPTIMIZER, prepare_source=plain,
                                prepare_target=plain, target_loss=losses.maxsquare)
    after, metrics = quick_jit(step)(probe_state, data)
    s, t = (np.asarray(to_network_input(data[k])).mean((0, 1, 2))
            for k in ("source_image", "target_image"))
    expected = 0.81 * np.asarray(probe_state.batch_stats["bn"]["mean"]) + 0.09 * s + 0.1 * t
    np.testing.assert_allclose(after.batch_stats["bn"]["mean"], expected, atol=1e-3)
    assert metrics.keys() == {"loss_source", "loss_target"}


def test_three_views_run_in_order_and_make_one_update(probe_state):
    """Means of the views v: m → 0.729 m + 0.081 v1 + 0.09 v2 + 0.1 v3; the gradients are added."""
    images = [np.asarray(to_network_input(batch(seed=i)["source_image"])) for i in range(3)]

    def view(i):
        def terms(output, part):
            return {f"loss_{i}": Term(0.5, losses.Sum(output.main.sum(), 2.0))}

        return View({"image": images[i]}, terms)

    views = [view(i) for i in range(3)]
    update = make_update(model=Probe(), tx=OPTIMIZER, freeze_bn=False, accumulate_steps=1,
                         axis_name=None)
    after, metrics = quick_jit(lambda state: update(state, views))(probe_state)
    assert metrics.keys() == {"loss_0", "loss_1", "loss_2"} and int(after.step) == 1
    first, second, third = (image.mean((0, 1, 2)) for image in images)
    expected = (0.729 * np.asarray(probe_state.batch_stats["bn"]["mean"])
                + 0.081 * first + 0.09 * second + 0.1 * third)
    np.testing.assert_allclose(after.batch_stats["bn"]["mean"], expected, atol=1e-3)
    # The bias enters the sum of the logits once a pixel: 0.5 / 2 of each view's pixels.
    pixels = sum(image[..., 0].size for image in images)
    np.testing.assert_allclose(trace(after)["main"]["bias"], 0.25 * pixels, rtol=1e-5)


@pytest.mark.parametrize("domains", ["source", "both"])
def test_frozen_batch_norm_moves_nothing(probe_state, domains):
    options = {"model": Probe(), "tx": OPTIMIZER, "freeze_bn": True}
    step = (make_source_step(**options) if domains == "source" else
            make_adaptation_step(**options, target_loss=losses.entropy))
    after, _ = quick_jit(step)(probe_state, batch())
    assert_trees_close(after.batch_stats, probe_state.batch_stats, rtol=0)
    assert (np.asarray(after.params["main"]["kernel"])
            != np.asarray(probe_state.params["main"]["kernel"])).all()


def test_the_auxiliary_head_learns_under_multi_level_alone(probe_state):
    for lambda_seg in (0.0, 0.1):
        step = make_source_step(model=Probe(), tx=OPTIMIZER, lambda_seg=lambda_seg)
        after, metrics = quick_jit(step)(probe_state, batch())
        assert np.asarray(trace(after)["aux"]["kernel"]).any() == bool(lambda_seg)
        assert ("loss_source_aux" in metrics) == bool(lambda_seg)


@pytest.mark.parametrize("target_loss", [partial(losses.hard, threshold=0.6), losses.iw_entropy])
def test_parts_one_after_another_make_the_update_of_the_whole_batch(target_loss):
    """With batch norm frozen: parameters, gradients and losses; the parts have unequal counts.

    The colours of the source are drawn for the whole batch.
    """
    data = batch(4)
    data["source_label"][2:][np.random.default_rng(9).random((2, 33, 49)) < 0.9] = 255
    data["source_label"][3] = 255  # a part without any valid pixel
    with jax.enable_x64(True):
        state = create_state(jax.tree.map(np.float64, variables(Probe())), OPTIMIZER)
        found = []
        for parts in (1, 2, 4):
            step = make_adaptation_step(
                model=Probe(dtype=jnp.float64), tx=OPTIMIZER, target_loss=target_loss,
                lambda_seg=LAMBDA_SEG, guidance_threshold=0.6, restitution_weight=5.0,
                freeze_bn=True, accumulate_steps=parts, prepare_source=COLORS,
            )
            found.append(jax.device_get(quick_jit(step)(state, data)))
        (whole, losses_of_whole), *accumulated = found
    assert len(losses_of_whole) == 5 and all(losses_of_whole.values())
    for after, metrics in accumulated:
        assert_trees_close(metrics, losses_of_whole, rtol=1e-12)
        assert_trees_close(trace(after), trace(whole), rtol=1e-9, atol=1e-12)
        assert_trees_close(after.variables, whole.variables, rtol=1e-12)


def test_running_statistics_move_by_each_part_once(probe_state):
    data = batch(4)
    step = make_source_step(
        model=Probe(), tx=OPTIMIZER, prepare_source=plain, accumulate_steps=2)
    after, _ = quick_jit(step)(probe_state, data)
    first, second = (np.asarray(to_network_input(data["source_image"][part])).mean((0, 1, 2))
                     for part in (slice(0, 2), slice(2, 4)))
    expected = 0.81 * probe_state.batch_stats["bn"]["mean"] + 0.09 * first + 0.1 * second
    np.testing.assert_allclose(after.batch_stats["bn"]["mean"], expected, atol=1e-3)


def test_no_valid_pixel_leaves_the_parameters_as_they_are(probe_state):
    data = batch()
    data["source_label"] = np.full_like(data["source_label"], 255)
    step = quick_jit(make_source_step(model=Probe(), tx=OPTIMIZER))
    after, metrics = step(probe_state, data)
    assert float(metrics["loss_source"]) == 0
    assert_trees_close(after.params, probe_state.params, rtol=0)


def test_augmentation_depends_on_seed_and_step_alone(probe_state):
    data = batch(4)
    compiled = {seed: quick_jit(make_source_step(model=Probe(), tx=OPTIMIZER, seed=seed))
                for seed in (0, 1)}

    def run(seed, step_number):
        state = probe_state.replace(step=jnp.asarray(step_number, jnp.int32))
        after, metrics = compiled[seed](state, data)
        return float(metrics["loss_source"]), np.asarray(after.params["main"]["kernel"])

    loss, kernel = run(0, 5)
    again, same_kernel = run(0, 5)
    assert loss == again
    np.testing.assert_array_equal(kernel, same_kernel)
    assert loss != run(0, 6)[0] and loss != run(1, 5)[0]


@pytest.mark.parametrize(("stream", "number"), [
    (Stream.SOURCE_IMAGE, 0), (Stream.TARGET_IMAGE, 1), (Stream.CLASS_CHOICE, 2),
    (Stream.MIX_COLORS, 3),
])  # fmt: skip
def test_the_keys_of_the_streams_stay(stream, number):
    """A run of before goes on with the draws that it would have made."""
    def take(key, image, *, first_sample):
        return jax.random.key_data(key)

    found = prepared(take, stream, jnp.asarray(5), np.zeros(2), seed=3, axis_name=None)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), 5), number)
    np.testing.assert_array_equal(found, jax.random.key_data(key))


def test_the_domains_draw_independently(probe_state):
    """The same images under the same loss, told apart by their augmentation alone."""
    data = batch(4)
    data["source_label"] = np.zeros_like(data["source_label"])
    data["target_image"] = data["source_image"]

    def same_loss(logits):
        return losses.cross_entropy(logits, jnp.zeros(logits.shape[:3], jnp.uint8))

    def run(**options):
        step = make_adaptation_step(model=Probe(), tx=OPTIMIZER, freeze_bn=True,
                                    target_loss=same_loss, **options)
        metrics = quick_jit(step)(probe_state, data)[1]
        return float(metrics["loss_source"]), float(metrics["loss_target"])

    source, target = run(prepare_source=plain, prepare_target=plain)
    assert source == pytest.approx(target, rel=1e-6)
    source, target = run()
    assert source != pytest.approx(target, rel=1e-5)


# --- colours on the source

@pytest.fixture(scope="module")
def colored():
    """Images as the networks of the three steps see them, without and with other colours."""
    data = batch(4)
    data["target_image"] = np.random.default_rng(5).integers(0, 256, (4, 33, 49, 3), np.uint8)
    kept = {}

    def keep(name):
        def record(image):
            kept[name].append(np.asarray(image))

        def see(prepare):
            def wrapped(key, image, **place):
                found = prepare(key, image, **place)
                jax.debug.callback(record, found)
                return found
            return wrapped

        kept[name] = []
        return see

    def run(name, factory, prepare_source, **options):
        see_source, see_target = keep(f"{name} source"), keep(f"{name} target")
        with_target = factory is not make_source_step
        if factory is make_classmix_step:
            options["strengthen"] = keep(f"{name} mix")(plain)
        step = factory(
            model=Probe(), tx=OPTIMIZER, prepare_source=see_source(prepare_source), **options,
            **({"prepare_target": see_target(augment)} if with_target else {}))
        state = create_state(variables(Probe()), OPTIMIZER, with_teacher=True)
        jax.block_until_ready(quick_jit(step)(state, data))
        jax.effects_barrier()

    ways = {"source": make_source_step, "mixing": make_classmix_step,
            "adaptation": partial(make_adaptation_step, target_loss=losses.maxsquare)}
    for name, factory in ways.items():
        run(f"{name} plain", factory, augment)
        run(f"{name} colors", factory, COLORS)
    return data, {name: images[0] for name, images in kept.items() if images}


@pytest.mark.parametrize("way", ["source", "adaptation", "mixing"])
def test_every_way_of_training_sees_the_source_in_other_colors(colored, way):
    """The draws of (seed, step) and the stream of the source's images."""
    data, seen = colored
    expected = prepared(COLORS, Stream.SOURCE_IMAGE, jnp.asarray(0), data["source_image"], seed=0,
                        axis_name=None)
    np.testing.assert_allclose(seen[f"{way} colors source"], expected, atol=1e-3)
    changed = np.abs(seen[f"{way} colors source"] - seen[f"{way} plain source"]).max((1, 2, 3)) > 1
    assert changed.any()


@pytest.mark.parametrize("image", ["adaptation {} target", "mixing {} target", "mixing {} mix"])
def test_neither_the_target_nor_the_mix_is_in_other_colors(colored, image):
    """The pasted parts come from the source image as it is in the batch, as in DACS's release."""
    _, seen = colored
    np.testing.assert_array_equal(
        seen[image.format("colors")], seen[image.format("plain")])


# --- prediction and evaluation

@pytest.fixture(scope="module")
def predictors():
    model = network()
    values = variables(model)
    image = batch()["source_image"]
    predict = {flip: quick_jit(make_predict_step(model=model, flip=flip), static_argnums=2)
               for flip in (False, True)}
    return model, values, image, predict


def test_predictions_are_probabilities_at_the_size_asked_for(predictors):
    _, values, image, predict = predictors
    for size in ((33, 49), (66, 50)):
        p = predict[False](values, image, size)
        assert p.shape == (2, *size, NUM_CLASSES)
        np.testing.assert_allclose(p.sum(-1), 1, rtol=1e-5)


def test_flip_averages_with_the_mirrored_image(predictors):
    _, values, image, predict = predictors
    size = (33, 49)
    p, of_mirrored = (np.asarray(predict[False](values, x, size))
                      for x in (image, image[:, :, ::-1]))
    assert np.abs(p - of_mirrored[:, :, ::-1]).max() > 1e-3  # the mirrored image says otherwise
    averaged = predict[True](values, image, size)
    np.testing.assert_allclose(averaged, (p + of_mirrored[:, :, ::-1]) / 2, atol=1e-4)


@pytest.mark.parametrize("flip", [False, True])
def test_evaluation_counts_the_valid_images_at_the_labels_size(predictors, flip):
    model, values, image, predict = predictors
    random = np.random.default_rng(4)
    label = random.choice([0, 1, 2, 255], (2, 66, 50)).astype(np.uint8)
    data = {"image": image, "label": label, "valid": np.array([True, False])}
    found = quick_jit(make_eval_step(model=model, flip=flip))(values, data)
    prediction = np.asarray(predict[flip](values, image, (66, 50))).argmax(-1)
    expected = np.zeros((3, 3), int)
    counted = label[0] != 255  # the second image is padding
    np.add.at(expected, (label[0][counted], prediction[0][counted]), 1)
    # Rounding differs between two compilations: a tie in a thousand may fall the other way.
    assert np.abs(np.asarray(found) - expected).sum() <= 6
    assert int(found.sum()) == counted.sum()


# --- the published network

def test_one_step_of_resnet101():
    """Full depth and width on one small image, with the paper's optimiser arrangement."""
    model = DeepLab()
    arranged = optim.param_groups(repeated_updates=True, train_snr=True, multi_level=False)
    tx = optim.sgd(optim.poly_schedule(2.5e-4, 200_000), arranged)
    state = create_state(initial_variables(model, 0), tx)
    before = jax.tree.map(np.array, state.variables)  # the step donates its state
    random = np.random.default_rng(0)
    data = {"source_image": random.integers(0, 256, (1, 65, 65, 3), np.uint8),
            "source_label": random.integers(0, 19, (1, 65, 65)).astype(np.uint8)}
    step = quick_jit(make_source_step(model=model, tx=tx), donate_argnums=0)
    after, metrics = step(state, data)
    loss = float(metrics["loss_source"])
    assert loss == pytest.approx(np.log(19), rel=0.2)  # nearly uniform at the start
    groups = optim.assign_groups(before["params"], arranged)
    before, after = (flatten_dict(jax.device_get(v), sep="/") for v in (before, after.variables))
    for path, value in after.items():
        assert np.isfinite(value).all(), path
        collection, name = path.split("/", 1)
        moves = collection == "batch_stats" or groups[name] != optim.LEFT_ALONE
        assert (value != before[path]).any() == moves, path
