"""Writers, pictures, tables and the HTML report, through the files that they leave."""

import base64
import io
import json
import math
import re
from html.parser import HTMLParser

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util

from snr_jax.core.errors import UserError
from snr_jax.core.files import write_text
from snr_jax.core.labels import CLASSES
from snr_jax.report import pictures, tables
from snr_jax.report.chart import COLORS, line_chart
from snr_jax.report.html import render
from snr_jax.report.scores import scores_picture
from snr_jax.workdir.metrics import create_writer, read_scalars

ROAD, SKY, PERSON = (128, 64, 128), (70, 130, 180), (220, 20, 60)
RESULTS = {
    "plain": {"miou": 0.2504, "iou": {"road": 0.5, "sky": 0.0007, "train": math.nan}},
    "SNR": {"miou": 0.4, "iou": {"road": 0.8, "sky": 0.0, "train": None}},
}


def load_events(workdir):
    events = EventAccumulator(str(workdir), size_guidance={"tensors": 0})
    events.Reload()
    return events


# ---------------------------------------------------------------- writer


def test_events_hold_scalars_images_and_hparams(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    with create_writer(tmp_path) as writer:
        writer.write_hparams({"seed": 3, "data": {"root": "here", "size": (4, 8)}, "init": None})
        writer.write_scalars(1, {"train/loss_source": jnp.float32(0.5), "train/rate": 2})
        writer.write_scalars(2, {"train/loss_source": 0.25})
        writer.write_images(2, {"eval/panel": image})
    events = load_events(tmp_path)
    values = [
        (e.step, float(tensor_util.make_ndarray(e.tensor_proto)))
        for e in events.Tensors("train/loss_source")
    ]
    assert values == [(1, 0.5), (2, 0.25)]
    width, height, png = tensor_util.make_ndarray(events.Tensors("eval/panel")[0].tensor_proto)
    assert (int(width), int(height)) == (7, 5)
    assert (np.asarray(Image.open(io.BytesIO(png))) == image).all()
    hparams = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"data.root" in hparams and b"here" in hparams and b"(4, 8)" in hparams


def test_jsonl_lines_are_strict_json_and_read_back(tmp_path):
    with create_writer(tmp_path) as writer:
        writer.write_scalars(0, {"iou/train": math.nan})
        writer.write_scalars(np.int64(10), {"loss": jnp.float32(0.5), "iou/train": 0.25})
        written = (tmp_path / "metrics.jsonl").read_text()  # before any flush

    def refuse(constant):
        raise AssertionError(constant)

    first, second = (json.loads(line, parse_constant=refuse) for line in written.splitlines())
    assert first["iou/train"] is None
    assert list(second) == ["step", "time", "loss", "iou/train"]
    assert second["time"] > 1.6e9
    scalars = read_scalars(tmp_path)
    assert scalars.keys() == {"loss", "iou/train"}
    np.testing.assert_array_equal(scalars["loss"], [[10], [0.5]])
    np.testing.assert_array_equal(scalars["iou/train"], [[0, 10], [math.nan, 0.25]])


def test_resume_drops_what_will_be_written_again(tmp_path):
    with create_writer(tmp_path) as writer:
        for step in range(1, 6):
            writer.write_scalars(step, {"loss": step})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "lo')  # killed while writing
    np.testing.assert_array_equal(read_scalars(tmp_path)["loss"][0], [1, 2, 3, 4, 5])
    with create_writer(tmp_path, resume_step=3) as writer:
        writer.write_scalars(4, {"loss": 40})
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(x["step"], x["loss"]) for x in lines] == [(1, 1), (2, 2), (3, 3), (4, 40)]
    with create_writer(tmp_path):
        pass
    assert read_scalars(tmp_path) == {}


def test_broken_line_in_the_middle_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nrubbish\n{"step": 2}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2"):
        read_scalars(tmp_path)


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with create_writer(tmp_path) as writer:
        writer.write_hparams({"seed": 3})
        writer.write_scalars(1, {"loss": 1.0})
        writer.write_images(1, {"panel": np.zeros((2, 2, 3), np.uint8)})
        writer.flush()
    assert list(tmp_path.iterdir()) == []


