"""Every row of the table of domains finds its files, in each of the forms they come in."""

from pathlib import Path

import pytest

from snr_jax.core.errors import UserError
from snr_jax.data.domains import DOMAINS, create_domain
from snr_jax.data.samples import list_samples

# domain, split → image, label, what the label file's numbers are
FORMS = [
    ("gta5", "all", "images/00001.png", "labels/00001.png", "label_ids"),
    ("synthia", "train", "RGB/0000000.png", "GT/LABELS/0000000.png", "synthia"),
    ("synthia", "val", "RGB/0009000.png", "GT/LABELS/0009000.png", "synthia"),
    ("cityscapes", "val", "leftImg8bit/val/ulm/ulm_0_0_leftImg8bit.png",
     "gtFine/val/ulm/ulm_0_0_gtFine_labelIds.png", "label_ids"),
    ("cityscapes", "val", "leftImg8bit/val/ulm/ulm_0_0_leftImg8bit.png",
     "gtFine/val/ulm/ulm_0_0_gtFine_labelTrainIds.png", "train_ids"),
    ("crosscity", "val", "Images/Test/pano_1.png", "Labels/Test/pano_1_eval.png", "label_ids"),
    ("crosscity", "test", "Images/Test/pano_1.jpg", "Labels/Test/pano_1_eval.png", "label_ids"),
    ("bdd100k", "val", "images/10k/val/a-1.jpg", "labels/sem_seg/masks/val/a-1.png", "train_ids"),
    ("bdd100k", "val", "seg/images/val/a-1.jpg", "seg/labels/val/a-1_train_id.png", "train_ids"),
    ("bdd100k", "train", "images/train/a-1.jpg", "labels/train/a-1_train_id.png", "train_ids"),
    ("mapillary", "val", "validation/images/a.jpg", "validation/labels/a.png", "mapillary"),
    ("mapillary", "train", "training/images/a.jpg", "training/v1.2/labels/a.png", "mapillary"),
    ("acdc", "val", "rgb_anon/fog/val/G1/G1_1_rgb_anon.png",
     "gt/fog/val/G1/G1_1_gt_labelTrainIds.png", "train_ids"),
    ("acdc_fog", "val", "rgb_anon/fog/val/G1/G1_1_rgb_anon.png",
     "gt/fog/val/G1/G1_1_gt_labelIds.png", "label_ids"),
    ("dark_zurich", "val", "rgb_anon/val/night/G1/G1_1_rgb_anon.png",
     "gt/val/night/G1/G1_1_gt_labelTrainIds.png", "train_ids"),
    ("camvid", "val", "val/0001TP_1.png", "valannot/0001TP_1.png", "camvid"),
    ("camvid", "dusk_train", "test/0001TP_1.png", "testannot/0001TP_1.png", "camvid"),
    ("camvid", "all", "701_StillsRaw_full/0001TP_1.png", "LabeledApproved_full/0001TP_1_L.png",
     "camvid"),
]  # fmt: skip


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.mark.parametrize("domain, split, image, label, ids", FORMS)
def test_forms(domain, split, image, label, ids, tmp_path):
    touch(tmp_path, image, label, image + ".txt", "notes.txt")
    listing = list_samples(create_domain(domain, tmp_path), split)
    (sample,) = listing.samples
    assert (sample.image, sample.label) == (str(tmp_path / image), str(tmp_path / label))
    assert listing.labels.ids == ids
    kind = "colors" if label.endswith("_L.png") else "indices"
    assert listing.labels.kind == ("synthia" if domain == "synthia" else kind)
    (tmp_path / label).unlink()
    with pytest.raises(UserError, match=r"1 of 1 labels are missing"):
        list_samples(create_domain(domain, tmp_path), split)
    bare = list_samples(create_domain(domain, tmp_path), split, require_labels=False)
    assert bare.samples[0].label is None


def test_every_row_is_tried():
    tried = {domain for domain, *_ in FORMS}
    assert {name for name in DOMAINS if not name.startswith("acdc_")} <= tried


def test_acdc_by_condition(tmp_path):
    for number, condition in enumerate(("fog", "night", "rain", "snow")):
        for frame in range(number + 1):
            stem = f"{condition}/train/G/{condition}{frame}"
            touch(tmp_path, f"rgb_anon/{stem}_rgb_anon.png", f"gt/{stem}_gt_labelTrainIds.png")
    counts = [len(list_samples(create_domain(f"acdc_{c}", tmp_path), "train").samples)
              for c in ("fog", "night", "rain", "snow")]  # fmt: skip
    assert counts == [1, 2, 3, 4]
    assert len(list_samples(create_domain("acdc", tmp_path), "train").samples) == 10


def test_synthia_is_split_by_number(tmp_path):
    for number in (0, 8999, 9000, 9399):
        touch(tmp_path, f"RGB/{number:07d}.png", f"GT/LABELS/{number:07d}.png")
    ids = {split: [s.id for s in list_samples(create_domain("synthia", tmp_path), split).samples]
           for split in ("train", "val", "all")}  # fmt: skip
    assert ids["train"] == ["0000000", "0008999"] and ids["val"] == ["0009000", "0009399"]
    assert len(ids["all"]) == 4


def test_an_empty_folder_says_what_was_looked_for_and_what_is_there(tmp_path):
    touch(tmp_path, "pictures/1.jpg", "README")
    with pytest.raises(UserError) as error:
        list_samples(create_domain("bdd100k", tmp_path), "val")
    for words in ("images/10k/<split>/*.jpg", "seg/labels/<split>/*_train_id.png",
                  "There is: README, pictures"):  # fmt: skip
        assert words in str(error.value)


def test_labels_are_preferred_to_their_absence(tmp_path):
    """BDD100K's detection images lie where the segmentation's do in an older archive."""
    touch(tmp_path, "images/10k/val/a.jpg", "seg/images/val/b.jpg", "seg/labels/val/b_train_id.png")
    assert [s.id for s in list_samples(create_domain("bdd100k", tmp_path), "val").samples] == ["b"]
