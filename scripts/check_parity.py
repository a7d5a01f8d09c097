"""Recompute a folder of golden numbers with this project's own code and say how well they agree.

    python scripts/check_parity.py --golden DIR [--salt dev] [--only losses metrics ...]

The folder holds what the published PyTorch code computed in float64, for weights and inputs that
are drawn again here from their names and a salt:

    shapes_<kind>.json   {tensor name: shape}; <kind> is baseline, snr, ...
    forward.npz          <kind>/<eval|train>/<main|aux|running statistic>, outputs [N,C,H,W]
    losses.npz           logits, logits_aux, labels; <loss>/<value|grad|grad_aux>
    metrics.npz          <set>/<gt|pred|confusion|score>
    training.npz         <run>/step<i>/<loss>, <run>/delta_norm/<tensor>, <run>/after/<tensor>

A run's name tells what it is, e.g. dg_release, uda_iw_multi_plain: dg (source alone) or uda
(adaptation), its target loss (maxsquare by default, iw its image-wise form), multi, and release
(repeated updates) or plain. A ResNet-101 takes about four minutes on two cores.
Exit code 0: all agrees, 1: something does not, 2: the folder cannot be compared.
"""

import argparse
import json
import re
import sys
import time
import zipfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from snr_jax.core import losses, metrics, optim, steps, torch_names
from snr_jax.core.errors import UserError
from snr_jax.core.labels import IGNORE
from snr_jax.core.models.deeplab import DeepLab
from snr_jax.core.state import create_state, variable_shapes

FILES = ("losses", "metrics", "forward", "training")
TARGET_IS_SMALLER_BY = (16, 32)  # rows and columns, so that the domains differ in size
ROUNDED = 1e-6  # arrays that were rounded to float32 at the end
FLOAT64 = 1e-8
TRAINED = 1e-6  # after several steps in float64
# The published image-wise weights are float32 whatever the logits are: the loss agrees to 1e-6,
# and training amplifies the difference.
IMAGE_WISE, IMAGE_WISE_TRAINED = 1e-6, 1e-3
RATIO = 1e-12  # scores: quotients and means of the same integers
SCORES = {  # name in the folder → name in snr_jax.core.metrics
    "iou": "iou", "pixel_accuracy": "pixel_accuracy", "mean_accuracy": "class_accuracy",
    "mean_iou": "miou", "fw_iou": "fwiou", "mean_precision": "precision",
}



class Arrays(dict):
    """The arrays of one file by their keys; a key that is not there is the user's mistake."""

    def __init__(self, path: Path, arrays: dict[str, np.ndarray]):
        super().__init__(arrays)
        self.path = path

    def __missing__(self, key: str):
        raise UserError(f"{self.path}: no array {key!r}; expected the form that "
                        "`check_parity.py --help` describes")


class Row(NamedTuple):
    """One line of the table: the errors of some arrays, by their keys in the file."""

    quantity: str
    errors: dict[str, float]
    tolerance: float

    @property
    def worst(self) -> str:
        return max(self.errors, key=lambda key: np.nan_to_num(self.errors[key], nan=np.inf))

    @property
    def passed(self) -> bool:
        return all(error <= self.tolerance for error in self.errors.values())


def error(ours, golden, scale: np.ndarray | None = None) -> float:
    """Largest difference over the largest magnitude of `scale`, by default of the golden array.

    Where that is 0, anything but equality is infinite; so is a NaN or a shape of one side alone.
    """
    ours, golden = np.asarray(ours, np.float64), np.asarray(golden, np.float64)
    if ours.shape != golden.shape or (np.isnan(ours) != np.isnan(golden)).any():
        return np.inf
    difference = np.abs(np.nan_to_num(ours) - np.nan_to_num(golden)).max(initial=0)
    size = np.abs(np.nan_to_num(golden if scale is None else scale)).max(initial=0)
    return 0.0 if difference == 0 else float(difference / size) if size else np.inf


# What is drawn from names -----------------------------------------------------------------------


def generator(name: str, salt: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(f"{salt}/{name}".encode()))


