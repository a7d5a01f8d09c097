"""Scores of a network on a domain, and the command that prints, draws and writes them.

    python -m snr_jax.evaluate --config configs/gta5_dg.py --checkpoint runs/gta5_dg

Both protocols ("network": labels at the network's size; "full": logits upsampled to the labels'
own size), each without and with the mirrored image. Needs the labels of the split.
"""

import json
import os
import sys
from collections.abc import Sequence

from absl import flags
from PIL import Image

from snr_jax import cli
from snr_jax.core.models.deeplab import architecture
from snr_jax.core.parallel import create_parallel
from snr_jax.data import domains
from snr_jax.report.pictures import panel
from snr_jax.report.tables import class_table, percent
from snr_jax.runs import checkpoints, network
from snr_jax.runs.checkpoints import Checkpoint
from snr_jax.runs.evaluation import PROTOCOLS, evaluate, pictures
from snr_jax.runs.experiment import to_dict
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
flags.DEFINE_integer("max_images", 0, "In the order of the ids; 0: all.", flag_values=FLAGS)
flags.DEFINE_integer("pictures", 4, "Predictions to draw; 0: none.", flag_values=FLAGS)


def _default_out(checkpoint: Checkpoint, domain: str) -> str:
    """RUN/evaluation/final/target; outside of a run, a folder beside the checkpoint."""
    if checkpoint.run:
        return str(checkpoint.run / "evaluation" / checkpoint.name / domain)
    return str(checkpoint.path.with_name(f"{checkpoint.name}_evaluation") / domain)


def command(args: flags.FlagValues) -> None:
    config = cli.require(args, "config", "--config configs/gta5_dg.py")
    checkpoint = checkpoints.find(cli.require(args, "checkpoint", "--checkpoint runs/gta5_dg"))
    options = {"dtype": config.model.dtype, "atrous": config.model.atrous}
    model, variables, meta = network.load(checkpoint, **options)
    want = {"num_classes": config.num_classes, **config.model}
    network.refuse_mismatch(str(checkpoint.path), meta["model"], want)
    place = config[args.domain]
    split = args.split or place.val_split
    directory = os.path.join(config.data.root, place.dir)
    samples, notes = domains.list_samples(place.domain, directory, split)
    samples = samples[: args.max_images or None]
    out = args.out or _default_out(checkpoint, args.domain)
    parallel = create_parallel()
    print(f"{checkpoint.path} on {place.domain}/{split}: {len(samples)} images "
          f"({'; '.join(notes) or directory}); results go to {out}", flush=True)
    on_devices = parallel.replicate(variables)
    common = {"domain": place.domain, "size": tuple(place.size)}
    results = {}
    for protocol in PROTOCOLS if args.protocol == "both" else (args.protocol,):
        for flip in {"both": (False, True), "no": (False,), "yes": (True,)}[args.flip]:
            name = protocol + ("+flip" if flip else "")
            results[name] = evaluate(
                model, on_devices, samples, parallel=parallel, protocol=protocol, flip=flip,
                batch_size=config.eval.batch_size, **common,
            )
            print(f"{name}: mIoU {percent(results[name]['miou'])}", flush=True)
    print(class_table(results))
    record = {
        "checkpoint": str(checkpoint.path), "trained": meta.get("source"),
        "model": architecture(model), "domain": place.domain, "split": split,
        "images": len(samples), "size": tuple(place.size), "config": to_dict(config),
        "results": results,
    }
    write_text(os.path.join(out, "evaluation.json"), json.dumps(record, indent=1))
    if args.pictures:
        rows = pictures(model, variables, samples[: args.pictures], **common)
        Image.fromarray(panel(rows)).save(os.path.join(out, "predictions.png"))
    print(f"written: {out}")


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(argv, FLAGS, __doc__, command)


if __name__ == "__main__":
    sys.exit(main())
