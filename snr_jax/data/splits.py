"""A split of a domain: its samples, and all that is needed to read them."""

from typing import NamedTuple

from snr_jax.core.labels import Classes, class_names
from snr_jax.data.prepared import reading
from snr_jax.data.prepared.reading import Prepared
from snr_jax.data.samples import Domain, Labels, Sample, list_samples


class Split(NamedTuple):
    """The samples of one domain's split, with what the pipeline needs to read them."""

    name: str  # of its scores: the domain, with the side where both domains are of one kind
    domain: Domain
    split: str
    size: tuple[int, int]
    samples: list[Sample]
    labels: Labels
    prepared: Prepared | None = None  # where training reads the samples at `size`; None: the files
    told: str = ""  # a line about what lies where, for people

    def first(self, count: int) -> "Split":
        """The first samples, in the order of the ids; all for 0."""
        return self._replace(samples=self.samples[: count or None])


def open_split(
    domain: Domain, split: str, *, size: tuple[int, int], classes: Classes,
    require_labels: bool = True, max_images: int = 0, prepared_in: str = "",
    scale_range: tuple[float, float] | None = None,
) -> Split:
    """One split, named after its domain.

    max_images: as `Split.first`. prepared_in: a folder of prepared data, or "". Raises UserError as
    `list_samples` and `open_prepared`.
    """
    found = prepared_in and reading.open_prepared(
        prepared_in, domain, split, size=size, classes=classes, scale_range=scale_range,
        require_labels=require_labels,
    )
    if found:
        samples, labels, prepared = found
        notes, where = [], f", prepared in {prepared.folder}"
    else:
        samples, labels, notes = list_samples(
            domain, split, classes=classes, require_labels=require_labels
        )
        prepared, where = None, f" in {domain.directory}"
    foreign = set(class_names(domain.classes or ())) - set(class_names(classes))
    if labels.parts and require_labels:
        notes = [*notes, f"scored on its own {len(labels.classes)} classes, of which the network's "
                 f"{len(labels.parts)} are parts"]
    elif foreign and require_labels:
        shown = ", ".join(name for name in class_names(domain.classes) if name in foreign)
        notes = [*notes, f"its classes {shown} are none of the network's: their pixels are ignored"]
    told = "; ".join([f"{domain.name}/{split}: {len(samples)} images{where}", *notes])
    return Split(
        domain.name, domain, split, size, samples, labels, prepared, told
    ).first(max_images)
