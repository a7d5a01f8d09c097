"""Where the data sets' files lie: one table of domains, and the samples of a split.

No file is opened here but the lists of a split; `decode.py` reads images and labels.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.io

from snr_jax.core.errors import UserError
from snr_jax.core.labels import label_id_to_train_id

# Frames of GTA5 that are entirely black.
GTA5_BLANK = frozenset(
    [12160, 12166, 12167, 12191, 12192, 12193, 12195, *range(12202, 12209), 19993]
)


@dataclass(frozen=True)
class Sample:
    id: str
    image: str  # path
    label: str | None  # path; None: the set has no label for it


Pairs = dict[str, tuple[Path, Path]]  # id → (image, label), whether the files exist or not


@dataclass(frozen=True)
class Domain:
    directory: str  # its folder below config.data.root, by default
    layout: str  # what that folder holds, for messages
    splits: tuple[str, ...]
    train_size: tuple[int, int]  # height, width
    label_kind: str  # a key of decode.LABEL_DECODERS
    lookup: Callable[[int], np.ndarray]  # number of classes → uint8 [256]: file id → trainId
    find: Callable[[Path, str], tuple[Pairs, list[str]]]  # directory, split → pairs, notes


def get_domain(name: str) -> Domain:
    """The domain of that name. Raises UserError, listing the right ones."""
    if name not in DOMAINS:
        near = difflib.get_close_matches(str(name).lower(), DOMAINS, n=1)
        guess = f" Did you mean {near[0]!r}?" if near else ""
        raise UserError(f"no domain is called {name!r}; there are {', '.join(DOMAINS)}.{guess}")
    return DOMAINS[name]


def list_samples(
    domain: str, directory: str, split: str, *, require_labels: bool = True
) -> tuple[list[Sample], list[str]]:
    """The samples of a split, sorted by id, and notes for the log (what was left out and why).

    With `require_labels=False` a sample without a label file has the label None (training on a
    target set); else it is an error. Raises UserError for a missing directory, an unknown or
    empty split, and missing files.
    """
    known = get_domain(domain)
    root = Path(directory)
    if not root.is_dir():
        raise UserError(
            f"{domain}: there is no directory {directory}. Expected there: {known.layout}. "
            f"Set config.data.root to the folder that holds {known.directory}/"
        )
    if split not in known.splits:
        raise UserError(f"{domain} has no split {split!r}; it has {', '.join(known.splits)}")
    pairs, notes = known.find(root, split)
    if not pairs:
        raise UserError(
            f"{domain}: the split {split!r} in {directory} is empty. Expected: {known.layout}"
        )
    present = _files({path.parent for pair in pairs.values() for path in pair})
    _refuse_missing(domain, "images", [i for i, _ in pairs.values() if i not in present], pairs)
    unlabelled = [label for _, label in pairs.values() if label not in present]
    if require_labels:
        _refuse_missing(domain, "labels", unlabelled, pairs)
    elif unlabelled:
        notes = [*notes, f"{len(unlabelled)} of {len(pairs)} images have no label"]
    samples = [
        Sample(id, str(image), str(label) if label in present else None)
        for id, (image, label) in sorted(pairs.items())
    ]
    return samples, notes


def _files(folders: set[Path]) -> set[Path]:
    return {path for folder in folders if folder.is_dir() for path in folder.iterdir()}


def _refuse_missing(domain: str, what: str, missing: list[Path], pairs: Pairs) -> None:
    if missing:
        shown = ", ".join(str(path) for path in sorted(missing)[:3])
        more = ", ..." if len(missing) > 3 else ""
        raise UserError(
            f"{domain}: {len(missing)} of {len(pairs)} {what} are missing: {shown}{more}. "
            f"Expected: {get_domain(domain).layout}. Unpack the archives again, or "
            "leave these ids out of the split"
        )


def _find_gta5(root: Path, split: str) -> tuple[Pairs, list[str]]:
    ids, source = _gta5_ids(root, split)
    kept = {id for id in ids if int(id) not in GTA5_BLANK}
    notes = [f"split {split!r} from {source}"]
    if len(kept) < len(ids):
        notes.append(f"{len(ids) - len(kept)} blank frames left out")
    pairs = {id: (root / "images" / f"{id}.png", root / "labels" / f"{id}.png") for id in kept}
    return pairs, notes


def _gta5_ids(root: Path, split: str) -> tuple[set[str], str]:
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
    stems = {p.stem for kind in ("images", "labels") for p in (root / kind).glob("[!.]*.png")}
    odd = sorted(stem for stem in stems if not stem.isdecimal())
    if odd:
        raise UserError(f"gta5: {root} holds {odd[0]}.png; the names are numbers, as 00001.png")
    return stems, "all files" if split == "all" else "all files (no split.mat, no train.txt)"


def _ids_from_mat(path: Path, key: str) -> set[str]:
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


def _ids_from_text(path: Path) -> set[str]:
    try:
        lines = path.read_text("utf-8-sig").splitlines()  # Windows begins a text with a mark
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is no text in UTF-8 ({error.reason} at byte {error.start}); expected one id "
            "as 00001 a line"
        ) from error
    ids = set()
    for number, line in enumerate(lines, 1):
        word = line.strip().removesuffix(".png")
        if word and not (word.isascii() and word.isdecimal()):
            raise UserError(f"{path}, line {number}: {line[:40]!r} is no id; expected one as 00001")
        if word:
            ids.add(word.zfill(5))
    return ids


def _find_cityscapes(root: Path, split: str) -> tuple[Pairs, list[str]]:
    kinds = ("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelIds")
    ids = {
        (path.parent.name, path.name.removesuffix(f"_{suffix}.png"))
        for folder, suffix in kinds
        for path in (root / folder / split).glob(f"*/[!.]*_{suffix}.png")  # macOS adds ._NAME files
    }
    pairs = {
        id: tuple(root / folder / split / city / f"{id}_{suffix}.png" for folder, suffix in kinds)
        for city, id in ids
    }
    return pairs, []


DOMAINS = {
    "gta5": Domain(
        directory="GTA5",
        layout="images/*.png and labels/*.png of the same names, as 00001.png",
        splits=("train", "val", "test", "all"),
        train_size=(720, 1280),
        label_kind="indices",
        lookup=label_id_to_train_id,
        find=_find_gta5,
    ),
    "cityscapes": Domain(
        directory="Cityscapes",
        layout=(
            "leftImg8bit/<split>/<city>/*_leftImg8bit.png and "
            "gtFine/<split>/<city>/*_gtFine_labelIds.png"
        ),
        splits=("train", "val", "test"),
        train_size=(512, 1024),
        label_kind="indices",
        lookup=label_id_to_train_id,
        find=_find_cityscapes,
    ),
}
