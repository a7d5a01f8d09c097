"""The label tables against the numbers of the data sets, written out."""

import numpy as np
import pytest

from snr_jax.core import labels

NAMES = ["road", "sidewalk", "building", "wall", "fence", "pole", "light", "sign", "vegetation",
         "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle",
         "bicycle"]
CITYSCAPES = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11,
              25: 12, 26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18}
SYNTHIA = {1: 10, 2: 2, 3: 0, 4: 1, 5: 4, 6: 8, 7: 5, 8: 13, 9: 7, 10: 11, 11: 18, 12: 17, 15: 6,
           16: 9, 17: 12, 18: 14, 19: 15, 20: 16, 21: 3}


def test_the_three_protocols_drop_the_right_classes():
    assert list(labels.class_names(19)) == NAMES
    sixteen = [n for n in NAMES if n not in ("terrain", "truck", "train")]
    assert list(labels.class_names(16)) == sixteen
    thirteen = [n for n in sixteen if n not in ("wall", "fence", "pole")]
    assert list(labels.class_names(13)) == thirteen
    with pytest.raises(ValueError, match=r"17.*19, 16 or 13"):
        labels.classes(17)


def test_positions_of_the_13_among_the_16():
    assert list(labels.positions_13_in_16()) == [0, 1, 2, *range(6, 16)]


MAPILLARY = {13: 0, 24: 0, 41: 0, 2: 1, 15: 1, 17: 2, 6: 3, 3: 4, 45: 5, 47: 5, 48: 6, 50: 7, 30: 8,
             29: 9, 27: 10, 19: 11, 20: 12, 21: 12, 22: 12, 55: 13, 61: 14, 54: 15, 58: 16, 57: 17,
             52: 18}


@pytest.mark.parametrize(("table", "expected", "defined"),
                         [("label_ids", CITYSCAPES, range(35)), ("synthia", SYNTHIA, range(23)),
                          ("mapillary", MAPILLARY, range(66)),
                          ("train_ids", {i: i for i in range(19)}, range(19))])
def test_ids_of_the_files(table, expected, defined):
    found = labels.to_train_id(labels.ID_TABLES[table])
    assert found.dtype == np.uint8 and found.shape == (256,)
    for file_id in range(256):
        if file_id in expected:
            assert found[file_id] == expected[file_id]
        elif file_id in defined or file_id == 255:
            assert found[file_id] == labels.IGNORE == 255  # defined, but not evaluated
        else:
            assert found[file_id] == labels.UNKNOWN == 254


@pytest.mark.parametrize("num_classes", [16, 13])
@pytest.mark.parametrize("table", labels.ID_TABLES)
def test_fewer_classes_are_the_19_renumbered(table, num_classes):
    full, fewer = (labels.to_train_id(labels.ID_TABLES[table], n) for n in (19, num_classes))
    names = labels.class_names(num_classes)
    for file_id in range(256):
        name = NAMES[full[file_id]] if full[file_id] < 19 else None
        expected = names.index(name) if name in names else labels.IGNORE if name else full[file_id]
        assert fewer[file_id] == expected


def test_official_colours():
    palette = labels.palette()
    assert palette.dtype == np.uint8 and palette.shape == (256, 3)
    assert tuple(palette[0]) == (128, 64, 128)  # road
    assert tuple(palette[8]) == (107, 142, 35)  # vegetation
    assert tuple(palette[10]) == (70, 130, 180)  # sky
    assert tuple(palette[13]) == (0, 0, 142)  # car
    assert tuple(palette[18]) == (119, 11, 32)  # bicycle
    assert len({tuple(color) for color in palette[:19]}) == 19
    assert not palette[19:].any()
    assert tuple(labels.palette(13)[6]) == (70, 130, 180)  # sky among the 13


@pytest.mark.parametrize("num_classes", [19, 16, 13])
def test_label_ids_for_the_server_are_the_inverse(num_classes):
    back = labels.train_id_to_label_id(num_classes)
    there = labels.to_train_id(labels.ID_TABLES["label_ids"], num_classes)
    assert list(there[back[:num_classes]]) == list(range(num_classes))
    assert not back[num_classes:].any()


def test_classes_of_ones_own():
    table = labels.own_classes(["water", "road"], [(0, 0, 255), (9, 8, 7)])
    assert labels.class_names(table) == ("water", "road")
    assert labels.palette(table)[:3].tolist() == [[0, 0, 255], [9, 8, 7], [0, 0, 0]]
    assert list(labels.train_id_to_label_id(table)[:3]) == [0, 1, 0]
    found = labels.to_train_id(labels.ID_TABLES["label_ids"], table)
    assert found[7] == 1 and found[26] == found[255] == labels.IGNORE and found[35] == 254
    ids = labels.IdTable({4: "water", 5: "water", 9: "road"}, 9)
    assert list(labels.to_train_id(ids, table)[3:11]) == [255, 0, 0, 255, 255, 255, 1, 254]


def test_classes_without_colours_get_distinct_ones():
    table = labels.own_classes([f"class {i}" for i in range(40)])
    assert len({c.color for c in table}) == 40
    assert labels.own_classes(labels.class_names(16)) == labels.classes(16)
