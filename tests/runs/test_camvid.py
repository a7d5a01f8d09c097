"""Scores on CamVid's 11 classes: of its own networks, and of one with the 19."""

import jax
import numpy as np
import pytest
from PIL import Image

from snr_jax.core.labels import CAMVID, CLASSES, class_names
from snr_jax.core.models.deeplab import DeepLab
from snr_jax.core.parallel import create_parallel
from snr_jax.core.state import initial_variables
from snr_jax.data import pipeline
from snr_jax.data.domains import create_domain
from snr_jax.data.splits import open_split
from snr_jax.runs import evaluation
from snr_jax.toy import writer

SIZE = (33, 44)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    root = tmp_path_factory.mktemp("toy") / "CamVid"
    writer.write("camvid", root, num_train=3, num_val=1, seed=0, height=SIZE[0], width=SIZE[1])
    return root


@pytest.mark.parametrize("protocol", ["network", "full"])
def test_predictions_of_19_classes_are_joined(protocol, directory):
    split = open_split(create_domain("camvid", directory), "all", size=SIZE, classes=CLASSES)
    assert "scored on its own 11 classes, of which the network's 19 are parts" in split.told
    model = DeepLab(num_classes=19, stage_sizes=(1, 1, 1, 1), width=4)
    variables = jax.tree_util.tree_map_with_path(  # predicts many classes
        lambda path, x: 15 * x if path[-1].key == "kernel" else x, initial_variables(model, 0))
    parallel = create_parallel()
    scores = evaluation.evaluate(
        model, parallel.replicate(variables), split, parallel=parallel, batch_size=4,
        protocol=protocol)
    predict = evaluation._compiled_prediction(model, SIZE)
    expected, seen = np.zeros((11, 11), int), set()
    for batch in pipeline.eval_batches(split.samples, split.labels, size=SIZE, batch_size=1):
        fine = np.asarray(predict(variables, batch["image"]))[0]
        seen |= set(fine.ravel().tolist())
        for label, one in zip(batch["label"][0].ravel(), fine.ravel()):
            if label < 11:
                expected[label, split.labels.parts[one]] += 1
    assert len(seen) > 4
    hits = np.diag(expected)
    iou = hits / np.maximum(expected.sum(0) + expected.sum(1) - hits, 1)
    assert list(scores["iou"]) == list(class_names(CAMVID))
    assert np.nan_to_num(list(scores["iou"].values())) == pytest.approx(iou, abs=1e-12)
    drawn = evaluation.pictures(model, variables, split.first(1))[0]["prediction"]
    colors = {c.color for c in CAMVID}
    assert {tuple(color) for _, color in Image.fromarray(drawn).getcolors()} <= colors
