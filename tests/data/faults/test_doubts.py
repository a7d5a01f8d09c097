"""Labels and sizes that may not be meant: said at a run's start and by the doctor."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from snr_jax import doctor
from snr_jax.core.errors import UserError
from snr_jax.data.domains import create_domain
from snr_jax.data.faults.look import NUM_DECODED, look, look_at_prepared
from snr_jax.data.prepared import spread, writing
from snr_jax.data.prepared.reading import open_prepared
from snr_jax.data.samples import list_samples
from snr_jax.workdir import record
from tests.commands import said
from tests.data.tiny_sets import labels_of, random_ids, save_palette, write_gta5, write_masks

MEND = "name it in the file's key ids, as ids: {0: background, 255: target}"


def listed(spec: str):
    domain = create_domain(spec)
    return list_samples(domain, "train", classes=domain.classes)[:2]


def test_masks_of_0_and_255_are_refused_in_training_and_warned_of_elsewhere(tmp_path):
    samples, labels = listed(write_masks(tmp_path, ids=""))
    with pytest.raises(UserError) as caught:
        look(samples, labels, training=True)
    with said() as lines:
        (warning,) = look(samples, labels)
    for text in (str(caught.value), warning):
        assert "one class alone, background; 50 % of their pixels are ignored (numbers 255)" in text
        assert MEND in text and "\n" not in text
    assert lines == ["note: set: of the 4 labels that were looked at none holds target"]
    assert look(samples, labels, with_labels=False, training=True) == []  # a target's


def test_the_mend_that_is_named_helps(tmp_path):
    samples, labels = listed(write_masks(tmp_path, ids="{0: background, 255: target}"))
    with said() as lines:
        assert look(samples, labels, training=True) == []
    assert lines == []


def test_an_id_that_is_not_named_is_told_as_well(tmp_path):
    """Masks of 0 and 1, of which the file names one."""
    samples, labels = listed(write_masks(tmp_path, ids="{1: target}", inside=1))
    with pytest.raises(UserError, match=r"one class alone, target; 50 % .* \(numbers 0\).*"
                       r"ids: \{0: background, 1: target\}"):
        look(samples, labels, training=True)


def test_a_rare_object_is_no_reason_to_refuse(tmp_path):
    """It is in one label alone, which is none of the few that are looked at first."""
    samples, labels = listed(write_masks(tmp_path, ids="", count=2 * NUM_DECODED))
    chosen = set(np.linspace(0, len(samples) - 1, NUM_DECODED).astype(int).tolist())
    other = next(i for i in range(len(samples)) if i not in chosen)
    Image.fromarray(np.ones((40, 80), np.uint8)).save(samples[other].label)
    assert "one class alone" in look(samples, labels)[0]
    assert look(samples, labels, training=True) == []


def test_255_for_most_pixels_is_a_warning(tmp_path):
    """Both classes occur."""
    samples, labels = listed(write_masks(tmp_path, ids=""))
    for sample in samples:
        mask = np.full((40, 80), 255, np.uint8)
        mask[:, :10], mask[:, 10:20] = 0, 1
        Image.fromarray(mask).save(sample.label)
    (warning,) = look(samples, labels, training=True)
    assert "are 255 in 75 % of their pixels, which is ignored" in warning
    for sample in samples:
        mask[:, :30], mask[:, 30:42] = 0, 1
        Image.fromarray(mask).save(sample.label)
    assert look(samples, labels, training=True) == []


def test_the_classes_that_no_label_holds_are_told(tmp_path):
    root = write_gta5(tmp_path)
    for path in (root / "labels").iterdir():
        save_palette(random_ids(0, 24, 40, np.array([0, 7, 26], np.uint8)), path)
    labels = labels_of("gta5", 13)
    samples = list_samples(create_domain("gta5", root), "train").samples
    with said() as lines:
        assert look(samples, labels, training=True) == []
    (line,) = lines
    assert "of the 5 labels that were looked at none holds sidewalk, building, light" in line
    assert "road" not in line and " car" not in line


def test_prepared_data_is_looked_at_too(tmp_path, monkeypatch):
    monkeypatch.setattr(spread, "ProcessPoolExecutor",
                        lambda workers, *_: ThreadPoolExecutor(workers))
    for name, ids in (("bare", ""), ("named", "{0: background, 255: target}")):
        domain = create_domain(write_masks(tmp_path / name, ids=ids))
        out = tmp_path / f"{name}_out"
        writing.prepare(domain, out, splits=["train"], size=(20, 40), images="raw", workers=1,
                        identify=record.identity)
        samples, labels, prepared = open_prepared(
            out, domain, "train", size=(20, 40), classes=domain.classes)
        if name == "named":
            assert look_at_prepared(prepared, len(samples), labels) == []
        else:
            with pytest.raises(UserError, match="one class alone, background; 50 %"):
                look_at_prepared(prepared, len(samples), labels)


# ---------------------------------------------------------------- the shape of images


@pytest.mark.parametrize("size, words", [
    ((80, 40), "Are height and width of the size exchanged?"),
    ((40, 41), "A size of their shape keeps it"),
    ((40, 50), None), ((20, 40), None), ((30, 90), None),
])  # fmt: skip
def test_sizes_that_squeeze_images_are_a_warning(tmp_path, size, words):
    samples, labels = listed(write_masks(tmp_path))
    found = look(samples, labels, size=size)
    assert bool(found) == bool(words)
    if words:
        (warning,) = found
        assert warning.endswith(words) and "4 of 4 images are squeezed" in warning
        assert f"seen at {size[0]}x{size[1]} (height x width)" in warning
        assert f"{samples[0].image} of 40x80 the first" in warning


# ---------------------------------------------------------------- the doctor


def survey(*arguments, capsys) -> tuple[int, str]:
    code = doctor.main(["doctor", *map(str, arguments)])
    return code, capsys.readouterr().out


def test_the_doctor_says_the_same(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = write_masks(tmp_path, ids="")
    code, out = survey("--domain", spec, capsys=capsys)
    assert code == 1 and "no label holds target\n" in out and MEND in out
    assert "FAULT the labels that were looked at hold one class alone, background" in out
    code, out = survey("--domain", spec, "--split", "val", capsys=capsys)  # may be scored
    assert code == 0 and "WARNING the labels that were looked at hold one class" in out
    code, out = survey("--domain", spec, "--sample", 2, capsys=capsys)  # others may hold it
    assert code == 0 and "WARNING the labels that were looked at hold one class" in out


def test_the_doctor_of_a_configuration_looks_at_its_sizes(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = write_masks(tmp_path)
    root = Path(__file__).resolve().parents[3]
    flags = ["--config", root / "configs/gta5_dg.py", "--config.num_classes=2",
             f"--config.source.domain={spec}", "--config.target.val_split="]
    code, out = survey(*flags, "--config.source.size=(80,40)", capsys=capsys)
    assert code == 0 and out.count("Are height and width of the size exchanged?") == 2
    code, out = survey(*flags, "--config.source.size=(40,80)", capsys=capsys)
    assert code == 0 and "WARNING" not in out and "no label holds" not in out
