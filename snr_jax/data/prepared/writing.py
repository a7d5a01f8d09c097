"""Writes prepared data (`reading.py`) with TFDS's writer, in several processes or on Beam.

Shards are made in OUT/<domain>_<h>x<w>.partial, each under a temporary name until it is whole; a
start after a kill makes those that lack, and those of which a file has changed. The folder gets its
name after every shard was read again and agreed with its checksum.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from snr_jax.core.errors import UserError
from snr_jax.core.files import checksum, write_text, written_whole
from snr_jax.data.decode import keep_freed_memory, tf
from snr_jax.data.domains import names, origin
from snr_jax.data.faults.inspection import inspect, refusal
from snr_jax.data.faults.look import header_sizes, look_at_sizes
from snr_jax.data.identity import meaning_of
from snr_jax.data.prepared import spread
from snr_jax.data.prepared.reading import (
    NAME,
    RECORD,
    differences,
    example,
    features,
    is_another,
    place,
    read_record,
    tfds,
)
from snr_jax.data.prepared.spread import Beam
from snr_jax.data.samples import Domain, Labels, Listing, Sample, find, list_samples

logger = logging.getLogger(__name__)

SHARD_IMAGES = 32  # that a kill can cost a process at most
IMAGE_KINDS = ("raw", "png")


class _Shard(NamedTuple):
    path: Path
    samples: tuple[Sample, ...]
    labels: Labels
    size: tuple[int, int]
    images: str
    labelled: bool

    @property
    def note(self) -> Path:
        """Its length and checksum, written after it. A shard without it is not whole."""
        return Path(f"{self.path}.json")


def prepare(
    domain: Domain,
    folder: str | os.PathLike,
    *,
    splits: Sequence[str],
    size: tuple[int, int],
    images: str,
    workers: int,
    identify: Callable[..., dict],
    progress: Callable[[int, int], None] = lambda done, total: None,
    interrupt: Callable[[], None] = lambda: None,
    beam: Beam | None = None,
) -> Path:
    """The splits of a domain, resized to `size` (height, width), in a folder of `folder`.

    identify: `record.identity`, kept to tell runs on the same data. interrupt: called now and then;
    it may raise. beam: in the place of `workers` processes. Raises UserError for files that are
    missing or cannot be read, for too little space, for a folder of other data in the way, and for
    one whose shards have changed.
    """
    if images not in IMAGE_KINDS:
        raise UserError(f"images is {images!r}; expected one of {', '.join(IMAGE_KINDS)}")
    listed, labelled = _listed(domain, splits)
    described = {
        split: _describe(listing.samples, domain.directory, labelled, identify)
        for split, listing in listed.items()
    }
    out = _place_of(domain, folder, size, described)
    partial = _partial(out)
    shards = {split: _shards(partial, split, listing, size, images, labelled)
              for split, listing in listed.items()}
    record = {
        "domain": domain.name, "set": origin(domain), **meaning_of(domain),
        "size": list(size), "images": images, "layout": listed[splits[0]].labels.layout,
        "splits": {s: of | {"shards": [x.path.name for x in shards[s]]}
                   for s, of in described.items()},
        "sizes": _file_sizes(domain, listed, size),
    }
    if out.exists():
        _refuse_other(out, record, listed)
        _verify({out / name: sums for name, sums in read_record(out)["shards"].items()})
        logger.info("%s: there already, of the same files, and whole", out)
        return out
    _begin(partial, record)
    every = [shard for of_split in shards.values() for shard in of_split]
    _write_shards(every, partial, workers, beam, progress, interrupt)
    sums = _sums(every)
    _write_metadata(partial, shards, features(size, images, labelled), record)
    _write_json(partial / RECORD, {**record, "shards": {p.name: s for p, s in sums.items()}})
    for shard in every:
        shard.note.unlink()
    partial.rename(out)
    logger.info("%s: %d images in %d shards, read again, agree with their checksums", out,
                sum(len(shard.samples) for shard in every), len(every))
    return out


def _file_sizes(
    domain: Domain, listed: Mapping[str, Listing], size: tuple[int, int]
) -> dict[str, list[tuple[int, int] | None]]:
    """The sizes of each split's images; warns where `size` squeezes them."""
    sizes = {split: header_sizes(listing.samples) for split, listing in listed.items()}
    for split, of_split in sizes.items():
        samples = listed[split].samples
        for warning in look_at_sizes(f"{domain.name}/{split}", samples, of_split, size):
            logger.warning(warning)
    return sizes


def _begin(partial: Path, record: dict) -> None:
    """Makes the unfinished folder, or tidies the one that goes on; UserError where it may not."""
    partial.mkdir(parents=True, exist_ok=True)
    if any(partial.glob(f"{NAME}-*.json")):
        if (partial / RECORD).exists():
            _refuse_other(partial, record, {})  # shards of changed files are made anew
    else:  # no shard is whole: nothing is lost, whatever was begun
        for rest in partial.glob(f"{NAME}-*"):
            rest.unlink()
    _write_json(partial / RECORD, record)
    for unfinished in partial.glob("*.tmp"):  # of workers that were killed
        unfinished.unlink()


