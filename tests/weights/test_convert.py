"""scripts/convert_torch_ckpt.py on files that PyTorch wrote, good and bad ones."""

import os
import pickle
import shlex
import subprocess
import sys
import zipfile
from collections import OrderedDict
from functools import partial

import jax
import numpy as np
import pytest
import safetensors.torch
import torch
from absl import flags
from torch.nn import functional as F

import twin as torch_twin
from snr_jax import cli
from snr_jax import convert as convert_torch_ckpt
from snr_jax.core.errors import UserError
from snr_jax.core.labels import class_names
from snr_jax.core.models.backbone import architecture
from snr_jax.core.models.create import create_recorded
from snr_jax.core.models.deeplab import DeepLab
from snr_jax.core.parallel import create_parallel
from snr_jax.core.state import initial_variables
from snr_jax.runs import experiment, network
from snr_jax.weights.conversion import fold_torchvision_input
from snr_jax.weights.torch_names import from_torch, to_torch
from snr_jax.workdir.checkpoints import load_variables, save_variables
from tests.commands import PATTERN, ROOT, said

TINY = {"stage_sizes": (1, 1, 1, 1), "width": 4, "num_classes": 13}
SNR_NAMES = [*(f"IN{k}.{leaf}" for k in (1, 2, 3) for leaf in ("weight", "bias")),
             *(f"style_reid_laye{k}.fc{i}.{leaf}" for k in (1, 2, 3) for i in (1, 2)
               for leaf in ("weight", "bias"))]


def twin(variant="snr", **changes):
    """The twin with every tensor random, as a state dict."""
    torch.manual_seed(0)
    model = torch_twin.DeepLab(**{**TINY, **changes}, norm_restitution=variant)
    return OrderedDict((name, value if value.dtype == torch.int64 else torch.rand_like(value) + 0.5)
                       for name, value in model.state_dict().items())


def training_checkpoint(state_dict):
    """As the published trainer saves it: names of DataParallel, a numpy scalar, the optimiser."""
    return {"epoch": 3, "iteration": 80_000,
            "state_dict": OrderedDict((f"module.{k}", v) for k, v in state_dict.items()),
            "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(2)}},
                          "param_groups": [{"lr": 2.5e-4, "params": [0]}]},
            "best_MIou": np.float64(0.4268)}


def run(capsys, *args):
    """The exit code and the two streams."""
    capsys.readouterr()
    code = convert_torch_ckpt.main(["convert_torch_ckpt", *map(str, args)])
    out, err = capsys.readouterr()
    return code, out, err


def convert(capsys, content, folder, *args, old=False):
    source, target = folder / "in.pth", folder / "out"
    torch.save(content, source, _use_new_zipfile_serialization=not old)
    return run(capsys, source, target, *args)


def refused(result, folder, *words):
    """The command failed with one line that has these words, and left nothing behind."""
    code, _, err = result
    assert code == 2
    assert err.startswith("error: ") and err.count("\n") == 1, err
    for word in words:
        assert word in err, (word, err)
    assert {path.name for path in folder.iterdir()} <= {"in.pth"}


def assert_same_tensors(left, right):
    assert list(left) == list(right)
    for name, value in left.items():
        assert value.dtype == right[name].dtype, name
        assert value.numpy().tobytes() == right[name].numpy().tobytes(), name
        assert value.shape == right[name].shape, name


@pytest.mark.parametrize("old", [True, False], ids=["old_format", "new_format"])
@pytest.mark.parametrize("variant", ["snr", "in", "none"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "bare"])
def test_there_and_back(tmp_path, capsys, old, variant, training):
    original = twin(variant)
    if training:  # counters as training leaves them
        for name in original:
            if name.endswith("num_batches_tracked"):
                original[name] = torch.tensor(80_000)
    content = training_checkpoint(original) if training else original
    code, out, err = convert(capsys, content, tmp_path, old=old)
    assert (code, err) == (0, "")
    assert "heads for 13 classes" in out and f"norm_restitution {variant}" in out
    variables, meta = load_variables(str(tmp_path / "out"))
    expected, _ = from_torch({name: value.numpy() for name, value in original.items()})
    np.testing.assert_array_equal(variables["params"]["layer3_0"]["conv2"]["kernel"],
                                  expected["params"]["layer3_0"]["conv2"]["kernel"])
    model = {**meta["model"], "stage_sizes": tuple(meta["model"]["stage_sizes"])}
    assert model == {"backbone": "resnet", **TINY, "norm_restitution": variant, "head_branches": 2,
                     "stride_in": "conv1", "exposure": False}
    assert meta["source"]["file"] == "in.pth" and len(meta["source"]["sha256"]) == 64
    assert ("training checkpoint" in meta["source"]["kind"]) == training

    for prefix in ("", "module."):
        back = tmp_path / f"back{prefix or '.'}pth"
        code, _, err = run(capsys, "--export", tmp_path / "out", back, "--prefix", prefix)
        assert (code, err) == (0, "")
        exported = torch.load(back, weights_only=True)
        assert_same_tensors(
            exported, OrderedDict((prefix + name, v) for name, v in original.items()))
    model = torch_twin.DeepLab(**TINY, norm_restitution=variant)
    model.load_state_dict(torch.load(tmp_path / "back.pth", weights_only=True), strict=True)
    torch.nn.DataParallel(model).load_state_dict(exported, strict=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["back.pth", "backmodule.pth", "in.pth",
                                                          "out"]


@pytest.mark.parametrize("variant", ["snr", "in", "none"])
def test_a_training_starts_with_the_flags_that_are_told(variant, tmp_path, capsys):
    """Typed as they stand, with the published configuration. A plain network may start SNR."""
    _, out, _ = convert(capsys, twin(variant), tmp_path)
    told = shlex.split(out.splitlines()[-1].partition(" starts from it with ")[2])
    kinds = ["model.norm_restitution=in"] * (variant == "in")
    assert sorted(flag.removeprefix("--config.") for flag in told) == sorted([
        f"init_from={tmp_path / 'out'}", "num_classes=13", "model.stage_sizes=(1,1,1,1)",
        "model.width=4", *kinds])
    known, kept = flags.FlagValues(), []
    cli.define_config(known)
    typed = ["main", "--config", str(ROOT / "configs/gta5_dg.py"), *told]
    assert cli.run(typed, known, "", lambda args: kept.append(args["config"].value.config)) == 0
    (config,) = kept
    model = experiment.create_model(config, create_parallel())
    loaded, there = (
        variables["params"]["conv1"]["kernel"] for variables in
        (network.initialize(model, 0, config.init_from), load_variables(tmp_path / "out")[0])
    )  # fmt: skip
    np.testing.assert_array_equal(loaded, there)


def test_converted_network_computes_what_the_twin_computes(tmp_path, capsys):
    model = torch_twin.DeepLab(**TINY)
    model.eval()
    images = np.random.default_rng(0).normal(0, 50, (1, 33, 41, 3)).astype(np.float32)
    assert convert(capsys, model.state_dict(), tmp_path)[0] == 0
    variables, meta = load_variables(str(tmp_path / "out"))
    ours = jax.jit(partial(create_recorded(meta["model"]).apply, train=False))(variables, images)
    with torch.no_grad():
        main, aux = model(torch.from_numpy(images.transpose(0, 3, 1, 2)))
    for got, want in ((ours.main, main), (ours.aux, aux)):
        want = want.numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())


