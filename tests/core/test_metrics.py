"""Scores of confusion matrices small enough to divide by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snr_jax.core import metrics


def test_confusion_rows_are_labels_and_ignored_pixels_are_left_out():
    label = jnp.array([[[0, 0, 1, 255], [2, 1, 254, 3]]], jnp.uint8)
    prediction = jnp.array([[[0, 1, 1, 2], [0, 1, 1, 1]]], jnp.int32)
    found = metrics.confusion_matrix(label, prediction, 3)
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, [[1, 1, 0], [0, 2, 0], [1, 0, 0]])


@pytest.mark.parametrize("limit", [2**24, 10, 1])
@pytest.mark.parametrize("num_classes", [3, 19])
def test_both_forms_of_counting_are_equal(num_classes, limit):
    """Also where the product is taken in strips of rows."""
    random = np.random.default_rng(0)
    label = random.choice([*range(num_classes), 254, 255], (2, 9, 5)).astype(np.uint8)
    prediction = random.integers(0, num_classes, label.shape)
    expected = np.zeros((num_classes, num_classes), int)
    counted = label < num_classes
    np.add.at(expected, (label[counted], prediction[counted]), 1)
    arrays = jnp.asarray(label), jnp.asarray(prediction)
    for found in (metrics.confusion_matrix(*arrays, num_classes),
                  metrics._counted(*arrays, num_classes),
                  metrics._multiplied(*arrays, num_classes, limit)):
        assert found.dtype == jnp.int32
        np.testing.assert_array_equal(found, expected)


def test_the_product_counts_more_than_half_precision_holds():
    """A cell of 2^16 + 1 pixels: bfloat16 sums would stop at 256, float16 at 2048."""
    label = jnp.zeros((1, 1, 2**16 + 1), jnp.uint8)
    assert int(metrics._multiplied(label, label, 3)[0, 0]) == 2**16 + 1


def test_a_gpu_counts_without_scatter():
    shape = jax.ShapeDtypeStruct((1, 8, 8), jnp.uint8)
    count = jax.jit(partial(metrics.confusion_matrix, num_classes=19))
    text = {p: count.trace(shape, shape).lower(lowering_platforms=(p,)).as_text()
            for p in ("cpu", "cuda")}
    assert "scatter" in text["cpu"] and "scatter" not in text["cuda"]


def test_finer_predictions_are_joined():
    """Fine classes 0 and 2 are parts of coarse 1, fine 1 is coarse 0, fine 3 coarse 2."""
    counts = np.zeros((4, 4), np.int64)
    counts[:3] = [[5, 7, 1, 2], [3, 1, 4, 0], [0, 0, 6, 9]]
    found = metrics.joined(counts, (1, 0, 1, 2), 3)
    np.testing.assert_array_equal(found, [[7, 6, 2], [1, 7, 0], [0, 6, 9]])
    assert found.dtype == np.int64 and found.sum() == counts.sum()


def test_scores_by_hand():
    # Class 0: 3 pixels, 2 hit. Class 1: 3 pixels, all hit, predicted 4 times. Class 2: nowhere.
    found = metrics.scores(np.array([[2, 1, 0], [0, 3, 0], [0, 0, 0]]))
    assert found["pixel_accuracy"] == pytest.approx(5 / 6)
    assert found["class_accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["iou"][:2] == pytest.approx([2 / 3, 3 / 4])  # 2 / (3 + 2 - 2), 3 / (3 + 4 - 3)
    assert np.isnan(found["iou"][2])
    assert found["miou"] == pytest.approx((2 / 3 + 3 / 4) / 2)
    assert found["fwiou"] == pytest.approx((3 * 2 / 3 + 3 * 3 / 4) / 6)
    assert found["precision"] == pytest.approx((1 + 3 / 4) / 2)


def test_a_class_that_is_only_predicted_counts_as_zero_iou():
    found = metrics.scores(np.array([[2, 0, 1], [0, 3, 0], [0, 0, 0]]))
    assert found["iou"] == pytest.approx([2 / 3, 1, 0])
    assert found["miou"] == pytest.approx(5 / 9)
    assert found["class_accuracy"] == pytest.approx(5 / 6)  # 0/0 for class 2
    assert found["precision"] == pytest.approx(2 / 3)  # 1, 1, 0


def test_no_pixels_is_nan_without_warning():
    found = metrics.scores(np.zeros((2, 2), np.int64))
    assert all(np.isnan(value) for value in found.values() if isinstance(value, float))


def test_counts_beyond_32_bits():
    found = metrics.scores(np.array([[3 * 2**31, 2**31], [0, 2**40]], np.int64))
    assert found["iou"][0] == pytest.approx(3 / 4)


def test_16_classes_are_scored_on_13_as_well():
    """Wall (3), fence (4) and pole (5) have no IoU in the mean, but their pixels still count."""
    confusion = np.zeros((16, 16), np.int64)
    confusion[0, 0] = 3  # road, all hit
    confusion[12, 12], confusion[12, 3], confusion[3, 12] = 2, 1, 1  # car: one to wall, one from
    confusion[5, 5] = 4  # pole, all hit
    found = metrics.named_scores(confusion)
    # IoU: road 1, car 2 / (3 + 3 - 2) = 1/2, wall 0 / (1 + 1 - 0) = 0, pole 1.
    assert found["iou"]["car"] == 1 / 2 and found["iou"]["wall"] == 0
    assert found["miou"] == pytest.approx((1 + 1 / 2 + 0 + 1) / 4)
    assert found["miou_13"] == pytest.approx((1 + 1 / 2) / 2)
    confusion[0, 0] = confusion[12, 12] = confusion[12, 3] = confusion[3, 12] = 0
    assert np.isnan(metrics.named_scores(confusion)["miou_13"])  # nothing of the 13
    for num_classes in (13, 19):
        assert "miou_13" not in metrics.named_scores(np.eye(num_classes, dtype=np.int64))


def test_report_names_the_classes():
    found = metrics.named_scores(np.eye(13, dtype=np.int64))
    assert found["miou"] == 1 and found["iou"]["bicycle"] == 1 and len(found["iou"]) == 13


# ---------------------------------------------------------------- calibration

# Probabilities of three classes; the predicted class, its probability and bin (i, i + 1] / 15.
HAND = np.array([
    [0.50, 0.25, 0.25],  # 0, 7
    [0.53, 0.27, 0.20],  # 0, 7: 7/15 < p <= 8/15
    [0.11, 0.79, 0.10],  # 1, 11: 11/15 < 0.79 <= 12/15
    [0.00, 1.00, 0.00],  # 1, 14
    [0.00, 0.00, 1.00],  # ignored
], np.float32)  # fmt: skip
HAND_LABEL = np.array([0, 2, 1, 1, 255], np.uint8)


def test_reliability_by_hand():
    counts = np.asarray(metrics.count_reliability(HAND_LABEL.reshape(1, 1, 5),
                                                  jnp.asarray(HAND).reshape(1, 1, 5, 3)))
    assert counts.dtype == np.int32 and counts.shape == (15, 4)
    assert {i: tuple(row[:2]) for i, row in enumerate(counts) if row.any()} == {
        7: (2, 1), 11: (1, 1), 14: (1, 1)}  # fmt: skip
    assert counts[14, 2:].tolist() == [1, 0]  # a probability of one whole
    found = metrics.calibration(counts)
    assert found["reliability"]["pixels"] == counts[:, 0].tolist()
    assert found["reliability"]["accuracy"][7] == 0.5
    assert found["reliability"]["confidence"][7] == pytest.approx(0.515, abs=1e-5)
    assert np.isnan(found["reliability"]["accuracy"][0])
    # 2/4 of |0.5 - 0.515|, 1/4 of |1 - 0.79|, 1/4 of |1 - 1|
    assert found["ece"] == pytest.approx(0.5 * 0.015 + 0.25 * 0.21, abs=1e-5)


def test_bins_of_finer_predictions_are_those_of_the_coarse_class():
    """Classes 1 and 2 are parts of coarse 0, and 0 is coarse 1."""
    p = jnp.array([[[[0.38, 0.36, 0.26], [0.25, 0.45, 0.30]]]], jnp.float32)
    counts = np.asarray(metrics.count_reliability(jnp.array([[[1, 0]]]), p, (1, 0, 0)))
    held = {i: tuple(row[:2]) for i, row in enumerate(counts) if row.any()}
    assert held == {5: (1, 1), 11: (1, 1)}  # 0.38 of coarse 1; 0.45 + 0.3 of coarse 0
    counts = np.asarray(metrics.count_reliability(jnp.array([[[1, 0]]]), p))
    assert counts[:, 1].sum() == 0  # read as fine classes both would be wrong


def test_a_calibrated_network_has_no_error_and_a_sure_one_has():
    """Labels drawn with the very probabilities; then all of them said to be sure."""
    random = np.random.default_rng(0)
    p = random.dirichlet([0.5] * 4, (4, 128, 256)).astype(np.float32)
    drawn = (p.cumsum(-1) < random.random(p.shape[:-1])[..., None]).sum(-1).clip(max=3)
    found = metrics.calibration(np.asarray(metrics.count_reliability(drawn, jnp.asarray(p))))
    assert found["ece"] < 5e-3
    sure = np.asarray(jax.nn.one_hot(p.argmax(-1), 4))
    counts = np.asarray(metrics.count_reliability(drawn, jnp.asarray(sure)))
    wrong = (p.argmax(-1) != drawn).mean()
    assert metrics.calibration(counts)["ece"] == pytest.approx(wrong) and wrong > 0.2


def test_sums_of_the_confidence_are_exact():
    """Of more pixels than 32 bits hold 65536ths of, in both forms and in any cut."""
    random = np.random.default_rng(0)
    high = random.uniform(0.9, 1, (3, 160, 256)).astype(np.float32)
    p = jnp.stack([high, 1 - high], -1)
    label = random.choice([0, 1, 255], high.shape).astype(np.uint8)
    whole = np.asarray(metrics.count_reliability(label, p)).astype(np.int64)
    units = np.clip(np.round(high * np.float32(65536)), 1, 65536).astype(np.int64)
    assert units[label < 2].sum() > 2**32
    assert (whole[:, 2] * 65536 + whole[:, 3]).sum() == units[label < 2].sum()
    parts = [np.asarray(metrics.count_reliability(label[i : i + 1], p[i : i + 1]), np.int64)
             for i in range(3)]
    np.testing.assert_equal(metrics.calibration(sum(parts)), metrics.calibration(whole))
    place = np.where(label < 2, (units * 15 - 1) // 65536, 15)
    values = jnp.asarray(np.stack([units, label == 0], -1), jnp.int32)
    forms = [np.asarray(form(jnp.asarray(place), values))
             for form in (metrics._added, metrics._compared)]
    np.testing.assert_array_equal(*forms)
    assert forms[0].sum() > 0


def test_a_gpu_counts_reliability_without_scatter():
    shapes = (jax.ShapeDtypeStruct((1, 8, 8), jnp.uint8),
              jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32))
    traced = jax.jit(metrics.count_reliability).trace(*shapes)
    text = {p: traced.lower(lowering_platforms=(p,)).as_text() for p in ("cpu", "cuda")}
    assert "scatter" in text["cpu"] and "scatter" not in text["cuda"]
