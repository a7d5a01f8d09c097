"""The size of the losses' gradients, against those that JAX takes of the formula itself."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from snr_jax.config import arguments
from snr_jax.configs import gta2city_uda
from snr_jax.core import losses
from snr_jax.core.augment import to_network_input
from snr_jax.core.errors import UserError
from snr_jax.core.models.backbone import architecture
from snr_jax.core.models.create import create_model
from snr_jax.core.models.deeplab import DeepLab
from snr_jax.core.state import initial_variables
from snr_jax.runs import experiment
from snr_jax.studies.gradients import gradient_norms
from snr_jax.workdir import checkpoints
from tests.data.tiny_sets import write_cityscapes, write_gta5

TINY = {
    "model.stage_sizes": (1, 1, 1, 1), "model.width": 4, "source.size": (33, 65),
    "target.size": (33, 65), "batch_size": 2, "source.train_split": "all", "init_from": "",
    "model.dtype": "float32",
}  # fmt: skip


@pytest.fixture
def config(tmp_path):
    write_gta5(tmp_path)
    write_cityscapes(tmp_path, split="train", labels=False)
    write_cityscapes(tmp_path, split="val")
    config = gta2city_uda.get_config()
    config.update_from_flattened_dict(
        TINY | {"data.root": str(tmp_path), "source.val_split": "all"}
    )
    return config


def saved(path, config, **changed) -> tuple[DeepLab, dict]:
    model = create_model(**arguments.model_arguments(config, None) | changed)
    variables = jax.device_get(initial_variables(model, 3))
    checkpoints.save_variables(path, variables, {"model": architecture(model)})
    return model, variables


@pytest.mark.parametrize("padded", [False, True])
def test_norms(padded, config, tmp_path, monkeypatch):
    """padded: by scales below 1; what is no image of the target counts in no loss."""
    if padded:
        config.data.scale_range = (0.4, 0.8)
    monkeypatch.setattr(
        losses, "TARGET_LOSSES", {"maxsquare": losses.TARGET_LOSSES["maxsquare"]}
    )
    model, variables = saved(tmp_path / "network", config)
    found = gradient_norms(config, str(tmp_path / "network"), 2)

    def cross_entropy(logits, label):  # over the labelled pixels
        chosen = jnp.take_along_axis(
            jax.nn.log_softmax(logits), jnp.minimum(label, 18)[..., None].astype(int), -1
        )[..., 0]
        return -jnp.mean(chosen, where=label != 255)

    def max_square(logits, extent):  # over pixels and classes
        rows, columns = (jnp.arange(side) for side in logits.shape[1:3])
        is_image = ((rows[:, None] < extent[:, 0, None, None])
                    & (columns < extent[:, 1, None, None]))  # [N,H,W]
        return -jnp.mean(jax.nn.softmax(logits) ** 2, where=is_image[..., None]) / 2

    @jax.jit
    def of_batch(batch):
        def norm(image, loss, told):
            def of(params):
                output, _ = model.apply(
                    {**variables, "params": params}, to_network_input(image), train=True,
                    mutable=["batch_stats"],
                )
                return loss(output.main, told)

            return optax.global_norm(jax.grad(of)(variables["params"]))

        extent = batch.get("target_extent", jnp.array([[33, 65]]))
        return (norm(batch["source_image"], cross_entropy, batch["source_label"]),
                norm(batch["target_image"], max_square, extent))  # fmt: skip

    batches = experiment.batches(config, experiment.open_splits(config), 0)
    taken = [next(batches) for _ in range(2)]
    assert all(("target_extent" in batch) == padded for batch in taken)
    wanted = np.mean([of_batch(batch) for batch in taken], 0)
    np.testing.assert_allclose([found["cross_entropy"], found["maxsquare"]], wanted, rtol=1e-4)


def test_another_network_is_refused(config, tmp_path):
    """Of other classes, above all: labels that it does not know would count as nothing."""
    saved(tmp_path / "network", config, num_classes=13)
    with pytest.raises(UserError, match="num_classes 13 there, 19 here"):
        gradient_norms(config, str(tmp_path / "network"), 1)


def test_without_a_target_loss_there_is_nothing_to_measure(config, tmp_path):
    config.loss.target = ""
    with pytest.raises(UserError, match="no target loss"):
        gradient_norms(config, str(tmp_path / "network"), 1)
