"""A data set of one's own, described by a small YAML file:

    images: frames/{split}/*.jpg   # or a list; from the file's folder; * is what names differ in
    labels: masks/{split}/*.png    # gray or palette PNG; leave out for a target without labels
    splits: [train, val]           # or {train: folder, val: folder}; default: train, val, test
    classes:                       # in the order of the trainIds; leave out for Cityscapes' 19
      water: [0, 90, 200]          # colour, RGB; or nothing
      boat:
    ids: {1: water, 2: boat}       # number in the label files → class; other numbers are ignored.
                                   # Left out: the numbers are the trainIds, 255 ignored
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import yaml

from snr_jax.core.errors import UserError
from snr_jax.core.labels import CLASSES, Classes, IdTable, class_names, own_classes
from snr_jax.data.layouts import Layout
from snr_jax.data.samples import Domain

Refuse = Callable[[str, str], NoReturn]  # key, what is expected of it

KEYS = ("images", "labels", "splits", "classes", "ids")


def load_own(path: str) -> Domain:
    """The domain of a YAML file. Raises UserError, naming the file and the key, if it is none."""
    try:
        content = yaml.safe_load(Path(path).read_text("utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read as YAML: {reason}") from None
    if not isinstance(content, Mapping):
        raise UserError(f"{path} is no table of keys; expected {', '.join(KEYS)}")

    def refuse(key: str, wanted: str) -> NoReturn:
        raise UserError(f"{path}: {key} is {content.get(key)!r}; expected {wanted}")

    unknown = sorted(set(map(str, content)) - set(KEYS))
    if unknown:
        raise UserError(f"{path}: no key {unknown[0]!r}; there are {', '.join(KEYS)}")
    images = content.get("images")
    images = [images] if isinstance(images, str) else images
    if not images or not isinstance(images, list) or not all(map(_is_pattern, images)):
        refuse("images", "a pattern with a star, from the file's folder, as frames/{split}/*.jpg, "
               "or a list of them")
    labels = content.get("labels") or ""
    stars = images[0].count("*")
    if labels and not (_is_pattern(labels) and labels.count("*") == stars):
        refuse("labels", f"a pattern with as many stars as {images[0]}")
    splits = content.get("splits", ["train", "val", "test"])
    pairs = list(splits.items()) if isinstance(splits, Mapping) else []
    pairs = [(name, name) for name in splits] if isinstance(splits, list) else pairs
    if not pairs or not all(isinstance(x, str) for pair in pairs for x in pair):
        refuse("splits", "names, as [train, val], or {train: folder, val: folder}")
    classes = _classes(content, refuse)
    ids = _ids(content, refuse, classes)
    return Domain(
        name=Path(path).stem,
        folder=str(Path(path).parent),
        layouts=(Layout(tuple(images), labels, "own"),),
        splits=dict(pairs),
        train_size=(512, 1024),
        classes=classes if content.get("classes") else None,
        ids={"own": ids},
        directory=str(Path(path).parent),
        spec=str(path),
    )


def _is_pattern(value: Any) -> bool:
    return isinstance(value, str) and "*" in value and not value.startswith("/")


def _classes(content: Mapping, refuse: Refuse) -> Classes:
    given = content.get("classes")
    if given is None:
        return CLASSES
    if not isinstance(given, Mapping) or not 2 <= len(given) <= 254:
        refuse("classes", "2 to 254 names with their colours, as {water: [0, 90, 200], boat: }")
    for name, color in given.items():
        numbers = isinstance(color, list) and len(color) == 3
        if not isinstance(name, str) or not (
            color is None or (numbers and all(isinstance(c, int) and 0 <= c <= 255 for c in color))
        ):
            refuse("classes", f"a colour of three numbers in 0 to 255 for {name!r}, or nothing")
    plain = own_classes(list(given))
    return tuple(
        c._replace(color=tuple(color)) if color else c
        for c, color in zip(plain, given.values())
    )


def _ids(content: Mapping, refuse: Refuse, classes: Classes) -> IdTable:
    names = class_names(classes)
    given = content.get("ids")
    if given is None:
        return IdTable(dict(enumerate(names)), len(names) - 1)
    legal = isinstance(given, Mapping) and given and all(
        isinstance(i, int) and 0 <= i <= 255 and name in names for i, name in given.items()
    )
    if not legal:
        refuse("ids", f"numbers in 0 to 255 with names of the classes ({', '.join(names)})")
    return IdTable(dict(given), 255)
