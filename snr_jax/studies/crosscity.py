"""One network of Cityscapes on the four cities of CrossCity, as it is and adapted to each.

    OUT/CITY           the run of the adaptation to a city
    OUT/results.json   every score with its settings
    OUT/table.md       mIoU by city and their mean, beside the published numbers
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from snr_jax.config import arguments, checks
from snr_jax.core.errors import UserError
from snr_jax.core.files import write_text
from snr_jax.core.parallel import create_parallel
from snr_jax.data.domains import CITIES
from snr_jax.data.splits import Split, open_split
from snr_jax.process import signals
from snr_jax.process.signals import Stop, never
from snr_jax.report.published import published
from snr_jax.report.tables import percent
from snr_jax.runs import experiment, network, validation
from snr_jax.runs.train import train
from snr_jax.workdir import checkpoints

logger = logging.getLogger(__name__)

# Row of the table → its name in report/published.json, where the network has no SNR.
PUBLISHED = {"source": "plain", "maxsquare": "MaxSquare", "iw_maxsquare": "MaxSquare + IW"}


def _published(row: str) -> dict[str, float]:
    """City → mIoU in %, the labels at the network's size."""
    return {
        known.setting.target.removeprefix("crosscity_"): 100 * known.mious[0]
        for known in published()
        if known.setting.target.startswith("crosscity_") and known.method == PUBLISHED[row]
    }


def for_city(config: ConfigDict, city: str) -> ConfigDict:
    """A copy for that city: its folder stands where the configured one does."""
    config = config.copy_and_resolve_references()
    config.target.dir = str(Path(config.target.dir).with_name(city.capitalize()))
    return config


def crosscity(
    config: ConfigDict, out: Path, cities: Sequence[str] = CITIES, *, stop: Stop = never
) -> str:
    """Scores the network of `init_from` on each city, adapts it to each; the table.

    config: the adaptation to any of the cities. Adaptations that are finished stay. Raises
    UserError before any work for what is missing, and `Stopped` as `train` does.
    """
    configs = {city: for_city(config, city) for city in cities}
    checks.check(config)
    if config.target.domain != "crosscity" or not config.loss.target:
        raise UserError(
            "the configuration adapts to no city of CrossCity; expected one as "
            "configs/city2crosscity_uda.py:Rome"
        )
    if not config.init_from:
        raise UserError("init_from is empty; expected the run of configs/city_dg13.py, as "
                        "--config.init_from=runs/city_dg13")
    splits = {city: _open_val(one) for city, one in configs.items()}
    for split in splits.values():
        logger.info(split.told)
    experiment.look({city.capitalize(): split for city, split in splits.items()})
    checkpoint = checkpoints.find(config.init_from)
    model, variables, _ = network.load_for(config, checkpoint)
    parallel = create_parallel()
    on_devices = parallel.replicate(variables)
    loss = config.loss.target + (" + multi" if config.loss.lambda_seg else "")
    results: dict[str, dict[str, dict]] = {}
    for city in cities:
        signals.unless_asked(stop, f"stopped before {city}; the same command goes on")
        scores = validation.score(
            model, on_devices, {"target_val": splits[city]}, step=checkpoint.step,
            parallel=parallel, **arguments.evaluation_arguments(config),
        )["crosscity"]
        results[city] = {"source": scores}
        logger.info("%s: mIoU %s before the adaptation", city.capitalize(),
                    percent(scores["miou"]))
    for city in cities:
        logger.info("\n=== %s", city.capitalize())
        results[city]["adapted"] = train(configs[city], str(out / city), stop)["crosscity"]
        write_text(out / "results.json", json.dumps(results, indent=1) + "\n")
        write_text(out / "table.md", table(results, loss) + "\n")
    return table(results, loss)


def _open_val(config: ConfigDict) -> Split:
    sides = arguments.create_domains(config)
    classes = arguments.create_classes(config.num_classes, sides["source"])
    return open_split(
        sides["target"], classes=classes, **arguments.split_arguments(config, "target_val")
    )


def table(results: Mapping[str, Mapping[str, Mapping]], loss: str) -> str:
    """mIoU in % of {city: {"source", "adapted": scores}}, with the published ones, as markdown."""
    rows = {
        "source": {c: 100 * r["source"]["miou"] for c, r in results.items()},
        loss: {c: 100 * r["adapted"]["miou"] for c, r in results.items() if "adapted" in r},
    }
    known = [name for name in rows if name in PUBLISHED]
    rows |= {f"{name}, published without SNR": _published(name) for name in known}
    lines = [
        "| | " + " | ".join(map(str.capitalize, results)) + " | mean |",
        "|---" * (len(results) + 2) + "|",
    ]
    for name, by_city in rows.items():
        values = [by_city.get(city, np.nan) for city in results]
        cells = [percent(value / 100) for value in [*values, np.mean(values)]]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