def test_float64_stays(tmp_path, capsys):
    original = OrderedDict((name, value.double() if value.is_floating_point() else value)
                           for name, value in twin().items())
    assert convert(capsys, original, tmp_path)[0] == 0
    assert run(capsys, "--export", tmp_path / "out", tmp_path / "back.pth")[0] == 0
    assert_same_tensors(torch.load(tmp_path / "back.pth", weights_only=True), original)


def test_half_precision_becomes_float32(tmp_path, capsys):
    original = OrderedDict((name, value.bfloat16() if value.is_floating_point() else value)
                           for name, value in twin().items())
    assert convert(capsys, original, tmp_path)[0] == 0
    variables, _ = load_variables(str(tmp_path / "out"))
    scale = variables["params"]["bn1"]["scale"]
    assert scale.dtype == np.float32
    np.testing.assert_array_equal(scale, original["bn1.weight"].float().numpy())


def test_numpy_scalars_written_before_numpy_2(tmp_path, capsys):
    source = tmp_path / "in.pth"
    torch.save(training_checkpoint(twin()), source, _use_new_zipfile_serialization=False)
    data = source.read_bytes()
    assert b"numpy._core.multiarray\n" in data
    source.write_bytes(data.replace(b"numpy._core.multiarray\n", b"numpy.core.multiarray\n"))
    assert run(capsys, source, tmp_path / "out")[0] == 0


def test_safetensors(tmp_path, capsys):
    original, source = twin(), tmp_path / "weights.safetensors"
    safetensors.torch.save_file(original, source)
    code, out, _ = run(capsys, source, tmp_path / "out")
    assert code == 0 and "safetensors" in out
    assert run(capsys, "--export", tmp_path / "out", tmp_path / "back.pth")[0] == 0
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert_same_tensors(back, original)

    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "in.pth").write_bytes(source.read_bytes()[:-100])
    result = run(capsys, tmp_path / "cut" / "in.pth", tmp_path / "cut" / "out")
    refused(result, tmp_path / "cut", "not a whole safetensors file")


def test_baseline_weights_into_an_snr_network(tmp_path, capsys):
    code, out, _ = convert(capsys, twin("none"), tmp_path, "--variant", "snr")
    assert code == 0
    (line,) = [line for line in out.splitlines() if line.startswith("new,")]
    assert line.startswith("new, kept at initial values, snr: ")
    assert line.partition("snr: ")[2].split(", ") == SNR_NAMES
    variables, meta = load_variables(str(tmp_path / "out"))
    assert meta["model"]["norm_restitution"] == "snr"
    initial = initial_variables(create_recorded(meta["model"]), 0)
    np.testing.assert_array_equal(variables["params"]["snr1"]["fc1"]["kernel"],
                                  initial["params"]["snr1"]["fc1"]["kernel"])
    np.testing.assert_array_equal(variables["params"]["bn1"]["scale"], twin("none")["bn1.weight"])


def test_instance_norm_network_into_an_snr_network(tmp_path, capsys):
    code, out, _ = convert(capsys, twin("in"), tmp_path, "--variant", "snr")
    assert code == 0
    gates = [name for name in SNR_NAMES if name.startswith("style")]
    (line,) = [line for line in out.splitlines() if line.startswith("new,")]
    assert line.partition("snr: ")[2].split(", ") == gates


def test_snr_network_into_a_baseline_says_what_is_lost(tmp_path, capsys):
    code, out, _ = convert(capsys, twin("snr"), tmp_path, "--variant", "none")
    assert code == 0
    (line,) = [line for line in out.splitlines() if line.startswith("unused")]
    assert line.startswith("unused, snr: ") and all(name in line for name in SNR_NAMES)
    assert "note: --variant none: the file's layers were trained with the SNR tensors" in out


