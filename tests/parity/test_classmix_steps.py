"""1, 3 and 20 steps of self-training with class mixing: terms, student, teacher, statistics."""

import copy
from functools import partial

import jax
import numpy as np
import pytest
import torch

import twin as torch_twin
from snr_jax.core import optim
from snr_jax.core.self_training import make_classmix_step
from snr_jax.core.state import create_state
from snr_jax.parity.training import take_as_is
from tests.parity.pair import (
    Pair,
    arrays,
    assert_close,
    make_pair,
    random_image,
    random_label,
    to_torch,
    torch_named,
)
from twin import classmix as torch_classmix

BASE_RATE, MAX_ITERATIONS, LAMBDA, RESTITUTION = 2.5e-4, 25, 1.0, 0.01
# The names of the twin's terms, and their weights in its loss.
NAMES = {
    "loss_source": ("loss_source", 1.0), "loss_restitution": ("loss_restitution", RESTITUTION),
    "loss_target": ("loss_mix", LAMBDA), "sure_share": ("q", 1.0),
}  # fmt: skip
# Thresholds at which the tiny teacher is sure of a part of the pixels; the test says so.
RECIPES = {
    "standard": {},
    "paper": {"repeated_updates": True, "restitution": True},
    "release, weight per pixel": {
        "repeated_updates": True, "train_snr": False, "weight_per_pixel": True},
    "plain, teacher in evaluation mode": {
        "variant": "none", "teacher_evaluation": True, "threshold": 0.6},
    "momentum at most 0.9": {"variant": "in", "most_momentum": 0.9},
}


def draw_classes(labels: np.ndarray, seed: int) -> list[np.ndarray]:
    """Half of the ids of each label, rounded up; given to both sides."""
    random = np.random.default_rng(seed)
    ids = [np.unique(label) for label in labels]
    return [random.permutation(i)[: torch_classmix.number_chosen(len(i))] for i in ids]


def our_step(pair: Pair, tx, options: dict, threshold: float):
    """step(state, batch, chosen), chosen as `mixing.choose_classes` gives it."""
    def step(state, batch, chosen):
        made = make_classmix_step(
            model=pair.model, tx=tx, lambda_target=LAMBDA, threshold=threshold,
            teacher_momentum=options.get("most_momentum", 0.99),
            teacher_mode="eval" if options.get("teacher_evaluation") else "train",
            weight="pixel" if options.get("weight_per_pixel") else "share",
            restitution_weight=RESTITUTION if pair.phi else 0.0,
            prepare_source=take_as_is, prepare_target=take_as_is, strengthen=take_as_is,
            choose_classes=lambda key, label, **_: chosen,
        )
        return made(state, batch)

    return jax.jit(step)


def slots(classes: list[np.ndarray], num_classes: int) -> np.ndarray:
    """Lists of ids as rows of bool, the ignored one last."""
    return np.array([[c in ids for c in (*range(num_classes), 255)] for ids in classes])


@pytest.mark.parametrize("name", RECIPES)
def test_recipe(name, checkpoints=(1, 3, 20)):
    options = dict(RECIPES[name])
    threshold = options.pop("threshold", 0.3)
    pair = make_pair(
        options.pop("variant", "snr"), restitution=options.pop("restitution", False))
    groups = optim.param_groups(
        repeated_updates=options.get("repeated_updates", False),
        train_snr=options.get("train_snr", True), multi_level=False)
    tx = optim.sgd(optim.poly_schedule(BASE_RATE, MAX_ITERATIONS), groups)
    step = our_step(pair, tx, options, threshold)
    state, velocities = create_state(pair.variables, tx, with_teacher=True), {}
    teacher = copy.deepcopy(pair.twin)
    run = partial(
        torch_classmix.classmix_step, pair.twin, teacher, velocities, base_rate=BASE_RATE,
        max_iterations=MAX_ITERATIONS, threshold=threshold, phi=pair.phi,
        restitution_weight=RESTITUTION, **options)
    before, before_teacher = arrays(pair.twin, pair.phi), arrays(teacher)
    shares = []
    for i in range(max(checkpoints)):
        # Three batches in turn; in one all labels are ignored, which pastes the whole image.
        images = random_image(i % 3, 2, 33, 49).astype(np.float64)
        labels = random_label(i % 3, 2, 33, 49)
        if i % 3 == 2:
            labels[:] = torch_twin.IGNORE
        target = random_image(i % 3 + 3, 2, 33, 49).astype(np.float64)
        classes = draw_classes(labels, i)
        batch = {"source_image": images, "source_label": labels, "target_image": target}
        state, metrics = step(state, batch, slots(classes, pair.model.num_classes))
        expected = run(
            to_torch(images), torch.from_numpy(labels), to_torch(target), classes, iteration=i)
        terms = {NAMES[k][0]: NAMES[k][1] * np.asarray(v) for k, v in metrics.items()}
        assert_close(terms, {k: np.asarray(v) for k, v in expected.items()}, 1e-6)
        shares.append(float(metrics["sure_share"]))
        if i + 1 in checkpoints:
            student = torch_named(state.params, state.batch_stats)
            compare(student, arrays(pair.twin, pair.phi), before)
            compare(torch_named(**state.teacher), arrays(teacher), before_teacher)
    assert 0.05 < np.mean(shares) < 0.95 and sum(0 < share < 1 for share in shares) > 10, shares


def compare(found: dict, after: dict, before: dict) -> None:
    """Against how far each tensor has gone, or its size where it stays: a mean of two equal
    numbers may round."""
    found = {k: v for k, v in found.items() if k in after}  # no classifiers of the teacher's
    scale = {k: v - before[k] if np.any(v != before[k]) else v for k, v in after.items()}
    assert_close(found, after, 1e-6, scale=scale)
