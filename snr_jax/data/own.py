"""A data set of one's own, described by a small YAML file:

    images: frames/{split}/*.jpg   # or a list; from the file's folder; * is what names differ in,
                                   # ** folders of any depth, as frames/**/*.jpg
    labels: masks/{split}/*.png    # gray or palette PNG; leave out for a target without labels
    splits: [train, val]           # or {train: folder, val: folder}; default: train, val, test
    classes:                       # in the order of the trainIds; leave out for Cityscapes' 19
      water: [0, 90, 200]          # colour, RGB; or nothing
      boat:
    ids: {1: water, 2: boat}       # number in the label files → class; other numbers are ignored.
                                   # Left out: the numbers are the trainIds, 255 ignored
    label_colors:                  # in the place of ids, for masks that hold colours (RGB, RGBA or
      water: [0, 0, 128]           # palette): class → its colour in the masks, or a list of them;
      boat: [[128, 0, 0], [64, 0, 0]]
      ignored: [0, 0, 0]           # no class; any other colour is an error

The words on, off, yes, no, true and false are names like others here.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import yaml

from snr_jax.core.errors import UserError
from snr_jax.core.labels import CLASSES, IGNORE, Classes, IdTable, class_names, own_classes
from snr_jax.data import layouts
from snr_jax.data.layouts import Layout
from snr_jax.data.samples import Domain

Refuse = Callable[[str, str], NoReturn]  # key, what is expected of it

KEYS = ("images", "labels", "splits", "classes", "ids", "label_colors")
IGNORED = "ignored"  # the name, in label_colors, of what is no class
PATTERN = ("a pattern with a star, from the file's folder, as frames/{split}/*.jpg or "
           "frames/**/*.jpg (no ~ and no / before it: move the file there, or link the folder)")


class _Loader(yaml.SafeLoader):
    """YAML without truth values, which nothing here is, and with every key once."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, regex) for tag, regex in known if tag != "tag:yaml.org,2002:bool"]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value
                if key.tag != "tag:yaml.org,2002:merge"]
        for i, key in enumerate(keys):
            if key in keys[:i]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", node.value[i][0].start_mark)
        return super().construct_mapping(node, deep)


def load_own(path: str) -> Domain:
    """The domain of a YAML file. Raises UserError, naming the file and the key, if it is none."""
    try:
        content = yaml.load(Path(path).read_text("utf-8-sig"), _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).replace('in "<unicode string>", ', "in ").split())
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
        refuse("images", f"{PATTERN}, or a list of them")
    labels = content.get("labels") or ""
    stars = {layouts.stars(pattern) for pattern in images}
    if labels and not (_is_pattern(labels) and {layouts.stars(labels)} == stars):
        refuse("labels", f"{PATTERN}, with as many stars as {' and '.join(images)}")
    splits = content.get("splits", ["train", "val", "test"])
    pairs = list(splits.items()) if isinstance(splits, Mapping) else []
    pairs = [(name, name) for name in splits] if isinstance(splits, list) else pairs
    if not pairs or not all(isinstance(x, str) for pair in pairs for x in pair):
        refuse("splits", "names, as [train, val], or {train: folder, val: folder}; a number as "
               "a name is quoted, as '1'")
    classes = _classes(content, refuse)
    has_colors = content.get("label_colors") is not None
    ids = (_label_colors if has_colors else _ids)(content, refuse, classes)
    return Domain(
        name=Path(path).stem,
        folder=str(Path(path).parent),
        layouts=(Layout(tuple(images), labels, "own", "colors" if has_colors else "indices"),),
        splits=dict(pairs),
        train_size=(512, 1024),
        classes=classes if content.get("classes") else None,
        ids={"own": ids},
        directory=str(Path(path).parent),
        spec=str(path),
    )


def _is_pattern(value: Any) -> bool:
    if not isinstance(value, str) or "*" not in value or value.startswith(("/", "~")):
        return False
    *folders, last = layouts.parts(value)
    return "**" not in last and not any("**" in folder and folder != "**" for folder in folders)


def _classes(content: Mapping, refuse: Refuse) -> Classes:
    given = content.get("classes")
    if given is None:
        return CLASSES
    if not isinstance(given, Mapping) or not 2 <= len(given) <= 254:
        refuse("classes", "2 to 254 names with their colours, as {water: [0, 90, 200], boat: }")
    for name, color in given.items():
        if not isinstance(name, str) or not name.strip():
            refuse("classes", f"names as text; {name!r} is read as something else, so quote it, "
                   f"as '{'null' if name is None else name}'")
        if not (color is None or _is_color(color)):
            refuse("classes", f"a colour of three numbers in 0 to 255 for {name!r}, or nothing")
    plain = own_classes(list(given))
    return tuple(
        c._replace(color=tuple(color)) if color else c
        for c, color in zip(plain, given.values())
    )


def _is_color(value: Any) -> bool:
    numbers = isinstance(value, list) and len(value) == 3
    return numbers and all(isinstance(c, int) and 0 <= c <= 255 for c in value)


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


def _label_colors(content: Mapping, refuse: Refuse, classes: Classes) -> IdTable:
    """The ids of the masks' colours: a class's is its position, that of no class 255."""
    names, given = class_names(classes), content["label_colors"]
    ids = {IGNORED: IGNORE} | {name: i for i, name in enumerate(names)}
    if content.get("ids") is not None:
        refuse("label_colors", "no key ids beside it: masks hold numbers or colours")
    if not isinstance(given, Mapping) or not any(name in given for name in names):
        refuse("label_colors", "classes with their colours in the masks, as {water: [0, 0, 128]}")
    of_color: dict[tuple[int, ...], str] = {}
    for name, colors in given.items():
        if name not in ids:
            refuse("label_colors", f"names of the classes ({', '.join(names)}) or {IGNORED}; "
                   f"{name!r} is none")
        several = [colors] if _is_color(colors) else colors
        if not (isinstance(several, list) and several and all(map(_is_color, several))):
            refuse("label_colors", f"a colour of three numbers in 0 to 255 for {name!r}, or a list "
                   "of them")
        for color in map(tuple, several):
            if of_color.setdefault(color, name) != name:
                refuse("label_colors", f"one class for a colour; {list(color)} is that of "
                       f"{of_color[color]!r} and of {name!r}")
    table = tuple((color, ids[name]) for color, name in of_color.items())
    return IdTable(dict(enumerate(names)), len(names) - 1, table)
