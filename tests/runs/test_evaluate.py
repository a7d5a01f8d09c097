"""The evaluation command: its numbers, what it writes, and what it refuses."""

import json
import shutil
from functools import partial

import jax
import numpy as np
import pytest
from PIL import Image

from snr_jax.core.labels import class_names, label_id_to_train_id
from snr_jax.data import domains
from snr_jax.data.decode import resize_image
from snr_jax.runs import checkpoints, network

RESULTS = ("network", "network+flip", "full", "full+flip")


@pytest.fixture
def evaluate_flags(generalised):
    """The configuration of the run and its checkpoint."""
    cut = generalised.arguments.index("--compilation_cache")
    config = generalised.arguments[:2] + generalised.arguments[cut + 2 :]
    return [*config, "--checkpoint", str(generalised.workdir)]


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
        record = json.loads((out / "evaluation.json").read_text())
        done.update(result=result, out=out, record=record)
    return done


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
def test_numbers_are_those_of_a_direct_count(name, evaluated, generalised, data_root):
    model, variables, _ = network.load(str(generalised.workdir))
    samples, _ = domains.list_samples("cityscapes", str(data_root / "Cityscapes"), "val")
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
        label = label_id_to_train_id()[np.asarray(label)]
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
    # A near tie may fall otherwise in another order of summation: a few pixels of thousands.
    assert found["miou"] == pytest.approx(miou, abs=5e-4)
    assert found["pixel_accuracy"] == pytest.approx(accuracy, abs=5e-4)
    for class_name, value in iou.items():
        assert found["iou"][class_name] == pytest.approx(value, abs=2e-3, nan_ok=True)


def test_record(evaluated, generalised):
    record = evaluated["record"]
    assert tuple(record["results"]) == RESULTS
    assert record["checkpoint"] == f"{generalised.workdir}/checkpoints/final"
    assert record["trained"]["step"] == 20 and record["trained"]["recipe"] == "paper"
    assert (record["domain"], record["split"], record["images"]) == ("cityscapes", "val", 3)
    assert record["model"]["width"] == 4 and record["size"] == [33, 65]
    assert record["config"]["optimizer"]["base_rate"] == 0.01
    trained = checkpoints.find(generalised.workdir).meta["miou"]["cityscapes"]
    assert record["results"]["network"]["miou"] == pytest.approx(trained)


def test_table_and_pictures(evaluated):
    out = evaluated["result"].out
    table = [line.split() for line in out.splitlines()]
    assert ["class", *RESULTS] in table
    means = evaluated["record"]["results"]
    assert ["mIoU", *(f"{100 * means[name]['miou']:.1f}" for name in RESULTS)] in table
    assert {words[0] for words in table if len(words) == 5} >= set(class_names(19))
    assert evaluated["result"].err == ""
    width, height = Image.open(evaluated["out"] / "predictions.png").size
    assert width == 3 * 65 + 2 * 4 and height > 2 * 33


def test_choices(evaluate_flags, command, generalised):
    """The other domain, one protocol, fewer images, another checkpoint; where results go."""
    best = checkpoints.folder(generalised.workdir, "best_source")
    result = command(
        "evaluate", *evaluate_flags, "--checkpoint", best, "--domain=source", "--split=train",
        "--protocol=full", "--flip=no", "--max_images=3", "--pictures=0",
    )  # fmt: skip
    assert result.code == 0, result
    out = generalised.workdir / "evaluation" / "best_source" / "source"
    record = json.loads((out / "evaluation.json").read_text())
    assert tuple(record["results"]) == ("full",) and record["images"] == 3
    assert (record["domain"], record["split"]) == ("gta5", "train")
    assert not (out / "predictions.png").exists()


def test_another_network(evaluate_flags, refused, generalised):
    error = refused("evaluate", *evaluate_flags, "--config.num_classes=13")
    assert "num_classes 19 there, 13 here" in error and str(generalised.workdir) in error


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
