"""Labels stored as colours: how they are read, what is said of others, what remembers them."""

import json
import logging

import numpy as np
import pytest
from PIL import Image

from snr_jax import doctor
from snr_jax.core.errors import UserError
from snr_jax.data import pipeline, rare
from snr_jax.data.decode import decode_label, tf
from snr_jax.data.domains import create_domain
from snr_jax.data.faults.look import look
from snr_jax.data.faults.survey import survey
from snr_jax.data.identity import exchanged, meaning, meaning_of
from snr_jax.data.samples import list_samples
from tests.data.tiny_sets import natural_image

HEIGHT, WIDTH = 40, 60
TEXT = """
images: images/*.png
labels: masks/*.png
splits: [train]
classes: {water: [0, 90, 200], boat: , sky: }
label_colors:
  boat: [[200, 0, 0], [120, 0, 0]]
  water: [0, 0, 128]
  sky: [255, 255, 255]
  ignored: [0, 0, 0]
"""
COLORS = np.array([[0, 0, 128], [200, 0, 0], [120, 0, 0], [255, 255, 255], [0, 0, 0]], np.uint8)
TRAIN_IDS = np.array([0, 1, 1, 2, 255], np.uint8)  # of COLORS
NAMES = ("1.png", "2.png", "3.png", "4.png")
PLACES = np.random.default_rng(0).integers(0, 5, (HEIGHT, WIDTH))


def save_rgba(path):
    alpha = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 1), np.uint8)
    Image.fromarray(np.concatenate([COLORS[PLACES], alpha], -1)).save(path)


def save_palette(path):
    image = Image.fromarray(PLACES.astype(np.uint8), "P")
    image.putpalette(COLORS.tobytes())
    image.save(path)


SAVED = {
    "rgb.png": lambda path: Image.fromarray(COLORS[PLACES]).save(path),
    "rgba.png": save_rgba,
    "palette.png": save_palette,
    "bitmap.bmp": lambda path: Image.fromarray(COLORS[PLACES]).save(path),
}


@pytest.fixture
def lake(tmp_path):
    """The YAML file of a set of four images with one mask."""
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    for i, name in enumerate(NAMES):
        Image.fromarray(natural_image(i, HEIGHT, WIDTH)).save(tmp_path / "images" / name)
        Image.fromarray(COLORS[PLACES]).save(tmp_path / "masks" / name)
    (tmp_path / "lake.yaml").write_text(TEXT)
    return tmp_path / "lake.yaml"


def read(path):
    domain = create_domain(str(path))
    return list_samples(domain, "train", classes=domain.classes)


@pytest.mark.parametrize("name", SAVED)
def test_every_kind_of_file_gives_the_classes(name, lake, tmp_path):
    labels = read(lake).labels
    SAVED[name](tmp_path / name)
    ids = decode_label(tf.constant((tmp_path / name).read_bytes()), labels).numpy()
    assert ids.dtype == np.uint8 and np.array_equal(labels.lookup[ids], TRAIN_IDS[PLACES])


def test_streams_read_them(lake):
    listing = read(lake)
    assert look(listing.samples, listing.labels, training=True) == []
    options = {"size": (HEIGHT, WIDTH), "batch_size": 4}
    (batch,) = pipeline.eval_batches(listing.samples, listing.labels, **options)
    assert all(np.array_equal(label, TRAIN_IDS[PLACES]) for label in batch["label"])
    trained = next(pipeline.train_batches(listing.samples, listing.labels, seed=0, mirror=False,
                                          **options))
    assert all(np.array_equal(label, TRAIN_IDS[PLACES]) for label in trained["label"])


def test_without_classes_they_are_those_of_cityscapes(lake):
    text = lake.read_text().replace("classes: {water: [0, 90, 200], boat: , sky: }\n", "")
    lake.write_text(text.replace("boat:", "road:").replace("water:", "car:"))
    labels = list_samples(create_domain(str(lake)), "train").labels
    assert labels.lookup[[0, 13, 10, 255, 19]].tolist() == [0, 13, 10, 255, 254]


