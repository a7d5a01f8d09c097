"""The data sets by name: one row each, and what is particular to it.

Layouts: where files lie, {split} and * as in `layouts.py`. A new data set is a new row; one's own
files need no row but a YAML file (`own.py`).
"""

import dataclasses
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from snr_jax.core.errors import UserError, guess
from snr_jax.core.labels import CAMVID, IN_CAMVID
from snr_jax.data.layouts import Layout
from snr_jax.data.own import load_own
from snr_jax.data.samples import OWN_SUFFIXES, Domain

# Frames of GTA5 that are entirely black.
GTA5_BLANK = frozenset(
    [12160, 12166, 12167, 12191, 12192, 12193, 12195, *range(12202, 12209), 19993]
)
SYNTHIA_FIRST_VAL = 9000  # frames 0-8999 train, 9000-9399 validate
CITIES = ("rio", "rome", "tokyo", "taipei")
CONDITIONS = ("fog", "night", "rain", "snow")
# The drives of CamVid, the first part of an id; of each light the share that is its last part.
CAMVID_LIGHTS = {"day": (("0006R0", "0016E5", "Seq05VD"), 5), "dusk": (("0001TP",), 2)}


def create_domain(spec: str, directory: str | os.PathLike | None = None) -> Domain:
    """The domain of that name, or of that YAML file, with its files in `directory`.

    Without one, one's own set lies beside its file, the other domains in their usual folder.
    Raises UserError, listing the right names, for one that does not exist.
    """
    if is_own(spec):
        own = load_own(spec)
        place = own.directory if directory is None else os.fspath(directory)
        return dataclasses.replace(own, directory=place)
    if spec not in DOMAINS:
        raise UserError(
            f"no domain is called {spec!r}; there are {', '.join(DOMAINS)}, and files as "
            f"my_domain.yaml{guess(spec, DOMAINS) or '.'}"
        )
    known = DOMAINS[spec]
    place = known.folder if directory is None else os.fspath(directory)
    return dataclasses.replace(known, directory=place, spec=spec)


def is_own(spec: str) -> bool:
    """Whether it is the YAML file of one's own data set."""
    return str(spec).endswith(OWN_SUFFIXES)


def is_usual(folder: str) -> bool:
    """Whether it is the usual folder of a domain of the table, or one in it."""
    return any(Path(known.folder) in (Path(folder), *Path(folder).parents)
               for known in DOMAINS.values())


def name_of(spec: str) -> str:
    """`Domain.name`, without reading anything."""
    return Path(spec).stem if is_own(spec) else spec


def names(spec: str) -> list[str]:
    """What a set may be called, the shortest first: "gta5"; of lake/data.yaml "data", "lake_data".

    The last has a checksum of the file's whole path, so that two files have no list alike.
    """
    if not is_own(spec):
        return [spec]
    path = Path(os.path.abspath(spec))
    parts = [*path.parts[1:-1], path.stem]
    longer = ["_".join(parts[-number:]) for number in range(1, len(parts) + 1)]
    return [*longer, f"{path.stem}_{zlib.crc32(os.fsencode(path)):08x}"]


def origin(domain: Domain) -> str:
    """Where a set lies, of one's own its file: what tells it from another of its name."""
    return os.path.realpath(domain.spec if is_own(domain.spec) else domain.directory)


def distinct_names(specs: Sequence[str]) -> list[str]:
    """A name for each: that of `name_of`, and of own sets that are called alike a longer one."""
    lists = [names(spec) for spec in specs]
    while True:
        chosen = [of_spec[0] for of_spec in lists]
        alike = {i for i, name in enumerate(chosen) if chosen.count(name) > 1}
        if not any(len(lists[i]) > 1 for i in alike):
            return chosen
        lists = [of_spec[1:] or of_spec if i in alike else of_spec
                 for i, of_spec in enumerate(lists)]


# ---------------------------------------------------------------- what is particular to a set


def _select_gta5(root: Path, split: str, found: set[str]) -> tuple[set[str], list[str]]:
    ids, source = _gta5_ids(root, split, found)
    kept = {id for id in ids if int(id) not in GTA5_BLANK}
    notes = [f"split {split!r} from {source}"]
    if len(kept) < len(ids):
        notes.append(f"{len(ids) - len(kept)} blank frames left out")
    return kept, notes


