"""Every loss and its gradient, and the metrics."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import twin as torch_twin
from snr_jax.core import losses, metrics
from tests.parity.pair import CLASSES, IGNORE, assert_close, random_label, to_nhwc, to_torch

SHAPE = (2, 7, 9)
LABEL = random_label(3, *SHAPE)
NO_LABEL = np.full(SHAPE, IGNORE, np.uint8)


def with_label(function, label):
    """Both sides take (logits, logits of the other head)."""
    if function is losses.cross_entropy:
        return lambda x, y: losses.mean(function(x, jnp.asarray(label)))
    return lambda x, y: function(x, torch.from_numpy(label))


def of_first(function, **options):
    return lambda x, y: function(x, **options)


def mean_of(function, **options):
    """This project's losses are sums; those of one argument take the first logits."""
    if function is losses.guidance:
        return lambda x, y: losses.mean(function(x, y, **options))
    return lambda x, y: losses.mean(function(x, **options))


# name: (this project's, the twin's)
PAIRS = {
    f"cross_entropy, {words}": (with_label(losses.cross_entropy, label),
                                with_label(torch_twin.cross_entropy, label))
    for words, label in (("a tenth ignored", LABEL), ("all ignored", NO_LABEL))
} | {
    name: (mean_of(losses.TARGET_LOSSES[name]), of_first(torch_twin.TARGET_LOSSES[name]))
    for name in losses.TARGET_LOSSES
} | {
    f"hard, {threshold}": (mean_of(losses.hard, threshold=threshold),
                           of_first(torch_twin.hard, threshold=threshold))
    for threshold in (0.0, 0.5, 1.0)
} | {
    f"guidance, {threshold}": (mean_of(losses.guidance, threshold=threshold),
                               partial(torch_twin.guidance, threshold=threshold))
    for threshold in (0.0, 0.5, 0.95, 1.0)
}
NO_PIXEL = ("cross_entropy, all ignored", "hard, 1.0", "guidance, 1.0")


def random_logits(scale):
    return 2 * (scale * np.random.default_rng(4).standard_normal((2, *SHAPE, CLASSES)))


def both(name, logits):
    """({value and gradients of ours}, {of the twin's}) for the logits [2,N,H,W,C] of two heads."""
    ours, theirs = PAIRS[name]
    value, gradients = jax.value_and_grad(ours, argnums=(0, 1))(*jnp.asarray(logits))
    heads = [to_torch(x).requires_grad_() for x in logits]
    loss = theirs(*heads)
    theirs = torch.autograd.grad(loss, heads, allow_unused=True, materialize_grads=True)
    keys = ("value", "gradient", "gradient of the other head")
    return (dict(zip(keys, (value, *gradients), strict=True)),
            dict(zip(keys, (loss.detach().numpy(), *map(to_nhwc, theirs)), strict=True)))


@pytest.mark.parametrize("name", PAIRS)
def test_loss(name):
    ours, theirs = both(name, random_logits(scale=1))
    assert_close(ours, theirs, 1e-12)
    if name in NO_PIXEL:
        assert not any(np.any(value) for value in ours.values())
    else:
        assert ours["value"] != 0


@pytest.mark.parametrize("name", PAIRS)
def test_confident(name):
    """Probabilities of exactly 0 and 1 make no NaN."""
    ours, theirs = both(name, random_logits(scale=1e4))
    assert all(np.isfinite(value).all() for value in ours.values())
    assert_close(ours, theirs, 1e-10)


@pytest.mark.parametrize("name", PAIRS)
def test_float32(name):
    with jax.enable_x64(False):
        ours, _ = both(name, random_logits(scale=1).astype(np.float32))
        assert ours["value"].dtype == ours["gradient"].dtype == np.float32
    _, theirs = both(name, random_logits(scale=1).astype(np.float32).astype(np.float64))
    assert_close(ours, theirs, 1e-5)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_dual_restitution(dtype):
    """With the gradients of the three features and of their common classifier."""
    rng = np.random.default_rng(5)
    torch.manual_seed(5)
    classifier = torch.nn.Conv2d(6, CLASSES, 1).double()
    kernel = classifier.weight.detach().numpy()[:, :, 0, 0].T.astype(dtype)
    bias = classifier.bias.detach().numpy().astype(dtype)
    parts = rng.standard_normal((3, 2, 5, 7, 6)).astype(dtype)

    def ours(kernel, bias, *parts):
        return losses.restitution(
            losses.restitution_sums([tuple(x @ kernel + bias for x in parts)]))

    with jax.enable_x64(dtype is np.float64):
        arguments = [jnp.asarray(x) for x in (kernel, bias, *parts)]
        value, gradients = jax.value_and_grad(ours, argnums=range(5))(*arguments)
    features = [to_torch(x).double().requires_grad_() for x in parts]
    loss = torch_twin.restitution(classifier, *features)
    theirs = torch.autograd.grad(loss, [classifier.weight, classifier.bias, *features])
    tolerance = 1e-12 if dtype is np.float64 else 1e-5
    assert_close({"value": value}, {"value": loss.detach().numpy()}, tolerance)
    # The two terms pull F~ in opposite directions: its gradient, their small difference, is
    # compared on the scale of the three features' gradients.
    ours = {"kernel": gradients[0], "bias": gradients[1], "features": np.stack(gradients[2:])}
    features = np.stack([to_nhwc(x) for x in theirs[2:]])
    theirs = {"kernel": theirs[0].numpy()[:, :, 0, 0].T, "bias": theirs[1].numpy(),
              "features": features}
    assert_close(ours, theirs, tolerance)


@pytest.mark.parametrize("num_classes", [19, 16, 13, 5])
@pytest.mark.parametrize("absent", [(), (2,), (0, 4)])
def test_metrics_exactly(num_classes, absent):
    """Classes without labels, without predictions, and without either."""
    label = random_label(6, 3, 31, 29, num_classes=num_classes)
    rng = np.random.default_rng(7)
    guess = rng.integers(0, num_classes, label.shape)
    prediction = np.where((rng.random(label.shape) < 0.6) & (label != IGNORE), label, guess)
    label[np.isin(label, absent)] = IGNORE
    prediction[np.isin(prediction, absent[:1])] = num_classes - 1

    ours = metrics.confusion_matrix(jnp.asarray(label), jnp.asarray(prediction), num_classes)
    theirs = torch_twin.confusion_matrix(label, prediction, num_classes)
    np.testing.assert_array_equal(ours, theirs)
    ours, theirs = metrics.scores(np.asarray(ours)), torch_twin.metrics(theirs)
    names = {"iou": "iou", "miou": "mean_iou", "pixel_accuracy": "pixel_accuracy",
             "class_accuracy": "mean_accuracy", "precision": "mean_precision", "fwiou": "fw_iou"}
    assert names.keys() == ours.keys()
    for mine, name in names.items():
        np.testing.assert_array_equal(ours[mine], theirs[name], err_msg=name)
