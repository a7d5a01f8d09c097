"""Prepared data: a domain resized once to its training size, as a TFDS data set of array_record.

FOLDER/<domain>_<height>x<width> is written by `writing.py`; `open_prepared` reads it, by index. Of
two own sets that are called alike the second has its folder in the name too (`domains.names`). A
record holds what training reads from the files, bit for bit. Random scales are made from the stored
size, which has to reach the largest of them.

    id               text
    image            uint8 [h,w,3] RGB, raw bytes or PNG; Pillow's resize commutes with mirroring
    label            uint8 [h,w,1], the file's own ids, nearest neighbour, PNG
    label_mirrored   the same of the mirrored label: mirroring comes before the nearest resize
"""

from __future__ import annotations  # what they name would start TensorFlow

import json
import math
import os
import re
import shlex
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np

from snr_jax.core.errors import UserError
from snr_jax.core.labels import Classes
from snr_jax.data import decode
from snr_jax.data.decode import tf
from snr_jax.data.domains import is_own, names, origin
from snr_jax.data.identity import exchanged, identity, meaning_of
from snr_jax.data.samples import Domain, Labels, Sample, list_samples

NAME = "snr_jax"  # of the data set in TFDS's file names
RECORD = "prepared.json"  # what was prepared: read before anything else
REMEDY = (
    "Prepare it anew with scripts/prepare_data.py, or set --config.data.prepared= to read the files"
)


def tfds() -> ModuleType:
    """tensorflow_datasets: slow to import, and needed for prepared data alone."""
    decode.import_tensorflow()  # quietly, before it does
    import tensorflow_datasets

    return tensorflow_datasets


def place(folder: str | os.PathLike, domain: str, size: Sequence[int]) -> Path:
    """Where the domain of that name and size (height, width) lies in a folder of prepared data."""
    return Path(folder) / f"{domain}_{size[0]}x{size[1]}"


class Prepared(NamedTuple):
    """A split of prepared data, as the pipeline reads it."""

    folder: Path
    split: str
    size: tuple[int, int]  # height, width as stored
    identities: dict[str, dict]  # "images", "pairs" → `record.identity` of the files it is made of
    shards: tuple[str, ...]
    sizes: tuple[Sequence[int] | None, ...]  # of the files; () where the folder does not say

    def reader(self, with_labels: bool) -> Callable[[tf.Tensor, tf.Tensor], dict[str, tf.Tensor]]:
        """index, mirror → "image" uint8 [h,w,3] and, `with_labels`, "label" uint8 ids [h,w]."""
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        try:
            source, lock = ArrayRecordDataSource(list(self.shards)), threading.Lock()
            declared = tfds().builder_from_directory(self.folder).info.features
        except Exception as error:  # whatever a damaged folder makes them raise
            raise self.fault(error) from error
        names = ["image", *(("label", "label_mirrored") if with_labels else ())]
        declared = tfds().features.FeaturesDict({name: declared[name] for name in names})
        # Of the two labels one is needed: decoding it is a good part of the time.
        undecoded = {name: tfds().decode.SkipDecoding() for name in names[1:]}

        def record(index: np.ndarray) -> bytes:
            with lock:  # the readers of the shards are not said to be safe among threads
                return source[int(index)]

        def read(index: tf.Tensor, mirror: tf.Tensor) -> dict[str, tf.Tensor]:
            serialized = tf.ensure_shape(tf.numpy_function(record, [index], tf.string), [])
            example = declared.deserialize_example(serialized, decoders=undecoded)
            image = example["image"]
            found = {"image": tf.cond(mirror, lambda: image[:, ::-1], lambda: image)}
            if with_labels:
                png = tf.cond(mirror, lambda: example["label_mirrored"], lambda: example["label"])
                label = tf.io.decode_png(png, channels=1)
                found["label"] = tf.ensure_shape(label, (*self.size, 1))[..., 0]
            return found

        return read

    def fault(self, error: Exception) -> UserError:
        """What to say of a record that cannot be read."""
        words = getattr(error, "message", str(error)).strip().splitlines()
        return UserError(
            f"{self.folder}: a record of the split {self.split!r} cannot be read "
            f"({words[-1] if words else type(error).__name__}). The same scripts/prepare_data.py "
            f"command names the shard. {REMEDY}"
        )


