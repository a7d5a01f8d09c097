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
from snr_jax.core.labels import ID_TABLES, Classes, Color, IdTable
from snr_jax.data import layouts, misplaced
from snr_jax.data.layouts import Found, Layout, ListFolder

OWN_SUFFIXES = (".yaml", ".yml")  # of files that describe a data set of one's own
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
    splits: name → what {split} stands for in the layouts, several folders for those together.
    select: which of the files a split has, where folders do not tell.
    classes: its own; None: the protocols' classes.
    parts: a network's class → the own one that it is a part of; a network with none but these is
    scored on the own ones, its predictions joined.
    hint: what to know where its files lie in another folder than the one given.
    """

    name: str
    folder: str
    layouts: tuple[Layout, ...]
    splits: Mapping[str, layouts.Folders]
    train_size: tuple[int, int]  # height, width
    select: Select | None = None
    classes: Classes | None = None
    ids: Mapping[str, IdTable] | None = None  # Layout.ids → table; ID_TABLES if None
    directory: str = ""
    spec: str = ""
    hint: str = ""
    parts: Mapping[str, str] | None = None

    def __str__(self) -> str:
        return "; or ".join(map(str, self.layouts))

    @property
    def is_own(self) -> bool:
        """Whether a YAML file describes it."""
        return self.spec.endswith(OWN_SUFFIXES)

    def labels(self, layout: Layout, classes: int | Classes) -> "Labels":
        """How the label files of that layout are read for a network of those classes."""
        classes, parts = label_tables.classes(classes), ()
        names = label_tables.class_names(classes)
        if self.parts and set(names) <= set(self.parts):
            own = label_tables.class_names(self.classes)
            classes, parts = self.classes, tuple(own.index(self.parts[name]) for name in names)
        table = (self.ids or ID_TABLES)[layout.ids]
        return Labels(
            self.name, str(layout), layout.kind, layout.ids,
            label_tables.to_train_id(table, classes), classes,
            table.colors if layout.kind == "colors" else (), parts,
        )


class Labels(NamedTuple):
    """How the label files of a split are read, and the classes that they are read as."""

    domain: str  # its name, for messages as the next
    layout: str
    kind: str  # a key of decode.LABEL_DECODERS, or "colors"
    ids: str  # Layout.ids
    lookup: np.ndarray  # uint8 [256]: id in the file → trainId, 255 ignored, 254 undefined
    classes: Classes
    colors: tuple[tuple[Color, int], ...] = ()  # of the kind "colors", each with its id
    parts: tuple[int, ...] = ()  # of each class of the network the one that it is a part of, if any


class Listing(NamedTuple):
    """A split: its samples by id, how labels are read, and what was left out and why."""

    samples: list[Sample]
    labels: Labels
    notes: list[str]


class Place(NamedTuple):
    """Where a split was found: the layout that is there, its files, and notes for the log."""

    layout: Layout
    found: Found
    notes: list[str]
    unread: dict[str, list[Path]]  # why → images beside those of the split that are not read


def find(domain: Domain, split: str) -> Place:
    """The layout that is there, and the split's images and labels, there or missing.

    Raises UserError for a missing directory, a folder that cannot be read, and an unknown or empty
    split.
    """
    root = Path(domain.directory)
    if not layouts.is_folder(root):
        where = (
            f"Set config.data.root to the folder that holds {domain.folder}/" if not domain.is_own
            else f"Leave the folder out where the files lie beside {domain.spec}"
        )
        hint = f". {domain.hint}" if domain.hint else ""
        raise UserError(
            f"{domain.name}: there is no directory {domain.directory}. Expected there: {domain}. "
            f"{where}{hint}"
        )
    if split not in domain.splits:
        raise UserError(
            f"{domain.name} has no split {split!r}; it has {', '.join(domain.splits)}"
        )
    listed = layouts.create_list()
    layout, found = _choose_layout(domain, root, split, listed)
    folder, notes = domain.splits[split], []
    unread = layouts.unread(root, layout, domain.splits.values(), folder, found, listed)
    if domain.select:
        ids, notes = domain.select(root, split, set(found.pairs))
        found = found._replace(pairs={
            id: found.pairs.get(id) or layouts.expected(root, layout, folder, id) for id in ids
        })
    if not found.pairs:
        there = ", ".join(layouts.visible(root, listed)[:8]) or "nothing"
        raise UserError(
            f"{domain.name}: the split {split!r} in {domain.directory} is empty. Expected: "
            f"{domain}. There is: {there}. {_near(domain, split, 'images')}".rstrip(" .")
        )
    return Place(layout, found, notes, unread)


def list_samples(
    domain: Domain, split: str, *, classes: int | Classes = 19, require_labels: bool = True,
) -> Listing:
    """The samples of a split, sorted by id. classes: those that labels are read as.

    With `require_labels=False` a sample without a label file has the label None (training on a
    target set); else it is an error. Raises UserError for a missing directory, an unknown or
    empty split, and missing files.
    """
    layout, (pairs, present, _), notes, unread = find(domain, split)
    told = layouts.tell_unread(unread, Path(domain.directory))
    missing = [image for image, _ in pairs.values() if image not in present]
    _refuse_missing(domain, split, "images", missing, len(pairs), layout, told)
    unlabelled = [label for _, label in pairs.values() if label not in present]
    if require_labels:
        if not layout.labels:
            raise UserError(
                f"{domain.name} has no labels; without them a set serves as the target of "
                "training alone, not as source or for evaluation"
            )
        _refuse_missing(domain, split, "labels", unlabelled, len(pairs), layout, told)
    elif unlabelled:
        notes = [*notes, f"{len(unlabelled)} of {len(pairs)} images have no label"]
    if told:
        notes = [*notes, f"not read: {told}"]
    samples = [
        Sample(id, str(image), str(label) if label in present else None)
        for id, (image, label) in sorted(pairs.items())
    ]
    return Listing(samples, domain.labels(layout, classes), notes)


def _choose_layout(
    domain: Domain, root: Path, split: str, listed: ListFolder
) -> tuple[Layout, Found]:
    """The first layout with images and labels, else the first with any file."""
    folder = domain.splits[split]
    tried = [(layout, layouts.match(root, layout, folder, listed)) for layout in domain.layouts]
    whole = [
        (layout, found) for layout, found in tried
        if any({image, label} <= found.files for image, label in found.pairs.values())
    ]
    return next(iter(whole + [pair for pair in tried if pair[1].pairs]), tried[0])


def _near(domain: Domain, split: str, what: str) -> str:
    """What lies near the files that are not found, with the mend."""
    folder = domain.splits[split]
    return misplaced.explain(Path(domain.directory), domain.layouts, folder, what, domain.hint)


def _refuse_missing(
    domain: Domain, split: str, what: str, missing: list[Path | None], total: int, layout: Layout,
    unread: str,
) -> None:
    if not missing:
        return
    shown = ", ".join(sorted(str(path) for path in missing)[:3])
    more = ", ..." if len(missing) > 3 else ""
    beside = f" Not read there: {unread}." if unread else ""
    near = _near(domain, split, what) if len(missing) == total else ""
    mend = near or "Unpack the archives again, or leave these ids out of the split"
    raise UserError(
        f"{domain.name}: {len(missing)} of {total} {what} are missing: {shown}{more}. "
        f"Expected: {layout}.{beside} {mend}"
    )
