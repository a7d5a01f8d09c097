"""Scores of a network on one domain or several; they are printed, drawn and written.

    python -m snr_jax.evaluate --config configs/gta5_dg.py --checkpoint runs/gta5_dg
    python -m snr_jax.evaluate --config configs/gta5_dg.py --checkpoint runs/gta5_dg \
        --domains cityscapes,bdd100k,mapillary,acdc

Both protocols ("network": labels at the network's size; "full": logits upsampled to the labels'
own size), each without and with the mirrored image. Needs the labels of the split. Beside mIoU
stands the expected calibration error (ECE): how far the probability of the predicted class lies
from the share of right pixels, the mean over 15 bins of that probability. Written: evaluation.json,
where every score carries its settings, reliability.png, the bins, and predictions.png. An earlier
evaluation.json of other scores stays, as evaluation.json.other-1.

--tile H,W scores windows of the image at the size that is scored, --scales 0.75,1,1.25 the image
(or each window) at several sizes; probabilities are averaged. Scores of such settings are called
full+tile, full+scales, and are never compared with others.

--domains gives a table with a row per domain and their mean. Each domain lies in its own folder
below data.root, or where DOMAIN=DIR says, and is seen at its own size or at --size. ACDC has a row
for each condition, and one of all their pixels, which alone counts in the mean.
"""

import itertools
import json
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import jax.numpy as jnp
from absl import flags
from ml_collections import ConfigDict

from snr_jax import cli
from snr_jax.config import arguments, checks
from snr_jax.config.keys import SIDES
from snr_jax.core.errors import UserError
from snr_jax.core.files import make_room, user_path, without_nan, write_text
from snr_jax.core.labels import Classes
from snr_jax.core.models.backbone import architecture
from snr_jax.core.models.create import Network
from snr_jax.core.models.deeplab import LEAST
from snr_jax.core.parallel import create_parallel
from snr_jax.core.tiles import Averaging
from snr_jax.data.decode import import_tensorflow
from snr_jax.data.faults.look import look
from snr_jax.data.samples import Domain
from snr_jax.data.splits import open_split
from snr_jax.inference.views import OWN, create_view
from snr_jax.report.pictures import panel, write_png
from snr_jax.report.reliability import reliability_picture
from snr_jax.report.tables import class_table, domain_table, percent
from snr_jax.runs import evaluation, network
from snr_jax.runs.evaluation import PROTOCOLS, Rows, count, pictures, unlike_training
from snr_jax.workdir import checkpoints
from snr_jax.workdir.checkpoints import Checkpoint
from snr_jax.workdir.record import evaluation_settings

SCALES = (0.25, 4.0)  # the least and the largest

FLAGS = flags.FlagValues()
cli.define_config(FLAGS)
cli.define_compilation_cache(FLAGS)
cli.define_path("checkpoint", None, "The network: a run, a checkpoint or a weights folder.",
                flag_values=FLAGS)
cli.define_path(
    "out", None, "Folder for the results; by default RUN/evaluation/CHECKPOINT/DOMAIN.",
    flag_values=FLAGS,
)
flags.DEFINE_enum(
    "domain", "target", ["target", "source"], "Which domain of the configuration is scored.",
    flag_values=FLAGS,
)
flags.DEFINE_list(
    "domains", [], "Score these instead of --domain, as cityscapes,bdd100k,crosscity=NTHU/Rome.",
    flag_values=FLAGS,
)
flags.DEFINE_list(
    "size", [], "HEIGHT,WIDTH at which --domains are seen, as 512,1024; by default each one's own.",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "split", None, "Split to score; by default the configured val_split, or val with --domains.",
    flag_values=FLAGS,
)
flags.DEFINE_enum(
    "protocol", "both", [*PROTOCOLS, "both"],
    "At which size predictions are scored: the network's, or the labels' (full).",
    flag_values=FLAGS,
)
flags.DEFINE_enum(
    "flip", "both", ["no", "yes", "both"], "Whether to average with the mirrored image.",
    flag_values=FLAGS,
)
flags.DEFINE_list(
    "tile", None,
    "HEIGHT,WIDTH of tiles of the image at the size that is scored, each seen alone and then "
    "averaged.",
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "overlap", None,
    "Pixels that neighbouring tiles share at least; by default an eighth of their shorter side.",
    flag_values=FLAGS,
)
flags.DEFINE_list(
    "scales", ["1"],
    "Factors of the size at which the network sees the image, or each tile, as 0.75,1,1.25; their "
    "predictions are averaged.",
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "max_images", 0, "Images to score of each domain; 0: all.", lower_bound=0, flag_values=FLAGS
)
flags.DEFINE_integer(
    "pictures", 4, "Predictions to draw, of the whole image at the network's size; 0: none.",
    lower_bound=0, flag_values=FLAGS
)


