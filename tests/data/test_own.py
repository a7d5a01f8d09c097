"""Data sets of one's own, from a YAML file: what it may say, and mistakes in it."""

import pytest

from snr_jax.config import reading
from snr_jax.config.arguments import create_domains
from snr_jax.configs import gta2city_uda
from snr_jax.core.errors import UserError
from snr_jax.core.labels import CLASSES, class_names, own_classes, palette
from snr_jax.data.domains import create_domain
from snr_jax.data.own import KEYS
from snr_jax.data.samples import list_samples
from snr_jax.data.splits import open_split
from snr_jax.runs.evaluation import open_rows
from tests.commands import ROOT, said
from tests.data.test_layout_rows import touch

FIVE = """
images: frames/{split}/*.jpg
labels: masks/{split}/*_mask.png
splits: {train: a, val: b}
classes:
  water: [0, 90, 200]
  boat:
  sky: [1, 2, 3]
ids: {7: water, 9: boat, 8: boat, 1: sky}
"""


@pytest.fixture
def write(tmp_path):
    def write(text):
        (tmp_path / "lake.yaml").write_text(text)
        return str(tmp_path / "lake.yaml")

    return write


def test_classes_ids_and_folders(write, tmp_path):
    path = write(FIVE)
    touch(tmp_path, "frames/a/1.jpg", "masks/a/1_mask.png", "frames/b/2.jpg", "masks/b/2_mask.png")
    domain = create_domain(path)
    assert domain.name == "lake" and class_names(domain.classes) == ("water", "boat", "sky")
    assert palette(domain.classes)[[0, 2]].tolist() == [[0, 90, 200], [1, 2, 3]]
    listing = list_samples(create_domain(path, domain.directory), "val", classes=domain.classes)
    assert [s.image for s in listing.samples] == [str(tmp_path / "frames/b/2.jpg")]
    assert listing.labels.lookup[[7, 8, 9, 1, 0, 255, 200]].tolist() == [0, 1, 1, 2, 255, 255, 255]


def test_train_ids_and_the_classes_of_cityscapes(write, tmp_path):
    path = write("images: '*.png'\nlabels: gt/*.png\nsplits: [all]")
    touch(tmp_path, "1.png", "gt/1.png")
    listing = list_samples(create_domain(path, tmp_path), "all")
    assert create_domain(path).classes is None
    assert listing.labels.lookup[[0, 18, 19, 255]].tolist() == [0, 18, 254, 255]
    thirteen = list_samples(create_domain(path, tmp_path), "all", classes=13)
    assert thirteen.labels.lookup[3] == 255  # a wall is no class among the 13


def test_classes_that_the_network_does_not_have_are_told(write, tmp_path):
    domain = create_domain(write(FIVE))
    touch(tmp_path, "frames/a/1.jpg", "masks/a/1_mask.png")

    def told(classes, **options):
        return open_split(domain, "train", size=(9, 9), classes=classes, **options).told

    lake = own_classes(["sky", "ship", "water"])
    assert "; its classes boat are none of the network's: their pixels are ignored" in told(lake)
    assert "ignored" not in told(domain.classes) + told(lake, require_labels=False)


def test_truth_values_of_yaml_are_names(write):
    domain = create_domain(write(
        "images: a/*.png\nsplits: [on, off]\nclasses: {yes: , no: , on: [1, 2, 3], Off: , true: }\n"
        "ids: {0: no, 1: yes, 2: true}"
    ))
    assert class_names(domain.classes) == ("yes", "no", "on", "Off", "true")
    assert dict(domain.splits) == {"on": "on", "off": "off"}
    assert domain.ids["own"].names == {0: "no", 1: "yes", 2: "true"}


def test_another_folder_counts(write, tmp_path):
    path = write("images: a/*.png\nsplits: [train]")
    touch(tmp_path, "a/1.png", "other/a/2.png")

    def ids(domain):
        return [s.id for s in list_samples(domain, "train", require_labels=False).samples]

    assert ids(create_domain(path)) == ["1"]
    assert ids(create_domain(path, tmp_path / "other")) == ["2"]
    with pytest.raises(UserError, match=r"no directory .*nowhere.*lie beside .*lake.yaml"):
        ids(create_domain(path, tmp_path / "nowhere"))


def test_another_folder_counts_in_a_configuration_and_in_a_table(write, tmp_path):
    path = write("images: a/*.png\nlabels: b/*.png\nsplits: [val]")
    touch(tmp_path, "a/1.png", "b/1.png", "data/other/a/2.png", "data/other/b/2.png")
    config = gta2city_uda.get_config()
    config.data.root, config.source.domain = str(tmp_path / "data"), path
    for folder, place in {"GTA5": "", "NTHU/Rome": "", "": "", "other": "data/other"}.items():
        config.source.dir = folder
        assert create_domains(config)["source"].directory == str(tmp_path / place), folder
    for entry, id in {path: "1", f"{path}=other": "2"}.items():
        rows = open_rows([entry], root=config.data.root, split="val", size=None, max_images=0,
                         classes=CLASSES)
        (split,) = rows.splits.values()
        assert [sample.id for sample in split.samples] == [id]