def draw_tensor(name: str, shape: tuple[int, ...], salt: str) -> np.ndarray:
    """A tensor of the network, float32, in the PyTorch layout."""
    rng, leaf = generator(name, salt), name.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return np.zeros((), np.int64)
    if leaf == "running_var":
        value = 1.0 + 0.4 * rng.random(shape)
    elif leaf in ("running_mean", "bias"):
        value = 0.1 * rng.standard_normal(shape)
    elif len(shape) == 1:  # the scale of a norm
        value = 1.0 + 0.1 * rng.standard_normal(shape)
    else:
        value = rng.standard_normal(shape) * np.sqrt(2.0 / np.prod(shape[1:]))
    return value.astype(np.float32)


def draw_image(name: str, size: tuple[int, int], salt: str, batch: int = 1) -> jax.Array:
    """BGR minus mean as the network takes it, float64 [N,H,W,3] (of float32 numbers)."""
    image = 50 * generator(name, salt).standard_normal((batch, 3, *size))
    return nhwc(image.astype(np.float32))


def draw_labels(name: str, num_classes: int, size: tuple[int, int], salt: str) -> np.ndarray:
    """Labels uint8 [1,H,W], a tenth of them ignored."""
    shape = (1, *size)
    labels = generator(name, salt).integers(0, num_classes, shape)
    labels[generator(f"{name}/ignore", salt).random(shape) < 0.1] = IGNORE
    return labels.astype(np.uint8)


def nhwc(array) -> jax.Array:
    return jnp.asarray(np.transpose(array, (0, 2, 3, 1)), jnp.float64)


def nchw(array) -> np.ndarray:
    return np.transpose(array, (0, 3, 1, 2))


def with_ignore(labels: np.ndarray) -> np.ndarray:
    """The folder's labels, -1 where ignored → this project's."""
    return np.where(labels < 0, IGNORE, labels.astype(np.int32))


# The folder -------------------------------------------------------------------------------------


def load_npz(path: Path) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as file:
            return Arrays(path, dict(file))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected a folder of golden numbers with "
                        f"{', '.join(f'{name}.npz' for name in FILES)}: check --golden, or leave "
                        "the part out with --only") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as problem:
        raise UserError(f"{path}: not a readable npz file ({problem}); copy the folder again") \
            from None


def load_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    try:
        return {name: tuple(shape) for name, shape in json.loads(path.read_text()).items()}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected a JSON object {{tensor name: shape}}: "
                        "check --golden") from None
    except (ValueError, AttributeError, TypeError) as problem:
        raise UserError(f"{path}: expected a JSON object {{tensor name: shape}} ({problem}); "
                        "copy the folder again") from None


def find_salt(folder: Path) -> str | None:
    """What the folder's README calls its salt."""
    readme = folder / "README.md"
    text = readme.read_text(errors="replace") if readme.is_file() else ""
    found = re.search(r"\bsalt\s+`([\w.-]+)`", text)
    return found and found[1]


class Network(NamedTuple):
    """A network with its drawn weights. state_dict: PyTorch names, float32."""

    model: DeepLab
    state_dict: Arrays
    variables: dict  # float64


def draw_network(folder: Path, kind: str, salt: str) -> Network:
    """The network that shapes_<kind>.json describes, through the converter's names."""
    path = folder / f"shapes_{kind}.json"
    shapes = load_shapes(path)
    state_dict = {name: draw_tensor(name, shape, salt) for name, shape in shapes.items()}
    try:
        model = DeepLab(**torch_names.infer_architecture(state_dict), dtype=jnp.float64)
        loaded, unused = torch_names.from_torch(state_dict)
        variables, report = torch_names.merge(variable_shapes(model), loaded, unused)
    except UserError as problem:
        raise UserError(f"{path}: {problem}") from None
    if report.missing or report.unused:
        strange = ", ".join((*report.missing, *report.unused)[:3])
        raise UserError(f"{path}: {len(report.missing)} tensors missing, {len(report.unused)} of "
                        f"no known place ({strange}); expected those of the published network")
    variables = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), variables)
    return Network(model, state_dict, variables)


# What is compared -------------------------------------------------------------------------------


def loss_function(name: str, arrays: Arrays):
    """The loss of that name as f(logits, aux), or None."""
    plain, _, threshold = name.partition("_threshold_")
    options = {"threshold": float(threshold)} if threshold else {}
    if name == "cross_entropy":
        labels = with_ignore(arrays["labels"])
        return lambda logits, aux: losses.mean(losses.cross_entropy(logits, labels))
    if plain == "self_guidance_aux":
        return lambda logits, aux: losses.mean(losses.guidance(logits, aux, **options))
    if plain in losses.TARGET_LOSSES:
        return lambda logits, aux: losses.mean(losses.TARGET_LOSSES[plain](logits, **options))
    return None


