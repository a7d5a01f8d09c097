"""What the full-size steps become on a GPU that is not there: `make check-hlo`.

    python scripts/check_hlo.py [--steps source,adaptation,evaluation] [--save FOLDER]
    python scripts/check_hlo.py --backbone dinov2_b [--frozen] [--remat] [--batch_size 8]

Compiles them in bfloat16 for the target described in scripts/targets/, on a CPU, and counts: slow
convolutions (a weight gradient as a forward convolution with a kernel as large as the image),
scatters, launches by kind, bytes through memory (operands and results of every launch: an upper
bound, since nothing stays in cache), temporary memory. Exit code 1 where a limit of the table
below is passed. Needs requirements-aot.txt; it shows what is called, not how fast it is.
"""

import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from absl import flags
from jax._src.cudnn import fused_attention_stablehlo
from jax.experimental import topologies
from jax.sharding import AbstractDevice, AbstractMesh

from snr_jax import cli
from snr_jax.core.errors import UserError
from snr_jax.core.files import write_text
from snr_jax.core.models.create import BACKBONES, NETWORKS
from snr_jax.core.parallel import OHWI, in_hwio, with_kernels
from snr_jax.core.workloads import KINDS, create_workload

TARGETS = Path(__file__).parent / "targets"
CUDNN = 91_500  # 9.15, as the targets have it


class Counts(NamedTuple):
    slow_convolutions: int
    scatters: int
    launches: int
    gigabytes: float
    temporary_gib: float


LIMITS = {
    "resnet101": {
        "source": Counts(0, 0, 1580, 34.5, 3.4),
        "adaptation": Counts(0, 0, 2670, 53, 5.2),
        "evaluation": Counts(0, 0, 600, 11, 0.5),
    },
    "dinov2_b": {
        "source": Counts(0, 0, 960, 28, 2.7),
        "adaptation": Counts(0, 0, 2500, 116, 7.4),
        "evaluation": Counts(0, 0, 180, 9, 0.2),
    },
}
LARGEST_KERNEL = 13  # side of a window; the network's own are 7 at most

FLAGS = flags.FlagValues()
flags.DEFINE_list("steps", list(KINDS), f"Steps, of {', '.join(KINDS)}.", flag_values=FLAGS)
flags.DEFINE_enum("backbone", "resnet101", list(LIMITS), "The network.", flag_values=FLAGS)
flags.DEFINE_string("target", "h200", "The device: a file NAME.txtpb of scripts/targets.",
                    flag_values=FLAGS)
flags.DEFINE_enum("atrous", "weight_gradient", ["native", "space_to_batch", "weight_gradient"],
                  "Form of the dilated convolutions.", flag_values=FLAGS)
flags.DEFINE_enum("pointwise", "convolution", ["convolution", "product"],
                  "Form of the 1x1 convolutions.", flag_values=FLAGS)
flags.DEFINE_enum("bn_sums", "pallas", ["pallas", "xla"], "Form of the sums of batch norm.",
                  flag_values=FLAGS)
flags.DEFINE_enum("attention", "cudnn", ["cudnn", "xla"], "Form of a transformer's attention.",
                  flag_values=FLAGS)
flags.DEFINE_bool("affine_snr", True, "SNR in its form for a GPU.", flag_values=FLAGS)
flags.DEFINE_bool("ohwi", True, "Kernels in the device's memory as cuDNN reads them.",
                  flag_values=FLAGS)  # fmt: skip
flags.DEFINE_bool("remat", False, "Recompute blocks in the backward pass.", flag_values=FLAGS)
flags.DEFINE_bool("frozen", False, "Train the heads alone.", flag_values=FLAGS)
flags.DEFINE_integer("batch_size", 1, "Images per domain; the limits are for 1.", lower_bound=1,
                     flag_values=FLAGS)
flags.DEFINE_integer("accumulate_steps", 1, "Parts that a training batch runs as; divides "
                     "batch_size.", lower_bound=1, flag_values=FLAGS)
FORMS = ("atrous", "pointwise", "bn_sums", "attention", "affine_snr", "remat")  # flags, arguments
cli.define_path("save", "", "Folder for the texts of what was compiled.", flag_values=FLAGS)

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4,
          "u32": 4, "f64": 8, "s64": 8, "u64": 8}
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%(\S+) = (\(.*?\)|\S+) ([\w-]+)\(([^)]*)\)(.*)")
_NO_LAUNCH = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all"}


class Launch(NamedTuple):
    kind: str
    bytes: int


def shape_bytes(shape: str) -> int:
    """Bytes of 'f32[2,3]{1,0}' or of a tuple of such."""
    total = 0
    for dtype, sides in _SHAPE.findall(shape):
        size = _BYTES.get(dtype, 0)
        for side in filter(None, sides.split(",")):
            size *= int(side)
        total += size
    return total


def kind_of(name: str, operation: str, rest: str) -> str:
    """A word for a launch: the library's function, or what a fusion is named after."""
    if operation == "custom-call":
        return re.search(r'custom_call_target="([^"]+)"', rest)[1].strip("_$")
    if operation == "fusion":
        for word in ("transpose", "reduce", "concatenate", "pad", "gemm"):
            if word in name:
                return f"fusion: {word}"
        return "fusion: other"
    return operation


