"""Recompute a folder of golden numbers with this project's own code and say how well they agree.

    python scripts/check_parity.py --golden DIR
    python scripts/check_parity.py --golden DIR --only losses,metrics --salt dev

The folder holds what the published PyTorch code computed in float64, for weights and inputs that
are drawn again here from their names and a salt:

    shapes_<kind>.json   {tensor name: shape}; <kind> is baseline, snr, ...
    forward.npz          <kind>/<eval|train>/<main|aux|running statistic>, outputs [N,C,H,W]
    losses.npz           logits, logits_aux, labels; <loss>/<value|grad|grad_aux>
    metrics.npz          <set>/<gt|pred|confusion|score>
    training.npz         <run>/step<i>/<loss>, <run>/delta_norm/<tensor>, <run>/after/<tensor>
    vit.npz              tokens, logits, gradients and training steps of the transformer, in a
                         folder of its own (snr_jax/parity/vit.py)

A run's name tells what it is, e.g. dg_release, uda_iw_multi_plain: dg (source alone) or uda
(adaptation), its target loss (maxsquare by default, iw its image-wise form), multi, and release
(repeated updates) or plain. Optimiser and step come from configs/default.py:release with these
switches, by the same functions as in a training. A ResNet-101 takes about four minutes on two
cores.
Exit code 0: all agrees, 1: something does not, 2: the folder cannot be compared.
"""

import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from snr_jax import cli
from snr_jax.configs import default
from snr_jax.core.errors import UserError
from snr_jax.core.models.create import ATROUS
from snr_jax.parity.compare import (
    Networks,
    Row,
    compare_forward,
    compare_losses,
    compare_metrics,
)
from snr_jax.parity.golden import FILES, Network, draw_network, find_salt, load_npz
from snr_jax.parity.training import compare_training
from snr_jax.parity.vit import compare_vit

SETTINGS = {  # flag: (key of the configuration, what the folder was made with)
    "base_rate": ("optimizer.base_rate", 2.5e-4),
    "i_max": ("optimizer.schedule_steps", 100),
    "momentum": ("optimizer.momentum", 0.9),
    "weight_decay": ("optimizer.weight_decay", 5e-4),
    "lambda_target": ("loss.lambda_target", 0.1),
    "lambda_seg": ("loss.lambda_seg", 0.1),
    "guidance_threshold": ("loss.threshold", 0.3),
}

FLAGS = flags.FlagValues()
cli.define_path("golden", None, "Folder of the published code's numbers.", flag_values=FLAGS)
flags.DEFINE_string(
    "salt", None, "Salt of weights and inputs; by default what the folder's README.md calls so, "
    "else dev.", flag_values=FLAGS,
)
PARTS = (*FILES, "vit")
flags.DEFINE_list(
    "only", None, f"To compare, of {', '.join(PARTS)}; by default vit where the folder holds "
    "vit.npz, else all others.", flag_values=FLAGS,
)
flags.DEFINE_integer(
    "num_classes", None, "Classes to expect; by default those of the shapes.", lower_bound=1,
    flag_values=FLAGS,
)
flags.DEFINE_list(
    "size", None, "HEIGHT,WIDTH of the source images; by default those of forward.npz.",
    flag_values=FLAGS,
)
flags.DEFINE_enum(
    "atrous", "native", ATROUS, "Form of the dilated convolutions.", flag_values=FLAGS)
for _flag, (_key, _value) in SETTINGS.items():
    _define = flags.DEFINE_integer if isinstance(_value, int) else flags.DEFINE_float
    _define(_flag, _value, f"{_key} that training.npz was made with.", flag_values=FLAGS)


def _parts(folder: Path, args: flags.FlagValues) -> list[str]:
    if args.only is None:
        return ["vit"] if (folder / "vit.npz").is_file() else list(FILES)
    if not args.only or set(args.only) - set(PARTS):
        raise UserError(f"--only is {','.join(args.only)!r}; expected some of {','.join(PARTS)}")
    return args.only


