"""Weights folders: what is written comes back bit for bit, and a folder that lies is told."""

import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
import yaml
from PIL import Image

import twin as torch_twin
from snr_jax.core.errors import UserError
from snr_jax.core.labels import class_names
from snr_jax.core.models.backbone import architecture
from snr_jax.core.models.deeplab import DeepLab
from snr_jax.core.state import initial_variables
from snr_jax.inference.views import create_view
from snr_jax.runs import network
from snr_jax.runs.weights import save
from snr_jax.toy.writer import MARKER
from snr_jax.weights import folder as weights_folder
from snr_jax.workdir import checkpoints, record
from tests.commands import said

TINY = {"stage_sizes": (1, 1, 1, 1), "width": 4}
SETTINGS = {"domain": "cityscapes", "split": "val", "images": 500, "size": [33, 65],
            "protocol": "network", "flip": False, "dtype": "float32", "step": 20}
SCORES = {"cityscapes": {"settings": SETTINGS, "miou": 0.4268,
                         "iou": {"road": 0.9, "train": np.nan}}}
SOURCE = {"kind": "run", "workdir": "/home/ada/secret", "step": 20, "recipe": "paper",
          "input_size": (33, 65)}


def random_variables(model, seed=0):
    """Values that no two tensors share, those of statistics too."""
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda x: random.uniform(0.1, 1, x.shape).astype(np.float32),
                        initial_variables(model, 0))


def write_checkpoint(path, model, **meta):
    meta = {"model": architecture(model), "source": SOURCE, "scores": SCORES, **meta}
    checkpoints.save_variables(path, random_variables(model), meta)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("network") / "checkpoint", DeepLab(**TINY))


@pytest.fixture(scope="module")
def written(checkpoint):
    return save(checkpoint, checkpoint.with_name("weights"))


@pytest.fixture
def copy(written, tmp_path):
    return shutil.copytree(written, tmp_path / "copy")


def read(folder, name="config.json"):
    def refuse(constant):
        raise ValueError(constant)  # JSON has no NaN

    return json.loads((folder / name).read_text(), parse_constant=refuse)


def card_of(folder):
    """The front matter and the text of the card."""
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), text


def assert_equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


# ---------------------------------------------------------------- there and back


@pytest.mark.parametrize("arguments", [
    {"restitution_heads": True},
    {"norm_restitution": "none", "head_branches": 4, "stride_in": "conv2", "exposure": True,
     "num_classes": 5},
], ids=["snr", "odd"])
def test_there_and_back(tmp_path, arguments):
    model = DeepLab(**{**TINY, **arguments})
    counters = {"layer1.0.bn1.num_batches_tracked": 7}
    own = {"class_names": list("abcde")} if model.num_classes == 5 else {}
    write_checkpoint(tmp_path / "one", model, **own,
                     source={**SOURCE, "heads": ["layer6"], "num_batches_tracked": counters})
    first = save(tmp_path / "one", tmp_path / "first")
    variables, meta = checkpoints.load_variables(first)
    assert_equal(variables, checkpoints.load_variables(tmp_path / "one")[0])
    assert meta["model"] == architecture(model)
    if model.restitution_heads:
        assert "restitution3" in variables["params"]
    checkpoints.save_variables(tmp_path / "two", variables, meta)
    second = save(tmp_path / "two", tmp_path / "second")
    third = save(first, tmp_path / "third")
    for again in (second, third):
        for name in ("model.safetensors", "config.json"):
            assert (again / name).read_bytes() == (first / name).read_bytes(), name
    assert safetensors.numpy.load_file(first / "model.safetensors")[next(iter(counters))] == 7
    assert {path.name for path in first.iterdir()} == {"model.safetensors", "config.json",
                                                       "README.md"}
    assert len({record._initial(str(tmp_path / n)) for n in ("one", "two", "first", "third")}) == 1


def test_float64_stays(tmp_path):
    model = DeepLab(**TINY)
    variables = jax.tree.map(np.float64, random_variables(model))
    checkpoints.save_variables(tmp_path / "c", variables, {"model": architecture(model)})
    assert_equal(checkpoints.load_variables(save(tmp_path / "c", tmp_path / "w"))[0], variables)


