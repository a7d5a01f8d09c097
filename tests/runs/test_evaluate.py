"""The evaluation command: its numbers, what it writes, and what it refuses."""

import json
import shutil
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from snr_jax.core import metrics
from snr_jax.core.files import without_nan
from snr_jax.core.labels import class_names
from snr_jax.core.models.backbone import architecture
from snr_jax.core.models.deeplab import DeepLab
from snr_jax.core.state import initial_variables
from snr_jax.data.decode import resize_image
from snr_jax.data.domains import create_domain
from snr_jax.data.samples import list_samples
from snr_jax.evaluate import _write_scores
from snr_jax.runs import network
from snr_jax.workdir import checkpoints
from tests.data.tiny_sets import TRAIN_IDS, write_gta5
from tests.runs import counting

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ("network", "network+flip", "full", "full+flip")


@pytest.fixture
def configured(train_flags, cache):
    """The flags of the tiny configuration, without a checkpoint."""
    flags = train_flags("configs/gta5_dg.py", "nowhere")
    return [f for f in flags if f not in ("--workdir", "nowhere", "--compilation_cache", cache)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A network that predicts many classes: twenty steps of training would leave it with one."""
    return save_network(tmp_path_factory.mktemp("untrained") / "checkpoint", num_classes=19)


def save_network(path, num_classes):
    model = DeepLab(num_classes=num_classes, stage_sizes=(1, 1, 1, 1), width=4)
    variables = jax.tree_util.tree_map_with_path(
        lambda path, x: 15 * x if path[-1].key == "kernel" else x, initial_variables(model, 0)
    )
    source = {"step": 20, "recipe": "paper", "input_size": (33, 65)}
    checkpoints.save_variables(path, variables, {"model": architecture(model), "source": source})
    return path


@pytest.fixture
def evaluate_flags(configured, checkpoint):
    return [*configured, "--checkpoint", str(checkpoint)]


@pytest.fixture(scope="module")
def done():
    return {}


@pytest.fixture
def evaluated(done, evaluate_flags, command, tmp_path_factory):
    """Result of the command, its folder and its JSON; run once."""
    if not done:
        out = tmp_path_factory.mktemp("evaluated")
        result = command("evaluate", *evaluate_flags, "--out", out, "--pictures=2")
        assert result.code == 0, result
        done.update(result=result, out=out, record=read_record(out))
    return done


def read_record(out):
    return json.loads((out / "evaluation.json").read_text())


def scores_in_numpy(labels, predictions, num_classes=19):
    """Intersection over union per class, and their mean, by sets of pixels."""
    label, prediction = (np.concatenate([x.ravel() for x in xs]) for xs in (labels, predictions))
    label, prediction = label[label != 255], prediction[label != 255]
    iou = {}
    for c, name in enumerate(class_names(num_classes)):
        union = ((label == c) | (prediction == c)).sum()
        both = ((label == c) & (prediction == c)).sum()
        iou[name] = both / union if union else np.nan
    return iou, np.nanmean(list(iou.values())), (label == prediction).mean()


@pytest.mark.parametrize("name", RESULTS)
def test_numbers_are_those_of_a_direct_count(name, evaluated, checkpoint, data_root):
    model, variables, _ = network.load(checkpoint)
    samples, _, _ = list_samples(create_domain("cityscapes", data_root / "Cityscapes"), "val")
    mean = np.array([104.00698793, 116.66876762, 122.67891434], np.float32)

    @partial(jax.jit, static_argnums=1)
    def logits(bgr, size):
        return model.apply(variables, bgr, train=False, output_size=size).main

    labels, predictions = [], []
    for sample in samples:
        image = resize_image(np.asarray(Image.open(sample.image).convert("RGB")), (33, 65)).numpy()
        label = Image.open(sample.label)
        if name.startswith("network"):
            label = label.resize((65, 33), Image.Resampling.NEAREST)
        label = TRAIN_IDS[np.asarray(label)]
        assert label.shape == ((33, 65) if name.startswith("network") else (40, 80))

        def probabilities(image, size=label.shape):
            bgr = image[None, :, :, ::-1].astype(np.float32) - mean
            return np.asarray(jax.nn.softmax(logits(bgr, size))[0])

        p = probabilities(image)
        if name.endswith("flip"):
            p = (p + probabilities(image[:, ::-1])[:, ::-1]) / 2
        labels.append(label)
        predictions.append(p.argmax(-1))
    iou, miou, accuracy = scores_in_numpy(labels, predictions)
    found = evaluated["record"]["results"][name]
    assert len(np.unique(predictions[0])) > 3
    for key, other in evaluated["record"]["results"].items():
        means = [abs(found[score] - other[score]) for score in ("miou", "pixel_accuracy")]
        assert key == name or max(means) > 6e-4, f"{key} and {name} give the same"
    # A near tie may fall otherwise in another order of summation: a few pixels of thousands.
    assert found["miou"] == pytest.approx(miou, abs=5e-4)
    assert found["pixel_accuracy"] == pytest.approx(accuracy, abs=5e-4)
    for class_name, value in iou.items():
        score = found["iou"][class_name]
        score = np.nan if score is None else score
        assert score == pytest.approx(value, abs=2e-3, nan_ok=True)


def test_record(evaluated, checkpoint):
    record = evaluated["record"]
    assert tuple(record["results"]) == RESULTS
    assert record["checkpoint"] == str(checkpoint)
    assert record["trained"]["step"] == 20 and record["trained"]["recipe"] == "paper"
    assert record["model"]["width"] == 4
    assert record["config"]["optimizer"]["base_rate"] == 0.01


def identified(settings: dict) -> dict:
    """The settings without the checksums of ids and files, which are there."""
    assert len(settings["ids"]) == len(settings["content"]) == 16
    return {key: settings[key] for key in settings if key not in ("ids", "content")}


def test_every_score_carries_its_settings(evaluated):
    for name, scores in evaluated["record"]["results"].items():
        assert identified(scores["settings"]) == {
            "protocol": name.split("+")[0], "flip": name.endswith("flip"), "domain": "cityscapes",
            "split": "val", "images": 3, "size": [33, 65], "step": 20, "dtype": "float32",
            "classes": 19,
        }  # fmt: skip


def test_the_file_is_json_of_every_reader(evaluated):
    """JSON knows no NaN, the score of a class without pixels."""

    def refuse(constant):
        raise ValueError(constant)

    text = (evaluated["out"] / "evaluation.json").read_text()
    assert json.loads(text, parse_constant=refuse) == evaluated["record"]
    assert without_nan({"iou": {"train": float("nan"), "road": 0.5}}) == {
        "iou": {"train": None, "road": 0.5}
    }  # fmt: skip


def test_table_and_pictures(evaluated):
    out = evaluated["result"].out
    table = [line.split() for line in out.splitlines()]
    assert ["class", *RESULTS] in table
    means = evaluated["record"]["results"]
    assert ["mIoU", *(f"{100 * means[name]['miou']:.1f}" for name in RESULTS)] in table
    assert {words[0] for words in table if len(words) == 5} >= set(class_names(19))
    assert evaluated["result"].err == ""
    width, height = Image.open(evaluated["out"] / "predictions.png").size
    assert width == 3 * 65 + 2 * 4 and 2 * 33 < height < 3 * 33
    assert not list(evaluated["out"].glob("*tmp*"))


ONE = ("--protocol=network", "--flip=no", "--pictures=0")


def test_choices(configured, command, generalised, tmp_path):
    """The other domain, one protocol, fewer images, another checkpoint; where results go."""
    workdir = shutil.copytree(generalised.workdir, tmp_path / "run")
    best = checkpoints.folder(workdir, "best_source")
    result = command(
        "evaluate", *configured, "--checkpoint", best, "--domain=source", "--split=train",
        "--protocol=full", "--flip=no", "--max_images=3", "--pictures=0",
    )  # fmt: skip
    assert result.code == 0, result
    out = workdir / "evaluation" / "best_source" / "source"
    record = read_record(out)
    assert tuple(record["results"]) == ("full",)
    settings = record["results"]["full"]["settings"]
    assert identified(settings) == {
        "protocol": "full", "flip": False, "domain": "gta5", "split": "train", "images": 3,
        "size": [33, 65], "step": checkpoints.find(best).step, "dtype": "float32",
        "classes": 19,
    }  # fmt: skip
    assert not (out / "predictions.png").exists()


def test_a_run_scores_as_at_its_end(configured, command, generalised, tmp_path):
    workdir = shutil.copytree(generalised.workdir, tmp_path / "run")
    out = workdir / "evaluation" / "final" / "target"
    out.mkdir(parents=True)
    (out / "evaluation.json").write_text("earlier")
    (out / "evaluation.json.other-1").write_text("the first")
    result = command("evaluate", *configured, "--checkpoint", workdir, *ONE)
    assert result.code == 0, result
    scores = read_record(out)["results"]
    assert (out / "evaluation.json.other-1").read_text() == "the first"
    assert (out / "evaluation.json.other-2").read_text() == "earlier"
    assert f"they are in {out}/evaluation.json.other-2 now" in result.out
    _write_scores(out / "evaluation.json", (out / "evaluation.json").read_text())
    assert not (out / "evaluation.json.other-3").exists()  # the same scores again
    trained = checkpoints.find(generalised.workdir).meta["scores"]["cityscapes"]
    assert scores["network"]["miou"] == pytest.approx(trained["miou"])
    assert scores["network"]["settings"] == trained["settings"]
    assert trained["settings"]["step"] == 20


@pytest.mark.parametrize(
    "flag, same", [("model.dtype=bfloat16", False), ("target.size=(40,70)", False),
                   ("eval.batch_size=3", True), ("eval.batch_size=1", True),
                   ("model.atrous=space_to_batch", True)],
)  # fmt: skip
def test_configuration_arrives(flag, same, evaluated, evaluate_flags, command, tmp_path):
    """Size and type move the scores, the size of the batch does not."""
    others = [f for f in evaluate_flags if not f.startswith(f"--config.{flag.split('=')[0]}=")]
    result = command("evaluate", *others, f"--config.{flag}", *ONE, "--out", tmp_path)
    assert result.code == 0, result
    found = read_record(tmp_path)["results"]["network"]
    before = evaluated["record"]["results"]["network"]
    if same:
        assert found["pixel_accuracy"] == pytest.approx(before["pixel_accuracy"], abs=1e-3)
    else:
        assert found["pixel_accuracy"] != before["pixel_accuracy"]
    if "target.size" in flag:
        assert found["settings"]["size"] == [40, 70]
        assert "trained with target.size 33x65, the configuration has 40x70" in result.out
    assert ("note: " in result.out) == ("target.size" in flag)


def test_another_recipe_is_said(evaluate_flags, command, tmp_path):
    flags = [f.replace("gta5_dg.py", "gta5_dg.py:release") for f in evaluate_flags]
    result = command("evaluate", *flags, *ONE, "--out", tmp_path)
    assert result.code == 0, result
    said = "note: the network was trained with recipe paper, the configuration has release"
    assert said in result.out


def test_two_devices(evaluate_flags, process, evaluated, monkeypatch, tmp_path):
    """A batch of 1, as configured by default, is filled up to the devices."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    running = process("evaluate", *evaluate_flags, *ONE, "--config.eval.batch_size=1",
                      "--config.batch_size=1", "--out", str(tmp_path))
    _, err = running.communicate(timeout=600)
    assert running.returncode == 0, err
    found = read_record(tmp_path)["results"]["network"]
    before = evaluated["record"]["results"]["network"]
    assert found["settings"] == before["settings"]
    assert found["pixel_accuracy"] == pytest.approx(before["pixel_accuracy"], abs=5e-4)


