"""Which part helps how much: every variant, seed and style on the toy domains.

    python scripts/toy_study.py --out runs/toy_study
    python scripts/toy_study.py --content tint --adaptations=  # in runs/toy_study_tint

Each variant is trained on the source and scored on every style, then adapted to each style from
there, in every way of --adaptations (configs/toy_uda.py and configs/toy_classmix.py). Numbers in
OUT/results.json that were made with the same configuration, initial values and data stay; the
others are made again. OUT/table.md holds what there is so far.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from snr_jax import cli
from snr_jax.core.errors import UserError
from snr_jax.process import signals
from snr_jax.process.signals import Stop
from snr_jax.toy.content import AMBIGUOUS, CONTENTS
from snr_jax.toy.styles import STYLES

# name: the configuration and the keys that differ, beside BUDGET, which all have in common.
ADAPTATIONS = {
    "statistics": ("toy_uda", {"loss.lambda_target": 0.0}),
    "MaxSquare": ("toy_uda", {}),
    # At 10 it pulls nearly half as much as cross-entropy: scripts/loss_gradients.py, no labels.
    "MaxSquare IW x 10": ("toy_uda", {
        "loss.target": "iw_maxsquare", "loss.lambda_target": 10.0}),
    "class mixing": ("toy_classmix", {}),
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
WAYS = ADAPTATIONS | {
    f"{way} {name}": (ADAPTATIONS[way][0], ADAPTATIONS[way][1] | SETTINGS[name])
    for way, names in VARIED.items() for name in names
}
BUDGET = {"num_steps": 600, "optimizer.schedule_steps": 600, "optimizer.base_rate": 0.01,
          "data.crop": (96, 96)}

FLAGS = flags.FlagValues()
cli.define_path("out", None, "Folder for data, runs, table; by default runs/toy_study, or "
                    "runs/toy_study_CONTENT for a content.", flag_values=FLAGS)  # fmt: skip
flags.DEFINE_enum("content", "none", CONTENTS, "Content of the toys, as of make_toy_domains.py.",
                  flag_values=FLAGS)  # fmt: skip
flags.DEFINE_list("adaptations", list(ADAPTATIONS), "Ways to adapt to each style; none if empty. "
                  f"There are {', '.join(WAYS)}.", flag_values=FLAGS)  # fmt: skip
flags.DEFINE_list("variants", ["plain", "IN", "SNR", "SNR + restitution loss"], "Networks.",
                  flag_values=FLAGS)  # fmt: skip
flags.DEFINE_bool("quick", False, "Images of 64x128, adapted to as a whole.", flag_values=FLAGS)
flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of the runs.", flag_values=FLAGS)
flags.DEFINE_list("styles", ["dusk", "haze"], "Styles of the target.", flag_values=FLAGS)
cli.define_compilation_cache(FLAGS)


def command(args: flags.FlagValues) -> None:
    if not args.seeds or not all(seed.isdecimal() for seed in args.seeds):
        raise UserError(f"--seeds is {','.join(args.seeds)!r}; expected numbers, as 0,1,2")
    targets = [style for style in STYLES if style != "source"]
    if not args.styles or not set(args.styles) <= set(targets):
        raise UserError(f"--styles is {','.join(args.styles)!r}; expected some of "
                        f"{','.join(targets)}")
    for name, known in (("adaptations", WAYS), ("variants", FLAGS["variants"].default)):
        if unknown := [given for given in args[name].value if given not in known]:
            raise UserError(f"--{name} names {', '.join(map(repr, unknown))}; expected some of "
                            f"{','.join(known)}")
    if not args.variants:
        raise UserError(f"--variants is empty; expected some of {','.join(known)}")
    with signals.on_signals() as stop:
        _study(args, [int(seed) for seed in args.seeds], stop)


def _study(args: flags.FlagValues, seeds: Sequence[int], stop: Stop) -> None:
    # Seconds of imports: a signal meanwhile is answered after them.
    from configs import toy_classmix, toy_dg, toy_uda
    from snr_jax.core.files import refuse_pattern
    from snr_jax.studies.toy_study import draw_data, study

    cli.use_compilation_cache(args)
    none = args.content == "none"
    out = Path(args.out or "runs/toy_study" + ("" if none else f"_{args.content}"))
    refuse_pattern(out)
    draw_data(out / "data", args.styles, toy_dg.NUM_TRAIN, toy_dg.NUM_VAL, content=args.content,
              stop=stop)  # fmt: skip
    source_config = toy_dg.get_config("standard")
    modules = {"toy_uda": toy_uda, "toy_classmix": toy_classmix}
    adaptations = {}
    for name in args.adaptations:
        module, overrides = WAYS[name]
        adaptations[name] = modules[module].get_config("standard")
        adaptations[name].update_from_flattened_dict(BUDGET | overrides)
    if args.quick:
        for config in (source_config, *adaptations.values()):
            config.source.size = config.target.size = (64, 128)
            config.data.crop = (0, 0)
    try:
        study(out, source_config, adaptations, seeds=seeds, styles=args.styles,
              variants=args.variants, classes=() if none else AMBIGUOUS, stop=stop)  # fmt: skip
    finally:
        if (out / "table.md").exists():
            print(f"\n{(out / 'table.md').read_text()}\nin {out / 'table.md'}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(argv, FLAGS, __doc__, command)


if __name__ == "__main__":
    sys.exit(main())