def test_published_initial_weights(tmp_path, capsys):
    """Names with `Scale.`, no counters, and a layer5 of 21 classes on layer4's output."""
    body = {f"Scale.{name}": value for name, value in twin("none").items()
            if not name.startswith(("layer5", "layer6")) and not name.endswith("tracked")}
    for i in range(4):
        body[f"Scale.layer5.conv2d_list.{i}.weight"] = torch.ones(21, 128, 3, 3)
        body[f"Scale.layer5.conv2d_list.{i}.bias"] = torch.ones(21)
    code, out, err = convert(capsys, body, tmp_path, "--variant", "snr", "--num_classes", "13")
    assert (code, err) == (0, "")
    assert "heads for no classes" in out
    assert "note: layer5 (21 classes) is the single head of another network" in out
    assert "unused, layer5 (auxiliary head): layer5.conv2d_list.0.weight, " in out
    assert "torchvision" not in out
    variables, meta = load_variables(str(tmp_path / "out"))
    assert meta["model"]["num_classes"] == 13
    initial = initial_variables(create_recorded(meta["model"]), 0)["params"]
    for head in ("layer5", "layer6"):
        for i in range(4):
            np.testing.assert_array_equal(
                variables["params"][head][f"conv2d_list_{i}"]["kernel"],
                initial[head][f"conv2d_list_{i}"]["kernel"])
    assert run(capsys, "--export", tmp_path / "out", tmp_path / "back.pth")[0] == 0
    exported = torch.load(tmp_path / "back.pth", weights_only=True)
    torch_twin.DeepLab(**{**TINY, "num_classes": 13}).load_state_dict(exported, strict=True)


def test_another_class_count_needs_reset_heads(tmp_path, capsys):
    refused(convert(capsys, twin(), tmp_path, "--num_classes", "19"), tmp_path,
            "13 classes", "--num_classes asks for 19", "--reset_heads")
    code, out, _ = convert(capsys, twin(), tmp_path, "--num_classes", "19", "--reset_heads")
    assert code == 0
    assert "unused, layer6 (main head): layer6.conv2d_list.0.weight, " in out
    assert "new, kept at initial values, layer6 (main head): layer6.conv2d_list.0.weight" in out
    variables, _ = load_variables(str(tmp_path / "out"))
    assert variables["params"]["layer6"]["conv2d_list_0"]["kernel"].shape == (3, 3, 128, 19)


def imagenet_classifier():
    """torchvision's names: no dilated heads, a linear layer."""
    state_dict = OrderedDict((name, value) for name, value in twin("none").items()
                             if not name.startswith(("layer5", "layer6")))
    state_dict["fc.weight"], state_dict["fc.bias"] = torch.ones(10, 128), torch.ones(10)
    return state_dict


def test_torchvision_is_refused_unless_named(tmp_path, capsys):
    refused(convert(capsys, imagenet_classifier(), tmp_path), tmp_path,
            "fc.weight", "3x3", "BGR minus mean", "--torchvision")
    refused(convert(capsys, twin(), tmp_path, "--torchvision"), tmp_path,
            "DeepLab heads", "leave --torchvision out")
    headless = {k: v for k, v in imagenet_classifier().items() if not k.startswith("fc.")}
    code, out, _ = convert(capsys, headless, tmp_path)
    assert code == 0 and "note: no head in the file" in out and "--torchvision" in out


def test_torchvision_gets_its_stride_and_cannot_be_exported(tmp_path, capsys):
    code, out, _ = convert(capsys, imagenet_classifier(), tmp_path, "--torchvision")
    assert code == 0
    assert "stride_in=conv2" in out and "unused, other: fc.weight, fc.bias" in out
    _, meta = load_variables(str(tmp_path / "out"))
    assert meta["model"]["stride_in"] == "conv2"
    code, _, err = run(capsys, "--export", tmp_path / "out", tmp_path / "back.pth")
    assert code == 2 and "stride_in=conv2" in err and not (tmp_path / "back.pth").exists()


def test_a_network_that_the_published_code_does_not_have_is_not_exported(tmp_path, capsys):
    model = DeepLab(num_classes=19, stage_sizes=(1, 1, 1, 1), width=4, exposure=True)
    save_variables(tmp_path / "a", initial_variables(model, 0),
                   {"model": architecture(model), "source": {}})
    code, _, err = run(capsys, "--export", tmp_path / "a", tmp_path / "back.pth")
    assert code == 2 and "exposure=True" in err and not (tmp_path / "back.pth").exists()


def test_torchvision_network_computes_with_its_own_stride(tmp_path, capsys):
    code, _, _ = convert(capsys, imagenet_classifier(), tmp_path, "--torchvision")
    assert code == 0
    variables, meta = load_variables(str(tmp_path / "out"))
    model = torch_twin.DeepLab(**{**TINY, "num_classes": 19}, norm_restitution="none").eval()
    model.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in
                           to_torch(variables).items()}, strict=True)
    block = model.layer2[0]
    images = np.random.default_rng(0).normal(0, 50, (1, 33, 41, 3)).astype(np.float32)
    ours = jax.jit(partial(create_recorded(meta["model"]).apply, train=False))(variables, images)
    for moved in (False, True):
        if moved:
            block.conv1.stride, block.conv2.stride = (1, 1), (2, 2)
        with torch.no_grad():
            main, _ = model(torch.from_numpy(images.transpose(0, 3, 1, 2)))
        want = main.numpy().transpose(0, 2, 3, 1)
        same = np.abs(ours.main - want).max() <= 1e-4 * np.abs(want).max()
        assert same == moved


