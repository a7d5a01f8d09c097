"""The steps on one device and on many, written to the npz file named on the command line.

A program of its own: the number of devices is fixed before JAX starts. Double precision, so that
what differs differs by mistake and not by the order of a sum.
"""

import os
import sys
from functools import partial

from tests.fast import XLA_FLAGS

os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {XLA_FLAGS}"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_ENABLE_X64"] = "1"

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict

from snr_jax.core import losses
from snr_jax.core.augment import augment
from snr_jax.core.colors import JITTERS
from snr_jax.core.mixing import mask_blocks
from snr_jax.core.parallel import create_parallel
from snr_jax.core.self_training import make_classmix_step
from snr_jax.core.state import create_state
from snr_jax.core.steps import (
    make_adaptation_step,
    make_eval_step,
    make_source_step,
)
from tests.core.tiny import NUM_CLASSES, Probe, batch, network, variables

ONE, TWO, EIGHT = (create_parallel(jax.devices()[:count]) for count in (1, 2, 8))
STORED = create_parallel(jax.devices()[:2], ohwi=True)
OPTIMIZER = optax.sgd(0.1, momentum=0.9)  # the momentum after one step is the gradient
PASSES = 2
found: dict[str, np.ndarray] = {}


def record(name, tree):
    found.update({f"{name}/{k}": np.asarray(v) for k, v in flatten_dict(tree, sep="/").items()})


MULTI = {"lambda_seg": 0.3}


