"""Weights folders of DINOv2 transformers: there and back, lies, the card."""

import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.torch
import torch
import yaml

from snr_jax import convert
from snr_jax.core.errors import UserError
from snr_jax.core.models.backbone import architecture
from snr_jax.core.models.light_head import ViTSegmenter
from snr_jax.core.state import initial_variables
from snr_jax.runs import network
from snr_jax.runs.weights import save
from snr_jax.weights import folder as weights_folder
from snr_jax.workdir import checkpoints, metas, record
from twin.vit import Segmenter

TINY = {"num_classes": 19, "width": 16, "depth": 2, "heads": 2, "grid": 5}
PLAIN = {"norm_restitution": "none"}
WITH_SNR = {"snr_after": (0, 1), "restitution_heads": True, "registers": 4}


def write_checkpoint(path, **changes):
    """Of values that no two tensors share."""
    model, random = ViTSegmenter(**TINY, **changes), np.random.default_rng(0)
    values = jax.tree.map(lambda x: random.normal(0, 0.3, x.shape).astype(np.float32),
                          initial_variables(model, 0))
    checkpoints.save_variables(path, values, {"model": architecture(model), "source": {
        "kind": "run", "step": 20, "input_size": (42, 56)}})
    return path


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vit")
    return {name: save(write_checkpoint(folder / name, **changes), folder / f"w_{name}")
            for name, changes in (("plain", PLAIN), ("snr", WITH_SNR))}


def checkpoint_of(folder):
    return folder.with_name(folder.name.removeprefix("w_"))


def assert_equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


@pytest.mark.parametrize("kind", ["plain", "snr"])
def test_there_and_back(written, tmp_path, kind):
    first = written[kind]
    variables, meta = checkpoints.load_variables(first)
    original, there = checkpoints.load_variables(checkpoint_of(first))
    assert_equal(variables, original)
    assert meta["model"] == there["model"] and meta["model"]["backbone"] == "dinov2"
    assert checkpoints.find(first).step == 20
    second = save(first, tmp_path / "second")
    for name in ("model.safetensors", "config.json"):
        assert (second / name).read_bytes() == (first / name).read_bytes(), name
    assert len({record._initial(str(path)) for path in (first, checkpoint_of(first))}) == 1
    names = safetensors.torch.load_file(first / "model.safetensors").keys()
    assert {"encoder.blocks.1.attn.qkv.weight", "upscale.5.weight", "out.weight"} <= names
    own = {"encoder.snr_1.fc1.kernel", "restitution_0.kernel"}
    assert own & names == (own if kind == "snr" else set())
    # A run that begins with it, its classifiers kept.
    model, _, _ = network.load(first)
    model = model.clone(restitution_heads=kind == "snr")
    assert_equal(*(network.initialize(model, 0, str(path))
                   for path in (first, checkpoint_of(first))))


def test_pytorch_computes_the_same_with_it(written):
    model = Segmenter(**TINY).eval()
    model.load_state_dict(safetensors.torch.load_file(written["plain"] / "model.safetensors"))
    image = np.random.default_rng(0).normal(size=(1, 28, 42, 3)).astype(np.float32)
    ours, variables, _ = network.load(written["plain"])
    got = jax.jit(lambda v: ours.apply(v, image, train=False).main)(variables)
    with torch.no_grad():
        want = model(torch.from_numpy(image.transpose(0, 3, 1, 2))).numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())


# ---------------------------------------------------------------- lies


def edit(folder, change, *, signed=False):
    """config.json changed, with or without the checksum of what it says now."""
    config = json.loads((folder / "config.json").read_text())
    change(config)
    if signed:
        config["checksum"] = metas.checksum(
            {key: value for key, value in config.items() if key not in weights_folder.ABOUT})
    (folder / "config.json").write_text(json.dumps(config))


def set_model(signed=True, **changes):
    return lambda folder: edit(folder, lambda c: c["model"].update(changes), signed=signed)


def tensors(change):
    def make(folder):
        file = folder / "model.safetensors"
        found = safetensors.torch.load_file(file)
        change(found)
        safetensors.torch.save_file(found, file)

    return make


