"""A network and batches small enough to compile and train in a second or two."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from snr_jax.core.models.batch_norm import BatchNorm
from snr_jax.core.models.deeplab import DeepLab, Output
from snr_jax.core.models.layers import Conv
from snr_jax.core.models.snr import SNR
from snr_jax.core.state import initial_variables
from tests.fast import OPTIONS

NUM_CLASSES = 3
# Compiling is nearly all of a test's time: a fifth of it without LLVM's optimisations.
quick_jit = partial(jax.jit, compiler_options=OPTIONS)


def network(**changes) -> DeepLab:
    arguments = {"num_classes": NUM_CLASSES, "stage_sizes": (1, 1, 1, 1), "width": 4}
    return DeepLab(**{**arguments, **changes})


class Probe(nn.Module):
    """A network of three layers, with all that the steps ask of one: compiles in no time."""

    num_classes: int = NUM_CLASSES
    bn_axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image, *, train, output_size=None):
        def classify(name):
            return Conv(self.num_classes, use_bias=True, dtype=self.dtype, name=name)

        x = BatchNorm(axis_name=self.bn_axis_name, name="bn")(image.astype(self.dtype), train)
        snr = SNR(reduction=1, name="snr1")(x)
        restitution = classify("restitution1")
        parts = tuple(map(restitution, (snr.restituted, snr.normalized, snr.contaminated)))
        main, aux = (classify(name)(snr.restituted) for name in ("main", "aux"))
        return Output(main, aux, (snr,), (parts,))


def variables(model, seed: int = 0) -> dict:
    """Values at which every layer matters: He kernels, norms away from 1 and 0."""
    random = np.random.default_rng(seed)
    flat = flatten_dict(initial_variables(model, seed), sep="/")
    for path, value in flat.items():
        leaf = path.rsplit("/", 1)[1]
        if path.endswith("fc1/bias"):
            value = np.full_like(value, 3)  # no ReLU of a gate is dead
        elif leaf == "kernel":
            value = value * np.float32(100 * np.sqrt(2 / np.prod(value.shape[:-1])))
        elif leaf in ("scale", "var"):
            value = random.uniform(0.5, 1.5, value.shape).astype(np.float32)
        elif leaf in ("bias", "mean"):
            value = random.normal(0, 0.1, value.shape).astype(np.float32)
        flat[path] = value
    return unflatten_dict(flat, sep="/")


def batch(size: int = 2, seed: int = 0) -> dict[str, np.ndarray]:
    """Source and target of different sizes; a third of the source's pixels are ignored."""
    random = np.random.default_rng(seed)
    label = random.integers(0, NUM_CLASSES, (size, 33, 49)).astype(np.uint8)
    label[random.random(label.shape) < 1 / 3] = 255
    return {
        "source_image": random.integers(0, 256, (size, 33, 49, 3), np.uint8),
        "source_label": label,
        "target_image": random.integers(0, 200, (size, 41, 33, 3), np.uint8),
    }


def assert_trees_close(actual, expected, **tolerance):
    actual, expected = (flatten_dict(tree, sep="/") for tree in (actual, expected))
    assert actual.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_allclose(actual[path], value, err_msg=path, **tolerance)
