import numpy as np
import pytest
import scipy.io

from snr_jax.core.errors import UserError
from snr_jax.core.labels import ID_TABLES, IGNORE, UNKNOWN, to_train_id
from snr_jax.data.domains import create_domain
from snr_jax.data.samples import list_samples
from tests.data.tiny_sets import write_cityscapes, write_gta5


def ids_of(domain, directory, split, **options):
    samples, _, notes = list_samples(create_domain(domain, directory), split, **options)
    return [sample.id for sample in samples], notes


def test_gta5_without_lists_trains_on_all_files(tmp_path):
    root = write_gta5(tmp_path, [3, 1, 2])
    samples, _, notes = list_samples(create_domain("gta5", root), "train")
    assert [s.id for s in samples] == ["00001", "00002", "00003"]
    assert samples[0].image == str(root / "images" / "00001.png")
    assert samples[0].label == str(root / "labels" / "00001.png")
    assert "all files" in notes[0]


def test_gta5_split_mat_comes_before_lists(tmp_path):
    root = write_gta5(tmp_path, [1, 2, 3, 4])
    (root / "train.txt").write_text("00004\n")
    assert ids_of("gta5", root, "train")[0] == ["00004"]
    numbers = {
        "trainIds": np.array([[2], [1]], np.uint16),  # a column, as in the original file
        "valIds": np.array([[3]], np.uint16),
        "testIds": np.array([[4]], np.uint16),
    }
    scipy.io.savemat(root / "split.mat", numbers)
    assert ids_of("gta5", root, "train") == (
        ["00001", "00002"],
        ["split 'train' from split.mat"],
    )
    assert ids_of("gta5", root, "val")[0] == ["00003"]
    assert ids_of("gta5", root, "test")[0] == ["00004"]
    assert ids_of("gta5", root, "all")[0] == ["00001", "00002", "00003", "00004"]


def test_gta5_text_lists(tmp_path):
    root = write_gta5(tmp_path, [1, 2, 3])
    (root / "train.txt").write_text("00002\n\n1\n")
    (root / "val.txt").write_text("00003.png\n")
    assert ids_of("gta5", root, "train") == (["00001", "00002"], ["split 'train' from train.txt"])
    assert ids_of("gta5", root, "val")[0] == ["00003"]
    with pytest.raises(UserError, match=r"'test' is not defined .*read_mapping.zip.*test.txt"):
        list_samples(create_domain("gta5", root), "test")
    (root / "val.txt").write_text("00003\nfoo\n")
    with pytest.raises(UserError, match=r"val.txt, line 2: 'foo'"):
        list_samples(create_domain("gta5", root), "val")


def test_gta5_train_is_not_guessed_where_another_list_exists(tmp_path):
    root = write_gta5(tmp_path, [1, 2])
    (root / "val.txt").write_text("00002\n")
    with pytest.raises(UserError, match=r"'train' is not defined .*train.txt"):
        list_samples(create_domain("gta5", root), "train")


def test_gta5_blank_frames_are_left_out_and_counted(tmp_path):
    ids, notes = ids_of(
        "gta5", write_gta5(tmp_path, [12159, 12160, 12202, 12208, 12209, 19993]), "train"
    )
    assert ids == ["12159", "12209"]
    assert "4 blank frames left out" in notes


def test_gta5_broken_split_mat(tmp_path):
    root = write_gta5(tmp_path, [1])
    (root / "split.mat").write_bytes(b"MATLAB? no")
    with pytest.raises(UserError, match=r"split.mat cannot be read"):
        list_samples(create_domain("gta5", root), "train")
    scipy.io.savemat(root / "split.mat", {"other": np.arange(3)})
    with pytest.raises(UserError, match=r"split.mat has no key valIds"):
        list_samples(create_domain("gta5", root), "val")


@pytest.mark.parametrize(
    "values", [np.array(["a", "bc"]), np.array([0, 1]), np.array([1.5]), np.array([np.nan, 1]),
               np.array([[1, "x"]], object), np.array([1 + 2j]), {"a": 1}],
)
def test_gta5_split_mat_without_numbers_of_frames(tmp_path, values):
    root = write_gta5(tmp_path, [1])
    scipy.io.savemat(root / "split.mat", {"trainIds": values})
    with pytest.raises(UserError, match=r"split.mat: trainIds holds .* expected the numbers of"):
        list_samples(create_domain("gta5", root), "train")


@pytest.mark.parametrize(
    "content", [b"\x89PNG\r\n\x1a\n\0\0", b"\xff\xfe0\x000\x001\x00", bytes(9000),
                b"PK\x03\x04 zip", "\u0661".encode()],
)
def test_gta5_lists_that_are_no_text(tmp_path, content):
    root = write_gta5(tmp_path, [1])
    (root / "train.txt").write_bytes(content)
    with pytest.raises(UserError, match=r"train.txt.*expected one") as caught:
        list_samples(create_domain("gta5", root), "train")
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


