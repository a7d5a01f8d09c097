"""A network trained on one domain fails on another; SNR and adaptation narrow the gap.

    python scripts/demo.py --out runs/demo

Draws two toy domains, trains the plain network and SNR on the source, adapts SNR to the unlabelled
target with MaxSquare and with class mixing, and writes OUT/report.html and OUT/predictions.png. The
same command goes on with an interrupted demo.
"""

import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from snr_jax import cli
from snr_jax.process import signals
from snr_jax.process.signals import Stop
from snr_jax.toy.styles import STYLES

FLAGS = flags.FlagValues()
cli.define_path("out", "runs/demo", "Folder for data, runs and report.", flag_values=FLAGS)
flags.DEFINE_enum(
    "style", "dusk", [style for style in STYLES if style != "source"], "Style of the target.",
    flag_values=FLAGS,
)
cli.define_compilation_cache(FLAGS)


def command(args: flags.FlagValues) -> None:
    with signals.on_signals() as stop:
        # Seconds of imports: a signal meanwhile is answered after them.
        cli.use_compilation_cache(args)
        _demo(Path(args.out), args.style, stop)


def _demo(out: Path, style: str, stop: Stop) -> None:
    import jax
    from PIL import Image

    from snr_jax.configs import toy_classmix, toy_dg, toy_uda
    from snr_jax.core.files import refuse_pattern, write_text
    from snr_jax.core.progress import format_duration
    from snr_jax.report import tables
    from snr_jax.report.html import render
    from snr_jax.report.pictures import panel
    from snr_jax.runs.train import train
    from snr_jax.studies.comparison import compare
    from snr_jax.studies.study import VARIANTS
    from snr_jax.studies.toys import draw_data, target_keys
    from snr_jax.workdir import checkpoints

    def interrupt() -> None:
        signals.unless_asked(stop, "stopped before the report; the same command goes on")

    refuse_pattern(out)
    start = time.monotonic()
    draw_data(out / "data", [style], toy_dg.NUM_TRAIN, toy_dg.NUM_VAL, stop=stop)
    here = {"data.root": str(out / "data")} | target_keys(style)
    init_from = {"init_from": str(checkpoints.folder(out / "snr", "final"))}
    runs = {  # name: folder, configuration, overrides
        "plain": ("plain", toy_dg, VARIANTS["plain"]),
        "SNR": ("snr", toy_dg, VARIANTS["SNR"]),
        "SNR-MaxSquare": ("snr_maxsquare", toy_uda, VARIANTS["SNR"] | init_from),
        "SNR-classmix": ("snr_classmix", toy_classmix, VARIANTS["SNR"] | init_from),
    }
    for number, (name, (folder, module, overrides)) in enumerate(runs.items(), start=1):
        so_far = format_duration(time.monotonic() - start)
        print(f"\n=== {number}/{len(runs)} {name}, {so_far} so far", flush=True)
        config = module.get_config("standard")
        config.update_from_flattened_dict(here | overrides)
        train(config, str(out / folder), stop)
    found = compare({name: [out / folder] for name, (folder, *_) in runs.items()},
                    interrupt=interrupt)
    seconds = format_duration(time.monotonic() - start)
    page = render(
        title="From one domain to another",
        lead="A small network learns to segment drawn streets; the target shows other streets "
        f"at {style}. SNR sees no target image; MaxSquare, 150 steps, and class mixing, 300, see "
        "them without labels.",
        notes={
            "commands": ["make demo"],
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, "
            f"{jax.devices()[0].device_kind}, jax {jax.__version__}",
            "time": seconds,
            "data": f"{toy_dg.NUM_TRAIN} training and {toy_dg.NUM_VAL} validation images per "
            "domain, drawn by snr_jax/toy/writer.py, 96x192 for the network",
        },
        **found,
    )
    write_text(out / "report.html", page)
    Image.fromarray(panel(found["images"][:4])).save(out / "predictions.png", optimize=True)
    print(f"\non the target, by class\n{tables.class_table(found['results'])}\n")
    for name, scores in found["summary"].items():
        print(f"{name:<16}" + "   ".join(f"{k} {tables.percent(v)}" for k, v in scores.items()))
    print(f"\nopen {out / 'report.html'} ({seconds})")


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(argv, FLAGS, __doc__, command)


if __name__ == "__main__":
    sys.exit(main())
