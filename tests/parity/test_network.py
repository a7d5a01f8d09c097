"""Whole networks: logits, features, running statistics and the gradients of all parameters."""

from functools import partial

import jax
import numpy as np
import pytest
import torch

import twin as torch_twin
from snr_jax.core import losses
from snr_jax.core.models.deeplab import Output
from tests.parity.pair import (
    arrays,
    assert_close,
    make_pair,
    random_image,
    random_label,
    to_nhwc,
    to_torch,
    torch_named,
)

WEIGHTS = {"lambda_seg": 0.1, "restitution_weight": 0.01}


@partial(jax.jit, static_argnums=0)
def evaluation(model, variables, image):
    return model.apply(variables, image, train=False)


@partial(jax.jit, static_argnums=0)
def training(model, variables, image, label):
    """Gradients of the source losses, and the output and statistics of the forward."""

    def objective(params):
        output, updated = model.apply(
            {**variables, "params": params}, image, train=True, mutable=["batch_stats"])
        loss = losses.mean(losses.cross_entropy(output.main, label))
        loss += WEIGHTS["lambda_seg"] * losses.mean(losses.cross_entropy(output.aux, label))
        if output.restitution:
            sums = losses.restitution_sums(output.restitution)
            loss += WEIGHTS["restitution_weight"] * losses.restitution(sums)
        return loss, (output, updated["batch_stats"])

    return jax.grad(objective, has_aux=True)(variables["params"])


def check_output(output: Output, twin: torch_twin.DeepLab, image, tolerance):
    with torch.no_grad():
        main, aux, blocks = twin(to_torch(image), intermediates=True)
    ours = {"main": output.main, "aux": output.aux}
    theirs = {"main": to_nhwc(main), "aux": to_nhwc(aux)}
    for k, snr in enumerate(output.snr):
        names = {"normalized", "restituted", "contaminated", "gate"} & blocks[k].keys()
        ours |= {f"{name} {k}": getattr(snr, name) for name in names}
        theirs |= {f"{name} {k}": to_nhwc(blocks[k][name]) for name in names}
    assert_close(ours, theirs, tolerance)


def check_statistics(batch_stats, twin, tolerance):
    theirs = {name: value for name, value in arrays(twin).items() if "running_" in name}
    assert_close(torch_named({}, batch_stats), theirs, tolerance)


def check_network(pair, batch, size):
    """All of it in float64."""
    image = random_image(0, batch, *size).astype(np.float64)
    label = random_label(1, batch, *size, num_classes=pair.model.num_classes)
    check_output(evaluation(pair.model, pair.variables, image), pair.twin.eval(), image, 1e-8)

    gradients, (output, batch_stats) = training(pair.model, pair.variables, image, label)
    check_output(output, pair.twin.train(), image, 1e-8)
    check_statistics(batch_stats, pair.twin, 1e-8)

    terms = torch_twin.source_losses(
        pair.twin, to_torch(image), torch.from_numpy(label), phi=pair.phi, **WEIGHTS)
    modules = (pair.twin, pair.phi) if pair.phi else (pair.twin,)
    parameters = {name: p for module in modules for name, p in module.named_parameters()}
    theirs = torch_twin.gradients_of(sum(terms.values()), parameters)
    unreached = parameters.keys() - theirs.keys()
    unused = pair.model.head_branches
    assert unreached == {f"layer{n}.conv2d_list.{i}.{leaf}" for n in (5, 6)
                         for i in range(unused, 4) for leaf in ("weight", "bias")}
    theirs = {name: g.numpy() for name, g in theirs.items()}
    theirs |= {name: np.zeros(parameters[name].shape) for name in unreached}
    ours = torch_named(gradients)
    assert not any(np.any(ours[name]) for name in unreached)
    # An offset right before a batch norm has a gradient of 0 up to rounding, hence the floor.
    floor = 1e-6 * max(np.abs(g).max() for g in theirs.values())
    scale = {name: max(np.abs(g).max(), floor) for name, g in theirs.items()}
    assert_close(ours, theirs, 1e-8, scale=scale)


GPU_FORMS = {"atrous": "weight_gradient", "pointwise": "convolution", "bn_sums": "pallas",
             "affine_snr": True}


# At stride 8 the fourth branch's side taps fall inside the map from 25 columns on.
@pytest.mark.parametrize(("variant", "branches", "batch", "size", "options"), [
    ("snr", 2, 2, (65, 97), {"restitution": True}),
    ("in", 4, 1, (49, 205), {"atrous": "space_to_batch", "remat": True}),
    ("none", 2, 2, (36, 110), {"atrous": "space_to_batch", "stage_sizes": (1, 2, 2, 1)}),
    # As on a GPU. The kernel of the sums takes layers of a multiple of 64 channels.
    ("snr", 2, 2, (49, 65), {"restitution": True, "width": 16, **GPU_FORMS}),
])
def test_network(variant, branches, batch, size, options):
    check_network(make_pair(variant, head_branches=branches, **options), batch, size)


def test_forward_float32():
    with jax.enable_x64(False):
        pair = make_pair("snr", stage_sizes=(1, 2, 2, 1), width=8, dtype=np.float32)
        image = random_image(2, 2, 41, 57)
        output = evaluation(pair.model, pair.variables, image)
        assert output.main.dtype == np.float32
        check_output(output, pair.twin.eval(), image, 1e-4)


@pytest.mark.full
@pytest.mark.parametrize("variant", ["snr", "in", "none"])
def test_resnet101(variant):
    pair = make_pair(variant, stage_sizes=(3, 4, 23, 3), width=64, num_classes=19,
                     restitution=variant == "snr")
    check_network(pair, 1, (65, 97))


@pytest.mark.full
def test_resnet101_float32():
    with jax.enable_x64(False):
        pair = make_pair("snr", stage_sizes=(3, 4, 23, 3), width=64, num_classes=19,
                         dtype=np.float32)
        image = random_image(2, 1, 65, 97)
        output = evaluation(pair.model, pair.variables, image)
        check_output(output, pair.twin.eval(), image, 1e-4)