def test_torchvision_input_is_folded_exactly_inside_the_border():
    random = np.random.default_rng(0)
    state_dict = {name: value.double().numpy() for name, value in imagenet_classifier().items()}
    folded = fold_torchvision_input(state_dict)
    rgb = random.integers(0, 256, (1, 3, 24, 32)).astype(np.float64)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    theirs = (rgb / 255 - mean[:, None, None]) / std[:, None, None]
    bgr_mean = np.array([104.00698793, 116.66876762, 122.67891434])
    ours = rgb[:, ::-1] - bgr_mean[:, None, None]

    def stem(weights, image, padding):
        w = {name: torch.from_numpy(np.array(value)) for name, value in weights.items()}
        x = F.conv2d(torch.from_numpy(np.array(image)), w["conv1.weight"], stride=2,
                     padding=padding)
        return F.batch_norm(x, w["bn1.running_mean"], w["bn1.running_var"], w["bn1.weight"],
                            w["bn1.bias"]).numpy()

    want = stem(state_dict, theirs, padding=0)
    np.testing.assert_allclose(stem(folded, ours, padding=0), want, rtol=1e-10)
    # With zero padding the border alone differs, by what one grey level of 255 makes.
    want, got = stem(state_dict, theirs, padding=3), stem(folded, ours, padding=3)
    np.testing.assert_allclose(got[..., 2:-2, 2:-2], want[..., 2:-2, 2:-2], rtol=1e-10)
    difference = np.abs(got - want).max()
    bound = np.abs(folded["conv1.weight"]).sum((1, 2, 3)) * np.abs(
        state_dict["bn1.weight"]) / np.sqrt(state_dict["bn1.running_var"])
    assert 0 < difference <= bound.max()
    assert all(folded[name] is value for name, value in state_dict.items()
               if name not in ("conv1.weight", "bn1.running_mean"))


class Malicious:
    """Its pickle calls os.mkdir when it is loaded without care."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("form", ["old", "new", "bare_pickle"])
def test_malicious_pickle_is_refused_and_nothing_runs(tmp_path, capsys, form):
    trap, folder = tmp_path / "executed", tmp_path / "work"
    folder.mkdir()
    content = training_checkpoint(twin()) | {"best_MIou": Malicious(trap)}
    if form == "bare_pickle":
        (folder / "in.pth").write_bytes(pickle.dumps(Malicious(trap), protocol=2))
        result = run(capsys, folder / "in.pth", folder / "out")
    else:
        result = convert(capsys, content, folder, old=form == "old")
    refused(result, folder, "in.pth: refused, nothing of it was run", f"{os.name}.mkdir")
    assert not trap.exists()
    assert "weights_only" not in result[2]
    # The trap is a real one: a careless loader falls into it.
    if form == "bare_pickle":
        pickle.loads((folder / "in.pth").read_bytes())
    else:
        torch.load(folder / "in.pth", weights_only=False)
    assert trap.exists()


def test_a_whole_module_is_refused(tmp_path, capsys):
    refused(convert(capsys, torch.nn.Conv2d(1, 1, 1), tmp_path), tmp_path,
            "torch.nn.modules.conv.Conv2d", "state_dict()")


@pytest.mark.parametrize("old", [True, False], ids=["old_format", "new_format"])
@pytest.mark.parametrize("keep", [0.0, 0.001, 0.3, 0.9, 0.9999])
def test_truncated_files(tmp_path, capsys, old, keep):
    source = tmp_path / "in.pth"
    torch.save(training_checkpoint(twin()), source, _use_new_zipfile_serialization=not old)
    data = source.read_bytes()
    source.write_bytes(data[:int(keep * len(data))])
    refused(run(capsys, source, tmp_path / "out"), tmp_path, "in.pth: not a whole PyTorch file",
            "truncated")


def test_damage_in_a_zip_file_is_noticed(tmp_path, capsys):
    """One bit of one weight: PyTorch itself reads on."""
    source = tmp_path / "in.pth"
    torch.save(twin(), source)
    with zipfile.ZipFile(source) as archive:
        member = max(archive.infolist(), key=lambda member: member.file_size)
    data = bytearray(source.read_bytes())
    place = data.index(twin()["layer4.0.conv2.weight"].numpy().tobytes())
    data[place + 100] ^= 1
    source.write_bytes(data)
    torch.load(source, weights_only=True)
    refused(run(capsys, source, tmp_path / "out"), tmp_path, "in.pth: the part ",
            member.filename.split("/")[0], "checksum", "copy it again")


def test_a_zip_file_without_checksums(tmp_path, capsys):
    torch.serialization.set_crc32_options(False)
    try:
        code, out, _ = convert(capsys, twin(), tmp_path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert code == 0 and "PyTorch, without checksums" in out


@pytest.mark.parametrize("old", [True, False], ids=["old_format", "new_format"])
@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_a_newer_pickle_protocol_gets_its_own_advice(tmp_path, capsys, old, protocol):
    torch.save(training_checkpoint(twin()), tmp_path / "in.pth", pickle_protocol=protocol,
               _use_new_zipfile_serialization=not old)
    refused(run(capsys, tmp_path / "in.pth", tmp_path / "out"), tmp_path,
            f"in.pth: written with pickle protocol {protocol}", "torch.save(content, file)")


@pytest.mark.parametrize("data", [b"<!DOCTYPE html><html>sign in</html>" * 9, b"conv1 1 2 3\n" * 99,
                                  b"\x89PNG\r\n\x1a\n" * 50], ids=["html", "text", "png"])
def test_files_of_another_kind(tmp_path, capsys, data):
    (tmp_path / "in.pth").write_bytes(data)
    refused(run(capsys, tmp_path / "in.pth", tmp_path / "out"), tmp_path,
            "in.pth: not a whole PyTorch file", "another kind")


def test_files_without_a_state_dict(tmp_path, capsys):
    refused(run(capsys, tmp_path / "none.pth", tmp_path / "out"), tmp_path, "no such file")
    refused(convert(capsys, {"epoch": 3, "lr": 0.1}, tmp_path), tmp_path,
            "no state dict", "epoch, lr")
    refused(convert(capsys, [torch.ones(2)], tmp_path), tmp_path, "no state dict", "list")
    refused(convert(capsys, {**twin(), "bn1.bias": 3.0}, tmp_path), tmp_path, "bn1.bias")
    refused(convert(capsys, {**twin(), "bn1.bias": torch.ones(4).int()}, tmp_path), tmp_path,
            "bn1.bias holds torch.int32")


def other(state_dict):
    """Another network's values under the same names."""
    return {k: v + 1 if v.is_floating_point() else v for k, v in state_dict.items()}


