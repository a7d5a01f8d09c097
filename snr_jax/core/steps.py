"""The compiled steps. Each is written for one replica with an optional mapped axis.

Every replica computes the losses of the whole batch from the sums of all replicas. The transpose
of a sum over the axis is a sum over it again, so each replica's gradient is that of its own part
times the number of replicas, and the gradient of the whole is their mean.

Batches (numpy or device arrays):
  source_image uint8 [B,H,W,3] RGB, source_label uint8 [B,H,W] trainIds with 255 ignored,
  target_image uint8 [B,h,w,3]; domains may differ in size. Both are mirrored already: the mirror
  comes before the resizing of the labels. The step blurs and subtracts the mean.
  Evaluation: image uint8 [B,H,W,3], label uint8 [B,H',W'] at the size it is scored at,
  valid bool [B], False for the padding of a short last batch.
"""

from collections.abc import Callable, Sequence

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
# name → (weight in the objective, loss)
Terms = dict[str, tuple[float, jax.Array]]


def whole_mean(loss: losses.Sum, axis_name: str | None) -> jax.Array:
    """The loss of the whole batch, the same on every replica."""
    return losses.mean(lax.psum(loss, axis_name) if axis_name else loss)


def restitution_loss(
    blocks: Sequence[tuple[jax.Array, jax.Array, jax.Array]], axis_name: str | None
) -> jax.Array:
    """Sum over the SNR blocks of the dual restitution loss of the whole batch."""
    means = ([whole_mean(losses.pixel_entropy(x), axis_name) for x in block] for block in blocks)
    return sum(losses.dual_restitution(*block) for block in means)


def _prepared(
    prepare: Prepare, seed: int, step: jax.Array, domain: int, image: jax.Array,
    axis_name: str | None,
) -> jax.Array:
    """Images as the network sees it: a function of (seed, step, domain) and its place alone."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), domain)
    first = lax.axis_index(axis_name) * image.shape[0] if axis_name else 0
    return prepare(key, image, first_sample=first)


def _domain_gradients(
    model: nn.Module, params: dict, batch_stats: dict, image: jax.Array,
    terms: Callable[[Output], Terms], train: bool,
) -> tuple[dict, dict, Metrics]:
    """Forward in one domain, and the gradients of its weighted loss terms."""

    def objective(params: dict) -> tuple[jax.Array, tuple[dict, Metrics]]:
        output, updated = model.apply(
            {"params": params, "batch_stats": batch_stats}, image, train=train,
            mutable=["batch_stats"],
        )
        weighted = terms(output)
        total = sum(weight * loss for weight, loss in weighted.values())
        values = {name: loss for name, (_, loss) in weighted.items()}
        return total, (updated["batch_stats"], values)

    gradients, (batch_stats, values) = jax.grad(objective, has_aux=True)(params)
    return gradients, batch_stats, values


def _source_terms(
    output: Output, label: jax.Array, lambda_seg: float, restitution_weight: float,
    axis_name: str | None,
) -> Terms:
    loss = whole_mean(losses.cross_entropy(output.main, label), axis_name)
    terms = {"loss_source": (1.0, loss)}
    if lambda_seg:
        aux = whole_mean(losses.cross_entropy(output.aux, label), axis_name)
        terms["loss_source_aux"] = (lambda_seg, aux)
    if restitution_weight:
        loss = restitution_loss(output.restitution, axis_name)
        terms["loss_restitution"] = (restitution_weight, loss)
    return terms


def _apply_update(
    state: TrainState, optimizer: optax.GradientTransformation, gradients: dict,
    batch_stats: dict, axis_name: str | None,
) -> TrainState:
    if axis_name:
        gradients, batch_stats = lax.pmean((gradients, batch_stats), axis_name)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, batch_stats, opt_state)


def make_source_step(
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    seed: int = 0,
    lambda_seg: float = 0.0,
    restitution_weight: float = 0.0,
    freeze_bn: bool = False,
    prepare: Prepare = augment,
    axis_name: str | None = None,
) -> Step:
    """Source only (domain generalisation): step(state, batch) -> (state, metrics).

    lambda_seg: weight of the auxiliary head's cross-entropy ("multi"), 0 leaves it out.
    restitution_weight: per SNR block; the model then needs `restitution_heads`.
    prepare: (key, image, first_sample=) → the image as the network sees it.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        image = _prepared(prepare, seed, state.step, 0, batch["source_image"], axis_name)

        def terms(output: Output) -> Terms:
            label = batch["source_label"]
            return _source_terms(output, label, lambda_seg, restitution_weight, axis_name)

        gradients, batch_stats, metrics = _domain_gradients(
            model, state.params, state.batch_stats, image, terms, not freeze_bn
        )
        return _apply_update(state, optimizer, gradients, batch_stats, axis_name), metrics

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
            _prepared(prepare, seed, state.step, domain, batch[name], axis_name)
            for domain, name in enumerate(("source_image", "target_image"))
        )

        def source_terms(output: Output) -> Terms:
            label = batch["source_label"]
            return _source_terms(output, label, lambda_seg, restitution_weight, axis_name)

        def target_terms(output: Output) -> Terms:
            loss = whole_mean(target_loss(output.main), axis_name)
            terms = {"loss_target": (lambda_target, loss)}
            if lambda_seg:
                aux = losses.guidance(output.main, output.aux, threshold=guidance_threshold)
                terms["loss_target_aux"] = (
                    lambda_seg * lambda_target, whole_mean(aux, axis_name))
            return terms

        source_gradients, batch_stats, source_metrics = _domain_gradients(
            model, state.params, state.batch_stats, source_image, source_terms, not freeze_bn
        )
        target_gradients, batch_stats, target_metrics = _domain_gradients(
            model, state.params, batch_stats, target_image, target_terms, not freeze_bn
        )
        gradients = jax.tree.map(jnp.add, source_gradients, target_gradients)
        state = _apply_update(state, optimizer, gradients, batch_stats, axis_name)
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
