"""The samples of a split of a domain, and how its label files are read.

No image is opened here; `decode.py` reads images and labels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from snr_jax.core import labels as label_tables
from snr_jax.core.errors import UserError
from snr_jax.core.labels import ID_TABLES, Classes, IdTable
from snr_jax.data.layouts import Layout, Pairs, expected, pairs

# root, split, ids that were found → ids of the split, notes for the log
Select = Callable[[Path, str, set[str]], tuple[set[str], list[str]]]


@dataclass(frozen=True)
class Sample:
    id: str
    image: str  # path
    label: str | None  # path; None: the set has no label for it


@dataclass(frozen=True)
class Domain:
    """A data set: where its files lie and what its labels mean.

    folder: its usual one below config.data.root. directory: where its files lie; "" until
    `domains.create_domain` says. spec: what a configuration calls it, "gta5" or "my_domain.yaml".
    layouts: the forms in which it is handed around; the first that is there counts.
    splits: name → what {split} stands for in the layouts.
    select: which of the files a split has, where folders do not tell.
    classes: those of an own data set; None: the protocols' classes.
    """

    name: str
    folder: str
    layouts: tuple[Layout, ...]
    splits: Mapping[str, str]
    train_size: tuple[int, int]  # height, width
    select: Select | None = None
    classes: Classes | None = None
    ids: Mapping[str, IdTable] | None = None  # Layout.ids → table; ID_TABLES if None
    directory: str = ""
    spec: str = ""

    def __str__(self) -> str:
        return "; or ".join(map(str, self.layouts))

    def labels(self, layout: Layout, classes: int | Classes) -> "Labels":
        """How the label files of that layout are read as those classes."""
        classes = label_tables.classes(classes)
        lookup = label_tables.to_train_id((self.ids or ID_TABLES)[layout.ids], classes)
        return Labels(self.name, str(layout), layout.kind, layout.ids, lookup, classes)


class Labels(NamedTuple):
    """How the label files of a split are read, and the classes that they are read as."""

    domain: str  # its name, for messages as the next
    layout: str
    kind: str  # a key of decode.LABEL_DECODERS
    ids: str  # Layout.ids
    lookup: np.ndarray  # uint8 [256]: id in the file → trainId, 255 ignored, 254 undefined
    classes: Classes


class Listing(NamedTuple):
    """A split: its samples by id, how labels are read, and what was left out and why."""

    samples: list[Sample]
    labels: Labels
    notes: list[str]


def find(domain: Domain, split: str) -> tuple[Layout, Pairs, list[str]]:
    """The layout that is there, the split's images and labels, there or missing, and notes.

    Raises UserError for a missing directory and an unknown or empty split.
    """
    root = Path(domain.directory)
    if not root.is_dir():
        raise UserError(
            f"{domain.name}: there is no directory {domain.directory}. Expected there: {domain}. "
            f"Set config.data.root to the folder that holds {domain.folder}/"
        )
    if split not in domain.splits:
        raise UserError(
            f"{domain.name} has no split {split!r}; it has {', '.join(domain.splits)}"
        )
    layout, found = _choose_layout(domain, root, split)
    notes = []
    if domain.select:
        ids, notes = domain.select(root, split, set(found))
        folder = domain.splits[split]
        found = {id: found.get(id) or expected(root, layout, folder, id) for id in ids}
    if not found:
        there = ", ".join(sorted(path.name for path in root.iterdir())[:8]) or "nothing"
        raise UserError(
            f"{domain.name}: the split {split!r} in {domain.directory} is empty. Expected: "
            f"{domain}. There is: {there}"
        )
    return layout, found, notes


def list_samples(
    domain: Domain, split: str, *, classes: int | Classes = 19, require_labels: bool = True,
) -> Listing:
    """The samples of a split, sorted by id. classes: those that labels are read as.

    With `require_labels=False` a sample without a label file has the label None (training on a
    target set); else it is an error. Raises UserError for a missing directory, an unknown or
    empty split, and missing files.
    """
    layout, found, notes = find(domain, split)
    present = _files({path.parent for pair in found.values() for path in pair if path})
    missing = [image for image, _ in found.values() if image not in present]
    _refuse_missing(domain, "images", missing, len(found), layout)
    unlabelled = [label for _, label in found.values() if label not in present]
    if require_labels:
        if not layout.labels:
            raise UserError(
                f"{domain.name} has no labels; without them a set serves as the target of "
                "training alone, not as source or for evaluation"
            )
        _refuse_missing(domain, "labels", unlabelled, len(found), layout)
    elif unlabelled:
        notes = [*notes, f"{len(unlabelled)} of {len(found)} images have no label"]
    samples = [
        Sample(id, str(image), str(label) if label in present else None)
        for id, (image, label) in sorted(found.items())
    ]
    return Listing(samples, domain.labels(layout, classes), notes)


def _choose_layout(domain: Domain, root: Path, split: str) -> tuple[Layout, Pairs]:
    """The first layout with images and labels, else the first with any file."""
    folder = domain.splits[split]
    tried = [(layout, pairs(root, layout, folder)) for layout in domain.layouts]
    whole = [
        (layout, found) for layout, found in tried
        if any(i.exists() and l and l.exists() for i, l in found.values())
    ]
    return next(iter(whole + [pair for pair in tried if pair[1]]), tried[0])


def _files(folders: set[Path]) -> set[Path]:
    return {path for folder in folders if folder.is_dir() for path in folder.iterdir()}


def _refuse_missing(
    domain: Domain, what: str, missing: list[Path | None], total: int, layout: Layout
) -> None:
    if missing:
        shown = ", ".join(sorted(str(path) for path in missing)[:3])
        more = ", ..." if len(missing) > 3 else ""
        raise UserError(
            f"{domain.name}: {len(missing)} of {total} {what} are missing: {shown}{more}. "
            f"Expected: {layout}. Unpack the archives again, or leave these ids out of the split"
        )