def data(size=4, mixed=False):
    """The second half of the samples has a tenth of the valid pixels of the first.

    mixed: the target images have the size of the source's, and half of them one colour alone, of
    which the teacher is sure.
    """
    values = batch(size)
    if mixed:
        target = np.random.default_rng(7).integers(0, 256, (size, 33, 49, 3), np.uint8)
        target[size // 2 :] = 0
        values["target_image"] = target
    rare = np.random.default_rng(9).random((size // 2, 33, 49)) < 0.9
    values["source_label"][size // 2 :][rare] = 255
    return values


def train(name, parallel, factory, *, sync_bn=True, size=4, padded=False, **options):
    axis = parallel.axis_name
    wide = jax.tree.map(np.float64, variables(Probe()))
    model = Probe(dtype=jnp.float64, bn_axis_name=axis if sync_bn else None)
    mixed = factory is make_classmix_step
    options = options if mixed else MULTI | options
    step = parallel.compile(factory(model=model, tx=OPTIMIZER,
                                    restitution_weight=0.05, axis_name=axis, **options))
    state = parallel.replicate(create_state(wide, OPTIMIZER, with_teacher=mixed))
    layout = jax.tree.map(lambda x: x.sharding, state)
    values = data(size, mixed)
    if padded:  # by more in one half than in the other
        values["target_extent"] = np.array([[33, 49], [30, 49], [33, 20], [8, 8]], np.int32)
    if padded and mixed:
        rim = [[3, 33, 0, 49], [0, 25, 0, 40], [0, 33, 0, 49], [0, 33, 5, 49]]
        values["target_inside"] = np.array(rim, np.int32)
    for i in range(PASSES):
        state, metrics = step(state, parallel.shard(values))
        jax.block_until_ready((state, metrics))
        record(f"{name}/metrics{i}", parallel.unreplicate(metrics))
    same = jax.tree.map(lambda x: x.sharding, state) == layout
    assert same, "the second step is compiled anew"
    final = parallel.unreplicate(state)
    record(name, {**final.variables, "momentum": final.opt_state[0].trace,
                  "teacher": final.teacher})
    found[f"{name}/step"] = np.asarray(final.step)
    if parallel is not ONE:
        for leaf in jax.tree.leaves(state):
            replicas = {np.asarray(shard.data).tobytes() for shard in leaf.addressable_shards}
            assert len(replicas) == 1, "the replicas have drifted apart"


def forward(name, parallel):
    """The real network in training mode, and its gradients: every batch norm is synchronised."""
    axis = parallel.axis_name
    model = network(dtype=jnp.float64, bn_axis_name=axis)

    def run(variables, samples):
        def part_of_sum(params):
            output, moved = model.apply({**variables, "params": params}, samples["image"],
                                        train=True, mutable=["batch_stats"])
            return (output.main * samples["weights"]).sum(), (output.main, moved["batch_stats"])

        gradients, (main, moved) = jax.grad(part_of_sum, has_aux=True)(variables["params"])
        return main, moved, jax.lax.psum(gradients, axis) if axis else gradients

    wide = jax.tree.map(np.float64, variables(network()))
    weights = np.random.default_rng(8).normal(size=(4, 33, 49, NUM_CLASSES))
    samples = parallel.shard({"image": np.float64(data()["source_image"]), "weights": weights})
    main, *rest = jax.block_until_ready(parallel.compile(run)(parallel.replicate(wide), samples))
    found[f"{name}/main"] = np.asarray(main).reshape(weights.shape)
    for part, tree in zip(("moved", "gradients"), map(parallel.unreplicate, rest), strict=True):
        record(f"{name}/{part}", tree)


def evaluate(name, parallel):
    values = jax.tree.map(np.float64, variables(Probe()))
    step = parallel.compile(make_eval_step(model=Probe(dtype=jnp.float64), flip=True,
                                           axis_name=parallel.axis_name))
    samples = {"image": data()["source_image"], "label": data()["source_label"],
               "valid": np.array([True, True, True, False])}
    confusion = step(parallel.replicate(values), parallel.shard(samples))
    found[f"{name}/confusion"] = np.asarray(parallel.unreplicate(confusion))


def whole_losses(name, parallel):
    """Every loss, and its gradient by the logits, of the same eight images."""
    random = np.random.default_rng(7)
    arrays = {key: 3 * random.normal(size=(8, 3, 4, 5)) for key in "abc"}
    label = random.integers(0, 5, (8, 3, 4))
    label[random.random(label.shape) < 0.3] = 255
    label[:4, 1:] = 255
    axis = parallel.axis_name
    options = {"hard": {"threshold": 0.6}}
    sums = {
        key: lambda x, f=f, key=key: f(x["a"], **options.get(key, {}))
        for key, f in losses.TARGET_LOSSES.items()
    }
    sums["cross_entropy"] = lambda x: losses.cross_entropy(x["a"], x["label"])
    sums["nothing_valid"] = lambda x: losses.cross_entropy(x["a"], 0 * x["label"] + 255)
    sums["guidance"] = lambda x: losses.guidance(x["b"], x["a"], threshold=0.6)
    sums["dual_restitution"] = lambda x: losses.restitution_sums([(x["a"], x["b"], x["c"])])
    finishes = dict.fromkeys(sums, losses.mean) | {"dual_restitution": losses.restitution}
    functions = {
        key: lambda x, f=f, finish=finishes[key]: finish(jax.lax.psum(f(x), axis) if axis else f(x))
        for key, f in sums.items()
    }

    def run(_, x):
        def both(f):
            value, gradient = jax.value_and_grad(lambda a: f({**x, "a": a}))(x["a"])
            if axis:  # of logits, which every replica has its own of
                gradient = jax.lax.all_gather(gradient, axis, tiled=True) / parallel.num_devices
            return value, gradient

        return {key: both(f) for key, f in functions.items()}

    values = parallel.compile(run)(
        parallel.replicate(np.zeros(1)), parallel.shard({**arrays, "label": label}))
    for key, (value, gradient) in parallel.unreplicate(values).items():
        found[f"{name}/{key}/value"], found[f"{name}/{key}/gradient"] = value, gradient


MASKS = {"masked_weight": 1.0, "mask": partial(mask_blocks, block=8), "teacher_flip": True}
COLORS = partial(augment, jitter=JITTERS["robustnet"], strong_blur=True)
ADAPT = {"target_loss": losses.iw_maxsquare, "guidance_threshold": 0.6}
for devices, parallel in (("one", ONE), ("many", TWO)):
    train(f"{devices}/source", parallel, make_source_step)
    train(f"{devices}/colors", parallel, make_source_step, size=8, prepare_source=COLORS)
    train(f"{devices}/iw_maxsquare", parallel, make_adaptation_step, **ADAPT)
    train(f"{devices}/accumulated", parallel, make_adaptation_step, **ADAPT, freeze_bn=True,
          accumulate_steps=parallel.num_devices)
    train(f"{devices}/hard", parallel, make_adaptation_step,
          target_loss=partial(losses.hard, threshold=0.6), guidance_threshold=0.6)
    train(f"{devices}/class mixing", parallel, make_classmix_step, threshold=0.8)
    train(f"{devices}/mixing padded", parallel, make_classmix_step, threshold=0.8, padded=True,
          **MASKS)
    train(f"{devices}/padded", parallel, make_adaptation_step, **ADAPT, padded=True,
          freeze_bn=True, accumulate_steps=parallel.num_devices)
    forward(f"{devices}/forward", parallel)
    evaluate(f"{devices}/evaluation", parallel)
    whole_losses(f"{devices}/losses", parallel)
for devices, parallel in (("one", ONE), ("many", EIGHT)):
    train(f"{devices}/source of eight", parallel, make_source_step, size=8)
    train(f"{devices}/adaptation of eight", parallel, make_adaptation_step, size=8, **ADAPT)
for devices, parallel in (("one", ONE), ("many", STORED)):
    train(f"{devices}/stored", parallel, make_classmix_step, threshold=0.8)
train("alone/source", TWO, make_source_step, sync_bn=False)
tree = {"a": np.arange(6.0).reshape(2, 3), "b": {"c": np.int32(4)}}
for devices, parallel in (("one", ONE), ("many", TWO)):
    record(f"{devices}/round", parallel.unreplicate(parallel.replicate(tree)))
    shards = parallel.shard({"x": np.arange(8).reshape(4, 2)})["x"]
    found[f"{devices}/round/shard"] = np.asarray(shards).reshape(4, 2)
    found[f"{devices}/round/counts"] = np.array(
        [parallel.num_devices, parallel.must_wait])
np.savez(sys.argv[1], **found)
