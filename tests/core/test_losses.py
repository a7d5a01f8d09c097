"""Every loss on pixels whose value can be worked out by hand.

Two logits (ln(a/b), 0) make p = (a, b) / (a + b), so the examples are built from probabilities.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from snr_jax.core import losses
from snr_jax.core.losses import mean

LN2 = math.log(2)
H_34 = 0.75 * math.log(4 / 3) + 0.25 * math.log(4)  # entropy of (3/4, 1/4): 0.562335
H_910 = 0.9 * math.log(10 / 9) + 0.1 * math.log(10)  # of (9/10, 1/10): 0.325083


def logits_of(*images):
    """Probabilities per pixel, images of one row → logits [N,1,W,C]."""
    return jnp.log(jnp.array(images, jnp.float32))[:, None]


def labels_of(*images):
    return jnp.array(images, jnp.uint8)[:, None]


def test_cross_entropy_by_hand():
    logits = logits_of([(3 / 4, 1 / 4), (1 / 2, 1 / 2), (1 / 10, 9 / 10)])
    # -ln 3/4 = 0.287682, -ln 1/2 = 0.693147; the third pixel is ignored.
    loss = mean(losses.cross_entropy(logits, labels_of([0, 1, 255])))
    assert loss == pytest.approx((0.287682 + 0.693147) / 2, rel=1e-5)


def test_ignored_pixels_are_as_if_left_out():
    random = np.random.default_rng(0)
    logits = jnp.asarray(random.normal(size=(2, 3, 4, 5)), jnp.float32)
    label = random.integers(0, 5, (2, 3, 4)).astype(np.uint8)
    label[random.random(label.shape) < 0.4] = 255
    kept = label != 255
    assert 0 < kept.sum() < kept.size

    def left_out(x):
        label_left = jnp.asarray(label[kept])[None, None]
        return mean(losses.cross_entropy(x[kept][None, None], label_left))

    def ignored(x):
        return mean(losses.cross_entropy(x, jnp.asarray(label)))

    expected, expected_gradient = jax.value_and_grad(left_out)(logits)
    found, gradient = jax.value_and_grad(ignored)(logits)
    assert found == pytest.approx(float(expected), rel=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-7)
    assert not np.asarray(gradient)[~kept].any()


def test_maxsquare_by_hand():
    # sum p^2 is 10/16 and 1/2; 2 N C H W = 2 * 1 * 2 * 2.
    loss = mean(losses.maxsquare(logits_of([(3 / 4, 1 / 4), (1 / 2, 1 / 2)])))
    assert loss == pytest.approx(-(0.625 + 0.5) / 8, rel=1e-6)


def test_entropy_by_hand():
    # N C H W = 4.
    loss = mean(losses.entropy(logits_of([(3 / 4, 1 / 4), (1 / 2, 1 / 2)])))
    assert loss == pytest.approx((H_34 + LN2) / 4, rel=1e-6)


# Image 1 predicts 0 0 0 1: h = (3, 1), H = 4, so w_0 = 1 / (3^0.2 * 4^0.8) = 0.264806 and
# w_1 = 1 / (1 * 4^0.8) = 0.329877. Image 2 predicts 1 1 1 1: w_1 = 1 / (4^0.2 * 4^0.8) = 0.25.
TWO_IMAGES = ([(3 / 4, 1 / 4)] * 3 + [(1 / 10, 9 / 10)], [(1 / 10, 9 / 10)] * 4)


def test_image_wise_weights_count_each_image_by_itself():
    p = jnp.exp(logits_of(*TWO_IMAGES))
    weights = losses._image_weights(p, 0.2)[:, 0]
    expected = [[0.264806] * 3 + [0.329877], [0.25] * 4]
    np.testing.assert_allclose(weights, expected, rtol=1e-5)


def test_image_wise_weights_are_one_at_most():
    # One pixel: h = H = 1, w = 1 / max(1, 1). With ratio 1 a class of 2 pixels gets 1/2.
    one = losses._image_weights(jnp.exp(logits_of([(3 / 4, 1 / 4)])), 0.2)
    assert float(one[0, 0, 0]) == 1
    two = losses._image_weights(jnp.exp(logits_of([(3 / 4, 1 / 4)] * 2 + [(1 / 4, 3 / 4)])), 1.0)
    np.testing.assert_allclose(two[0, 0], [1 / 2, 1 / 2, 1], rtol=1e-6)


def test_iw_maxsquare_by_hand():
    # sum p^2 is 0.625 and 0.82; N C = 4.
    image1 = 3 * 0.264806 * 0.625 + 0.329877 * 0.82
    image2 = 4 * 0.25 * 0.82
    loss = mean(losses.iw_maxsquare(logits_of(*TWO_IMAGES)))
    assert loss == pytest.approx(-(image1 + image2) / 4, rel=1e-5)


def test_iw_entropy_by_hand():
    image1 = 3 * 0.264806 * H_34 + 0.329877 * H_910
    image2 = 4 * 0.25 * H_910
    loss = mean(losses.iw_entropy(logits_of(*TWO_IMAGES)))
    assert loss == pytest.approx((image1 + image2) / 4, rel=1e-5)


@pytest.mark.parametrize("loss", [losses.iw_maxsquare, losses.iw_entropy])
def test_image_wise_losses_of_a_batch_are_the_mean_of_its_images(loss):
    logits = logits_of(*TWO_IMAGES)
    whole, first, second = (mean(loss(x)) for x in (logits, logits[:1], logits[1:]))
    assert whole == pytest.approx(float(first + second) / 2, rel=1e-6)


@pytest.mark.parametrize("name", losses.TARGET_LOSSES)
def test_sums_of_parts_add_up_to_that_of_the_batch(name):
    """Totals and normalisers each, whatever the parts' shares of what counts."""
    logits = logits_of(*TWO_IMAGES)
    loss = partial(losses.hard, threshold=0.8) if name == "hard" else losses.TARGET_LOSSES[name]
    whole, first, second = (loss(x) for x in (logits, logits[:1], logits[1:]))
    assert whole.total == pytest.approx(float(first.total + second.total), rel=1e-6)
    assert whole.normaliser == first.normaliser + second.normaliser > 0


