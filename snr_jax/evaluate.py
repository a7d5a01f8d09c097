"""Scores of a network on a domain, and the command that prints, draws and writes them.

    python -m snr_jax.evaluate --config configs/gta5_dg.py --checkpoint runs/gta5_dg

Both protocols ("network": labels at the network's size; "full": logits upsampled to the labels'
own size), each without and with the mirrored image. Needs the labels of the split.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from PIL import Image

from snr_jax import cli, report
from snr_jax.core import metrics
from snr_jax.runs import checkpoints, network
from snr_jax.data import domains, pipeline
from snr_jax.core.models.deeplab import DeepLab, architecture
from snr_jax.core.parallel import Parallel, create_parallel
from snr_jax.core.steps import make_eval_step, make_predict_step
from snr_jax.runs.writer import write_text

PROTOCOLS = ("network", "full")


def evaluate(
    model: DeepLab,
    variables: dict,
    samples: Sequence[domains.Sample],
    *,
    domain: str,
    size: tuple[int, int],
    parallel: Parallel,
    batch_size: int = 1,
    protocol: str = "network",
    flip: bool = False,
    log: Callable[[str], None] = print,
) -> dict:
    """`metrics.report` over the samples. variables: on the devices, from `parallel.replicate`."""
    step = _compiled_step(model, flip, parallel)
    batches = pipeline.eval_batches(
        samples, domain=domain, size=size, batch_size=batch_size,
        num_classes=model.num_classes, label_size=protocol,
    )

    def put(batch):
        arrays = {key: batch[key] for key in ("image", "label", "valid")}
        return int(batch["valid"].sum()), parallel.shard(arrays)

    total = np.zeros((model.num_classes,) * 2, np.int64)
    done, start = 0, time.monotonic()
    last_line = start
    for count, arrays in pipeline.prefetch_to_device(batches, put):
        total += np.asarray(parallel.unreplicate(step(variables, arrays)))
        done += count
        if time.monotonic() - last_line > 10:
            last_line = time.monotonic()
            rate = done / (last_line - start)
            left = report.format_duration((len(samples) - done) / rate)
            log(f"{domain}, {protocol}: {done}/{len(samples)} images, {rate:.1f}/s, {left} left")
    return metrics.report(total)


@lru_cache(maxsize=8)
def _compiled_step(model: DeepLab, flip: bool, parallel: Parallel) -> Callable:
    return parallel.compile(make_eval_step(model=model, flip=flip, axis_name=parallel.axis_name))


@lru_cache(maxsize=8)
def _compiled_prediction(model: DeepLab, size: tuple[int, int]) -> Callable:
    probabilities = make_predict_step(model=model)
    return jax.jit(lambda v, x: probabilities(v, x, size).argmax(-1).astype(jnp.uint8))


def pictures(
    model: DeepLab,
    variables: dict,
    samples: Sequence[domains.Sample],
    *,
    domain: str,
    size: tuple[int, int],
) -> list[dict[str, np.ndarray]]:
    """{"input", "label", "prediction"}, uint8 RGB [h,w,3] each, per sample. variables: numpy."""
    predict = _compiled_prediction(model, tuple(size))
    variables = jax.device_put(variables)
    return [
        {
            "input": batch["image"][0],
            "label": report.colorize(batch["label"][0], model.num_classes),
            "prediction": report.colorize(
                np.asarray(predict(variables, batch["image"]))[0], model.num_classes
            ),
        }
        for batch in pipeline.eval_batches(
            samples, domain=domain, size=size, batch_size=1, num_classes=model.num_classes
        )
    ]


def _default_out(checkpoint: Path, domain: str) -> str:
    """RUN/evaluation/final/target; outside of a run, a folder beside the checkpoint."""
    for parent in checkpoint.parents:
        if parent.name == "checkpoints":
            inside = checkpoint.relative_to(parent)
            return str(parent.parent / "evaluation" / inside / domain)
    return str(checkpoint.with_name(f"{checkpoint.name}_evaluation") / domain)


def command() -> None:
    config = cli.require(CONFIG, "config", "--config configs/gta5_dg.py")
    checkpoint = cli.require(CHECKPOINT, "checkpoint", "--checkpoint runs/gta5_dg")
    options = {"dtype": config.model.dtype, "atrous": config.model.atrous}
    model, variables, meta = network.load(checkpoint, **options)
    want = {"num_classes": config.num_classes, **config.model}
    network.refuse_mismatch(checkpoint, meta["model"], want)
    place = config[DOMAIN.value]
    split = SPLIT.value or place.val_split
    directory = os.path.join(config.data.root, place.dir)
    samples, notes = domains.list_samples(place.domain, directory, split)
    samples = samples[: MAX_IMAGES.value or None]
    out = OUT.value or _default_out(checkpoints.find(checkpoint), DOMAIN.value)
    parallel = create_parallel()
    print(f"{checkpoints.find(checkpoint)} on {place.domain}/{split}: {len(samples)} images "
          f"({'; '.join(notes) or directory}); results go to {out}", flush=True)
    on_devices = parallel.replicate(variables)
    common = {"domain": place.domain, "size": tuple(place.size)}
    results = {}
    for protocol in PROTOCOLS if PROTOCOL.value == "both" else (PROTOCOL.value,):
        for flip in {"both": (False, True), "no": (False,), "yes": (True,)}[FLIP.value]:
            name = protocol + ("+flip" if flip else "")
            results[name] = evaluate(
                model, on_devices, samples, parallel=parallel, protocol=protocol, flip=flip,
                batch_size=config.eval.batch_size, **common,
            )
            print(f"{name}: mIoU {report.percent(results[name]['miou'])}", flush=True)
    print(report.class_table(results))
    record = {
        "checkpoint": str(checkpoints.find(checkpoint)), "trained": meta.get("source"),
        "model": architecture(model), "domain": place.domain, "split": split,
        "images": len(samples), "size": tuple(place.size), "config": cli.to_dict(config),
        "results": results,
    }
    write_text(os.path.join(out, "evaluation.json"), json.dumps(record, indent=1))
    if PICTURES.value:
        rows = pictures(model, variables, samples[: PICTURES.value], **common)
        Image.fromarray(report.panel(rows)).save(os.path.join(out, "predictions.png"))
    print(f"written: {out}")


if __name__ == "__main__":
    CONFIG = cli.define_config()
    CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run's folder, or a checkpoint.")
    OUT = flags.DEFINE_string("out", None, "Folder of the results; RUN/evaluation if none.")
    DOMAIN = flags.DEFINE_enum("domain", "target", ["target", "source"], "Whose images.")
    SPLIT = flags.DEFINE_string("split", None, "The configured val_split if none.")
    PROTOCOL = flags.DEFINE_enum("protocol", "both", [*PROTOCOLS, "both"], "Size of the scoring.")
    FLIP = flags.DEFINE_enum("flip", "both", ["no", "yes", "both"], "Average with the mirror.")
    MAX_IMAGES = flags.DEFINE_integer("max_images", 0, "In the order of the ids; 0: all.")
    PICTURES = flags.DEFINE_integer("pictures", 4, "Predictions to draw; 0: none.")
    cli.run(sys.argv, __doc__, command)