def command(args: flags.FlagValues) -> None:
    config = cli.require(args, "config", "--config configs/gta5_dg.py")
    import_tensorflow()
    where = cli.require(args, "checkpoint", "--checkpoint runs/gta5_dg")
    checks.check(config)
    cli.use_compilation_cache(args)
    checkpoint = checkpoints.find(where)
    _check_domains(args)
    averaging = _averaging(args)
    out = Path(args.out or _default_out(checkpoint, "domains" if args.domains else args.domain))
    _refuse_unwritable(out)
    sides = arguments.create_domains(config)
    classes = arguments.create_classes(config.num_classes, sides["source"])
    model, variables, meta = network.load(checkpoint, **network.computation(config))
    variables = network.in_order(model, variables, meta, classes, str(checkpoint.path))
    rows = _open_rows(args, config, sides, classes)
    if averaging:
        _check_scales(averaging, rows)
    for split in rows.read.values():
        print(f"{checkpoint.path} on {split.told}; results go to {out}", flush=True)
    for split in rows.read.values():
        for warning in look(split.samples, split.labels, size=split.size):
            print(f"WARNING {warning}", flush=True)
    notes = [*unlike_training(meta, config), *evaluation.read_otherwise(meta, rows)]
    for note in notes:
        if not (args.domains and "target.size" in note):  # their sizes are their own
            print(f"note: {note}", flush=True)
    results = _score(args, config, model, variables, rows, averaging, checkpoint.step)
    record = {
        "checkpoint": str(checkpoint.path), "trained": meta.get("source"),
        "model": architecture(model), "config": arguments.to_dict(config),
    }
    if args.domains:
        mean = evaluation.means(results, rows.in_mean)
        print(domain_table(results, mean))
        record |= {"domains": results, "mean": mean, "mean_of": rows.in_mean}
    else:
        scores = results[rows.in_mean[0]]
        print(class_table(scores))
        record |= {"results": scores}
    _write_scores(out / "evaluation.json", json.dumps(without_nan(record), indent=1))
    write_png(reliability_picture(_diagrams(results)), out / "reliability.png")
    for name, split in rows.read.items() if args.pictures else ():
        file = _picture_name(name, rows.read) if args.domains else "predictions.png"
        write_png(panel(pictures(model, variables, split.first(args.pictures))), out / file)
    print(f"written: {out}")


def _write_scores(path: Path, text: str) -> None:
    """Other scores of an earlier evaluation, as of other settings, are kept beside them."""
    if path.exists() and path.read_bytes() != text.encode():
        other = make_room(path)
        print(f"{path} held other scores; they are in {other} now")
    write_text(path, text)


def _picture_name(name: str, names: Collection[str]) -> str:
    """The file of a row's predictions; a slash is no part of its name."""
    plain = [other.replace("/", "_") for other in names]
    alone = plain.count(name.replace("/", "_")) == 1
    return f"predictions_{name.replace('/', '_' if alone else '%2F')}.png"


def _score(
    args: flags.FlagValues, config: ConfigDict, model: Network, variables: dict, rows: Rows,
    averaging: Averaging | None, step: int | None,
) -> dict[str, dict[str, dict]]:
    """Scores with their settings, by row and column; each column is printed when it is there."""
    parallel = create_parallel()
    on_devices = parallel.replicate(variables)
    batch_size = arguments.evaluation_arguments(config)["batch_size"]
    results: dict[str, dict[str, dict]] = {name: {} for name in rows.splits}
    protocols = PROTOCOLS if args.protocol == "both" else (args.protocol,)
    flips = {"both": (False, True), "no": (False,), "yes": (True,)}[args.flip]
    for protocol, flip in itertools.product(protocols, flips):
        column = protocol + _of_averaging(averaging) + ("+flip" if flip else "")
        counts = {
            name: count(
                model, on_devices, split, parallel=parallel, protocol=protocol, flip=flip,
                batch_size=batch_size, averaging=averaging, calibrated=True,
            )
            for name, split in rows.read.items()
        }
        for name, scores in evaluation.with_sums(counts, rows).items():
            settings = evaluation_settings(
                rows.splits[name], protocol=protocol, flip=flip, averaging=averaging,
                dtype=jnp.dtype(model.dtype).name,
            )
            results[name][column] = {"settings": settings | {"step": step}, **scores}
            title = f"{name}, {column}" if args.domains else column
            print(f"{title}: mIoU {percent(scores['miou'])}{_on_13(scores)}, "
                  f"ECE {percent(scores['ece'])}", flush=True)
    return results


