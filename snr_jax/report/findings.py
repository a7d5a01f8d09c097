"""The page of what was found in data sets: tables, findings and their pictures inside."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from snr_jax.report.html import data_uri


class Section(NamedTuple):
    """One split. rows: a text with its pictures, caption → uint8 [H,W,3]."""

    title: str
    lines: Sequence[str]
    table: Sequence[Sequence[str]]
    rows: Sequence[tuple[str, Mapping[str, np.ndarray]]]


def render(title: str, sections: Sequence[Section]) -> str:
    """The page, which needs no other file."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["data_uri"] = data_uri
    return environment.get_template("findings.html.j2").render(title=title, sections=sections)