def _partial(out: Path) -> Path:
    return out.with_name(f"{out.name}.partial")


def _place_of(
    domain: Domain, folder: str | os.PathLike, size: tuple[int, int], described: Mapping[str, dict]
) -> Path:
    """The folder under the first name of the domain that no other set has taken."""
    now = {split: of_split["identities"] for split, of_split in described.items()}
    places = [place(folder, name, size) for name in names(domain.spec or domain.name)]
    free = (out for out in places
            if not any(is_another(each, domain, now) for each in (out, _partial(out))))
    return next(free, places[-1])


def _listed(domain: Domain, splits: Sequence[str]) -> tuple[dict[str, Listing], bool]:
    """The splits, and whether they have labels; UserError where they differ in that."""
    if not splits:
        raise UserError("no split is named; expected some of the domain's, as --splits train,val")
    classes = domain.classes or 19  # any: the files' own ids are kept
    listed = {
        split: list_samples(domain, split, classes=classes, require_labels=False)
        for split in splits
    }
    for split, listing in listed.items():
        _refuse_some_labels(domain, split, listing.samples)
        for note in listing.notes:
            logger.info("%s/%s: %s", domain.name, split, note)
    labelled = {all(x.label for x in listing.samples) for listing in listed.values()}
    if len(labelled) > 1 or len({listing.labels.layout for listing in listed.values()}) > 1:
        raise UserError(
            f"{domain.name}: the splits {', '.join(splits)} differ in layout or in whether they "
            "have labels; prepare them into folders of their own"
        )
    return listed, labelled.pop()


def _refuse_some_labels(domain: Domain, split: str, samples: Sequence[Sample]) -> None:
    """Raises UserError where some images have a label and others, by a fault of the files, none."""
    bare = [sample for sample in samples if not sample.label]
    if 0 < len(bare) < len(samples):
        _, missing = find(domain, split).found.pairs[bare[0].id]
        raise UserError(
            f"{domain.name}/{split}: {len(bare)} of {len(samples)} images have no label, the first "
            f"would be {missing}. Put the labels there, or the images without one into a split of "
            "their own"
        )


def _sums(shards: Sequence[_Shard]) -> dict[Path, dict]:
    """The noted length and checksum of every shard, which was read again and agrees.

    Raises UserError for those that do not; the next start makes them anew.
    """
    sums = {shard.path: json.loads(shard.note.read_text()) for shard in shards}
    try:
        _verify(sums)
    except UserError:
        for shard in shards:
            if not _is_whole(shard.path, sums[shard.path]):
                shard.note.unlink()
        raise
    return sums


def _describe(
    samples: Sequence[Sample], directory: str, labelled: bool, identify: Callable[..., dict]
) -> dict:
    identities = {"images": identify(samples, labels=False)}
    if labelled:
        identities["pairs"] = identify(samples, labels=True)
    return {
        "ids": [s.id for s in samples],
        "images": [os.path.relpath(s.image, directory) for s in samples],
        "labels": [os.path.relpath(s.label, directory) for s in samples] if labelled else None,
        "identities": identities,
    }