def _diagrams(results: Mapping[str, Mapping[str, Mapping]]) -> dict[str, dict[str, Mapping]]:
    """What `reliability_picture` draws: a diagram for a row, a line for a column."""
    return {
        name: {
            f"{column}, ECE {percent(scores['ece'])}": scores["reliability"]
            for column, scores in row.items()
        }
        for name, row in results.items()
    }


def _of_averaging(averaging: Averaging | None) -> str:
    """What the name of a column says of them."""
    tile, _, scales = averaging or Averaging()
    return "+tile" * bool(tile) + "+scales" * (scales != Averaging().scales)


def _averaging(args: flags.FlagValues) -> Averaging | None:
    """Tiles and scales, None for the whole image at its one size. Raises UserError."""
    view = create_view({}, size=OWN, tile=args.tile, overlap=args.overlap, mark="--")
    try:
        scales = tuple(map(float, args.scales))
    except ValueError:
        scales = ()
    low, high = SCALES
    if not scales or len(set(scales)) < len(scales) or not all(low <= s <= high for s in scales):
        raise UserError(f"--scales is {','.join(args.scales)!r}; expected numbers from {low} to "
                        f"{high}, each once, as 0.75,1,1.25")
    averaging = Averaging(view.tile, view.overlap, scales)
    return None if averaging == Averaging() else averaging


def _check_scales(averaging: Averaging, rows: Rows) -> None:
    """Raises UserError where the network would see too few pixels."""
    for split in rows.read.values():
        for scale, seen in zip(averaging.scales, averaging.sizes(split.size), strict=True):
            if min(seen) < LEAST:
                raise UserError(f"--scales: at {scale:g} the network would see {split.name} at "
                                f"{seen[0]}x{seen[1]}; expected at least {LEAST} pixels a side")


def _check_domains(args: flags.FlagValues) -> None:
    """Raises UserError for flags of --domain beside --domains, and for a size that is none."""
    if args["domains"].present and not args.domains:
        raise UserError("--domains is empty; expected names, as cityscapes,bdd100k")
    if args.domains and args["domain"].present:
        raise UserError("--domain and --domains exclude each other; leave one out")
    if args.size and not args.domains:
        raise UserError("--size is that of --domains; for --domain set --config.target.size")
    sides = [int(side) for side in args.size if side.strip().isdecimal()]
    if args.size and not (len(sides) == len(args.size) and SIDES.accepts(sides)):
        raise UserError(f"--size is {','.join(args.size)!r}; expected {SIDES.words}, "
                        "as 512,1024")


def _open_rows(
    args: flags.FlagValues, config: ConfigDict, sides: Mapping[str, Domain], classes: Classes
) -> Rows:
    """What the flags choose: several domains, or the one of a side of the configuration."""
    if args.domains:
        return evaluation.open_rows(
            [_with_path(entry) for entry in args.domains], root=config.data.root,
            split=args.split or "val", classes=classes,
            size=tuple(map(int, args.size)) or None, max_images=args.max_images,
        )
    data = arguments.split_arguments(config, f"{args.domain}_val")
    if not (args.split or data["split"]):
        raise UserError(f"{args.domain}.val_split is empty; choose one, as --split val")
    chosen = {"split": args.split or data["split"], "max_images": args.max_images}
    split = open_split(sides[args.domain], classes=classes, **data | chosen)
    return Rows({split.name: split}, {}, (split.name,))


def _with_path(entry: str) -> str:
    """An entry of --domains, as acdc, my_domain.yaml or crosscity=DIR, with the path it means."""
    name, equals, folder = entry.partition("=")
    return user_path(name) + equals + user_path(folder)


def _default_out(checkpoint: Checkpoint, domain: str) -> Path:
    """RUN/evaluation/final/target; outside of a run, a folder beside the checkpoint."""
    if checkpoint.run:
        return checkpoint.run / "evaluation" / checkpoint.name / domain
    return checkpoint.path.with_name(f"{checkpoint.name}_evaluation") / domain


def _refuse_unwritable(out: Path) -> None:
    """UserError now rather than after an hour of scoring."""
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryDirectory(dir=there):
            pass
    except OSError as error:
        raise UserError(
            f"--out {out}: nothing can be written to {there} ({error.strerror}); choose another"
        ) from None


def _on_13(scores: dict) -> str:
    """A network of 16 classes is also scored on the 13 of them that all papers have."""
    return f", of 13 classes {percent(scores['miou_13'])}" if "miou_13" in scores else ""


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(argv, FLAGS, __doc__, command)


if __name__ == "__main__":
    sys.exit(main())