def test_an_unknown_colour_is_named_with_its_place_and_the_nearest(lake, tmp_path):
    listing = read(lake)
    pixels = COLORS[PLACES]
    pixels[7, 31] = 190, 5, 9
    pixels[8, 0] = 1, 2, 3
    mask = tmp_path / "masks" / "1.png"
    Image.fromarray(pixels).save(mask)
    words = (f"{mask} holds the colour [190, 5, 9] at row 7, column 31 (from 0), one of 2 such "
             "colours in 0.083 % of its pixels, which lake does not define; the nearest is "
             "[200, 0, 0], of boat")
    with pytest.raises(UserError) as error:
        list(pipeline.eval_batches(listing.samples, listing.labels, size=(33, 33), batch_size=4))
    assert words in str(error.value)
    found = survey(create_domain(str(lake)), "train", classes=listing.labels.classes)
    (fault,) = found.faults
    assert words in fault.text and "named by label_colors" in fault.text
    Image.fromarray(COLORS[PLACES]).save(mask, "JPEG", quality=95)
    with pytest.raises(UserError, match=r"holds the colour .*saved as JPEG"):
        look(listing.samples, listing.labels)


def test_the_nearest_may_be_what_is_ignored(lake, tmp_path):
    Image.new("RGB", (WIDTH, HEIGHT), (1, 1, 1)).save(tmp_path / "masks" / "1.png")
    listing = read(lake)
    with pytest.raises(UserError, match=r"nearest is \[0, 0, 0\], of what is ignored"):
        look(listing.samples, listing.labels)


@pytest.mark.parametrize("colors, words", [
    ("3", "classes with their colours in the masks"),
    ("{ignored: [0, 0, 0]}", "classes with their colours in the masks"),
    ("{water: [0, 0, 1], shore: [1, 1, 1]}", "'shore': [1, 1, 1]}; expected names of "
     "the classes (water, boat, sky) or ignored; 'shore' is none"),
    ("{water: [0, 0, 256], sky: [1, 1, 1]}", "holds {'water': [0, 0, 256]}; expected a colour of "
     "three numbers in 0 to 255, as [0, 128, 0], or a list"),
    ("{water: [[0, 0, 1], [0, 0]]}", "holds {'water': [0, 0]}; expected a colour of three numbers"),
    ("{water: []}", "holds {'water': []}; expected a colour of three numbers in 0 to 255"),
    ("{water: }", "holds {'water': None}; expected a colour of three numbers in 0 to 255"),
    ("{water: '#00A0ff'}", "holds {'water': '#00A0ff'}; expected a colour of three numbers in 0 to "
     "255, as [0, 160, 255], or a list"),
    ("{water: \n   #0000ff\n  }", "as [0, 128, 0] (after # all is a comment)"),
    ("{Water: [0, 0, 1], sky: [1, 1, 1]}", "Did you mean 'water'?"),
    ("{water: [0, 0, 1], Ignored: [1, 1, 1]}", "Did you mean 'ignored'?"),
    ("{water: [0, 0, 1], sky: [[9, 9, 9], [0, 0, 1]]}", "holds {'sky': [[9, 9, 9], [0, 0, "
     "1]]}; expected one class for a colour; [0, 0, 1] is that of 'water' and of 'sky'"),
    ("{water: [0, 0, 1]}\nids: {1: water}", "no key ids beside it"),
])  # fmt: skip
def test_mistakes_name_the_file_and_the_key(colors, words, tmp_path):
    path = tmp_path / "lake.yaml"
    path.write_text(f"{TEXT.partition('label_colors')[0]}label_colors: {colors}\n")
    with pytest.raises(UserError) as error:
        create_domain(str(path))
    assert str(error.value).startswith(f"{path}: label_colors ") and words in str(error.value)


def test_a_class_may_be_called_ignored_where_masks_hold_numbers(tmp_path):
    path = tmp_path / "lake.yaml"
    text = "images: a/*.png\nclasses: {water: , ignored: [9, 9, 9]}\n"
    path.write_text(f"{text}ids: {{3: ignored, 4: water}}\n")
    assert create_domain(str(path)).ids["own"].names == {3: "ignored", 4: "water"}
    path.write_text(f"{text}label_colors: {{water: [0, 0, 1], ignored: [2, 2, 2]}}\n")
    with pytest.raises(UserError) as error:
        create_domain(str(path))
    assert str(error.value) == (
        f"{path}: classes holds {{'ignored': [9, 9, 9]}}; expected another name for a class: in "
        "label_colors ignored is no class")


