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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import numpy as np

from configs import toy_dg, toy_uda
from snr_jax.cli import run_command
from snr_jax.core.parallel import create_parallel
from snr_jax.data import domains
from snr_jax.report.tables import format_duration, percent
from snr_jax.runs import checkpoints, network
from snr_jax.runs.evaluation import evaluate
from snr_jax.runs.train import train
from snr_jax.runs.writer import write_text
from snr_jax.toy import writer as toy_domains
from snr_jax.toy.styles import STYLES

VARIANTS = {
    "plain": {"model.norm_restitution": "none"},
    "IN": {"model.norm_restitution": "in"},
    "SNR": {"model.norm_restitution": "snr", "loss.restitution_weight": 0.0},
    "SNR + restitution loss": {"model.norm_restitution": "snr", "loss.restitution_weight": 0.01},
}
DATA_SEED = 1


def draw_data(root: Path, styles: Sequence[str], num_train: int, num_val: int) -> None:
    """ROOT/GTA5 and ROOT/STYLE/Cityscapes for every style; what is there stays."""
    common = {"num_train": num_train, "num_val": num_val, "seed": DATA_SEED,
              "height": 128, "width": 256, "workers": 2}
    progress = _progress(f"drawing {root}")
    toy_domains.write_gta5(root / "GTA5", **common, progress=progress)
    for style in styles:
        directory = root / style / "Cityscapes"
        toy_domains.write_cityscapes(directory, style=style, **common, progress=progress)


def _progress(label: str) -> Callable[[int, int], None]:
    start = time.monotonic()

    def show(done: int, total: int) -> None:
        if done % 100 == 0 or done == total:
            print(f"{label}: {done}/{total}, {time.monotonic() - start:.0f} s", flush=True)

    return show


def run(config, workdir: Path, root: Path, style: str, overrides: Mapping, seed: int = 0) -> dict:
    """Trains (or takes up again) one network: {"source": metrics, "target": metrics}."""
    config.data.root = str(root)
    config.target.dir = f"{style}/Cityscapes"
    config.seed = seed
    config.update_from_flattened_dict(overrides)
    results = train(config, str(workdir))
    return {"source": results["gta5"], "target": results["cityscapes"]}


def score(config, workdir: Path, root: Path, style: str) -> dict:
    """Metrics of a trained network on another style's validation images."""
    model, variables, _ = network.load(str(workdir))
    directory = root / style / "Cityscapes"
    samples, _ = domains.list_samples("cityscapes", str(directory), "val")
    parallel = create_parallel()
    return evaluate(
        model, parallel.replicate(variables), samples, domain="cityscapes",
        size=config.target.size, parallel=parallel, batch_size=config.eval.batch_size,
    )


def markdown(results: Mapping[str, Mapping], styles: Sequence[str]) -> str:
    """Mean and deviation over the seeds, in % mIoU, per variant and style."""
    columns = ["source", *(f"{s}{how}" for s in styles for how in ("", " + MaxSquare"))]
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for variant in VARIANTS:
        cells = []
        for column in columns:
            values = [r[column] for r in results.get(variant, {}).values() if column in r]
            mean = percent(np.mean(values) if values else None)
            spread = f" ± {percent(np.std(values, ddof=1))}" if len(values) > 1 else ""
            cells.append(mean + spread)
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


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
