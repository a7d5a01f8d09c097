"""A data set of one's own, described by a small YAML file:

    images: frames/{split}/*.jpg   # or a list, in quotes: ['a/{split}/*.jpg', 'b/{split}/*.png'];
                                   # from the file's folder; * is what names differ in,
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
      ignored: [0, 0, 0]           # no class, and no name of one; other colours are errors

The words on, off, yes, no, true and false are names like others here.
"""

import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import yaml

from snr_jax.core.errors import UserError, guess
from snr_jax.core.labels import CLASSES, IGNORE, Classes, IdTable, class_names, own_classes
from snr_jax.data import layouts
from snr_jax.data.layouts import Layout
from snr_jax.data.samples import Domain

Refuse = Callable[..., NoReturn]  # key, what is expected of it; the entry, where only that is wrong

KEYS = ("images", "labels", "splits", "classes", "ids", "label_colors")
IGNORED = "ignored"  # the name, in label_colors, of what is no class
PATTERN = ("a pattern with a star, from the file's folder, as frames/{split}/*.jpg or "
           "frames/**/*.jpg (no ~ and no / before it: move the file there, or link the folder)")
SHORT = reprlib.Repr()  # of a value in a message
SHORT.maxdict, SHORT.maxstring = 3, 120
MOST_NAMES = 20  # of classes in a message


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
        raise UserError(f"{path} cannot be read{_reason(error)}") from None
    if not isinstance(content, Mapping):
        raise UserError(f"{path} is no table of keys; expected {', '.join(KEYS)}")

    def refuse(key: str, wanted: str, entry: Mapping | None = None) -> NoReturn:
        given = f"is {SHORT.repr(content.get(key))}" if entry is None else (
            f"holds {SHORT.repr(entry)}")
        raise UserError(f"{path}: {key} {given}; expected {wanted}")

    for key in sorted(set(map(str, content)) - set(KEYS)):
        raise UserError(f"{path}: no key {key!r}; there are {', '.join(KEYS)}{guess(key, KEYS)}")
    for key, value in content.items():
        if value is None:
            raise UserError(f"{path}: the key {key} is empty; give it a value, or leave it out")
    images = content.get("images")
    images = [images] if isinstance(images, str) else images
    if not images or not isinstance(images, list) or not all(map(_is_pattern, images)):
        refuse("images", f"{PATTERN}, or a list of them")
    labels = content.get("labels", "")
    stars = {layouts.stars(pattern) for pattern in images}
    if "labels" in content and not (_is_pattern(labels) and {layouts.stars(labels)} == stars):
        refuse("labels", f"{PATTERN}, with as many stars as {' and '.join(images)}")
    splits = content.get("splits", ["train", "val", "test"])
    pairs = list(splits.items()) if isinstance(splits, Mapping) else []
    pairs = [(name, name) for name in splits] if isinstance(splits, list) else pairs
    if not pairs or not all(isinstance(x, str) for pair in pairs for x in pair):
        refuse("splits", "names, as [train, val], or {train: folder, val: folder}; a number as "
               "a name is quoted, as '1'")
    classes = _classes(content, refuse)
    has_colors = "label_colors" in content
    ids = (_label_colors if has_colors else _ids)(content, refuse, classes)
    return Domain(
        name=Path(path).stem,
        folder=str(Path(path).parent),
        layouts=(Layout(tuple(images), labels, "own", "colors" if has_colors else "indices"),),
        splits=dict(pairs),
        train_size=(512, 1024),
        classes=classes if "classes" in content else None,
        ids={"own": ids},
        directory=str(Path(path).parent),
        spec=str(path),
    )


def _reason(error: Exception) -> str:
    """Why a file cannot be read, with the mend where it is known: the end of a message."""
    if isinstance(error, UnicodeDecodeError):
        return ": it is not in UTF-8; save it as UTF-8"
    if isinstance(error, OSError):
        missing = isinstance(error, FileNotFoundError)
        return f": {'there is no such file' if missing else error.strerror}"
    if isinstance(error, yaml.MarkedYAMLError) and (mark := error.problem_mark):
        line = mark.buffer.splitlines()[mark.line]
        if "\t" in line[: mark.column + 1]:
            return f" as YAML: line {mark.line + 1} has a tab; indent with spaces"
        is_alias = "alias" in f"{error.context} {error.problem}"  # what * begins in YAML
        if is_alias or "{split}" in line[: mark.column + len("{split}")]:
            return (f" as YAML: put the pattern in line {mark.line + 1} in quotes, as "
                    "'{split}/*.jpg', or each of a list: ['a/{split}/*.jpg', 'b/{split}/*.png']")
    reason = str(error).replace('in "<unicode string>", ', "in ")
    return f" as YAML: {' '.join(reason.split())}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:MOST_NAMES]) + (", ..." if len(names) > MOST_NAMES else "")