def test_pytorch_computes_the_same_with_it(written):
    model = torch_twin.DeepLab(**TINY, num_classes=19).eval()
    model.load_state_dict(safetensors.torch.load_file(written / "model.safetensors"), strict=True)
    images = np.random.default_rng(0).normal(0, 50, (1, 33, 41, 3)).astype(np.float32)
    net, variables, _ = network.load(written)
    ours = jax.jit(lambda v: net.apply(v, images, train=False))(variables)
    with torch.no_grad():
        want = model(torch.from_numpy(images.transpose(0, 3, 1, 2)))[0].numpy()
    np.testing.assert_allclose(ours.main, want.transpose(0, 2, 3, 1),
                               atol=1e-4 * np.abs(want).max())


def test_config_says_what_a_reader_needs(written, checkpoint):
    config = read(written)
    assert config["model"] == {**architecture(DeepLab(**TINY)), "stage_sizes": [1, 1, 1, 1]}
    assert config["class_names"] == list(class_names(19))
    assert config["class_colors"][0] == [128, 64, 128]
    assert config["preprocessing"] == {
        "channels": "BGR", "mean": [104.00698793, 116.66876762, 122.67891434], "exposure": False,
        "size": [33, 65]}
    assert config["licence"] is config["trained_on"] is config["datasets"] is None
    assert config["scores"]["cityscapes"]["settings"] == SETTINGS
    assert config["scores"]["cityscapes"]["iou"]["train"] is None
    assert "secret" not in (written / "config.json").read_text()
    _, _, meta = network.load(written)
    assert np.isnan(meta["scores"]["cityscapes"]["iou"]["train"])
    assert checkpoints.find(written).step == checkpoints.find(checkpoint).step == 20


def test_tensors_are_written_as_they_are_and_not_as_they_lie(tmp_path):
    turned = np.arange(6, dtype=np.float32).reshape(2, 3).T
    weights_folder.write_tensors(tmp_path / "t.safetensors", {"t": turned, "n": np.int64(3)})
    back = safetensors.torch.load_file(tmp_path / "t.safetensors")
    np.testing.assert_array_equal(back["t"], turned)
    assert back["n"].shape == () and back["n"] == 3


# ---------------------------------------------------------------- the commands


def test_commands_take_a_folder_as_they_take_the_checkpoint(
        written, checkpoint, command, train_flags, tmp_path):
    photo = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    (tmp_path / "photos").mkdir()
    Image.fromarray(photo).save(tmp_path / "photos/a.png")
    flags = train_flags("configs/gta5_dg.py", "nowhere")
    flags = [f for f in flags if f not in ("--workdir", "nowhere")]
    for name, path in (("c", checkpoint), ("w", written)):
        out = tmp_path / name
        result = command("predict", "--checkpoint", path, "--images", tmp_path / "photos",
                         "--out", out / "photos", "--confidence")
        assert result.code == 0 and "seen by the network at 33x65 as in its training" in result.out
        result = command("evaluate", *flags, "--checkpoint", path, "--out", out, "--protocol",
                         "network", "--flip", "no", "--max_images", "1", "--pictures", "0")
        assert result.code == 0, result
    one, other = (read(tmp_path / name, "evaluation.json") for name in "cw")
    assert one["results"] == other["results"] and one["model"] == other["model"]
    images = sorted(path.name for path in (tmp_path / "c/photos").iterdir())
    assert len(images) == 5
    for name in images:
        assert ((tmp_path / "c/photos" / name).read_bytes()
                == (tmp_path / "w/photos" / name).read_bytes()), name


def test_training_begins_with_the_same_values(written, checkpoint):
    model = DeepLab(**TINY, restitution_heads=True)
    with said() as lines:
        one, other = (network.initialize(model, 0, str(p)) for p in (checkpoint, written))
    assert_equal(one, other)
    assert "initial values from" in lines[-2] and str(written) in lines[-2]


# ---------------------------------------------------------------- lies


def edit(folder, change):
    config = read(folder)
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def tensors(folder, change):
    file = folder / "model.safetensors"
    found = safetensors.torch.load_file(file)
    change(found)
    safetensors.torch.save_file(found, file)