NEIGHBOURS = {  # what others save: (content of a state dict, what the output must say)
    "dacs": (lambda sd: {"iteration": 1, "optimizer": {}, "model": sd, "ema_model": other(sd)}, [
        "note: read from the file's key model (also: iteration, optimizer, ema_model)",
        "the student was taken, as DACS scores it. For the teacher: --weights ema_model"]),
    "one key": (lambda sd: {"epoch": 3, "ema_model": sd}, [
        "note: read from the file's key ema_model (also: epoch)\n"]),
    "daformer": (lambda sd: {"state_dict": {
        **{f"model.backbone.{k}": v for k, v in sd.items()},
        **{f"module.ema_model.{k}": v for k, v in other(sd).items()}, "extra.weight": torch.ones(2),
    }}, ["the student was taken", "unused, other: extra.weight\n"]),
    "lightning": (lambda sd: {"state_dict": {f"model.{k}": v for k, v in sd.items()},
                              "pytorch-lightning_version": "2.4.0", "global_step": 9}, [
        "training checkpoint (also: pytorch-lightning_version, global_step)"]),
    "compiled": (lambda sd: {f"module._orig_mod.{k}": v for k, v in sd.items()}, []),
    "any order": (lambda sd: {f"_orig_mod.model.module.backbone.{k}": v for k, v in sd.items()},
                  []),
    "queue": (lambda sd: {**sd, "queue_ptr": torch.zeros(1, dtype=torch.long)}, [
        "note: left out, since no weights of this network: queue_ptr (torch.int64)"]),
    "sparse": (lambda sd: {**sd, "prototypes": torch.ones(19, 8).to_sparse()}, [
        "no weights of this network: prototypes (torch.sparse_coo)"]),
    "none": (lambda sd: {**sd, "pixel_weight": None, "epoch": 3}, [
        "no weights of this network: pixel_weight (NoneType), epoch (int)"]),
}


@pytest.mark.parametrize("kind", NEIGHBOURS)
def test_weights_of_neighbours_are_read(tmp_path, capsys, kind):
    make, words = NEIGHBOURS[kind]
    code, out, err = convert(capsys, make(twin("none")), tmp_path)
    assert (code, err) == (0, "")
    assert all(word in out for word in words), out
    variables, _ = load_variables(str(tmp_path / "out"))
    assert_same_tensors({k: torch.from_numpy(np.array(v)) for k, v in to_torch(variables).items()},
                        twin("none"))


@pytest.mark.parametrize("kind", ["dacs", "daformer"])
def test_the_teacher_if_asked(tmp_path, capsys, kind):
    code, out, _ = convert(capsys, NEIGHBOURS[kind][0](twin("none")), tmp_path,
                           "--weights", "ema_model")
    assert code == 0 and "was taken" not in out
    variables, _ = load_variables(str(tmp_path / "out"))
    np.testing.assert_array_equal(variables["params"]["bn1"]["scale"],
                                  twin("none")["bn1.weight"] + 1)


def test_a_network_that_is_not_in_the_file(tmp_path, capsys):
    for content, there in ((twin(), "one without a name"), ({"model": twin()}, "model")):
        refused(convert(capsys, content, tmp_path, "--weights", "ema_model"), tmp_path,
                f"in.pth: no network ema_model in it (it has {there}); leave --weights out")


def test_openmmlab_files_give_their_backbone(tmp_path, capsys):
    body = {f"backbone.{name}": value for name, value in twin("none").items()
            if not name.startswith(("layer5", "layer6"))}
    head = {"decode_head.conv_seg.weight": torch.ones(19, 8, 1, 1),
            "decode_head.num": torch.ones(1)}
    code, out, _ = convert(capsys, {"meta": {}, "state_dict": body | head}, tmp_path)
    assert code == 0
    assert "unused, other: decode_head.conv_seg.weight, decode_head.num\n" in out
    assert "note: decode_head is another network's: left out, both heads keep initial" in out
    assert "from OpenMMLab with style='pytorch', convert with --torchvision" in out
    _, meta = load_variables(str(tmp_path / "out"))
    assert meta["source"]["heads"] == []


def test_the_network_s_own_tensors_must_be_weights(tmp_path, capsys):
    """Of a further tensor it is a note; of these it would be a hole in the network."""
    own = twin()
    eight = {k: v.to(torch.float8_e4m3fn) if v.dim() == 4 else v for k, v in own.items()}
    for content, words in (
        (eight, ["conv1.weight holds torch.float8_e4m3fn; expected float32, float16 or bfloat16",
                 "Save it again with value.float() for each value"]),
        ({**own, "bn1.bias": own["bn1.bias"].long()}, ["bn1.bias holds torch.int64"]),
        ({**own, "bn1.bias": own["bn1.bias"].to_sparse()},
         ["bn1.bias is not a dense tensor (torch.sparse_coo)"]),
        ({"module." + k: None if k == "bn1.bias" else v for k, v in own.items()},
         ["module.bn1.bias is not a dense tensor (NoneType)"]),
    ):
        refused(convert(capsys, content, tmp_path), tmp_path, "in.pth", *words)


