"""Prediction: any image in, results of its own size out."""

import itertools
import os
import shutil
import struct
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from snr_jax.core.errors import UserError
from snr_jax.core.labels import palette, train_id_to_label_id
from snr_jax.core.models.backbone import architecture
from snr_jax.core.models.deeplab import DeepLab
from snr_jax.core.state import initial_variables
from snr_jax.core.steps import make_predict_step
from snr_jax.inference import photos, tiles
from snr_jax.report import pictures
from snr_jax.runs import network
from snr_jax.workdir import checkpoints

SIZES = {  # name → height, width
    "photo.jpg": (40, 72), "drawing.png": (33, 65), "gray.png": (40, 72), "alpha.png": (33, 65),
    "indexed.png": (40, 72), "deep.png": (33, 65), "strip.png": (1, 90), "dot.png": (1, 1),
}  # fmt: skip
MODES = {"gray.png": "L", "alpha.png": "RGBA", "indexed.png": "P", "deep.png": "I;16"}


def draw(path, height, width):
    rng = np.random.default_rng(height * width)
    rgb = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
    if MODES.get(path.name) == "I;16":
        rgb = Image.fromarray(rng.integers(0, 65536, (height, width), np.uint16))
    elif path.name in MODES:
        rgb = rgb.convert(MODES[path.name])
    rgb.save(path)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """An untrained network, with kernels so large that its classes and confidences vary."""
    model = DeepLab(stage_sizes=(1, 1, 1, 1), width=4)
    variables = jax.tree_util.tree_map_with_path(
        lambda path, x: 15 * x if path[-1].key == "kernel" else x, initial_variables(model, 0)
    )
    meta = {"model": architecture(model), "source": {"step": 0, "input_size": (33, 65)}}
    path = tmp_path_factory.mktemp("untrained") / "checkpoint"
    checkpoints.save_variables(path, variables, meta)
    return path


@pytest.fixture(scope="module")
def done():
    return {}


@pytest.fixture
def predicted(done, checkpoint, command, tmp_path_factory):
    """Result of the command, the folders of images and results; run once."""
    if not done:
        images, out = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("out") / "new"
        for name, size in SIZES.items():
            draw(images / name, *size)
        (images / "notes.txt").write_text("no image, and not called one")
        result = command("predict", "--checkpoint", checkpoint, "--images", images,
                         "--out", out, "--confidence")
        assert result.code == 0, result
        done.update(result=result, images=images, out=out)
    return done


@pytest.mark.parametrize("name", SIZES)
def test_results_agree_and_have_the_size_of_the_image(name, predicted):
    stem = name.split(".")[0]

    def result(kind):
        return Image.open(predicted["out"] / f"{stem}_{kind}.png")

    height, width = SIZES[name]
    ids = np.asarray(result("trainIds"))
    assert ids.shape == (height, width) and ids.max() < 19
    for kind, mode in {"trainIds": "L", "labelIds": "L", "confidence": "L", "color": "RGB",
                       "overlay": "RGB"}.items():  # fmt: skip
        assert result(kind).size == (width, height) and result(kind).mode == mode
    assert (np.asarray(result("labelIds")) == train_id_to_label_id()[ids]).all()
    assert (np.asarray(result("color")) == palette()[ids]).all()
    image = photos.read_image(predicted["images"] / name)
    assert (np.asarray(result("overlay")) == pictures.overlay(np.asarray(image), ids)).all()
    assert np.asarray(result("confidence")).min() >= 255 // 19


def test_nothing_else_is_written(predicted):
    kinds = ("color", "overlay", "trainIds", "labelIds", "confidence")
    expected = {f"{name.split('.')[0]}_{kind}.png" for name in SIZES for kind in kinds}
    assert {path.name for path in predicted["out"].iterdir()} == expected
    out = predicted["result"].out
    assert "8 images, seen by the network at 33x65" in out and "images 8/8" in out
    assert predicted["result"].err == ""


