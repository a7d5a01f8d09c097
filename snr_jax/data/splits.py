"""A split of a domain: its samples, and all that is needed to read them."""

from collections.abc import Callable
from typing import NamedTuple

from snr_jax.core.labels import Classes
from snr_jax.data import domains
from snr_jax.data.prepared import reading
from snr_jax.data.prepared.reading import Prepared
from snr_jax.data.samples import Labels, Sample

Log = Callable[[str], None]


class Split(NamedTuple):
    """The samples of one domain's split, with what the pipeline needs to read them."""

    name: str  # of its scores: the domain, with the role where both domains are of one kind
    domain: str
    split: str
    size: tuple[int, int]
    samples: list[Sample]
    labels: Labels
    prepared: Prepared | None = None  # where training reads the samples at `size`; None: the files

    def first(self, count: int) -> "Split":
        """The first samples, in the order of the ids; all for 0."""
        return self._replace(samples=self.samples[: count or None])


def open_split(
    *, domain: str, directory: str, split: str, size: tuple[int, int], classes: Classes,
    require_labels: bool, max_images: int, log: Log, prepared_in: str = "",
    scale_range: tuple[float, float] | None = None,
) -> Split:
    """One split, named after its domain; log gets a line about it. prepared_in: a folder or ""."""
    known = domains.get_domain(domain)
    if prepared_in and (found := reading.open_prepared(
        prepared_in, known, directory, split, size=size, classes=classes, scale_range=scale_range
    )):
        samples, labels, where = found
        log(f"{labels.domain}/{split}: {len(samples)} images, prepared in {where.folder}")
        return Split(labels.domain, domain, split, size, samples, labels, where).first(max_images)
    samples, labels, notes = domains.list_samples(
        domain, directory, split, classes=classes, require_labels=require_labels
    )
    log(f"{labels.domain}/{split}: {len(samples)} images in {directory}"
        + "".join(f"; {note}" for note in notes))
    return Split(labels.domain, domain, split, size, samples, labels).first(max_images)