def open_prepared(
    folder: str | os.PathLike, domain: Domain, split: str, *, size: Sequence[int],
    classes: int | Classes, scale_range: tuple[float, float] | None = None,
    require_labels: bool = False,
) -> tuple[list[Sample], Labels, Prepared] | None:
    """The samples of a split as `list_samples` gives them; None if the domain is not there.

    Their paths are those of the files in the domain's directory, which need not exist; if they do,
    they must be those that were prepared. Raises UserError if they are not, for a folder that is
    damaged or lacks the split or, with `require_labels`, its labels, and for a `scale_range` beyond
    what is stored.
    """
    named = _named(folder, domain)
    now = {split: _identities(domain, split)} if named else {}
    sizes = {each: path for each, path in named if not is_another(path, domain, now)}
    path = _choose(folder, domain, size, scale_range, sizes)
    if path is None:
        return None
    record = read_record(path)
    if split not in record["splits"]:
        raise UserError(
            f"{path} holds the split {', '.join(record['splits'])}, not {split!r}. {REMEDY}"
        )
    layouts = [layout for layout in domain.layouts if str(layout) == record["layout"]]
    if not layouts:
        raise UserError(
            f"{path} was made of {record['layout']}, and {domain.name} is {domain}. {REMEDY}"
        )
    shards = [path / name for name in record["splits"][split]["shards"]]
    for shard in shards:
        if not shard.is_file() or shard.stat().st_size != record["shards"][shard.name]["bytes"]:
            raise UserError(f"{shard} is missing or not whole. {REMEDY}")
    stored = record["splits"][split]
    if require_labels and not stored["labels"]:
        raise UserError(
            f"{path} holds no labels of the split {split!r}; without them a set serves as the "
            "target of training alone. Put a label beside every image, remove the folder, and "
            f"prepare it anew: {_command(path, domain, record)}"
        )
    labels = stored["labels"] or [None] * len(stored["ids"])
    samples = [
        Sample(id, *(path and os.path.join(domain.directory, path) for path in (image, label)))
        for id, image, label in zip(stored["ids"], stored["images"], labels, strict=True)
    ]
    identities = stored["identities"]
    wrong = _unlike(identities, now[split]) + exchanged(record, meaning_of(domain))
    if wrong:
        raise UserError(f"{path} was not prepared from {domain.name} as it is in "
                        f"{domain.directory} ({', '.join(wrong)}). {REMEDY}")
    if scale_range:  # resized twice: other pixels than from the files, so other data for a record
        identities = {k: v | {"resized_from": record["size"]} for k, v in identities.items()}
    sizes = tuple(record.get("sizes", {}).get(split, ()))  # not said before there was a use for it
    prepared = Prepared(
        path, split, tuple(record["size"]), identities, tuple(map(str, shards)), sizes)
    return samples, domain.labels(layouts[0], classes), prepared


def _command(path: Path, domain: Domain, record: Mapping) -> str:
    """What prepares a domain as a folder is prepared."""
    return shlex.join([
        "python", "scripts/prepare_data.py", "--domain", domain.spec or domain.name,
        "--dir", domain.directory, "--splits", ",".join(record["splits"]),
        "--size", ",".join(map(str, record["size"])), "--images", record["images"],
        "--out", str(path.parent),
    ])


def _named(folder: str | os.PathLike, domain: Domain) -> list[tuple[tuple[int, int], Path]]:
    """Sizes and folders that are called as the domain may be, the usual name last."""
    paths = sorted(Path(folder).glob("*"))
    found = []
    for name in reversed(names(domain.spec or domain.name)):
        regex = re.compile(rf"{re.escape(name)}_(\d+)x(\d+)")
        matches = [(regex.fullmatch(path.name), path) for path in paths]
        found += [((int(m[1]), int(m[2])), path) for m, path in matches if m]
    return found


def _identities(domain: Domain, split: str) -> dict | None:
    """`identity` of the files of a split, "images" and "pairs"; None where they are not there."""
    try:
        samples = list_samples(domain, split, classes=domain.classes or 19, require_labels=False)[0]
        found = {"images": identity(samples, labels=False)}
        if all(sample.label for sample in samples):
            found["pairs"] = identity(samples)
    except UserError:  # whoever needs the files says what is wrong
        return None
    return found


def _unlike(there: Mapping, here: Mapping | None) -> list[str]:
    """In which of their identities two splits differ, in words; [] where one has no files."""
    if here is None:
        return []
    kind = "pairs" if "pairs" in there and "pairs" in here else "images"
    return [f"other {key}" for key in here[kind] if there[kind].get(key) != here[kind][key]]


