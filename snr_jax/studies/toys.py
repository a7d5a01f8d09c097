"""The toy domains that studies and the demo train on.

    ROOT/GTA5, ROOT/STYLE/Cityscapes   what `draw_data` draws
"""

import logging
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from snr_jax.core.progress import make_progress
from snr_jax.process import signals
from snr_jax.process.signals import Stop, never
from snr_jax.toy import writer

logger = logging.getLogger(__name__)

DATA_SEED = 1


def draw_data(
    root: Path, styles: Sequence[str], num_train: int, num_val: int, *,
    content: str = "none", stop: Stop = never,
) -> None:
    """ROOT/GTA5 and ROOT/STYLE/Cityscapes for every style; what is there stays.

    Raises `Stopped` as `draw`.
    """
    options = {"num_train": num_train, "num_val": num_val, "content": content, "stop": stop}
    draw("gta5", root / "GTA5", "source", **options)
    for style in styles:
        draw("cityscapes", root / style / "Cityscapes", style, **options)


def draw(
    layout: str, directory: Path, style: str, *, num_train: int, num_val: int, height: int = 128,
    width: int = 256, content: str = "none", stop: Stop = never,
) -> None:
    """One toy domain; what is there stays.

    Raises `Stopped` between two images once `stop` names a signal.
    """
    show = make_progress(f"drawing {directory}: image", logger)
    stopped = f"stopped while drawing {directory}; the same command draws it anew"

    def progress(done: int, total: int) -> None:
        signals.unless_asked(stop, stopped)
        show(done, total)

    signals.unless_asked(stop, stopped)
    try:
        writer.write(layout, directory, style=style, num_train=num_train, num_val=num_val,
                     seed=DATA_SEED, height=height, width=width, workers=2, content=content,
                     progress=progress)
    except BrokenProcessPool:  # the signal was sent to the workers as well
        signals.unless_asked(stop, stopped)
        raise


def target_keys(style: str) -> dict[str, str]:
    """The keys of a configuration whose target is the drawings of that style."""
    return {"target.dir": f"{style}/Cityscapes"}
