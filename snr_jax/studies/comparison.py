"""What the report shows of runs: scores, curves and predictions, read from their folders."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from snr_jax.config import arguments
from snr_jax.config.backbones import kind_of
from snr_jax.core.errors import UserError
from snr_jax.data.identity import exchanged
from snr_jax.data.splits import Split
from snr_jax.report.chart import Curve
from snr_jax.report.published import NETWORK, Row, Setting
from snr_jax.runs import network, validation
from snr_jax.runs.evaluation import pictures
from snr_jax.runs.experiment import open_splits
from snr_jax.workdir import checkpoints, record
from snr_jax.workdir.metrics import read_scalars

Folders = Mapping[str, Sequence[Path]]  # name → the runs under it, which differ in the seed alone


def group_by_seed(folders: Sequence[Path]) -> dict[str, list[Path]]:
    """The runs by name, those that differ in the seed alone together, in the order given.

    A run twice, or two runs of one seed, are no second sample. Raises UserError for a folder that
    is given twice, and for one that holds no run.
    """
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError("a run is named twice; name each once")
    for folder in folders:
        if not (folder / record.RUN_FILE).is_file():
            raise UserError(f"{folder} holds no {record.RUN_FILE}; expected the folder of a run, "
                            "that is its --workdir")
    groups: list[list[Path]] = []
    for folder in folders:
        same = [group for group in groups if _can_join(group, folder)]
        if same:
            same[0].append(folder)
        else:
            groups.append([folder])
    short = [group[0].resolve().name for group in groups]
    return {
        (name if short.count(name) == 1 else str(group[0]))
        + (f" ({len(group)} seeds)" if len(group) > 1 else ""): group
        for name, group in zip(short, groups, strict=True)
    }


def _can_join(group: Sequence[Path], folder: Path) -> bool:
    seeds = [record.read(one)["config"]["seed"] for one in (*group, folder)]
    return len(set(seeds)) == len(seeds) and differ_in_seed_alone(group[0], folder)


def differ_in_seed_alone(first: Path, second: Path) -> bool:
    """Whether two runs are of one configuration and data but for the seed.

    The same holds of the runs that they were begun from, which usually have a seed each too.
    """
    there, here = record.read(first), record.read(second)
    differing = {line.partition(":")[0] for line in record.differences(there, here)}
    if "init_from" in differing:
        try:
            begun = [checkpoints.find(each["config"]["init_from"]) for each in (there, here)]
        except UserError:
            return False  # gone by now, or begun from random values
        if None in (runs := [each.run for each in begun]) or begun[0].name != begun[1].name:
            return False
        if not differ_in_seed_alone(*runs):
            return False
    return differing <= {"seed", "init_from"}


def rows(folders: Folders) -> list[Row]:
    """What stands beside published scores: a row per network, and one on 13 of 16 classes.

    A run has one network, its student; where a teacher was scored too, it follows.
    """
    found = []
    for name, group in folders.items():
        there = record.read(group[0])
        config, role = record.configuration(there), _scored_role(there)
        side = role.partition("_")[0]
        data, size = there["data"][role], config[side].size
        scored = arguments.split_name(config, side)
        for shown, split in _networks(name, group[0], scored).items():
            scores = [_last_scores(folder, read_scalars(folder), split) for folder in group]
            steps = sorted({score["step"] for score in scores})
            unfinished = "" if steps == [config.num_steps] else (
                f", at step {', '.join(map(str, steps))} of {config.num_steps}"
            )
            of = setting(there)
            for classes, key in ((of.classes, "miou"), (13, "miou_13")):
                if all(key in score for score in scores):
                    found.append(Row(
                        of._replace(classes=classes), shown + unfinished,
                        tuple(score[key] for score in scores),
                        "network+flip" if config.eval.flip else "network", _network(config),
                        f"{data['split']}, {data['images']} images, {size[0]}x{size[1]}",
                    ))  # fmt: skip
    return found


def _networks(name: str, folder: Path, split: str) -> dict[str, str]:
    """The networks of a run that are scored on a split: name → that of the scores."""
    student = {name: split}
    if not arguments.has_teacher(record.configuration(record.read(folder))):
        return student
    return student | {f"{name}, teacher": validation.teacher_name(split)}


def setting(there: Mapping) -> Setting:
    """The setting of a record. A city of CrossCity is a target of its own, by its folder.

    Where source and target are parts of one set, they are called by these: day → dusk. A target
    without labels is told from one that is scored.
    """
    config, role = record.configuration(there), _scored_role(there)
    target = config[role.partition("_")[0]]
    city = f"_{Path(target.dir).name.lower()}" if target.domain == "crosscity" else ""
    names = [config.source.domain, target.domain + city]
    if role == "source_val" and "target" in there["data"]:
        names[1] = f"{config.target.domain} without labels, scored on {config.source.domain}"
    if role == "target_val" and config.source.domain == target.domain:
        parts = [there["data"][which]["split"] for which in ("source", role)]
        names = [f"{name} {part}" for name, part in zip(names, parts, strict=True)]
    task = "adaptation" if "target" in there["data"] else "generalisation"
    learnt, scored = (there["data"][which].get("classes") for which in ("source", role))
    joined = learnt != scored  # those of the network are parts of the target's
    return Setting(*names, task, len(scored) if joined else config.num_classes)


def unlike(there: Mapping, here: Mapping) -> list[str]:
    """Where two records of one setting are of other sets all the same: other files, or numbers.

    Splits of other counts are not compared: `eval.max_images` may be the reason.
    """
    found = []
    for role in there["data"].keys() & here["data"].keys():
        one, other = there["data"][role], here["data"][role]
        alike = one["split"] == other["split"] and one["images"] == other["images"]
        differing = [key for key in ("ids", "content") if alike and one[key] != other[key]]
        words = [*(["other files"] if differing else []), *exchanged(one, other)]
        found += [f"{role}: {', '.join(words)}"] if words else []
    return sorted(found)


def _scored_role(there: Mapping) -> str:
    return "target_val" if "target_val" in there["data"] else "source_val"


def _network(config: ConfigDict) -> str:
    model = config.model
    if kind_of(config) == "dinov2":
        if any(model.vit_size):
            return "DINOv2 ViT, {} channels, {} blocks, {} heads".format(*model.vit_size)
        return f"DINOv2 ViT-{model.backbone[-1].upper()}"
    if (*model.stage_sizes, model.width) == (3, 4, 23, 3, 64):
        return NETWORK
    return f"DeepLab-v2, blocks {'-'.join(map(str, model.stage_sizes))}, {model.width} channels"


def compare(
    folders: Folders, num_pictures: int = 6, interrupt: Callable[[], None] = lambda: None
) -> dict:
    """The runs as keyword arguments of `report.html.render`.

    folders: in the order of their story. All are scored on the domains that the last of them is
    scored on. Of several runs under a name: the means of scores and curves, and the predictions
    of the first. A teacher's classes and curve stand beside its student's. Raises UserError for a
    run without those scores.
    interrupt: called before each run is read; it may raise.
    """
    config = record.configuration(record.read(folders[list(folders)[-1]][0]))
    splits = open_splits(config)
    source, target = splits["source_val"], splits.get("target_val", splits["source_val"])
    roles = {"source": source.name} | ({"target": target.name} if target is not source else {})
    scalars = {name: [read_scalars(folder) for folder in group] for name, group in folders.items()}

    def scores(name: str, split: str) -> dict:
        return _mean_scores([
            _last_scores(folder, series, split)
            for folder, series in zip(folders[name], scalars[name], strict=True)
        ])

    last, split = list(roles.items())[-1]
    networks = {  # name → that of its run, and that of its scores
        shown: (name, key)
        for name, (folder, *_) in folders.items()
        for shown, key in _networks(name, folder, split).items()
    }
    curves = {
        "source loss": {name: (name, "train/loss_source") for name in folders},
        f"{last} mIoU": {
            shown: (name, f"eval/{key}/network/miou") for shown, (name, key) in networks.items()
        },
    }
    return {
        "summary": {
            name: {f"{role} ({roles[role]})": scores(name, roles[role])["miou"] for role in roles}
            for name in folders
        },
        "results": {shown: scores(name, key) for shown, (name, key) in networks.items()},
        "curves": {
            title: {
                shown: _mean_curve([one[key] for one in scalars[name]])
                for shown, (name, key) in chart.items() if all(key in one for one in scalars[name])
            }
            for title, chart in curves.items()
        },
        "calibration": _calibration(folders, list(roles)[-1], split),
        "images": _pictures(folders, target, num_pictures, interrupt),
        "known": target.labels.classes,
    }


def _calibration(folders: Folders, role: str, split: str) -> dict[str, dict]:
    """{"ece", "reliability"} of the runs whose last network was evaluated as it was validated.

    From what `snr_jax.evaluate` has left in the first run's folder under each name; role: source
    or target.
    """
    found = {}
    for name, (folder, *_) in folders.items():
        try:
            last = checkpoints.find(folder)
            validated = last.meta["scores"][split]["settings"]
            path = folder / "evaluation" / last.name / role / "evaluation.json"
            results = json.loads(path.read_text(encoding="utf-8"))["results"]
            same = [scores for scores in results.values() if scores["settings"] == validated]
            found[name] = {key: same[0][key] for key in ("ece", "reliability")}
        except (UserError, OSError, ValueError, LookupError, TypeError, AttributeError):
            continue  # it has not been evaluated so, or by an older version
    return found


def _last_scores(folder: Path, scalars: Mapping[str, Curve], split: str) -> dict:
    """Scores of the last validation: {"step", "miou", "iou": {class: IoU or NaN}, "miou_13"}."""
    prefix = f"eval/{split}/network/"
    last = {
        name.removeprefix(prefix): float(values[-1])
        for name, (_, values) in scalars.items() if name.startswith(prefix)
    }
    if not math.isfinite(last.get("miou", math.nan)):
        raise UserError(f"{folder} has no score on {split}. Go on with that run to its end")
    iou = {name.removeprefix("iou/"): v for name, v in last.items() if name.startswith("iou/")}
    means = {name: last[name] for name in ("miou", "miou_13") if name in last}
    return {"step": int(scalars[f"{prefix}miou"][0][-1]), "iou": iou, **means}


def _mean_scores(scores: Sequence[Mapping]) -> dict:
    """The means over seeds; a class that one seed has no score of has none."""
    mean = {key: float(np.mean([score[key] for score in scores]))
            for key in ("miou", "miou_13") if all(key in score for score in scores)}
    iou = {name: float(np.mean([score["iou"].get(name, math.nan) for score in scores]))
           for name in scores[0]["iou"]}
    return {**mean, "iou": iou}


def _mean_curve(curves: Sequence[Curve]) -> Curve:
    """Over the steps that all have."""
    steps = reduce(np.intersect1d, [steps for steps, _ in curves])
    return steps, np.mean([values[np.isin(own, steps)] for own, values in curves], axis=0)


def _pictures(
    folders: Folders, split: Split, count: int, interrupt: Callable[[], None]
) -> list[dict[str, np.ndarray]]:
    """{"input", "label", name: prediction, ...} of some images, spread over the split."""
    chosen = split.samples[:: max(len(split.samples) // max(count, 1), 1)][:count]
    rows = [{} for _ in chosen]
    for name, (folder, *_) in folders.items():
        if not chosen:
            break
        interrupt()
        model, variables, meta = network.load(str(folder))
        chosen_split = split._replace(samples=chosen)
        drawn = pictures(model, variables, chosen_split, known=network.classes_of(meta))
        for row, picture in zip(rows, drawn, strict=True):
            row |= {"input": picture["input"], "label": picture["label"],
                    name: picture["prediction"]}
    return rows
