"""Where the toy domains' files lie and what their labels hold: one row for each data set."""

import struct
import zlib
from collections.abc import Iterator, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np

from snr_jax.core.errors import UserError
from snr_jax.core.labels import CLASSES, ID_TABLES, IN_CAMVID

# Scene index of a split's first image: far enough apart that no street is in two of them.
FIRST_INDEX = {"source train": 0, "source val": 10**6, "target train": 2 * 10**6,
               "target val": 3 * 10**6, "day": 4 * 10**6, "dusk": 5 * 10**6}  # fmt: skip
# In label files of that kind: the id of what has no class. Label ids stay what they are.
VOID = {"train_ids": 255, "synthia": 0, "mapillary": 65, "camvid": 11}
_SAME = {"train": "train", "val": "val"}
_NO_CITY = {"train": ("",), "val": ("",)}
_CITYSCAPES = {"train": ("toyburg", "pixelstadt", "rasterheim"), "val": ("bitmuende", "vectorbach")}
_VIDEOS = {"train": ("GOPR0100", "GOPR0101"), "val": ("GOPR0102",)}
# By light: beginnings of CamVid's names, each with the folders of its frames in SegNet's form and
# the share that each folder has of them.
_DRIVES = {
    "day": {"0006R0_f": (("train", 1),), "0016E5_": (("train", 2 / 3), ("val", 1)),
            "Seq05VD_f": (("test", 1),)},
    "dusk": {"0001TP_0": (("train", 1 / 2), ("test", 1))},
}


class Layout(NamedTuple):
    """Paths hold {part}, {split}, {city} and {number}.

    A part is a domain of its own, with as many images as any other; images go to the cities (or
    videos) of a split in turn, and are numbered in each.
    """

    folder: str  # of the data set, below --out
    role: str  # "source" or "target": which streets it has, and whether in the style of --style
    image: str
    label: str
    ids: str = "label_ids"  # what label files hold, a key of core.labels.ID_TABLES
    form: str = "gray"  # how they hold it, a key of writer.LABEL_FORMS
    splits: Mapping[str, str] = _SAME  # those that there are, and what {split} is
    unlabelled: tuple[str, ...] = ()  # splits
    parts: tuple[str, ...] = ("",)
    cities: Mapping[str, tuple[str, ...]] = _NO_CITY
    first: tuple[int, int | None] = (0, 0)  # number in train and val; None: go on after train
    lists: bool = False  # train.txt and val.txt hold the numbers
    drives: bool = False  # of CamVid, in the place of splits, cities and numbers; see _drives


class Job(NamedTuple):
    """One image to draw."""

    index: int  # of the scene
    image: str  # path
    label: str | None
    day: bool = False  # in the style "source", whatever that of the data set is


_CITY_IMAGE = "leftImg8bit/{split}/{city}/{city}_{number:06d}_000019_leftImg8bit.png"
_CITY_LABEL = "gtFine/{split}/{city}/{city}_{number:06d}_000019_gtFine_"
_FRAME = "{city}/{city}_frame_{number:06d}"

LAYOUTS = {
    "gta5": Layout(
        "GTA5", "source", "images/{number:05d}.png", "labels/{number:05d}.png",
        form="palette", first=(1, None), lists=True,
    ),
    "synthia": Layout(
        "RAND_CITYSCAPES", "source", "RGB/{number:07d}.png", "GT/LABELS/{number:07d}.png",
        ids="synthia", form="synthia", first=(0, 9000),
    ),
    "cityscapes": Layout(
        "Cityscapes", "target", _CITY_IMAGE, _CITY_LABEL + "labelIds.png", cities=_CITYSCAPES,
    ),
    "cityscapes_train_ids": Layout(
        "CityscapesTrainIds", "target", _CITY_IMAGE, _CITY_LABEL + "labelTrainIds.png",
        ids="train_ids", cities=_CITYSCAPES,
    ),
    "crosscity": Layout(
        "NTHU", "target", "{part}/Images/{split}/pano_{number:05d}_2_180.png",
        "{part}/Labels/{split}/pano_{number:05d}_2_180_eval.png",
        splits={"train": "Train", "val": "Test"}, unlabelled=("train",),
        parts=("Rio", "Rome", "Tokyo", "Taipei"),
    ),
    "bdd100k": Layout(
        "BDD100K", "target", "images/10k/{split}/{number:08x}-{number:08x}.jpg",
        "labels/sem_seg/masks/{split}/{number:08x}-{number:08x}.png", ids="train_ids",
    ),
    "mapillary": Layout(
        "Mapillary", "target", "{split}/images/toy_{number:018d}.jpg",
        "{split}/labels/toy_{number:018d}.png", ids="mapillary", form="palette",
        splits={"train": "training", "val": "validation"},
    ),
    "acdc": Layout(
        "ACDC", "target", f"rgb_anon/{{part}}/{{split}}/{_FRAME}_rgb_anon.png",
        f"gt/{{part}}/{{split}}/{_FRAME}_gt_labelTrainIds.png", ids="train_ids",
        parts=("fog", "night", "rain", "snow"), cities=_VIDEOS,
    ),
    "dark_zurich": Layout(
        "DarkZurich", "target", f"rgb_anon/{{split}}/night/{_FRAME}_rgb_anon.png",
        f"gt/{{split}}/night/{_FRAME}_gt_labelTrainIds.png", ids="train_ids",
        splits={"val": "val"}, cities=_VIDEOS,
    ),
    "camvid": Layout(
        "CamVid", "target", "701_StillsRaw_full/{city}{number:05d}.png",
        "LabeledApproved_full/{city}{number:05d}_L.png", ids="camvid", form="colors", drives=True,
    ),
    "camvid_ids": Layout(
        "CamVidIds", "target", "{split}/{city}{number:05d}.png",
        "{split}annot/{city}{number:05d}.png", ids="camvid", drives=True,
    ),
}  # fmt: skip


