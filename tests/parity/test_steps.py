"""1, 3 and 20 training steps of each recipe: losses, parameters and running statistics."""

import jax
import numpy as np
import pytest
import torch

import twin as torch_twin
from snr_jax.core import losses, optim, steps
from snr_jax.core.state import create_state
from snr_jax.parity.training import take_as_is
from tests.parity.pair import (
    arrays,
    assert_close,
    make_pair,
    random_image,
    random_label,
    to_torch,
    torch_named,
)

BASE_RATE, MAX_ITERATIONS = 2.5e-4, 25
LAMBDA_TARGET, LAMBDA_SEG, THRESHOLD, RESTITUTION = 0.2, 0.1, 0.6, 0.01
WEIGHTS = {
    "loss_source": 1.0, "loss_source_aux": LAMBDA_SEG, "loss_restitution": RESTITUTION,
    "loss_target": LAMBDA_TARGET, "loss_target_aux": LAMBDA_SEG * LAMBDA_TARGET,
}

# What differs from generalisation with plain updates of all parameters of the SNR network.
RECIPES = {
    "generalisation, standard": {"head_branches": 4},
    "generalisation, paper": {"repeated_updates": True, "restitution": True},
    "generalisation, frozen batch norm": {"variant": "in", "freeze_bn": True},
    "adaptation, release": {
        "target_loss": "maxsquare", "repeated_updates": True, "train_snr": False},
    "adaptation, IW and multi": {
        "variant": "none", "target_loss": "iw_maxsquare", "multi": True},
}
FULL_RECIPE = {"target_loss": "iw_entropy", "multi": True, "repeated_updates": True,
               "restitution": True}


def check_recipe(recipe, checkpoints=(1, 3, 20), **size):
    options = {"variant": "snr", "head_branches": 2, "target_loss": None, "multi": False,
               "repeated_updates": False, "train_snr": True, "restitution": False,
               "freeze_bn": False} | recipe
    pair = make_pair(options["variant"], head_branches=options["head_branches"],
                     restitution=options["restitution"], **size)
    target_loss, multi = options["target_loss"], options["multi"]

    groups = optim.param_groups(
        repeated_updates=options["repeated_updates"], train_snr=options["train_snr"],
        multi_level=multi, head_branches=options["head_branches"])
    tx = optim.sgd(optim.poly_schedule(BASE_RATE, MAX_ITERATIONS), groups)
    ours = {"model": pair.model, "tx": tx, "prepare_source": take_as_is,
            "restitution_weight": RESTITUTION * options["restitution"],
            "freeze_bn": options["freeze_bn"]}
    theirs = {name: options[name] for name in ("repeated_updates", "train_snr", "freeze_bn")}
    theirs |= {"phi": pair.phi, "restitution_weight": RESTITUTION}
    if target_loss:
        step = steps.make_adaptation_step(
            **ours, prepare_target=take_as_is,
            target_loss=losses.TARGET_LOSSES[target_loss], lambda_target=LAMBDA_TARGET,
            lambda_seg=LAMBDA_SEG * multi, guidance_threshold=THRESHOLD)
        theirs |= {"target_loss": torch_twin.TARGET_LOSSES[target_loss], "multi": multi,
                   "lambda_target": LAMBDA_TARGET, "lambda_seg": LAMBDA_SEG,
                   "threshold": THRESHOLD}
    else:
        step = steps.make_source_step(**ours)
    step = jax.jit(step)

    state, velocities = create_state(pair.variables, tx), {}
    before = arrays(pair.twin, pair.phi)
    for i in range(max(checkpoints)):
        # Three batches in turn, the target smaller; all-ignored labels in one of them.
        images = random_image(i % 3, 2, 33, 49).astype(np.float64)
        labels = random_label(i % 3, 2, 33, 49, num_classes=pair.model.num_classes)
        if i % 3 == 2:
            labels[:] = torch_twin.IGNORE
        batch = {"source_image": images, "source_label": labels}
        inputs = [to_torch(images), torch.from_numpy(labels)]
        if target_loss:
            batch["target_image"] = random_image(i % 3 + 3, 1, 41, 33).astype(np.float64)
            inputs.append(to_torch(batch["target_image"]))
        state, metrics = step(state, batch)
        rate = torch_twin.poly(BASE_RATE, i, MAX_ITERATIONS)
        run = torch_twin.adaptation_step if target_loss else torch_twin.source_step
        terms = run(pair.twin, velocities, *inputs, rate=rate, **theirs)
        assert_close({name: WEIGHTS[name] * value for name, value in metrics.items()},
                     {name: value.numpy() for name, value in terms.items()}, 1e-6)
        if i + 1 in checkpoints:
            compare_states(state, pair, before)


def compare_states(state, pair, before):
    """Against how far each tensor has gone; what the twin leaves alone is left alone exactly."""
    after = arrays(pair.twin, pair.phi)
    scale = {name: value - before[name] for name, value in after.items()}
    assert_close(torch_named(state.params, state.batch_stats), after, 1e-6, scale=scale)


@pytest.mark.parametrize("name", RECIPES)
def test_recipe(name):
    check_recipe(RECIPES[name])


@pytest.mark.full
def test_everything_at_once():
    check_recipe(FULL_RECIPE)


@pytest.mark.full
def test_resnet101():
    check_recipe(FULL_RECIPE, (1, 3), stage_sizes=(3, 4, 23, 3), width=64, num_classes=19)
