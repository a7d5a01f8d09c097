"""The page of any runs: their scores beside the published ones, bars, curves and predictions.

    python -m snr_jax.compare runs/gta5_dg runs/gta2city_uda --out report.html

Each RUN is the folder of a run (its --workdir); the order is that of the page. The runs share
source, target and classes. Those that differ in the seed alone are one row, with the mean and the
sample deviation. Scores are those of the last validation. The data must lie where the last run
found them.
"""

# A door like snr_jax/main.py: it may import runs/. The rest of report/ does not.

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from snr_jax import cli
from snr_jax.core.errors import UserError
from snr_jax.core.files import write_text
from snr_jax.data.decode import import_tensorflow
from snr_jax.report import style, tables
from snr_jax.report.html import render
from snr_jax.report.published import HEADER, beside, cells, published, scored_unlike
from snr_jax.studies.comparison import compare, group_by_seed, rows, setting, unlike
from snr_jax.studies.style_gap import style_gaps
from snr_jax.workdir import record

FLAGS = flags.FlagValues()
cli.define_path("out", "report.html", "File for the page.", flag_values=FLAGS)
flags.DEFINE_string("title", "", "Its title; by default source and target.", flag_values=FLAGS)
flags.DEFINE_bool(
    "features", False, "Also the style gap of source and target as each network sees it.",
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "pictures", 6, "Images whose predictions are shown; 0: none.", lower_bound=0, flag_values=FLAGS
)


def command(args: flags.FlagValues, *runs: str) -> None:
    out = Path(args.out)
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; expected a file, as {out / 'report.html'}")
    import_tensorflow()
    folders = group_by_seed([Path(run) for run in runs])
    title = _common_setting([folder for group in folders.values() for folder in group])
    scored = rows(folders)
    blocks = beside(scored, published())
    found = compare(folders, args.pictures)
    gaps = style_gaps(folders) if args.features else {}
    page = render(
        title=args.title or title,
        lead=" ".join([
            "Scores of the last validation. Of several seeds: the mean, with the sample deviation.",
            *scored_unlike(scored),
        ]),
        beside=blocks,
        notes={
            "command": [_written(args, runs)],
            "runs": [f"{name}: {', '.join(map(str, group))}" for name, group in folders.items()],
        },
        gaps=gaps,
        **found,
    )
    write_text(out, page)
    for block in blocks:
        print(f"\n{block.title}")
        print("\n".join([*tables.aligned([HEADER, *map(cells, block.rows)]), *block.warnings]))
        if block.others:
            others = tables.aligned([HEADER, *map(cells, block.others)])
            print("\n".join(["", *others, *block.notes]))
    print(f"\non {list(next(iter(found['summary'].values())))[-1]}, by class")
    print(tables.class_table(found["results"]))
    for name, gap in gaps.items():
        print(f"\n{name}: {style.sentence(gap)}")
    if gaps:
        rows_of_gaps = [row for name, gap in gaps.items() for row in style.cells(name, gap)]
        print("\n".join(tables.aligned([style.HEADER, *rows_of_gaps])))
    print(f"written: {out}")


def _written(args: flags.FlagValues, runs: Sequence[str]) -> str:
    """The command as it was given."""
    given = [args[name].serialize() for name in args if args[name].present]
    return shlex.join(["python", "-m", "snr_jax.compare", *runs, *given])


def _common_setting(folders: Sequence[Path]) -> str:
    """Source and target of all runs. Raises UserError if they differ, by name or in the data."""
    records = {folder: record.read(folder) for folder in folders}
    first = setting(records[folders[0]])
    for folder, there in records.items():
        other = setting(there)
        if other._replace(task=first.task) != first:
            raise UserError(
                f"{folders[0]} is {first}, {folder} is {other}; their scores are of different "
                "things. Make a report for each"
            )
        if words := unlike(records[folders[0]], there):
            raise UserError(
                f"{folders[0]} and {folder} are of other data under one name ({'; '.join(words)}); "
                "their scores are of different things. Make a report for each"
            )
    return f"{first.source} → {first.target}"


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(argv, FLAGS, __doc__, command, arguments=("RUN...",))


if __name__ == "__main__":
    sys.exit(main())
