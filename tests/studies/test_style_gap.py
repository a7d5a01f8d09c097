"""The style gap: its numbers against numpy's own, worked out from the network's features."""

import json
import math
import re
import shutil

import numpy as np
import pytest

from snr_jax.core.augment import RGB_NORMALIZED, to_network_input
from snr_jax.core.models.light_head import ViTSegmenter
from snr_jax.core.state import initial_variables
from snr_jax.data import pipeline
from snr_jax.report import style
from snr_jax.report.html import render
from snr_jax.report.style import Distance, Place, Points, StyleGap, distance, moments
from snr_jax.runs.experiment import open_splits
from snr_jax.studies import style_gap
from snr_jax.workdir import record
from tests.core.tiny import network as tiny
from tests.core.tiny import variables as values_of


@pytest.fixture(scope="module")
def ends():
    """The validation splits of a run, opened once."""
    return {}


def splits_of(run, ends):
    if not ends:
        ends |= open_splits(record.configuration(record.read(run.workdir)))
    return ends["source_val"], ends["target_val"]


def direct(model, variables, split):
    """Every feature map of all images of a split, {name: [N,h,w,C]}, and their labels."""
    images, labels = zip(*(
        (batch["image"], batch["label"]) for batch in pipeline.eval_batches(
            split.samples, split.labels, size=split.size, batch_size=1)))
    output, kept = model.apply(
        variables, to_network_input(np.concatenate(images)), train=False,
        capture_intermediates=True, mutable=["intermediates"])
    blocks = {name: kept["intermediates"][f"{name}_0"]["__call__"][0]
              for name in ("layer1", "layer2", "layer3", "layer4")}
    after = {f"layer{i}": each.restituted for i, each in enumerate(output.snr, 1)}
    return ({k: np.asarray(v, np.float64) for k, v in blocks.items()},
            {k: np.asarray(v, np.float64) for k, v in after.items()}, np.concatenate(labels))


def gap_of(ours, theirs):
    """The two distances of each channel, from all pixels of all images at once."""
    mean_s, mean_t = (x.mean((0, 1, 2)) for x in (ours, theirs))
    var_s, var_t = (x.var((0, 1, 2)) + 1e-5 for x in (ours, theirs))
    return (np.abs(mean_s - mean_t) / np.sqrt((var_s + var_t) / 2),
            np.abs(np.log(var_s / var_t)) / 2)


@pytest.mark.parametrize("kind", ["snr", "none"])
def test_a_transformer_has_its_blocks(kind, generalised, ends):
    """Before and after SNR, by the patches' tokens alone."""
    model = ViTSegmenter(width=16, depth=3, heads=2, registers=2, snr_after=(1,),
                         norm_restitution=kind)
    variables = initial_variables(model, 0)
    source, target = splits_of(generalised, ends)
    found = style_gap.style_gap(model, variables, source, target)
    assert [place.name for place in found.places] == ["block 0", "block 1", "block 2"]
    assert [place.after is not None for place in found.places] == [False, kind == "snr", False]

    def tokens(split):
        images = np.concatenate([batch["image"] for batch in pipeline.eval_batches(
            split.samples, split.labels, size=split.size, batch_size=1)])
        output, kept = model.apply(
            variables, to_network_input(images, RGB_NORMALIZED), train=False,
            capture_intermediates=True, mutable=["intermediates"])
        blocks = kept["intermediates"]["encoder"]
        return [np.asarray(x, np.float64)[:, None] for x in (  # as maps of one row
            blocks["blocks_2"]["__call__"][0][:, 3:],
            *(snr.restituted.reshape(len(images), -1, 16) for snr in output.snr))]

    pairs = list(zip(tokens(source), tokens(target), strict=True))
    places = [found.places[2].before, found.places[1].after]
    for pair, place in zip(pairs, places):
        for part, expected in zip(place, gap_of(*pair)):
            np.testing.assert_allclose(part, expected, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["snr", "in", "none"])
