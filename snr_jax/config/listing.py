"""The table of keys, for a terminal and as docs/configuration.md."""

import textwrap
from typing import Any

from ml_collections import ConfigDict

from snr_jax.config import keys
from snr_jax.config.keys import SECTIONS, Key

INTRODUCTION = """\
# Configuration

Any key can be set on the command line, beside the file of an experiment:

    python -m snr_jax.main --config configs/gta5_dg.py --config.batch_size=2 \\
        '--config.data.crop=(512,512)'

The defaults are those of `configs/gta5_dg.py`: GTA5 → Cityscapes, generalisation, as published.
`--config FILE --help_config` lists the keys with the values of an experiment.

`make docs` writes this page from [snr_jax/config/keys.py](../snr_jax/config/keys.py).
"""


def for_terminal(config: ConfigDict | None) -> str:
    """Every key with the value that it has in the configuration; its default, if there is none."""
    values = keys.values(config or keys.create())
    lines = []
    for title, rows in SECTIONS.items():
        lines += ["", title]
        for key, row in rows.items():
            lines.append(f"  --config.{key}={_spelled(values[key])}")
            about = f"{row.sentence} {_legal(row)}."
            lines += textwrap.wrap(about, 80, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines[1:])


def page() -> str:
    """Markdown: a table for each section."""
    parts = [INTRODUCTION]
    for title, rows in SECTIONS.items():
        parts.append(f"\n## {title}\n\n| key | default | may be | |\n|---|---|---|---|\n")
        for key, row in rows.items():
            cells = f"`{key}`", f"`{_spelled(row.default)}`", _legal(row), row.sentence
            parts.append(f"| {' | '.join(cells)} |\n")
    return "".join(parts)


def _spelled(value: Any) -> str:
    """The value as a command line has it."""
    return str(value).replace(", ", ",") or '""'


def _legal(row: Key) -> str:
    words = row.legal.words
    return words[0].upper() + words[1:]