def test_export_as_a_weights_folder(tmp_path, capsys):
    original = twin()
    assert convert(capsys, original, tmp_path)[0] == 0
    code, out, err = run(capsys, "--export", tmp_path / "out", tmp_path / "v1.0",
                         "--licence", "mit", "--trained_on", "rain")
    assert (code, err) == (0, "") and "model.safetensors, config.json, README.md" in out
    text = (tmp_path / "v1.0/config.json").read_text()
    assert '"licence": "mit"' in text and '"trained_on": "rain"' in text
    assert_same_tensors(dict(sorted(original.items())), dict(sorted(
        safetensors.torch.load_file(tmp_path / "v1.0/model.safetensors").items())))
    assert run(capsys, "--export", tmp_path / "v1.0", tmp_path / "bare.safetensors")[0] == 0
    assert ((tmp_path / "bare.safetensors").read_bytes()
            == (tmp_path / "v1.0/model.safetensors").read_bytes())
    for args, flag in ((["b.pth", "--licence", "mit"], "--licence"),
                       (["b", "--prefix", "module."], "--prefix"),
                       (["b", "--allow_four_branches"], "--allow_four_branches")):
        code, _, err = run(capsys, "--export", tmp_path / "out", *args)
        assert code == 2 and f"{flag}: not with this export" in err and err.count("\n") == 1


def test_what_a_weights_folder_says_counts_for_its_tensors(tmp_path, capsys):
    for name, changes in (("four", {"head_branches": 4}), ("odd", {"stride_in": "conv2"})):
        model = DeepLab(**TINY, **changes)
        save_variables(tmp_path / "c", initial_variables(model, 0), {"model": architecture(model)})
        assert run(capsys, "--export", tmp_path / "c", tmp_path / name)[0] == 0
    code, _, _ = run(capsys, tmp_path / "four/model.safetensors", tmp_path / "new",
                     "--reset_heads", "--num_classes", "19")
    assert code == 0 and load_variables(tmp_path / "new")[1]["model"]["head_branches"] == 4
    for source, words in (("odd/model.safetensors", "with stride_in conv2, which a file"),
                          ("four", "is a weights folder, which --checkpoint")):
        code, _, err = run(capsys, tmp_path / source, tmp_path / "none")
        assert code == 2 and words in err and err.count("\n") == 1, err


def test_classes_of_a_weights_folder_stay_with_its_tensors(tmp_path, capsys):
    model = DeepLab(**TINY | {"num_classes": 2})
    meta = {"model": architecture(model), "class_names": ["water", "land"]}
    save_variables(tmp_path / "c", initial_variables(model, 0), meta)
    assert run(capsys, "--export", tmp_path / "c", tmp_path / "w")[0] == 0
    assert run(capsys, tmp_path / "w/model.safetensors", tmp_path / "new")[0] == 0
    assert load_variables(tmp_path / "new")[1]["class_names"] == ["water", "land"]
    code, _, err = run(capsys, tmp_path / "w/model.safetensors", tmp_path / "other",
                       "--reset_heads", "--num_classes", "3")
    assert code == 2 and "--class_names is missing" in err


def test_missing_tensors_are_named(tmp_path, capsys):
    for name in ("layer3.0.bn2.running_var", "layer6.conv2d_list.1.bias", "IN2.bias",
                 "conv1.weight"):
        incomplete = {key: value for key, value in twin().items() if key != name}
        refused(convert(capsys, incomplete, tmp_path), tmp_path, "in.pth", name)


def test_shapes_that_do_not_fit_are_named(tmp_path, capsys):
    wrong = twin() | {"layer2.0.conv2.weight": torch.ones(8, 7, 3, 3)}
    refused(convert(capsys, wrong, tmp_path), tmp_path,
            "layer2.0.conv2.weight has (8, 7, 3, 3), expected (8, 8, 3, 3)", "Likely cause")
    for name in ("conv1.weight", "layer6.conv2d_list.0.weight"):
        refused(convert(capsys, twin() | {name: torch.tensor(1.0)}, tmp_path), tmp_path,
                f"{name} has the shape (); expected a kernel of 4 axes")


def test_mostly_unmatched_files(tmp_path, capsys):
    odd = {("conv1.weight" if name == "conv1.weight" else name.replace("conv", "convolution")
            .replace("bn", "norm")): value for name, value in twin("none").items()}
    refused(convert(capsys, odd, tmp_path), tmp_path, "only ", "bn1.weight",
            "layer1.0.convolution1.weight", "Likely cause: another network")
    wrapped = {f"encoder.{name}": value for name, value in twin("none").items()}
    refused(convert(capsys, wrapped, tmp_path), tmp_path, "no tensor conv1.weight",
            "encoder.conv1.weight", "prefix", "('encoder.' is one: save the file again without it)")
    deep = {name.replace("conv1", "stem.0") if name == "conv1.weight" else name: value
            for name, value in twin("none").items()}
    code, _, err = convert(capsys, deep, tmp_path)
    assert code == 2 and "no tensor conv1.weight" in err and "is one" not in err


def test_colliding_names(tmp_path, capsys):
    both = twin() | {"module.bn1.bias": torch.ones(4)}
    refused(convert(capsys, both, tmp_path), tmp_path, "'bn1.bias'", "'module.bn1.bias'")