def test_a_list_written_on_windows(tmp_path):
    root = write_gta5(tmp_path, [1, 2, 3])
    (root / "train.txt").write_bytes(b"\xef\xbb\xbf00001\r\n00003\r\n")
    assert ids_of("gta5", root, "train")[0] == ["00001", "00003"]


def test_hidden_files_are_no_samples(tmp_path):
    """macOS writes ._NAME beside NAME on disks of other systems."""
    gta5, cityscapes = write_gta5(tmp_path, [1]), write_cityscapes(tmp_path, 1, "val")
    (gta5 / "images" / "._00001.png").write_bytes(b"")
    assert ids_of("gta5", gta5, "train")[0] == ["00001"]
    (image,) = cityscapes.glob("leftImg8bit/val/*/*.png")
    image.with_name(f"._{image.name}").write_bytes(b"")
    assert len(ids_of("cityscapes", cityscapes, "val")[0]) == 1


def test_gta5_names_that_are_no_numbers(tmp_path):
    root = write_gta5(tmp_path, [1])
    (root / "images" / "copy of 1.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"copy of 1.png"):
        list_samples(create_domain("gta5", root), "train")


def test_cityscapes_pairs_across_cities(tmp_path):
    root = write_cityscapes(tmp_path, 3, "val")
    samples, _, notes = list_samples(create_domain("cityscapes", root), "val")
    assert [s.id for s in samples] == [
        "aachen_000000_000019",
        "aachen_000002_000019",
        "zurich_000001_000019",
    ]
    assert samples[2].image.endswith("leftImg8bit/val/zurich/zurich_000001_000019_leftImg8bit.png")
    assert samples[2].label.endswith("gtFine/val/zurich/zurich_000001_000019_gtFine_labelIds.png")
    assert notes == []


def test_unlabelled_targets_train_and_do_not_evaluate(tmp_path):
    root = write_cityscapes(tmp_path, 3, "train", labels=False)
    domain = create_domain("cityscapes", root)
    samples, _, notes = list_samples(domain, "train", require_labels=False)
    assert [s.label for s in samples] == [None] * 3
    assert notes == ["3 of 3 images have no label"]
    with pytest.raises(UserError, match=r"3 of 3 labels are missing: .*aachen_000000_000019"):
        list_samples(create_domain("cityscapes", root), "train")


@pytest.mark.parametrize("kind", ["images", "labels"])
def test_a_missing_half_of_a_pair_is_named(tmp_path, kind):
    root = write_gta5(tmp_path, [1, 2, 3])
    missing = root / kind / "00002.png"
    missing.unlink()
    with pytest.raises(UserError, match=f"1 of 3 {kind} are missing: {missing}"):
        list_samples(create_domain("gta5", root), "train")


def test_a_listed_frame_that_is_missing_is_named(tmp_path):
    root = write_gta5(tmp_path, [1, 2])
    (root / "train.txt").write_text("\n".join(map(str, range(1, 8))))
    with pytest.raises(UserError, match=r"5 of 7 images are missing: .*00003.png, .*, \.\.\."):
        list_samples(create_domain("gta5", root), "train")


def test_missing_directory_names_the_setting(tmp_path):
    with pytest.raises(UserError, match=r"no directory .*nowhere.*images/.*data.root.*GTA5/"):
        list_samples(create_domain("gta5", tmp_path / "nowhere"), "train")


def test_empty_split_shows_the_layout(tmp_path):
    root = write_cityscapes(tmp_path, 1, "train")
    with pytest.raises(UserError, match=r"'val' in .*Cityscapes is empty.*leftImg8bit/<split>"):
        list_samples(create_domain("cityscapes", root), "val")
    (root / "empty").mkdir()
    with pytest.raises(UserError, match=r"'train' in .*empty is empty"):
        list_samples(create_domain("gta5", root / "empty"), "train")


def test_wrong_names_list_the_right_ones(tmp_path):
    with pytest.raises(UserError, match=r"'city'.*gta5, synthia, cityscapes"):
        create_domain("city")
    with pytest.raises(UserError, match=r"Did you mean 'gta5'"):
        create_domain("GTA")
    with pytest.raises(UserError, match=r"no split 'validation'.*train, val, test"):
        list_samples(create_domain("cityscapes", tmp_path), "validation")


@pytest.mark.parametrize("ids", ID_TABLES)
@pytest.mark.parametrize("num_classes", [19, 16, 13])
def test_the_ids_of_a_table_run_from_zero_on(ids, num_classes):
    """`decode.read_label_ids` relies on it to find unknown ids fast; 255 is always ignored."""
    lookup = to_train_id(ID_TABLES[ids], num_classes)
    unknown = np.flatnonzero(lookup == UNKNOWN)
    assert unknown.tolist() == list(range(unknown[0], 255))
    assert lookup[255] == IGNORE