def test_the_distances_are_those_of_all_pixels(kind, generalised, ends):
    model = tiny(norm_restitution=kind, num_classes=19)
    variables = values_of(model)
    source, target = splits_of(generalised, ends)
    found = style_gap.style_gap(model, variables, source, target)
    assert found.images == (2, 3)
    (ours, ours_after, _), (theirs, theirs_after, _) = (
        direct(model, variables, split) for split in (source, target))
    assert [place.name for place in found.places] == ["layer1", "layer2", "layer3", "layer4"]
    for place in found.places:
        for part, expected in zip(place.before, gap_of(ours[place.name], theirs[place.name])):
            np.testing.assert_allclose(part, expected, rtol=1e-3, atol=1e-4)
        assert (place.after is not None) == (kind != "none" and place.name != "layer4")
        if place.after:
            pair = gap_of(ours_after[place.name], theirs_after[place.name])
            for part, expected in zip(place.after, pair):
                np.testing.assert_allclose(part, expected, rtol=1e-3, atol=1e-4)
            if kind == "in":  # every image has one mean, and one deviation unless it has none
                assert place.after.means.max() < 1e-3 < place.before.means.mean()


def test_a_point_is_the_mean_over_the_places_of_a_class(generalised, ends):
    """In an image, where the class holds at least MIN_PLACES of the map."""
    model = tiny(num_classes=19)
    variables = values_of(model)
    source, target = splits_of(generalised, ends)
    found = style_gap.style_gap(model, variables, source, target).points
    expected, train_ids, is_target = [], [], []
    for side, split in enumerate((source, target)):
        blocks, _, labels = direct(model, variables, split)
        features = blocks["layer4"]
        rows, columns = (np.rint(np.linspace(0, n - 1, m)).astype(int)
                         for n, m in zip(labels.shape[1:], features.shape[1:3]))
        small = labels[:, rows][:, :, columns]
        for image, label in zip(features, small):
            for k in range(19):
                if (label == k).sum() >= style_gap.MIN_PLACES:
                    expected.append(image[label == k].mean(0))
                    train_ids.append(k)
                    is_target.append(bool(side))
    assert found.train_id.tolist() == train_ids and found.is_target.tolist() == is_target
    assert len(train_ids) >= 3 and 0 < sum(is_target) < len(is_target)
    centered = np.array(expected) - np.mean(expected, 0)
    _, sizes, _ = np.linalg.svd(centered)
    np.testing.assert_allclose(  # the spread along two axes is that of the two largest
        np.sqrt(np.square(found.of["PCA"]).sum(0)), sizes[:2], rtol=1e-3)


def test_distances_by_hand():
    """Two images of means 1 and 3, variance 3: mean 2, variance 3 + 1; the other 5 and 16."""
    source = moments(np.array([[1.0], [3.0]]), np.array([[3.0], [3.0]]))
    target = moments(np.array([[5.0]]), np.array([[16.0]]))
    assert source.mean == 2 and source.deviation == pytest.approx(2, rel=1e-5)
    found = distance(source, target)
    assert found.means == pytest.approx(3 / math.sqrt(10), rel=1e-5)
    assert found.deviations == pytest.approx(math.log(2), rel=1e-5)
    dead = moments(np.zeros((2, 1)), np.zeros((2, 1)))
    assert distance(dead, dead) == (0, 0)


