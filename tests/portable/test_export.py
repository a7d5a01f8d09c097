"""Export: what the files compute, in processes without this package too; what is refused."""

import json
import re
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

from snr_jax.core.errors import UserError
from snr_jax.core.labels import class_names, palette
from snr_jax.core.models.backbone import architecture
from snr_jax.core.models.deeplab import DeepLab
from snr_jax.core.state import initial_variables
from snr_jax.portable import program, verification
from snr_jax.toy.styles import draw_pair
from snr_jax.workdir import checkpoints
from tests.commands import ROOT

NETWORKS = {  # together they have every form of a layer
    "published": {},
    "plain": {"norm_restitution": "none", "exposure": True, "stride_in": "conv2"},
    "norm": {"norm_restitution": "in", "head_branches": 4, "stage_sizes": (1, 2, 1, 1)},
}
SIZE = (34, 49)  # that the checkpoint was trained at: an even side and an odd one


def create(name):
    """A network whose every variable matters: none of them is 0, 1, or alike in all channels."""
    rng = np.random.default_rng(1)
    model = DeepLab(**{"stage_sizes": (1, 1, 1, 1), "width": 8, **NETWORKS[name]})

    def varied(path, x):
        names, kind = [part.key for part in path], path[-1].key
        if kind == "kernel":
            size = (2 / np.prod(x.shape[:-1])) ** 0.5 / (64 if names[1] == "conv1" else 1)
            return np.float32(rng.standard_normal(x.shape) * size)
        low, high = {"scale": (0.6, 1.4), "var": (0.5, 2)}.get(kind, (-0.3, 0.3))
        return rng.uniform(low, high, x.shape).astype(np.float32)

    return model, jax.tree_util.tree_map_with_path(varied, initial_variables(model, 0))


def streets(count, height, width):
    return np.stack([draw_pair(7, i, height, width, "source")[0] for i in range(count)])


def expected(model, variables, image):
    """Logits by JAX; labels and confidence from them by numpy."""
    bgr = image[..., ::-1] - np.array([104.00698793, 116.66876762, 122.67891434], np.float32)
    logits = np.asarray(jax.jit(
        lambda v, x: model.apply(v, x, train=False).main)(variables, bgr.astype(np.float32)))
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return logits, logits.argmax(-1), (p / p.sum(-1, keepdims=True)).max(-1)


def assert_same(found, wanted):
    logits, labels, confidence = wanted
    assert len(np.unique(labels)) > 3 and np.ptp(logits) > 3  # it is no trifle to be equal
    np.testing.assert_allclose(found["logits"], logits, atol=1e-4)
    np.testing.assert_array_equal(found["labels"], labels)
    np.testing.assert_allclose(found["confidence"], confidence, atol=1e-4)
    assert found["labels"].dtype == np.uint8 and found["confidence"].dtype == np.float32


@pytest.mark.parametrize("name", NETWORKS)
def test_an_onnx_graph_computes_every_network_at_any_size(name, onnx_runtime):
    from snr_jax.portable import onnx_graph

    model, variables = create(name)
    made = onnx_graph.create(model, variables, size=None, uint8=True, logits=True, about={})
    session = onnx_runtime.InferenceSession(made.SerializeToString())
    names = [output.name for output in session.get_outputs()]
    for shape in ((2, *SIZE), (1, 35, 64)) if name == "plain" else ((1, *SIZE),):
        image = streets(*shape)
        found = dict(zip(names, session.run(None, {"image": image})))
        assert_same(found, expected(model, variables, image))


def test_stablehlo_computes_the_network_at_any_size(tmp_path):
    model, variables = create("plain")
    run = program.make_program(program.plain(model), variables, logits=True)
    path = tmp_path / "model"
    path.write_bytes(program.stablehlo(run, size=None, uint8=True))
    run = verification.run_stablehlo(path)
    for shape in ((2, *SIZE), (1, 35, 64)):
        image = streets(*shape)
        assert_same(run(image), expected(model, variables, image))


# ---------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    model, variables = create("published")
    path = tmp_path_factory.mktemp("network") / "checkpoint"
    checkpoints.save_variables(
        path, variables, {"model": architecture(model), "source": {"input_size": SIZE}})
    return SimpleNamespace(path=path, model=model, variables=variables)


def example(number):
    """The example of docs/export.md, for a process in which this package cannot be imported."""
    text = (ROOT / "docs/export.md").read_text()
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[number]
    return f"import sys\nsys.modules.update(snr_jax=None, flax=None, orbax=None)\n{code}"