def compare_losses(arrays: Arrays) -> Iterator[Row]:
    logits, aux = nhwc(arrays["logits"]), nhwc(arrays["logits_aux"])
    for name in dict.fromkeys(key.split("/")[0] for key in arrays if "/" in key):
        if (function := loss_function(name, arrays)) is None:
            continue
        keys = {part: f"{name}/{part}" for part in ("value", "grad", "grad_aux")}
        count = len(arrays.get(keys["grad"], logits))  # some are of the first image alone
        value, gradients = jax.value_and_grad(function, argnums=(0, 1))(logits[:count], aux[:count])
        ours = dict(zip(keys, (value, *map(nchw, gradients)), strict=True))
        tolerance = IMAGE_WISE if name.startswith("iw_") else FLOAT64
        for part, key in keys.items():
            if key in arrays:
                yield Row(f"losses/{key}", {key: error(ours[part], arrays[key])}, tolerance)


def compare_metrics(arrays: Arrays) -> Iterator[Row]:
    for kind in dict.fromkeys(key.split("/")[0] for key in arrays if key.endswith("/gt")):
        label, prediction = with_ignore(arrays[f"{kind}/gt"]), arrays[f"{kind}/pred"]
        num_classes = len(arrays[f"{kind}/confusion"])
        confusion = np.asarray(metrics.confusion_matrix(
            jnp.asarray(label), jnp.asarray(prediction), num_classes))
        key = f"{kind}/confusion"
        yield Row(f"metrics/{key}", {key: error(confusion, arrays[key])}, 0.0)
        ours = metrics.scores(confusion)
        keys = {f"{kind}/{name}": ours[mine] for name, mine in SCORES.items()}
        errors = {key: error(value, arrays[key]) for key, value in keys.items() if key in arrays}
        yield Row(f"metrics/{kind}/scores", errors, RATIO)


def compare_forward(arrays: Arrays, networks, salt: str) -> Iterator[Row]:
    for main in (key for key in arrays if re.fullmatch("[^/]+/(eval|train)/main", key)):
        kind, mode, _ = main.split("/")
        network = networks(kind)
        batch, _, *size = arrays[main].shape
        image = draw_image("eval_input", size, salt, batch)
        forward = partial(network.model.apply, train=mode == "train", mutable=["batch_stats"])
        output, updated = jax.jit(forward)(network.variables, image)
        for head in ("main", "aux"):
            key = f"{kind}/{mode}/{head}"
            errors = {key: error(nchw(getattr(output, head)), arrays[key])}
            yield Row(f"forward/{key}", errors, ROUNDED)
        moved = torch_names.to_torch({"params": {}, **updated})
        keys = {f"{kind}/{mode}/{name}": value for name, value in moved.items()}
        errors = {key: error(keys[key], arrays[key]) for key in arrays if key in keys}
        if errors:
            yield Row(f"forward/{kind}/{mode}/running statistics", errors, FLOAT64)


class Run(NamedTuple):
    adapts: bool
    target_loss: str
    multi: bool
    repeated_updates: bool


def parse_run(name: str) -> Run | None:
    """dg_release → Run; None where the name has a word of no known meaning."""
    domain, *words = name.split("_")
    update = words.pop() if words else ""
    plain = [word for word in words if word not in ("iw", "multi")] or ["maxsquare"]
    loss = ("iw_" if "iw" in words else "") + plain[0]
    if (domain not in ("dg", "uda") or update not in ("release", "plain") or len(plain) > 1
            or loss not in losses.TARGET_LOSSES):
        return None
    return Run(domain == "uda", loss, "multi" in words, update == "release")


def take_as_is(key, image, label=None, *, first_sample=0):
    """In place of the augmentation: the inputs are what the network sees."""
    return image, label


