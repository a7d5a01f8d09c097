"""The transformer's segmenter: sizes, SNR on patches alone, precision; its numbers are parity's."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from snr_jax.core.augment import RGB_NORMALIZED, to_network_input
from snr_jax.core.models import dinov2
from snr_jax.core.models.backbone import architecture
from snr_jax.core.models.light_head import DINOV2, ViTSegmenter
from snr_jax.core.models.snr import SNR
from snr_jax.core.state import initial_variables, variable_shapes
from tests.core.tiny import quick_jit

TINY = {"width": 16, "depth": 1, "heads": 2, "grid": 3}
IMAGE = np.random.default_rng(0).normal(size=(2, 28, 42, 3)).astype(np.float32)


def encoder(**changes):
    """A tiny transformer and its parameters, with tokens and layer scales that matter."""
    model = dinov2.DINOv2(**{**TINY, **changes})
    random = np.random.default_rng(1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGE)
    return model, jax.tree.map(
        lambda x: random.normal(0, 0.3, x.shape).astype(np.float32), shapes["params"])


def apply(model, params, **options):
    return quick_jit(model.apply)({"params": params}, IMAGE, **options)


@pytest.mark.parametrize(("size", "count"), [("s", 22.1), ("b", 86.6), ("l", 304.4)])
def test_published_sizes(size, count):
    """Millions of parameters of the backbone, and the positions of images of 518x518."""
    shape = dinov2.SIZES[size]
    shapes = variable_shapes(ViTSegmenter(**shape | {"depth": 1}))  # all blocks are alike
    flat = flatten_dict(shapes["params"]["encoder"], sep="/")
    total = sum(x.size * (shape["depth"] if path.startswith("blocks_0/") else 1)
                for path, x in flat.items())
    assert total == pytest.approx(1e6 * count, abs=5e4)
    assert flat["pos_embed"].shape == (1, 1 + (518 // 14) ** 2, shape["width"])
    assert shape["width"] == 64 * shape["heads"]
    assert shapes["batch_stats"] == {}


def test_preprocessing():
    image = np.array([[[[255, 0, 51]]]], np.uint8)
    red, green, blue = (1 - 0.485) / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225
    seen = to_network_input(image, RGB_NORMALIZED)[0, 0, 0]
    np.testing.assert_allclose(seen, [red, green, blue], rtol=1e-5)


def test_snr_restitutes_the_patches_alone():
    """Of what a block gives; class token and registers go on as they are."""
    model, params = encoder(snr_after=(0,), registers=4)
    output = apply(model, params)
    (features, made), = output.snr
    expected = SNR().apply({"params": params["snr_0"]}, features)
    np.testing.assert_allclose(made.restituted, expected.restituted, atol=1e-5)
    assert features.shape == (2, 2, 3, 16)
    plain = apply(model.clone(snr_after=()), params)
    # No block after it mixes the tokens.
    np.testing.assert_allclose(output.cls, plain.cls, atol=1e-6)
    norm = params["norm"]

    def after_norm(x):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * norm["scale"] + norm["bias"]

    np.testing.assert_allclose(plain.patches, after_norm(np.asarray(features)), atol=1e-4)
    np.testing.assert_allclose(output.patches, after_norm(np.asarray(made.restituted)), atol=1e-4)


def test_snr_is_off_by_default_and_follows_the_blocks():
    def names(**options):
        params = variable_shapes(ViTSegmenter(**TINY, **options))["params"]
        return {name for name in {**params, **params["encoder"]} if "snr" in name or "rest" in name}

    assert names() == names(snr_after=(0,), norm_restitution="none") == set()
    assert names(snr_after=(0,), restitution_heads=True) == {"snr_0", "restitution_0"}
    alone = variable_shapes(ViTSegmenter(**TINY, snr_after=(0,), norm_restitution="in"))["params"]
    assert list(alone["encoder"]["snr_0"]) == ["norm"]


def test_a_masked_patch_is_not_seen():
    """Its pixels change nothing; unmasked, they do."""
    model, params = encoder()
    mask = np.zeros((2, 2, 3), bool)
    mask[:, 0, 1] = True
    other = IMAGE.copy()
    other[:, :14, 14:28] += 1
    run = quick_jit(partial(model.apply, {"params": params}))
    np.testing.assert_array_equal(run(IMAGE, mask).patches, run(other, mask).patches)
    assert np.abs(run(IMAGE, mask).patches - run(IMAGE, ~mask & mask).patches).max() > 0.1
    assert np.abs(run(IMAGE, ~mask & mask).patches - run(other, ~mask & mask).patches).max() > 0.1


@pytest.mark.parametrize(("size", "padded"), [((28, 42), True), ((98, 126), False)])
def test_cudnn_gets_a_multiple_of_64_tokens(monkeypatch, size, padded):
    """The last ones no other sees; gradients included. The library's own form stands for cuDNN."""
    library, seen = jax.nn.dot_product_attention, []

    def stand_in(query, key, value, *, implementation, **options):
        seen.append((implementation, query.shape[1], bool(options)))
        return library(query, key, value, **options)

    image = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    sizes = {"depth": 2, "snr_after": (0,), "registers": 4 * padded}
    model, params = encoder(**sizes)

    @quick_jit
    def value_and_gradients(params):
        def total(params, form):
            tokens = model.clone(attention=form).apply({"params": params}, image)
            return jnp.square(tokens.patches + 1).mean() + jnp.square(tokens.cls + 1).mean()

        return [jax.value_and_grad(total)(params, form) for form in ("xla", "cudnn")]

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    expected, found = value_and_gradients(params)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found, expected)
    tokens = 1 + sizes["registers"] + size[0] * size[1] // 14**2
    assert set(seen) == {("xla", tokens, False), ("cudnn", 64, padded)}