def _is_pattern(value: Any) -> bool:
    if not isinstance(value, str) or "*" not in value or value.startswith(("/", "~")):
        return False
    *folders, last = layouts.parts(value)
    return "**" not in last and not any("**" in folder and folder != "**" for folder in folders)


def _classes(content: Mapping, refuse: Refuse) -> Classes:
    if "classes" not in content:
        return CLASSES
    given = content["classes"]
    if not isinstance(given, Mapping) or not 2 <= len(given) <= 254:
        refuse("classes", "2 to 254 names with their colours, as {water: [0, 90, 200], boat: }")
    for name, color in given.items():
        if not isinstance(name, str) or not name.strip():
            refuse("classes", f"names as text; {name!r} is read as something else, so quote it, "
                   f"as '{'null' if name is None else name}'", {name: color})
        if name == IGNORED and "label_colors" in content:
            refuse("classes", f"another name for a class: in label_colors {IGNORED} is no class",
                   {name: color})
        if not (color is None or _is_color(color)):
            refuse("classes", f"{_color_words(color)}, or nothing", {name: color})
    plain = own_classes(list(given))
    return tuple(
        c._replace(color=tuple(color)) if color else c
        for c, color in zip(plain, given.values())
    )


def _is_color(value: Any) -> bool:
    numbers = isinstance(value, list) and len(value) == 3
    return numbers and all(isinstance(c, int) and 0 <= c <= 255 for c in value)


def _color_words(value: Any) -> str:
    """What a colour is, with the value as an example where that is one in hexadecimal digits."""
    digits = isinstance(value, str) and re.fullmatch("#?([0-9a-fA-F]{6})", value)
    example = list(bytes.fromhex(digits[1])) if digits else [0, 128, 0]
    comment = " (after # all is a comment)" if value is None else ""
    return f"a colour of three numbers in 0 to 255, as {example}{comment}"


def _ids(content: Mapping, refuse: Refuse, classes: Classes) -> IdTable:
    names = class_names(classes)
    if "ids" not in content:
        return IdTable(dict(enumerate(names)), len(names) - 1)
    given = content["ids"]
    wanted = (f"numbers in 0 to 255 with names of the classes ({_some(names)}), without the "
              "numbers of no class")
    if not isinstance(given, Mapping) or not given:
        refuse("ids", wanted)
    for number, name in given.items():
        if not (isinstance(number, int) and 0 <= number <= 255):
            refuse("ids", wanted, {number: name})
        if name not in names:
            refuse("ids", f"{wanted}{guess(name, names)}", {number: name})
    return IdTable(dict(given), 255)


def _label_colors(content: Mapping, refuse: Refuse, classes: Classes) -> IdTable:
    """The ids of the masks' colours: a class's is its position, that of no class 255."""
    names, given = class_names(classes), content["label_colors"]
    ids = {IGNORED: IGNORE} | {name: i for i, name in enumerate(names)}
    if "ids" in content:
        refuse("label_colors", "no key ids beside it: masks hold numbers or colours")
    if not isinstance(given, Mapping) or not any(name in given for name in names):
        refuse("label_colors", "classes with their colours in the masks, as {water: [0, 0, 128]}")
    of_color: dict[tuple[int, ...], str] = {}
    for name, colors in given.items():
        if name not in ids:
            refuse("label_colors", f"names of the classes ({_some(names)}) or {IGNORED}; "
                   f"{name!r} is none{guess(name, ids)}", {name: colors})
        has_several = isinstance(colors, list) and colors and isinstance(colors[0], list)
        several = colors if has_several else [colors]
        for color in several:
            if not _is_color(color):
                refuse("label_colors", f"{_color_words(color)}, or a list of them", {name: color})
        for color in map(tuple, several):
            if of_color.setdefault(color, name) != name:
                refuse("label_colors", f"one class for a colour; {list(color)} is that of "
                       f"{of_color[color]!r} and of {name!r}", {name: colors})
    table = tuple((color, ids[name]) for color, name in of_color.items())
    return IdTable(dict(enumerate(names)), len(names) - 1, table)