def _size(folder: Path, args: flags.FlagValues) -> tuple[int, int]:
    """Height and width of the source images: given, else those of the forward outputs."""
    if args.size:
        try:
            height, width = map(int, args.size)
        except ValueError:
            raise UserError(f"--size is {','.join(args.size)}; expected HEIGHT,WIDTH in pixels, "
                            "as 97,129") from None
        return height, width
    arrays = load_npz(folder / "forward.npz")
    shapes = [array.shape for array in arrays.values() if array.ndim == 4]
    if not shapes:
        raise UserError(f"{arrays.path}: no array of four axes to read the images' size from; "
                        "give it with --size HEIGHT,WIDTH")
    return shapes[0][2:]


def _networks(folder: Path, args: flags.FlagValues, salt: str) -> Networks:
    """The network of a kind, drawn when it is asked for."""
    cache: dict[str, Network] = {}

    def network(kind: str) -> Network:
        if kind not in cache:
            cache.clear()  # one at a time: half a gigabyte each
            cache[kind] = draw_network(folder, kind, salt, args.atrous)
            if args.num_classes not in (None, classes := cache[kind].model.num_classes):
                raise UserError(f"{folder}/shapes_{kind}.json describes {classes} classes; "
                                f"--num_classes {args.num_classes} was given: leave it out")
        return cache[kind]

    return network


def _configuration(args: flags.FlagValues) -> ConfigDict:
    config = default.get_config("release")
    for flag, (key, _) in SETTINGS.items():
        config.update_from_flattened_dict({key: args[flag].value})
    return config


def _compare(folder: Path, args: flags.FlagValues, salt: str) -> Iterator[Row]:
    """All rows of the table, as they are computed."""
    networks = _networks(folder, args, salt)
    for part in _parts(folder, args):
        arrays, inputs = load_npz(folder / f"{part}.npz"), ""
        if part == "losses":
            rows, inputs = compare_losses(arrays), r"logits|logits_aux|labels"
        elif part == "metrics":
            rows, inputs = compare_metrics(arrays), r"[^/]+/(gt|pred)"
        elif part == "vit":
            rows = compare_vit(arrays, folder, salt)
        elif part == "forward":
            rows = compare_forward(arrays, networks, salt)
        else:
            rows = compare_training(
                arrays, networks, salt, _size(folder, args), _configuration(args))
        checked = {key for key in arrays if re.fullmatch(inputs, key)}
        if checked == arrays.keys():
            raise UserError(f"{arrays.path}: nothing in it to compare; copy the folder again")
        for row in rows:
            checked |= row.errors.keys()
            yield row
        if rest := dict.fromkeys(sorted(arrays.keys() - checked), np.nan):
            yield Row(f"{part}/not recognised", rest, 0.0)


def _line(row: Row) -> str:
    key = row.worst
    line = (f"{row.quantity:<58}{len(row.errors):>7}{row.errors[key]:>11.1e}{row.tolerance:>11.0e}"
            f"  {'pass' if row.passed else 'FAIL'}")
    return line if row.passed else f"{line}  {key}"


def command(args: flags.FlagValues) -> int:
    """Prints the table row by row; 0 if all of it passes, else 1."""
    folder = Path(cli.require(args, "golden", "--golden golden"))
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected the golden numbers: check --golden")
    salt = args.salt or find_salt(folder) or "dev"
    print(f"{folder}, salt {salt!r}, {args.atrous} dilated convolutions\n")
    print(f"{'quantity':<58}{'arrays':>7}{'error':>11}{'tolerance':>11}  result", flush=True)
    start, rows = time.monotonic(), []
    with jax.enable_x64(True):
        for row in _compare(folder, args, salt):
            print(_line(row), flush=True)
            rows.append(row)
    failed = [row for row in rows if not row.passed]
    arrays = sum(len(row.errors) for row in rows)
    print(f"\n{len(rows) - len(failed)} of {len(rows)} rows pass, {arrays} arrays compared, "
          f"{time.monotonic() - start:.0f} s")
    for path in sorted(folder.glob("*.npz")):
        if path.stem not in _parts(folder, args):
            print(f"not checked: {path.name}")
    logits = [row for row in rows if row.quantity.endswith(("/main", "/aux"))]
    if logits and all(row.errors[row.worst] > 0.01 for row in logits):
        print(f"No output of a network agrees: are the weights drawn with another salt than "
              f"{salt!r}? Give theirs with --salt.")
    return 1 if failed else 0


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(argv, FLAGS, __doc__, command)


if __name__ == "__main__":
    sys.exit(main())