def test_prediction_is_the_network_s(predicted, checkpoint):
    """At the network's size there is no resizing between."""
    model, variables, _ = network.load(str(checkpoint))
    image = np.asarray(Image.open(predicted["images"] / "drawing.png")).astype(np.float32)
    bgr = image[None, :, :, ::-1] - np.array([104.00698793, 116.66876762, 122.67891434], "f4")
    logits = np.asarray(jax.jit(lambda x: model.apply(variables, x, train=False).main)(bgr)[0])
    ids = np.asarray(Image.open(predicted["out"] / "drawing_trainIds.png"))
    assert (logits.argmax(-1) == ids).mean() > 0.999
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    confidence = np.asarray(Image.open(predicted["out"] / "drawing_confidence.png"))
    np.testing.assert_allclose(confidence, 255 * p.max(-1), atol=0.51)


def ids_and_confidence(folder, name="a"):
    return [np.asarray(Image.open(folder / f"{name}_{kind}.png"))
            for kind in ("trainIds", "confidence")]


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    """A folder with one smooth image, larger than a tile and than the network's size."""
    folder = tmp_path_factory.mktemp("photo")
    rng = np.random.default_rng(5)
    small = Image.fromarray(rng.integers(0, 256, (7, 9, 3), np.uint8))
    small.resize((100, 60), Image.Resampling.BICUBIC).save(folder / "a.png")
    return folder


FLAGS = {  # flags → what `segment` and the network get
    (): {"size": (33, 65)},
    ("--size=own",): {},
    ("--size=40,70",): {"size": (40, 70)},
    ("--flip",): {"size": (33, 65), "flip": True},
    ("--dtype=bfloat16",): {"size": (33, 65), "dtype": "bfloat16"},
    ("--tile=40,50",): {"tile": (40, 50), "overlap": 5},
    ("--tile=40,50", "--overlap=0"): {"tile": (40, 50), "overlap": 0},
    ("--tile=40,50", "--overlap=20", "--size=33,65"): {
        "tile": (40, 50), "overlap": 20, "size": (33, 65)},
}  # fmt: skip


@pytest.fixture(scope="module")
def by_flags():
    return {}


@pytest.mark.parametrize("flags", FLAGS)
def test_every_flag_arrives(flags, by_flags, checkpoint, photo, command, tmp_path):
    """The results are those of the call that the flags name, and of no other."""
    result = command("predict", "--checkpoint", checkpoint, "--images", photo,
                     "--out", tmp_path, "--confidence", *flags)
    assert result.code == 0, result
    options = dict(FLAGS[flags])
    model, variables, _ = network.load(checkpoint, dtype=options.pop("dtype", "float32"))
    net = tiles.create_network(model, variables)
    image = photos.read_image(photo / "a.png")
    classes, confidence = tiles.segment(net, image, **options)
    found = ids_and_confidence(tmp_path)
    assert (found[0] == classes).mean() > 0.999
    np.testing.assert_allclose(found[1], 255 * confidence, atol=0.51)
    for other, theirs in by_flags.items():
        assert (theirs != found[1]).mean() > 0.01, f"{flags} and {other} give the same"
    by_flags[flags] = found[1]


def test_nothing_asked_no_confidence(checkpoint, photo, command, tmp_path):
    result = command("predict", "--checkpoint", checkpoint, "--images", photo, "--out", tmp_path)
    assert result.code == 0 and (tmp_path / "a_color.png").exists()
    assert not (tmp_path / "a_confidence.png").exists()


# ---------------------------------------------------------------- blocks and tiles


