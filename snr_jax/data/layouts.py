"""Which files a data set consists of: a pattern for the images, one for the labels.

In a pattern {split} stands for the split's folder, * for any part of a name (never a slash), and
** between two slashes for folders of any depth. What the stars matched is what an image and its
label have in common. Suffixes count in upper and lower case, names in whichever Unicode form (a
Mac writes "ö" as two characters). No star stands for a hidden file or folder.
"""

import os
import re
import stat
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from snr_jax.core.errors import UserError
from snr_jax.core.files import closed_folder

Pairs = dict[str, tuple[Path, Path | None]]  # id → (image, label), whether the files exist or not
Stars = tuple[str, ...]  # what the stars of a pattern stand for
Parts = tuple[str, ...]  # the names between the slashes of a pattern
Folders = str | tuple[str, ...]  # what {split} stands for; several are one split together
Key = tuple[Parts, Stars]  # of a file

# Of files that are meant as images, whether they can be read or not.
IMAGE_SUFFIXES = (
    ".avif", ".bmp", ".gif", ".heic", ".jfif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm",
    ".tif", ".tiff", ".webp",
)
HIDDEN = "hidden"  # why a file is not read: a Mac leaves ._NAME beside NAME
NUM_SHOWN = 3


class Layout(NamedTuple):
    """images: alternative patterns, of which several may match; labels: "" for none.

    Each label pattern has as many stars as the images' patterns. `ids` says what label files hold
    (a key of `Domain.ids`, else of `core.labels.ID_TABLES`), `kind` how (a key of
    `decode.LABEL_DECODERS`, or "colors": those of the table of `ids`).
    """

    images: tuple[str, ...]
    labels: str
    ids: str = "label_ids"
    kind: str = "indices"

    def __str__(self) -> str:
        images = " or ".join(self.images)
        words = f"{images} with {self.labels}" if self.labels else images
        return words.replace("{split}", "<split>")


# ---------------------------------------------------------------- folders


class Entries(NamedTuple):
    """What lies in a folder, by name in Unicode's composed form (NFC), sorted."""

    files: list[tuple[str, Path]]
    folders: list[tuple[str, Path]]


ListFolder = Callable[[Path], Entries]


def list_folder(folder: Path) -> Entries:
    """The entries of a folder; none of one that is not there. Raises UserError for a closed one."""
    try:
        with os.scandir(folder) as entries:
            found = sorted((_nfc(e.name), e.name, _leads_to_folder(e)) for e in entries)
    except (FileNotFoundError, NotADirectoryError):
        found = []
    except OSError as error:
        raise _closed(folder, error) from None
    return Entries(*(
        [(name, folder / raw) for name, raw, is_folder in found if is_folder == wanted]
        for wanted in (False, True)
    ))


def visible(folder: Path, listed: ListFolder) -> list[str]:
    """The names in a folder but for hidden ones, sorted."""
    return sorted(name for entries in listed(folder) for name, _ in entries if not _is_hidden(name))


def create_list() -> ListFolder:
    """`list_folder` that looks into each folder once: for the patterns of one set."""
    return cache(list_folder)


def _leads_to_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself, or where nobody may look
        return False


def _status(path: Path) -> os.stat_result | None:
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _closed(path, error) from None


def is_folder(path: Path) -> bool:
    """Whether it is a folder, as `Path.is_dir`. Raises UserError where nobody may look."""
    status = _status(path)
    return status is not None and stat.S_ISDIR(status.st_mode)


def _closed(folder: Path, error: OSError) -> UserError:
    folder = closed_folder(folder) or folder
    return UserError(
        f"the folder {folder} cannot be read: {error.strerror}. Mend its permissions (chmod -R "
        "u+rX), or the disk"
    )


def _nfc(name: str) -> str:
    return name if name.isascii() else unicodedata.normalize("NFC", name)


# ---------------------------------------------------------------- one pattern


def parts(pattern: str) -> Parts:
    """The pattern in its parts; doubled slashes count as one."""
    return tuple(part for part in _nfc(pattern).split("/") if part not in ("", "."))


def stars(pattern: str) -> int:
    """How many stars a pattern has; ** is one."""
    return sum(1 if part == "**" else part.count("*") for part in parts(pattern))


@cache
def _regex(part: str, suffix: str = "") -> re.Pattern:
    """The names that a part stands for, those of files with its suffix in any case."""
    name = "([^/]*)".join(re.escape(word) for word in part.removesuffix(suffix).split("*"))
    return re.compile(f"{name}(?i:{re.escape(suffix)})\\Z")


def _suffix(pattern: str) -> str:
    return Path(pattern).suffix if "*" not in Path(pattern).suffix else ""


def _is_hidden(name: str) -> bool:
    return name.startswith(".")


