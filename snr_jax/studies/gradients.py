"""The size of the gradients of the losses at a network, to choose their weights by."""

import itertools
import logging
from collections.abc import Callable

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from snr_jax.core import losses
from snr_jax.core.augment import to_network_input
from snr_jax.core.errors import UserError
from snr_jax.core.models.deeplab import Output
from snr_jax.core.steps import Batch, Term, Terms, View, view_gradients, within
from snr_jax.runs import experiment, network
from snr_jax.workdir import checkpoints

logger = logging.getLogger(__name__)


def gradient_norms(config: ConfigDict, checkpoint: str, batches: int) -> dict[str, float]:
    """Loss → norm of its gradient over all parameters, the mean of `batches` training batches.

    "cross_entropy" is the source's, the others are `losses.TARGET_LOSSES`, each at weight 1 and in
    training mode. Raises UserError for a configuration without a target, or of another network.
    """
    if not config.loss.target:
        raise UserError("the configuration has no target loss, and so reads no target images. Take "
                        "one that adapts, as configs/toy_uda.py")
    model, variables, _ = network.load_for(config, checkpoints.find(checkpoint))
    splits = experiment.open_splits(config)
    for line in experiment.describe(splits):
        logger.info(line)

    def norm(domain: str, terms: Callable[[Output, Batch], Terms]) -> Callable[[Batch], jax.Array]:
        def of_batch(batch: Batch) -> jax.Array:
            part = {"image": to_network_input(
                        batch[f"{domain}_image"], model.backbone.preprocessing),
                    "label": batch["source_label"]}
            if f"{domain}_extent" in batch:
                part["extent"] = batch[f"{domain}_extent"]
            gradients, _, _ = view_gradients(
                model, variables["params"], variables["batch_stats"], View(part, terms))
            return optax.global_norm(gradients)

        return jax.jit(of_batch)

    def cross_entropy(output: Output, part: Batch) -> Terms:
        return {"loss": Term(1.0, losses.cross_entropy(output.main, part["label"]))}

    def target_terms(loss: Callable) -> Callable[[Output, Batch], Terms]:
        def of_target(output: Output, part: Batch) -> Terms:
            is_image = within(part.get("extent"), output.main.shape[1:3])
            return {"loss": Term(1.0, loss(output.main, is_image))}

        return of_target

    norms = {"cross_entropy": norm("source", cross_entropy)} | {
        name: norm("target", target_terms(loss)) for name, loss in losses.TARGET_LOSSES.items()
    }
    found = [
        {name: float(of_batch(batch)) for name, of_batch in norms.items()}
        for batch in itertools.islice(experiment.batches(config, splits, 0), batches)
    ]
    return {name: float(np.mean([each[name] for each in found])) for name in norms}