def _gta5_ids(root: Path, split: str, found: set[str]) -> tuple[set[str], str]:
    """The ids ("00001") of a split and where they were read."""
    lists = [root / f"{name}.txt" for name in ("train", "val", "test")]
    for mat in (root / "split.mat", root / "read_mapping" / "split.mat"):
        if split != "all" and mat.is_file():
            return _ids_from_mat(mat, f"{split}Ids"), mat.name
    if split != "all" and (root / f"{split}.txt").is_file():
        return _ids_from_text(root / f"{split}.txt"), f"{split}.txt"
    if split != "all" and (split != "train" or any(path.is_file() for path in lists)):
        raise UserError(
            f"gta5: the split {split!r} is not defined in {root}. Put split.mat (from the data "
            f"set's read_mapping.zip) there, or a {split}.txt with one id a line"
        )
    _refuse_words("gta5", root, found)
    return found, "all files" if split == "all" else "all files (no split.mat, no train.txt)"


def _ids_from_mat(path: Path, key: str) -> set[str]:
    import scipy.io  # a fifth of a second that predicting need not wait, and it sets a variable

    try:
        content = scipy.io.loadmat(path)
    except Exception as error:  # whatever the parser meets in a broken file
        raise UserError(f"{path} cannot be read as a MATLAB file: {error}") from error
    if key not in content:
        raise UserError(f"{path} has no key {key}; expected trainIds, valIds, testIds")
    numbers = np.ravel(content[key])
    if numbers.dtype.kind not in "uif" or not all(n > 0 and n.is_integer() for n in numbers):
        raise UserError(
            f"{path}: {key} holds {numbers.dtype.name} values, {numbers[:1]} the first; expected "
            "the numbers of frames, 1 and up. Take split.mat from the data set's read_mapping.zip"
        )
    return {f"{int(i):05d}" for i in numbers}


def _lines(path: Path, example: str) -> list[str]:
    try:
        return path.read_text("utf-8-sig").splitlines()  # Windows begins a text with a mark
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is no text in UTF-8 ({error.reason} at byte {error.start}); expected one id "
            f"as {example} a line"
        ) from error


def _ids_from_text(path: Path) -> set[str]:
    ids = set()
    for number, line in enumerate(_lines(path, "00001"), 1):
        word = line.strip().removesuffix(".png")
        if word and not (word.isascii() and word.isdecimal()):
            raise UserError(f"{path}, line {number}: {line[:40]!r} is no id; expected one as 00001")
        if word:
            ids.add(word.zfill(5))
    return ids


def _select_synthia(root: Path, split: str, found: set[str]) -> tuple[set[str], list[str]]:
    _refuse_words("synthia", root, found)
    is_val = {id: int(id) >= SYNTHIA_FIRST_VAL for id in found}
    kept = {id for id in found if split == "all" or is_val[id] == (split == "val")}
    return kept, [f"split {split!r} by the frames' numbers"]


def _refuse_words(domain: str, root: Path, ids: set[str]) -> None:
    odd = sorted(id for id in ids if not id.isdecimal())
    if odd:
        raise UserError(f"{domain}: {root} holds {odd[0]}.png; the names are numbers, as 00001.png")


def _select_camvid(root: Path, split: str, found: set[str]) -> tuple[set[str], list[str]]:
    if split == "all" or not found:
        return found, []
    light, _, part = split.partition("_")
    if part:
        return _by_light(root, light, part, found), [f"split {split!r} by drive and order"]
    if (root / split).is_dir():
        return found, []  # the form whose folders are the splits
    path = root / f"{split}.txt"
    if not path.is_file():
        raise UserError(
            f"camvid: the split {split!r} is not defined in {root}, where all photographs lie in "
            f"one folder. Choose a split by light ({', '.join(CAMVID_BY_LIGHT)}) or all, or put "
            f"{path.name} there with one id as 0001TP_006690 a line (SegNet's list as it is)"
        )
    words = [line.split() for line in _lines(path, "0001TP_006690")]
    return {Path(word[0]).stem for word in words if word}, [f"split {split!r} from {path.name}"]


def _by_light(root: Path, light: str, part: str, found: set[str]) -> set[str]:
    """The first part of each drive for "train", the last for "val"."""
    drives, share = CAMVID_LIGHTS[light]
    kept = set()
    for drive in drives:
        ids = sorted(id for id in found if id.partition("_")[0] == drive)
        end = len(ids) - len(ids) // share
        kept.update(ids[:end] if part == "train" else ids[end:])
    if not kept:
        raise UserError(
            f"camvid: {root} holds no photograph of the split {light}_{part}, which are those of "
            f"{' and '.join(drives)}. The first part of a name is the drive, as 0001TP_006690.png"
        )
    return kept


