"""The compiled steps. Each is written for one replica with an optional mapped axis.

Every replica computes the losses of the whole batch from the sums of all replicas. The transpose
of a sum over the axis is a sum over it again, so each replica's gradient is that of its own part
times the number of replicas, and the gradient of the whole is their mean.

With `accumulate_steps` > 1 a batch runs as so many parts, one after another. A first pass, without
gradients, adds the sums of all parts up; in the second each part's loss is that of the whole
batch, the sums of the other parts being constants, and the gradients are added. So the update is
that of the batch in one piece, but for batch norm: its statistics are each part's own, and the
running ones move at every part of the second pass.

Batches (numpy or device arrays):
  source_image uint8 [B,H,W,3] RGB, source_label uint8 [B,H,W] trainIds with 255 ignored,
  target_image uint8 [B,h,w,3]; domains may differ in size. Both are mirrored already: the mirror
  comes before the resizing of the labels. The step blurs and subtracts the mean.
  target_extent int32 [B,2], only where a target image may be smaller than [h,w]: the height and
  width that are image; what lies below or at the right of them is padding, of the mean colour.
  target_inside int32 [B,4], only where a rim of the whole image gets no pseudo label: first row and
  end, first column and end of what gets one.
  Evaluation: image uint8 [B,H,W,3], label uint8 [B,H',W'] at the size it is scored at,
  valid bool [B], False for the padding of a short last batch.
"""

from collections.abc import Callable, Sequence
from enum import IntEnum
from functools import partial, reduce
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from snr_jax.core import losses
from snr_jax.core.augment import augment, to_network_input
from snr_jax.core.labels import IGNORE
from snr_jax.core.metrics import count_confusion
from snr_jax.core.models.create import backbone_of
from snr_jax.core.models.deeplab import Output
from snr_jax.core.models.layers import interpolated
from snr_jax.core.state import TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
Prepare = Callable[..., jax.Array]  # (key, image, first_sample=) → what the network sees
Tally = Callable[[jax.Array, jax.Array], Any]  # labels [N,H,W], probabilities [N,H,W,C] → integers


class Stream(IntEnum):
    """What a step draws at random, each from a key of its own; the numbers enter the keys."""

    SOURCE_IMAGE = 0
    TARGET_IMAGE = 1
    CLASS_CHOICE = 2
    MIX_COLORS = 3
    TARGET_COLORS = 4
    MASK = 5


class Term(NamedTuple):
    """A loss of the objective: its weight, its sums over the images at hand, and sums → loss."""

    weight: float
    sums: losses.Sums
    finish: Callable[[losses.Sums], jax.Array] = losses.mean


Terms = dict[str, Term]  # by the names of the metrics


class View(NamedTuple):
    """What the network is trained on in one pass: arrays [B,...], and the terms of its output.

    batch: "image" is what the network sees, and "mask", where it is there, the tokens that are
    hidden from it; the rest is for `terms` alone.
    """

    batch: Batch
    terms: Callable[[Output, Batch], Terms]


def within(extent: jax.Array | None, size: tuple[int, int]) -> jax.Array | None:
    """Where an image is and not its padding. extent: target_extent [N,2] → bool [N,*size]."""
    if extent is None:
        return None
    rows, columns = (jnp.arange(side) < extent[:, i, None] for i, side in enumerate(size))
    return rows[:, :, None] & columns[:, None, :]


def inside(box: jax.Array | None, size: tuple[int, int]) -> jax.Array | None:
    """Where a target image may get a pseudo label. box: target_inside [N,4] → bool [N,*size]."""
    if box is None:
        return None
    rows, columns = (
        (jnp.arange(side) >= box[:, 2 * i, None]) & (jnp.arange(side) < box[:, 2 * i + 1, None])
        for i, side in enumerate(size))
    return rows[:, :, None] & columns[:, None, :]


