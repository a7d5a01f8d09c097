"""Scores of a network on a domain, and the command that prints, draws and writes them.

    python -m snr_jax.evaluate --config configs/gta5_dg.py --checkpoint runs/gta5_dg

Both protocols ("network": labels at the network's size; "full": logits upsampled to the labels'
own size), each without and with the mirrored image. Needs the labels of the split. Written:
evaluation.json, where every score carries its settings, and predictions.png.
"""

import json
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from snr_jax import cli
from snr_jax.core.errors import UserError
from snr_jax.core.labels import class_names
from snr_jax.core.models.deeplab import architecture
from snr_jax.core.parallel import create_parallel
from snr_jax.data.look import look
from snr_jax.report.pictures import panel
from snr_jax.report.tables import class_table, percent
from snr_jax.runs import checkpoints, experiment, network
from snr_jax.runs.checkpoints import Checkpoint
from snr_jax.runs.evaluation import PROTOCOLS, differences, evaluate, pictures
from snr_jax.runs.photos import write_png
from snr_jax.runs.record import evaluation_settings
from snr_jax.runs.writer import write_text

FLAGS = flags.FlagValues()
cli.define_config(FLAGS)
flags.DEFINE_string("checkpoint", None, "A run's folder, or a checkpoint.", flag_values=FLAGS)
flags.DEFINE_string(
    "out", None, "Folder of the results; RUN/evaluation if none.",
    flag_values=FLAGS,
)
flags.DEFINE_enum("domain", "target", ["target", "source"], "Whose images.", flag_values=FLAGS)
flags.DEFINE_string("split", None, "The configured val_split if none.", flag_values=FLAGS)
flags.DEFINE_enum(
    "protocol", "both", [*PROTOCOLS, "both"], "Size of the scoring.",
    flag_values=FLAGS,
)
flags.DEFINE_enum(
    "flip", "both", ["no", "yes", "both"], "Average with the mirror.",
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "max_images", 0, "In the order of the ids; 0: all.", lower_bound=0, flag_values=FLAGS
)
flags.DEFINE_integer(
    "pictures", 4, "Predictions to draw; 0: none.", lower_bound=0, flag_values=FLAGS
)


def command(args: flags.FlagValues) -> None:
    config = cli.require(args, "config", "--config configs/gta5_dg.py")
    where = cli.require(args, "checkpoint", "--checkpoint runs/gta5_dg")
    experiment.check(config)
    checkpoint = checkpoints.find(where)
    out = Path(args.out or _default_out(checkpoint, args.domain))
    _refuse_unwritable(out)
    want = experiment.model_arguments(config, None)
    options = {key: want[key] for key in ("dtype", "atrous")}
    model, variables, meta = network.load(checkpoint, **options)
    network.refuse_mismatch(str(checkpoint.path), meta["model"], want)
    classes = experiment.create_classes(config)
    if (there := class_names(network.classes_of(meta))) != class_names(classes):
        raise UserError(
            f"{checkpoint.path} knows the classes {', '.join(there)}; the configuration has "
            f"{', '.join(class_names(classes))}. Set --config.source.domain to that of its training"
        )
    data = experiment.split_arguments(config, f"{args.domain}_val")
    if not (args.split or data["split"]):
        raise UserError(f"{args.domain}.val_split is empty; choose one, as --split val")
    chosen = {"split": args.split or data["split"], "max_images": args.max_images}
    split = experiment.open_split(
        **data | chosen, classes=classes,
        log=lambda line: print(f"{checkpoint.path} on {line}; results go to {out}", flush=True),
    )
    parallel = create_parallel()
    for warning in look(split.samples, split.labels):
        print(f"WARNING {warning}", flush=True)
    for note in differences(meta, config):
        print(f"note: {note}", flush=True)
    on_devices = parallel.replicate(variables)
    batch_size = experiment.evaluation_arguments(config)["batch_size"]
    results = {}
    for protocol in PROTOCOLS if args.protocol == "both" else (args.protocol,):
        for flip in {"both": (False, True), "no": (False,), "yes": (True,)}[args.flip]:
            name = protocol + ("+flip" if flip else "")
            scores = evaluate(
                model, on_devices, split, parallel=parallel, protocol=protocol, flip=flip,
                batch_size=batch_size,
            )
            settings = evaluation_settings(
                split, protocol=protocol, flip=flip, dtype=config.model.dtype
            )
            results[name] = {"settings": {**settings, "step": checkpoint.step}, **scores}
            print(f"{name}: mIoU {percent(scores['miou'])}{_on_13(scores)}", flush=True)
    print(class_table(results))
    record = {
        "checkpoint": str(checkpoint.path), "trained": meta.get("source"),
        "model": architecture(model), "config": experiment.to_dict(config),
        "results": results,
    }
    write_text(out / "evaluation.json", json.dumps(_finite(record), indent=1))
    if args.pictures:
        rows = pictures(model, variables, split.first(args.pictures))
        write_png(panel(rows), out / "predictions.png")
    print(f"written: {out}")


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


def _finite(value: Any) -> Any:
    """JSON knows no NaN, the score of a class without pixels: null."""
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(argv, FLAGS, __doc__, command)


if __name__ == "__main__":
    sys.exit(main())