def _below(folder: Path, listed: ListFolder, above: tuple = ()) -> Iterator[tuple[str, Path]]:
    """A folder and those in it in any depth, by their path from it; a link that loops ends."""
    status = _status(folder)
    here = status and (status.st_dev, status.st_ino)
    if here is None or here in above:
        return
    yield "", folder
    for name, path in listed(folder).folders:
        if not _is_hidden(name):
            for inner, found in _below(path, listed, (*above, here)):
                yield f"{name}/{inner}".rstrip("/"), found


def _folders(folder: Path, names: Parts, listed: ListFolder) -> Iterator[tuple[Stars, Path]]:
    """The folders that the names of a pattern lead to, with what its stars stand for."""
    if not names:
        yield (), folder
        return
    name, *rest = names
    if name == "**":
        next_ones = (((inner,), path) for inner, path in _below(folder, listed))
    elif "*" not in name and (name.isascii() or is_folder(folder / name)):
        next_ones = [((), folder / name)] if is_folder(folder / name) else []
    else:
        next_ones = (
            (match.groups(), path) for other, path in listed(folder).folders
            if _is_hidden(other) <= _is_hidden(name) and (match := _regex(name).match(other))
        )
    for found, path in next_ones:
        for more, last in _folders(path, tuple(rest), listed):
            yield (*found, *more), last


def matches(root: Path, pattern: Parts, listed: ListFolder) -> Iterator[tuple[Stars, Path]]:
    """The files that a pattern's `parts` stand for, with what its stars stand for.

    In each folder those first whose suffix is written as in the pattern.
    """
    *folders, last = pattern
    suffix = _suffix(last)
    regex = _regex(last, suffix)
    for found, folder in _folders(root, tuple(folders), listed):
        files = listed(folder).files
        if suffix:
            files = sorted(files, key=lambda file: not file[0].endswith(suffix))
        for name, path in files:
            if not _is_hidden(name) and (match := regex.match(name)):
                yield (*found, *match.groups()), path


def _filled(pattern: Parts, stars: Stars) -> str:
    """The pattern with those words in place of its stars."""
    words, filled = iter(stars), []
    for part in pattern:
        if part == "**":
            filled.append(next(words))
        else:
            first, *others = part.split("*")
            filled.append(first + "".join(next(words) + other for other in others))
    return "/".join(part for part in filled if part)


# ---------------------------------------------------------------- a split


class Found(NamedTuple):
    """What a layout finds of a split."""

    pairs: Pairs
    files: frozenset[Path]  # those of the pairs that are there
    second: tuple[Path, ...] = ()  # images that are not read: another has their id


def each(split: Folders) -> tuple[str, ...]:
    return (split,) if isinstance(split, str) else split


def patterns(layout: Layout, split: str) -> tuple[list[Parts], Parts]:
    """The images' patterns and the labels' in parts; no parts for no labels."""
    filled = [parts(p.replace("{split}", split)) for p in (*layout.images, layout.labels)]
    return filled[:-1], filled[-1]


def expected(root: Path, layout: Layout, split: Folders, id: str) -> tuple[Path, Path | None]:
    """Where the image and the label of an id have to be, in a layout of one star."""
    images, labels = patterns(layout, each(split)[0])
    label = root / _filled(labels, (id,)) if labels else None
    return root / _filled(images[0], (id,)), label


def match(root: Path, layout: Layout, split: Folders, listed: ListFolder) -> Found:
    """All images and labels of a split, each with the path at which its partner has to be.

    Of an id in several of its folders the first counts. Raises UserError as `_match`.
    """
    found = [_match(root, layout, folder, listed) for folder in each(split)]
    pairs = {id: pair for one in reversed(found) for id, pair in one.pairs.items()}
    files, second = ([getattr(one, name) for one in found] for name in ("files", "second"))
    return Found(pairs, frozenset().union(*files), tuple(dict.fromkeys(sum(second, ()))))


def _match(root: Path, layout: Layout, split: str, listed: ListFolder) -> Found:
    """What `match` finds of a split of one folder.

    Ids are what the last star stands for; where that is not unique, what all stand for, or the
    whole path. Raises UserError for a folder that cannot be read, and for two images of one label.
    """
    image_patterns, label_pattern = patterns(layout, split)
    images, second = _images(root, image_patterns, listed)
    labels: dict[Stars, Path] = {}
    for words, path in matches(root, label_pattern, listed) if label_pattern else ():
        labels.setdefault(words, path)
    _refuse_shared(root, images, labels)
    alone = labels.keys() - {words for _, words in images}
    keys = [*images, *((image_patterns[0], words) for words in alone)]

    def image_of(key: Key) -> Path:
        return images.get(key) or root / _filled(*key)

    def label_of(words: Stars) -> Path | None:
        if not label_pattern:
            return None
        return labels.get(words) or root / _filled(label_pattern, words)

    pairs = {id: (image_of(key), label_of(key[1])) for id, key in _ids(keys).items()}
    return Found(pairs, frozenset([*images.values(), *labels.values()]), tuple(second))


