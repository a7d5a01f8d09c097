"""The quick look at a split: what stops a run at its start, and what it warns of."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from snr_jax.core.errors import UserError
from snr_jax.core.labels import IGNORE
from snr_jax.data.domains import create_domain
from snr_jax.data.faults import look as look_module
from snr_jax.data.faults.look import label_fault, look, shared
from snr_jax.data.samples import Sample, list_samples
from tests.data.tiny_sets import (
    LABEL_IDS,
    TRAIN_IDS,
    labels_of,
    natural_image,
    random_ids,
    save_palette,
    write_gta5,
)

GTA5, CITYSCAPES = labels_of("gta5"), labels_of("cityscapes")


@pytest.fixture
def gta5(tmp_path) -> list[Sample]:
    return list_samples(create_domain("gta5", write_gta5(tmp_path, range(1, 31))), "train")[0]


def png_of(height: int, width: int, depth: int = 8, color_type: int = 2, pixels=b"\0") -> bytes:
    """A PNG file with any header."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        length, check = len(data), zlib.crc32(kind + data)
        return struct.pack(">I", length) + kind + data + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


def jpeg_of(path: Path) -> bytes:
    Image.fromarray(natural_image(0, 24, 40)).save(path.with_suffix(".jpg"))
    return path.with_suffix(".jpg").read_bytes()


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :]