def test_a_folder_that_is_set_and_does_not_count_is_said(write, tmp_path):
    path = write("images: a/*.png\nlabels: b/*.png\nsplits: [val]")
    file, root = str(ROOT / "configs/gta2city_uda.py"), {"data.root": f"{tmp_path}/data"}

    def told(**texts: str) -> tuple[list[str], str]:
        with said() as lines:
            config = reading.read(file, root | {k.replace("__", "."): v for k, v in texts.items()})
        return lines, create_domains(config)["source"].directory

    whole = f"{tmp_path}/data/GTA5"
    assert told(source__domain=path) == ([], str(tmp_path))
    lines, directory = told(source__domain=path, source__dir="GTA5")
    assert lines == [
        "WARNING: --config.source.dir=GTA5 does not count: it is the usual folder of another set, "
        f"and the files of {path} are read from {directory}. As a whole path it counts: "
        f"--config.source.dir={whole}"]
    assert told(source__domain=path, source__dir=whole) == ([], whole)
    assert told(source__domain=path, source__dir="a") == ([], f"{tmp_path}/data/a")
    assert told(source__dir="GTA5") == ([], whole)


def test_images_alone(write, tmp_path):
    path = write("images: [photos/*.jpg, photos/*.png]")
    touch(tmp_path, "photos/a.jpg", "photos/b.png")
    bare = list_samples(create_domain(path, tmp_path), "train", require_labels=False)
    assert [(s.id, s.label) for s in bare.samples] == [("a", None), ("b", None)]
    with pytest.raises(UserError, match=r"lake has no labels.*target of training alone"):
        list_samples(create_domain(path, tmp_path), "train")


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "is no table of keys; expected images, labels"),
        ("images: [", "cannot be read as YAML"),
        ("images: a/*.png\nlabel: b/*.png", "no key 'label'; there are images, labels"),
        ("images: a/*.png\nlabel_colours: {road: [1, 1, 1]}", "Did you mean 'label_colors'?"),
        ("images: a/*.png\nlabels: ''", "labels is ''"),
        ("labels: a/*.png", "images is None; expected a pattern with a star"),
        ("images: photos", "images is 'photos'"),
        ("images: 3", "images is 3"),
        ("images: /photos/*.jpg", "from the file's folder"),
        ("images: a/*.png\nlabels: [b/*.png]", "labels is ['b/*.png']"),
        ("images: a/*.png\nlabels: /b/*.png", "labels is '/b/*.png'"),
        ("images: a/*.png\nsplits: 3", "splits is 3"),
        ("images: a/*.png\nsplits: [[train]]", "splits is [['train']]"),
        ("images: a/*.png\nlabels: b/1.png", "as many stars as a/*.png"),
        ("images: a/*.png\nsplits: []", "splits is []"),
        ("images: a/*.png\nclasses: [water, boat]", "classes is ['water', 'boat']"),
        ("images: a/*.png\nclasses: {water: }", "2 to 254 names"),
        ("images: a/*.png\nclasses: {water: [0, 0, 300], sky: }",
         "classes holds {'water': [0, 0, 300]}; expected a colour of three "
         "numbers in 0 to 255, as [0, 128, 0], or nothing"),
        ("images: a/*.png\nclasses: {water: '00ff10', sky: }", "as [0, 255, 16], or nothing"),
        ("images: a/*.png\nids: {1: water}", "names of the classes (road, sidewalk"),
        ("images: a/*.png\nids: {300: road}", "ids holds {300: 'road'}; expected numbers in 0 to"),
        ("images: a/*.png\nids: {0: road, 1: Sky}", "ids holds {1: 'Sky'}; expected numbers"),
        ("images: a/*.png\nids: {0: road, 1: Sky}", "bicycle), without the numbers of no class. "
         "Did you mean 'sky'?"),
        ("images: a/*.png\nids: {}", "ids is {}; expected numbers"),
        ("images: a/*.png\nids: {true: road}", "numbers in 0 to 255"),
        ("images: ~/a/*.png", "from the file's folder"),
        ("images: a/*.png\nlabels: ~/a/*.png", "no ~ and no / before it"),
        ("images: a/**.png", "as frames/{split}/*.jpg or frames/**/*.jpg"),
        ("images: a/**", "images is 'a/**'"),
        ("images: a/**/*.png\nlabels: b/*.png", "as many stars as a/**/*.png"),
        ("images: [a/*.png, a/*/*.png]\nlabels: b/*.png", "as a/*.png and a/*/*.png"),
        ("images: a/*.png\nclasses: {1: , 2: }", "1 is read as something else, so quote it"),
        ("images: a/*.png\nclasses: {a: , null: }", "quote it, as 'null'"),
        ("images: a/*.png\nsplits: [1, 2]", "a number as a name is quoted, as '1'"),
        ("images: a/*.png\nimages: b/*.png", "the key 'images' stands twice in line 2"),
        ("images: a/*.png\nclasses:\n  a:\n  b:\n  a:", "the key 'a' stands twice in line 5"),
        ("images: a/*.png\nids: {0: road, 0x0: sky}", "the key 0 stands twice"),
    ],
)
def test_mistakes_name_the_file_and_the_key(text, words, write):
    path = write(text)
    with pytest.raises(UserError) as error:
        create_domain(path)
    assert path in str(error.value) and words in str(error.value)


