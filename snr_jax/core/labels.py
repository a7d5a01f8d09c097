"""Classes, label ids and colours: one literal table, everything else derived from it.

Sources: the label definition of the Cityscapes benchmark (ids, official palette) and the
id mappings of the SYNTHIA-RAND-CITYSCAPES release.
"""

from typing import NamedTuple

import numpy as np

IGNORE = 255  # trainId of a pixel that takes part in nothing
UNKNOWN = 254  # what the mappings give for an id that the data set does not define


class TrainClass(NamedTuple):
    name: str
    label_id: int  # Cityscapes and GTA5 files
    synthia_id: int | None  # SYNTHIA files; None: the set has no such class
    color: tuple[int, int, int]  # RGB
    in_16: bool  # among the 16 classes shared with SYNTHIA
    in_13: bool  # among the 13 classes shared with CrossCity


# The position in this table is the trainId.
CLASSES = (
    TrainClass("road", 7, 3, (128, 64, 128), True, True),
    TrainClass("sidewalk", 8, 4, (244, 35, 232), True, True),
    TrainClass("building", 11, 2, (70, 70, 70), True, True),
    TrainClass("wall", 12, 21, (102, 102, 156), True, False),
    TrainClass("fence", 13, 5, (190, 153, 153), True, False),
    TrainClass("pole", 17, 7, (153, 153, 153), True, False),
    TrainClass("light", 19, 15, (250, 170, 30), True, True),
    TrainClass("sign", 20, 9, (220, 220, 0), True, True),
    TrainClass("vegetation", 21, 6, (107, 142, 35), True, True),
    TrainClass("terrain", 22, 16, (152, 251, 152), False, False),
    TrainClass("sky", 23, 1, (70, 130, 180), True, True),
    TrainClass("person", 24, 10, (220, 20, 60), True, True),
    TrainClass("rider", 25, 17, (255, 0, 0), True, True),
    TrainClass("car", 26, 8, (0, 0, 142), True, True),
    TrainClass("truck", 27, 18, (0, 0, 70), False, False),
    TrainClass("bus", 28, 19, (0, 60, 100), True, True),
    TrainClass("train", 31, 20, (0, 80, 100), False, False),
    TrainClass("motorcycle", 32, 12, (0, 0, 230), True, True),
    TrainClass("bicycle", 33, 11, (119, 11, 32), True, True),
)
NUM_LABEL_IDS = 35  # 0-33 in Cityscapes; GTA5 adds 34, the licence plate
NUM_SYNTHIA_IDS = 23


def classes(num_classes: int) -> tuple[TrainClass, ...]:
    """The classes of the 19-, 16- or 13-class protocol, in the order of their trainIds."""
    chosen = {
        19: CLASSES,
        16: tuple(c for c in CLASSES if c.in_16),
        13: tuple(c for c in CLASSES if c.in_13),
    }
    if num_classes not in chosen:
        raise ValueError(f"num_classes is {num_classes}; the protocols have 19, 16 or 13 classes")
    return chosen[num_classes]


def class_names(num_classes: int = 19) -> tuple[str, ...]:
    return tuple(c.name for c in classes(num_classes))


def palette(num_classes: int = 19) -> np.ndarray:
    """Colours, uint8 [256, 3] RGB: a row per trainId, black for everything else."""
    table = np.zeros((256, 3), np.uint8)
    for train_id, c in enumerate(classes(num_classes)):
        table[train_id] = c.color
    return table


def _lookup(pairs: dict[int, int], num_ids: int) -> np.ndarray:
    table = np.full(256, UNKNOWN, np.uint8)
    table[:num_ids] = IGNORE
    table[255] = IGNORE
    for file_id, train_id in pairs.items():
        table[file_id] = train_id
    return table


def label_id_to_train_id(num_classes: int = 19) -> np.ndarray:
    """uint8 [256]: Cityscapes/GTA5 label id → trainId, IGNORE, or UNKNOWN for undefined ids."""
    chosen = classes(num_classes)
    return _lookup({c.label_id: i for i, c in enumerate(chosen)}, NUM_LABEL_IDS)


def synthia_to_train_id(num_classes: int = 19) -> np.ndarray:
    """uint8 [256]: SYNTHIA id → trainId, IGNORE, or UNKNOWN for undefined ids."""
    chosen = classes(num_classes)
    pairs = {c.synthia_id: i for i, c in enumerate(chosen) if c.synthia_id is not None}
    return _lookup(pairs, NUM_SYNTHIA_IDS)


def train_id_to_label_id(num_classes: int = 19) -> np.ndarray:
    """uint8 [256]: trainId → label id of the official server; 0 (unlabeled) elsewhere."""
    table = np.zeros(256, np.uint8)
    for train_id, c in enumerate(classes(num_classes)):
        table[train_id] = c.label_id
    return table


def positions_13_in_16() -> np.ndarray:
    """int [13]: where the 13 classes stand among the 16."""
    names = class_names(16)
    return np.array([names.index(name) for name in class_names(13)])
