"""Scores of runs beside the published ones of the same setting: what is compared, and what not."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

NETWORK = "DeepLab-v2, ResNet-101"  # of most of the published numbers, and of our recipes
UNSTATED = "not stated"  # a protocol or network, where the number was read
APART = "Other networks, or not stated: a difference from these is not one of methods alone."


class Setting(NamedTuple):
    """What two scores must share to be compared; classes: None where the source does not say."""

    source: str
    target: str
    task: str  # generalisation, or adaptation: training saw the target's images
    classes: int | None

    def __str__(self) -> str:
        task = f"{self.source} → {self.target}, {self.task}"
        return task if self.classes is None else f"{task}, {self.classes} classes"


class Row(NamedTuple):
    """The scores of one method: of runs that differ in the seed alone, or a published one."""

    setting: Setting
    method: str
    mious: tuple[float, ...]  # fractions, one per seed
    protocol: str  # network or full, with +flip where mirrored images are averaged in
    network: str
    scored: str  # on which images, as far as known
    reference: str = ""  # where it is published; "" for runs
    note: str = ""
    text: str = ""  # the score as it was published

    @property
    def score(self) -> str:
        """Scores in %: as published; of runs the mean, with the sample deviation over the seeds."""
        if self.text:
            return self.text
        mean = f"{100 * statistics.fmean(self.mious):.1f}"
        if len(self.mious) == 1:
            return mean
        return f"{mean} ± {100 * statistics.stdev(self.mious):.1f}"


class Block(NamedTuple):
    """Rows of one setting, runs first, and what a reader must know before comparing them.

    others: published rows of networks that no run has; notes: what must be known of these.
    """

    title: str
    rows: list[Row]
    warnings: list[str]
    others: list[Row]
    notes: list[str]


HEADER = ("method", "mIoU, %", "protocol", "network", "scored on", "reference")


def published() -> list[Row]:
    """The numbers of published.json, in its order."""
    path = Path(__file__).with_name("published.json")
    return [_row(entry) for entry in json.loads(path.read_text(encoding="utf-8"))]


def _row(entry: Mapping) -> Row:
    setting = Setting(*(entry[key] for key in Setting._fields))
    return Row(
        setting, entry["method"], (entry["miou"] / 100,), entry["protocol"], entry["network"],
        "", entry["reference"], entry["note"], str(entry["miou"]),
    )  # fmt: skip


def beside(runs: Sequence[Row], known: Sequence[Row]) -> list[Block]:
    """A block per setting of the runs, with the known rows of that setting under them.

    Rows of the runs' networks stand beside them, those of other networks apart. A known row whose
    number of classes is not known stands in every block that it may belong to.
    """
    blocks = []
    for setting in dict.fromkeys(run.setting for run in runs):
        ours = [run for run in runs if run.setting == setting]
        theirs = [
            row for row in known
            if row.setting[:3] == setting[:3] and row.setting.classes in (setting.classes, None)
        ]
        networks = {run.network for run in ours}
        same = [row for row in theirs if row.network in networks]
        others = [row for row in theirs if row.network not in networks]
        kind = "network" if others else "setting"
        told = [] if same else [f"No published number of this {kind} is known here."]
        told += scored_unlike([*ours, *same])
        if len(networks) > 1:
            told.append("The networks differ: a difference of scores is not one of methods alone.")
        told += _of_sources(same)
        notes = [APART, *_of_sources(others)] if others else []
        blocks.append(Block(str(setting), [*ours, *same], told, others, notes))
    return blocks


def _of_sources(theirs: Sequence[Row]) -> list[str]:
    """Where published numbers come from, and their notes, each told once."""
    told = []
    if any("third party" in row.reference for row in theirs):
        told.append(
            "The numbers of SNR come through a third party's summary of the paper, not from the "
            "paper itself."
        )
    notes: dict[str, list[str]] = {}
    for row in theirs:
        if row.note:
            notes.setdefault(row.note, []).append(f"{row.method} {row.score}")
    return told + [f"{', '.join(rows)}: {note}." for note, rows in notes.items()]


def scored_unlike(rows: Sequence[Row]) -> list[str]:
    """Sentences for rows whose scores cannot be compared as they are; [] if they can."""
    told = []
    protocols = list(dict.fromkeys(row.protocol for row in rows if row.protocol != UNSTATED))
    if len(protocols) > 1:
        told.append(
            f"The protocols differ ({', '.join(protocols)}): only scores of the same protocol "
            "can be compared."
        )
    if any(row.protocol == UNSTATED for row in rows):
        told.append("Where a protocol is not stated, the score may be of another than the runs'.")
    if len({row.scored for row in rows if not row.reference}) > 1:
        told.append("The runs are scored on different images or sizes.")
    return told


def cells(row: Row) -> list[str]:
    """The columns of HEADER."""
    return [row.method, row.score, row.protocol, row.network, row.scored or "-",
            row.reference or "this report"]