def test_no_file_no_scalars(tmp_path):
    assert read_scalars(tmp_path) == {}


def test_scalar_of_the_wrong_shape_is_refused(tmp_path):
    with create_writer(tmp_path) as writer, pytest.raises(ValueError):
        writer.write_scalars(1, {"loss": np.zeros(2)})
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new \ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


# ---------------------------------------------------------------- pictures


def test_colors_are_the_official_ones():
    ids = np.array([[0, 10, 11], [18, 19, 255]], np.uint8)
    expected = [[ROAD, SKY, PERSON], [(119, 11, 32), (0, 0, 0), (0, 0, 0)]]
    assert pictures.colorize(ids, 19).tolist() == np.array(expected).tolist()
    # trainId 9 of 16 is the sky, since the 16 classes have no terrain.
    assert tuple(pictures.colorize(np.array([[9]], np.uint8), 16)[0, 0]) == SKY


def test_overlay_mixes_and_leaves_ignored_pixels():
    image = np.full((1, 2, 3), 100, np.uint8)
    mixed = pictures.overlay(image, np.array([[0, 255]], np.uint8), 19)
    assert mixed.tolist() == [[[114, 82, 114], [100, 100, 100]]]
    assert mixed.dtype == np.uint8
    with pytest.raises(ValueError, match="differ in size"):
        pictures.overlay(image, np.zeros((2, 2), np.uint8), 19)


def test_panel_puts_samples_in_rows_and_keys_in_columns():
    flat = {
        name: np.full((20, 60, 3), color, np.uint8)
        for name, color in {"a": ROAD, "b": SKY, "c": PERSON}.items()
    }
    grid = pictures.panel([{"input": flat["a"], "label": flat["b"]}, {"input": flat["c"]}])
    strip = grid.shape[0] - 2 * 20 - 4
    assert grid.shape[1] == 2 * 60 + 4 and strip >= 10
    assert (grid[strip : strip + 20, :60] == ROAD).all()
    assert (grid[strip : strip + 20, 64:] == SKY).all()
    assert (grid[strip + 24 :, :60] == PERSON).all()
    assert (grid[strip + 20 :, 64:] == 255).all()  # no label in the second row
    for caption in (grid[:strip, :60], grid[:strip, 64:]):
        assert caption.min() < 100


def test_panel_scales_to_the_first_picture():
    large = np.kron(np.array([[0, 200]], np.uint8), np.ones((40, 60), np.uint8))
    large = np.stack([large] * 3, -1)  # [40,120,3]
    grid = pictures.panel([{"a": np.zeros((20, 60, 3), np.uint8), "b": large}])
    assert (grid[-20:, 64:94] == 0).all() and (grid[-20:, 94:] == 200).all()


# ---------------------------------------------------------------- text


def test_class_table():
    assert tables.class_table(RESULTS).splitlines() == [
        "class  plain   SNR",
        "------------------",
        "road    50.0  80.0",
        "sky      0.1   0.0",
        "train      -     -",
        "------------------",
        "mIoU    25.0  40.0",
    ]


def test_the_mean_of_13_of_16_classes_is_printed_where_there_is_one():
    results = {**RESULTS, "SNR": {**RESULTS["SNR"], "miou_13": 0.456}}
    assert tables.class_table(results).splitlines()[-3:] == [
        "-----------------------",
        "mIoU         25.0  40.0",
        "mIoU of 13      -  45.6",
    ]
    page = Page(render(title="t", summary={"SNR": {"x": 0.4}}, results=results))
    assert page.rows[-2:] == [["mIoU", "25.0", "40.0"], ["mIoU of 13", "-", "45.6"]]


def test_a_class_that_one_run_lacks():
    table = tables.class_table({"a": {"miou": 1, "iou": {}}, "b": {"miou": 1, "iou": {"sky": 1}}})
    assert "sky        -  100.0" in table


# ---------------------------------------------------------------- HTML