def jobs(layout: Layout, num_train: int, num_val: int) -> tuple[list[Job], dict[str, list[str]]]:
    """The images of a data set, and its lists: file name → numbers.

    Raises UserError for more training frames than there are numbers below those of validation.
    """
    if layout.drives:
        return list(_drives(layout, num_train, num_val)), {}
    first_train, first_val = layout.first
    first = {"train": first_train, "val": first_val}
    if first_val is None:
        first["val"] = first_train + num_train
    elif first_val and first_train + num_train > first_val:
        raise UserError(
            f"--num_train is {num_train}, but {layout.folder} has room for "
            f"{first_val - first_train} images of training: those of validation are numbered "
            f"from {first_val}"
        )
    found, lists = [], {}
    for split, total in (("train", num_train), ("val", num_val)):
        if split not in layout.splits:
            continue
        cities = layout.cities[split]
        for i in range(total * len(layout.parts)):
            place, part = divmod(i, len(layout.parts))
            fill = partial(
                str.format, part=layout.parts[part], split=layout.splits[split],
                city=cities[place % len(cities)], number=first[split] + place // len(cities),
            )
            label = None if split in layout.unlabelled else fill(layout.label)
            index = FIRST_INDEX[f"{layout.role} {split}"] + i
            found.append(Job(index, fill(layout.image), label))
        if layout.lists:
            numbers = range(first[split], first[split] + total)
            lists[f"{split}.txt"] = [f"{number:05d}" for number in numbers]
    return found, lists


def _drives(layout: Layout, num_train: int, num_val: int) -> Iterator[Job]:
    """CamVid: num_train + num_val frames by day, in three drives, and twice num_val at dusk.

    Where num_train is four times num_val the splits by light have just those numbers, at dusk
    num_val each.
    """
    for light, total in (("day", num_train + num_val), ("dusk", 2 * num_val)):
        drives = _DRIVES[light]
        for i in range(total):
            frame, which = divmod(i, len(drives))
            city, folders = list(drives.items())[which]
            length = len(range(which, total, len(drives)))
            split = next(name for name, share in folders if frame < share * length)
            paths = (path.format(split=split, city=city, number=30 * frame)
                     for path in (layout.image, layout.label))
            yield Job(FIRST_INDEX[light] + i, *paths, day=light == "day")


def file_ids(ids: str) -> np.ndarray:
    """uint8 [256]: label id → the number that label files of that kind (`Layout.ids`) hold."""
    if ids == "label_ids":
        return np.arange(256, dtype=np.uint8)
    table = np.full(256, VOID[ids], np.uint8)
    of_class = {name: file_id for file_id, name in reversed(ID_TABLES[ids].names.items())}
    for c in CLASSES:
        table[c.label_id] = of_class[IN_CAMVID[c.name] if ids == "camvid" else c.name]
    return table


def palette(ids: str) -> np.ndarray:
    """uint8 [256,3]: the official colour of each number in the files, black for no class."""
    colors = np.zeros((256, 3), np.uint8)
    for color, file_id in reversed(ID_TABLES[ids].colors):
        colors[file_id] = color
    if ID_TABLES[ids].colors:
        return colors
    of_class = {c.name: c.color for c in CLASSES}
    for file_id, name in ID_TABLES[ids].names.items():
        colors[file_id] = of_class[name]
    return colors


def png_16(pixels: np.ndarray) -> bytes:
    """A PNG file of three 16-bit channels, which Pillow cannot write. pixels: uint16 [H,W,3]."""
    height, width, _ = pixels.shape
    rows = pixels.astype(">u2").reshape(height, -1).view(np.uint8)
    filtered = np.pad(rows, [(0, 0), (1, 0)])  # each row begins with its filter, 0: none

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(
            ">I", zlib.crc32(kind + data)
        )

    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)  # 16 bits, RGB
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(filtered.tobytes(), 3))
    return b"\x89PNG\r\n\x1a\n" + content + chunk(b"IEND", b"")
