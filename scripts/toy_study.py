"""Which part helps how much: every variant, seed and style on the toy domains.

    python scripts/toy_study.py --out runs/toy_study

Each variant is trained on the source and scored on every style, then adapted with MaxSquare to
each style from there. Numbers in OUT/results.json that were made with the same configuration,
initial values and data stay; the others are made again. OUT/table.md holds what there is so far.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from snr_jax import cli
from snr_jax.core.errors import UserError
from snr_jax.runs import stopping
from snr_jax.runs.stopping import Stop
from snr_jax.toy.styles import STYLES

FLAGS = flags.FlagValues()
flags.DEFINE_string("out", "runs/toy_study", "Folder of data, runs, table.", flag_values=FLAGS)
flags.DEFINE_list("seeds", ["0", "1", "2"], "Numbers, joined by commas.", flag_values=FLAGS)
flags.DEFINE_list("styles", ["dusk", "haze"], "Of the target, as dusk,haze.", flag_values=FLAGS)


def command(args: flags.FlagValues) -> None:
    if not args.seeds or not all(seed.isdecimal() for seed in args.seeds):
        raise UserError(f"--seeds is {','.join(args.seeds)!r}; expected numbers, as 0,1,2")
    targets = [style for style in STYLES if style != "source"]
    if not args.styles or not set(args.styles) <= set(targets):
        raise UserError(f"--styles is {','.join(args.styles)!r}; expected some of "
                        f"{','.join(targets)}")
    with stopping.on_signals() as stop:
        _study(Path(args.out), [int(seed) for seed in args.seeds], args.styles, stop)


def _study(out: Path, seeds: Sequence[int], styles: Sequence[str], stop: Stop) -> None:
    # Seconds of imports: a signal meanwhile is answered after them.
    import jax

    from configs import toy_dg, toy_uda
    from snr_jax.runs.study import draw_data, study

    jax.config.update("jax_compilation_cache_dir", os.path.expanduser("~/.cache/snr_jax"))
    draw_data(out / "data", styles, toy_dg.NUM_TRAIN, toy_dg.NUM_VAL, stop=stop)
    configs = toy_dg.get_config("standard"), toy_uda.get_config("standard")
    try:
        study(out, *configs, seeds=seeds, styles=styles, stop=stop)
    finally:
        if (out / "table.md").exists():
            print(f"\n{(out / 'table.md').read_text()}\nin {out / 'table.md'}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(argv, FLAGS, __doc__, command)


if __name__ == "__main__":
    sys.exit(main())
