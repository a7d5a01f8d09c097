"""What was written is read back, run on drawn streets, and compared with the network in JAX."""

import logging
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax import export

from snr_jax.core.errors import UserError
from snr_jax.core.progress import make_progress

logger = logging.getLogger(__name__)

TOLERANCE = 1e-4  # of logits and confidences; times the largest logit where that is above 1
REPEATS, PATIENCE = 5, 10.0  # of what is timed; seconds

Outputs = dict[str, np.ndarray]
Run = Callable[[np.ndarray], Outputs]  # image [N,H,W,3] → outputs by name


class Verdict(NamedTuple):
    """How a file's program and the network in JAX compare; differences are the largest ones."""

    pixels: int
    unequal: int  # labels, where the two likeliest classes differ by no more than the rounding
    confidence: float
    logits: float | None  # None: the file does not give them
    largest: float  # logit
    milliseconds: float  # for the first of the images
    milliseconds_in_jax: float


def run_onnx(path: Path) -> Run:
    """The program of an ONNX file by onnxruntime on the CPU, with its logits, outputs or not."""
    import onnx
    import onnxruntime

    from snr_jax.portable.onnx_graph import LOGITS

    model = onnx.load(path)
    names = [output.name for output in model.graph.output]
    if "logits" not in names:
        names.append("logits")
        model.graph.output.append(
            onnx.helper.make_tensor_value_info(LOGITS, onnx.TensorProto.FLOAT, None))
    hidden = model.graph.output[-1].name == LOGITS
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"])

    def run(image: np.ndarray) -> Outputs:
        found = dict(zip(names, session.run(None, {"image": image}), strict=True))
        if hidden:
            found["logits"] = np.moveaxis(found["logits"], 1, -1)
        return found

    return run


def run_stablehlo(path: Path) -> Run:
    """The program of a file that `jax.export` wrote."""
    program = jax.jit(export.deserialize(bytearray(path.read_bytes())).call)
    return lambda image: jax.device_get(program(image))


def verify(run: Run, reference: Run, images: Sequence[np.ndarray]) -> Verdict:
    """Compares the outputs for images uint8 or float32 [N,H,W,3], of which each gives a size.

    reference: gives logits. Raises UserError where the two differ by more than TOLERANCE, or in a
    label by which class is likelier.
    """
    show, steps = make_progress("comparisons", logger), len(images) + 2
    found, times = [], []
    for done, image in enumerate(images, start=1):
        found.append(_compare(run(image), reference(image)))
        show(done, steps)
    for done, one in enumerate((run, reference), start=len(images) + 1):
        times.append(_milliseconds(one, images[0]))
        show(done, steps)
    pixels, unequal, confidence, logits, largest = zip(*found, strict=True)
    by_logits = None if None in logits else max(logits)
    return Verdict(sum(pixels), sum(unequal), max(confidence), by_logits, max(largest), *times)


def _compare(got: Outputs, want: Outputs) -> tuple[int, int, float, float | None, float]:
    """Pixels, unequal labels, the differences of confidence and of logits, the largest logit."""
    for name, value in got.items():
        if (value.shape, value.dtype) != (want[name].shape, want[name].dtype):
            raise _refusal(f"{name} are {value.dtype} {list(value.shape)} and not "
                           f"{want[name].dtype} {list(want[name].shape)}")
    logits = want["logits"]
    largest = float(np.abs(logits).max())
    tolerance = TOLERANCE * max(1.0, largest)
    differences = {name: float(np.abs(got[name] - want[name]).max())
                   for name in ("logits", "confidence") if name in got}
    for name, difference in differences.items():
        if not difference <= tolerance:  # nor is what is no number
            raise _refusal(f"{name} differ by up to {difference:.1e}, more than {tolerance:.1e}")
    second, first = np.moveaxis(np.partition(logits, -2, -1)[..., -2:], -1, 0)
    unequal = got["labels"] != want["labels"]
    if wrong := int((unequal & (first - second > 2 * tolerance)).sum()):
        raise _refusal(f"{wrong} of {unequal.size} labels differ")
    return (unequal.size, int(unequal.sum()), differences["confidence"], differences.get("logits"),
            largest)


def _refusal(what: str) -> UserError:
    return UserError(f"read back, the file computes something else than the checkpoint does in "
                     f"JAX: {what}. It was not kept; try other versions of its packages, those of "
                     "constraints.txt, or the other format")


def _milliseconds(run: Run, image: np.ndarray) -> float:
    """The median of REPEATS runs, or of fewer where they take more than PATIENCE, once warm."""
    times = []
    while len(times) < REPEATS and sum(times) < PATIENCE:
        start = time.perf_counter()
        run(image)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)