def make_step(run: Run, model: DeepLab, args: argparse.Namespace):
    """The optimiser and the step, jitted."""
    groups = optim.param_groups(repeated_updates=run.repeated_updates, train_snr=False,
                                multi_level=run.multi, head_branches=model.head_branches)
    optimizer = optim.sgd(optim.poly_schedule(args.base_rate, args.i_max), groups,
                          momentum=args.momentum, weight_decay=args.weight_decay)
    options = {"model": model, "optimizer": optimizer, "prepare": take_as_is,
               "lambda_seg": args.lambda_seg if run.multi else 0.0}
    if run.adapts:
        step = steps.make_adaptation_step(
            **options, target_loss=losses.TARGET_LOSSES[run.target_loss],
            lambda_target=args.lambda_target, guidance_threshold=args.guidance_threshold)
    else:
        step = steps.make_source_step(**options)
    return optimizer, jax.jit(step, donate_argnums=0)


def compare_training(
    arrays: Arrays, networks, salt: str, size: tuple[int, int], args: argparse.Namespace
) -> Iterator[Row]:
    target_size = tuple(n - less for n, less in zip(size, TARGET_IS_SMALLER_BY, strict=True))
    weights = {  # the folder's losses are stored as they enter the objective
        "loss_source": 1.0, "loss_source_aux": args.lambda_seg, "loss_target": args.lambda_target,
        "loss_target_aux": args.lambda_seg * args.lambda_target,
    }
    for name in dict.fromkeys(key.split("/")[0] for key in arrays):
        if (run := parse_run(name)) is None:
            continue
        keys = [key for key in arrays if key.startswith(f"{name}/")]
        network = networks("snr" if any("/IN1." in key for key in keys) else "baseline")
        optimizer, step = make_step(run, network.model, args)
        # A copy: the step takes the memory of its state.
        state = create_state(jax.tree.map(jnp.copy, network.variables), optimizer)
        tolerance = IMAGE_WISE_TRAINED if run.target_loss.startswith("iw_") else TRAINED
        for i in range(sum(bool(re.fullmatch(rf"{name}/step\d+/loss_source", k)) for k in keys)):
            batch = {
                "source_image": draw_image(f"source/{i}", size, salt),
                "source_label": draw_labels(
                    f"source_labels/{i}", network.model.num_classes, size, salt),
            }
            if run.adapts:
                batch["target_image"] = draw_image(f"target/{i}", target_size, salt)
            state, values = step(state, batch)
            ours = {f"{name}/step{i}/{loss}": weights[loss] * float(value)
                    for loss, value in values.items()}
            errors = {key: error(value, arrays[key]) if key in arrays else np.inf
                      for key, value in ours.items()}
            yield Row(f"training/{name}/step{i}/losses", errors, tolerance if i else TRAINED)
        after = torch_names.to_torch({"params": state.params, "batch_stats": state.batch_stats})
        yield from _compare_tensors(name, keys, arrays, network.state_dict, after, tolerance)


def _compare_tensors(name, keys, arrays, before, after, tolerance) -> Iterator[Row]:
    """What a run made of the tensors: how far each went, and the first values of some."""
    before = {key: value.astype(np.float64) for key, value in before.items()}
    change = {key: np.asarray(after[key], np.float64) - value for key, value in before.items()}
    moved, statistics, still = {}, {}, {}
    for key in keys:
        tensor = key.removeprefix(f"{name}/delta_norm/")
        if tensor in change and tensor != key:
            group = (still if arrays[key] == 0 else
                     statistics if "running_" in tensor else moved)
            group[key] = error(np.sqrt(np.sum(change[tensor] ** 2)), arrays[key])
    for title, errors, allowed in (
        (f"change of {len(moved)} trained tensors", moved, tolerance),
        (f"change of {len(statistics)} running statistics", statistics, tolerance),
        (f"no change of {len(still)} tensors", still, 0.0),
    ):
        if errors:
            yield Row(f"training/{name}/{title}", errors, allowed)
    first = {}
    for key in keys:
        tensor = key.removeprefix(f"{name}/after/")
        if tensor in change and tensor != key:
            count = arrays[key].size
            ours = np.asarray(after[tensor]).reshape(-1)[:count]
            # Against the change, not the value: most of a weight is what it was before.
            start = before[tensor].reshape(-1)[:count]
            first[key] = error(ours, arrays[key], scale=arrays[key] - start)
    if first:
        yield Row(f"training/{name}/values of {len(first)} tensors", first, tolerance)


def find_size(folder: Path, args: argparse.Namespace) -> tuple[int, int]:
    """Height and width of the source images: given, else those of the forward outputs."""
    if args.size:
        return tuple(args.size)
    arrays = load_npz(folder / "forward.npz")
    shapes = [array.shape for array in arrays.values() if array.ndim == 4]
    if not shapes:
        raise UserError(f"{arrays.path}: no array of four axes to read the images' size from; "
                        "give it with --size HEIGHT WIDTH")
    return shapes[0][2:]