@pytest.mark.parametrize("key", KEYS)
def test_a_key_is_not_empty(key, write):
    texts = {"images": "a/*.png", "labels": "b/*.png"} | {key: ""}
    path = write("\n".join(f"{k}: {value}" for k, value in texts.items()))
    with pytest.raises(UserError, match=f"lake.yaml: the key {key} is empty; give it a value, or"):
        create_domain(path)


@pytest.mark.parametrize("images", [
    "{split}/*.jpg", "{split}*.jpg", "*.jpg", "*a/b.jpg", "**/*.jpg", "[*.jpg, *.png]",
    "[a/{split}/*.jpg, b/*.jpg]", "[{split}/*.jpg]", "\n- {split}/*.jpg", "'{split}'/*.jpg",
])  # fmt: skip
def test_a_pattern_that_needs_quotes(images, write):
    path, line = write(f"splits: [train]\nimages: {images}\n"), 2 + images.count("\n")
    with pytest.raises(UserError) as error:
        create_domain(path)
    assert str(error.value) == (
        f"{path} cannot be read as YAML: put the pattern in line {line} in quotes, as "
        "'{split}/*.jpg', or each of a list: ['a/{split}/*.jpg', 'b/{split}/*.png']")
    create_domain(write("images: ['a/{split}/*.jpg', 'b/{split}/*.png']\nlabels: '{split}/*.png'"))


@pytest.mark.parametrize("text, reason", [
    (b"images: a/*.png\nclasses:\n  a:\n\tb:", "as YAML: line 4 has a tab; indent with spaces"),
    (b"images:\n\t- a/*.png", "as YAML: line 2 has a tab; indent with spaces"),
    ("images: ä/*.png".encode("latin-1"), "is not in UTF-8; save it as UTF-8"),
    ("images: a/*.png".encode("utf-16"), "is not in UTF-8; save it as UTF-8"),
    (b"images: [a/*.png\nlabels: b/{split}/*.png", "expected ',' or ']', but got ':' in line 2"),
])  # fmt: skip
def test_a_file_that_cannot_be_read(text, reason, tmp_path):
    path = tmp_path / "lake.yaml"
    path.write_bytes(text)
    with pytest.raises(UserError) as error:
        create_domain(str(path))
    assert f"{path} cannot be read" in str(error.value) and reason in str(error.value)
    assert ("quotes" in str(error.value), "codec" in str(error.value)) == (False, False)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"none\.yaml cannot be read: there is no such file$"):
        create_domain(str(tmp_path / "none.yaml"))
    with pytest.raises(UserError, match=r"cannot be read: Is a directory$"):
        (tmp_path / "none.yaml").mkdir()
        create_domain(str(tmp_path / "none.yaml"))


def test_an_empty_split_says_which_folder_is_empty_and_names_no_hidden_file(write, tmp_path):
    path = write("images: a/{split}/*.jpg\nlabels: b/{split}/*.png")
    touch(tmp_path, ".e.1029", "a/.hid/1.jpg", "a/train/1.jpg", "b/train/1.png", "a/test/.DS_Store")
    (tmp_path / "a/val").mkdir()

    def said_of(split):
        with pytest.raises(UserError) as error:
            list_samples(create_domain(path), split)
        return str(error.value)

    start = "There is: a, b, lake.yaml. "
    assert said_of("val").endswith(f"{start}The folder {tmp_path}/a/val is empty")
    assert said_of("test").endswith(f"{start}The folder {tmp_path}/a/test is empty")
    (tmp_path / "a/val").rmdir()
    assert "is empty" not in said_of("val").partition("There is: ")[2]
    touch(tmp_path, "a/val/1.txt")
    assert "is empty" not in said_of("val").partition("There is: ")[2]
