"""Reads the data sets of an experiment, or one split, and surveys what is there and what is broken.

    python -m snr_jax.doctor --config configs/gta5_dg.py [--sample 50] [--html found.html]
    python -m snr_jax.doctor --domain gta5 --dir datasets/GTA5 [--split train]

Exits 0 where training would run, 1 with faults, 2 where a split cannot be listed at all or the
configuration cannot be meant.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags
from ml_collections import ConfigDict
from PIL import Image

# A door like snr_jax/main.py: it may import runs/. The rest of data/ does not.
from snr_jax import cli
from snr_jax.config import arguments, checks
from snr_jax.core.errors import UserError
from snr_jax.core.files import write_text
from snr_jax.core.labels import Classes
from snr_jax.core.progress import make_progress
from snr_jax.data import decode
from snr_jax.data.domains import DOMAINS, create_domain, is_own, names, origin
from snr_jax.data.faults.survey import Survey, describe, statistics, survey, table
from snr_jax.data.samples import Domain, Labels, Sample
from snr_jax.report import findings
from snr_jax.report.pictures import colorize

FLAGS = flags.FlagValues()
cli.define_config(FLAGS)
cli.define_path(
    "domain", None, f"Read this, not --config: {', '.join(DOMAINS)}, or my_domain.yaml.",
    flag_values=FLAGS,
)
cli.define_path(
    "dir", None, "The folder of --domain; by default an own one's files lie beside it.",
    flag_values=FLAGS,
)
flags.DEFINE_string("split", "train", "The split of --domain.", flag_values=FLAGS)
flags.DEFINE_enum(
    "num_classes", "19", ["19", "16", "13"], "How many classes its labels are read as.",
    flag_values=FLAGS,
)
flags.DEFINE_bool("no_labels", False, "Its labels may be missing.", flag_values=FLAGS)
flags.DEFINE_integer(
    "sample", 0, "Samples to read, spread over each split; 0: all.", lower_bound=0,
    flag_values=FLAGS,
)
cli.define_path("html", None, "File for a page with pictures of the faults.", flag_values=FLAGS)
cli.define_path(
    "stats", None, "File for the class statistics; by default runs/class_stats/NAME.json.",
    flag_values=FLAGS,
)

PICTURE_WIDTH = 480
MOST_PICTURES = 50  # findings of a split that are shown; the rest is text


class Place(NamedTuple):
    """A split to read. name: its set's, as in scores. source, target: of training; the labels of a
    target stay unread."""

    name: str
    domain: Domain
    split: str
    require_labels: bool = True
    target: bool = False
    source: bool = False
    size: tuple[int, int] | None = None  # at which its images are seen


def places(config: ConfigDict, sides: Mapping[str, Domain]) -> dict[str, Place]:
    """Role → place: every split that training with this configuration opens."""

    def place(role: str) -> Place:
        side, of = role.partition("_")[0], arguments.split_arguments(config, role)
        return Place(arguments.split_name(config, side), sides[side], of["split"],
                     of["require_labels"], target=role == "target", source=role == "source",
                     size=of["size"])

    roles = ["source", *(["target"] if config.loss.target else []), "source_val",
             *(["target_val"] if config.target.val_split else [])]
    return {role: place(role) for role in roles}


def _picture(path: str, labels: Labels | None) -> np.ndarray | None:
    """uint8 [h,w,3] of a file, small, a label in the colours of its classes; None if unreadable."""
    try:
        data = decode.tf.constant(Path(path).read_bytes())
        if labels is None:
            pixels = decode.decode_image(data).numpy()
        else:
            ids = decode.decode_label(data, labels).numpy()
            pixels = colorize(labels.lookup[ids], labels.classes)
    except Exception:  # the finding's text says what is broken
        return None
    picture = Image.fromarray(pixels)
    height = max(1, round(picture.height * PICTURE_WIDTH / picture.width))
    kind = Image.Resampling.BOX if labels is None else Image.Resampling.NEAREST
    return np.asarray(picture.resize((PICTURE_WIDTH, height), kind))


def _pictures(sample: Sample | None, labels: Labels) -> dict[str, np.ndarray]:
    if sample is None:
        return {}
    files = {sample.image: None} | ({sample.label: labels} if sample.label else {})
    found = {path: _picture(path, of) for path, of in files.items()}
    return {path: picture for path, picture in found.items() if picture is not None}


def section(title: str, found: Survey) -> findings.Section:
    """A split on the page: its text, its table, its findings and one good pair with pictures."""
    texts = [(f"FAULT {f.text}", f.sample) for f in found.faults]
    texts += [(f"WARNING {w.text}", w.sample) for w in found.warnings]
    rows = [
        (text, _pictures(sample, found.labels) if i < MOST_PICTURES else {})
        for i, (text, sample) in enumerate(texts)
    ]
    if found.good:
        rows.append(("a good sample", _pictures(found.good, found.labels)))
    lines = [f"found: {found.layout}", f"{found.num_read} of {found.num_samples} samples read",
             f"{len(found.faults)} faults, {len(found.warnings)} warnings", *found.notes]
    return findings.Section(title, lines, table(found), rows)


def _chosen(args: flags.FlagValues) -> tuple[str, dict[str, Place], int | Classes]:
    """The name of what is read, the places, and the classes that labels are read as."""
    if args["config"].value is None:
        spec = cli.require(args, "domain", "--domain gta5")
        domain = create_domain(spec, args.dir)
        if not is_own(spec):  # which lies beside its file
            cli.require(args, "dir", "--dir datasets/GTA5")
        source = args.split == "train" and not args.no_labels
        place = Place(domain.name, domain, args.split, not args.no_labels, source=source)
        return domain.name, {"split": place}, domain.classes or int(args.num_classes)
    if args.domain or args.dir:
        raise UserError("--config and --domain exclude each other; give one of them")
    config = cli.require(args, "config", "--config configs/gta5_dg.py")
    checks.check(config)
    sides = arguments.create_domains(config)
    classes = arguments.create_classes(config.num_classes, sides["source"])
    return cli.config_name(args), places(config, sides), classes


def _stats_file(args: flags.FlagValues, name: str, kept: Mapping[str, Mapping]) -> str:
    """The file for the statistics; that of another own set under the same name is left alone."""
    here = {of_split["set"] for of_split in kept.values()}

    def is_other(path: str) -> bool:
        try:
            return {of["set"] for of in json.loads(Path(path).read_text()).values()} != here
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False  # not there, or of before

    alone = args["config"].value is None and is_own(args.domain)
    called = names(args.domain) if alone else [name]
    files = [os.path.join("runs", "class_stats", f"{other}.json") for other in called]
    return next((path for path in files if not is_other(path)), files[-1])


def command(args: flags.FlagValues) -> int:
    for flag in ("html", "stats"):
        if args[flag].value and Path(args[flag].value).is_dir():
            raise UserError(f"--{flag} {args[flag].value} is a folder; expected a file")
    name, chosen, classes = _chosen(args)
    decode.import_tensorflow()  # no file is to blame where it is absent
    surveys, kept = {}, {}
    for role, place in chosen.items():
        title = f"{role}: {place.name}/{place.split}"
        surveys[title] = found = survey(
            place.domain, place.split, classes=classes,
            require_labels=place.require_labels, read_labels=not place.target,
            training=place.source, size=place.size,
            sample=args.sample, progress=make_progress("samples"),
        )
        if found.pixels.any():
            kept[f"{place.name}/{place.split}"] = statistics(found) | {"set": origin(place.domain)}
    if args.html:
        write_text(args.html, findings.render(f"Data of {name}", [
            section(title, one) for title, one in surveys.items()
        ]))
    if kept:
        write_text(args.stats or _stats_file(args, name, kept), json.dumps(kept) + "\n")
    for title, one in surveys.items():
        print(f"{title}\n{describe(one)}")
    return 1 if any(one.faults for one in surveys.values()) else 0


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(argv, FLAGS, __doc__, command)


if __name__ == "__main__":
    sys.exit(main())
