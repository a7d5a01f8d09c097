"""Draws the toy domains: OUT/GTA5 (the source) and OUT/Cityscapes (the target, in a style).

    python scripts/make_toy_domains.py --out datasets/toy --style dusk
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from snr_jax import cli
from snr_jax.core.progress import make_progress
from snr_jax.toy import writer
from snr_jax.toy.styles import STYLES

FLAGS = flags.FlagValues()
flags.DEFINE_string("out", None, "Folder of the two data sets.", flag_values=FLAGS)
flags.DEFINE_enum("style", "dusk", list(STYLES), "Of the target.", flag_values=FLAGS)
flags.DEFINE_enum("only", None, ["source", "target"], "Draw one of the two.", flag_values=FLAGS)
for _name, _default, _help in (
    ("num_train", 240, "Images per domain."), ("num_val", 60, "Images per domain."),
    ("seed", 0, "Of the scenes."), ("height", 128, "Pixels."), ("width", 256, "Pixels."),
    ("workers", 2, "Processes."),
):
    flags.DEFINE_integer(_name, _default, _help, lower_bound=int(_name != "seed"),
                         flag_values=FLAGS)
flags.DEFINE_bool("replace", False, "Overwrite another toy data set.", flag_values=FLAGS)
OF_WRITER = ("num_train", "num_val", "seed", "height", "width", "workers", "replace")


def command(args: flags.FlagValues) -> None:
    out = Path(cli.require(args, "out", "--out datasets/toy"))
    options = {name: args[name].value for name in OF_WRITER}
    for role, path, write in (
        ("source", out / "GTA5", writer.write_gta5),
        ("target", out / "Cityscapes", writer.write_cityscapes),
    ):
        if args.only in (None, role):
            style = "source" if role == "source" else args.style
            progress = make_progress(f"{path} ({style}): images")
            drawn = write(path, style=style, progress=progress, **options)
            print(f"{path}: {'done' if drawn else 'already there'}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(argv, FLAGS, __doc__, command)


if __name__ == "__main__":
    sys.exit(main())
