"""What makes a set itself: what lies in it, and what the numbers in its labels mean.

Its name is for people: `domains.names` makes those of several sets differ.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from snr_jax.core.errors import UserError
from snr_jax.core.labels import ID_TABLES, Color, class_names, classes
from snr_jax.data.samples import Domain, Labels, Sample

_SAMPLED = 8  # images of a split whose files are read for the checksum of the content
_NAMED = 3  # differences that are told in words


def identity(samples: Sequence[Sample], *, labels: bool = True) -> dict:
    """The number of images, a checksum of their ids, and one of the files of eight of them.

    labels: whether the label files belong to it. Raises UserError for a file that cannot be read.
    """
    number = min(_SAMPLED, len(samples))
    chosen = [samples[i * len(samples) // number] for i in range(number)]
    content = hashlib.sha256()
    for sample in chosen:
        for path in (sample.image, sample.label) if labels else (sample.image,):
            try:
                content.update(hashlib.sha256(Path(path).read_bytes()).digest())
            except OSError as error:
                raise UserError(f"{path} cannot be read: {error.strerror}") from None
    ids = hashlib.sha256("\n".join(sample.id for sample in samples).encode())
    return {
        "images": len(samples), "ids": ids.hexdigest()[:16], "content": content.hexdigest()[:16]
    }


def meaning(labels: Labels) -> dict:
    """The classes in order, and which of them a number in a label file is, as JSON gives it back.

    {"classes": [name, ...], "numbers": {"7": name, ...}}; other numbers are no class. Of one's own
    set whose labels hold colours the colours are the numbers, "0,90,200".
    """
    names = class_names(labels.classes)
    of_id = {i: names[c] for i, c in enumerate(labels.lookup) if c < len(names)}
    colors = labels.colors if labels.ids == "own" else ()
    return {"classes": list(names), "numbers": _numbers(of_id, colors)}


def _numbers(names: Mapping[int, str], colors: Sequence[tuple[Color, int]]) -> dict[str, str]:
    if colors:
        return {",".join(map(str, color)): names[id] for color, id in colors if id in names}
    return {str(id): name for id, name in names.items()}


def is_known(labels: Labels) -> bool:
    """Whether they are a known set's, read as the classes of a protocol."""
    return labels.ids in ID_TABLES and labels.classes in map(classes, (19, 16, 13))


def meaning_of(domain: Domain) -> dict:
    """The `meaning` of what is stored of the labels of one's own set, by its file.

    The classes belong to it where the labels hold colours: each is stored as its class's place.
    """
    table = (domain.ids or {}).get("own")
    if not table:
        return {"numbers": {}}
    names = dict(sorted(table.names.items()))
    numbers = {"numbers": _numbers(names, table.colors)}
    return {"classes": list(names.values()), **numbers} if table.colors else numbers


def checksum(meant: Mapping) -> str:
    """One of a `meaning`, which a score keeps."""
    return hashlib.sha256(json.dumps(meant, sort_keys=True).encode()).hexdigest()[:16]


def exchanged(there: Mapping, here: Mapping) -> list[str]:
    """Where two mappings that hold a `meaning` differ in it, in words.

    What one of them does not hold, as records of before, is not compared.
    """

    def both(key: str, kind: type) -> bool:
        return isinstance(there.get(key), kind) and isinstance(here.get(key), kind)

    before, now = {}, {}
    if both("classes", list):
        before |= {f"class {i}": name for i, name in enumerate(there["classes"])}
        now |= {f"class {i}": name for i, name in enumerate(here["classes"])}
    if both("numbers", dict):
        before |= {_in_labels(i): name for i, name in there["numbers"].items()}
        now |= {_in_labels(i): name for i, name in here["numbers"].items()}
    lines = [
        f"{what} is {before.get(what, 'no class')} there, {now.get(what, 'no class')} now"
        for what in {**before, **now} if before.get(what) != now.get(what)
    ]
    more = [f"{len(lines) - _NAMED} more"] if len(lines) > _NAMED else []
    return lines[:_NAMED] + more


def _in_labels(number: str) -> str:
    return f"the {'colour' if ',' in number else 'number'} {number} in labels"
