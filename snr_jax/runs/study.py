"""The study on the toy domains: its variants, one training or scoring of it, and its table."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from snr_jax.core.parallel import create_parallel
from snr_jax.data import domains
from snr_jax.report.tables import percent
from snr_jax.runs import network
from snr_jax.runs.evaluation import evaluate
from snr_jax.runs.train import train
from snr_jax.toy import writer as toy_domains

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


def run(
    config: ConfigDict, workdir: Path, root: Path, style: str, overrides: Mapping, seed: int = 0
) -> dict:
    """Trains (or takes up again) one network: {"source": metrics, "target": metrics}."""
    config.data.root = str(root)
    config.target.dir = f"{style}/Cityscapes"
    config.seed = seed
    config.update_from_flattened_dict(overrides)
    results = train(config, str(workdir))
    return {"source": results["gta5"], "target": results["cityscapes"]}


def score(config: ConfigDict, workdir: Path, root: Path, style: str) -> dict:
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