def test_nothing_is_overwritten_and_failed_writes_leave_nothing(tmp_path, capsys, monkeypatch):
    assert convert(capsys, twin(), tmp_path)[0] == 0
    before = sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*") if p.name != "in.pth")
    code, _, err = convert(capsys, twin(), tmp_path)
    assert code == 2 and "exists already" in err
    assert before == sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*")
                            if p.name != "in.pth")

    def save_and_break(path, variables, meta):
        save_variables(path, variables, meta)
        raise OSError("disk full")

    monkeypatch.setattr(convert_torch_ckpt, "save_variables", save_and_break)
    with pytest.raises(OSError, match="disk full"):
        run(capsys, tmp_path / "in.pth", tmp_path / "second")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.pth", "out"]


def test_export_leaves_out_the_restitution_classifiers(tmp_path, capsys):
    model = DeepLab(**TINY, restitution_heads=True)
    meta = {"model": {**TINY, "norm_restitution": "snr", "head_branches": 2,
                      "stride_in": "conv1"}}
    save_variables(str(tmp_path / "trained"), initial_variables(model, 0), meta)
    code, out, _ = run(capsys, "--export", tmp_path / "trained", tmp_path / "out.pth")
    assert code == 0 and "restitution" in out
    exported = torch.load(tmp_path / "out.pth", weights_only=True)
    torch_twin.DeepLab(**TINY).load_state_dict(exported, strict=True)


def test_from_and_to_a_folder_that_is_a_pattern(tmp_path, capsys):
    """PyTorch's files may lie there; a checkpoint could not be read again."""
    odd = tmp_path / PATTERN
    odd.mkdir()
    assert convert(capsys, twin(), odd)[0] == 2  # writes to odd / "out"
    assert run(capsys, odd / "in.pth", tmp_path / "out")[0] == 0
    assert run(capsys, "--export", tmp_path / "out", odd / "out.pth")[0] == 0
    assert_same_tensors(torch.load(odd / "in.pth"), torch.load(odd / "out.pth"))
    assert {path.name for path in odd.iterdir()} == {"in.pth", "out.pth"}


def test_exporting_four_branches_is_asked_for(tmp_path, capsys):
    """The published code sums 2 branches; the same weights would compute something else there."""
    assert convert(capsys, twin(), tmp_path, "--head_branches", "4")[0] == 0
    code, _, err = run(capsys, "--export", tmp_path / "out", tmp_path / "back.pth")
    assert code == 2 and "head_branches=4" in err and "--allow_four_branches" in err
    assert not (tmp_path / "back.pth").exists()
    code, out, _ = run(capsys, "--export", tmp_path / "out", tmp_path / "back.pth",
                       "--allow_four_branches")
    assert code == 0 and "note: the heads sum 4 branches: right in ADVENT's code" in out
    assert_same_tensors(torch.load(tmp_path / "back.pth", weights_only=True), twin())


def outputs(folder, images):
    """Logits of both heads of the converted network, [N,H,W,C]."""
    variables, meta = load_variables(str(folder))
    model = create_recorded(meta["model"])
    result = jax.jit(lambda v: model.apply(v, images, train=False))(variables)
    return result.main, result.aux


def test_four_branches_compute_what_the_twin_with_four_computes(tmp_path, capsys):
    four = torch_twin.DeepLab(**TINY, head_branches=4).eval()
    images = np.random.default_rng(0).normal(0, 50, (1, 33, 41, 3)).astype(np.float32)
    code, out, _ = convert(capsys, four.state_dict(), tmp_path, "--head_branches", "4")
    assert code == 0 and "head_branches=4" in out and "ADVENT" not in out
    with torch.no_grad():
        wanted = four(torch.from_numpy(images.transpose(0, 3, 1, 2)))
    for got, want in zip(outputs(tmp_path / "out", images), wanted, strict=True):
        want = want.numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())


def test_nothing_in_a_file_says_how_many_branches_a_head_sums(tmp_path, capsys):
    code, out, _ = convert(capsys, twin(), tmp_path)
    assert code == 0 and "note: the heads sum 2 branches" in out
    assert "convert ADVENT's files with --head_branches 4" in out
    _, meta = load_variables(str(tmp_path / "out"))
    assert meta["model"]["head_branches"] == 2
    assert meta["source"]["heads"] == ["layer5", "layer6"]


def test_a_file_without_layer5_is_read_as_advents(tmp_path, capsys):
    single = {name: value for name, value in twin("none").items() if not name.startswith("layer5")}
    code, out, _ = convert(capsys, single, tmp_path)
    assert code == 0
    assert "note: layer6 without layer5 is the form of ADVENT's single-level networks" in out
    assert "--head_branches 2" not in out
    _, meta = load_variables(str(tmp_path / "out"))
    assert meta["model"]["head_branches"] == 4 and meta["source"]["heads"] == ["layer6"]
    (tmp_path / "two").mkdir()
    code, out, _ = convert(capsys, single, tmp_path / "two", "--head_branches", "2")
    assert code == 0 and "note: --head_branches 2: a head of ADVENT computes something else" in out
    _, meta = load_variables(str(tmp_path / "two" / "out"))
    assert meta["model"]["head_branches"] == 2


def test_training_on_with_other_branches_is_said(tmp_path, capsys):
    assert convert(capsys, twin(), tmp_path, "--head_branches", "4")[0] == 0
    (tmp_path / "new").mkdir()
    assert convert(capsys, twin(), tmp_path / "new", "--reset_heads")[0] == 0
    for folder, branches, told in (("out", 2, True), ("out", 4, False),
                                   ("new/out", 2, False), ("new/out", 4, False)):
        model = DeepLab(**TINY, head_branches=branches)
        with said() as lines:
            network.initialize(model, 0, str(tmp_path / folder))
        warned = [line for line in lines if "--config.model.head_branches=4" in line]
        assert bool(warned) == told, (folder, branches, lines)