def prepared(
    prepare: Prepare, stream: Stream, step: jax.Array, image: jax.Array, *, seed: int,
    axis_name: str | None,
) -> jax.Array:
    """Images as the network sees them: a function of (seed, step, stream) and the place alone."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), int(stream))
    first = lax.axis_index(axis_name) * image.shape[0] if axis_name else 0
    return prepare(key, image, first_sample=first)


def seen_by(
    model: nn.Module, prepare: Prepare | None, otherwise: Callable[..., jax.Array] = augment
) -> Prepare:
    """`prepare`; where there is none, `otherwise` as far as to what this network takes."""
    return prepare or partial(otherwise, preprocessing=backbone_of(model).preprocessing)


def view_gradients(
    model: nn.Module, params: dict, batch_stats: dict, view: View, *, train: bool = True,
    accumulate_steps: int = 1, axis_name: str | None = None,
) -> tuple[dict, dict, Metrics]:
    """Gradients of the weighted terms of a view, the statistics that it moved, and its losses."""

    def forward(params: dict, batch_stats: dict, part: Batch) -> tuple[Terms, dict]:
        mask = {"mask": part["mask"]} if "mask" in part else {}
        output, updated = model.apply(
            {"params": params, "batch_stats": batch_stats}, part["image"], train=train,
            mutable=["batch_stats"], **mask,
        )
        return view.terms(output, part), updated.get("batch_stats", {})

    def whole(terms: Terms, others: dict[str, losses.Sums] | None = None) -> dict[str, losses.Sums]:
        """The sums of all replicas and, with those of the `others`, of all parts of the batch."""
        sums = {name: term.sums for name, term in terms.items()}
        sums = lax.psum(sums, axis_name) if axis_name else sums
        return sums if others is None else jax.tree.map(jnp.add, sums, others)

    @partial(jax.grad, has_aux=True)
    def gradient(
        params: dict, batch_stats: dict, part: Batch, others: dict[str, losses.Sums] | None = None
    ) -> tuple[jax.Array, tuple[dict, Metrics]]:
        terms, batch_stats = forward(params, batch_stats, part)
        values = {name: terms[name].finish(s) for name, s in whole(terms, others).items()}
        total = sum(terms[name].weight * loss for name, loss in values.items())
        return total, (batch_stats, values)

    if accumulate_steps == 1:
        gradients, (batch_stats, values) = gradient(params, batch_stats, view.batch)
        return gradients, batch_stats, values

    def sums_of(_: None, part: Batch) -> tuple[None, dict[str, losses.Sums]]:
        return None, whole(forward(params, batch_stats, part)[0])

    def add(
        carry: tuple[dict, dict], part: tuple[Batch, dict[str, losses.Sums]]
    ) -> tuple[tuple[dict, dict], Metrics]:
        gradients, (moved, values) = gradient(params, carry[1], *part)
        return (jax.tree.map(jnp.add, carry[0], gradients), moved), values

    parts = jax.tree.map(lambda x: x.reshape(accumulate_steps, -1, *x.shape[1:]), view.batch)
    _, sums = lax.scan(sums_of, None, parts)
    others = jax.tree.map(lambda x: x.sum(0) - x, sums)
    nothing = jax.tree.map(jnp.zeros_like, params)
    (gradients, batch_stats), values = lax.scan(add, (nothing, batch_stats), (parts, others))
    return gradients, batch_stats, jax.tree.map(lambda x: x[-1], values)


def make_update(
    *, model: nn.Module, tx: optax.GradientTransformation, freeze_bn: bool, accumulate_steps: int,
    axis_name: str | None,
) -> Callable[[TrainState, Sequence[View]], tuple[TrainState, Metrics]]:
    """update(state, views) → (state, metrics): one update by the sum of the views' gradients.

    Each view sees the running statistics that the one before it has moved.
    """
    gradients_of = partial(view_gradients, model, train=not freeze_bn,
                           accumulate_steps=accumulate_steps, axis_name=axis_name)

    def update(state: TrainState, views: Sequence[View]) -> tuple[TrainState, Metrics]:
        batch_stats, found, metrics = state.batch_stats, [], {}
        for view in views:
            gradients, batch_stats, values = gradients_of(state.params, batch_stats, view)
            found.append(gradients)
            metrics |= values
        gradients = jax.tree.map(lambda *of_views: reduce(jnp.add, of_views), *found)
        if axis_name:
            gradients, batch_stats = lax.pmean((gradients, batch_stats), axis_name)
        updates, opt_state = tx.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return state.replace(step=state.step + 1, params=params, batch_stats=batch_stats,
                             opt_state=opt_state), metrics

    return update


def source_terms(
    output: Output, part: Batch, *, lambda_seg: float = 0.0, restitution_weight: float = 0.0
) -> Terms:
    """The losses of a labelled batch; a weight of 0 leaves its loss out."""
    label = part["label"]
    terms = {"loss_source": Term(1.0, losses.cross_entropy(output.main, label))}
    if lambda_seg:
        terms["loss_source_aux"] = Term(lambda_seg, losses.cross_entropy(output.aux, label))
    if restitution_weight:
        sums = losses.restitution_sums(output.restitution)
        terms["loss_restitution"] = Term(restitution_weight, sums, losses.restitution)
    return terms


def make_source_step(
    *,
    model: nn.Module,
    tx: optax.GradientTransformation,
    seed: int = 0,
    lambda_seg: float = 0.0,
    restitution_weight: float = 0.0,
    freeze_bn: bool = False,
    accumulate_steps: int = 1,
    prepare_source: Prepare | None = None,
    axis_name: str | None = None,
) -> Step:
    """Source only (domain generalisation): step(state, batch) -> (state, metrics), to be compiled.

    batch: "source_image" uint8 [B,H,W,3] RGB, "source_label" uint8 [B,H,W] trainIds, 255 ignored.
    metrics: the losses before the update, float [], by name. tx: any of Optax.
    lambda_seg: weight of the auxiliary head's cross-entropy ("multi"), 0 leaves it out.
    restitution_weight: per SNR block; the model then needs `restitution_heads`.
    accumulate_steps: parts of the batch that run one after another; B a multiple of it.
    prepare_source: (key, image, first_sample=) → the image as the network sees it; None: `augment`.
    """
    see = partial(prepared, seen_by(model, prepare_source), seed=seed, axis_name=axis_name)
    of_source = partial(
        source_terms, lambda_seg=lambda_seg, restitution_weight=restitution_weight)
    update = make_update(model=model, tx=tx, freeze_bn=freeze_bn,
                         accumulate_steps=accumulate_steps, axis_name=axis_name)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        image = see(Stream.SOURCE_IMAGE, state.step, batch["source_image"])
        source = {"image": image, "label": batch["source_label"]}
        return update(state, [View(source, of_source)])

    return step


def make_adaptation_step(
    *,
    model: nn.Module,
    tx: optax.GradientTransformation,
    target_loss: Callable[..., losses.Sum],
    lambda_target: float = 0.1,
    seed: int = 0,
    lambda_seg: float = 0.0,
    guidance_threshold: float = 0.95,
    restitution_weight: float = 0.0,
    freeze_bn: bool = False,
    accumulate_steps: int = 1,
    prepare_source: Prepare | None = None,
    prepare_target: Prepare | None = None,
    axis_name: str | None = None,
) -> Step:
    """Labelled source and unlabelled target: step(state, batch) -> (state, metrics).

    batch, metrics: as `make_source_step`, and "target_image" uint8 [B,h,w,3], of any size.
    The source batch moves the running statistics, the target batch sees the moved ones and moves
    them again; the two gradients are added and make one update. target_loss: one of
    `losses.TARGET_LOSSES`, on the main logits. lambda_seg > 0 adds the auxiliary head's
    cross-entropy on the source and its multi-level guidance on the target.
    """
    see = partial(prepared, seed=seed, axis_name=axis_name)
    prepare_source, prepare_target = (
        seen_by(model, prepare) for prepare in (prepare_source, prepare_target))
    of_source = partial(
        source_terms, lambda_seg=lambda_seg, restitution_weight=restitution_weight)
    update = make_update(model=model, tx=tx, freeze_bn=freeze_bn,
                         accumulate_steps=accumulate_steps, axis_name=axis_name)

    def of_target(output: Output, part: Batch) -> Terms:
        is_image = within(part.get("extent"), output.main.shape[1:3])
        padded = () if is_image is None else (is_image,)
        terms = {"loss_target": Term(lambda_target, target_loss(output.main, *padded))}
        if lambda_seg:
            aux = losses.guidance(
                output.main, output.aux, *padded, threshold=guidance_threshold)
            terms["loss_target_aux"] = Term(lambda_seg * lambda_target, aux)
        return terms

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        source_image = see(prepare_source, Stream.SOURCE_IMAGE, state.step, batch["source_image"])
        target_image = see(prepare_target, Stream.TARGET_IMAGE, state.step, batch["target_image"])
        source = {"image": source_image, "label": batch["source_label"]}
        target = {"image": target_image}
        if "target_extent" in batch:
            target["extent"] = batch["target_extent"]
        return update(state, [View(source, of_source), View(target, of_target)])

    return step


def make_predict_step(
    *, model: nn.Module, flip: bool = False
) -> Callable[[dict, jax.Array, tuple[int, int]], jax.Array]:
    """predict(variables, image uint8 [B,H,W,3], size) → class probabilities [B,*size,C].

    The logits go from the network's map straight to `size`. flip: averaged with the mirrored
    image's.
    """
    preprocessing = backbone_of(model).preprocessing

    def predict(variables: dict, image: jax.Array, size: tuple[int, int]) -> jax.Array:
        def probabilities(image: jax.Array) -> jax.Array:
            image = to_network_input(image, preprocessing)
            output = model.apply(variables, image, train=False, output_size=size)
            return jax.nn.softmax(output.main)

        p = probabilities(image)
        return (p + probabilities(image[:, :, ::-1])[:, :, ::-1]) / 2 if flip else p

    return predict


class Places(NamedTuple):
    """Where rows (or columns) of a label lie in a map of logits, as `layers.interpolation` says."""

    low: jax.Array  # int32 [n]
    high: jax.Array  # int32 [n]
    weight: jax.Array  # float [n], of `high`


class Window(NamedTuple):
    """Rows and columns of a label that are scored together."""

    rows: Places
    columns: Places
    mirrored: Places  # the same columns in the map of the mirrored image


def make_logits_step(*, model: nn.Module, flip: bool = False) -> Callable[..., list[jax.Array]]:
    """step(variables, batch) → the logits [B,h,w,C] of "image", of its network's map size.

    flip: and those of the mirrored image.
    """
    known = backbone_of(model)

    def step(variables: dict, batch: Batch) -> list[jax.Array]:
        image = batch["image"]
        size = known.map_size(image.shape[1:3])
        return [
            model.apply(variables, to_network_input(x, known.preprocessing), train=False,
                        output_size=size).main
            for x in ([image, image[:, :, ::-1]] if flip else [image])
        ]

    return step


def make_window_step(
    *, tally: Tally = count_confusion, axis_name: str | None = None
) -> Callable[..., Any]:
    """step(maps, batch, window) → what `tally` counts of "label" [B,rows,columns].

    What `make_eval_step` counts at a label's own size, a window at a time: one program for labels
    of every size. maps: of `make_logits_step`.
    """

    def step(maps: list[jax.Array], batch: Batch, window: Window) -> Any:
        p = [
            jax.nn.softmax(interpolated(interpolated(x, 1, *window.rows), 2, *columns))
            for x, columns in zip(maps, (window.columns, window.mirrored))
        ]
        p = (p[0] + p[1]) / 2 if len(p) > 1 else p[0]
        counts = tally(batch["label"], p)
        return lax.psum(counts, axis_name) if axis_name else counts

    return step


def make_eval_step(
    *, model: nn.Module, flip: bool = False, tally: Tally = count_confusion,
    axis_name: str | None = None,
) -> Callable[[dict, Batch], Any]:
    """step(variables, batch) → what `tally` counts of the valid images, of all replicas.

    By default their confusion matrix int32 [C,C]; rows are labels. batch: "image" uint8 [B,H,W,3]
    RGB, "label" uint8 [B,H',W'] trainIds with 255 ignored, at the size that is scored, "valid"
    bool [B]. flip: averaged with the mirrored image's prediction.
    """
    predict = make_predict_step(model=model, flip=flip)

    def step(variables: dict, batch: Batch) -> Any:
        label = jnp.where(batch["valid"][:, None, None], batch["label"], IGNORE)
        counts = tally(label, predict(variables, batch["image"], label.shape[1:]))
        return lax.psum(counts, axis_name) if axis_name else counts

    return step