def compare(folder: Path, args: argparse.Namespace, salt: str) -> Iterator[Row]:
    """All rows of the table, as they are computed."""
    cache: dict[str, Network] = {}

    def networks(kind: str) -> Network:
        if kind not in cache:
            cache.clear()  # one at a time: half a gigabyte each
            cache[kind] = draw_network(folder, kind, salt)
            if args.num_classes not in (None, classes := cache[kind].model.num_classes):
                raise UserError(f"{folder}/shapes_{kind}.json describes {classes} classes; "
                                f"--num-classes {args.num_classes} was given: leave it out")
        return cache[kind]

    for part in args.only:
        arrays = load_npz(folder / f"{part}.npz")
        if part == "losses":
            rows, inputs = compare_losses(arrays), r"logits|logits_aux|labels"
        elif part == "metrics":
            rows, inputs = compare_metrics(arrays), r"[^/]+/(gt|pred)"
        elif part == "forward":
            rows, inputs = compare_forward(arrays, networks, salt), ""
        else:
            size = find_size(folder, args)
            rows, inputs = compare_training(arrays, networks, salt, size, args), ""
        checked = {key for key in arrays if re.fullmatch(inputs, key)}
        if checked == arrays.keys():
            raise UserError(f"{arrays.path}: nothing in it to compare; copy the folder again")
        for row in rows:
            checked |= row.errors.keys()
            yield row
        if rest := dict.fromkeys(sorted(arrays.keys() - checked), np.nan):
            yield Row(f"{part}/not recognised", rest, 0.0)


# The table --------------------------------------------------------------------------------------


def show(row: Row) -> str:
    key = row.worst
    line = (f"{row.quantity:<58}{len(row.errors):>7}{row.errors[key]:>11.1e}{row.tolerance:>11.0e}"
            f"  {'pass' if row.passed else 'FAIL'}")
    return line if row.passed else f"{line}  {key}"


def run(args: argparse.Namespace) -> int:
    """Print the table row by row; 0 if all of it passes, else 1."""
    folder = Path(args.golden)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected the golden numbers: check --golden")
    salt = args.salt or find_salt(folder) or "dev"
    print(f"{folder}, salt {salt!r}\n")
    print(f"{'quantity':<58}{'arrays':>7}{'error':>11}{'tolerance':>11}  result", flush=True)
    start, rows = time.monotonic(), []
    for row in compare(folder, args, salt):
        print(show(row), flush=True)
        rows.append(row)
    failed = [row for row in rows if not row.passed]
    arrays = sum(len(row.errors) for row in rows)
    print(f"\n{len(rows) - len(failed)} of {len(rows)} rows pass, {arrays} arrays compared, "
          f"{time.monotonic() - start:.0f} s")
    for path in sorted(folder.glob("*.npz")):
        if path.stem not in args.only:
            print(f"not checked: {path.name}")
    logits = [row for row in rows if row.tolerance == ROUNDED]
    if logits and all(row.errors[row.worst] > 0.01 for row in logits):
        print(f"No output of a network agrees: are the weights drawn with another salt than "
              f"{salt!r}? Give theirs with --salt.")
    return 1 if failed else 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--golden", required=True, metavar="DIR", help="the folder")
    parser.add_argument("--salt", help="of weights and inputs; default: what the folder's "
                        "README.md calls its salt, else dev")
    parser.add_argument("--only", nargs="+", choices=FILES, default=FILES, metavar="PART",
                        help=f"of {', '.join(FILES)}; default: all")
    parser.add_argument("--num-classes", type=int, help="expected; default: that of the shapes")
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"),
                        help="of the source images; default: that of forward.npz")
    training = parser.add_argument_group("training.npz was made with")
    for name, value in (("base-rate", 2.5e-4), ("momentum", 0.9), ("weight-decay", 5e-4),
                        ("lambda-target", 0.1), ("lambda-seg", 0.1), ("guidance-threshold", 0.3)):
        training.add_argument(f"--{name}", type=float, default=value, help=f"default {value}")
    training.add_argument("--i-max", type=int, default=100, help="default 100")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    try:
        with jax.enable_x64(True):
            return run(args)
    except UserError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
