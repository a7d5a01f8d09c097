"""Which part helps how much: every variant, seed and style on the toy domains.

    python scripts/toy_study.py --out runs/toy_study

Each variant is trained on the source and scored on every style, then adapted with MaxSquare to
each style from there. What is already in OUT/results.json is not run again.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax

from configs import toy_dg, toy_uda
from snr_jax.cli import run_command
from snr_jax.report.tables import format_duration
from snr_jax.runs import checkpoints
from snr_jax.runs.study import VARIANTS, draw_data, markdown, run, score
from snr_jax.runs.writer import write_text
from snr_jax.toy.styles import STYLES


def command(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/toy_study"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--styles", nargs="+", default=["dusk", "haze"],
                        choices=[s for s in STYLES if s != "source"])  # fmt: skip
    args = parser.parse_args(argv)
    jax.config.update("jax_compilation_cache_dir", os.path.expanduser("~/.cache/snr_jax"))
    root, record = args.out / "data", args.out / "results.json"
    draw_data(root, args.styles, toy_dg.NUM_TRAIN, toy_dg.NUM_VAL)
    results = json.loads(record.read_text()) if record.exists() else {}
    total = len(args.seeds) * len(VARIANTS) * (1 + len(args.styles))
    start, done = time.monotonic(), 0
    for seed in args.seeds:
        for variant, overrides in VARIANTS.items():
            row = results.setdefault(variant, {}).setdefault(str(seed), {})
            base = args.out / f"{variant.replace(' ', '')}_{seed}"
            jobs = ["", *args.styles]
            for style in jobs:
                done += 1
                column = f"{style} + MaxSquare" if style else "source"
                if column in row:
                    continue
                print(f"\n=== {done}/{total}: {variant}, seed {seed}, {column}; "
                      f"{format_duration(time.monotonic() - start)} so far", flush=True)
                quick = {"eval.num_pictures": 0, "eval_every_steps": 10**6}
                if style:
                    uda = toy_uda.get_config("standard")
                    uda.init_from = str(checkpoints.folder(base, "final"))
                    scores = run(uda, Path(f"{base}_{style}"), root, style, overrides | quick,
                                 seed)
                    row[column] = scores["target"]["miou"]
                else:
                    dg = toy_dg.get_config("standard")
                    scores = run(dg, base, root, args.styles[0], overrides | quick, seed)
                    row["source"] = scores["source"]["miou"]
                    row[args.styles[0]] = scores["target"]["miou"]
                    for other in args.styles[1:]:
                        row[other] = score(dg, base, root, other)["miou"]
                write_text(record, json.dumps(results, indent=1))
    table = markdown(results, args.styles)
    write_text(args.out / "table.md", table + "\n")
    print(f"\n{table}\n\nwritten: {args.out / 'table.md'}, {record}")


if __name__ == "__main__":
    sys.exit(run_command(command))
