"""Classes, label ids and colours: one literal table, everything else derived from it.

Sources: the label definition of the Cityscapes benchmark (ids, official palette), the id mappings
of the SYNTHIA-RAND-CITYSCAPES release, those of Mapillary Vistas as RobustNet scores it, and the
colours of CamVid with the 11 classes that SegNet made of them.
"""

import colorsys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

IGNORE = 255  # trainId of a pixel that takes part in nothing
UNKNOWN = 254  # what the mappings give for an id that the data set does not define


Color = tuple[int, int, int]  # RGB


class TrainClass(NamedTuple):
    name: str
    label_id: int  # in the label files of Cityscapes and GTA5, and of its benchmark's server
    color: Color
    in_16: bool = False  # among the 16 classes shared with SYNTHIA
    in_13: bool = False  # among the 13 classes shared with CrossCity


Classes = tuple[TrainClass, ...]  # the position is the trainId

CLASSES: Classes = (
    TrainClass("road", 7, (128, 64, 128), True, True),
    TrainClass("sidewalk", 8, (244, 35, 232), True, True),
    TrainClass("building", 11, (70, 70, 70), True, True),
    TrainClass("wall", 12, (102, 102, 156), True),
    TrainClass("fence", 13, (190, 153, 153), True),
    TrainClass("pole", 17, (153, 153, 153), True),
    TrainClass("light", 19, (250, 170, 30), True, True),
    TrainClass("sign", 20, (220, 220, 0), True, True),
    TrainClass("vegetation", 21, (107, 142, 35), True, True),
    TrainClass("terrain", 22, (152, 251, 152)),
    TrainClass("sky", 23, (70, 130, 180), True, True),
    TrainClass("person", 24, (220, 20, 60), True, True),
    TrainClass("rider", 25, (255, 0, 0), True, True),
    TrainClass("car", 26, (0, 0, 142), True, True),
    TrainClass("truck", 27, (0, 0, 70)),
    TrainClass("bus", 28, (0, 60, 100), True, True),
    TrainClass("train", 31, (0, 80, 100)),
    TrainClass("motorcycle", 32, (0, 0, 230), True, True),
    TrainClass("bicycle", 33, (119, 11, 32), True, True),
)


class IdTable(NamedTuple):
    """What the numbers in a data set's label files mean. Ids up to the last are defined."""

    names: dict[int, str]  # id → class; several ids may be one class, others are no class
    last: int
    colors: tuple[tuple[Color, int], ...] = ()  # with ids, where files may hold colours instead


# Class → its colours in the official label files; the first is its own in the form with ids.
_CAMVID = {
    "sky": [(128, 128, 128)],
    "building": [(128, 0, 0), (64, 192, 0), (192, 0, 128), (0, 128, 64), (64, 0, 64)],
    "pole": [(192, 192, 128), (0, 0, 64)],
    "road": [(128, 64, 128), (128, 0, 192), (192, 0, 64)],
    "pavement": [(0, 0, 192), (64, 192, 128), (128, 128, 192)],
    "tree": [(128, 128, 0), (192, 192, 0)],
    "sign": [(192, 128, 128), (128, 128, 64), (0, 64, 64)],
    "fence": [(64, 64, 128)],
    "car": [(64, 0, 128), (64, 128, 192), (192, 128, 192), (192, 64, 128), (128, 64, 64)],
    "pedestrian": [(64, 64, 0), (192, 128, 64), (64, 0, 192), (64, 128, 64)],
    "bicyclist": [(0, 128, 192), (192, 0, 192)],
}
_CAMVID_VOID = (0, 0, 0)
CAMVID: Classes = tuple(
    TrainClass(name, i, colors[0]) for i, (name, colors) in enumerate(_CAMVID.items())
)
# The 19 classes → those of CamVid that they are parts of.
IN_CAMVID = {
    "road": "road", "sidewalk": "pavement", "building": "building", "wall": "building",
    "fence": "fence", "pole": "pole", "light": "sign", "sign": "sign", "vegetation": "tree",
    "terrain": "tree", "sky": "sky", "person": "pedestrian", "rider": "bicyclist", "car": "car",
    "truck": "car", "bus": "car", "train": "car", "motorcycle": "bicyclist", "bicycle": "bicyclist",
}  # fmt: skip