@pytest.mark.parametrize("suffix", ["onnx", "stablehlo"])
def test_the_example_draws_what_the_network_sees(
    suffix, checkpoint, command, tmp_path, request
):
    if suffix == "onnx":
        request.getfixturevalue("onnx_runtime")
    out = tmp_path / f"model.{suffix}"
    result = command("export", "--checkpoint", checkpoint.path, "--out", out)
    assert result.code == 0 and result.err == "", result
    assert f"all of {SIZE[0] * SIZE[1]} labels are equal" in result.out
    assert re.search(r"an image on this CPU: \S+ \d+ ms, JAX \d+ ms; \d\.\d MB", result.out)
    assert suffix == "stablehlo" or ("opset 17" in result.out and
        re.search(r"logits of up to \d+\.\d within \d\.\de-0\d, confidence", result.out))
    image = streets(1, *SIZE)
    Image.fromarray(image[0]).save(tmp_path / "street.png")
    run = subprocess.run([sys.executable, "-c", example(0 if suffix == "onnx" else 1)],
                         cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    _, labels, confidence = expected(checkpoint.model, checkpoint.variables, image)
    colors = np.asarray(Image.open(tmp_path / "street_color.png"))
    np.testing.assert_array_equal(colors, palette()[labels[0]])
    assert set(run.stdout.splitlines()[0].split(", ")) == {
        class_names()[label] for label in np.unique(labels)}
    assert float(run.stdout.split()[-1]) == pytest.approx(confidence.mean(), abs=1e-3)
    names = {"street.png", "street_color.png", out.name} | (
        {"model.json"} if suffix == "stablehlo" else set())
    assert {path.name for path in tmp_path.iterdir()} == names


def test_float_images_of_any_size(checkpoint, command, tmp_path):
    out = tmp_path / "new" / "model.stablehlo"
    result = command("export", "--checkpoint", checkpoint.path, "--out", out,
                     "--dynamic", "--nouint8", "--logits")
    assert result.code == 0 and "any size" in result.out and "logits of up to" in result.out, result
    about = json.loads(out.with_suffix(".json").read_text())
    assert about["inputs"]["image"].startswith("float32 [n,height,width,3]")
    assert about["size"] == list(SIZE) and about["any_size"]
    assert list(about["outputs"]) == ["labels", "confidence", "logits"]
    run = verification.run_stablehlo(out)
    assert list(run(streets(1, *SIZE).astype(np.float32))["labels"].shape) == [1, *SIZE]


def test_a_file_that_computes_something_else_is_not_kept(
    checkpoint, refused, tmp_path, monkeypatch
):
    whole = program.make_program

    def without_last_class(model, variables, *, logits):
        if not logits:  # what is written, and not what it is compared with
            params = jax.tree.map(np.array, variables["params"])
            params["layer6"]["conv2d_list_0"]["bias"] += np.arange(19) < 9
            variables = {**variables, "params": params}
        return whole(model, variables, logits=logits)

    monkeypatch.setattr(program, "make_program", without_last_class)
    out = tmp_path / "out" / "model.stablehlo"
    error = refused("export", "--checkpoint", checkpoint.path, "--out", out)
    assert "something else than the checkpoint" in error and not list(out.parent.iterdir())


REFUSED = {  # flags → what the line says
    ("--out=model.pb",): ".onnx or .stablehlo",
    ("--out=model.stablehlo", "--size=20,64"): "at least 33",
    ("--out=model.stablehlo", "--size=64"): "expected HEIGHT,WIDTH",
    ("--out=model.stablehlo", "--size=64,64", "--dynamic"): "leave one out",
    (): "--out is missing",
    ("--out=taken.stablehlo",): "taken.json: exists already",
    ("--out=model.onnx",): "pip install 'snr_jax[export]'",
}


@pytest.mark.parametrize("given, said", REFUSED.items(), ids=map(" ".join, REFUSED))
def test_refusals(given, said, checkpoint, refused, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    (tmp_path / "taken.json").touch()
    flags = [flag.replace("--out=", f"--out={tmp_path}/") for flag in given]
    assert said in refused("export", "--checkpoint", checkpoint.path, *flags)
    assert [path.name for path in tmp_path.iterdir()] == ["taken.json"]


# ---------------------------------------------------------------- the comparison

LOGITS = np.random.default_rng(0).normal(0, 5, (1, 4, 5, 3)).astype(np.float32)
LOGITS[0, 0, 0] = (1, 1, -3)  # a tie


def outputs(logits=LOGITS, **others):
    p = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
    labels = LOGITS.argmax(-1).astype(np.uint8)
    return {"labels": labels, "confidence": p.max(-1), "logits": logits, **others}


def changed(array, place, value):
    array = array.copy()
    array[place] = value
    return array


def verify(got):
    image = np.zeros((1, 4, 5, 3), np.uint8)
    return verification.verify(lambda _: got, lambda _: outputs(), [image])


def test_rounding_and_ties_are_told():
    assert verify(outputs())[:4] == (20, 0, 0, 0)
    other = outputs(LOGITS + np.float32(2e-5), labels=changed(outputs()["labels"], (0, 0, 0), 1))
    verdict = verify(other)
    assert verdict.unequal == 1 and 1e-5 < verdict.logits < 3e-5
    del other["logits"]
    assert verify(other).logits is None


@pytest.mark.parametrize("wrong, said", [
    (outputs(changed(LOGITS, (0, 1, 1, 1), 9)), "logits differ"),
    (outputs(changed(LOGITS, (0, 1, 1, 1), np.nan)), "logits differ"),
    (outputs(confidence=changed(outputs()["confidence"], (0, 1, 1), 0.2)), "confidence differ"),
    (outputs(labels=(outputs()["labels"] + 1) % 3), "of 20 labels differ"),
    (outputs(labels=np.int64(outputs()["labels"])), "labels are int64"),
    (outputs(labels=outputs()["labels"][0]), "labels are uint8 [4, 5]"),
])  # fmt: skip
def test_differences_are_refused(wrong, said):
    with pytest.raises(UserError, match=re.escape(said)):
        verify(wrong)
