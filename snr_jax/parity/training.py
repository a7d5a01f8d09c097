"""Training steps against golden numbers; model, optimiser and step come from a configuration.

A run's name tells what it is, e.g. dg_release, uda_iw_multi_plain: dg (source alone) or uda
(adaptation), its target loss (maxsquare by default, iw its image-wise form), multi, and release
(repeated updates) or plain.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from snr_jax.config.backbones import model_keys
from snr_jax.core import losses
from snr_jax.core.models.backbone import architecture
from snr_jax.core.parallel import create_parallel
from snr_jax.core.state import create_state
from snr_jax.parity.compare import Networks, Row, error
from snr_jax.parity.golden import Arrays, Network, draw_image, draw_labels
from snr_jax.runs import experiment
from snr_jax.weights import torch_names

TARGET_IS_SMALLER_BY = (16, 32)  # rows and columns, so that the domains differ in size
TRAINED = 1e-6  # after several steps in float64


class Run(NamedTuple):
    """A training of the folder. target_loss: a key of TARGET_LOSSES, empty without a target."""

    target_loss: str
    multi: bool
    repeated_updates: bool


def parse_run(name: str) -> Run | None:
    """dg_release → Run; None where the name has a word of no known meaning."""
    domain, *words = name.split("_")
    update = words.pop() if words else ""
    plain = [word for word in words if word not in ("iw", "multi")] or ["maxsquare"]
    loss = ("iw_" if "iw" in words else "") + plain[0]
    if (domain not in ("dg", "uda") or update not in ("release", "plain") or len(plain) > 1
            or loss not in losses.TARGET_LOSSES):
        return None
    return Run(loss if domain == "uda" else "", "multi" in words, update == "release")


def configure(base: ConfigDict, run: Run, network: Network) -> ConfigDict:
    """`base` with the switches of a run and the architecture of its network."""
    config = base.copy_and_resolve_references()
    config.update_from_flattened_dict({
        **model_keys(architecture(network.model)),
        "model.atrous": network.model.atrous,
        "optimizer.repeated_updates": run.repeated_updates,
        "loss.target": run.target_loss,
        "loss.lambda_seg": base.loss.lambda_seg if run.multi else 0.0,
    })
    return config


def take_as_is(key: jax.Array, image: jax.Array, *, first_sample: int | jax.Array = 0) -> jax.Array:
    """The image itself, in place of the augmentation: it is what the network sees."""
    return image


def make_step(config: ConfigDict) -> tuple[optax.GradientTransformation, Callable]:
    """Optimiser and compiled step by the functions of a training, on one device, in float64.

    The step's images are what the network sees.
    """
    one_device = create_parallel(jax.devices()[:1], ohwi=False)  # its states are the golden ones
    model = experiment.create_model(config, one_device).clone(dtype=jnp.float64)
    optimizer, _ = experiment.create_optimizer(config)
    sides = ("source", "target") if config.loss.target else ("source",)
    as_is = {f"prepare_{side}": take_as_is for side in sides}
    step = experiment.create_step(config, model, optimizer, one_device, **as_is)
    return optimizer, step


def compare_training(
    arrays: Arrays, networks: Networks, salt: str, size: tuple[int, int], base: ConfigDict
) -> Iterator[Row]:
    """Losses of every step, and what the steps made of weights and running statistics.

    size: height and width of the source images. base: the configuration of the release, with the
    rates and weights that the folder was made with.
    """
    for name in dict.fromkeys(key.split("/")[0] for key in arrays):
        if (run := parse_run(name)) is None:
            continue
        keys = [key for key in arrays if key.startswith(f"{name}/")]
        network = networks("snr" if any("/IN1." in key for key in keys) else "baseline")
        config = configure(base, run, network)
        optimizer, step = make_step(config)
        # A copy: the step takes the memory of its state.
        state = create_state(jax.tree.map(jnp.copy, network.variables), optimizer)
        weights = _objective_weights(config)
        for i in range(sum(bool(re.fullmatch(rf"{name}/step\d+/loss_source", k)) for k in keys)):
            state, values = step(state, _draw_batch(i, config, size, salt))
            ours = {f"{name}/step{i}/{loss}": weights[loss] * float(value)
                    for loss, value in values.items()}
            errors = {key: error(value, arrays[key]) if key in arrays else np.inf
                      for key, value in ours.items()}
            yield Row(f"training/{name}/step{i}/losses", errors, TRAINED)
        after = torch_names.to_torch({"params": state.params, "batch_stats": state.batch_stats})
        yield from _compare_tensors(name, keys, arrays, network.state_dict, after)


def _objective_weights(config: ConfigDict) -> dict[str, float]:
    """The folder's losses are stored as they enter the objective."""
    lambda_seg, lambda_target = config.loss.lambda_seg, config.loss.lambda_target
    return {"loss_source": 1.0, "loss_source_aux": lambda_seg, "loss_target": lambda_target,
            "loss_target_aux": lambda_seg * lambda_target}


def _draw_batch(i: int, config: ConfigDict, size: tuple[int, int], salt: str) -> dict:
    batch = {
        "source_image": draw_image(f"source/{i}", size, salt),
        "source_label": draw_labels(f"source_labels/{i}", config.num_classes, size, salt),
    }
    if config.loss.target:
        smaller = tuple(n - less for n, less in zip(size, TARGET_IS_SMALLER_BY, strict=True))
        batch["target_image"] = draw_image(f"target/{i}", smaller, salt)
    return batch


def _compare_tensors(
    name: str, keys: list[str], arrays: Arrays, before: Mapping[str, np.ndarray],
    after: Mapping[str, np.ndarray],
) -> Iterator[Row]:
    """What a run made of the tensors: how far each went, and the first values of some."""
    before = {key: value.astype(np.float64) for key, value in before.items()}
    change = {key: np.asarray(after[key], np.float64) - value for key, value in before.items()}
    moved, statistics, still = {}, {}, {}
    for key in keys:
        tensor = key.removeprefix(f"{name}/delta_norm/")
        if tensor in change and tensor != key:
            group = (still if arrays[key] == 0 else
                     statistics if "running_" in tensor else moved)
            group[key] = error(np.sqrt(np.sum(change[tensor] ** 2)), arrays[key])
    for title, errors, allowed in (
        (f"change of {len(moved)} trained tensors", moved, TRAINED),
        (f"change of {len(statistics)} running statistics", statistics, TRAINED),
        (f"no change of {len(still)} tensors", still, 0.0),
    ):
        if errors:
            yield Row(f"training/{name}/{title}", errors, allowed)
    first = {}
    for key in keys:
        tensor = key.removeprefix(f"{name}/after/")
        if tensor in change and tensor != key:
            count = arrays[key].size
            ours = np.asarray(after[tensor]).reshape(-1)[:count]
            # Against the change, not the value: most of a weight is what it was before.
            start = before[tensor].reshape(-1)[:count]
            first[key] = error(ours, arrays[key], scale=arrays[key] - start)
    if first:
        yield Row(f"training/{name}/values of {len(first)} tensors", first, TRAINED)