def test_two_processes_count_every_image_once(tmp_path, monkeypatch):
    """Seven images over two processes of two devices each; two are of another size."""
    root = write_gta5(tmp_path / "a", ids=[1, 2, 3, 4, 7])
    other = write_gta5(tmp_path / "b", ids=[5, 6], height=30, width=44)
    for path in other.glob("*/*.png"):
        shutil.copy(path, root / path.relative_to(other))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
    program = [sys.executable, "-m", "tests.runs.counting", port]
    both = [
        subprocess.Popen(
            [*program, str(i), root, tmp_path / f"{i}.npz"],
            cwd=ROOT, stderr=subprocess.PIPE, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    try:
        errors = [one.communicate(timeout=600)[1] for one in both]
    finally:
        for one in both:
            one.kill()
    assert [one.returncode for one in both] == [0, 0], errors
    first, second = (np.load(tmp_path / f"{i}.npz") for i in range(2))
    for protocol in counting.WAYS:
        counts = counting.count(str(root), protocol)
        found, alone = first[protocol], counts.confusion
        np.testing.assert_array_equal(found, second[protocol])
        np.testing.assert_array_equal(found.sum(1), alone.sum(1))  # pixels by label
        assert np.abs(found - alone).sum() <= 10  # ties that rounding decides
    np.testing.assert_array_equal(first["reliability"], second["reliability"])
    assert first["reliability"][:, 0].sum() == first["tiles"].sum()
    both = [metrics.calibration(each)["ece"] for each in (first["reliability"], counts.reliability)]
    assert both[0] == pytest.approx(both[1], abs=1e-4)


def test_sixteen_classes_are_scored_on_thirteen_too(configured, command, tmp_path):
    sixteen = save_network(tmp_path / "sixteen", num_classes=16)
    result = command("evaluate", *configured, "--checkpoint", sixteen,
                     "--config.num_classes=16", *ONE)
    assert result.code == 0, result
    scores = read_record(tmp_path / "sixteen_evaluation" / "target")["results"]["network"]
    assert scores["miou"] != scores["miou_13"]
    means = [f"{100 * scores[name]:.1f}" for name in ("miou", "miou_13")]
    assert f"network: mIoU {means[0]}, of 13 classes {means[1]}" in result.out


def test_another_network(evaluate_flags, refused, checkpoint):
    error = refused("evaluate", *evaluate_flags, "--config.num_classes=13")
    assert "know other classes than the configuration: wall" in error and str(checkpoint) in error


def test_set_without_labels(evaluate_flags, refused):
    error = refused("evaluate", *evaluate_flags, "--split=train")
    assert "6 of 6 labels are missing" in error and "gtFine_labelIds.png" in error


def test_label_ids_out_of_range(evaluate_flags, refused, data_root, tmp_path):
    shutil.copytree(data_root / "Cityscapes", tmp_path / "Cityscapes")
    label = next((tmp_path / "Cityscapes" / "gtFine" / "val").rglob("*_labelIds.png"))
    ids = np.array(Image.open(label))
    ids[3, 4] = 77
    Image.fromarray(ids).save(label)
    error = refused("evaluate", *evaluate_flags, f"--config.data.root={tmp_path}",
                    "--out", tmp_path / "out")
    assert f"{label} holds the label ids 77" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "flags, words",
    [
        (("--max_images=-1",), "max_images"),
        (("--pictures=-1",), "pictures"),
        (("--max_images=x",), "max_images=x"),
        (("--protocol=half",), "protocol"),
        (("--flip=maybe",), "flip"),
        (("--domain=other",), "domain"),
        (("--domains=",), "--domains is empty"),
        (("--split=nonsense",), "no split 'nonsense'; it has train, val, test"),
        (("--config.target.val_split=",), "target.val_split is empty; choose one"),
        (("--config.target.dir=Nowhere",), "there is no directory"),
        (("--config.target.domain=citiscapes",), "Did you mean 'cityscapes'"),
        (("--config.model.width=4.5",), "4.5"),
        (("--config.eval.batch_size=0",), "eval.batch_size is 0"),
        (("--config.model.dtype=float16",), "model.dtype is 'float16'"),
        (("--config.model.atrous=x",), "model.atrous is 'x'"),
        (("--checkpoint=nowhere",), "nowhere holds no checkpoint"),
        (("--checkpoint=",), "--checkpoint is missing"),
        (("--config=",), "--config"),
        (("--out=README.md/evaluation",), "README.md (Not a directory)"),
        (("--images=photos",), "images"),
        (("a.png",), "unexpected argument 'a.png'"),
    ],
)
def test_mistakes(flags, words, evaluate_flags, refused):
    assert words in refused("evaluate", *evaluate_flags, *flags)


def test_the_network_is_that_of_the_checkpoint(evaluated, evaluate_flags, command, tmp_path):
    """The configuration says what is scored; what it says of the network is not asked."""
    other = ["width=8", "head_branches=4", "norm_restitution=none", "stage_sizes=(3,4,23,3)"]
    result = command("evaluate", *evaluate_flags, *ONE, "--out", tmp_path,
                     *(f"--config.model.{key}" for key in other))
    assert result.code == 0, result
    found, whole = (each["results"]["network"] for each in (
        read_record(tmp_path), evaluated["record"]))
    assert (found["iou"], found["miou"]) == (whole["iou"], whole["miou"])


def test_labels_without_a_scored_pixel(evaluate_flags, refused, data_root, tmp_path):
    shutil.copytree(data_root / "Cityscapes", tmp_path / "Cityscapes")
    for label in (tmp_path / "Cityscapes" / "gtFine" / "val").rglob("*_labelIds.png"):
        Image.fromarray(np.zeros_like(np.array(Image.open(label)))).save(label)
    error = refused("evaluate", *evaluate_flags, f"--config.data.root={tmp_path}", *ONE,
                    "--out", tmp_path / "out")
    assert "cityscapes: every pixel of the labels" in error and not (tmp_path / "out").exists()
