"""The study of which part helps how much: every network, target and way to adapt, over seeds.

    OUT/VARIANT_SEED[_TARGET_ADAPTATION]       the runs
    OUT/results.json                           every number with what it was made with
    OUT/table.md, table.png                    mean and deviation, written anew after each number
"""

import itertools
import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from snr_jax.config import arguments
from snr_jax.core.errors import UserError
from snr_jax.core.files import make_room, write_text
from snr_jax.core.parallel import create_parallel
from snr_jax.core.progress import format_duration
from snr_jax.process import signals
from snr_jax.process.signals import Stop, never
from snr_jax.report.pictures import write_png
from snr_jax.report.scores import Scores, scores_picture
from snr_jax.report.tables import percent
from snr_jax.runs import experiment, network
from snr_jax.runs.evaluation import evaluate
from snr_jax.runs.train import train
from snr_jax.workdir import checkpoints, record

logger = logging.getLogger(__name__)

VARIANTS = {
    "plain": {"model.norm_restitution": "none"},
    "IN": {"model.norm_restitution": "in"},
    "SNR": {"model.norm_restitution": "snr", "loss.restitution_weight": 0.0},
    "SNR + restitution loss": {"model.norm_restitution": "snr", "loss.restitution_weight": 0.01},
}
# The colours of the source that photographs are trained with.
JITTER = {"data.jitter": "custom", "data.jitter_strengths": (0.8, 0.8, 0.8, 0.0)}
EXPOSURE = {"model.exposure": True}
QUICK = {"eval.num_pictures": 0, "eval_every_steps": 10**6}  # the study scores the end alone
# variant -> seed -> column -> {"miou": fraction, "iou": {class: fraction}, "made_with": record}
Results = dict[str, dict[str, dict[str, dict]]]


class Benchmark(NamedTuple):
    """What is trained and scored: configurations, and the keys that they differ in.

    source: of the training that all begin with. targets, adaptations: columns of the table, the
    latter with the steps of an adaptation each. variants: rows, networks and their training.
    init_from: OUT of another study, whose network of the same row and seed each training begins
    from; without, from what the configuration of the source names.
    """

    source: ConfigDict
    targets: Mapping[str, Mapping[str, Any]]
    adaptations: Mapping[str, ConfigDict]
    variants: Mapping[str, Mapping[str, Any]]
    init_from: Path | None = None


class Job(NamedTuple):
    """One number: a column of the table, for a variant and a seed."""

    variant: str
    seed: int
    target: str | None  # None: the source
    adaptation: str  # "": none

    def network(self, out: Path) -> Path:
        """The run on the source."""
        return out / f"{self.variant.replace(' ', '')}_{self.seed}"

    @property
    def column(self) -> str:
        return (self.target or "source") + (f" + {self.adaptation}" if self.adaptation else "")


def columns(targets: Iterable[str], adaptations: Iterable[str]) -> list[tuple[str | None, str]]:
    """(target, adaptation) of every column."""
    return [(None, ""), *((target, name) for target in targets for name in ("", *adaptations))]


def study(
    out: Path, benchmark: Benchmark, *, seeds: Sequence[int], classes: Sequence[str] = (),
    stop: Stop = never,
) -> str:
    """Makes every number that is missing, or was made with something else; the table.

    Each variant is trained on the source and scored on every target, then adapted to each from
    there, in every way. `classes`: a second table has their mean alone. Raises `Stopped` as
    `train` does; the numbers made until then are in OUT.
    """
    if benchmark.init_from:
        _prove(benchmark.init_from, out, benchmark.variants, seeds)
    results = _read(out / "results.json")
    places = columns(benchmark.targets, benchmark.adaptations)
    jobs = [
        Job(variant, seed, *place)
        for seed in seeds for variant in benchmark.variants for place in places
    ]
    titles = {Job("", 0, *place).column: _title(place, benchmark) for place in places}

    def tables() -> str:
        shown = _in_order(results, benchmark)
        found = table(shown, titles)
        if classes:
            found += f"\n\nMean IoU of {', '.join(classes)}:\n\n{table(shown, titles, classes)}"
        return found

    def draw() -> None:
        picture = scores_picture(panels(_in_order(results, benchmark), places))
        write_png(picture, out / "table.png")

    start = time.monotonic()
    for number, job in enumerate(jobs, start=1):
        base = job.network(out)
        title = f"{number}/{len(jobs)}: {job.variant}, seed {job.seed}, {job.column}"
        signals.unless_asked(stop, f"stopped before {title}; the same command goes on")
        config = _configured(job, base, benchmark)
        here = record.fingerprint(config, experiment.open_splits(config))
        row = results.setdefault(job.variant, {}).setdefault(str(job.seed), {})
        if job.target is None and not _has_network(base) and not titles.keys() <= row.keys():
            row.pop(job.column, None)  # what is missing starts from its network
        if changes := _changes(row.get(job.column), here):
            logger.info("\n=== %s (%s); %s so far", title, changes,
                        format_duration(time.monotonic() - start))
            scores = _measure(job, base, config, here, stop)
            row[job.column] = {key: scores[key] for key in ("miou", "iou")} | {"made_with": here}
            write_text(out / "results.json", json.dumps(results, indent=1) + "\n")
            draw()
        write_text(out / "table.md", tables() + "\n")
    draw()
    return tables()


