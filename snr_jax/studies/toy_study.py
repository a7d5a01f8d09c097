"""Networks on the toy domains: their variants, and the study of which part helps how much.

    OUT/data/GTA5, OUT/data/STYLE/Cityscapes   what `draw_data` draws
    OUT/VARIANT_SEED[_STYLE_ADAPTATION]        the runs
    OUT/results.json                           every number with what it was made with
    OUT/table.md                               mean and deviation, written anew after each number
"""

import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from snr_jax.core.errors import UserError
from snr_jax.core.files import write_text
from snr_jax.core.parallel import create_parallel
from snr_jax.core.progress import format_duration, make_progress
from snr_jax.process import signals
from snr_jax.process.signals import Stop, never
from snr_jax.report.tables import percent
from snr_jax.runs import experiment, network
from snr_jax.runs.evaluation import evaluate
from snr_jax.runs.train import train
from snr_jax.toy import writer
from snr_jax.workdir import checkpoints, record

logger = logging.getLogger(__name__)

VARIANTS = {
    "plain": {"model.norm_restitution": "none"},
    "IN": {"model.norm_restitution": "in"},
    "SNR": {"model.norm_restitution": "snr", "loss.restitution_weight": 0.0},
    "SNR + restitution loss": {"model.norm_restitution": "snr", "loss.restitution_weight": 0.01},
}
DATA_SEED = 1
QUICK = {"eval.num_pictures": 0, "eval_every_steps": 10**6}  # the study scores the end alone
# variant -> seed -> column -> {"miou": fraction, "iou": {class: fraction}, "made_with": record}
Results = dict[str, dict[str, dict[str, dict]]]


def draw_data(
    root: Path, styles: Sequence[str], num_train: int, num_val: int, *,
    content: str = "none", stop: Stop = never,
) -> None:
    """ROOT/GTA5 and ROOT/STYLE/Cityscapes for every style; what is there stays.

    Raises `Stopped` between two images once `stop` names a signal.
    """
    common = {"num_train": num_train, "num_val": num_val, "seed": DATA_SEED,
              "height": 128, "width": 256, "workers": 2, "content": content}

    def draw(layout: str, directory: Path, style: str) -> None:
        show = make_progress(f"drawing {directory}: image", logger)
        stopped = f"stopped while drawing {directory}; the same command draws it anew"

        def progress(done: int, total: int) -> None:
            signals.unless_asked(stop, stopped)
            show(done, total)

        signals.unless_asked(stop, stopped)
        try:
            writer.write(layout, directory, style=style, **common, progress=progress)
        except BrokenProcessPool:  # the signal was sent to the workers as well
            signals.unless_asked(stop, stopped)
            raise

    draw("gta5", root / "GTA5", "source")
    for style in styles:
        draw("cityscapes", root / style / "Cityscapes", style)


def configured(
    config: ConfigDict, root: Path, style: str | None, overrides: Mapping, seed: int = 0
) -> ConfigDict:
    """A copy for the toy domains in `root`. style: of the target; None: no target is scored."""
    config = config.copy_and_resolve_references()
    config.data.root = str(root)
    if style is None:
        config.target.val_split = ""
    else:
        config.target.dir = f"{style}/Cityscapes"
    config.seed = seed
    config.update_from_flattened_dict(overrides)
    return config


# ---------------------------------------------------------------- the study


class Job(NamedTuple):
    """One number: a column of the table, for a variant and a seed."""

    variant: str
    seed: int
    style: str | None  # None: the source
    adaptation: str  # "": none

    @property
    def column(self) -> str:
        return (self.style or "source") + (f" + {self.adaptation}" if self.adaptation else "")


def columns(styles: Sequence[str], adaptations: Iterable[str]) -> list[tuple[str | None, str]]:
    """(style, adaptation) of every column."""
    return [(None, ""), *((style, name) for style in styles for name in ("", *adaptations))]


def study(
    out: Path,
    source_config: ConfigDict,
    adaptations: Mapping[str, ConfigDict],
    *,
    seeds: Sequence[int],
    styles: Sequence[str],
    variants: Sequence[str] = tuple(VARIANTS),
    classes: Sequence[str] = (),
    stop: Stop = never,
) -> str:
    """Makes every number that is missing, or was made with something else; the table.

    Each variant is trained on the source and scored on every style, then adapted to each from
    there, in every way of `adaptations`. `classes`: a second table has their mean alone. Raises
    `Stopped` as `train` does; the numbers made until then are in OUT.
    """
    results = _read(out / "results.json")
    places = columns(styles, adaptations)
    jobs = [
        Job(variant, seed, *place) for seed in seeds for variant in variants for place in places
    ]
    titles = {Job("", 0, *place).column: _title(place, adaptations) for place in places}

    def tables() -> str:
        found = table(results, titles)
        if classes:
            found += f"\n\nMean IoU of {', '.join(classes)}:\n\n{table(results, titles, classes)}"
        return found

    start = time.monotonic()
    for number, job in enumerate(jobs, start=1):
        base = out / f"{job.variant.replace(' ', '')}_{job.seed}"
        title = f"{number}/{len(jobs)}: {job.variant}, seed {job.seed}, {job.column}"
        signals.unless_asked(stop, f"stopped before {title}; the same command goes on")
        config = _configured(job, base, out / "data", source_config, adaptations)
        here = record.fingerprint(config, experiment.open_splits(config))
        row = results.setdefault(job.variant, {}).setdefault(str(job.seed), {})
        if job.style is None and not _has_network(base) and not titles.keys() <= row.keys():
            row.pop(job.column, None)  # what is missing starts from its network
        if changes := _changes(row.get(job.column), here):
            logger.info("\n=== %s (%s); %s so far", title, changes,
                        format_duration(time.monotonic() - start))
            scores = _measure(job, base, config, here, stop)
            row[job.column] = {key: scores[key] for key in ("miou", "iou")} | {"made_with": here}
            write_text(out / "results.json", json.dumps(results, indent=1) + "\n")
        write_text(out / "table.md", tables() + "\n")
    return tables()


