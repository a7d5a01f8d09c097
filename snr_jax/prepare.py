"""Resizes a domain once to its training size: OUT/<domain>_<height>x<width>, read by TFDS.

    python scripts/prepare_data.py --domain gta5 --dir datasets/GTA5 --out datasets/prepared
    python -m snr_jax.main --config configs/gta5_dg.py --config.data.prepared=datasets/prepared ...

The same command goes on after an interruption; on a finished folder it checks every shard. Where
one machine is too slow, Apache Beam spreads the work over many: --beam_runner.
"""

import os
import sys
from collections.abc import Sequence

from absl import flags

from snr_jax import cli
from snr_jax.core.errors import UserError
from snr_jax.core.progress import make_progress
from snr_jax.process import signals

FLAGS = flags.FlagValues()
cli.define_path("domain", None, "Data set, as gta5 or my_domain.yaml.", flag_values=FLAGS)
cli.define_path("dir", None, "Folder of the data set; an own one lies beside its file.",
                    flag_values=FLAGS)
flags.DEFINE_list("splits", ["train"], "Splits to prepare, as train,val.", flag_values=FLAGS)
flags.DEFINE_list("size", None, "HEIGHT,WIDTH; by default the domain's own.", flag_values=FLAGS)
flags.DEFINE_enum("images", "raw", ["raw", "png"], "Raw is faster, png smaller; both are exact.",
                  flag_values=FLAGS)
cli.define_path("out", None, "Folder for the prepared data.", flag_values=FLAGS)
flags.DEFINE_integer("workers", os.cpu_count(), "Processes used.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_string("beam_runner", None, "Runner of Apache Beam in the place of processes, as "
                    "DirectRunner; needs requirements-beam.txt.", flag_values=FLAGS)
flags.DEFINE_list("beam_options", [], "Options of its pipeline: KEY=VALUE,...", flag_values=FLAGS)


def _size(words: Sequence[str]) -> tuple[int, int]:
    from snr_jax.config.keys import SIDES  # JAX: slow, not for --help

    sides = [int(word) for word in words if word.strip().isdecimal()]
    if len(sides) != len(words) or not SIDES.accepts(sides):
        raise UserError(f"--size is {','.join(words)}; expected HEIGHT,WIDTH, {SIDES.words}, as "
                        "--size 720,1280")
    return sides[0], sides[1]


def command(args: flags.FlagValues) -> None:
    from snr_jax.data.decode import import_tensorflow
    from snr_jax.data.domains import create_domain, is_own
    from snr_jax.data.prepared import writing  # slow, not for --help
    from snr_jax.data.prepared.spread import Beam
    from snr_jax.workdir import record

    name = cli.require(args, "domain", "--domain gta5")
    domain = create_domain(name, args.dir)
    if not is_own(name):  # which lies beside its file
        cli.require(args, "dir", "--dir datasets/GTA5")
    out = cli.require(args, "out", "--out datasets/prepared")
    size = _size(args["size"].value) if args["size"].value else domain.train_size
    if args.beam_options and not args.beam_runner:
        raise UserError("--beam_options needs --beam_runner, as --beam_runner DirectRunner")
    import_tensorflow()
    beam = Beam(args.beam_runner, args.beam_options) if args.beam_runner else None
    message = f"stopped; the same command goes on in {out}"
    with signals.on_signals() as stop:
        writing.prepare(
            domain, out,
            splits=list(dict.fromkeys(args["splits"].value)), size=size,
            images=args["images"].value, workers=args["workers"].value,
            beam=beam, identify=record.identity, progress=make_progress("images"),
            interrupt=lambda: signals.unless_asked(stop, message),
        )


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(argv, FLAGS, __doc__, command)


if __name__ == "__main__":
    sys.exit(main())