def _in_order(results: Results, benchmark: Benchmark) -> Results:
    """The variants of the benchmark first."""
    return {name: results[name] for name in (*benchmark.variants, *results) if name in results}


def panels(
    results: Mapping[str, Mapping], places: Iterable[tuple[str | None, str]]
) -> dict[str, Scores]:
    """The table as a picture has it: a panel for the source and for each target."""
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for target, adaptation in places:
        column = Job("", 0, target, adaptation).column
        panel = found.setdefault(target or "source", {})
        for variant, seeds in results.items():
            values = [entries[column]["miou"] for entries in seeds.values() if column in entries]
            panel.setdefault(variant, {})[adaptation or "before"] = values
    return found


def _title(place: tuple[str | None, str], benchmark: Benchmark) -> str:
    """The head of a column: what it is, with the steps of an adaptation."""
    job = Job("", 0, *place)
    steps = job.adaptation and f", {benchmark.adaptations[job.adaptation].num_steps}"
    return job.column + steps


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


def _configured(job: Job, base: Path, benchmark: Benchmark) -> ConfigDict:
    """What the number is made with; the networks of the source know nothing of the targets."""
    config = benchmark.adaptations[job.adaptation] if job.adaptation else benchmark.source
    config = config.copy_and_resolve_references()
    if job.target is None:
        config.target.val_split = ""
    else:
        config.update_from_flattened_dict(benchmark.targets[job.target])
    config.seed = job.seed
    config.update_from_flattened_dict(benchmark.variants[job.variant] | QUICK)
    begin = base if job.adaptation else benchmark.init_from and job.network(benchmark.init_from)
    if begin:
        config.init_from = str(checkpoints.folder(begin, "final"))
    return config


def _changes(entry: Mapping | None, here: Mapping) -> str:
    """Why a number has to be made, or nothing."""
    if entry is None:
        return "not made yet"
    return "; ".join(record.differences(entry["made_with"], here))


def _measure(
    job: Job, base: Path, config: ConfigDict, here: Mapping, stop: Stop
) -> dict:
    if job.adaptation:
        workdir = Path(f"{base}_{job.target}_{job.adaptation.replace(' ', '')}")
        _set_aside_another(workdir, here)
        return train(config, str(workdir), stop)[arguments.split_name(config, "target")]
    if job.target is None:
        _set_aside_another(base, here)
        return train(config, str(base), stop)[arguments.split_name(config, "source")]
    return _score(config, base, stop)


def _set_aside_another(workdir: Path, here: Mapping) -> None:
    """A run of other settings makes room for one of these."""
    if not (workdir / record.RUN_FILE).exists():
        return
    if record.differences(record.read(workdir), here):
        other = make_room(workdir)
        logger.info("%s held a run made with something else; it is %s now", workdir, other)


def _prove(init_from: Path, out: Path, variants: Iterable[str], seeds: Iterable[int]) -> None:
    """Raises UserError where a study lacks a network that trainings are to begin from."""
    if init_from.resolve() == out.resolve():
        raise UserError(f"--init_from {init_from} is --out as well, and a training cannot begin "
                        "from its own end; choose another --out")
    for variant, seed in itertools.product(variants, seeds):
        run = Job(variant, seed, None, "").network(init_from)
        if not _has_network(run):
            raise UserError(
                f"--init_from {init_from}: {run.name} has no network yet. Train it by the study of "
                f"that folder: --out {init_from} --variants {variant!r} --seeds {seed} "
                "--adaptations="
            )


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

    titles: column → its head. classes: those that the mean IoU is over; all without.
    """

    def score(entry: Mapping) -> float:
        return np.mean([entry["iou"][name] for name in classes]) if classes else entry["miou"]

    lines = ["| | " + " | ".join(titles.values()) + " |", "|---" * (len(titles) + 1) + "|"]
    for variant in results:
        cells = []
        for name in titles:
            rows = results[variant].values()
            values = [score(row[name]) for row in rows if name in row]
            mean = percent(np.mean(values) if values else None)
            spread = f" ± {percent(np.std(values, ddof=1))}" if len(values) > 1 else ""
            cells.append(mean + spread)
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