def _title(place: tuple[str | None, str], adaptations: Mapping[str, ConfigDict]) -> str:
    """The head of a column: what it is, with the steps of an adaptation."""
    job = Job("", 0, *place)
    return job.column + (f", {adaptations[job.adaptation].num_steps}" if job.adaptation else "")


def _read(path: Path) -> Results:
    if not path.exists():
        return {}
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        entries = [entry for seeds in results.values() for row in seeds.values()
                   for entry in row.values()]  # fmt: skip
        kinds = {"config": dict, "initial": str | None, "data": dict}
        for entry in entries:
            made = entry["made_with"]
            scores = [entry["miou"], *entry["iou"].values()]
            if not all(isinstance(score, float) for score in scores) or not all(
                isinstance(made[key], kind) for key, kind in kinds.items()
            ):
                raise ValueError("a number, or what it was made with, is missing")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged ({error}). Remove it to score the runs beside it again, or choose "
            "another --out"
        ) from None
    return results


def _configured(
    job: Job, base: Path, root: Path, source_config: ConfigDict,
    adaptations: Mapping[str, ConfigDict],
) -> ConfigDict:
    """What the number is made with; the networks of the source know nothing of the styles."""
    overrides = VARIANTS[job.variant] | QUICK
    if not job.adaptation:
        return configured(source_config, root, job.style, overrides, job.seed)
    overrides |= {"init_from": str(checkpoints.folder(base, "final"))}
    return configured(adaptations[job.adaptation], root, job.style, overrides, job.seed)


def _changes(entry: Mapping | None, here: Mapping) -> str:
    """Why a number has to be made, or nothing."""
    if entry is None:
        return "not made yet"
    return "; ".join(record.differences(entry["made_with"], here))


def _measure(
    job: Job, base: Path, config: ConfigDict, here: Mapping, stop: Stop
) -> dict:
    if job.adaptation:
        workdir = Path(f"{base}_{job.style}_{job.adaptation.replace(' ', '')}")
        _set_aside_another(workdir, here)
        return train(config, str(workdir), stop)[config.target.domain]
    if job.style is None:
        _set_aside_another(base, here)
        return train(config, str(base), stop)[config.source.domain]
    return _score(config, base, stop)


def _set_aside_another(workdir: Path, here: Mapping) -> None:
    """A run of other settings makes room for one of these."""
    if not (workdir / record.RUN_FILE).exists():
        return
    if record.differences(record.read(workdir), here):
        number = 1 + len(list(workdir.parent.glob(f"{workdir.name}.other-*")))
        other = workdir.rename(f"{workdir}.other-{number}")
        logger.info("%s holds a run made with something else; it is %s now", workdir, other)


def _has_network(workdir: Path) -> bool:
    return checkpoints.folder(workdir, "final").is_dir()


def _score(config: ConfigDict, workdir: Path, stop: Stop) -> dict:
    """Metrics of a trained network on the validation images of the target."""
    model, variables, _ = network.load(str(checkpoints.folder(workdir, "final")))
    split = experiment.open_splits(config)["target_val"]
    parallel = create_parallel()
    return evaluate(
        model, parallel.replicate(variables), split, parallel=parallel,
        batch_size=config.eval.batch_size,
        interrupt=lambda: signals.unless_asked(stop, "stopped while scoring; start it again"),
    )


def table(
    results: Mapping[str, Mapping], titles: Mapping[str, str], classes: Sequence[str] = ()
) -> str:
    """Mean and deviation over the seeds, in % mIoU, per variant and column, as markdown.

    titles: column → its head. classes: those that the mean IoU is over; all without. A variant
    without a number has no row.
    """

    def score(entry: Mapping) -> float:
        return np.mean([entry["iou"][name] for name in classes]) if classes else entry["miou"]

    lines = ["| | " + " | ".join(titles.values()) + " |", "|---" * (len(titles) + 1) + "|"]
    for variant in (name for name in VARIANTS if name in results):
        cells = []
        for name in titles:
            rows = results[variant].values()
            values = [score(row[name]) for row in rows if name in row]
            mean = percent(np.mean(values) if values else None)
            spread = f" ± {percent(np.std(values, ddof=1))}" if len(values) > 1 else ""
            cells.append(mean + spread)
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
