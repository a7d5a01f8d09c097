"""scripts/convert_torch_ckpt.py on files with DINOv2's weights, there and back."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy
import torch

from snr_jax import convert as convert_torch_ckpt
from snr_jax.config import arguments
from snr_jax.configs import toy_vfm
from snr_jax.core import labels
from snr_jax.core.errors import UserError
from snr_jax.core.models.backbone import architecture
from snr_jax.core.models.create import create_model
from snr_jax.core.models.light_head import ViTSegmenter
from snr_jax.core.state import initial_variables
from snr_jax.runs import network
from snr_jax.weights import dinov2_names
from snr_jax.workdir.checkpoints import load_variables, save_variables
from tests.commands import said
from twin.vit import Segmenter

TINY = {"num_classes": 19, "width": 16, "depth": 2, "heads": 2, "grid": 37}
PUBLISHED = {"snr_after": (), "norm_restitution": "none"}


def random_variables(seed=0, **changes):
    """Of which no two tensors are equal."""
    random = np.random.default_rng(seed)
    initial = initial_variables(ViTSegmenter(**{**TINY, **PUBLISHED, **changes}), 0)
    return jax.tree.map(lambda x: random.normal(0, 0.3, x.shape).astype(np.float32), initial)


STUDENT, TEACHER = random_variables(), random_variables(1)
FILES = {"dinov2": dinov2_names.to_dinov2(STUDENT),
         "transformers": dinov2_names.to_transformers(STUDENT),
         "vfm_uda": dinov2_names.to_vfm_uda(STUDENT, TEACHER)}


def run(capsys, *args):
    """The exit code and the two streams."""
    capsys.readouterr()
    code = convert_torch_ckpt.main(["convert_torch_ckpt", *map(str, args)])
    return code, *capsys.readouterr()


def write(path, tensors, under=""):
    content = {name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}
    torch.save({under: content} if under else content, path)
    return path


def convert(capsys, tensors, folder, *args, under=""):
    flags = () if "--attention_heads" in args else ("--attention_heads", 2)
    source = write(folder / "in.pth", tensors, under)
    return run(capsys, source, folder / "out", *flags, *args)


def refused(result, *words):
    code, _, err = result
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1, err
    assert all(word in err for word in words), (words, err)


def assert_same(have, want):
    """Two state dicts, bit for bit."""
    assert have.keys() == want.keys()
    for name, value in want.items():
        got = np.asarray(have[name])
        assert (got.dtype, got.shape) == (value.dtype, value.shape), name
        assert got.tobytes() == value.tobytes(), name


def save(path, variables, step=7, **changes):
    model = ViTSegmenter(**{**TINY, **PUBLISHED, **changes})
    save_variables(path, variables, {"model": architecture(model), "source": {"step": step}})
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save(tmp_path_factory.mktemp("vit") / "checkpoint", STUDENT)


# ---------------------------------------------------------------- in


@pytest.mark.parametrize("layout", FILES)
def test_there_and_back_bit_for_bit(tmp_path, capsys, layout):
    under = "state_dict" if layout == "vfm_uda" else ""
    code, out, err = convert(capsys, FILES[layout], tmp_path, under=under)
    assert (code, err) == (0, "")
    classes = "19" if under else "no"
    assert f"head for {classes} classes, 2 blocks, width 16, 2 heads of attention" in out
    assert "num_batches_tracked" not in out and ("note: no head in the file" in out) != bool(under)
    variables, meta = load_variables(tmp_path / "out")
    assert meta["model"] == {"backbone": "dinov2", **TINY, "patch": 14, "registers": 0, **PUBLISHED}
    assert meta["source"]["heads"] == (["upscale, out"] if under else [])
    assert_same(dinov2_names.to_dinov2(variables), FILES["dinov2"])

    code, out, err = run(capsys, "--export", tmp_path / "out", tmp_path / "back.pth",
                         "--layout", layout)
    assert (code, err) == (0, "") and f"layout {layout}" in out
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    if not under:
        assert_same(back, FILES[layout])
        return
    assert list(back) == ["state_dict"]
    assert_same(back["state_dict"], dinov2_names.to_vfm_uda(STUDENT))  # the teacher was left out


def test_the_teacher_of_a_training(tmp_path, capsys):
    whole = FILES["vfm_uda"] | {"metrics.0.confmat": np.zeros((2, 2), np.int64)}
    code, out, _ = convert(capsys, whole, tmp_path, "--weights", "ema_model", under="state_dict")
    assert code == 0 and "unused, student or teacher, the other: network.encoder." in out
    assert "note: left out, since no weights of this network: metrics.0.confmat" in out
    variables, _ = load_variables(tmp_path / "out")
    assert_same(dinov2_names.to_segmenter(variables), dinov2_names.to_segmenter(TEACHER))
    (tmp_path / "student").mkdir()
    code, out, _ = convert(capsys, whole, tmp_path / "student")
    assert code == 0 and "the student was taken. For the teacher: --weights ema_model" in out
    (tmp_path / "alone").mkdir()
    alone = {name: value for name, value in whole.items() if name.startswith("network.")}
    refused(convert(capsys, alone, tmp_path / "alone", "--weights", "ema_model"),
            "no tensor network_ema.*", "--weights model: network")
    for sort in ("dinov2", "transformers"):
        (tmp_path / sort).mkdir()
        refused(convert(capsys, FILES[sort], tmp_path / sort, "--weights", "model"),
                "no network model in it", "leave --weights out")


def test_flags_of_the_other_kind_are_refused_by_name(tmp_path, capsys):
    for flag in (["--variant", "snr"], ["--head_branches", "2"], ["--torchvision"]):
        refused(convert(capsys, FILES["dinov2"], tmp_path, *flag), f"{flag[0]}: not for a DINOv2",
                str(tmp_path / "in.pth"), "leave it out")
    refused(convert(capsys, FILES["dinov2"], tmp_path, "--torchvision", "--variant", "snr"),
            "--variant, --torchvision: not for")
    refused(convert(capsys, {"conv1.weight": np.zeros((4, 3, 7, 7), np.float32)}, tmp_path),
            "--attention_heads: not for a ResNet")
    assert not (tmp_path / "out").exists()


def test_heads_of_the_attention(tmp_path, capsys):
    source = write(tmp_path / "in.pth", FILES["dinov2"])
    refused(run(capsys, source, tmp_path / "out"), str(source), "16 channels", "number of heads")
    refused(convert(capsys, FILES["dinov2"], tmp_path, "--attention_heads", 3), "of the 3 heads")
    assert convert(capsys, FILES["dinov2"], tmp_path, "--attention_heads", 4)[0] == 0
    assert load_variables(tmp_path / "out")[1]["model"]["heads"] == 4


def test_another_class_count_needs_reset_heads(tmp_path, capsys):
    refused(convert(capsys, FILES["vfm_uda"], tmp_path, "--num_classes", 13),
            "19 classes", "--num_classes asks for 13", "--reset_heads")
    assert convert(capsys, FILES["vfm_uda"], tmp_path, "--num_classes", 13, "--reset_heads")[0] == 0
    variables, meta = load_variables(tmp_path / "out")
    assert meta["model"]["num_classes"] == 13 and meta["source"]["heads"] == []
    assert variables["params"]["head"]["out"]["kernel"].shape == (1, 1, 4, 13)


# ---------------------------------------------------------------- of transformers


CONFIG = {"model_type": "dinov2", "num_attention_heads": 2, "hidden_act": "gelu",
          "layer_norm_eps": 1e-6, "use_swiglu_ffn": False}


def hugging_face(folder, tensors=FILES["transformers"], shards=1, **changes):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    names = ["model.safetensors"] if shards == 1 else [
        f"model-{i}-of-{shards}.safetensors" for i in range(shards)]
    places = {name: names[i % shards] for i, name in enumerate(tensors)}
    for name in names:
        of_it = {key: np.ascontiguousarray(tensors[key]) for key in tensors if places[key] == name}
        safetensors.numpy.save_file(of_it, folder / name)
    if shards > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


@pytest.mark.parametrize("shards", [1, 3])
def test_a_folder_of_transformers(tmp_path, capsys, shards):
    """Query, key and value of a block lie in different shards."""
    source = hugging_face(tmp_path / "base", shards=shards)
    code, out, err = run(capsys, source, tmp_path / "out")
    assert (code, err) == (0, "") and "a folder of the transformers package, safetensors" in out
    variables, meta = load_variables(tmp_path / "out")
    assert_same(dinov2_names.to_dinov2(variables), FILES["dinov2"])
    assert meta["model"]["heads"] == 2
    assert meta["source"]["file"].startswith("base/model.safetensors")


def test_folders_of_transformers_that_cannot_be_read(tmp_path, capsys):
    def told(name, *words, mend=lambda folder: None, shards=1, **changes):
        folder = hugging_face(tmp_path / name, shards=shards, **changes)
        mend(folder)
        refused(run(capsys, folder, tmp_path / "out"), name, *words)
        assert not (tmp_path / "out").exists()

    told("a", "model_type 'segformer'; expected one of dinov2, dinov2_with_registers",
         model_type="segformer")
    told("b", "use_swiglu_ffn True; expected False", use_swiglu_ffn=True)
    told("c", "num_attention_heads 'two'", num_attention_heads="two")
    told("d", "lacks model-1-of-2.safetensors, which model.safetensors.index.json names", shards=2,
         mend=lambda folder: (folder / "model-1-of-2.safetensors").unlink())
    told("e", "neither model.safetensors nor model.safetensors.index.json",
         mend=lambda folder: (folder / "model.safetensors").unlink())
    told("f", "config.json cannot be read",
         mend=lambda folder: (folder / "config.json").write_text("{"))
    told("g", "no weight_map", shards=2, mend=lambda folder: (
        folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../b"}}'))
    told("h", "no patch embedding", tensors={"a": np.zeros(3, np.float32)})


def test_transformers_reads_what_is_written_for_it(tmp_path, capsys):
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=518, patch_size=14)
    theirs = transformers.Dinov2Model(config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    code, _, err = run(capsys, tmp_path / "theirs", tmp_path / "out")
    assert (code, err) == (0, "")
    config.save_pretrained(tmp_path / "ours")
    assert run(capsys, "--export", tmp_path / "out", tmp_path / "ours/model.safetensors",
               "--layout", "transformers")[0] == 0
    ours = transformers.Dinov2Model.from_pretrained(tmp_path / "ours")
    assert_same(ours.state_dict(), {k: v.numpy() for k, v in theirs.state_dict().items()})


# ---------------------------------------------------------------- out


def test_published_code_computes_the_same_with_an_export(tmp_path, capsys, checkpoint):
    assert run(capsys, "--export", checkpoint, tmp_path / "a.safetensors")[0] == 0
    tensors = {name.removeprefix("network."): torch.from_numpy(value) for name, value in
               safetensors.numpy.load_file(tmp_path / "a.safetensors").items()
               if name.startswith("network.") and "token_masking" not in name}
    model = Segmenter(**TINY).eval()
    model.load_state_dict(tensors, strict=True)
    image = np.random.default_rng(0).normal(size=(1, 28, 28, 3)).astype(np.float32)
    ours, variables, _ = network.load(checkpoint)
    got = jax.jit(lambda v: ours.apply(v, image, train=False).main)(variables)
    with torch.no_grad():
        want = model(torch.from_numpy(image.transpose(0, 3, 1, 2))).numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize(("step", "name", "there"), [
    (7, "final", TEACHER), (6, "final", STUDENT), (7, "best_source", STUDENT)])
def test_a_run_brings_its_teacher(tmp_path, capsys, step, name, there):
    """That of the same step beside the final student, and no other."""
    save(tmp_path / "run/checkpoints" / name, STUDENT)
    save(tmp_path / "run/checkpoints/teacher", TEACHER, step)
    path = tmp_path / "run" if name == "final" else tmp_path / "run/checkpoints" / name
    code, out, _ = run(capsys, "--export", path, tmp_path / "a.pth")
    assert code == 0 and ("those of the run's teacher" in out) == (there is TEACHER)
    back = torch.load(tmp_path / "a.pth", weights_only=True)["state_dict"]
    assert_same(back, dinov2_names.to_vfm_uda(STUDENT, there))


def test_what_is_not_exported(tmp_path, capsys, checkpoint):
    target = tmp_path / "a.pth"
    refused(run(capsys, "--export", checkpoint, target, "--allow_four_branches"),
            "--allow_four_branches: not for a DINOv2 transformer", str(checkpoint))
    refused(run(capsys, "--export", checkpoint, tmp_path / "folder", "--layout", "dinov2"),
            "--layout: not with this export")
    refused(run(capsys, checkpoint, target, "--layout", "dinov2"), "--layout: not without --export")
    changes = {"snr_after": (1,), "norm_restitution": "snr"}
    with_snr = save(tmp_path / "snr", random_variables(**changes), **changes)
    refused(run(capsys, "--export", with_snr, target), str(with_snr), "encoder/snr_1/",
            "a weights folder")
    assert not target.exists()


# ---------------------------------------------------------------- training begins with it


def start(init_from, classes=None, **overrides):
    """Initial variables of a run, and the lines that it says."""
    config = toy_vfm.get_config("source")
    config.model.vit_size = (16, 2, 2)
    for key, value in overrides.items():
        (config if key in config else config.model)[key] = value
    model = create_model(**arguments.model_arguments(config, None))
    with said() as lines:
        return network.initialize(model, 0, str(init_from), classes=classes), "\n".join(lines)


def test_training_begins_with_a_converted_backbone(tmp_path, capsys):
    assert convert(capsys, FILES["dinov2"], tmp_path)[0] == 0
    # The new head has no classes yet: another order of theirs is none to compare.
    other = labels.own_classes([f"own {i}" for i in range(19)])
    variables, _ = start(tmp_path / "out", other)
    assert_same(dinov2_names.to_dinov2(variables), FILES["dinov2"])
    variables, lines = start(tmp_path / "out", snr_after=(1,))
    assert "new, at their initial values: " in lines and "encoder/snr_1/" in lines
    assert "blocks" not in lines.partition("new, at their")[2]
    rows = [line.split() for line in lines.splitlines()]
    assert {("snr", "0", "6", "0"), ("encoder", "35", "0", "0"), ("head", "10", "0", "0")} <= {
        tuple(row) for row in rows}
    del variables["params"]["encoder"]["snr_1"]
    assert_same(dinov2_names.to_dinov2(variables), FILES["dinov2"])


def test_training_refuses_other_networks(tmp_path, capsys):
    assert convert(capsys, FILES["vfm_uda"], tmp_path)[0] == 0
    out = tmp_path / "out"
    for overrides, words in (
        ({"num_classes": 13}, "num_classes 19 there, 13 here"),
        ({"vit_size": (16, 2, 4)}, "heads 2 there, 4 here"),
        ({"registers": 4}, "registers 0 there, 4 here"),
        ({"backbone": "resnet101", "stage_sizes": (1, 1, 1, 1), "width": 4},
         "backbone dinov2 there, resnet here"),
    ):
        with pytest.raises(UserError, match=words):
            start(out, **overrides)
    with pytest.raises(UserError, match="know other classes than the configuration"):
        start(out, labels.own_classes([f"own {i}" for i in range(19)]))
