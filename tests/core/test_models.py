"""The network: sizes, shapes, the SNR decomposition, precision, and which parameters count."""

from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from snr_jax.core.augment import MEAN_BGR
from snr_jax.core.models.backbone import architecture
from snr_jax.core.models.deeplab import RESNET, DeepLab
from snr_jax.core.models.snr import SNR
from snr_jax.core.state import variable_shapes
from tests.core.tiny import assert_trees_close, network, quick_jit, variables

IMAGE = np.random.default_rng(0).normal(0, 50, (2, 33, 49, 3)).astype(np.float32)


def count(tree) -> int:
    return sum(prod(leaf.shape) for leaf in jax.tree.leaves(tree))


# A gate is two 1x1 convolutions with bias, C to C/16 and back.
GATES = sum(2 * c * (c // 16) + c // 16 + c for c in (256, 512, 1024))


@pytest.mark.parametrize(("variant", "expected"), [
    ("none", 44_601_560), ("in", 44_601_560 + 2 * (256 + 512 + 1024)), ("snr", 44_779_080),
])
def test_parameter_counts_of_resnet101(variant, expected):
    assert count(variable_shapes(DeepLab(norm_restitution=variant))["params"]) == expected


def test_snr_adds_norms_and_gates():
    assert 2 * (256 + 512 + 1024) + GATES == 44_779_080 - 44_601_560


@pytest.mark.parametrize(("height", "width", "stride8"), [
    (720, 1280, (91, 161)), (512, 1024, (65, 129)), (640, 1280, (81, 161)), (760, 1280, (96, 161)),
])
def test_shapes_of_the_published_inputs(height, width, stride8):
    model = DeepLab()
    image = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
    output = jax.eval_shape(lambda v, x: model.apply(v, x, train=False),
                            variable_shapes(model), image)
    assert output.main.shape == output.aux.shape == (1, height, width, 19)
    stride4 = (height // 4 + 1, width // 4 + 1)
    assert [block.restituted.shape for block in output.snr] == [
        (1, *stride4, 256), (1, *stride8, 512), (1, *stride8, 1024)]
    assert [block.gate.shape[1:] for block in output.snr] == [(1, 1, c) for c in (256, 512, 1024)]
    assert output.restitution == ()


@pytest.fixture(scope="module")
def snr_features():
    features = jnp.asarray(np.random.default_rng(0).gamma(2, 3, (2, 5, 6, 32)), jnp.float32)
    block = SNR()
    params = block.init(jax.random.key(0), features)["params"]
    random = np.random.default_rng(1)
    params = jax.tree.map(lambda p: p + random.normal(0, 0.3, p.shape).astype(np.float32), params)
    return features, params, block.apply({"params": params}, features)


def test_snr_decomposes_its_input(snr_features):
    features, _, parts = snr_features
    total = parts.normalized + parts.relevant + parts.irrelevant
    np.testing.assert_allclose(total, features, atol=1e-5)
    residual = features - parts.normalized
    np.testing.assert_allclose(parts.relevant, parts.gate * residual, atol=1e-5)
    np.testing.assert_allclose(parts.irrelevant, (1 - parts.gate) * residual, atol=1e-5)


def test_snr_from_its_definition(snr_features):
    features, params, parts = snr_features
    features = np.asarray(features, np.float64)
    params = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
    mean, var = features.mean((1, 2), keepdims=True), features.var((1, 2), keepdims=True)
    normalized = (features - mean) / np.sqrt(var + 1e-5)
    normalized = normalized * params["norm"]["scale"] + params["norm"]["bias"]
    pooled = (features - normalized).mean((1, 2))
    assert params["fc1"]["kernel"].shape == (1, 1, 32, 2)
    hidden = np.maximum(pooled @ params["fc1"]["kernel"][0, 0] + params["fc1"]["bias"], 0)
    gate = 1 / (1 + np.exp(-(hidden @ params["fc2"]["kernel"][0, 0] + params["fc2"]["bias"])))
    np.testing.assert_allclose(parts.normalized, normalized, atol=1e-5)
    np.testing.assert_allclose(parts.gate[:, 0, 0], gate, atol=1e-5)
    restituted = normalized + gate[:, None, None] * (features - normalized)
    np.testing.assert_allclose(parts.restituted, restituted, atol=1e-5)


def test_instance_norm_alone_has_no_gate():
    features = jnp.asarray(IMAGE[..., :3])
    block = SNR(restitution=False)
    params = block.init(jax.random.key(0), features)["params"]
    assert set(flatten_dict(params, sep="/")) == {"norm/scale", "norm/bias"}
    parts = block.apply({"params": params}, features)
    np.testing.assert_array_equal(parts.restituted, parts.normalized)
    assert not np.asarray(parts.gate).any()
    shapes = variable_shapes(network(norm_restitution="in"))["params"]
    assert list(shapes["snr1"]) == ["norm"] and "snr4" not in shapes
    assert not any(name.startswith("snr") for name in
                   variable_shapes(network(norm_restitution="none"))["params"])


def run(model, values, *, train=True):
    """Outputs, moved statistics and the gradients of a sum over both heads."""
    weights = np.random.default_rng(5).normal(size=(*IMAGE.shape[:3], 3)).astype(np.float32)

    def total(params):
        output, updated = model.apply({**values, "params": params}, IMAGE, train=train,
                                      mutable=["batch_stats"])
        value = ((output.main + output.aux) * weights).mean()
        value += sum((x**2).mean() for x in jax.tree.leaves(output.restitution))
        return value, (output, updated["batch_stats"])

    gradients, (output, stats) = quick_jit(jax.grad(total, has_aux=True))(values["params"])
    return output, stats, gradients


@pytest.fixture(scope="module")
def float32_run():
    model = network(restitution_heads=True)
    values = variables(model)
    return values, *run(model, values)


def test_two_branches_of_four_have_gradients(float32_run):
    _, _, _, gradients = float32_run
    for path, gradient in flatten_dict(gradients, sep="/").items():
        unused = path.startswith(("layer5", "layer6")) and path.split("/")[1][-1] in "23"
        assert np.asarray(gradient).any() == (not unused), path


def test_all_statistics_move(float32_run):
    values, _, stats, _ = float32_run
    before = flatten_dict(values["batch_stats"], sep="/")
    for path, after in flatten_dict(stats, sep="/").items():
        assert (np.asarray(after) != before[path]).all(), path


def test_restitution_logits_come_only_when_asked(float32_run):
    values, output, _, _ = float32_run
    assert len(output.restitution) == 3
    for block, logits, name in zip(output.snr, output.restitution, ("1", "2", "3")):
        classifier = values["params"]["restitution" + name]
        for part, found in zip((block.restituted, block.normalized, block.contaminated), logits):
            expected = np.asarray(part) @ classifier["kernel"][0, 0] + classifier["bias"]
            np.testing.assert_allclose(found, expected, atol=1e-3)
    assert not any(name.startswith("restitution") for name in variable_shapes(network())["params"])


def test_recomputing_changes_nothing(float32_run):
    values, output, stats, gradients = float32_run
    found, found_stats, found_gradients = run(
        network(restitution_heads=True, remat=True, atrous="space_to_batch"), values)
    np.testing.assert_allclose(found.main, output.main, rtol=1e-3, atol=1e-4)
    assert_trees_close(found_stats, stats, rtol=1e-4, atol=1e-5)
    # Batch norm over few pixels amplifies the rounding of another order of summation.
    scale = max(np.abs(g).max() for g in jax.tree.leaves(gradients))
    assert_trees_close(found_gradients, gradients, rtol=1e-2, atol=1e-4 * float(scale))


def test_bfloat16_keeps_parameters_statistics_and_logits_in_float32(float32_run):
    values, output, stats, _ = float32_run
    model = network(restitution_heads=True, dtype=jnp.bfloat16)
    shapes = variable_shapes(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    found, found_stats, found_gradients = run(model, values)
    for tree in (found.main, found.aux, found.restitution, found_stats, found_gradients):
        assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {jnp.dtype("float32")}
    assert found.snr[0].restituted.dtype == jnp.bfloat16  # it does compute in half precision
    error = np.abs(found.main - output.main)
    assert 0 < error.mean() < 0.05 * float(np.abs(output.main).mean())
    for path, expected in flatten_dict(stats, sep="/").items():
        actual = flatten_dict(found_stats, sep="/")[path]
        assert np.abs(actual - expected).mean() < 0.05 * np.abs(expected).mean() + 0.02, path


def test_exposure_sees_an_image_in_any_light():
    """What is half as bright gives the same logits, each image of a batch for itself."""
    dark = np.array(IMAGE)
    dark[0] = (dark[0] + np.array(MEAN_BGR)) / 2 - np.array(MEAN_BGR)
    model = network(norm_restitution="none")
    values = variables(model)

    def logits(model: DeepLab, image: np.ndarray) -> np.ndarray:
        apply = quick_jit(lambda x: model.apply(values, x, train=False).main)
        return np.asarray(apply(image))

    exposed = model.clone(exposure=True)
    np.testing.assert_allclose(logits(exposed, dark), logits(exposed, IMAGE), rtol=1e-3, atol=1e-2)
    assert np.abs(logits(model, dark)[0] - logits(model, IMAGE)[0]).max() > 1e-2
    # By hand: to the brightness that is subtracted, and white at most.
    image = IMAGE + np.array(MEAN_BGR)
    image = np.minimum(image * np.mean(MEAN_BGR) / image.mean((1, 2, 3), keepdims=True), 255)
    by_hand = (image - np.array(MEAN_BGR)).astype(np.float32)
    np.testing.assert_allclose(logits(exposed, IMAGE), logits(model, by_hand), rtol=1e-3, atol=1e-2)


def test_logits_of_another_size():
    model = network(norm_restitution="none")
    values = variables(model)
    small, large = (quick_jit(lambda x, size=size: model.apply(
        values, x, train=False, output_size=size).main)(IMAGE) for size in (None, (65, 97)))
    assert small.shape == (2, 33, 49, 3) and large.shape == (2, 65, 97, 3)
    # Twice the intervals: every second sample is the same place of the stride-8 map.
    np.testing.assert_allclose(large[:, ::2, ::2], small, rtol=1e-3, atol=1e-4)


def test_architecture_is_checked():
    assert architecture(network(head_branches=4))["head_branches"] == 4
    for wrong in ({"head_branches": 3}, {"norm_restitution": "bn"}, {"stride_in": "conv3"},
                  {"exposure": "yes"}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} is .*expected one of"):
            RESNET.check({**architecture(network()), **wrong})
