"""Scores of one network on several domains, as papers on generalisation report them."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from snr_jax.core import metrics
from snr_jax.core.errors import UserError
from snr_jax.core.labels import Classes
from snr_jax.data import domains
from snr_jax.data.domains import CONDITIONS
from snr_jax.runs.experiment import Log, Split, open_split


class Rows(NamedTuple):
    """What is scored, by the name of its row, in the order of the table."""

    splits: dict[str, Split]
    parts: dict[str, tuple[str, ...]]  # row → the rows whose counts it is the sum of
    in_mean: tuple[str, ...]

    @property
    def read(self) -> dict[str, Split]:
        """The rows without parts: their images are read, each once."""
        return {name: split for name, split in self.splits.items() if name not in self.parts}


def open_rows(
    config: ConfigDict, entries: Sequence[str], *, split: str, size: tuple[int, int] | None,
    max_images: int, classes: Classes, log: Log,
) -> Rows:
    """A row for each entry: DOMAIN, or DOMAIN=DIR for another folder below data.root than its own.

    ACDC has a row for each condition besides. size: None for each domain its own. Raises UserError
    as `open_split`, and for an entry that is named twice.
    """

    def opened(entry: str) -> Split:
        name, _, folder = entry.partition("=")
        domain = domains.get_domain(name)
        found = open_split(
            domain=name, split=split, size=size or domain.train_size, classes=classes,
            directory=domains.directory(name, config.data.root, folder or domain.directory),
            require_labels=True, max_images=max_images, log=log,
        )
        return found._replace(name=f"{found.name}={folder}" if folder else found.name)

    splits: dict[str, Split] = {}
    parts: dict[str, tuple[str, ...]] = {}
    in_mean = []
    for entry in entries:
        name, equals, folder = entry.partition("=")
        if name == "acdc":
            found = [opened(f"acdc_{c}{equals}{folder}") for c in CONDITIONS]
            samples = [sample for part in found for sample in part.samples]
            whole = found[0]._replace(name=entry, domain=name, samples=samples)
            parts[entry] = tuple(part.name for part in found)
            splits |= {part.name: part for part in found}
        else:
            whole = opened(entry)
        if whole.name in in_mean:
            raise UserError(f"--domains names {whole.name} twice; leave one out")
        splits[whole.name] = whole
        in_mean.append(whole.name)
    return Rows(splits, parts, tuple(in_mean))


def with_sums(counts: Mapping[str, np.ndarray], rows: Rows) -> dict[str, dict]:
    """`metrics.report` of every row. counts: confusion matrices of the rows without parts."""
    return {
        name: metrics.report(
            np.sum([counts[part] for part in rows.parts.get(name, (name,))], axis=0),
            split.labels.classes,
        )
        for name, split in rows.splits.items()
    }


def means(results: Mapping[str, Mapping[str, Mapping]], in_mean: Sequence[str]) -> dict[str, dict]:
    """Of {row: {column: scores}} the mean of each mIoU over the domains, by column."""
    columns = results[in_mean[0]]
    return {
        column: {
            key: float(np.mean([results[name][column][key] for name in in_mean]))
            for key in ("miou", "miou_13") if key in columns[column]
        }
        for column in columns
    }
