"""A network trained on one domain fails on another; SNR and MaxSquare narrow the gap.

    python scripts/demo.py --out runs/demo

Draws two toy domains, trains the plain network and SNR on the source, adapts SNR to the unlabelled
target with MaxSquare, and writes OUT/report.html.
"""

import argparse
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax

from configs import toy_dg, toy_uda
from snr_jax.cli import run_command
from snr_jax.data import domains
from snr_jax.report import tables
from snr_jax.report.html import render
from snr_jax.runs import checkpoints, network
from snr_jax.runs.evaluation import pictures
from snr_jax.runs.study import VARIANTS, draw_data, run
from snr_jax.runs.writer import read_scalars, write_text

NAMES = {"plain": "plain", "SNR": "snr", "SNR-MaxSquare": "snr_maxsquare"}  # run → its folder
NUM_PICTURES = 6


def command(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument("--style", default="dusk", help="of the target domain")
    args = parser.parse_args(argv)
    jax.config.update("jax_compilation_cache_dir", os.path.expanduser("~/.cache/snr_jax"))
    start = time.monotonic()
    out, root, style = args.out, args.out / "data", args.style
    draw_data(root, [style], toy_dg.NUM_TRAIN, toy_dg.NUM_VAL)
    results = {}
    for number, (name, folder) in enumerate(NAMES.items(), start=1):
        print(f"\n=== {number}/3 {name}, {tables.format_duration(time.monotonic() - start)} so far",
              flush=True)
        config, variant = toy_dg.get_config("standard"), name
        if name == "SNR-MaxSquare":
            config, variant = toy_uda.get_config("standard"), "SNR"
            config.init_from = str(checkpoints.folder(out / "snr", "final"))
        results[name] = run(config, out / folder, root, style, VARIANTS[variant])
    seconds = time.monotonic() - start
    _write_report(out, root, style, results, seconds)
    print("\nmIoU            " + "".join(f"{name:>15}" for name in results))
    for role in ("source", "target"):
        cells = (tables.percent(r[role]["miou"]) for r in results.values())
        print(f"{role:<16}" + "".join(f"{cell:>15}" for cell in cells))
    print("\non the target, by class\n" + tables.class_table(
        {name: r["target"] for name, r in results.items()}))
    print(f"\nopen {out / 'report.html'} ({tables.format_duration(seconds)})")


def _write_report(out: Path, root: Path, style: str, results: dict, seconds: float) -> None:
    config = toy_dg.get_config("standard")
    samples, _ = domains.list_samples("cityscapes", str(root / style / "Cityscapes"), "val")
    chosen = samples[:: max(len(samples) // NUM_PICTURES, 1)][:NUM_PICTURES]
    rows = [{} for _ in chosen]
    for name, folder in NAMES.items():
        model, variables, _ = network.load(str(out / folder))
        drawn = pictures(model, variables, chosen, domain="cityscapes", size=config.target.size)
        for row, picture in zip(rows, drawn, strict=True):
            row |= {"input": picture["input"], "label": picture["label"],
                    name: picture["prediction"]}
    scalars = {name: read_scalars(out / folder) for name, folder in NAMES.items()}
    curves = {
        title: {name: series[key] for name, series in scalars.items() if key in series}
        for title, key in {
            "source loss": "train/loss_source",
            "target mIoU": "eval/cityscapes/network/miou",
        }.items()
    }
    write_text(out / "report.html", render(
        title="From one domain to another",
        lead=f"A small network learns to segment drawn streets; the target shows other streets "
        f"at {style}. SNR sees no target image, MaxSquare sees them without labels.",
        summary={
            name: {"source": r["source"]["miou"], f"target ({style})": r["target"]["miou"]}
            for name, r in results.items()
        },
        results={name: r["target"] for name, r in results.items()},
        curves=curves,
        images=rows,
        notes={
            "commands": ["make demo"],
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, "
            f"{jax.devices()[0].device_kind}, jax {jax.__version__}",
            "time": tables.format_duration(seconds),
            "data": f"{toy_dg.NUM_TRAIN} training and {toy_dg.NUM_VAL} validation images per "
            "domain, drawn by snr_jax/toy/writer.py, 96x192 for the network",
        },
    ))


if __name__ == "__main__":
    sys.exit(run_command(command))