LIES = {
    "heads": (set_model(False, heads=4), ["config.json cannot be read: it is damaged: it differs"]),
    "heads that cannot be": (set_model(heads=3), ["config.json has model.width is 16; expected"]),
    "fewer snr": (set_model(snr_after=[1]), [
        "model.safetensors holds encoder.snr_0.fc1.bias", "does not have"]),
    "other snr": (set_model(snr_after=[2]), ["config.json has model.snr_after has 2"]),
    "no snr": (set_model(norm_restitution="none"), ["holds encoder.snr_0.fc1.bias"]),
    "instance norm": (set_model(norm_restitution="in"), ["holds encoder.snr_0.fc1.bias"]),
    "registers": (set_model(registers=2), [
        "encoder.register_tokens has the shape (1, 4, 16); the network of config.json has (1, 2,"]),
    "deeper": (set_model(depth=3), ["lacks encoder.blocks.2."]),
    "a ResNet": (set_model(backbone="resnet"), ["it lacks 'model.stage_sizes'"]),
    "another kind": (set_model(backbone="swin"), ["model.backbone 'swin'; expected one of"]),
    "input": (lambda f: edit(f, lambda c: c["preprocessing"].update(unit=1.0)), [
        "preprocessing.unit 1.0; this network was trained with 255.0"]),
    "missing": (tensors(lambda t: t.pop("encoder.blocks.0.ls1.gamma")), [
        "model.safetensors lacks encoder.blocks.0.ls1.gamma, which the network of config.json"]),
    "snr missing": (tensors(lambda t: t.pop("encoder.snr_1.norm.scale")), ["lacks encoder.snr_1."]),
    "further": (tensors(lambda t: t.update({"token_masking.mask_token": torch.ones(1, 16)})), [
        "holds token_masking.mask_token"]),
    "turned": (tensors(lambda t: t.update({"encoder.blocks.0.attn.proj.weight": t[
        "encoder.blocks.0.attn.proj.weight"].T.contiguous()})), [
        "is damaged: 1 of ", "['blocks_0']['attn']['proj']['kernel'] the first"]),
    "an snr value": (tensors(lambda t: t["encoder.snr_0.fc2.bias"].add_(1)), [
        "['encoder']['snr_0']['fc2']['bias'] the first"]),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_folder_that_lies_is_told_in_one_line(written, tmp_path, lie):
    copy = shutil.copytree(written["snr"], tmp_path / "copy")
    make, words = LIES[lie]
    make(copy)
    with pytest.raises(UserError) as error:
        network.load(copy)
    message = str(error.value)
    assert "\n" not in message and str(copy) in message and "Copy the folder again" in message
    assert all(word in message for word in words), message


# ---------------------------------------------------------------- the card


def card_of(folder):
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), text


def test_card(written):
    front, text = card_of(written["snr"])
    assert front["tags"] == ["semantic-segmentation", "jax", "flax", "dinov2"]
    assert ("`snr_jax`: a DINOv2 ViT (SNR (style normalisation and restitution) after blocks 0, "
            "1) with a light head.") in text
    assert ("| RGB, 0 to 255, / 255, minus (0.485, 0.456, 0.406), over (0.229, 0.224, 0.225); "
            "42 x 56 |") in text
    # Without the classifiers of the restitution loss, 2 * 16 * 19 and 4 more.
    variables, _ = checkpoints.load_variables(written["snr"])
    numbers = sum(leaf.size for name in ("encoder", "head")
                  for leaf in jax.tree.leaves(variables["params"][name]))
    assert f"| 2 blocks, width 16, 2 heads, patches of 14, 4 registers, {numbers:,} param" in text
    assert "VFM-UDA's network in PyTorch" in text and "strict=False" in text
    assert ("computes something else with them, or nothing, since this network has width 16, depth "
            "2, heads 2, grid 5, registers 4, SNR blocks (encoder.snr_*)") in text
    assert "The tensors restitution_*, which the restitution loss trains" in text
    _, plain = card_of(written["plain"])
    assert "a DINOv2 ViT with a light head" in plain and "restitution_" not in plain
    assert "SNR blocks" not in plain


def test_card_of_published_sizes():
    model = {"backbone": "dinov2", "num_classes": 19, "width": 768, "depth": 12, "heads": 12,
             "patch": 14, "grid": 37, "registers": 0, "snr_after": [], "norm_restitution": "none"}
    config = {"model": model, "licence": None, "trained_on": None, "datasets": None,
              "class_names": ["road"], "checksums": {"variables": {}}, "checkpoint": None,
              "preprocessing": weights_folder.preprocessing({"model": model})}
    text = weights_folder.card("b", config, 1)
    assert "a DINOv2 ViT-B with a light head." in text
    assert "It computes the same there." in text and "something else" not in text


# ---------------------------------------------------------------- the converter on its tensors


def test_tensors_of_a_folder_for_other_classes(written, tmp_path, capsys):
    file = written["plain"] / "model.safetensors"
    assert convert.main(["", str(file), str(tmp_path / "o"), "--num_classes", "13",
                         "--reset_heads"]) == 0
    variables, meta = checkpoints.load_variables(tmp_path / "o")
    assert (meta["model"]["heads"], meta["model"]["num_classes"]) == (2, 13)
    original, _ = checkpoints.load_variables(written["plain"])
    assert_equal(variables["params"]["encoder"], original["params"]["encoder"])
    capsys.readouterr()
    assert convert.main(["", str(written["snr"] / "model.safetensors"), str(tmp_path / "p")]) == 2
    assert "snr_after (0, 1), which a file of PyTorch cannot say" in capsys.readouterr().err