@pytest.mark.parametrize("flip", [False, True])
def test_blocks_give_what_the_whole_gives(flip, checkpoint):
    """Logits upsampled to the size of the image, then softmax, as evaluation does it."""
    model, variables, _ = network.load(checkpoint)
    size = (tiles.BLOCK[0] + 70, 2 * tiles.BLOCK[1] + 90)
    pixels = np.random.default_rng(1).integers(0, 256, (33, 65, 3), np.uint8)
    image = Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BICUBIC)
    net = tiles.create_network(model, variables)
    classes, confidence = tiles.segment(net, image, size=(33, 65), flip=flip)
    seen = np.asarray(image.resize((65, 33), Image.Resampling.BICUBIC))
    whole = jax.jit(make_predict_step(model=model, flip=flip), static_argnums=2)
    p = np.asarray(whole(variables, seen[None], size)[0])
    np.testing.assert_allclose(confidence, p.max(-1), rtol=1e-5)
    top = np.sort(p, -1)
    clear = top[..., -1] - top[..., -2] > 1e-6
    assert clear.mean() > 0.99 and (classes == p.argmax(-1))[clear].all()


@pytest.mark.parametrize("flip", [False, True])
def test_one_tile_is_the_whole(flip, checkpoint):
    model, variables, _ = network.load(checkpoint)
    net = tiles.create_network(model, variables)
    image = Image.fromarray(np.random.default_rng(2).integers(0, 256, (48, 80, 3), np.uint8))
    whole = tiles.segment(net, image, flip=flip)
    tile = tiles.segment(net, image, tile=(48, 80), overlap=16, flip=flip)
    for one, other in zip(whole, tile, strict=True):
        assert (one == other).all()


@pytest.mark.parametrize("flip", [False, True])
def test_small_image_in_a_large_tile(flip, checkpoint):
    """Padded with the mean colour below and on the right, which the result does not show."""
    model, variables, _ = network.load(checkpoint)
    net = tiles.create_network(model, variables)
    pixels = np.random.default_rng(2).integers(0, 256, (30, 50, 3), np.uint8)
    padded = np.full((48, 80, 3), (123, 117, 104), np.uint8)
    padded[:30, :50] = pixels
    small = tiles.segment(net, Image.fromarray(pixels), tile=(48, 80), flip=flip)
    large = tiles.segment(net, Image.fromarray(padded), flip=flip)
    for one, other in zip(small, large, strict=True):
        np.testing.assert_allclose(one, other[:30, :50], rtol=1e-6)


def test_no_seams(checkpoint, monkeypatch):
    """A network that says the same everywhere says it in every overlap, at its confidence."""
    model, variables, _ = network.load(checkpoint)
    head = variables["params"]["layer6"]
    for branch in head.values():
        branch["kernel"] = np.zeros_like(branch["kernel"])
        branch["bias"] = np.linspace(0, 1, 19, dtype=np.float32)
    net = tiles.create_network(model, variables)
    monkeypatch.setattr(tiles, "BLOCK", (32, 48))
    image = Image.new("RGB", (150, 100), (9, 99, 199))
    classes, confidence = tiles.segment(net, image, tile=(40, 65), overlap=20, flip=True)
    logits = 2 * np.linspace(0, 1, 19)  # of two branches
    assert (classes == 18).all()
    np.testing.assert_allclose(confidence, np.exp(logits[-1]) / np.exp(logits).sum(), rtol=1e-5)


@pytest.mark.parametrize(
    "length, tile, overlap", [(100, 40, 10), (101, 40, 20), (40, 40, 10), (7, 40, 0), (80, 40, 0)]
)
def test_tiles_cover_and_shares_sum_to_one(length, tile, overlap):
    begins = tiles.starts(length, tile, overlap)
    assert begins[0] == 0 and (begins[-1] + tile == length or len(begins) == 1)
    assert all(b - a <= tile - overlap for a, b in itertools.pairwise(begins))
    shares = np.array([a.share for a in tiles.axes(length, tile, begins, 6, 32)])
    assert shares.shape[1] % 32 == 0 and (shares[:, length:] == 0).all()
    np.testing.assert_allclose(shares[:, :length].sum(0), 1, rtol=1e-6)