def cut(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def point(folder):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")


def other_dtype(name, dtype):
    return lambda t: t.update({name: t[name].to(dtype)})


LIES = {
    "no tensors": (lambda f: (f / "model.safetensors").unlink(), ["model.safetensors is missing"]),
    "no config": (lambda f: (f / "config.json").unlink(), [
        "config.json is missing", "scripts/convert_torch_ckpt.py"]),
    "cut": (cut, ["model.safetensors is no whole safetensors file ("]),
    "pointer": (point, ["it is a pointer of Git LFS, which git lfs pull replaces"]),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), ["config.json cannot be read: Exp"]),
    "no text": (lambda f: (f / "config.json").write_bytes(b"\xff"), ["config.json cannot be read"]),
    "no table": (lambda f: (f / "config.json").write_text("[]"), ["is of another project"]),
    "transformers": (
        lambda f: (f / "config.json").write_text('{"model_type": "segformer", "depths": [2]}'),
        ["config.json is of another project (its model_type is 'segformer')"]),
    "later": (lambda f: edit(f, lambda c: c.update(format=2)), ["has format 2", "reads 1"]),
    "lacks": (lambda f: edit(f, lambda c: c.pop("class_names")), ["lacks 'class_names'"]),
    "lacks the model": (lambda f: edit(f, lambda c: c.pop("model")), ["it lacks 'model'"]),
    "lacks a checksum": (lambda f: edit(f, lambda c: c.pop("checksum")), ["lacks 'checksum'"]),
    "classes": (lambda f: edit(f, lambda c: c["class_names"].pop()), [
        "config.json cannot be read: it is damaged: it differs from its checksum"]),
    "another network": (lambda f: edit(f, lambda c: c["model"].update(width=8)), ["checksum"]),
    "licence": (lambda f: edit(f, lambda c: c.update(licence=["mit"])), [
        "has licence ['mit']; expected a text, or null"]),
    "input": (lambda f: edit(f, lambda c: c["preprocessing"].update(channels="RGB")), [
        "preprocessing.channels 'RGB'; this network was trained with 'BGR'"]),
    "missing": (lambda f: tensors(f, lambda t: t.pop("bn1.running_var")), [
        "model.safetensors lacks bn1.running_var, which the network of config.json has"]),
    "further": (lambda f: tensors(f, lambda t: t.update({"fc.bias": torch.ones(2)})), [
        "holds fc.bias, which the network of config.json does not have"]),
    "misshapen": (
        lambda f: tensors(f, lambda t: t.update({"bn1.bias": t["bn1.bias"].reshape(2, 2)})),
        ["bn1.bias has the shape (2, 2); the network of config.json has (4,)"]),
    "half": (lambda f: tensors(f, other_dtype("conv1.weight", torch.bfloat16)), [
        "conv1.weight is BF16; expected F32 or F64"]),
    "integers": (lambda f: tensors(f, other_dtype("bn1.bias", torch.int32)), ["bn1.bias is I32"]),
    "double": (lambda f: tensors(f, other_dtype("bn1.bias", torch.float64)), [
        "model.safetensors is damaged: 1 of ", "['params']['bn1']['bias'] the first"]),
    "values": (lambda f: tensors(f, lambda t: t["layer4.0.bn2.running_mean"].add_(1)), [
        "['batch_stats']['layer4_0']['bn2']['mean'] the first"]),
    "exchanged": (lambda f: tensors(f, lambda t: t.update({
        "bn1.weight": t["bn1.bias"], "bn1.bias": t["bn1.weight"]})), ["2 of "]),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_folder_that_lies_is_told_in_one_line(copy, lie):
    make, words = LIES[lie]
    make(copy)
    with pytest.raises(UserError) as error:
        network.load(copy)
    message = str(error.value)
    assert "\n" not in message and str(copy) in message
    assert all(word in message for word in words), message
    assert any(way in message for way in ("Copy the folder again", "convert_torch_ckpt", "Install",
                                          "Mend it there")), message


def test_what_a_config_says_consistently_and_wrongly(copy):
    """Its checksum is no secret: whoever writes it anew still has to be right."""
    def relabel(config):
        config["class_names"].pop()
        meta = {k: v for k, v in config.items() if k not in weights_folder.ABOUT}
        meta["scores"] = weights_folder._with_nan(meta["scores"])
        config["checksum"] = checkpoints.metas.checksum(meta)

    edit(copy, relabel)
    with pytest.raises(UserError, match="it has 18 class_names for 19 classes"):
        checkpoints.find(copy)