IMAGES = {
    "empty": (lambda path, data: b"", "none of PNG"),
    "text": (lambda path, data: b"<html>not found</html>", "none of PNG"),
    "signature alone": (lambda path, data: data[:8], ""),
    "cut in its header": (lambda path, data: data[:20], ""),
    "cut after its header": (lambda path, data: data[:33], ""),
    "cut in its pixels": (lambda path, data: data[: len(data) // 2], "Invalid PNG"),
    "cut at its end": (lambda path, data: data[:-14], ""),
    "header damaged": (lambda path, data: flipped(data, 18), ""),
    "a bomb": (lambda path, data: png_of(60000, 60000), "claims more than 178956970 pixels"),
    "no height": (lambda path, data: png_of(0, 40), ""),
    "zeros": (lambda path, data: bytes(len(data)), "none of PNG"),
    "WebP": (lambda path, data: b"RIFF\x10\0\0\0WEBPVP8 " + bytes(20), "none of PNG"),
    "JPEG cut": (lambda path, data: jpeg_of(path)[:-300], "runcated"),
    "JPEG cut in its header": (lambda path, data: jpeg_of(path)[:60], ""),
}
LABELS = {
    "cut before its pixels": (lambda path, data: data[:60], "it ends before its pixels"),
    "cut after its header": (lambda path, data: data[:33], "it ends before its pixels"),
    "cut in its pixels": (lambda path, data: data[:-40], ""),
    "empty": (lambda path, data: b"", "no PNG file"),
    "text": (lambda path, data: b"7 7 7", "no PNG file"),
    "JPEG": (lambda path, data: jpeg_of(path), ""),
    "with colours": (lambda path, data: png_of(24, 40), "where one with label ids"),
    "of 16 bits": (lambda path, data: png_of(24, 40, 16, 0), "where one with label ids"),
    "a bomb": (lambda path, data: png_of(60000, 60000, 8, 0), "claims more than"),
    "absurd chunk": (lambda path, data: data[:33] + b"\x7f\xff\xff\xff" + data[37:], "ends before"),
}


@pytest.mark.parametrize(
    ("kind", "name"), [*(("image", n) for n in IMAGES), *(("label", n) for n in LABELS)]
)
def test_a_broken_file_is_found_and_named(gta5, kind, name, capfd):
    """Whichever it is: the last one of the split too."""
    path = Path(getattr(gta5[-1], kind))
    spoil, words = (IMAGES if kind == "image" else LABELS)[name]
    path.write_bytes(spoil(path, path.read_bytes()))
    with pytest.raises(UserError) as caught:
        look(gta5, GTA5)
    message = str(caught.value)
    assert f"gta5: {path} is no " in message and words in message
    assert "\n" not in message and len(message) < 600
    assert capfd.readouterr().err == ""


def test_missing_and_unreadable_files(gta5):
    Path(gta5[3].image).unlink()
    Path(gta5[4].label).unlink()
    Path(gta5[4].label).mkdir()
    with pytest.raises(UserError) as caught:
        look(gta5, GTA5)
    assert f"2 faults, the first: {gta5[3].image} cannot be read: No such file" in str(caught.value)
    assert f"{gta5[4].label} cannot be read: Is a directory" in str(caught.value)


def test_a_sound_split_is_decoded_in_samples_alone(gta5, monkeypatch):
    decoded, calls = [], []
    inspect = look_module.inspection.inspect
    monkeypatch.setattr(
        look_module.inspection, "inspect",
        lambda sample, labels: decoded.append(sample) or inspect(sample, labels),
    )
    assert look(gta5, GTA5, progress=lambda *call: calls.append(call)) == []
    assert calls == [(i, 30) for i in range(1, 31)]
    assert len(decoded) == look_module.NUM_DECODED and {gta5[0], gta5[-1]} <= set(decoded)


def test_what_looks_odd_and_can_be_decoded_is_good(gta5):
    for sample in gta5[:2]:  # bytes after the end
        path = Path(sample.image)
        path.write_bytes(path.read_bytes() + bytes(5000))
    assert look(gta5, GTA5) == []


def test_sizes_that_differ_by_little_are_one_warning(tmp_path):
    root = write_gta5(tmp_path, range(1, 6), height=40, width=60)
    for number in (2, 5):
        save_palette(random_ids(0, 39, 60), root / "labels" / f"0000{number}.png")
    samples = list_samples(create_domain("gta5", root), "train").samples
    (warning,) = look(samples, GTA5)
    assert "2 labels differ from their images in size" in warning
    assert f"{samples[1].label} is 60x39 and its image {samples[1].image} 60x40" in warning
    assert samples[4].label in warning and samples[0].label not in warning
    assert look(samples, GTA5, with_labels=False) == []
    save_palette(random_ids(0, 37, 60), Path(samples[2].label))
    with pytest.raises(UserError, match=r"00003.png is 60x37 and its image .* within 5 %"):
        look(samples, GTA5)


def test_an_image_that_its_exif_turns_is_one_warning(gta5):
    """Also of one that is not decoded; without labels too."""
    exif = Image.Exif()
    exif[0x0112] = 3
    for sample in gta5[4:6]:
        Image.fromarray(natural_image(0, 24, 40)).save(sample.image, exif=exif)
    for with_labels in (True, False):
        (warning,) = look(gta5, GTA5, with_labels=with_labels)
        assert f"2 of 30 images are turned or mirrored by their EXIF, {gta5[4].image}" in warning
        assert "of orientation 3 the first" in warning and "mogrify -auto-orient" in warning


def test_labels_without_a_class_and_trainids_are_refused(gta5):
    def write(change) -> None:
        for number, sample in enumerate(gta5):
            save_palette(change(random_ids(number, 24, 40)), Path(sample.label))

    write(lambda ids: np.zeros_like(ids))
    with pytest.raises(UserError, match="every pixel of the labels that were looked at is ignored"):
        look(gta5, GTA5)
    write(lambda ids: TRAIN_IDS[ids])
    with pytest.raises(UserError, match="look like trainIds"):
        look(gta5, GTA5)
    assert look(gta5, GTA5, with_labels=False) == []


def histogram(ids: np.ndarray) -> np.ndarray:
    return np.bincount(ids.ravel(), minlength=256)


def test_label_fault():
    usual = random_ids(0, 40, 40)
    assert label_fault(histogram(usual), CITYSCAPES) is None
    assert "trainIds" in label_fault(histogram(TRAIN_IDS[usual]), CITYSCAPES)
    street = np.array([7, 8, 11, 17, 0, 1], np.uint8)  # label ids, none above 18
    assert label_fault(histogram(random_ids(0, 40, 40, street)), CITYSCAPES) is None
    test_set = np.array([0, 1, 2, 3], np.uint8)  # as the public labels of Cityscapes test
    assert "is ignored (ids 0, 1, 2, 3)" in label_fault(
        histogram(random_ids(0, 40, 40, test_set)), CITYSCAPES
    )
    terrain = np.array([22, 27, IGNORE], np.uint8)
    assert label_fault(histogram(random_ids(0, 9, 9, terrain)), GTA5) is None
    of_16 = label_fault(histogram(random_ids(0, 9, 9, terrain)), labels_of("gta5", 16))
    assert "is ignored" in of_16
    assert set(LABEL_IDS) > {7, 33}


def test_training_and_validation_that_share_images():
    one, two, three = (Sample(str(i), f"{i}.png", None) for i in range(3))
    splits = {"source": [one, two], "target": [three], "source_val": [two], "target_val": [one]}
    warnings = shared(splits)
    assert len(warnings) == 2
    assert warnings[0].startswith("source and source_val share 1 images, 1.png the first")
    assert warnings[1].startswith("source and target_val share 1 images, 0.png the first")
    assert shared({"source": [one], "source_val": [two], "target_val": [two]}) == []


def test_a_copy_under_another_name_is_the_same_image(tmp_path):
    def sample(name: str, content: bytes) -> Sample:
        (tmp_path / name).write_bytes(content)
        return Sample(name, str(tmp_path / name), None)

    train, as_long, copy = sample("a", b"photo 1"), sample("b", b"photo 2"), sample("c", b"photo 1")
    assert shared({"source": [train], "source_val": [as_long]}) == []
    nearly = sample("d", b"shoto 1")  # but for its first byte
    [warning] = shared({"source": [train], "source_val": [as_long, copy, nearly]})
    assert warning.startswith(f"source and source_val share 1 images, {tmp_path / 'c'} the first")


def test_files_of_one_size_are_told_apart_by_a_piece(tmp_path, monkeypatch):
    paths = [tmp_path / str(i) for i in range(3)]
    for i, path in enumerate(paths):
        path.write_bytes(bytes([i]) * 1000)
    one, two, three = (Sample(path.name, str(path), None) for path in paths)
    read = []
    monkeypatch.setattr(look_module, "checksum", lambda path: read.append(path) or path)
    assert shared({"source": [one, two], "source_val": [three]}) == []
    assert read == []
