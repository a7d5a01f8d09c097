"""CamVid in both of its forms, as the toy writer draws them: splits, classes, lists, mistakes."""

import numpy as np
import pytest
from PIL import Image

from snr_jax.core.errors import UserError
from snr_jax.core.labels import (
    CAMVID,
    CLASSES,
    ID_TABLES,
    IGNORE,
    IN_CAMVID,
    class_names,
    own_classes,
    palette,
)
from snr_jax.data import pipeline
from snr_jax.data.domains import CAMVID_BY_LIGHT, create_domain
from snr_jax.data.faults.look import look
from snr_jax.data.samples import list_samples
from snr_jax.toy import writer
from snr_jax.toy.layouts import FIRST_INDEX, LAYOUTS
from snr_jax.toy.styles import draw_pair
from tests.data.test_layout_rows import touch

SIZE, SEED = (33, 44), 5
FORMS = ("camvid", "camvid_ids")
DRIVES = {"0001TP_0%05d": 124, "0006R0_f%05d": 101, "0016E5_%05d": 305, "Seq05VD_f%05d": 171}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("toy")
    for name in FORMS:
        assert writer.write(name, root / name, num_train=12, num_val=3, seed=SEED, height=SIZE[0],
                            width=SIZE[1], style="night")  # fmt: skip
    return root


def read(root, split):
    return list_samples(create_domain("camvid", root), split, classes=CAMVID)


def ids(root, split):
    return [sample.id for sample in read(root, split).samples]


def test_the_classes_and_the_colours():
    assert class_names(CAMVID) == (
        "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car",
        "pedestrian", "bicyclist")  # fmt: skip
    table = ID_TABLES["camvid"]
    of = {color: table.names.get(id) for color, id in table.colors}
    assert len(of) == len(table.colors) == 32 and of[0, 0, 0] is None
    assert of[64, 192, 0] == "building" and of[128, 0, 192] == "road" and of[0, 64, 64] == "sign"
    assert palette(CAMVID)[4].tolist() == [0, 0, 192]
    assert tuple(IN_CAMVID) == class_names() and set(IN_CAMVID.values()) == set(class_names(CAMVID))
    assert create_domain("camvid").classes == CAMVID


@pytest.mark.parametrize("number", [19, 16, 13])
def test_a_network_of_finer_classes_is_scored_on_the_eleven(number):
    domain = create_domain("camvid")
    labels = domain.labels(domain.layouts[0], number)
    assert labels.classes == CAMVID and labels.lookup[:12].tolist() == [*range(11), IGNORE]
    names = class_names(number)
    assert len(labels.parts) == number
    assert labels.parts[names.index("sidewalk")] == 4 and labels.parts[names.index("bus")] == 8
    own = own_classes(["sky", "tree", "horse"])  # another's: by name
    by_name = domain.labels(domain.layouts[0], own)
    assert by_name.classes == own and by_name.parts == ()
    assert by_name.lookup[[0, 5, 1]].tolist() == [0, 1, IGNORE]
    assert domain.labels(domain.layouts[0], CAMVID).parts == ()


def test_the_splits_by_light_of_all_701_photographs(tmp_path):
    names = [name % (30 * i) for name, number in DRIVES.items() for i in range(number)]
    touch(tmp_path, *(f"701_StillsRaw_full/{name}.png" for name in names),
          *(f"LabeledApproved_full/{name}_L.png" for name in names))
    counts = {split: len(ids(tmp_path, split)) for split in (*CAMVID_BY_LIGHT, "all")}
    assert counts == {"day_train": 462, "day_val": 115, "dusk_train": 62, "dusk_val": 62,
                      "all": 701}  # fmt: skip
    assert ids(tmp_path, "dusk_val")[0] == "0001TP_001860"
    last_fifth = [id for id in ids(tmp_path, "day_val") if id.startswith("0016E5")]
    assert last_fifth == names[124 + 101 + 244 : 124 + 101 + 305]