def test_new_heads_have_the_branches_that_are_asked_for(tmp_path, capsys):
    for branches, folder in (("2", tmp_path / "two"), ("4", tmp_path / "four")):
        folder.mkdir()
        args = ("--reset_heads", *(("--head_branches", "4") if branches == "4" else ()))
        code, out, _ = convert(capsys, twin(), folder, *args)
        assert code == 0 and "ADVENT" not in out
        _, meta = load_variables(str(folder / "out"))
        assert meta["model"]["head_branches"] == int(branches)
        assert meta["source"]["heads"] == []


@pytest.mark.parametrize(("name", "value", "words"), [
    ("layer2.0.conv1.weight", float("nan"), "NaN or infinity in layer2.0.conv1.weight"),
    ("layer6.conv2d_list.1.bias", float("inf"), "NaN or infinity in layer6.conv2d_list.1.bias"),
    ("layer3.0.bn2.running_var", -1e-3, "negative variances in layer3.0.bn2.running_var"),
])
def test_values_that_no_network_has_are_refused(tmp_path, capsys, name, value, words):
    wrong = twin()
    wrong[name] = wrong[name].clone()
    wrong[name].view(-1)[-1] = value
    refused(convert(capsys, wrong, tmp_path), tmp_path, "in.pth", words, "diverged")


def test_values_that_are_left_out_may_be_anything(tmp_path, capsys):
    wrong = twin() | {"layer6.conv2d_list.1.bias": torch.full((13,), float("nan"))}
    wrong["bn1.running_mean"] = -torch.ones(4)
    wrong["bn1.running_var"] = torch.zeros(4)
    assert convert(capsys, wrong, tmp_path, "--reset_heads")[0] == 0


def test_other_class_counts_need_names(tmp_path, capsys):
    five = twin(num_classes=5)
    refused(convert(capsys, five, tmp_path), tmp_path, "5 classes", "--class_names is missing")
    for names in ("a,b,c,d", "a,b,c,d,d", "a,b,,d,e"):
        refused(convert(capsys, five, tmp_path, "--class_names", names), tmp_path,
                "5 different names", ", ".join(names.split(",")))
    code, out, _ = convert(capsys, five, tmp_path, "--class_names", "a,b,c,d,big car")
    assert code == 0 and "note: classes a, b, c, d, big car: recorded" in out
    _, meta = load_variables(str(tmp_path / "out"))
    assert meta["class_names"] == ["a", "b", "c", "d", "big car"]
    _, _, meta = network.load(str(tmp_path / "out"))
    assert class_names(network.classes_of(meta)) == ("a", "b", "c", "d", "big car")
    del meta["class_names"]
    with pytest.raises(UserError, match="5 classes and no names for them"):
        network.classes_of(meta)
    assert run(capsys, "--export", tmp_path / "out", tmp_path / "back.pth")[0] == 0
    assert_same_tensors(torch.load(tmp_path / "back.pth", weights_only=True), five)


def test_the_benchmarks_have_their_names(tmp_path, capsys):
    refused(convert(capsys, twin(), tmp_path, "--class_names", "a,b"), tmp_path,
            "13 classes are those of the benchmarks: road,sidewalk,building", "leave --class_names")
    assert convert(capsys, twin(), tmp_path, "--class_names", ",".join(class_names(13)))[0] == 0
    assert "class_names" not in load_variables(str(tmp_path / "out"))[1]


def test_seed_of_the_initial_values(tmp_path, capsys):
    kernels = []
    for name, args in (("a", ()), ("b", ("--seed", "0")), ("c", ("--seed", "1"))):
        (tmp_path / name).mkdir()
        assert convert(capsys, twin(), tmp_path / name, "--reset_heads", *args)[0] == 0
        variables, _ = load_variables(str(tmp_path / name / "out"))
        kernels.append(variables["params"]["layer6"]["conv2d_list_0"]["kernel"])
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[0], kernels[2])
    code, _, err = convert(capsys, twin(), tmp_path, "--seed", "-1")
    assert code == 2 and "--seed=-1" in err


def test_flags_of_the_other_direction_are_refused(tmp_path, capsys):
    for args in (["--export", "--num_classes", "5"], ["--export", "--class_names", "a"],
                 ["--export", "--variant", "snr"], ["--export", "--head_branches", "2"],
                 ["--export", "--reset_heads"], ["--export", "--torchvision"],
                 ["--export", "--seed", "0"], ["--export", "--weights", "model"],
                 ["--prefix", "module."], ["--allow_four_branches"], ["--licence", "mit"],
                 ["--trained_on", "gta5"]):
        code, _, err = run(capsys, *args, tmp_path / "a", tmp_path / "b")
        flag = args[1] if args[0] == "--export" else args[0]
        assert code == 2 and f"{flag}: not with" in err and err.count("\n") == 1


def test_command_line(tmp_path, capsys):
    for args, words in ((["--num_classes", "0", "a", "b"], "num_classes"),
                        (["--num-classes", "5", "a", "b"], "num_classes"),
                        (["--head_branches", "3", "a", "b"], "<2|4>"),
                        (["a"], "expected IN OUT, got a"), ([], "got nothing"),
                        (["a", "b", "c"], "expected IN OUT, got a b c")):
        code, _, err = run(capsys, *args)
        assert code == 2 and words in err and err.count("\n") == 1, err


def test_the_script_runs_from_any_folder(tmp_path):
    script = ROOT / "scripts/convert_torch_ckpt.py"
    (tmp_path / "in.pth").write_bytes(b"nothing")
    result = subprocess.run([sys.executable, script, "in.pth", "out"], cwd=tmp_path,
                            capture_output=True, text=True, check=False)
    assert result.returncode == 2 and result.stderr.startswith("error: in.pth: "), result.stderr
    assert "Traceback" not in result.stderr
