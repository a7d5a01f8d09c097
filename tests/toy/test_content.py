"""The content of the toys: none leaves them as they were, tint says by the mean colour alone."""

import json
from functools import cache, partial

import numpy as np
import pytest

from scripts import make_toy_domains
from snr_jax.core.errors import UserError
from snr_jax.toy import writer
from snr_jax.toy.content import AMBIGUOUS, GREEN, PAIRS
from snr_jax.toy.render import LABEL_IDS
from snr_jax.toy.scenes import draw_scene
from snr_jax.toy.styles import STYLES, apply_style, draw_pair

HEIGHT, WIDTH, NUMBER = 48, 96, 30
SMALL = {"num_train": 2, "num_val": 1, "seed": 5, "height": 32, "width": 64}


@cache
def drawn(style, content):
    return [draw_pair(1, index, HEIGHT, WIDTH, style, content) for index in range(NUMBER)]


def exchanged(style):
    """Whether the labels of each image are others than without content."""
    pairs = zip(drawn(style, "none"), drawn(style, "tint"), strict=True)
    return np.array([(plain != label).any() for (_, plain), (_, label) in pairs])


def greenness(image):
    """Green minus the mean of red and blue."""
    return image @ (1.5 * GREEN) / 255


@pytest.mark.parametrize("style", STYLES)
def test_none_is_the_scene_in_its_style_and_nothing_more(style):
    for index, (image, label) in enumerate(drawn(style, "none")[:3]):
        scene = draw_scene(1, index, HEIGHT, WIDTH)
        rng = np.random.default_rng((1, index, 1))
        np.testing.assert_array_equal(image, apply_style(scene, style, rng))
        np.testing.assert_array_equal(label, scene.label_ids)
        for a, b in zip(draw_pair(1, index, HEIGHT, WIDTH, style), (image, label), strict=True):
            np.testing.assert_array_equal(a, b)


def test_tint_exchanges_the_classes_of_each_pair_and_no_other():
    table = np.arange(256)
    for a, b in PAIRS:
        table[[LABEL_IDS[a], LABEL_IDS[b]]] = LABEL_IDS[b], LABEL_IDS[a]
    for (_, plain), (_, label), other in zip(
        drawn("source", "none"), drawn("source", "tint"), exchanged("source"), strict=True
    ):
        assert label.dtype == np.uint8
        np.testing.assert_array_equal(label, table[plain] if other else plain)
    assert 0.3 < exchanged("source").mean() < 0.7
    # Both meanings of a drawing are frequent: neither is the better guess.
    labels = np.stack([label for _, label in drawn("source", "tint")])
    assert all((labels == LABEL_IDS[name]).mean() > 0.02 for name in AMBIGUOUS)


def test_the_labels_are_the_same_in_every_style():
    for style in STYLES:
        for (_, label), (_, expected) in zip(
            drawn(style, "tint"), drawn("source", "tint"), strict=True
        ):
            np.testing.assert_array_equal(label, expected)


@pytest.mark.parametrize("style", STYLES)
def test_the_mean_colour_tells_the_meaning_and_a_patch_does_not(style):
    green = np.stack([greenness(image.astype(np.float32)) for image, _ in drawn(style, "tint")])
    np.testing.assert_array_equal(green.mean((1, 2)) < 0, exchanged(style))  # in every style alike
    patches = green.reshape(NUMBER, 4, HEIGHT // 4, 8, WIDTH // 8).mean((2, 4))
    right = ((patches < 0) == exchanged(style)[:, None, None]).mean()
    assert 0.5 < right < 0.85


def test_the_tint_changes_no_brightness():
    """What a patch of a tinted image is brighter or darker by: clipping and rounding alone."""
    for (plain, _), (tinted, _) in zip(
        drawn("haze", "none"), drawn("haze", "tint"), strict=True
    ):
        inside = (tinted > 0).all(-1) & (tinted < 255).all(-1)
        change = (tinted.astype(float) - plain).mean(-1)[inside]
        assert np.abs(change).max() <= 0.5 + 1e-3
        assert np.abs(tinted.astype(float) - plain).mean() > 5


def test_the_content_is_recorded_and_none_is_not(tmp_path):
    write = partial(writer.write, "cityscapes", tmp_path / "set", **SMALL)
    assert write()
    assert "content" not in json.loads((tmp_path / "set" / writer.MARKER).read_text())
    with pytest.raises(UserError, match=r"different: content\).*--replace"):
        write(content="tint")
    assert write(content="tint", replace=True)
    assert json.loads((tmp_path / "set" / writer.MARKER).read_text())["content"] == "tint"
    assert not write(content="tint")
    with pytest.raises(UserError, match=r"different: content\)"):
        write()


def test_an_unknown_content_names_the_right_ones(tmp_path):
    with pytest.raises(UserError, match=r"'share'.*none, tint"):
        writer.write("gta5", tmp_path / "x", **SMALL, content="share")
    assert not (tmp_path / "x").exists()


def test_the_command_line_draws_it(tmp_path):
    size = [f"--{key}={value}" for key, value in SMALL.items()]
    flags = ["", f"--out={tmp_path}", "--content=tint", "--workers=1", *size]
    assert make_toy_domains.main(flags) == 0
    writer.write("gta5", tmp_path / "expected", **SMALL, content="tint")
    for path in (tmp_path / "expected").rglob("*.png"):
        same = tmp_path / "GTA5" / path.relative_to(tmp_path / "expected")
        assert same.read_bytes() == path.read_bytes()
    marker = json.loads((tmp_path / "Cityscapes" / writer.MARKER).read_text())
    assert marker["content"] == "tint"