def test_licence_and_words_may_be_edited(copy):
    edit(copy, lambda c: c.update(licence="mit", trained_on="streets of Ulm"))
    again = save(copy, copy.with_name("again"))
    assert read(again)["licence"] == "mit" and read(again)["trained_on"] == "streets of Ulm"


def test_a_folder_of_something_else(tmp_path):
    """A config.json beside a checkpoint, or in a run's folder, does not make it another kind."""
    write_checkpoint(tmp_path / "run/checkpoints/final", DeepLab(**TINY))
    for place in (tmp_path / "run", tmp_path / "run/checkpoints/final"):
        (place / "config.json").write_text("{}")
    found = checkpoints.find(tmp_path / "run")
    assert found.name == "final" and checkpoints.load_variables(found)[1]["source"]["step"] == 20


# ---------------------------------------------------------------- writing


def test_nothing_is_overwritten_and_a_failed_write_leaves_nothing(
        checkpoint, written, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="weights: exists already"):
        save(checkpoint, written)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file: exists already"):
        save(checkpoint, tmp_path / "file")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights_folder, "card", full)
    with pytest.raises(OSError, match="No space left"):
        save(checkpoint, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_network_in_memory(checkpoint, written, tmp_path):
    net, variables, meta = network.load(checkpoint)
    segmenter = SimpleNamespace(model=net, variables=jax.tree.map(jax.numpy.asarray, variables),
                                meta=meta)
    same = save(segmenter, tmp_path / "same")
    assert read(same) == read(written)
    assert ((same / "model.safetensors").read_bytes()
            == (written / "model.safetensors").read_bytes())
    # Trained on: the scores and the steps are not those of these values.
    segmenter.variables["params"]["conv1"]["kernel"] += 1
    changed = save(segmenter, tmp_path / "changed")
    assert "scores" not in read(changed) and read(changed)["source"] == {"input_size": [33, 65]}
    assert "How good it is: no score is recorded." in card_of(changed)[1]
    assert_equal(checkpoints.load_variables(changed)[0], jax.device_get(segmenter.variables))
    # It goes on to see what it saw, but for tiles, whose size is none of an image.
    for tile, size in ((None, [48, 96]), ((48, 96), [33, 65])):
        segmenter.view = SimpleNamespace(size=(48, 96), tile=tile, why="")
        folder = save(segmenter, tmp_path / f"seen{size[0]}")
        assert read(folder)["source"]["input_size"] == size
    # That nobody chose a size is told, and not that it is 512 x 1024.
    segmenter.meta = {key: value for key, value in meta.items() if key != "source"}
    segmenter.view = create_view(segmenter.meta)
    folder = save(segmenter, tmp_path / "unknown")
    assert "input_size" not in read(folder)["source"]
    assert "At what size it saw images in its training." in card_of(folder)[1]


def test_the_files_are_for_whom_the_umask_allows(written):
    modes = {path.name: path.stat().st_mode for path in written.iterdir()}
    assert modes["model.safetensors"] == modes["config.json"] == modes["README.md"]


def test_a_name_that_ends_as_a_file_is_no_folder(checkpoint, tmp_path):
    with pytest.raises(UserError, match=r"x\.pth ends as a file; a weights folder is written"):
        save(checkpoint, tmp_path / "x.pth")
    assert not (tmp_path / "x.pth").exists()


def test_what_could_not_be_read_back_is_not_written(checkpoint, tmp_path):
    net, variables, meta = network.load(checkpoint)
    half = jax.tree.map(lambda x: x.astype(np.float16), variables)
    with pytest.raises(UserError, match="is float16; expected float32"):
        save(SimpleNamespace(model=net, variables=half, meta=meta), tmp_path / "half")
    with pytest.raises(UserError, match="tensors are not those of the model, IN1"):
        save(SimpleNamespace(model=net.clone(width=8), variables=variables, meta=meta),
             tmp_path / "wide")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- the card


def write_run(folder, name, scores):
    """A run that adapted, as its record tells it, with one checkpoint."""
    write_checkpoint(folder / "checkpoints" / name, DeepLab(**TINY), scores=scores)
    data = {"source": {"domain": "/home/ada/secret/town.yaml", "split": "train", "images": 90},
            "target": {"domain": "cityscapes", "split": "train", "images": 2975}}
    data["source_val"] = data["source"]
    config = {"seed": 0, "num_steps": 20, "init_from": "/home/ada/secret/init",
              "source": {"domain": "/home/ada/secret/town.yaml"}}
    (folder / "run.json").write_text(json.dumps({
        "config": config, "initial": "ab", "data": data, "starts": [{"time": "today"}]}))
    return folder / "checkpoints" / name


def test_card_of_a_run(tmp_path):
    own = {**SETTINGS, "domain": "/home/ada/secret/town.yaml"}
    scores = {"town": {"settings": own, "miou": 0.5, "iou": {}}, **SCORES,
              "none": {"settings": SETTINGS, "miou": np.nan, "iou": {}}}
    path = write_run(tmp_path / "run", "oracle_target", scores)
    folder = save(path, tmp_path / "city", licence="CC-BY-NC-4.0")
    front, text = card_of(folder)
    assert front["license"] == "cc-by-nc-4.0" and front["library_name"] == "snr_jax"
    assert front["pipeline_tag"] == "image-segmentation"
    assert front["datasets"] == ["town", "cityscapes"] and front["metrics"] == ["mean_iou"]
    (entry,) = front["model-index"]
    assert entry["name"] == "city"
    assert [(r["dataset"]["name"], r["metrics"][0]["value"]) for r in entry["results"]] == [
        ("town", 0.5), ("cityscapes", 0.4268)]
    assert "| cityscapes val | 42.7 | 500 images seen at 33x65, protocol network, float32 |" in text
    assert ("| trained on | town (train, 90 images) and, without labels, cityscapes (train, 2975 "
            "images), from the weights init |") in text
    assert "labelled images of the target, which adaptation does not have" in text
    assert "Not known" not in text
    for name in ("README.md", "config.json"):
        assert "secret" not in (folder / name).read_text()


def test_card_of_a_network_that_saw_drawings(tmp_path):
    path = write_run(tmp_path / "run", "final", {})
    (tmp_path / "sets/town").mkdir(parents=True)
    (tmp_path / "sets/town" / MARKER).touch()
    there = json.loads((tmp_path / "run/run.json").read_text())
    there["config"] |= {"data": {"root": str(tmp_path / "sets")}, "target": {"dir": "Cityscapes"}}
    there["config"]["source"]["dir"] = "town"
    (tmp_path / "run/run.json").write_text(json.dumps(there))
    front, text = card_of(save(path, tmp_path / "w"))
    assert ("| trained on | drawings laid out as town (train, 90 images) and, without labels, "
            "cityscapes (train,") in text
    assert front["datasets"] == ["cityscapes"]


def test_card_of_a_network_of_which_little_is_known(tmp_path):
    model = DeepLab(**TINY, head_branches=4, restitution_heads=True)
    meta = {"model": architecture(model), "source": {"heads": [], "file": "x.pth"}}
    checkpoints.save_variables(tmp_path / "c", random_variables(model), meta)
    front, text = card_of(save(tmp_path / "c", tmp_path / "w"))
    assert not {"license", "datasets", "metrics", "model-index"} & front.keys()
    unknown = text[text.index("## Not known"):]
    assert unknown.count("\n- ") == 5 and "The licence: ask whoever made this" in unknown
    assert "with them, or nothing, since this network has head_branches 4, width 4" in text
    assert "restitution1 to restitution3" in text and "converted from | x.pth" in text
    front, _ = card_of(save(tmp_path / "c", tmp_path / "o", licence="ask Ada: by mail"))
    assert (front["license"], front["license_name"]) == ("other", "ask Ada: by mail")


@pytest.mark.parametrize(("name", "want"), [("final", [0.4268]), ("teacher", [0.5])])
def test_a_teacher_and_its_student_have_their_own_scores(tmp_path, name, want):
    scores = {**SCORES, "cityscapes_teacher": {"settings": SETTINGS, "miou": 0.5, "iou": {}}}
    path = write_run(tmp_path / "run", name, scores)
    folder = save(path, tmp_path / "w")
    front, _ = card_of(folder)
    assert [r["metrics"][0]["value"] for r in front["model-index"][0]["results"]] == want
    net, variables, meta = network.load(path)
    memory = save(SimpleNamespace(model=net, variables=variables, meta=meta), tmp_path / "m")
    assert "scores" not in read(memory)