ID_TABLES = {
    # Cityscapes defines 0-33; GTA5 adds 34, the licence plate.
    "label_ids": IdTable({c.label_id: c.name for c in CLASSES}, 34),
    "train_ids": IdTable({i: c.name for i, c in enumerate(CLASSES)}, 18),
    "synthia": IdTable(
        {1: "sky", 2: "building", 3: "road", 4: "sidewalk", 5: "fence", 6: "vegetation",
         7: "pole", 8: "car", 9: "sign", 10: "person", 11: "bicycle", 12: "motorcycle",
         15: "light", 16: "terrain", 17: "rider", 18: "truck", 19: "bus", 20: "train",
         21: "wall"}, 22,
    ),
    # Mapillary Vistas 1.2, as RobustNet and its followers score it.
    "mapillary": IdTable(
        {13: "road", 24: "road", 41: "road", 2: "sidewalk", 15: "sidewalk", 17: "building",
         6: "wall", 3: "fence", 45: "pole", 47: "pole", 48: "light", 50: "sign",
         30: "vegetation", 29: "terrain", 27: "sky", 19: "person", 20: "rider", 21: "rider",
         22: "rider", 55: "car", 61: "truck", 54: "bus", 58: "train", 57: "motorcycle",
         52: "bicycle"}, 65,
    ),
    "camvid": IdTable(
        {c.label_id: c.name for c in CAMVID}, len(CAMVID),
        (*((color, i) for i, colors in enumerate(_CAMVID.values()) for color in colors),
         (_CAMVID_VOID, len(CAMVID))),
    ),
}  # fmt: skip


def classes(which: int | Classes) -> Classes:
    """The classes of the 19-, 16- or 13-class protocol, in their order; a table stays itself."""
    if not isinstance(which, int):
        return which
    chosen = {
        19: CLASSES,
        16: tuple(c for c in CLASSES if c.in_16),
        13: tuple(c for c in CLASSES if c.in_13),
    }
    if which not in chosen:
        raise ValueError(f"num_classes is {which}; the protocols have 19, 16 or 13 classes")
    return chosen[which]


def own_classes(names: Sequence[str], colors: Sequence[Color] = ()) -> Classes:
    """A table of any classes; those of a protocol are its own. Without colours, distinct ones."""
    for protocol in map(classes, (19, 16, 13)):
        same_colors = not colors or [c.color for c in protocol] == list(map(tuple, colors))
        if tuple(names) == class_names(protocol) and same_colors:
            return protocol
    colors = colors or [_distinct_color(i) for i in range(len(names))]
    return tuple(TrainClass(n, i, tuple(c)) for i, (n, c) in enumerate(zip(names, colors)))


def _distinct_color(index: int) -> Color:
    """Hues a golden section apart."""
    value = 0.95 if index % 2 == 0 else 0.65
    red, green, blue = colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.75, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def class_names(which: int | Classes = 19) -> tuple[str, ...]:
    return tuple(c.name for c in classes(which))


def palette(which: int | Classes = 19) -> np.ndarray:
    """Colours, uint8 [256, 3] RGB: a row per trainId, black for everything else."""
    table = np.zeros((256, 3), np.uint8)
    for train_id, c in enumerate(classes(which)):
        table[train_id] = c.color
    return table


def to_train_id(ids: IdTable, which: int | Classes = 19) -> np.ndarray:
    """uint8 [256]: id in the file → trainId, IGNORE (also of 255), or UNKNOWN if undefined."""
    position = {name: i for i, name in enumerate(class_names(which))}
    table = np.full(256, UNKNOWN, np.uint8)
    table[: ids.last + 1] = IGNORE
    table[255] = IGNORE
    for file_id, name in ids.names.items():
        table[file_id] = position.get(name, IGNORE)
    return table


def train_id_to_label_id(which: int | Classes = 19) -> np.ndarray:
    """uint8 [256]: trainId → label id of the official server; 0 (unlabeled) elsewhere."""
    table = np.zeros(256, np.uint8)
    for train_id, c in enumerate(classes(which)):
        table[train_id] = c.label_id
    return table


def positions_13_in_16() -> np.ndarray:
    """int [13]: where the 13 classes stand among the 16."""
    names = class_names(16)
    return np.array([names.index(name) for name in class_names(13)])
