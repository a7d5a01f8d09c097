"""Write a network as a file that runs without this package: ONNX, or StableHLO for JAX.

    python -m snr_jax.export --checkpoint runs/gta5_dg --out model.onnx
    python -m snr_jax.export --checkpoint runs/gta5_dg --out model.stablehlo --dynamic

The file takes an RGB image and gives labels and confidence; all that lies between is in it. ONNX
runs in onnxruntime and what else reads it, and holds the classes, their colours and the size in its
metadata; StableHLO runs wherever JAX does, on a CPU or an NVIDIA GPU, and these stand beside it in
MODEL.json. Before the command is done it has read the file back, run it on drawn streets, and
compared it with the network in JAX. Inputs, outputs and examples: docs/export.md.
"""

import importlib
import json
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import jax
import numpy as np
from absl import flags

from snr_jax import cli
from snr_jax.core.errors import UserError
from snr_jax.core.files import written_whole
from snr_jax.core.models.create import Network
from snr_jax.inference.views import create_view, pixels
from snr_jax.portable import program, verification
from snr_jax.runs import network
from snr_jax.toy.styles import draw_pair
from snr_jax.workdir import checkpoints

logger = logging.getLogger("snr_jax.export")

FORMATS = (".onnx", ".stablehlo")
ANOTHER = (2, 65, 97)  # number, height and width of the images that try --dynamic

FLAGS = flags.FlagValues()
cli.define_compilation_cache(FLAGS)
cli.define_path("checkpoint", None, "The network: a run, a checkpoint or a weights folder.",
                flag_values=FLAGS)
cli.define_path("out", None, "The file: MODEL.onnx or MODEL.stablehlo.", flag_values=FLAGS)
flags.DEFINE_list(
    "size", None, "HEIGHT,WIDTH of the images that the file takes; by default the target size of "
    "the network's training, or 512,1024 where none is recorded.", flag_values=FLAGS,
)
flags.DEFINE_bool(
    "dynamic", False, "Take images of any size, and any number at once.", flag_values=FLAGS)
flags.DEFINE_bool(
    "uint8", True, "Images are uint8; with --nouint8 float32 of 0 to 255, for a runtime that takes "
    "no integers.", flag_values=FLAGS,
)
flags.DEFINE_bool(
    "logits", False, "Give the logits as well, at the image's size.", flag_values=FLAGS)


def command(args: flags.FlagValues) -> None:
    where = cli.require(args, "checkpoint", "--checkpoint runs/gta5_dg")
    out = Path(cli.require(args, "out", "--out model.onnx"))
    size = None if args.size is None else pixels("--size", args.size)
    if size and args.dynamic:
        raise UserError("--size and --dynamic: an image has a given size or any; leave one out")
    files = _files(out)
    cli.use_compilation_cache(args)
    checkpoint = checkpoints.find(where)
    model, variables, meta = network.load(checkpoint, dtype="float32")
    model = program.plain(model)
    seen = size or create_view(meta).size
    options = {"size": None if args.dynamic else seen, "uint8": args.uint8, "logits": args.logits}
    program.check_size(model, options["size"])
    known = network.classes_of(meta)
    about = program.about(meta, known, seen=seen, **options)
    accepted = f"any size, made for {seen[0]}x{seen[1]}" if args.dynamic else "{}x{}".format(*seen)
    print(f"{checkpoint.path}: {len(known)} classes, images of {accepted}; goes to {out}",
          flush=True)
    # onnxruntime runs on the CPU, and a GPU may round products to fewer digits.
    with ExitStack() as stack, jax.default_device(jax.local_devices(backend="cpu")[0]):
        unfinished = [stack.enter_context(written_whole(path)) for path in files]
        form = _write(unfinished, out.suffix, model, variables, about, **options)
        logger.info("%s, %.1f MB; reading it back and comparing", form,
                    unfinished[0].stat().st_size / 1e6)
        verdict = _verify(unfinished[0], out.suffix, model, variables, seen, args)
    _report(verdict, files, out.suffix)


def _files(out: Path) -> list[Path]:
    """The files that are to be written, the program first, none of which may be there.

    Raises UserError also where a format is not known or its packages are missing.
    """
    if out.suffix not in FORMATS:
        raise UserError(f"--out {out}: its ending says the format; expected {' or '.join(FORMATS)}")
    if out.suffix == ".onnx":
        for package in ("onnx", "onnxruntime"):
            try:
                importlib.import_module(package)
            except ModuleNotFoundError:
                raise UserError(f"writing ONNX needs {package}: pip install 'snr_jax[export]'; or "
                                "choose --out MODEL.stablehlo, which needs JAX alone") from None
    files = [out] if out.suffix == ".onnx" else [out, out.with_suffix(".json")]
    for path in files:
        if os.path.lexists(path):
            raise UserError(f"{path}: exists already; choose another --out, or remove it first")
    return files


def _write(
    files: list[Path], suffix: str, model: Network, variables: dict, about: dict,
    *, size: program.Size | None, uint8: bool, logits: bool,
) -> str:
    """Writes the program, and with StableHLO what it is; what it was written as."""
    if suffix == ".onnx":
        from snr_jax.portable import onnx_graph

        texts = {key: json.dumps(value) for key, value in about.items()}
        made = onnx_graph.create(model, variables, size=size, uint8=uint8, logits=logits,
                                 about=texts)
        files[0].write_bytes(made.SerializeToString())
        return f"ONNX of opset {onnx_graph.OPSET}"
    run = program.make_program(model, variables, logits=logits)
    files[0].write_bytes(program.stablehlo(run, size=size, uint8=uint8))
    lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in about.items())
    files[1].write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    return f"StableHLO for {' and '.join(program.PLATFORMS)}"


def _verify(
    path: Path, suffix: str, model: Network, variables: dict, seen: program.Size,
    args: flags.FlagValues,
) -> verification.Verdict:
    """Raises UserError where the file computes something else than the network."""
    sizes = [(1, *seen), ANOTHER] if args.dynamic else [(1, *seen)]
    images = [np.stack([draw_pair(0, i, *size, "clear")[0] for i in range(count)])
              for count, *size in sizes]
    if not args.uint8:
        images = [image.astype(np.float32) for image in images]
    variables = jax.device_put(variables)
    whole = jax.jit(lambda variables, image: program.make_program(
        model, variables, logits=True)(image))
    run = verification.run_onnx(path) if suffix == ".onnx" else verification.run_stablehlo(path)
    return verification.verify(
        run, lambda image: jax.device_get(whole(variables, image)), images)


def _report(verdict: verification.Verdict, files: list[Path], suffix: str) -> None:
    runtime = "onnxruntime" if suffix == ".onnx" else "jax.export"
    labels = (f"all of {verdict.pixels} labels are equal" if not verdict.unequal else
              f"{verdict.unequal} of {verdict.pixels} labels differ, where two classes tie")
    logits = "" if verdict.logits is None else (
        f"logits of up to {verdict.largest:.1f} within {verdict.logits:.1e}, ")
    print(f"as in JAX: {labels}, {logits}confidence within {verdict.confidence:.1e}")
    print(f"an image on this CPU: {runtime} {verdict.milliseconds:.0f} ms, "
          f"JAX {verdict.milliseconds_in_jax:.0f} ms; {files[0].stat().st_size / 1e6:.1f} MB")
    print(f"wrote {' and '.join(map(str, files))}")


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(argv, FLAGS, __doc__, command)


if __name__ == "__main__":
    sys.exit(main())