def launches(text: str) -> list[Launch]:
    """The kernels that the entry computation of a compiled text starts."""
    entry = text[text.index("\nENTRY "):]
    sizes, found = {}, []
    for line in entry.splitlines()[1:]:
        if line.startswith("}"):
            break
        if (match := _INSTRUCTION.match(line)) is None:
            continue
        name, shape, operation, operands, rest = match.groups()
        sizes[name] = shape_bytes(shape)
        if operation not in _NO_LAUNCH:
            read = sum(sizes[operand] for operand in re.findall(r"%([^\s,]+)", operands))
            found.append(Launch(kind_of(name, operation, rest), read + sizes[name]))
    return found


def slow_convolutions(text: str) -> int:
    windows = re.findall(r"window=\{size=(\d+)x(\d+)[^}]*\}[^\n]*__cudnn\$convForward", text)
    return sum(max(int(a), int(b)) > LARGEST_KERNEL for a, b in windows)


def count(text: str, temporary_bytes: int) -> Counts:
    found = launches(text)
    return Counts(
        slow_convolutions=slow_convolutions(text),
        scatters=len(re.findall(r"\bscatter\(", text)),
        launches=len(found),
        gigabytes=sum(launch.bytes for launch in found) / 1e9,
        temporary_gib=temporary_bytes / 2**30,
    )


def compile_step(kind: str, target: str, *, ohwi: bool, **options: object) -> tuple[str, int]:
    """(compiled text, bytes of temporary memory) of a step in bfloat16.

    ohwi: with kernels in memory as `create_parallel` lays them on a GPU.
    """
    # JAX asks cuDNN for its version before it calls it, and there is none here to ask. XLA takes
    # that of the target.
    fused_attention_stablehlo.check_cudnn_version = lambda: CUDNN
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=target, topology="1x1x1")
    placed = jax.sharding.SingleDeviceSharding(topology.devices[0])
    work = create_workload(kind, dtype=jnp.bfloat16, **options)
    state, function = work.state_shapes(), work.step
    if ohwi:
        state = jax.eval_shape(lambda tree: with_kernels(tree, OHWI), state)
        function = in_hwio(function)
    arguments = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed), (state, work.batch))
    step = jax.jit(function, donate_argnums=0 if work.optimizer else ())
    # A Pallas kernel asks what it is compiled for, and there is no device to ask.
    device = AbstractDevice("NVIDIA H200", 132, "gpu")
    with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=device)):
        lowered = step.trace(*arguments).lower(lowering_platforms=("cuda",))
    compiled = lowered.compile()
    return compiled.as_text(), compiled.memory_analysis().temp_size_in_bytes


def report(kind: str, counts: Counts, limits: Counts, text: str, seconds: float) -> None:
    print(f"\n{kind}: compiled in {seconds:.0f} s")
    for name, value, limit in zip(Counts._fields, counts, limits, strict=True):
        words = "" if value <= limit else "  <- passed"
        print(f"  {name.replace('_', ' '):<20}{value:>10.5g}   limit {limit:g}{words}")
    number, size = Counter(), Counter()
    for launch in launches(text):
        number[launch.kind] += 1
        size[launch.kind] += launch.bytes
    for name, n in number.most_common():
        print(f"    {name:<34}{n:>6}{size[name] / 1e9:>9.2f} GB")


def command(args: flags.FlagValues) -> int:
    path = TARGETS / f"{args.target}.txtpb"
    if strange := [kind for kind in args.steps if kind not in KINDS]:
        raise UserError(f"--steps has {strange[0]!r}; expected some of {', '.join(KINDS)}")
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in TARGETS.glob("*.txtpb")))
        raise UserError(f"--target={args.target}: no such target; there are {known}")
    if args.batch_size % args.accumulate_steps:
        raise UserError(f"--batch_size={args.batch_size} is no multiple of "
                        f"--accumulate_steps={args.accumulate_steps}")
    network = NETWORKS[BACKBONES[args.backbone][0]]
    if strange := [name for name in FORMS if args[name].present and not hasattr(network, name)]:
        raise UserError(f"--{strange[0]}: {args.backbone} has no such form; expected some of "
                        f"{', '.join(name for name in FORMS if hasattr(network, name))}")
    options = {name: args[name].value for name in
               ("backbone", "ohwi", "frozen", "batch_size", "accumulate_steps")}
    options["forms"] = {name: args[name].value for name in FORMS}
    jax.config.update("jax_platforms", "cpu")  # else the CUDA plugin looks for its GPU
    passed = False
    for kind in args.steps:
        start = time.monotonic()
        try:
            text, temporary = compile_step(kind, path.read_text(), **options)
        except RuntimeError as error:
            if "cuda" not in str(error).lower():
                raise
            raise UserError(
                f"JAX cannot compile for CUDA here ({str(error).splitlines()[0]}). "
                "Install requirements-aot.txt, as `make check-hlo` does"
            ) from error
        counts = count(text, temporary)
        if args.save:
            write_text(Path(args.save) / f"{kind}.txt", text)
        limits = LIMITS[args.backbone][kind]
        report(kind, counts, limits, text, time.monotonic() - start)
        passed |= any(a > b for a, b in zip(counts, limits))
    return int(passed)


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(argv, FLAGS, __doc__, command)


if __name__ == "__main__":
    sys.exit(main())