def _shards(
    folder: Path, split: str, listing: Listing, size: tuple[int, int], images: str, labelled: bool
) -> list[_Shard]:
    count = -(-len(listing.samples) // SHARD_IMAGES)
    return [
        _Shard(
            folder / f"{NAME}-{split}.array_record-{number:05d}-of-{count:05d}",
            tuple(listing.samples[number * SHARD_IMAGES : (number + 1) * SHARD_IMAGES]),
            listing.labels, tuple(size), images, labelled,
        )
        for number in range(count)
    ]


def _refuse_other(folder: Path, record: dict, listed: Mapping[str, Listing]) -> None:
    """Raises UserError for a folder of other data, and says in which they differ.

    listed: the splits of which what the files hold is compared.
    """
    try:
        there = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        differing = differences(there, record) or [
            _changed_since(listing.samples, folder / RECORD) or f"the files of {split}"
            for split, listing in listed.items()
            if there["splits"][split]["identities"] != record["splits"][split]["identities"]
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        differing = [f"{RECORD} cannot be read"]
    if differing:
        raise UserError(
            f"{folder} holds other data (different: {'; '.join(differing)}). Choose another --out, "
            "or remove it"
        )


def _changed_since(samples: Sequence[Sample], path: Path) -> str | None:
    """The first of their files that was changed after `path` was."""
    written = path.stat().st_mtime_ns
    for file in (file for sample in samples for file in (sample.image, sample.label) if file):
        state = os.stat(file)
        if max(state.st_mtime_ns, state.st_ctime_ns) > written:  # ctime: of one put back, too
            return file
    return None


def _write_shards(
    shards: Sequence[_Shard], folder: Path, workers: int, beam: Beam | None,
    progress: Callable[[int, int], None],
    interrupt: Callable[[], None],
) -> None:
    missing = [s for s in shards if not (s.note.exists() and s.path.exists())
               or _changed_since(s.samples, s.path)]
    needed = sum(len(shard.samples) for shard in missing)
    total = sum(len(shard.samples) for shard in shards)
    if needed < total:
        logger.info("%d of %d images are there from an earlier start", total - needed, total)
    if not missing:
        return
    _check_space(missing, folder)
    for shard in missing:
        shard.note.unlink(missing_ok=True)  # of one that was removed
    shown = 0

    def watch() -> None:
        nonlocal shown
        interrupt()
        done = sum(len(shard.samples) for shard in missing if shard.note.exists())
        if done > shown:
            progress(done, needed)
        shown = done

    if beam:
        spread.on_beam(_write_shard, missing, beam, watch)
    else:
        spread.in_processes(_write_shard, missing, workers, watch)
    if absent := [str(shard.path) for shard in missing if not shard.note.exists()]:
        raise UserError(
            f"the workers have ended and {absent[0]} is not there. They need the data set and "
            "--out at the same paths, on a file system that all of them share"
        )


def _write_shard(shard: _Shard) -> int:
    """The number of its images. Raises UserError, naming the file that cannot be read."""
    core, declared = tfds().core, features(shard.size, shard.images, shard.labelled)
    writer = core.writer.ShardWriter(
        declared,
        core.example_serializer.ExampleSerializer(declared.get_serialized_info()),
        core.writer.ExampleWriter(core.file_adapters.FileFormat.ARRAY_RECORD),
    )
    with written_whole(shard.path) as unfinished:
        count = writer.write(enumerate(_examples(shard)), core.Path(unfinished))
        size, sha256 = unfinished.stat().st_size, checksum(unfinished)
    _write_json(shard.note, {"images": count, "bytes": size, "sha256": sha256})
    return count


def _examples(shard: _Shard) -> Iterator[dict]:
    keep_freed_memory()
    for sample in shard.samples:
        try:
            yield example(sample, shard.labels, shard.size, shard.labelled)
        except tf.errors.OpError:
            if faults := inspect(sample, shard.labels).faults:
                raise refusal(faults, shard.labels) from None
            raise


def _write_json(path: Path, content: dict) -> None:
    write_text(path, json.dumps(content, indent=1))


def _check_space(missing: Sequence[_Shard], folder: Path) -> None:
    """Says what the shards will take, by the first image, and refuses what does not fit."""
    first = missing[0]
    declared = features(first.size, first.images, first.labelled)
    serializer = tfds().core.example_serializer.ExampleSerializer(declared.get_serialized_info())
    one = next(_examples(first))
    each = len(serializer.serialize_example(declared.encode_example(one)))
    needed = each * sum(len(shard.samples) for shard in missing)
    free = shutil.disk_usage(folder).free
    logger.info("%s: needs at most about %.2f GB; %.1f GB are free", folder, needed / 1e9,
                free / 1e9)
    if needed * 1.05 > free:
        raise UserError(
            f"{folder}: about {needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free. "
            "Free some space, choose another --out, or keep images as PNG (--images png)"
        )


def _is_whole(path: Path, noted: dict) -> bool:
    return path.is_file() and checksum(path) == noted["sha256"]


def _verify(shards: dict[Path, dict]) -> None:
    """shards: file → its note. Raises UserError for those that have changed."""
    damaged = [str(path) for path, noted in shards.items() if not _is_whole(path, noted)]
    if damaged:
        raise UserError(
            f"{', '.join(damaged[:3])} does not agree with its checksum ({len(damaged)} of "
            f"{len(shards)} shards). Start the same command again; if the folder is finished, "
            "remove it before"
        )


def _write_metadata(
    folder: Path, shards: dict[str, list[_Shard]], declared: "tfds.features.FeaturesDict",
    record: dict,
) -> None:
    core = tfds().core
    template = core.ShardedFileTemplate(
        data_dir=core.Path(folder), dataset_name=NAME, filetype_suffix="array_record"
    )
    infos = [
        core.SplitInfo(
            name=split,
            shard_lengths=[len(shard.samples) for shard in of_split],
            num_bytes=sum(shard.path.stat().st_size for shard in of_split),
            filename_template=template.replace(split=split),
        )
        for split, of_split in shards.items()
    ]
    tfds().folder_dataset.write_metadata(
        data_dir=folder, features=declared, split_infos=infos, filename_template=template,
        check_data=False, version="1.0.0", disable_shuffling=True,
        description=f"{record['domain']} resized to {record['size'][0]}x{record['size'][1]}; "
        "labels hold the data set's own ids",
    )
