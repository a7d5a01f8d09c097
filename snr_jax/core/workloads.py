"""The compiled steps of published trainings at given sizes, without data: to time, to compile."""

import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import profiler

from snr_jax.core import losses, mixing, optim
from snr_jax.core.augment import RGB_NORMALIZED, augment
from snr_jax.core.colors import JITTERS
from snr_jax.core.models.create import BACKBONES, NETWORKS, changed
from snr_jax.core.models.light_head import mask_size
from snr_jax.core.recipes import RECIPES
from snr_jax.core.self_training import make_classmix_step
from snr_jax.core.state import TrainState, create_state, initial_variables, variable_shapes
from snr_jax.core.steps import Step, make_adaptation_step, make_eval_step, make_source_step

KINDS = ("source", "adaptation", "evaluation")
Size = tuple[int, int]


class Workload(NamedTuple):
    """step(state, batch), or step(variables, batch) where there is no optimiser."""

    step: Callable
    model: nn.Module
    optimizer: optax.GradientTransformation | None
    batch: dict[str, jax.ShapeDtypeStruct]
    with_teacher: bool = False

    def state_shapes(self) -> TrainState | dict:
        return jax.eval_shape(self._state, variable_shapes(self.model))

    def initial_state(self) -> TrainState | dict:
        return self._state(initial_variables(self.model, 0))

    def _state(self, variables: dict) -> TrainState | dict:
        if self.optimizer is None:
            return variables
        return create_state(variables, self.optimizer, with_teacher=self.with_teacher)

    def random_batch(self, seed: int = 0) -> dict[str, np.ndarray]:
        random = np.random.default_rng(seed)
        high = {"source_label": self.model.num_classes, "label": self.model.num_classes, "valid": 2}
        return {name: random.integers(0, high.get(name, 256), x.shape).astype(x.dtype)
                for name, x in self.batch.items()}


def _paper_optimizer(
    model: nn.Module, adapts: bool, **rates: float
) -> optax.GradientTransformation:
    recipe = RECIPES["paper"]
    groups = optim.param_groups(
        multi_level=False, head_branches=model.head_branches, train_snr=recipe["train_snr"],
        repeated_updates=recipe["repeated_updates"], **rates)
    return optim.sgd(optim.poly_schedule(), groups)


def _vfm_optimizer(
    model: nn.Module, adapts: bool, **rates: float
) -> optax.GradientTransformation:
    return optim.adamw(optim.poly_schedule(), optim.vit_groups(masked_tokens=adapts, **rates))


class Setting(NamedTuple):
    """How a kind of network was trained and scored in publication."""

    source_size: Size
    target_size: Size
    scored_size: Size
    mirrored: bool  # when it is scored
    network: Mapping  # arguments
    trained: Mapping  # more of them, of a network that is trained
    optimizer: Callable[..., optax.GradientTransformation]  # (model, adapts, **rates)
    source: Callable[..., Step]
    adaptation: Callable[..., Step]
    with_teacher: bool


_seen = partial(augment, with_blur=False, preprocessing=RGB_NORMALIZED)
_of_source = {"prepare_source": partial(_seen, jitter=JITTERS["vfm_uda"])}
_restituted = {"restitution_weight": RECIPES["paper"]["restitution_weight"]}
SETTINGS = {
    # The paper's recipe; adaptation by MaxSquare.
    "resnet": Setting(
        (720, 1280), (512, 1024), (1024, 2048), True,
        {"head_branches": RECIPES["paper"]["head_branches"]}, {"restitution_heads": True},
        _paper_optimizer,
        partial(make_source_step, **_restituted),
        partial(make_adaptation_step, **_restituted, target_loss=losses.maxsquare),
        with_teacher=False),
    # configs/gta2city_vfm.py; scored in windows.
    "dinov2": Setting(
        (1024, 1024), (1024, 1024), (1024, 1024), False, {}, {}, _vfm_optimizer,
        partial(make_source_step, **_of_source),
        partial(make_classmix_step, **_of_source, prepare_target=_seen,
                teacher_momentum=0.999, teacher_count=2, teacher_flip=True, masked_weight=1.0,
                strengthen=partial(mixing.strong_augment, strength=0.2,
                                   preprocessing=RGB_NORMALIZED),
                mask=partial(mixing.mask_tokens, grid=mask_size)),
        with_teacher=True),
}


def create_workload(
    kind: str,
    *,
    backbone: str = "resnet101",
    source_size: Size | None = None,
    target_size: Size | None = None,
    scored_size: Size | None = None,
    batch_size: int = 1,
    accumulate_steps: int = 1,
    frozen: bool = False,
    forms: Mapping = MappingProxyType({}),
    **model: object,
) -> Workload:
    """kind: one of `KINDS`; backbone: of `create_model`, which chooses one of `SETTINGS`.

    Sizes are the setting's by default; evaluation scores the target's images at `scored_size`.
    frozen: the backbone is left alone, its head learns. model: arguments of the network; forms:
    more of them, of which each kind of network takes those that it has.
    """
    family, size = BACKBONES[backbone]
    setting = SETTINGS[family]
    source_size = source_size or setting.source_size
    target_size = target_size or setting.target_size

    def create(**trained: object) -> nn.Module:
        network = NETWORKS[family](**{**size, **setting.network, **trained, **model})
        return changed(network, **forms)

    def bytes_of(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch_size, *shape), jnp.uint8)

    if kind == "evaluation":
        network = create()
        batch = {"image": bytes_of(*target_size, 3),
                 "label": bytes_of(*(scored_size or setting.scored_size)),
                 "valid": jax.ShapeDtypeStruct((batch_size,), bool)}
        step = make_eval_step(model=network, flip=setting.mirrored)
        return Workload(step, network, None, batch)
    network, adapts = create(**setting.trained), kind == "adaptation"
    tx = setting.optimizer(network, adapts, **({"backbone_rate": 0.0} if frozen else {}))
    make = setting.adaptation if adapts else setting.source
    batch = {"source_image": bytes_of(*source_size, 3), "source_label": bytes_of(*source_size)}
    if adapts:
        batch["target_image"] = bytes_of(*target_size, 3)
    step = make(model=network, tx=tx, accumulate_steps=accumulate_steps)
    return Workload(step, network, tx, batch, adapts and setting.with_teacher)


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