@pytest.mark.parametrize("name", [*losses.TARGET_LOSSES, "guidance"])
def test_padding_is_as_if_left_out(name):
    """Two rows and three columns are image: the loss of those alone, and no gradient elsewhere."""
    logits = 12 * np.random.default_rng(1).normal(size=(1, 4, 5, 3)).astype(np.float32)
    is_image = np.zeros((1, 4, 5), bool)
    is_image[:, :2, :3] = True
    loss = getattr(losses, name)

    def value(x, *more):
        heads = (x[..., ::-1], x) if name == "guidance" else (x,)
        return mean(loss(*heads, *more))

    expected, inner = jax.value_and_grad(value)(logits[:, :2, :3])
    found, gradient = jax.value_and_grad(value)(logits, jnp.asarray(is_image))
    assert found == pytest.approx(float(expected), rel=1e-5) and expected != 0
    np.testing.assert_allclose(gradient[:, :2, :3], inner, rtol=1e-4, atol=1e-7)
    assert not np.asarray(gradient)[~is_image].any()
    assert value(logits) == pytest.approx(float(value(logits, np.ones((1, 4, 5), bool))), rel=1e-6)


def test_hard_takes_the_sure_pixels_alone():
    # max p is 0.96 (class 1), 0.94 and 0.99 (class 0).
    logits = logits_of([(0.04, 0.96), (0.94, 0.06), (0.99, 0.01)])
    sure = (-math.log(0.96) - math.log(0.99)) / 2
    assert mean(losses.hard(logits)) == pytest.approx(sure, rel=1e-4)
    every = (-math.log(0.96) - math.log(0.94) - math.log(0.99)) / 3
    assert mean(losses.hard(logits, threshold=0.5)) == pytest.approx(every, rel=1e-4)


def test_guidance_by_hand():
    # pixel 1: the main head is sure of class 0; (0.96 + 0.3) / 2 > 1/2, target 0.
    # pixel 2: the auxiliary head is sure of class 1; (0.9 + 0.02) / 2 < 1/2, target 1.
    # pixel 3: neither is sure.
    main = logits_of([(0.96, 0.04), (0.9, 0.1), (0.9, 0.1)])
    aux = logits_of([(0.3, 0.7), (0.02, 0.98), (0.9, 0.1)])
    expected = (-math.log(0.3) - math.log(0.98)) / 2
    assert mean(losses.guidance(main, aux)) == pytest.approx(expected, rel=1e-4)
    to_main, to_aux = jax.grad(lambda *x: mean(losses.guidance(*x)), argnums=(0, 1))(main, aux)
    assert not np.asarray(to_main).any()
    assert np.asarray(to_aux)[0, 0, :2].all() and not np.asarray(to_aux)[0, 0, 2].any()