def test_two_dimensions():
    """PCA by hand: a line and little beside it; t-SNE comes the same each time."""
    line = np.array([[-2, 0, 0.1], [0, 0, -0.1], [2, 0, 0.0], [0, 0, 0]], np.float32)
    found = style_gap.in_two_dimensions(line)
    assert list(found) == ["PCA"]
    np.testing.assert_allclose(found["PCA"][:, 0], [-2, 0, 2, 0], atol=1e-2)
    assert style_gap.in_two_dimensions(line[:0])["PCA"].shape == (0, 2)
    assert style_gap.in_two_dimensions(line[:1])["PCA"].tolist() == [[0, 0]]
    random = np.random.default_rng(0)
    two = np.concatenate([random.normal(0, 1, (20, 5)), random.normal(20, 1, (20, 5))])
    first, again = (style_gap.in_two_dimensions(two)["t-SNE"] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    middle = first[:20].mean(0), first[20:].mean(0)
    nearer = [np.argmin([np.square(p - m).sum() for m in middle]) for p in first]
    assert nearer == [0] * 20 + [1] * 20


def test_matched_by_hand():
    features = np.array([[0.0], [10.0], [1.0], [9.0], [2.0]])
    is_target = np.array([False, False, True, True, True])
    found = style_gap.matched(features, np.array([4, 5, 4, 5, 5]), is_target)
    assert found == pytest.approx(2 / 3)
    assert math.isnan(style_gap.matched(features[:2], np.array([4, 5]), is_target[:2]))


def test_at_most_so_many_images_spread_over_the_split(generalised, ends):
    source, _ = splits_of(generalised, ends)
    for count, shown in ((60, 60), (61, 31), (500, 56), (2, 2)):
        found = style_gap._spread(source._replace(samples=list(range(count)))).samples
        assert len(found) == shown <= style_gap.MAX_IMAGES
        assert found[0] == 0 and count - found[-1] <= -(-count // 60)


# ---------------------------------------------------------------- what the page shows

def gap(after):
    before = Distance(np.array([0.5, 1.5]), np.array([0.2, 0.6]))
    half = Distance(before.means / 2, before.deviations / 2) if after else None
    points = Points({"PCA": np.array([[0.0, 1], [1, 0]])}, np.array([0, 13]),
                    np.array([False, True]))
    places = (Place("layer1", before, half), Place("layer4", before, None))
    return StyleGap(places, points, 0.25, (2, 3))


def test_words_and_rows():
    assert style.cells("a", gap(True)) == [
        ("a", "layer1", "2", "1.00", "0.50", "0.40", "0.20"),
        ("a", "layer4", "2", "1.00", "-", "0.40", "-")]
    text = style.sentence(gap(True))
    assert "After layer1 the" in text and "lie 1.00 deviations apart" in text
    assert "a factor of 1.49; the normalisation brings the means nearer, to 0.50, the " in text
    assert text.endswith("25 % lie nearest to one of their own class in the source.")
    assert "nothing normalises them" in style.sentence(gap(False))
    assert style.legend({"a": gap(True)}, 19) == [
        ("road", "rgb(128,64,128)"), ("car", "rgb(0,0,142)")]


def test_the_charts_show_every_channel_and_point():
    chart = style.channel_chart(gap(True), "var(--c1)")
    assert chart.count("var(--c1)") == 2 and "layer4" in chart and "means" in chart
    points = style.feature_chart(gap(True).points, 19)
    assert points == style.feature_chart(gap(True).points, 19)
    # Road, a disc of the source, and car, a triangle of the target.
    assert re.findall(r"fill: (#\w+); fill-opacity", points) == ["#804080", "#00008e"]
    summary = {"a": {"source": 0.5, "target": 0.25}}
    results = {"a": {"miou": 0.25, "iou": {"road": 0.25}}}
    page = render(title="t", summary=summary, results=results, gaps={"a": gap(True)})
    assert page.count("<svg") == 2 and "2 validation images of the source and 3" in page
    assert "style gap" not in render(title="t", summary=summary, results=results)


def test_the_command_shows_the_gap(generalised, adapted, command, tmp_path):
    pages = []
    for out in (tmp_path / "one.html", tmp_path / "two.html"):
        result = command("compare", generalised.workdir, adapted.workdir, "--out", out,
                         "--pictures", 0, "--features")
        assert result.code == 0, result
        pages.append(out.read_text().replace(out.name, ""))
    page = pages[0]
    assert pages[1] == page  # nothing in it is drawn at random
    assert page.count("<svg") == 2 + 2 * 2 and "The style gap" in page and "--features" in page
    for run in (generalised, adapted):
        words = f"\n{run.workdir.name}: After layer1, layer2, layer3 the two domains' means lie "
        assert words in result.out
    table = [line for line in result.out.splitlines() if " layer" in line and ":" not in line]
    assert len(table) == 8 and all(len(line.split()) == 7 for line in table)


def test_without_a_target_validation_there_is_no_gap(generalised, refused, tmp_path):
    folder = tmp_path / "bare"
    shutil.copytree(generalised.workdir, folder)
    there = json.loads((folder / "run.json").read_text())
    there["config"]["target"]["val_split"] = ""
    del there["data"]["target_val"]
    (folder / "run.json").write_text(json.dumps(there))
    error = refused("compare", folder, "--features", "--out", tmp_path / "page.html")
    assert "target.val_split" in error
