"""Self-training with a mean teacher and class mixing (DACS, arXiv 2007.08702): its step.

The teacher labels the target images. Half of the classes of each source image are pasted over a
target image, pixels and labels; the student learns from the source and from the mix.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from snr_jax.core import losses, mixing
from snr_jax.core.augment import augment
from snr_jax.core.models.deeplab import Output
from snr_jax.core.state import TrainState
from snr_jax.core.steps import (
    Batch,
    Metrics,
    Prepare,
    Step,
    Terms,
    apply_update,
    domain_gradients,
    prepared,
    source_terms,
)

TEACHER_MODES = ("train", "eval")
WEIGHTS = ("share", "pixel")
STATISTICS = ("own", "teacher")


def teacher_share(step: jax.Array, most: float) -> jax.Array:
    """What the teacher keeps of itself in update `step`, from 0: min(1 - 1 / (step + 1), most)."""
    return jnp.minimum(1 - 1 / (step + 1), most)


def _blend(share: jax.Array, teacher: dict, student: dict) -> dict:
    """share * teacher + (1 - share) * student, leaf by leaf; exact where the two are equal."""
    return jax.tree.map(lambda t, s: (s + share * (t - s)).astype(t.dtype), teacher, student)


def pixel_weights(
    sure: jax.Array, *, weight: str, rows_left_out: tuple[int, int], axis_name: str | None = None
) -> tuple[jax.Array, jax.Array]:
    """What each pseudo label counts, float [N,H,W], and the share of sure pixels in the batch.

    sure: bool [N,H,W], where the teacher is above the threshold. weight: "share" gives every pixel
    that share, "pixel" 1 where it is sure and 0 elsewhere. rows_left_out: at top and bottom, whose
    pixels count 0 (they enter the share).
    """
    share = sure.mean(dtype=float)
    share = lax.pmean(share, axis_name) if axis_name else share
    weights = jnp.broadcast_to(share, sure.shape) if weight == "share" else sure.astype(float)
    top, bottom = rows_left_out
    row = jnp.arange(sure.shape[1])
    inside = (row >= top) & (row < sure.shape[1] - bottom)
    return jnp.where(inside[:, None], weights, 0), share


def make_classmix_step(
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    lambda_target: float = 1.0,
    teacher_momentum: float = 0.99,
    teacher_mode: str = "train",
    threshold: float = 0.968,
    weight: str = "share",
    class_share: float = 0.5,
    rows_left_out: tuple[int, int] = (0, 0),
    statistics: str = "own",
    seed: int = 0,
    restitution_weight: float = 0.0,
    freeze_bn: bool = False,
    accumulate_steps: int = 1,
    prepare: Prepare = augment,
    strengthen: Prepare = mixing.strong_augment,
    choose_classes: Callable[..., jax.Array] = mixing.choose_classes,
    axis_name: str | None = None,
) -> Step:
    """step(state, batch) -> (state, metrics); the state has a teacher, the images one size.

    The loss is the source's cross-entropy + lambda_target * weighted cross-entropy on the mix. The
    source batch moves the running statistics, the mixed batch sees the moved ones and moves them
    again; the two gradients are added and make one update. After it the teacher becomes a *
    teacher + (1 - a) * student, a of `teacher_share`.

    teacher_mode: "train", as published: it sees the target batch's own statistics, which move its
    running ones. "eval": it sees its running statistics, a mean of the student's like its
    parameters. weight, rows_left_out: of `pixel_weights`. class_share: of `choose_classes`.
    statistics: whose running statistics the student is left with. "own", as published, are those
    of source and mix; the teacher's in mode "train" are of target images alone.
    strengthen: (key, mixed image, first_sample=) → the mix as the student sees it.
    """
    for name, value, legal in (
        ("teacher_mode", teacher_mode, TEACHER_MODES), ("weight", weight, WEIGHTS),
        ("statistics", statistics, STATISTICS),
    ):
        if value not in legal:
            raise ValueError(f"{name} is {value!r}; expected one of {', '.join(legal)}")
    moves = teacher_mode == "train" and not freeze_bn
    num_classes = model.num_classes

    def label_target(teacher: dict, image: jax.Array) -> tuple[jax.Array, jax.Array, dict]:
        """Pseudo labels, where they are sure, and the teacher's statistics."""
        output, moved = model.apply(teacher, image, train=moves, mutable=["batch_stats"])
        return *mixing.pseudo_label(output.main, threshold=threshold), moved["batch_stats"]

    def mixed(
        state: TrainState, batch: Batch, pseudo: jax.Array, weights: jax.Array
    ) -> Batch:
        """Image, label and weight of the mix."""
        source_label = batch["source_label"]
        choose = partial(choose_classes, num_classes=num_classes, share=class_share)
        chosen = prepared(choose, seed, state.step, 2, source_label, axis_name)
        pasted = mixing.paste_mask(source_label, chosen)
        image = jnp.where(pasted[..., None], batch["source_image"], batch["target_image"])
        image = prepared(strengthen, seed, state.step, 3, image, axis_name)
        label = jnp.where(pasted, source_label, pseudo)
        return {"image": image, "label": label, "weight": jnp.where(pasted, 1, weights)}

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        source_image, target_image = (
            prepared(prepare, seed, state.step, domain, batch[name], axis_name)
            for domain, name in enumerate(("source_image", "target_image"))
        )
        pseudo, sure, teacher_stats = label_target(state.teacher, target_image)
        weights, share = pixel_weights(
            sure, weight=weight, rows_left_out=rows_left_out, axis_name=axis_name)
        mix = mixed(state, batch, pseudo, weights)

        def of_source(output: Output, part: Batch) -> Terms:
            return source_terms(output, part["label"], 0.0, restitution_weight)

        def of_mix(output: Output, part: Batch) -> Terms:
            loss = losses.weighted_cross_entropy(output.main, part["label"], part["weight"])
            return {"loss_target": (lambda_target, loss)}

        options = {"train": not freeze_bn, "accumulate_steps": accumulate_steps,
                   "axis_name": axis_name}
        source = {"image": source_image, "label": batch["source_label"]}
        source_gradients, batch_stats, source_metrics = domain_gradients(
            model, state.params, state.batch_stats, source, of_source, **options
        )
        mix_gradients, batch_stats, mix_metrics = domain_gradients(
            model, state.params, batch_stats, mix, of_mix, **options
        )
        gradients = jax.tree.map(jnp.add, source_gradients, mix_gradients)
        after = apply_update(state, optimizer, gradients, batch_stats, axis_name)
        if axis_name:
            teacher_stats = lax.pmean(teacher_stats, axis_name)
        keep = teacher_share(state.step, teacher_momentum)
        teacher = {
            "params": _blend(keep, state.teacher["params"], after.params),
            "batch_stats": teacher_stats if teacher_mode == "train" or freeze_bn
            else _blend(keep, teacher_stats, after.batch_stats),
        }
        if statistics == "teacher":
            after = after.replace(batch_stats=teacher["batch_stats"])
        metrics = source_metrics | mix_metrics | {"sure_share": share}
        return after.replace(teacher=teacher), metrics

    return step
