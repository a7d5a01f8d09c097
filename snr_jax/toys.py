"""Draws toy domains in the true layouts of the data sets, each in its folder below OUT.

    python scripts/make_toy_domains.py --out datasets/toy --style dusk
    python scripts/make_toy_domains.py --out datasets/toy --layouts synthia,cityscapes,crosscity

GTA5 and SYNTHIA are sources, drawn in the style "source"; all others are targets, in --style. Of
CamVid (camvid: labels of colours; camvid_ids: SegNet's form) three drives by day are in "source",
num_train + num_val images together, and the one at dusk is in --style, 2 num_val images.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from snr_jax import cli
from snr_jax.core.errors import UserError
from snr_jax.core.progress import make_progress
from snr_jax.toy import writer
from snr_jax.toy.content import CONTENTS
from snr_jax.toy.layouts import LAYOUTS
from snr_jax.toy.styles import STYLES

FLAGS = flags.FlagValues()
cli.define_path("out", None, "Folder for the data sets.", flag_values=FLAGS)
flags.DEFINE_list("layouts", ["gta5", "cityscapes"], f"Data sets, of {', '.join(LAYOUTS)}.",
                  flag_values=FLAGS)  # fmt: skip
flags.DEFINE_enum("style", "dusk", list(STYLES), "Style of the targets.", flag_values=FLAGS)
flags.DEFINE_enum("content", "none", CONTENTS, "What an image's mean colour says: nothing, or "
                  "(tint) which of two classes a drawing is.", flag_values=FLAGS)  # fmt: skip
flags.DEFINE_enum("only", None, ["source", "target"], "Draw that side alone.", flag_values=FLAGS)
for _name, _default, _least, _most, _help in (
    ("num_train", 240, 1, 10**6,
     "Training images per domain: per city of CrossCity, per condition of ACDC."),
    ("num_val", 60, 1, 10**6, "Validation images, likewise."),
    ("seed", 0, 0, 10**9, "Seed of the scenes."),
    ("height", 128, 32, 8192, "Pixels of an image."),
    ("width", 256, 32, 8192, "Pixels of an image."),
    ("workers", 2, 1, 1024, "Processes that draw."),
):
    flags.DEFINE_integer(_name, _default, _help, _least, _most, flag_values=FLAGS)
flags.DEFINE_bool("replace", False, "Overwrite another toy data set.", flag_values=FLAGS)
OF_WRITER = ("num_train", "num_val", "seed", "height", "width", "workers", "replace", "content")


def command(args: flags.FlagValues) -> None:
    out = Path(cli.require(args, "out", "--out datasets/toy"))
    unknown = [name for name in args.layouts if name not in LAYOUTS]
    if unknown or not args.layouts:
        raise UserError(
            f"--layouts is {','.join(args.layouts)!r}; expected some of {','.join(LAYOUTS)}"
        )
    options = {name: args[name].value for name in OF_WRITER}
    for name in dict.fromkeys(args.layouts):
        layout = LAYOUTS[name]
        if args.only in (None, layout.role):
            path = out / layout.folder
            style = "source" if layout.role == "source" else args.style
            progress = make_progress(f"{path} ({style}): images")
            drawn = writer.write(name, path, style=style, progress=progress, **options)
            print(f"{path}: {'done' if drawn else 'already there'}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(argv, FLAGS, __doc__, command)


if __name__ == "__main__":
    sys.exit(main())