def test_pixel_entropy_by_hand():
    logits = logits_of([(1 / 2, 1 / 2), (3 / 4, 1 / 4)])
    assert mean(losses.pixel_entropy(logits)) == pytest.approx((LN2 + H_34) / 2, rel=1e-6)
    assert losses.pixel_entropy(logits).normaliser == 2


def restitution(*block):
    return losses.dual_restitution(*(mean(losses.pixel_entropy(x)) for x in block))


def test_dual_restitution_by_hand():
    # The mean entropies are (ln 2 + H_910) / 2 = 0.509115, H_34 = 0.562335 and H_910 = 0.325083.
    # The mean stands inside: softplus(-0.053220) + softplus(0.237252) = 0.666891 + 0.818784.
    plus = logits_of([(1 / 2, 1 / 2), (9 / 10, 1 / 10)])
    middle = logits_of([(3 / 4, 1 / 4), (1 / 4, 3 / 4)])
    minus = logits_of([(9 / 10, 1 / 10), (9 / 10, 1 / 10)])
    loss = restitution(plus, middle, minus)
    assert loss == pytest.approx(0.666891 + 0.818784, rel=1e-5)


def test_dual_restitution_of_equal_features_is_2_ln_2():
    same = logits_of([(3 / 4, 1 / 4)])
    assert restitution(same, same, same) == pytest.approx(2 * LN2, rel=1e-6)


ONE_ARGUMENT = {**losses.TARGET_LOSSES, "pixel_entropy": losses.pixel_entropy}


@pytest.mark.parametrize("name", ONE_ARGUMENT)
def test_gradients_against_differences(name):
    random = np.random.default_rng(1)
    with jax.enable_x64(True):
        logits = jnp.asarray(3 * random.normal(size=(2, 2, 3, 4)))
        # Low enough that `hard` has some sure pixels and some others.
        options = {"threshold": 0.7} if name == "hard" else {}
        check_grads(lambda x: mean(ONE_ARGUMENT[name](x, **options)), (logits,), 1, ("rev",))


def test_gradients_of_supervised_losses_against_differences():
    random = np.random.default_rng(2)
    with jax.enable_x64(True):
        a, b, c = (jnp.asarray(random.normal(size=(2, 2, 3, 4))) for _ in range(3))
        label = jnp.asarray(random.choice([0, 1, 2, 3, 255], (2, 2, 3)), jnp.uint8)
        check_grads(lambda x: mean(losses.cross_entropy(x, label)), (a,), 1, ("rev",))
        check_grads(lambda x: mean(losses.guidance(a, x, threshold=0.5)), (b,), 1, ("rev",))
        check_grads(restitution, (a, b, c), 1, ("rev",))


@pytest.mark.parametrize("loss", [
    lambda x: losses.cross_entropy(x, jnp.full(x.shape[:3], 255, jnp.uint8)),
    losses.hard,  # uniform p: nothing is sure
    lambda x: losses.guidance(x, x),
])
def test_no_valid_pixel_is_zero_with_zero_gradient(loss):
    value, gradient = jax.value_and_grad(lambda x: mean(loss(x)))(jnp.zeros((1, 2, 3, 4)))
    assert float(value) == 0
    assert not np.asarray(gradient).any()


@pytest.mark.parametrize("name", losses.TARGET_LOSSES)
def test_certain_pixels_have_finite_gradients(name):
    logits = jnp.array([1e4, 0.0, -1e4]).reshape(1, 1, 1, 3)
    loss = losses.TARGET_LOSSES[name]
    value, gradient = jax.value_and_grad(lambda x: mean(loss(x)))(logits)
    assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.parametrize("name", losses.TARGET_LOSSES)
def test_half_precision_logits_give_float32_losses(name):
    logits = logits_of(*TWO_IMAGES)
    loss = losses.TARGET_LOSSES[name]
    half, full = mean(loss(logits.astype(jnp.bfloat16))), mean(loss(logits))
    assert half.dtype == jnp.float32
    assert half == pytest.approx(float(full), abs=5e-3)


@pytest.mark.parametrize("name", ONE_ARGUMENT)
def test_batches_with_more_than_2_to_the_31_numbers(name):
    logits = jax.ShapeDtypeStruct((128, 720, 1280, 19), jnp.float32)
    assert jax.eval_shape(lambda x: mean(ONE_ARGUMENT[name](x)), logits).shape == ()