def is_another(path: Path, domain: Domain, now: Mapping[str, dict | None]) -> bool:
    """Whether a folder is of another own set that is called alike.

    That is one whose file lies elsewhere, and whose files or numbers are others. now: split → the
    identities of the domain's files. A folder of before, that does not say, is the domain's.
    """
    try:
        record = json.loads((path / RECORD).read_text(encoding="utf-8"))
        if not is_own(domain.spec) or record.get("set", origin(domain)) == origin(domain):
            return False
        stored = {s: of["identities"] for s, of in record["splits"].items() if s in now}
        same = stored and all(now[s] and not _unlike(stored[s], now[s]) for s in stored)
        return not same or bool(exchanged(record, meaning_of(domain)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False  # damaged: whoever reads it says so


def _choose(
    folder: str | os.PathLike, domain: Domain, size: Sequence[int],
    scale_range: tuple[float, float] | None, sizes: Mapping[tuple[int, int], Path],
) -> Path | None:
    """Where the domain lies at `size`; of a random scale at the smallest size that reaches it."""
    if not scale_range:
        return sizes.get(tuple(size))
    largest = [round(side * scale_range[1]) for side in size]
    for stored in sorted(sizes, key=math.prod):
        if stored[0] >= largest[0] and stored[1] >= largest[1]:
            return sizes[stored]
    if not sizes:
        return None
    reached = max(min(have / side for have, side in zip(each, size)) for each in sizes)
    shown = ", ".join(f"{h}x{w}" for h, w in sorted(sizes, key=math.prod))
    raise UserError(
        f"data.scale_range is {scale_range}, which makes {domain.name} up to "
        f"{largest[0]}x{largest[1]} (height x width), and {folder} holds {shown}: up to "
        f"{math.floor(100 * reached) / 100:g} times. Lower the upper end, prepare it with "
        f"scripts/prepare_data.py --domain {domain.spec or domain.name} --size "
        f"{largest[0]},{largest[1]}, or set --config.data.prepared= to read the files"
    )


def read_record(path: Path) -> dict:
    """Raises UserError for a folder that is no prepared data, or not whole."""
    try:
        record = json.loads((path / RECORD).read_text(encoding="utf-8"))
        shards = [name for split in record["splits"].values() for name in split["shards"]]
        if shards and sorted(shards) == sorted(record["shards"]) and record["layout"]:
            return record
        raise ValueError("it is not whole")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path / RECORD} cannot be read ({error}). {REMEDY}") from None


def differences(there: Mapping, here: Mapping) -> list[str]:
    """In words, between two records, but for what the files hold. Where these lie may change.

    Raises KeyError, TypeError or AttributeError for one that is damaged.
    """
    lines = [f"{key} is {there[key]} there, {here[key]} now"
             for key in ("domain", "size", "images", "layout") if there[key] != here[key]]
    lines += exchanged(there, here)
    if there["splits"].keys() != here["splits"].keys():
        return [*lines, f"splits are {','.join(there['splits'])} there, "
                        f"{','.join(here['splits'])} now"]
    for split, now in here["splits"].items():
        before = there["splits"][split]
        key = next((k for k in ("labels", "images", "ids", "shards") if before[k] != now[k]), None)
        if key:
            one, other = (set(of[key] or ()) for of in (before, now))
            alone = min(one ^ other, default=key)
            lines.append(f"{split} has {alone} {'there' if alone in one else 'now'} alone")
    return lines


def refuse(folder: str, wanted: Sequence[tuple[str, Sequence[int]]]) -> None:
    """Raises UserError for a folder with none of the domains and sizes that are trained on."""
    places = [str(place(folder, domain, size)) for domain, size in wanted]
    raise UserError(f"data.prepared is {folder}, and there is no "
                    f"{' and no '.join(places)}. {REMEDY}")


def features(size: tuple[int, int], images: str, labelled: bool) -> tfds.features.FeaturesDict:
    """Features of a record. images: "raw" or "png"."""
    kinds, shape = tfds().features, (*size, 3)
    if images == "raw":
        image = kinds.Tensor(shape=shape, dtype=np.uint8, encoding=kinds.Encoding.BYTES)
    else:
        image = kinds.Image(shape=shape, encoding_format="png")
    names = ("label", "label_mirrored") if labelled else ()
    label = {name: kinds.Image(shape=(*size, 1), encoding_format="png") for name in names}
    return kinds.FeaturesDict({"id": kinds.Text(), "image": image, **label})


def example(sample: Sample, labels: Labels, size: tuple[int, int], labelled: bool) -> dict:
    """A record of a sample's files. Raises tf.errors.OpError for those that cannot be read."""
    image = decode.read_image(sample.image)
    small = decode.resize_image(image, size).numpy()
    if (decode.resize_image(image, size, True).numpy() != small[:, ::-1]).any():
        raise UserError(f"{sample.image}: its mirrored form does not resize to the mirrored pixels")
    found = {"id": sample.id, "image": small}
    if labelled:
        ids = decode.read_label_ids(sample.label, labels)
        sizes = tf.shape(image, tf.int64), tf.shape(ids, tf.int64)
        tf.debugging.assert_equal(decode.alike(*sizes), True, "shapes differ")
        for name, mirror in (("label", False), ("label_mirrored", True)):
            found[name] = decode.resize_label(ids, size, mirror).numpy()[..., None]
    return found
