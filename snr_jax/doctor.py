"""Reads the data sets of an experiment, or one split, and reports what is there and what is broken.

    python -m snr_jax.doctor --config configs/gta5_dg.py [--sample 50] [--html found.html]
    python -m snr_jax.doctor --domain gta5 --dir datasets/GTA5 [--split train]

Exits 0 where training would run, 1 with faults, 2 where a split cannot be listed at all or the
configuration cannot be meant.
"""

import json
import os
import sys
from collections.abc import Sequence
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
from snr_jax.data import decode, domains
from snr_jax.data.domains import DOMAINS
from snr_jax.data.faults.survey import Report, describe, statistics, survey, table
from snr_jax.data.samples import Labels, Sample
from snr_jax.report import findings
from snr_jax.report.pictures import colorize

FLAGS = flags.FlagValues()
cli.define_config(FLAGS)
flags.DEFINE_string(
    "domain", None, f"One of {', '.join(DOMAINS)}, or my_domain.yaml.", flag_values=FLAGS
)
flags.DEFINE_string("dir", None, "The data set's own folder.", flag_values=FLAGS)
flags.DEFINE_string("split", "train", "Split to read, of --domain.", flag_values=FLAGS)
flags.DEFINE_enum(
    "num_classes", "19", ["19", "16", "13"], "Classes of the labels, of --domain.",
    flag_values=FLAGS,
)
flags.DEFINE_bool("no_labels", False, "Labels may be missing, of --domain.", flag_values=FLAGS)
flags.DEFINE_integer(
    "sample", 0, "Samples to read, spread over each split; 0: all.", lower_bound=0,
    flag_values=FLAGS,
)
flags.DEFINE_string("html", None, "File for a page with pictures.", flag_values=FLAGS)
flags.DEFINE_string(
    "stats", None, "File for the class statistics; runs/class_stats/NAME.json by default.",
    flag_values=FLAGS,
)

PICTURE_WIDTH = 480
MOST_PICTURES = 50  # findings of a split that are shown; the rest is text


class Place(NamedTuple):
    """A split to read. target: of adaptation, whose labels nobody opens."""

    domain: str
    directory: str
    split: str
    require_labels: bool = True
    target: bool = False


def places(config: ConfigDict) -> dict[str, Place]:
    """Role → place: every split that training with this configuration opens."""

    def place(role: str) -> Place:
        of = arguments.split_arguments(config, role)
        return Place(of["domain"], of["directory"], of["split"], of["require_labels"],
                     target=role == "target")

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
            ids = decode.LABEL_DECODERS[labels.kind](data).numpy()
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


def section(title: str, report: Report) -> findings.Section:
    """A split on the page: its text, its table, its findings and one good pair with pictures."""
    found = [(f"FAULT {f.text}", f.sample) for f in report.faults]
    found += [(f"WARNING {w.text}", w.sample) for w in report.warnings]
    rows = [
        (text, _pictures(sample, report.labels) if i < MOST_PICTURES else {})
        for i, (text, sample) in enumerate(found)
    ]
    if report.good:
        rows.append(("a good sample", _pictures(report.good, report.labels)))
    lines = [f"found: {report.layout}", f"{report.num_read} of {report.num_samples} samples read",
             f"{len(report.faults)} faults, {len(report.warnings)} warnings", *report.notes]
    return findings.Section(title, lines, table(report), rows)


def _chosen(args: flags.FlagValues) -> tuple[str, dict[str, Place], int | Classes]:
    """The name of what is read, the places, and the classes that labels are read as."""
    if args["config"].value is None:
        domain = cli.require(args, "domain", "--domain gta5")
        own = domain.endswith((".yaml", ".yml"))
        directory = domains.get_domain(domain).directory if own and not args.dir else None
        directory = directory or cli.require(args, "dir", "--dir datasets/GTA5")
        place = Place(domain, directory, args.split, not args.no_labels)
        classes = domains.get_domain(domain).classes or int(args.num_classes)
        return Path(domain).stem, {"split": place}, classes
    if args.domain or args.dir:
        raise UserError("--config and --domain exclude each other; give one of them")
    config = cli.require(args, "config", "--config configs/gta5_dg.py")
    checks.check(config)
    return cli.config_name(args), places(config), arguments.create_classes(config)


def command(args: flags.FlagValues) -> int:
    for flag in ("html", "stats"):
        if args[flag].value and Path(args[flag].value).is_dir():
            raise UserError(f"--{flag} {args[flag].value} is a folder; expected a file")
    name, chosen, classes = _chosen(args)
    reports = {}
    for role, place in chosen.items():
        title = f"{role}: {domains.get_domain(place.domain).name}/{place.split}"
        reports[title] = survey(
            place.domain, place.directory, place.split, classes=classes,
            require_labels=place.require_labels, read_labels=not place.target,
            sample=args.sample, progress=make_progress("samples"),
        )
    if args.html:
        write_text(args.html, findings.render(f"Data of {name}", [
            section(title, report) for title, report in reports.items()
        ]))
    kept = {title.partition(": ")[2]: statistics(r) for title, r in reports.items()
            if r.pixels.any()}
    if kept:
        stats = args.stats or os.path.join("runs", "class_stats", f"{name}.json")
        write_text(stats, json.dumps(kept) + "\n")
    for title, report in reports.items():
        print(f"{title}\n{describe(report)}")
    return 1 if any(report.faults for report in reports.values()) else 0


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(argv, FLAGS, __doc__, command)


if __name__ == "__main__":
    sys.exit(main())
