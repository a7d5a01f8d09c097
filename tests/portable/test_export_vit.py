"""Export of a vision transformer: what both forms of file compute, and that they have one size."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snr_jax.core.errors import UserError
from snr_jax.core.models.backbone import architecture
from snr_jax.core.models.light_head import ViTSegmenter
from snr_jax.core.state import initial_variables
from snr_jax.portable import program, verification
from snr_jax.toy.styles import draw_pair
from snr_jax.workdir import checkpoints
from tests.core.tiny import quick_jit

# Layer norm over fewer channels than the head then has, 16, is no better than 1e-4 in float32.
TINY = {"width": 64, "depth": 2, "heads": 2, "grid": 5}
CASES = {  # network, and an image's height and width; beside it what the encoder sees
    "plain": ({}, (65, 97)),  # 70x98
    "registers": ({"registers": 4, "snr_after": (0,)}, (65, 97)),
    "norm": ({"snr_after": (0,), "norm_restitution": "in"}, (38, 97)),  # 28x98
    "none": ({"snr_after": (1,), "norm_restitution": "none"}, (66, 66)),  # 70x70: the grid's own
}


def create(name: str) -> tuple[ViTSegmenter, dict, np.ndarray]:
    """Network, variables that all matter, and a street as uint8 [1,H,W,3]."""
    changes, size = CASES[name]
    rng = np.random.default_rng(1)
    model = ViTSegmenter(**TINY, **changes)

    def varied(path, x):
        kind = path[-1].key
        if kind == "kernel":
            return np.float32(rng.standard_normal(x.shape) / np.sqrt(np.prod(x.shape[:-1])))
        if kind in ("scale", "gamma"):
            return rng.uniform(0.6, 1.4, x.shape).astype(np.float32)
        return np.float32(rng.normal(0, 0.3, x.shape))

    variables = jax.tree_util.tree_map_with_path(varied, initial_variables(model, 0))
    return model, variables, draw_pair(7, 0, *size, "source")[0][None]


def expected(model: ViTSegmenter, variables: dict, image: np.ndarray) -> np.ndarray:
    """Logits by JAX of an image prepared by numpy, in float64 until it is."""
    x = (image / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    return np.asarray(quick_jit(
        lambda v, x: model.apply(v, x, train=False).main)(variables, np.float32(x)))


def assert_same(found: dict, logits: np.ndarray) -> None:
    limit = 1e-5 * np.abs(logits).max()
    assert len(np.unique(logits.argmax(-1))) > 3 and np.ptp(logits) > 3  # no trifle to be equal
    np.testing.assert_allclose(found["logits"], logits, rtol=0, atol=limit)
    chosen = np.take_along_axis(logits, np.int64(found["labels"])[..., None], -1)[..., 0]
    assert (logits.max(-1) - chosen <= 2 * limit).all()  # equal, but for ties
    p = np.exp(logits - logits.max(-1, keepdims=True))
    np.testing.assert_allclose(found["confidence"], (p / p.sum(-1, keepdims=True)).max(-1),
                               atol=2 * limit)
    assert found["labels"].dtype == np.uint8 and found["confidence"].dtype == np.float32


@pytest.mark.parametrize("name", CASES)
def test_an_onnx_graph_computes_every_network(name, onnx_runtime):
    from snr_jax.portable import onnx_graph

    model, variables, image = create(name)
    made = onnx_graph.create(model, variables, size=image.shape[1:3], uint8=True, logits=True,
                             about={})
    session = onnx_runtime.InferenceSession(made.SerializeToString())
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(None, {"image": image}), strict=True))
    assert_same(found, expected(model, variables, image))


def test_stablehlo_computes_the_network_in_its_plain_form(tmp_path):
    model, variables, image = create("registers")
    fast = model.clone(dtype=jnp.bfloat16, attention="cudnn", affine_snr=True)
    run = program.make_program(program.plain(fast), variables, logits=True)
    path = tmp_path / "model"
    path.write_bytes(program.stablehlo(run, size=image.shape[1:3], uint8=True))
    assert_same(verification.run_stablehlo(path)(image), expected(model, variables, image))
    assert program.plain(fast).affine_snr is False


def test_a_graph_of_any_size_is_refused(onnx_runtime):
    from snr_jax.portable import onnx_graph

    model, variables, _ = create("plain")
    with pytest.raises(UserError, match=r"--dynamic.*--size HEIGHT,WIDTH"):
        onnx_graph.create(model, variables, size=None, uint8=True, logits=True, about={})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    """A network's checkpoint, as the argument of a command."""
    model, variables, image = create("plain")
    meta = {"model": architecture(model), "source": {"input_size": image.shape[1:3]}}
    path = tmp_path_factory.mktemp("vit") / "network"
    checkpoints.save_variables(path, variables, meta)
    return f"--checkpoint={path}"


@pytest.mark.parametrize("suffix", ["onnx", "stablehlo"])
def test_the_command_writes_and_compares(suffix, checkpoint, command, tmp_path, request):
    if suffix == "onnx":
        onnx = request.getfixturevalue("onnx_runtime")
    out = tmp_path / f"model.{suffix}"
    result = command("export", checkpoint, "--out", out)
    assert result.code == 0 and "as in JAX: all of 6305 labels are equal" in result.out, result
    if suffix == "onnx":
        about = onnx.InferenceSession(out).get_modelmeta().custom_metadata_map
        about = {key: json.loads(value) for key, value in about.items()}
    else:
        about = json.loads(out.with_suffix(".json").read_text())
    assert about["preprocessing"] == (
        "inside the program: RGB / 255 minus mean 0.485, 0.456, 0.406, over deviation 0.229, "
        "0.224, 0.225")
    assert about["size"] == [65, 97] and not about["any_size"]


@pytest.mark.parametrize("suffix", ["onnx", "stablehlo"])
def test_the_command_refuses_any_size(suffix, checkpoint, refused, tmp_path, request):
    if suffix == "onnx":
        request.getfixturevalue("onnx_runtime")
    error = refused("export", checkpoint, f"--out={tmp_path}/new/model.{suffix}", "--dynamic")
    assert "--dynamic" in error and "--size HEIGHT,WIDTH" in error
    assert not list(Path(tmp_path).iterdir())
