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
  Evaluation: image uint8 [B,H,W,3], label uint8 [B,H',W'] at the size it is scored at,
  valid bool [B], False for the padding of a short last batch.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from snr_jax.core import losses
from snr_jax.core.augment import augment, to_network_input
from snr_jax.core.labels import IGNORE
from snr_jax.core.metrics import confusion_matrix
from snr_jax.core.models.deeplab import Output
from snr_jax.core.state import TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
Prepare = Callable[..., jax.Array]  # (key, image, first_sample=) → what the network sees
# name → (weight in the objective, sums of `loss_of` over the images at hand)
Terms = dict[str, tuple[float, Any]]


def loss_of(sums: Any) -> jax.Array:
    """A loss from its sums over the whole batch: their mean, or of `restitution_sums` the loss."""
    if isinstance(sums, losses.Sum):
        return losses.mean(sums)
    return sum(losses.dual_restitution(*map(losses.mean, block)) for block in sums)


def restitution_sums(blocks: Sequence[Sequence[jax.Array]]) -> list[list[losses.Sum]]:
    """Of the dual restitution loss, summed over the SNR blocks; each is logits of F~+, F~, F~-."""
    return [[losses.pixel_entropy(logits) for logits in block] for block in blocks]


def prepared(
    prepare: Prepare, seed: int, step: jax.Array, domain: int, image: jax.Array,
    axis_name: str | None,
) -> jax.Array:
    """Images as the network sees it: a function of (seed, step, domain) and its place alone."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), domain)
    first = lax.axis_index(axis_name) * image.shape[0] if axis_name else 0
    return prepare(key, image, first_sample=first)


def domain_gradients(
    model: nn.Module, params: dict, batch_stats: dict, batch: Batch,
    terms: Callable[[Output, Batch], Terms], *, train: bool, accumulate_steps: int,
    axis_name: str | None,
) -> tuple[dict, dict, Metrics]:
    """Gradients of the weighted loss terms of one domain, its statistics and its losses.

    batch: arrays [B,...]; "image" is what the network sees, `terms` gets the output and the batch.
    """

    def forward(params: dict, batch_stats: dict, part: Batch) -> tuple[Terms, dict]:
        output, updated = model.apply(
            {"params": params, "batch_stats": batch_stats}, part["image"], train=train,
            mutable=["batch_stats"],
        )
        return terms(output, part), updated["batch_stats"]

    def whole(found: Terms, others: Any = None) -> dict[str, Any]:
        """The sums of all replicas and, with those of the `others`, of all parts of the batch."""
        sums = {name: of_loss for name, (_, of_loss) in found.items()}
        sums = lax.psum(sums, axis_name) if axis_name else sums
        return sums if others is None else jax.tree.map(jnp.add, sums, others)

    @partial(jax.grad, has_aux=True)
    def gradient(
        params: dict, batch_stats: dict, part: Batch, others: Any = None
    ) -> tuple[jax.Array, tuple[dict, Metrics]]:
        found, batch_stats = forward(params, batch_stats, part)
        values = {name: loss_of(sums) for name, sums in whole(found, others).items()}
        total = sum(found[name][0] * loss for name, loss in values.items())
        return total, (batch_stats, values)

    if accumulate_steps == 1:
        gradients, (batch_stats, values) = gradient(params, batch_stats, batch)
        return gradients, batch_stats, values

    def sums_of(_: None, part: Batch) -> tuple[None, dict[str, Any]]:
        return None, whole(forward(params, batch_stats, part)[0])

    def add(carry: tuple[dict, dict], part: tuple[Batch, Any]) -> tuple[tuple[dict, dict], Metrics]:
        gradients, (moved, values) = gradient(params, carry[1], *part)
        return (jax.tree.map(jnp.add, carry[0], gradients), moved), values

    parts = jax.tree.map(lambda x: x.reshape(accumulate_steps, -1, *x.shape[1:]), batch)
    _, sums = lax.scan(sums_of, None, parts)
    others = jax.tree.map(lambda x: x.sum(0) - x, sums)
    nothing = jax.tree.map(jnp.zeros_like, params)
    (gradients, batch_stats), values = lax.scan(add, (nothing, batch_stats), (parts, others))
    return gradients, batch_stats, jax.tree.map(lambda x: x[-1], values)


def source_terms(
    output: Output, label: jax.Array, lambda_seg: float, restitution_weight: float
) -> Terms:
    """The losses of a labelled batch; a weight of 0 leaves its loss out."""
    terms = {"loss_source": (1.0, losses.cross_entropy(output.main, label))}
    if lambda_seg:
        terms["loss_source_aux"] = (lambda_seg, losses.cross_entropy(output.aux, label))
    if restitution_weight:
        terms["loss_restitution"] = (restitution_weight, restitution_sums(output.restitution))
    return terms


def apply_update(
    state: TrainState, optimizer: optax.GradientTransformation, gradients: dict,
    batch_stats: dict, axis_name: str | None,
) -> TrainState:
    if axis_name:
        gradients, batch_stats = lax.pmean((gradients, batch_stats), axis_name)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return state.replace(
        step=state.step + 1, params=params, batch_stats=batch_stats, opt_state=opt_state
    )


def make_source_step(
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    seed: int = 0,
    lambda_seg: float = 0.0,
    restitution_weight: float = 0.0,
    freeze_bn: bool = False,
    accumulate_steps: int = 1,
    prepare: Prepare = augment,
    axis_name: str | None = None,
) -> Step:
    """Source only (domain generalisation): step(state, batch) -> (state, metrics).

    lambda_seg: weight of the auxiliary head's cross-entropy ("multi"), 0 leaves it out.
    restitution_weight: per SNR block; the model then needs `restitution_heads`.
    accumulate_steps: parts of the batch that run one after another; B a multiple of it.
    prepare: (key, image, first_sample=) → the image as the network sees it.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        image = prepared(prepare, seed, state.step, 0, batch["source_image"], axis_name)
        source = {"image": image, "label": batch["source_label"]}

        def terms(output: Output, part: Batch) -> Terms:
            return source_terms(output, part["label"], lambda_seg, restitution_weight)

        gradients, batch_stats, metrics = domain_gradients(
            model, state.params, state.batch_stats, source, terms, train=not freeze_bn,
            accumulate_steps=accumulate_steps, axis_name=axis_name,
        )
        return apply_update(state, optimizer, gradients, batch_stats, axis_name), metrics

    return step