def test_shares_fall_off_linearly():
    first, second = tiles.axes(7, 5, [0, 2], 2, 7)
    np.testing.assert_allclose(first.share, [1, 1, 3 / 4, 2 / 4, 1 / 4, 0, 0])
    np.testing.assert_allclose(second.share, [0, 0, 1 / 4, 2 / 4, 3 / 4, 1, 1])


def test_images_of_many_sizes_are_compiled_once(checkpoint):
    model, variables, _ = network.load(checkpoint)
    net = tiles.create_network(model, variables)
    compiled = []
    for height, width in ((20, 30), (41, 77), (300, 1100)):
        tiles.segment(net, Image.new("RGB", (width, height)), size=(33, 65))
        programs = net.cache_info().misses, tiles.add_share._cache_size()
        compiled.append((*programs, tiles._decide._cache_size()))
    assert compiled[0] == compiled[1] == compiled[2]


def test_too_large_for_the_memory(checkpoint, photo, command, refused, monkeypatch, tmp_path):
    flags = ["--checkpoint", checkpoint, "--images", photo, "--out", tmp_path / "out"]
    monkeypatch.setattr(tiles, "_free_memory", lambda: 1000)
    error = refused("predict", *flags)
    assert "sees 33x65 needs about 0.0 GiB" in error and "--tile 512,1024" in error
    result = command("predict", *flags, "--size=own")
    assert result.code == 1 and f"{photo / 'a.png'}: a network that sees 60x100" in result.err
    monkeypatch.setattr(tiles, "_free_memory", lambda: None)
    model, variables, _ = network.load(checkpoint)
    program = tiles.create_network(model, variables)(60, 100, 1).func
    needed = program.memory_analysis().temp_size_in_bytes
    monkeypatch.setattr(tiles, "_free_memory", lambda: needed * 3 // 2)
    result = command("predict", *flags, "--size=own")
    assert result.code == 0 and "note: a network that sees 60x100 needs" in result.out


def test_free_memory_of_a_container(monkeypatch, tmp_path):
    free = tiles._free_memory()
    assert 0 < free < 2**50
    monkeypatch.setattr(tiles, "_CGROUP", tmp_path)
    (tmp_path / "memory.current").write_text("400\n")
    (tmp_path / "memory.max").write_text("1000\n")
    assert tiles._free_memory() == 600
    (tmp_path / "memory.max").write_text("max\n")
    assert tiles._free_memory() > 600


# ---------------------------------------------------------------- files


def write_tiff(path, rows, kind, bits, white_is_zero=False):
    """A gray TIFF as no library here writes it. kind: 1 unsigned, 2 signed, 3 float."""
    data = rows.tobytes()
    tags = ((256, rows.shape[1]), (257, rows.shape[0]), (258, bits), (259, 1),
            (262, 0 if white_is_zero else 1), (273, 8), (277, 1), (278, rows.shape[0]),
            (279, len(data)), (339, kind))  # fmt: skip
    packed = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    header = struct.pack("<2sHI", b"II", 42, 8 + len(data))
    path.write_bytes(header + data + struct.pack("<H", len(tags)) + packed + bytes(4))


DEEP = np.array([[0, 257 * 100 + 129, 65535]])  # the second is nearer to 101 than to 100


@pytest.mark.parametrize("name", ["a.png", "a.tif", "zero.tif"])
def test_sixteen_bits_are_scaled(name, tmp_path):
    deep = DEEP.astype(np.uint16)
    if name == "a.png":
        Image.fromarray(deep).save(tmp_path / name)
    else:
        write_tiff(tmp_path / name, 65535 - deep if name == "zero.tif" else deep, 1, 16,
                   white_is_zero=name == "zero.tif")  # fmt: skip
    image = np.asarray(photos.read_image(tmp_path / name))
    assert image.tolist() == [[[0] * 3, [101] * 3, [255] * 3]]


@pytest.mark.parametrize(
    "dtype, kind, words",
    [("uint32", 1, "32-bit integers"), ("int32", 2, "32-bit"), ("int16", 2, "signed"),
     ("float32", 3, "floats"), ("float64", 3, "cannot identify")],
)  # fmt: skip
def test_numbers_without_a_white(dtype, kind, words, tmp_path):
    rows = DEEP.astype(dtype)
    write_tiff(tmp_path / "a.tif", rows, kind, 8 * rows.itemsize)
    with pytest.raises(UserError, match=words):
        photos.read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("mode", ["RGB", "I;16"])
def test_images_are_turned_as_their_exif_says(mode, tmp_path):
    pixels = np.array([[[255] * 3, [0] * 3], [[0] * 3, [0] * 3], [[0] * 3, [0] * 3]], np.uint8)
    deep = pixels[..., 0].astype(np.uint16) * 257
    image = Image.fromarray(pixels if mode == "RGB" else deep)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned right by 90 degrees
    image.save(tmp_path / "a.png", exif=exif)
    assert np.asarray(photos.read_image(tmp_path / "a.png"))[..., 0].tolist() == [
        [0, 0, 255], [0, 0, 0]
    ]  # fmt: skip


def test_decompression_bomb(monkeypatch, tmp_path):
    draw(tmp_path / "a.png", 30, 30)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)  # the error begins at twice that
    assert photos.read_image(tmp_path / "a.png").size == (30, 30)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    with pytest.raises(UserError, match="900 pixels"):
        photos.read_image(tmp_path / "a.png")


