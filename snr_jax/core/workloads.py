"""The compiled steps of the paper's recipe at given sizes, without data: to time and to compile."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import profiler

from snr_jax.core import losses, optim
from snr_jax.core.models.deeplab import DeepLab
from snr_jax.core.recipes import RECIPES
from snr_jax.core.state import TrainState, create_state, initial_variables, variable_shapes
from snr_jax.core.steps import make_adaptation_step, make_eval_step, make_source_step

KINDS = ("source", "adaptation", "evaluation")
Size = tuple[int, int]


class Workload(NamedTuple):
    """step(state, batch), or step(variables, batch) where there is no optimiser."""

    step: Callable
    model: nn.Module
    optimizer: optax.GradientTransformation | None
    batch: dict[str, jax.ShapeDtypeStruct]

    def state_shapes(self) -> TrainState | dict:
        variables = variable_shapes(self.model)
        if self.optimizer is None:
            return variables
        return jax.eval_shape(lambda v: create_state(v, self.optimizer), variables)

    def initial_state(self) -> TrainState | dict:
        variables = initial_variables(self.model, 0)
        return variables if self.optimizer is None else create_state(variables, self.optimizer)

    def random_batch(self, seed: int = 0) -> dict[str, np.ndarray]:
        random = np.random.default_rng(seed)
        high = {"source_label": self.model.num_classes, "label": self.model.num_classes, "valid": 2}
        return {name: random.integers(0, high.get(name, 256), x.shape).astype(x.dtype)
                for name, x in self.batch.items()}


def create_workload(
    kind: str,
    *,
    source_size: Size = (720, 1280),
    target_size: Size = (512, 1024),
    scored_size: Size = (1024, 2048),
    batch_size: int = 1,
    accumulate_steps: int = 1,
    **model: object,
) -> Workload:
    """kind: one of `KINDS`; model: arguments of `DeepLab`.

    The recipe is "paper", adaptation is by MaxSquare. Evaluation mirrors and scores the target's
    images at `scored_size`.
    """
    recipe = RECIPES["paper"]
    model = {"head_branches": recipe["head_branches"]} | model

    def bytes_of(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch_size, *shape), jnp.uint8)

    if kind == "evaluation":
        network = DeepLab(**model)
        batch = {"image": bytes_of(*target_size, 3), "label": bytes_of(*scored_size),
                 "valid": jax.ShapeDtypeStruct((batch_size,), bool)}
        return Workload(make_eval_step(model=network, flip=True), network, None, batch)
    network = DeepLab(restitution_heads=True, **model)
    groups = optim.param_groups(multi_level=False, head_branches=network.head_branches,
                                train_snr=recipe["train_snr"],
                                repeated_updates=recipe["repeated_updates"])
    tx = optim.sgd(optim.poly_schedule(), groups)
    options = {"model": network, "tx": tx, "accumulate_steps": accumulate_steps,
               "restitution_weight": recipe["restitution_weight"]}
    batch = {"source_image": bytes_of(*source_size, 3), "source_label": bytes_of(*source_size)}
    if kind == "source":
        return Workload(make_source_step(**options), network, tx, batch)
    batch["target_image"] = bytes_of(*target_size, 3)
    step = make_adaptation_step(**options, target_loss=losses.maxsquare)
    return Workload(step, network, tx, batch)


def gpu_launches(run: Callable[[], None]) -> list[float]:
    """Milliseconds of each kernel and copy on the GPUs while it runs."""
    options = profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with profiler.trace(folder, profiler_options=options):
            run()
        (file,) = Path(folder).rglob("*.xplane.pb")
        return stream_events(profiler.ProfileData.from_file(str(file)))


def stream_events(profile: profiler.ProfileData) -> list[float]:
    """Milliseconds of what the GPUs' streams did; their other lines tell of the same once more."""
    return [event.duration_ns / 1e6
            for plane in profile.planes if plane.name.startswith("/device:GPU:")
            for line in plane.lines if line.name.startswith("Stream #")
            for event in line.events]