def make_adaptation_step(
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    target_loss: Callable[[jax.Array], losses.Sum],
    lambda_target: float = 0.1,
    seed: int = 0,
    lambda_seg: float = 0.0,
    guidance_threshold: float = 0.95,
    restitution_weight: float = 0.0,
    freeze_bn: bool = False,
    accumulate_steps: int = 1,
    prepare: Prepare = augment,
    axis_name: str | None = None,
) -> Step:
    """Labelled source and unlabelled target: step(state, batch) -> (state, metrics).

    The source batch moves the running statistics, the target batch sees the moved ones and moves
    them again; the two gradients are added and make one update. target_loss: one of
    `losses.TARGET_LOSSES`, on the main logits. lambda_seg > 0 adds the auxiliary head's
    cross-entropy on the source and its multi-level guidance on the target.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        source_image, target_image = (
            prepared(prepare, seed, state.step, domain, batch[name], axis_name)
            for domain, name in enumerate(("source_image", "target_image"))
        )

        def of_source(output: Output, part: Batch) -> Terms:
            return source_terms(output, part["label"], lambda_seg, restitution_weight)

        def of_target(output: Output, part: Batch) -> Terms:
            terms = {"loss_target": (lambda_target, target_loss(output.main))}
            if lambda_seg:
                aux = losses.guidance(output.main, output.aux, threshold=guidance_threshold)
                terms["loss_target_aux"] = (lambda_seg * lambda_target, aux)
            return terms

        options = {"train": not freeze_bn, "accumulate_steps": accumulate_steps,
                   "axis_name": axis_name}
        source_gradients, batch_stats, source_metrics = domain_gradients(
            model, state.params, state.batch_stats,
            {"image": source_image, "label": batch["source_label"]}, of_source, **options
        )
        target_gradients, batch_stats, target_metrics = domain_gradients(
            model, state.params, batch_stats, {"image": target_image}, of_target, **options
        )
        gradients = jax.tree.map(jnp.add, source_gradients, target_gradients)
        state = apply_update(state, optimizer, gradients, batch_stats, axis_name)
        return state, source_metrics | target_metrics

    return step


def make_predict_step(
    *, model: nn.Module, flip: bool = False
) -> Callable[[dict, jax.Array, tuple[int, int]], jax.Array]:
    """predict(variables, image uint8 [B,H,W,3], size) → class probabilities [B,*size,C].

    The logits go from stride 8 straight to `size`. flip: averaged with the mirrored image's.
    """

    def predict(variables: dict, image: jax.Array, size: tuple[int, int]) -> jax.Array:
        def probabilities(image: jax.Array) -> jax.Array:
            image = to_network_input(image)
            output = model.apply(variables, image, train=False, output_size=size)
            return jax.nn.softmax(output.main)

        p = probabilities(image)
        return (p + probabilities(image[:, :, ::-1])[:, :, ::-1]) / 2 if flip else p

    return predict


def make_eval_step(
    *, model: nn.Module, flip: bool = False, axis_name: str | None = None
) -> Callable[[dict, Batch], jax.Array]:
    """step(variables, batch) → confusion matrix int32 [C,C] over the valid images."""
    predict = make_predict_step(model=model, flip=flip)

    def step(variables: dict, batch: Batch) -> jax.Array:
        label = jnp.where(batch["valid"][:, None, None], batch["label"], IGNORE)
        p = predict(variables, batch["image"], label.shape[1:])
        confusion = confusion_matrix(label, p.argmax(-1), model.num_classes)
        return lax.psum(confusion, axis_name) if axis_name else confusion

    return step