def _images(
    root: Path, image_patterns: list[Parts], listed: ListFolder
) -> tuple[dict[Key, Path], list[Path]]:
    """The images, and those that are second ones: of another suffix, with the others' name."""
    images: dict[Key, Path] = {}
    second: list[Path] = []
    first: dict[Parts, Parts] = {}  # without its suffix → the pattern
    taken: set[Path] = set()  # a file may match several patterns
    for pattern in image_patterns:
        bare = (*pattern[:-1], pattern[-1].removesuffix(_suffix(pattern[-1])))
        for words, path in matches(root, pattern, listed):
            key = first.setdefault(bare, pattern), words
            if path in taken:
                continue
            taken.add(path)
            if images.setdefault(key, path) != path:
                second.append(path)
    return images, second


def _refuse_shared(root: Path, images: dict[Key, Path], labels: dict[Stars, Path]) -> None:
    """Refuses two images of different folders that have one label."""
    of: dict[Stars, Path] = {}
    for (_, words), path in images.items():
        other = of.setdefault(words, path)
        if other != path and words in labels:
            names = [file.relative_to(root).as_posix() for file in (other, path, labels[words])]
            raise UserError(
                f"{root}: the images {names[0]} and {names[1]} have the same label, {names[2]}. "
                "Write one pattern with a star for the folder, as */{split}/*.jpg with "
                "masks/*/{split}/*.png"
            )


def _ids(keys: list[Key]) -> dict[str, Key]:
    """Ids by the first way of naming in which each is unique."""
    ways = (
        lambda key: key[1][-1] if key[1] else "",
        lambda key: "/".join(word for word in key[1] if word),
        lambda key: _filled((*key[0][:-1], key[0][-1].removesuffix(_suffix(key[0][-1]))), key[1]),
    )
    for name in ways:
        named = {name(key): key for key in keys}
        if len(named) == len(keys):
            break
    return named


# ---------------------------------------------------------------- what is not read


def unread(
    root: Path, layout: Layout, splits: Iterable[Folders], split: Folders, found: Found,
    listed: ListFolder,
) -> dict[str, list[Path]]:
    """Images that lie in the folders of the split's images and are not read: why → files.

    splits: what {split} stands for in all splits, whose folders are no surprise below this one.
    """
    image_patterns = [one for folder in each(split) for one in patterns(layout, folder)[0]]
    suffixes = {_suffix(pattern[-1]).lower() for pattern in image_patterns}
    folders = {path: None for pattern in image_patterns
               for _, path in _folders(root, pattern[:-1], listed)}
    known = _known_folders(root, layout, splits, listed)
    second = set(found.second)
    reasons: dict[str, list[Path]] = {}
    for folder in folders:
        for name, path in listed(folder).files:
            suffix = Path(name).suffix.lower()
            if path not in found.files and (suffix in IMAGE_SUFFIXES or suffix in suffixes):
                why = (
                    HIDDEN if _is_hidden(name) else
                    "second ones of an id" if path in second else
                    "of another suffix" if suffix not in suffixes else "of another name"
                )
                reasons.setdefault(why, []).append(path)
        for name, path in listed(folder).folders:
            surprise = path not in known and not _is_hidden(name) and not _leads_up(path)
            if surprise and (deep := _deep(path, listed)):
                reasons.setdefault("in a deeper folder", []).extend(deep)
    return reasons


def _known_folders(
    root: Path, layout: Layout, splits: Iterable[Folders], listed: ListFolder
) -> set[Path]:
    """The folders of images and labels of all splits, and those above."""
    known: set[Path] = set()
    for folder_name in {name: None for split in splits for name in each(split)}:
        images, labels = patterns(layout, folder_name)
        for pattern in (*images, labels):
            for _, folder in _folders(root, pattern[:-1], listed):
                known |= {folder, *folder.parents}
    return known


def _leads_up(path: Path) -> bool:
    above = path.parent.resolve()
    return path.is_symlink() and path.resolve() in (above, *above.parents)


def _deep(folder: Path, listed: ListFolder) -> list[Path]:
    try:
        return [path for _, path in matches(folder, ("**", "*"), listed)
                if path.suffix.lower() in IMAGE_SUFFIXES]
    except (UserError, OSError):
        return [folder]  # nobody can say what lies there


def tell_unread(reasons: Mapping[str, Sequence[Path]], root: Path | None = None) -> str:
    """The reasons in words, with examples, named from `root` on; "" for none."""

    def some(files: Sequence[Path]) -> str:
        shown = files[:NUM_SHOWN]
        names = [os.path.relpath(file, root) if root else str(file) for file in shown]
        return ", ".join(names) + (", ..." if len(files) > NUM_SHOWN else "")

    return "; ".join(f"{len(files)} {why} ({some(files)})" for why, files in reasons.items())
