"""Which part helps how much: every network, target and way to adapt, over seeds.

    python scripts/study.py --out runs/toy_study
    python scripts/study.py --content tint --adaptations=  # in runs/toy_study_tint
    python scripts/study.py --benchmark camvid --data datasets  # photographs, in runs/camvid_study

Each variant is trained on the source and scored on every target, then adapted to each target from
there, in every way of --adaptations; "masked consistency", as of configs/toy_mic.py, is made where
they name it. The benchmarks:

    toys       drawn streets → the same in other styles (--targets), by configs/toy_*.py
    camvid     CamVid by day → at dusk, by configs/camvid_*.py; DATA/CamVid in either public form
    camvid_back    CamVid at dusk → by day
    drawings   drawn streets with CamVid's classes → CamVid by day

--init_from runs/drawings_study lets each training begin from that study's network of the same row
and seed: first the drawings, then the photographs by day.

Numbers in OUT/results.json that were made with the same configuration, initial values and data
stay; the others are made again. OUT/table.md and table.png hold what there is so far.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from absl import flags

from snr_jax import cli
from snr_jax.core.errors import UserError
from snr_jax.process import signals
from snr_jax.process.signals import Stop
from snr_jax.toy.content import AMBIGUOUS, CONTENTS
from snr_jax.toy.styles import STYLES

if TYPE_CHECKING:
    from snr_jax.studies.study import Benchmark

# name: the configuration of the set (_uda or _classmix) and the keys that differ, beside BUDGET,
# which all have in common.
ADAPTATIONS = {
    "statistics": ("uda", {"loss.lambda_target": 0.0}),
    "MaxSquare": ("uda", {}),
    # At 10 it pulls nearly half as much as cross-entropy: scripts/loss_gradients.py, no labels.
    "MaxSquare IW x 10": ("uda", {
        "loss.target": "iw_maxsquare", "loss.lambda_target": 10.0}),
    "class mixing": ("classmix", {}),
}
# Beside them, where --adaptations names them.
FURTHER = {
    "masked consistency": ("classmix", {"mix.masked_weight": 1.0, "mix.mask_block": 16}),
}
# One setting changed at a time; made where --adaptations names it, as "class mixing crop 64".
SETTINGS = {
    "threshold 0.5": {"mix.threshold": 0.5},
    "threshold 0.9": {"mix.threshold": 0.9},
    "momentum 0.9": {"mix.teacher_momentum": 0.9},
    "momentum 0.999": {"mix.teacher_momentum": 0.999},
    "eval teacher": {"mix.teacher_mode": "eval"},
    "by pixel": {"mix.weight": "pixel"},
    "rare classes": {"source.rare_class_temperature": 0.1, "source.rare_class_pixels": 50},
    "crop 64": {"data.crop": (64, 64)},
    "whole images": {"data.crop": (0, 0)},
    "twice as long": {"num_steps": 1200, "optimizer.schedule_steps": 1200},
}
VARIED = {"class mixing": SETTINGS, "statistics": ("whole images", "twice as long")}
WAYS = ADAPTATIONS | FURTHER | {
    f"{way} {name}": (ADAPTATIONS[way][0], ADAPTATIONS[way][1] | SETTINGS[name])
    for way, names in VARIED.items() for name in names
}
BUDGET = {"num_steps": 600, "optimizer.schedule_steps": 600, "optimizer.base_rate": 0.01,
          "data.crop": (96, 96)}
BUDGET_OF_PHOTOS = {"num_steps": 300, "optimizer.schedule_steps": 300,
                    "optimizer.base_rate": 0.01, "data.crop": (0, 0)}
NETWORKS = ("plain", "IN", "SNR", "SNR + restitution loss")
ADDITIONS = ("", " + jitter", " + exposure", " + AdamW", " + exposure + AdamW")
EVERY = tuple(name + addition for addition in ADDITIONS for name in NETWORKS)
OF_PHOTOS = EVERY[: 2 * len(NETWORKS)]
# benchmark: its targets and the variants that are trained unless told.
BENCHMARKS = {
    "toys": (("dusk", "haze"), NETWORKS),
    "camvid": (("at dusk",), OF_PHOTOS),
    "camvid_back": (("by day",), OF_PHOTOS),
    "drawings": (("by day",), OF_PHOTOS),
}

FLAGS = flags.FlagValues()
flags.DEFINE_enum("benchmark", "toys", list(BENCHMARKS), "What is trained on, and scored on.",
                  flag_values=FLAGS)  # fmt: skip
cli.define_path("out", None, "Folder for drawings, runs, table; by default runs/toy_study, "
                    "runs/toy_study_CONTENT or runs/BENCHMARK_study.",
                flag_values=FLAGS)  # fmt: skip
cli.define_path("data", "datasets", "The folder that holds CamVid.", flag_values=FLAGS)
cli.define_path("prepared", "", "CamVid as scripts/prepare_data.py has prepared it, or nothing.",
                flag_values=FLAGS)
cli.define_path("init_from", "", "The --out of a study whose networks the trainings begin from; "
                "empty: random values.", flag_values=FLAGS)  # fmt: skip
flags.DEFINE_enum("content", "none", CONTENTS, "Content of the toys, as of make_toy_domains.py.",
                  flag_values=FLAGS)  # fmt: skip
flags.DEFINE_list("adaptations", list(ADAPTATIONS), "Ways to adapt to each target; none if empty. "
                  f"There are {', '.join(WAYS)}.", flag_values=FLAGS)  # fmt: skip
flags.DEFINE_list("variants", None, f"Networks, of {', '.join(EVERY)}; by default "
                  "the first four for the toys, the first eight for photographs.",
                  flag_values=FLAGS)  # fmt: skip
flags.DEFINE_bool("quick", False, "Toys of 64x128, adapted to as a whole.", flag_values=FLAGS)
flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of the runs.", flag_values=FLAGS)
flags.DEFINE_list("targets", None, "Targets; of the toys styles, by default dusk and haze.",
                  flag_values=FLAGS)  # fmt: skip
cli.define_compilation_cache(FLAGS)


def command(args: flags.FlagValues) -> None:
    if not args.seeds or not all(seed.isdecimal() for seed in args.seeds):
        raise UserError(f"--seeds is {','.join(args.seeds)!r}; expected numbers, as 0,1,2")
    targets, variants = BENCHMARKS[args.benchmark]
    styles = tuple(style for style in STYLES if style != "source")
    known = {"adaptations": tuple(WAYS), "variants": EVERY,
             "targets": styles if args.benchmark == "toys" else targets}
    for name, names in known.items():
        given = args[name].value
        if unknown := [one for one in given or () if one not in names]:
            raise UserError(f"--{name} names {', '.join(map(repr, unknown))}; expected some of "
                            f"{','.join(names)}")
        if given == [] and name != "adaptations":
            raise UserError(f"--{name} is empty; expected some of {','.join(names)}")
    if args.prepared and args.benchmark in ("toys", "drawings"):
        raise UserError(f"--prepared is of CamVid, and --benchmark {args.benchmark} draws its "
                        "images; leave it out")
    with signals.on_signals() as stop:
        _study(args, args.targets or targets, args.variants or variants, stop)


def _study(
    args: flags.FlagValues, targets: Sequence[str], variants: Sequence[str], stop: Stop
) -> None:
    # Seconds of imports: a signal meanwhile is answered after them.
    from snr_jax.core.files import refuse_pattern
    from snr_jax.studies.study import study

    cli.use_compilation_cache(args)
    tint = args.content != "none"
    default = {"toys": "toy_study" + (f"_{args.content}" if tint else "")}
    out = Path(args.out or f"runs/{default.get(args.benchmark, f'{args.benchmark}_study')}")
    refuse_pattern(out)
    create = _toys if args.benchmark == "toys" else _photos
    rows = keys_of_rows()
    benchmark = create(args, out, targets, {name: rows[name] for name in variants}, stop)
    benchmark = benchmark._replace(init_from=Path(args.init_from) if args.init_from else None)
    try:
        study(out, benchmark, seeds=[int(seed) for seed in args.seeds],
              classes=AMBIGUOUS if tint else (), stop=stop)  # fmt: skip
    finally:
        if (out / "table.md").exists():
            print(f"\n{(out / 'table.md').read_text()}\nin {out / 'table.md'} and, as a picture, "
                  "table.png", flush=True)


def keys_of_rows() -> dict[str, dict]:
    """What the configuration of the source has otherwise, for each of EVERY."""
    from snr_jax.configs.camvid_dg import ADAMW
    from snr_jax.studies.study import EXPOSURE, JITTER, VARIANTS

    added = zip(ADDITIONS, ({}, JITTER, EXPOSURE, ADAMW, EXPOSURE | ADAMW), strict=True)
    return {name + addition: VARIANTS[name] | keys for addition, keys in added for name in NETWORKS}


def _benchmark(
    modules: Mapping[str, ModuleType], keys: Mapping, budget: Mapping, ways: Sequence[str],
    **targets_and_variants: Mapping[str, Mapping],
) -> "Benchmark":
    """The configurations of a set. keys: what they differ in from the files; budget: of a way."""
    from snr_jax.studies.study import Benchmark

    source = modules["dg"].get_config("standard")
    source.update_from_flattened_dict(keys)
    adaptations = {}
    for name in ways:
        module, overrides = WAYS[name]
        adaptations[name] = modules[module].get_config("standard")
        adaptations[name].update_from_flattened_dict({**budget, **overrides, **keys})
    return Benchmark(source=source, adaptations=adaptations, **targets_and_variants)


def _toys(
    args: flags.FlagValues, out: Path, styles: Sequence[str], variants: Mapping, stop: Stop
) -> "Benchmark":
    """The drawings in OUT/data, and the configurations."""
    from snr_jax.configs import toy_classmix, toy_dg, toy_uda
    from snr_jax.studies.toys import draw_data, target_keys

    draw_data(out / "data", styles, toy_dg.NUM_TRAIN, toy_dg.NUM_VAL, content=args.content,
              stop=stop)  # fmt: skip
    modules = {"dg": toy_dg, "uda": toy_uda, "classmix": toy_classmix}
    keys = {"data.root": str(out / "data")}
    if args.quick:
        keys |= {"source.size": (64, 128), "target.size": (64, 128), "data.crop": (0, 0)}
    return _benchmark(modules, keys, BUDGET, args.adaptations, variants=variants,
                      targets={style: target_keys(style) for style in styles})


def _photos(
    args: flags.FlagValues, out: Path, targets: Sequence[str], variants: Mapping, stop: Stop
) -> "Benchmark":
    """The configurations of CamVid for one of the benchmarks with photographs."""
    from snr_jax.configs import camvid_classmix, camvid_dg, camvid_uda, toy_dg
    from snr_jax.studies import toys

    modules = {"dg": camvid_dg, "uda": camvid_uda, "classmix": camvid_classmix}
    keys = {"data.root": args.data, "data.prepared": args.prepared}
    if args.benchmark != "camvid":
        for side, light in (("source", "dusk"), ("target", "day")):
            keys |= {f"{side}.train_split": f"{light}_train", f"{side}.val_split": f"{light}_val"}
    if args.benchmark == "drawings":
        drawn = (out / "data" / "CamVid").absolute()
        # Half a photograph's sides.
        toys.draw("camvid", drawn, "source", num_train=toy_dg.NUM_TRAIN, num_val=toy_dg.NUM_VAL,
                  height=180, width=240, stop=stop)  # fmt: skip
        keys |= {"source.train_split": "day_train", "source.val_split": "day_val",
                 "source.dir": str(drawn)}
    return _benchmark(modules, keys, BUDGET_OF_PHOTOS, args.adaptations, variants=variants,
                      targets={target: {} for target in targets})


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(argv, FLAGS, __doc__, command)


if __name__ == "__main__":
    sys.exit(main())
