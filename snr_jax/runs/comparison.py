"""What the report shows of runs: scores, curves and predictions, read from their folders."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from snr_jax.core.errors import UserError
from snr_jax.runs import network, record
from snr_jax.runs.evaluation import pictures
from snr_jax.runs.experiment import Split, open_splits
from snr_jax.runs.writer import read_scalars


def compare(folders: Mapping[str, Path], num_pictures: int = 6) -> dict:
    """The runs as keyword arguments of `report.html.render`.

    folders: name -> folder of a run, in the order of their story. All are scored on the domains
    that the last of them is scored on. Raises UserError for a run without those scores.
    """
    config = ConfigDict(record.read(folders[list(folders)[-1]])["config"])
    splits = open_splits(config, lambda line: None)
    source, target = splits["source_val"], splits.get("target_val", splits["source_val"])
    roles = {"source": source.name} | ({"target": target.name} if target is not source else {})
    scalars = {name: read_scalars(folder) for name, folder in folders.items()}
    scores = {
        role: {name: _last_scores(folders[name], scalars[name], split) for name in folders}
        for role, split in roles.items()
    }
    last, split = list(roles.items())[-1]
    curves = {"source loss": "train/loss_source", f"{last} mIoU": f"eval/{split}/network/miou"}
    return {
        "summary": {
            name: {f"{role} ({roles[role]})": scores[role][name]["miou"] for role in roles}
            for name in folders
        },
        "results": scores[last],
        "curves": {
            title: {name: series[key] for name, series in scalars.items() if key in series}
            for title, key in curves.items()
        },
        "images": _pictures(folders, target, num_pictures),
        "known": target.labels.classes,
    }


def _last_scores(folder: Path, scalars: Mapping[str, tuple], split: str) -> dict:
    """The scores of the last validation: {"miou", "iou": {class: fraction or NaN}}."""
    prefix = f"eval/{split}/network/"
    last = {
        name.removeprefix(prefix): float(values[-1])
        for name, (_, values) in scalars.items() if name.startswith(prefix)
    }
    if not math.isfinite(last.get("miou", math.nan)):
        raise UserError(f"{folder} has no score on {split}. Go on with that run to its end")
    iou = {name.removeprefix("iou/"): v for name, v in last.items() if name.startswith("iou/")}
    return {"miou": last["miou"], "iou": iou}


def _pictures(folders: Mapping[str, Path], split: Split, count: int) -> list[dict[str, np.ndarray]]:
    """{"input", "label", run: prediction, ...} of some images, spread over the split."""
    chosen = split.samples[:: max(len(split.samples) // max(count, 1), 1)][:count]
    rows = [{} for _ in chosen]
    for name, folder in folders.items():
        model, variables, _ = network.load(str(folder))
        drawn = pictures(model, variables, split._replace(samples=chosen))
        for row, picture in zip(rows, drawn, strict=True):
            row |= {"input": picture["input"], "label": picture["label"],
                    name: picture["prediction"]}
    return rows