@pytest.mark.parametrize(
    "flags, said", [((), True), (("--size=own",), False), (("--tile=40,40",), False),
                    (("--tile=40,40", "--size=40,70"), True)],
)  # fmt: skip
def test_squeezed_images_are_said(flags, said, checkpoint, command, tmp_path):
    (tmp_path / "images").mkdir()
    draw(tmp_path / "images" / "upright.png", 72, 40)
    draw(tmp_path / "images" / "photo.png", 45, 60)  # 4:3 to 2:1 is taken as it is
    result = command("predict", "--checkpoint", checkpoint, "--images", tmp_path / "images",
                     "--out", tmp_path / "out", *flags)
    assert result.code == 0, result
    assert ("were squeezed" in result.out) == said
    assert flags or "at 33x65, 1 images were squeezed" in result.out


def test_goes_on_past_what_cannot_be_read(checkpoint, command, tmp_path):
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    draw(images / "a.png", 33, 65)
    (images / "b.png").write_text("<html>not found</html>")
    draw(images / "c.png", 33, 65)
    (images / "c.png").write_bytes((images / "c.png").read_bytes()[:900])
    (images / "d.png").symlink_to("nowhere")
    (images / "e.png").write_bytes(b"")
    draw(images / "f.png", 33, 65)
    result = command("predict", "--checkpoint", checkpoint, "--images", images, "--out", out)
    assert result.code == 1
    lines = result.err.splitlines()
    assert lines[0] == "error: 4 of 6 images have no result:" and len(lines) == 5
    for line, name in zip(lines[1:], "bcde", strict=True):
        assert line.startswith(f"  {images / f'{name}.png'}: cannot be read as an image: ")
        assert f"left out: {name}.png" in result.out
    assert {path.name[:2] for path in out.iterdir()} == {"a_", "f_"}
    assert "images 6/6" in result.out


def test_what_is_no_image_is_left_out_with_a_word(checkpoint, command, tmp_path):
    images = tmp_path / "images"
    (images / "folder.png").mkdir(parents=True)
    draw(images / "a.PNG", 33, 65)
    (images / "._a.png").write_bytes(b"what a Mac leaves")
    (images / "notes.txt").write_text("no image")
    result = command("predict", "--checkpoint", checkpoint, "--images", images,
                     "--out", tmp_path / "out")
    assert result.code == 0, result
    assert "1 images, seen" in result.out
    assert "another suffix: 3 (._a.png, folder.png, notes.txt)" in result.out