def test_padding_is_unseen_in_float64():
    with jax.enable_x64(True):
        qkv = np.random.default_rng(0).normal(size=(3, 2, 6, 2, 8))
        found = dinov2.attend(*qkv, "cudnn", 5)[:, :5]
        np.testing.assert_allclose(found, dinov2.attend(*qkv[:, :, :5], "xla", 5), rtol=1e-12)
        assert found.dtype == np.float64


def test_half_precision_is_near_float32():
    model = ViTSegmenter(**TINY, num_classes=3, snr_after=(0,), restitution_heads=True)
    variables = initial_variables(model, 0)
    outputs = [quick_jit(partial(model.clone(dtype=dtype).apply, train=True, output_size=(9, 8)))(
        {"params": variables["params"]}, IMAGE) for dtype in (jnp.float32, jnp.bfloat16)]
    for output in outputs:
        assert output.main.dtype == jnp.float32 and output.main.shape == (2, 9, 8, 3)
        assert output.aux is None and output.restitution[0][0].shape == (2, 2, 3, 3)
    assert np.abs(outputs[0].main).max() > 0.1
    np.testing.assert_allclose(outputs[1].main, outputs[0].main, atol=0.05)


def test_initial_values():
    flat = flatten_dict(initial_variables(ViTSegmenter(width=64, heads=1), 0)["params"], sep="/")
    for path, deviation in (("head/out/kernel", 0.1), ("encoder/pos_embed", 0.02),
                            ("encoder/blocks_0/attn/qkv/kernel", 0.02), ("encoder/cls_token", 0.02),
                            ("head/upscale_0/kernel", 0.02)):
        assert flat[path].std() == pytest.approx(deviation, rel=0.3), path
    assert (flat["encoder/blocks_0/ls1/gamma"] == 1).all()
    assert (flat["encoder/norm/scale"] == 1).all() and not flat["encoder/norm/bias"].any()


def test_what_does_not_fit_is_refused():
    good = architecture(ViTSegmenter(**TINY, snr_after=(0,)))
    DINOV2.check(good)
    for change, words in (({"width": 18}, "width is 18; expected a multiple of 4 and of the 2"),
                          ({"heads": 3}, "of the 3 heads"),
                          ({"snr_after": (0, 1)}, "snr_after has 1; expected numbers of blocks"),
                          ({"norm_restitution": "x"}, "expected one of none, in, snr")):
        with pytest.raises(ValueError, match=words):
            DINOV2.check(good | change)
    model, params = encoder()
    with pytest.raises(ValueError, match="image of 28x43: expected multiples of 14"):
        model.apply({"params": params}, np.zeros((1, 28, 43, 3), np.float32))
