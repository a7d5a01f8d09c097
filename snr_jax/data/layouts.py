"""Which files a data set consists of: a pattern for the images, one for the labels.

In a pattern {split} stands for the split's folder and * for any part of a name (never a slash).
What the stars matched is what an image and its label have in common.
"""

import re
from pathlib import Path
from typing import NamedTuple

Pairs = dict[str, tuple[Path, Path | None]]  # id → (image, label), whether the files exist or not


class Layout(NamedTuple):
    """images: alternative patterns, of which several may match; labels: "" for none.

    Each label pattern has as many stars as the images' patterns. `ids` says what label files hold
    (a key of `Domain.ids`, else of `core.labels.ID_TABLES`), `kind` how (a key of
    `decode.LABEL_DECODERS`).
    """

    images: tuple[str, ...]
    labels: str
    ids: str = "label_ids"
    kind: str = "indices"

    def __str__(self) -> str:
        images = " or ".join(self.images)
        words = f"{images} with {self.labels}" if self.labels else images
        return words.replace("{split}", "<split>")


def _regex(pattern: str) -> re.Pattern:
    return re.compile("([^/]*)".join(re.escape(part) for part in pattern.split("*")) + r"\Z")


def _found(root: Path, pattern: str) -> dict[tuple[str, ...], Path]:
    """What the stars of the pattern stand for → file."""
    regex = _regex(pattern)
    if "*" not in pattern:
        return {(): root / pattern} if (root / pattern).is_file() else {}
    names = ((regex.match(path.relative_to(root).as_posix()), path) for path in root.glob(pattern))
    return {match.groups(): path for match, path in names if match and not _hidden(path)}


def _hidden(path: Path) -> bool:
    return path.name.startswith(".")


def _filled(root: Path, pattern: str, stars: tuple[str, ...]) -> Path:
    parts = pattern.split("*")
    return root / "".join(a + b for a, b in zip(parts, (*stars, "")))


def expected(root: Path, layout: Layout, split: str, id: str) -> tuple[Path, Path | None]:
    """Where the image and the label of an id have to be, in a layout of one star."""
    image, label = (p.replace("{split}", split) for p in (layout.images[0], layout.labels))
    return _filled(root, image, (id,)), _filled(root, label, (id,)) if label else None


def pairs(root: Path, layout: Layout, split: str) -> Pairs:
    """All images and labels of a split, each with the path at which its partner has to be.

    Ids are what the last star stands for, or all of them where that is not unique.
    """
    patterns = [pattern.replace("{split}", split) for pattern in layout.images]
    label_pattern = layout.labels.replace("{split}", split)
    images: dict[tuple[str, ...], Path] = {}
    for pattern in patterns:
        images = _found(root, pattern) | images
    labels = _found(root, label_pattern) if label_pattern else {}
    keys = images.keys() | labels.keys()
    last = [key[-1] for key in keys if key]
    unique = len(set(last)) == len(last)
    return {
        key[-1] if unique and key else "/".join(key): (
            images.get(key) or _filled(root, patterns[0], key),
            labels.get(key) or _filled(root, label_pattern, key) if label_pattern else None,
        )
        for key in keys
    }