def test_both_forms_have_the_same_splits(written):
    counts = {"day_train": 12, "day_val": 3, "dusk_train": 3, "dusk_val": 3, "all": 21}
    for split, number in counts.items():
        assert ids(written / "camvid", split) == ids(written / "camvid_ids", split)
        assert len(ids(written / "camvid", split)) == number
    folders = [set(ids(written / "camvid_ids", split)) for split in ("train", "val", "test")]
    assert sum(map(len, folders)) == 21 and set.union(*folders) == set(ids(written / "camvid",
                                                                           "all"))


@pytest.mark.parametrize("form", FORMS)
def test_what_was_drawn_is_read(form, written):
    listing = read(written / form, "dusk_train")
    assert look(listing.samples, listing.labels) == []
    (batch,) = pipeline.eval_batches(listing.samples, listing.labels, size=SIZE, batch_size=3)
    table = np.full(256, IGNORE, np.uint8)
    for c in CLASSES:
        table[c.label_id] = class_names(CAMVID).index(IN_CAMVID[c.name])
    for i in range(3):
        image, label_ids = draw_pair(SEED, FIRST_INDEX["dusk"] + i, *SIZE, "night")
        assert np.array_equal(batch["image"][i], image)
        assert np.array_equal(batch["label"][i], table[label_ids])
    by_day, _ = draw_pair(SEED, FIRST_INDEX["day"], *SIZE, "source")
    (first, *_) = pipeline.eval_batches(
        read(written / form, "day_train").samples[:1], listing.labels, size=SIZE, batch_size=1)
    assert np.array_equal(first["image"][0], by_day)
    assert LAYOUTS[form].ids == listing.labels.ids == "camvid"


def test_the_official_form_needs_lists_of_its_splits(tmp_path):
    for name in ("0001TP_006690", "0006R0_f00930"):
        touch(tmp_path, f"701_StillsRaw_full/{name}.png", f"LabeledApproved_full/{name}_L.png")
    with pytest.raises(UserError, match=r"'val' is not defined .*day_train, day_val, .*val\.txt"):
        ids(tmp_path, "val")
    (tmp_path / "val.txt").write_text("0006R0_f00930\n\n")
    assert ids(tmp_path, "val") == ["0006R0_f00930"]
    (tmp_path / "train.txt").write_text(  # SegNet's own
        "/SegNet/CamVid/train/0001TP_006690.png /SegNet/CamVid/trainannot/0001TP_006690.png\n")
    assert ids(tmp_path, "train") == ["0001TP_006690"]
    (tmp_path / "test.txt").write_text("0001TP_1\n")
    with pytest.raises(UserError, match=r"1 of 1 images are missing: .*full/0001TP_1\.png"):
        ids(tmp_path, "test")


def test_a_light_without_photographs_is_said(tmp_path):
    touch(tmp_path, "train/0006R0_f00930.png", "trainannot/0006R0_f00930.png")
    assert ids(tmp_path, "day_train") == ["0006R0_f00930"]
    with pytest.raises(UserError, match=r"no photograph of the split dusk_val.*0001TP"):
        ids(tmp_path, "dusk_val")


@pytest.mark.parametrize("inner", ["701_StillsRaw_full", "train"])
def test_a_set_one_folder_too_deep_is_found(inner, tmp_path):
    touch(tmp_path, f"CamVid/{inner}/0001TP_006690.png")
    with pytest.raises(UserError, match=r"0001TP_006690\.png: move what is in .*CamVid to "):
        ids(tmp_path, "all")


def test_an_unknown_colour_in_official_labels_is_a_fault(written, tmp_path):
    listing = read(written / "camvid", "dusk_val")
    sample = listing.samples[0]
    with Image.open(sample.label) as label:
        smaller = label.resize((22, 17), Image.Resampling.BILINEAR)
    path = tmp_path / "label.png"
    smaller.resize(SIZE[::-1], Image.Resampling.BILINEAR).save(path)
    broken = type(sample)(sample.id, sample.image, str(path))
    with pytest.raises(UserError, match=r"label\.png holds the colour .*resized with smoothing"):
        list(pipeline.eval_batches([broken], listing.labels, size=SIZE, batch_size=1))