@pytest.mark.parametrize("key, entry", [
    ("label_colors", "last: [0, 0, 256]"),
    ("label_colors", "none: [0, 0, 1]"),
    ("label_colors", f"last: [{', '.join(['[300, 300, 300]'] * 99)}]"),
    ("ids", "254: none"),
    ("ids", "300: last"),
    ("classes", "last: [0, 0, 256]"),
    ("classes", "last: , c251: , c252: , c253: "),
])
def test_with_many_classes_a_message_stays_a_short_line(key, entry, tmp_path):
    path, names = tmp_path / "lake.yaml", [f"c{i}" for i in range(251)]
    tables = {
        "classes": [f"{name}: " for name in names] + ["last: "] * (key != "classes"),
        "ids": [f"{i}: {name}" for i, name in enumerate(names)],
        "label_colors": [f"{name}: [{i}, 0, 0]" for i, name in enumerate(names)],
    }
    tables[key].append(entry)
    path.write_text("images: a/*.png\n" + "".join(
        f"{name}: {{{', '.join(tables[name])}}}\n" for name in {"classes": 0, key: 0}))
    with pytest.raises(UserError) as error:
        create_domain(str(path))
    words = str(error.value).removeprefix(f"{path}: ")
    assert words.startswith(key) and len(words) < 300 and "\n" not in words


def test_colours_that_are_exchanged_are_another_meaning(lake):
    before, listed = meaning(read(lake).labels), meaning_of(create_domain(str(lake)))["numbers"]
    assert before["numbers"] == listed == {
        "200,0,0": "boat", "120,0,0": "boat", "0,0,128": "water", "255,255,255": "sky"}
    lake.write_text(lake.read_text().replace("boat: [[200, 0, 0], [120, 0, 0]]",
                                               "boat: [200, 0, 0]"))
    assert exchanged(before, meaning(read(lake).labels)) == [
        "the colour 120,0,0 in labels is boat there, no class now"]


def test_classes_are_counted_anew_for_other_colours(lake, tmp_path):
    def counts():
        listing = read(lake)
        return rare.count_classes(listing.samples, listing.labels, str(tmp_path),
                                  show=lambda done, total: None)[0]

    number = np.bincount(PLACES.ravel(), minlength=5)
    assert counts().tolist() == [number[0], number[1] + number[2], number[3]]
    lake.write_text(lake.read_text().replace("[120, 0, 0]]", "[7, 7, 7]]").replace(
        "ignored: [0, 0, 0]", "ignored: [[0, 0, 0], [120, 0, 0]]"))
    assert counts().tolist() == [number[0], number[1], number[3]]


def test_the_doctor_shows_them(lake, tmp_path, capsys, caplog):
    caplog.set_level(logging.INFO)
    assert doctor.main(["doctor", "--domain", str(lake), "--html", str(tmp_path / "x.html"),
                        "--stats", str(tmp_path / "stats.json")]) == 0  # fmt: skip
    shown = capsys.readouterr().out
    assert "no faults" in shown and "water" in shown
    stats = json.loads((tmp_path / "stats.json").read_text())["lake/train"]
    assert stats["classes"]["boat"]["pixels"] == 4 * int(np.isin(PLACES, (1, 2)).sum())
    assert stats["ignored"] == 4 * int((PLACES == 4).sum()) and stats["unknown"] == 0


def test_masks_of_one_colour_are_doubted_in_words_for_colours(lake, tmp_path):
    for name in NAMES:
        mask = np.where(PLACES[..., None] < 4, COLORS[0], COLORS[4])
        Image.fromarray(mask).save(tmp_path / "masks" / name)
    listing = read(lake)
    with pytest.raises(UserError, match=r"one class alone, water; .* ignored\. If a colour means"):
        look(listing.samples, listing.labels, training=True)


def test_masks_of_numbers_are_told_as_such(lake, tmp_path):
    """Also those of 16 bits, whose low numbers all would be black when cut to 8."""
    mask = tmp_path / "masks" / "1.png"
    domain = create_domain(str(lake))
    for dtype, words in ((np.uint8, "at most 8 bits"), (np.uint16, "16 bits")):
        Image.fromarray(PLACES.astype(dtype)).save(mask)
        (fault,) = survey(domain, "train", classes=domain.classes).faults
        assert f"{mask} is a gray image, of {words}, where lake expects" in fault.text
        assert "for numbers write ids in the place of label_colors" in fault.text
        listing = read(lake)
        with pytest.raises(UserError, match=r"^lake: .*gray image.*write ids.*snr_jax\.doctor"):
            list(pipeline.eval_batches(listing.samples, listing.labels, size=(9, 9), batch_size=4))
    Image.fromarray((PLACES == 3).astype(np.uint16) * 65535).save(mask)  # black and white
    assert survey(domain, "train", classes=domain.classes).faults == []