def test_names_that_the_terminal_cannot_show(checkpoint, process, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    draw(images / "a.png", 33, 65)
    (images / os.fsdecode(b"\xff.png")).write_bytes(b"")
    (images / os.fsdecode(b"\xff.txt")).write_bytes(b"")
    running = process("predict", "--checkpoint", checkpoint, "--images", images,
                      "--out", tmp_path / "out")
    out, err = running.communicate(timeout=300)
    assert running.returncode == 1 and "left out: ?.png" in out and "(?.txt)" in out
    assert err.startswith("error: 1 of 2 images have no result") and len(err.splitlines()) == 2


def test_a_result_that_cannot_be_written(checkpoint, refused, tmp_path):
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    draw(images / ("a" * 250 + ".png"), 33, 65)
    flags = ["--checkpoint", checkpoint, "--images", images]
    assert "could not be written" in refused("predict", *flags, "--out", out)
    assert not list(out.iterdir())
    assert "cannot be made: Not a directory" in refused("predict", *flags, "--out=README.md/x")


@pytest.mark.parametrize(
    "files, names",
    [
        (("a.png", "b.jpg"), ("a", "b")),
        (("a.jpg", "a.png", "b.png"), ("a.jpg", "a.png", "b")),
        (("a.jpg", "a.jpg.png", "a.png"), ("a.jpg", "a.jpg.png", "a.png")),
    ],
)
def test_names_of_results(files, names):
    assert tuple(photos.result_names([Path(name) for name in files])) == names


def test_names_of_results_in_folders():
    paths = [Path(name) for name in ("a/x.jpg", "a/x.png", "b/x.jpg", "x.jpg")]
    assert photos.result_names(paths) == ["a/x.jpg", "a/x.png", "b/x", "x"]


def test_folders_are_read_in_depth_and_the_results_mirror_them(checkpoint, command, tmp_path):
    images, out = tmp_path / "images", tmp_path / "images" / "out"
    for name in ("ulm/a.png", "bern/a.png", "bern/old/a.png", ".cache/a.png", "a.png"):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        draw(images / name, 33, 65)
    (images / "bern/loop").symlink_to(images)
    (images / "bern/notes.txt").write_text("no image")
    (images / "bern/old/b.png").write_text("no image either")
    for _ in range(2):  # the second time what the first one wrote lies there
        result = command("predict", "--checkpoint", checkpoint, "--images", images, "--out", out)
        assert result.code == 1 and "5 images, seen" in result.out
        assert "left out: bern/old/b.png" in result.out
        assert {path.relative_to(out).as_posix() for path in out.rglob("*_color.png")} == {
            "ulm/a_color.png", "bern/a_color.png", "bern/old/a_color.png", "a_color.png"
        }  # fmt: skip
    assert "another suffix: 4 (.cache, bern/loop, bern/notes.txt, ...)" in result.out


FOUND = {  # what is given → the images, by their paths from the folder that the results mirror
    "ulm/a.png": ["a.png"], "ulm": ["a.png", "b.JPG"],
    "*/a.png": ["[x]/a.png", "bern/a.png", "ulm/a.png"],
    "u*": ["ulm/a.png", "ulm/b.JPG"], "ulm/[b-z].JPG": ["b.JPG"],
    "**/a.png": ["[x]/a.png", "bern/a.png", "bern/deep/a.png", "ulm/a.png"],
    "bern/**": ["a.png", "deep/a.png"], "[x]": ["a.png"], "[x]/a.png": ["a.png"],
}  # fmt: skip


@pytest.mark.parametrize("given", FOUND)
def test_a_folder_a_file_or_a_pattern(given, tmp_path):
    for name in ("ulm/a.png", "ulm/b.JPG", "bern/a.png", "bern/deep/a.png", "[x]/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for number in range(3):  # links that loop in 3 to the power of any depth
        (tmp_path / f"bern/deep/loop{number}").symlink_to(tmp_path / "bern")
    found = photos.find_images([str(tmp_path / given)])
    assert [path.as_posix() for path in found.paths] == FOUND[given]
    assert all((found.folder / path).is_file() for path in found.paths)


def test_a_pattern_that_the_shell_has_expanded(checkpoint, command, refused, tmp_path, monkeypatch):
    for name in ("ulm/a.png", "ulm/b.png", "bern/a.png", "bern/c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        draw(tmp_path / name, 33, 65) if name.endswith("png") else (tmp_path / name).touch()

    def results(*words: str) -> set[str]:
        out = tmp_path / f"out{len(words)}"
        result = command("predict", "--checkpoint", checkpoint, "--images", *words, "--out", out)
        assert result.code == 0, result
        return {path.relative_to(out).as_posix() for path in out.rglob("*_color.png")}

    ulm = [tmp_path / "ulm/a.png", tmp_path / "ulm/b.png"]
    assert results(*ulm) == {"a_color.png", "b_color.png"}
    assert results(*ulm, tmp_path / "bern") == {
        "ulm/a_color.png", "ulm/b_color.png", "bern/a_color.png"}
    monkeypatch.setattr("tests.conftest.ROOT", tmp_path)  # where commands are run
    assert results("ulm/a.png", tmp_path / "ulm/b.png", "bern/a.png", "bern/c.txt") == {
        "ulm/a_color.png", "ulm/b_color.png", "bern/a_color.png"}
    error = refused("predict", "--checkpoint=c", "--images", "ulm/a.png", "ulm/none.png")
    assert f"there is no folder or file {tmp_path}/ulm/none.png" in error


def test_nothing_that_matches_and_a_folder_that_cannot_be_read(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"nothing that matches .*/x/\*.png"):
        photos.find_images([str(tmp_path / "x" / "*.png")])
    (tmp_path / "closed").mkdir()
    real = Path.iterdir

    def iterdir(path):  # as for users who are not root
        if path.name == "closed":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    with pytest.raises(UserError, match="closed cannot be read: Permission denied"):
        photos.find_images([str(tmp_path)])


def test_mirrored_results_never_go_among_the_images(checkpoint, refused, tmp_path):
    (tmp_path / "a" / "a").mkdir(parents=True)
    draw(tmp_path / "a" / "x.png", 33, 65)
    draw(tmp_path / "a" / "a" / "y.png", 33, 65)
    error = refused("predict", "--checkpoint", checkpoint, "--images", tmp_path / "a",
                    "--out", tmp_path)
    assert "is the folder of the images" in error


def test_images_that_share_a_stem(checkpoint, command, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for name in ("a.jpg", "a.png"):
        draw(images / name, 33, 65)
    result = command("predict", "--checkpoint", checkpoint, "--images", images,
                     "--out", tmp_path / "out")
    assert result.code == 0, result
    assert {p.name for p in (tmp_path / "out").glob("*color*")} == {
        "a.jpg_color.png", "a.png_color.png"
    }  # fmt: skip


def test_results_never_go_among_the_images(checkpoint, refused, photo, tmp_path):
    (tmp_path / "link").symlink_to(photo)
    for out in (photo, photo / "..", tmp_path / "link"):
        out = out / photo.name if out.name == ".." else out
        error = refused("predict", "--checkpoint", checkpoint, "--images", photo, "--out", out)
        assert "is the folder of the images" in error
    assert [path.name for path in photo.iterdir()] == ["a.png"]


def test_default_size_of_a_converted_checkpoint(checkpoint, command, monkeypatch, tmp_path):
    """None is recorded: the size of the published numbers, and it is said."""
    model, variables, _ = network.load(checkpoint)
    meta = {"model": architecture(model), "source": {"kind": "converted"}}
    checkpoints.save_variables(tmp_path / "converted", variables, meta)
    (tmp_path / "images").mkdir()
    draw(tmp_path / "images" / "a.png", 40, 72)
    result = command("predict", "--checkpoint", tmp_path / "converted",
                     "--images", tmp_path / "images", "--out", tmp_path / "out")
    assert result.code == 0, result
    assert "at 512x1024 as the published numbers are scored (the checkpoint rec" in result.out


@pytest.mark.parametrize("files", [(), ("a.txt",), (".a.png",)])
def test_folder_without_images(files, refused, tmp_path):
    for name in files:
        (tmp_path / name).write_bytes(b"")
    error = refused("predict", "--checkpoint=c", "--images", tmp_path, f"--out={tmp_path}/o")
    assert f"{tmp_path} holds no .bmp, " in error


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--images=i", "--out=o"), "--checkpoint is missing; for instance --checkpoint runs/"),
        (("--checkpoint=c", "--out=o"), "--images is missing"),
        (("--checkpoint=c", "--images=i", "--out=o"), "there is no folder or file i"),
        (("--checkpoint=c", "--images=configs"), "configs holds no"),
        (("--confidense",), "confidense"),
        (("photo.jpg",), "unexpected argument 'photo.jpg'"),
        (("--checkpoint=c", "--images=README.md", "--out=o"), "README.md is a file"),
        (("--dtype=float16",), "float16"),
        (("--overlap=x",), "overlap=x"),
    ],
)
def test_mistaken_flags(arguments, words, refused):
    assert words in refused("predict", *arguments)


@pytest.mark.parametrize("size", ["40", "0,0", "20,80", "a,b", "1,2,3"])
def test_mistaken_size(size, checkpoint, refused, tmp_path):
    draw(tmp_path / "a.png", 40, 40)
    error = refused("predict", "--checkpoint", checkpoint, "--images", tmp_path,
                    "--out", tmp_path / "out", f"--size={size}")
    assert f"--size is {size}; expected HEIGHT,WIDTH" in error


@pytest.mark.parametrize(
    "flags, words",
    [
        (("--tile=40",), "--tile is 40; expected HEIGHT,WIDTH in pixels, as 512,1024, of at least"),
        (("--tile=own",), "--tile is own; expected HEIGHT,WIDTH"),
        (("--tile=",), "--tile is ; expected HEIGHT,WIDTH"),
        (("--tile=32,64",), "of at least 33 each"),
        (("--overlap=8",), "give --tile HEIGHT,WIDTH as well"),
        (("--tile=40,60", "--overlap=21"), "--overlap is 21; expected 0 to 20"),
        (("--tile=40,60", "--overlap=-1"), "--overlap is -1; expected 0 to 20"),
    ],
)
def test_mistaken_tiles(flags, words, refused, photo, tmp_path):
    out = tmp_path / "out"
    error = refused("predict", "--checkpoint=c", "--images", photo, "--out", out, *flags)
    assert words in error and not out.exists()


def test_checkpoint_that_is_none(refused, tmp_path):
    draw(tmp_path / "a.png", 40, 40)
    error = refused("predict", "--checkpoint", tmp_path, "--images", tmp_path, "--out=o")
    assert f"{tmp_path} holds no checkpoint" in error


def test_damaged_checkpoint(checkpoint, process, tmp_path):
    """Told in one line on the terminal, though the libraries have much to say about it."""
    path = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, path)
    draw(tmp_path / "a.png", 40, 40)
    largest = max(path.rglob("d/*"), key=lambda file: file.stat().st_size)
    largest.unlink()
    running = process("predict", "--checkpoint", path, "--images", tmp_path,
                      "--out", tmp_path / "out")
    _, err = running.communicate(timeout=300)
    assert running.returncode == 2
    assert err.startswith(f"error: {path} cannot be read") and err.count("\n") == 1
