"""The four cities of CrossCity: one network of Cityscapes, as it is and adapted to each.

    python scripts/crosscity.py --config configs/city2crosscity_uda.py:Rome --out runs/crosscity

Starts from config.init_from, by default runs/city_dg13. Each city takes the place of the one that
the configuration names; its recipe, variant and keys hold for all, as in
configs/city2crosscity_uda.py:Rome,iw_maxsquare. The runs are OUT/rio to OUT/taipei, the scores
OUT/results.json and OUT/table.md. The same command goes on with an interrupted one.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from snr_jax import cli
from snr_jax.core.errors import UserError
from snr_jax.core.files import refuse_pattern
from snr_jax.data.domains import CITIES
from snr_jax.process import signals
from snr_jax.studies.crosscity import crosscity

FLAGS = flags.FlagValues()
cli.define_config(FLAGS)
cli.define_path("out", "runs/crosscity", "Folder for runs and table.", flag_values=FLAGS)
flags.DEFINE_list("cities", list(CITIES), "Cities to adapt to, as rome,tokyo.", flag_values=FLAGS)
cli.define_compilation_cache(FLAGS)


def command(args: flags.FlagValues) -> None:
    config = cli.require(args, "config", "--config configs/city2crosscity_uda.py:Rome")
    cities = list(dict.fromkeys(city.strip().lower() for city in args.cities))
    if not cities or not set(cities) <= set(CITIES):
        raise UserError(f"--cities is {','.join(args.cities)!r}; expected some of "
                        f"{','.join(CITIES)}")
    refuse_pattern(args.out)
    cli.use_compilation_cache(args)
    with signals.on_signals() as stop:
        print(f"\n{crosscity(config, Path(args.out), cities, stop=stop)}\nin {args.out}/table.md")


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(argv, FLAGS, __doc__, command)


if __name__ == "__main__":
    sys.exit(main())