class Page(HTMLParser):
    """Balanced tags, table cells, attributes and text of a page."""

    VOID = ("meta", "img")

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.rows, self.text = [], [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def page():
    photo = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    label = pictures.colorize((np.arange(600) % 19).reshape(20, 30))
    return render(
        title="clear & dusk",
        lead="one <sentence>",
        summary={"plain": {"clear": 0.62, "dusk": 0.2816}, "SNR": {"clear": 0.6, "dusk": 0.3342}},
        results=RESULTS,
        curves={"loss": {"plain": ([1, 2, 3], [3.0, math.nan, 1.0]), "SNR": ([1], [2.0])}},
        images=[{"input": photo, "label": label}, {"input": photo}],
        notes={"Commands": ["make demo", "ls"], "Machine": "2 cores"},
    )


def test_html_needs_nothing_beside_it(page):
    assert not re.search(r"https?:|//[a-z]|@import|<script|<link|<iframe", page)
    for tag, name, value in Page(page).attributes:
        if name == "xlink:href":
            assert value.startswith("#")  # the marks of a curve, in the same chart
        if name in ("src", "href", "srcset"):
            assert (tag, name) == ("img", "src") and value.startswith("data:image/")
    assert "url(" not in page


def test_html_is_readable_on_phones_and_in_the_dark(page):
    assert "prefers-color-scheme:dark" in page and "width=device-width" in page
    light, dark = (
        set(re.findall(r"--\w+(?=:)", block)) for block in re.findall(r":root\{([^}]*)\}", page)
    )
    assert light == dark  # every colour has its twin
    assert set(re.findall(r"var\((--\w+)\)", page)) <= light | {"--n"}
    chart = page[page.index("<svg") : page.index("</svg>")]
    colors = re.findall(r"(?:stroke|fill): ([^;\"]+)", chart)
    assert {"var(--c0)", "var(--c1)", "var(--soft)", "var(--line)"} <= set(colors)
    assert not [color for color in colors if color.startswith("#")]


def test_html_numbers(page):
    rows = Page(page).rows
    assert rows == [
        ["mIoU, %", "clear", "dusk", "gap"],
        ["plain", "62.0", "28.2", "33.8"],
        ["SNR", "60.0", "33.4", "26.6"],
        ["IoU, %", "plain", "SNR"],
        ["road", "50.0", "80.0"],
        ["sky", "0.1", "0.0"],
        ["train", "-", "-"],
        ["mIoU", "25.0", "40.0"],
    ]
    assert "<b>80.0</b>" in page and "<b>0.1</b>" in page and "<b>-</b>" not in page
    assert "+5.2 over plain" in page  # 33.4 - 28.2 as shown, though 5.26 unrounded
    bars = re.findall(r'<i style="width:([\d.]+)%', page)
    assert bars == ["50.0", "80.0", "0.1", "0.0", "0", "0"]


def test_html_escapes_and_shows_all_text(page):
    text = Page(page).text
    for words in ("clear & dusk", "one <sentence>", "make demo\nls", "2 cores", "input", "loss"):
        assert words in text
    for c in CLASSES:
        assert f'rgb({c.color[0]},{c.color[1]},{c.color[2]})"></i>{c.name}' in page


def test_html_pictures_keep_label_colors(page):
    uris = [value for tag, name, value in Page(page).attributes if (tag, name) == ("img", "src")]
    kinds = [re.match(r"data:image/(\w+);base64,", uri).group(1) for uri in uris]
    assert kinds == ["jpeg", "png", "jpeg"]
    label = Image.open(io.BytesIO(base64.b64decode(uris[1].split(",")[1])))
    expected = pictures.colorize((np.arange(600) % 19).reshape(20, 30))
    assert (np.asarray(label.convert("RGB")) == expected).all()


def test_html_without_the_optional_parts():
    page = Page(
        render(title="t", summary={"a": {"x": 0.5}}, results={"a": {"miou": 0.5, "iou": {}}})
    )
    assert page.rows[:2] == [["mIoU, %", "x"], ["a", "50.0"]]
    assert "Training" not in page.text and "Pictures" not in page.text


# ---------------------------------------------------------------- charts


def lines_of(svg):
    """The points [K,2] of every curve, in the units of the drawing."""
    paths = re.findall(r'<path d="([^"]+)"[^>]*style="fill: none; stroke: red', svg)
    return [np.array(re.findall(r"[ML] (\S+) (\S+)", path), float) for path in paths]


def labels_of(svg):
    return re.findall(r">([^<>]+)</text>", svg)


def test_chart_places_points_on_its_axes():
    svg = line_chart({"a": ([0, 50, 100], [0.0, 2.0, 1.0])}, ["red"])
    (points,) = lines_of(svg)
    (left, bottom), (middle, top), (right, half) = points
    assert middle == pytest.approx((left + right) / 2) and half == pytest.approx((top + bottom) / 2)
    labels = ["0", "20", "40", "60", "80", "100", "step", "0", "0.5", "1", "1.5", "2"]
    assert labels_of(svg) == labels
    # The grid's lowest line is zero and its highest 2, and the curve touches both.
    grid = [float(y) for y in re.findall(r'd="M \S+ (\S+) \nL[^"]+"[^>]*var\(--line\)', svg)]
    assert len(grid) == 5 and (max(grid), min(grid)) == (bottom, top)


def test_chart_of_negative_values_does_not_reach_for_zero():
    svg = line_chart({"a": ([0, 1], [-0.31, -0.39])}, ["red"])
    assert labels_of(svg)[-3:] == ["−0.4", "−0.35", "−0.3"]


@pytest.mark.parametrize("curve", [([], []), ([1], [math.nan]), ([0], [0.0]), ([5, 5], [3, 3])])
def test_chart_of_next_to_nothing_is_still_a_chart(curve):
    svg = line_chart({"a": curve}, ["red"])
    assert svg.rstrip().endswith("</svg>") and "nan" not in svg and "inf" not in svg


def test_chart_smooths_long_curves_and_marks_the_points_of_short_ones():
    steps = np.arange(100)
    svg = line_chart({"a": (steps, steps % 2)}, ["red"])
    raw, smooth = (points[:, 1] for points in lines_of(svg))
    assert "stroke-opacity: 0.3" in svg and "<use" not in svg
    assert np.ptp(smooth[5:-5]) < np.ptp(raw) / 3
    short = line_chart({"a": (steps[:20], steps[:20])}, ["red"])
    assert len(lines_of(short)) == 1 and short.count("<use") == 20


def test_the_same_chart_is_the_same_text():
    curve = {"a": ([0, 50, 100], [0.0, 2.0, 1.0])}
    assert line_chart(curve, ["red"]) == line_chart(curve, ["red"])


def test_picture_of_scores_places_the_means():
    """Of two networks and two ways to adapt, each in its row and colour, at their values."""
    scores = {"plain": {"before": [0.1, 0.2, 0.3], "mixed": [0.6]}, "SNR": {"before": [0.4]}}
    picture = scores_picture({"dusk": scores}).astype(int)
    rows = picture.shape[0]

    def places(color):  # of the pixels of a colour, above the legend
        wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
        return np.argwhere((picture == wanted).all(-1)[: int(0.75 * rows)])

    before, mixed = places(COLORS[0]), places(COLORS[1])
    split = before[:, 0].min() + np.ptp(before[:, 0]) / 2
    plain, snr = (before[before[:, 0] < split], before[before[:, 0] > split])
    means = plain[:, 1].mean(), snr[:, 1].mean(), mixed[:, 1].mean()
    # 0.2, 0.4 and 0.6 lie on one scale.
    assert means[2] - means[1] == pytest.approx(means[1] - means[0], rel=0.05)
    assert plain[:, 0].mean() < mixed[:, 0].mean() < snr[:, 0].mean()
    # The line of plain reaches from 0.1 to 0.3, as its ticks do.
    assert np.ptp(plain[:, 1]) == pytest.approx(means[1] - means[0], rel=0.08)
    assert len(places(COLORS[2])) == 0