# ---------------------------------------------------------------- the table

_SAME = {"train": "train", "val": "val"}
_CAMVID_FOLDERS = ("train", "val", "test")
CAMVID_BY_LIGHT = tuple(f"{light}_{part}" for light in CAMVID_LIGHTS for part in ("train", "val"))
_CITYSCAPES_IMAGES = ("leftImg8bit/{split}/*/*_leftImg8bit.png",)


def _acdc(condition: str) -> tuple[Layout, ...]:
    images = (f"rgb_anon/{condition}/{{split}}/*/*_rgb_anon.png",)
    labels = f"gt/{condition}/{{split}}/*/*_gt_label"
    return Layout(images, f"{labels}TrainIds.png", "train_ids"), Layout(images, f"{labels}Ids.png")


DOMAINS = {
    domain.name: domain
    for domain in (
        Domain(
            "gta5", "GTA5", (Layout(("images/*.png",), "labels/*.png"),),
            {"train": "", "val": "", "test": "", "all": ""}, (720, 1280), _select_gta5,
        ),
        Domain(
            "synthia", "RAND_CITYSCAPES",
            (Layout(("RGB/*.png",), "GT/LABELS/*.png", "synthia", "synthia"),),
            {"train": "", "val": "", "all": ""}, (760, 1280), _select_synthia,
        ),
        Domain(
            "cityscapes", "Cityscapes",
            (
                Layout(_CITYSCAPES_IMAGES, "gtFine/{split}/*/*_gtFine_labelIds.png"),
                Layout(_CITYSCAPES_IMAGES, "gtFine/{split}/*/*_gtFine_labelTrainIds.png",
                       "train_ids"),
            ),
            {**_SAME, "test": "test"}, (512, 1024),
        ),
        Domain(
            "crosscity", "NTHU",
            (Layout(tuple(f"Images/{{split}}/*.{end}" for end in ("png", "jpg", "jpeg")),
                    "Labels/{split}/*_eval.png"),),
            {"train": "Train", "val": "Test", "test": "Test"}, (512, 1024),
            hint="a city's folder is meant: crosscity=NTHU/Rome in --domains of evaluate, "
                 "--config.target.dir=NTHU/Rome, --dir datasets/NTHU/Rome",
        ),
        Domain(
            "bdd100k", "BDD100K",
            (
                Layout(("images/10k/{split}/*.jpg",), "labels/sem_seg/masks/{split}/*.png",
                       "train_ids"),
                Layout(("seg/images/{split}/*.jpg",), "seg/labels/{split}/*_train_id.png",
                       "train_ids"),
                Layout(("images/{split}/*.jpg",), "labels/{split}/*_train_id.png", "train_ids"),
            ),
            _SAME, (720, 1280),
        ),
        Domain(
            "mapillary", "Mapillary",
            (
                Layout(("{split}/images/*.jpg",), "{split}/labels/*.png", "mapillary"),
                Layout(("{split}/images/*.jpg",), "{split}/v1.2/labels/*.png", "mapillary"),
            ),
            {"train": "training", "val": "validation"}, (720, 1280),
        ),
        Domain("acdc", "ACDC", _acdc("*"), _SAME, (540, 960)),
        *(Domain(f"acdc_{c}", "ACDC", _acdc(c), _SAME, (540, 960)) for c in CONDITIONS),
        Domain(
            "dark_zurich", "DarkZurich",
            (
                Layout(("rgb_anon/{split}/night/*/*_rgb_anon.png",),
                       "gt/{split}/night/*/*_gt_labelTrainIds.png", "train_ids"),
            ),
            {"val": "val"}, (540, 960),
        ),
        Domain(
            "camvid", "CamVid",
            (
                Layout(("{split}/*.png",), "{split}annot/*.png", "camvid"),
                Layout(("701_StillsRaw_full/*.png",), "LabeledApproved_full/*_L.png", "camvid",
                       "colors"),
            ),
            {**{name: name for name in _CAMVID_FOLDERS},
             **dict.fromkeys(("all", *CAMVID_BY_LIGHT), _CAMVID_FOLDERS)},
            (360, 480), _select_camvid, CAMVID, parts=IN_CAMVID,
        ),
    )
}
