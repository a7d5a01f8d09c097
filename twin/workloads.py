"""The twin's steps at given sizes, without data: to time."""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from twin.network import DeepLab, Restitution
from twin.steps import adaptation_step, source_step

Size = tuple[int, int]


def create_steps(
    kind: str,
    options: Sequence[str],
    *,
    device: str,
    source_size: Size,
    target_size: Size,
    batch_size: int,
    **network: object,
) -> tuple[Callable[[int], None], Callable[[], int | None]]:
    """(run that many steps and wait, peak bytes on a GPU).

    options: of float32, bfloat16, channels_last, compiled.
    """
    torch.set_flush_denormal(True)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    layout = torch.channels_last if "channels_last" in options else torch.contiguous_format
    model = DeepLab(**network).to(device, memory_format=layout)
    phi = Restitution(width=network.get("width", 64)).to(device)
    if "compiled" in options:
        # Unless told, the second size of an adaptation is compiled for any size.
        model.compile(mode="reduce-overhead", dynamic=False)

    def image(size: Size) -> torch.Tensor:
        x = 50 * torch.randn(batch_size, 3, *size, device=device)
        return x.contiguous(memory_format=layout)

    label = torch.randint(0, 19, (batch_size, *source_size), device=device)
    inputs = [image(source_size), label.to(torch.uint8)]
    step = source_step
    if kind == "adaptation":
        inputs.append(image(target_size))
        step = adaptation_step
    velocities: dict[str, torch.Tensor] = {}

    def run(steps: int) -> None:
        for _ in range(steps):
            if "compiled" in options:
                torch.compiler.cudagraph_mark_step_begin()
            with torch.autocast(device, torch.bfloat16, enabled="bfloat16" in options):
                step(model, velocities, *inputs, rate=2.5e-4, repeated_updates=True, phi=phi)
        if device == "cuda":
            torch.cuda.synchronize()

    return run, lambda: torch.cuda.max_memory_allocated() if device == "cuda" else None


def gpu_launches(
    run: Callable[[], None], activities: Sequence[ProfilerActivity] = (ProfilerActivity.CUDA,)
) -> list[float]:
    """Milliseconds of each kernel and copy on the GPUs while it runs."""
    with tempfile.TemporaryDirectory() as folder:
        with profile(activities=activities) as found:
            run()
        file = Path(folder, "trace.json")
        found.export_chrome_trace(str(file))
        return kernel_events(json.loads(file.read_text())["traceEvents"])


def kernel_events(events: Sequence[Mapping]) -> list[float]:
    """Milliseconds; a GPU's annotations, as of compiled graphs, tell of the same once more."""
    kinds = {"kernel", "gpu_memcpy", "gpu_memset"}
    return [event["dur"] / 1000 for event in events if event.get("cat") in kinds]
