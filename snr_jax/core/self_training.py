"""Self-training with a mean teacher and class mixing (DACS, arXiv 2007.08702): its step.

The teacher labels the target images. Half of the classes of each source image are pasted over a
target image, pixels and labels; the student learns from the source and from the mix: its loss is
the source's cross-entropy + lambda_target * weighted cross-entropy on the mix. After each update
the teacher becomes a * teacher + (1 - a) * student, a of `teacher_share`.

With masked_weight > 0 it learns to label what it cannot see as well (MIC, arXiv 2212.01322): +
masked_weight * weighted cross-entropy on the target images, in the strong colours of a mix and
masked, against the same pseudo labels.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from snr_jax.core import losses, mixing
from snr_jax.core.labels import IGNORE
from snr_jax.core.models.deeplab import Output
from snr_jax.core.state import TrainState
from snr_jax.core.steps import (
    Batch,
    Metrics,
    Prepare,
    Step,
    Stream,
    Term,
    Terms,
    View,
    inside,
    make_update,
    prepared,
    seen_by,
    source_terms,
    within,
)

TEACHER_MODES = ("train", "eval")
WEIGHTS = ("share", "pixel")
STATISTICS = ("own", "teacher")


def teacher_share(step: jax.Array, most: float, count: int = 1) -> jax.Array:
    """What the teacher keeps of itself in update `step`, from 0: min(1 - 1 / (step + count), most).

    count: what the first update counts as. 1 makes the teacher the student after it.
    """
    return jnp.minimum(1 - 1 / (step + count), most)


def _blend(share: jax.Array, teacher: dict, student: dict) -> dict:
    """share * teacher + (1 - share) * student, leaf by leaf; exact where the two are equal."""
    return jax.tree.map(lambda t, s: (s + share * (t - s)).astype(t.dtype), teacher, student)


def pixel_weights(
    sure: jax.Array, *, weight: str, rows_left_out: tuple[int, int],
    is_inside: jax.Array | None = None, is_image: jax.Array | None = None,
    axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """What each pseudo label counts, float [N,H,W], and the share of sure pixels in the batch.

    sure: bool [N,H,W], where the teacher is above the threshold. weight: "share" gives every pixel
    that share, "pixel" 1 where it is sure and 0 elsewhere. rows_left_out: at top and bottom, whose
    pixels count 0 (they enter the share). is_inside: bool [N,H,W], False for a rim that is left out
    in the same way. is_image: bool [N,H,W], False for padding, which counts 0 and does not enter
    the share. Each None where there is none.
    """
    if is_image is None:
        share = sure.mean(dtype=float)
        share = lax.pmean(share, axis_name) if axis_name else share
    else:
        sure &= is_image
        counts = jnp.stack([sure.sum(dtype=float), is_image.sum(dtype=float)])
        counts = lax.psum(counts, axis_name) if axis_name else counts
        share = counts[0] / jnp.maximum(counts[1], 1)
    weights = jnp.broadcast_to(share, sure.shape) if weight == "share" else sure.astype(float)
    top, bottom = rows_left_out
    row = jnp.arange(sure.shape[1])
    counted = ((row >= top) & (row < sure.shape[1] - bottom))[:, None]
    for more in (is_inside, is_image):
        counted = counted if more is None else counted & more
    return jnp.where(counted, weights, 0), share


def label_target(
    model: nn.Module, teacher: dict, image: jax.Array, *, threshold: float, weight: str,
    rows_left_out: tuple[int, int], train: bool, axis_name: str | None, flip: bool = False,
    extent: jax.Array | None = None, box: jax.Array | None = None,
) -> tuple[Batch, jax.Array, dict]:
    """Pseudo "label" and its "weight", the share of sure pixels, and the teacher's statistics.

    weight, rows_left_out: of `pixel_weights`. train: the images move the statistics. flip: by the
    mean of what the image and its mirror give. extent: the batch's target_extent; beyond it no
    pixel has a pseudo label. box: its target_inside; beyond it a pseudo label counts 0.
    """
    maps, stats = [], teacher["batch_stats"]
    for mirror in (slice(None), slice(None, None, -1))[: 1 + flip]:
        output, moved = model.apply({**teacher, "batch_stats": stats}, image[:, :, mirror],
                                    train=train, mutable=["batch_stats"])
        maps.append(output.main[:, :, mirror])
        stats = moved.get("batch_stats", {})
    label, sure = mixing.pseudo_label(*maps, threshold=threshold)
    is_image = within(extent, label.shape[1:])
    label = label if is_image is None else jnp.where(is_image, label, IGNORE)
    weights, share = pixel_weights(
        sure, weight=weight, rows_left_out=rows_left_out, is_image=is_image,
        is_inside=inside(box, label.shape[1:]), axis_name=axis_name)
    stats = lax.pmean(stats, axis_name) if axis_name else stats
    return {"label": label, "weight": weights}, share, stats


def paste(
    batch: Batch, pseudo: Batch, chosen: jax.Array, strengthen: Callable[[jax.Array], jax.Array]
) -> Batch:
    """Image, label and weight of the mix; a pasted pixel counts 1.

    pseudo: of `label_target`. chosen: of `choose_classes`. strengthen: mixed image → as it is seen.
    """
    pasted = mixing.paste_mask(batch["source_label"], chosen)
    image = jnp.where(pasted[..., None], batch["source_image"], batch["target_image"])
    return {"image": strengthen(image),
            "label": jnp.where(pasted, batch["source_label"], pseudo["label"]),
            "weight": jnp.where(pasted, 1, pseudo["weight"])}


def follow(
    state: TrainState, after: TrainState, stats: dict, *, momentum: float, count: int,
    blend_stats: bool, statistics: str,
) -> TrainState:
    """`after`, the student's update of `state`, with the teacher that follows it.

    stats: the teacher's. momentum, count: of `teacher_share`. blend_stats: they follow the
    student's too. statistics: "teacher" leaves the student with the teacher's.
    """
    keep = teacher_share(state.step, momentum, count)
    params = _blend(keep, state.teacher["params"], after.params)
    stats = _blend(keep, stats, after.batch_stats) if blend_stats else stats
    own = stats if statistics == "teacher" else after.batch_stats
    return after.replace(teacher={"params": params, "batch_stats": stats}, batch_stats=own)


def pseudo_terms(output: Output, part: Batch, *, name: str, weight: float) -> Terms:
    """The loss against labels of which each counts its own weight."""
    loss = losses.weighted_cross_entropy(output.main, part["label"], part["weight"])
    return {name: Term(weight, loss)}


def _refuse_unknown(**words: tuple[str, tuple[str, ...]]) -> None:
    """Raises ValueError for an option whose value is not one of its legal ones."""
    for name, (value, legal) in words.items():
        if value not in legal:
            raise ValueError(f"{name} is {value!r}; expected one of {', '.join(legal)}")


def make_classmix_step(
    *, model: nn.Module, tx: optax.GradientTransformation, lambda_target: float = 1.0,
    teacher_momentum: float = 0.99, teacher_count: int = 1, teacher_mode: str = "train",
    teacher_flip: bool = False, threshold: float = 0.968, weight: str = "share",
    class_share: float = 0.5, rows_left_out: tuple[int, int] = (0, 0), statistics: str = "own",
    masked_weight: float = 0.0, seed: int = 0, restitution_weight: float = 0.0,
    freeze_bn: bool = False, accumulate_steps: int = 1, prepare_source: Prepare | None = None,
    prepare_target: Prepare | None = None, strengthen: Prepare | None = None,
    choose_classes: Callable[..., jax.Array] = mixing.choose_classes,
    mask: Callable[..., Batch] = mixing.mask_blocks, axis_name: str | None = None,
) -> Step:
    """As `make_adaptation_step`, by class mixing; the state has a teacher, the images one size.

    teacher_momentum, teacher_count: of `teacher_share`. teacher_mode: "train", as published: it
    sees the target batch's own statistics, which move its running ones. "eval": it sees its running
    statistics, a mean of the student's like its parameters. teacher_flip: of `label_target`.
    weight, rows_left_out: of `pixel_weights`. class_share: of `choose_classes`. statistics: whose
    running statistics the student is left with. "own", as published, are those of source and mix;
    the teacher's in mode "train" are of target images alone. prepare_source, prepare_target: (key,
    image, first_sample=) → what student and teacher see. strengthen: the same of the mixed image,
    which is made of images as they are in the batch, and of the target image before it is masked;
    None: `mixing.strong_augment`. mask: what strengthen gives → a view's "image" and "mask" with
    parts hidden, as `mixing.mask_tokens`; unread where masked_weight is 0.
    """
    _refuse_unknown(teacher_mode=(teacher_mode, TEACHER_MODES), weight=(weight, WEIGHTS),
                    statistics=(statistics, STATISTICS))
    draw = partial(prepared, seed=seed, axis_name=axis_name)
    prepare_source, prepare_target = (
        seen_by(model, prepare) for prepare in (prepare_source, prepare_target))
    strengthen = seen_by(model, strengthen, mixing.strong_augment)
    label = partial(label_target, model, threshold=threshold, weight=weight, axis_name=axis_name,
                    rows_left_out=rows_left_out, flip=teacher_flip,
                    train=teacher_mode == "train" and not freeze_bn)
    choose = partial(choose_classes, num_classes=model.num_classes, share=class_share)
    of_source = partial(source_terms, restitution_weight=restitution_weight)
    of_mix = partial(pseudo_terms, name="loss_target", weight=lambda_target)
    of_masked = partial(pseudo_terms, name="loss_masked", weight=masked_weight)
    update = make_update(model=model, tx=tx, freeze_bn=freeze_bn,
                         accumulate_steps=accumulate_steps, axis_name=axis_name)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        image = draw(prepare_source, Stream.SOURCE_IMAGE, state.step, batch["source_image"])
        target = draw(prepare_target, Stream.TARGET_IMAGE, state.step, batch["target_image"])
        pseudo, share, teacher_stats = label(
            state.teacher, target, extent=batch.get("target_extent"),
            box=batch.get("target_inside"))
        chosen = draw(choose, Stream.CLASS_CHOICE, state.step, batch["source_label"])
        mix = paste(
            batch, pseudo, chosen, partial(draw, strengthen, Stream.MIX_COLORS, state.step))
        source = {"image": image, "label": batch["source_label"]}
        views = [View(source, of_source), View(mix, of_mix)]
        if masked_weight:
            seen = draw(strengthen, Stream.TARGET_COLORS, state.step, batch["target_image"])
            views.append(View(pseudo | draw(mask, Stream.MASK, state.step, seen), of_masked))
        after, metrics = update(state, views)
        after = follow(state, after, teacher_stats, momentum=teacher_momentum, count=teacher_count,
                       blend_stats=teacher_mode == "eval" and not freeze_bn, statistics=statistics)
        return after, metrics | {"sure_share": share}

    return step
