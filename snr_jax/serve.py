"""Show a page that segments photographs, on this machine.

    python -m snr_jax.serve --checkpoint runs/gta5_dg
    python -m snr_jax.serve --checkpoint runs/gta5_dg runs/gta2city_uda

Open the address that it prints and drop a photograph there: the classes lie over it, with name and
probability under the mouse and the share of each. Of two checkpoints the results stand side by
side. Ctrl-C ends it. This machine alone reaches the page unless --host says otherwise, and what is
dropped is kept nowhere.
"""

import logging
import sys
from collections.abc import Sequence

import numpy as np
from absl import flags

from snr_jax import cli
from snr_jax.core.errors import UserError
from snr_jax.inference import server
from snr_jax.inference.segmenter import Segmenter, load
from snr_jax.process import signals

logger = logging.getLogger("snr_jax.serve")

FLAGS = flags.FlagValues()
cli.define_compilation_cache(FLAGS)
cli.define_path(
    "checkpoint", None, "The network: a run, a checkpoint or a weights folder. A second one may "
    "follow, to compare.",
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "port", 8000, "Port of the page; 0: any that is free.", flag_values=FLAGS,
    lower_bound=0, upper_bound=65535,
)
flags.DEFINE_string(
    "host", "127.0.0.1",
    "Address to listen at. Another one than 127.0.0.1 opens the page to others.",
    flag_values=FLAGS,
)
flags.DEFINE_float(
    "max_megabytes", 20, "Largest file of a photograph that is taken.", flag_values=FLAGS
)


def command(args: flags.FlagValues, *second: str) -> int:
    names = [cli.require(args, "checkpoint", "--checkpoint runs/gta5_dg"), *second]
    if len(set(names)) < len(names):
        raise UserError(f"{names[0]} is given twice; expected two checkpoints to compare")
    host = cli.require(args, "host", "--host 127.0.0.1")
    if not 0 < args.max_megabytes < 1000:
        raise UserError(f"--max_megabytes is {args.max_megabytes:g}; expected more than 0 and less "
                        "than 1000")
    cli.use_compilation_cache(args)
    with server.listen(host, args.port) as listening:  # that it is taken is told at once
        if not server.is_loopback(listening):
            logger.warning("--host %s: whoever reaches port %d of this machine can use the page",
                           host, listening.getsockname()[1])
        segmenters = {name: _ready(name) for name in names}
        with signals.on_signals() as stop:
            page = server.PageServer(
                listening, host, segmenters, max_bytes=int(args.max_megabytes * 1e6), stop=stop)
            print(f"ready: {server.address(listening)} (Ctrl-C ends it)", flush=True)
            page.serve_forever(poll_interval=0.2)
    return 0


def _ready(name: str) -> Segmenter:
    """The network, compiled, so that the first photograph takes no longer than the next."""
    segmenter = load(name)
    segmenter(np.zeros((64, 64, 3), np.uint8))
    print(f"{name}: {len(segmenter.classes)} classes, sees photographs {segmenter.view}",
          flush=True)
    return segmenter


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(argv, FLAGS, __doc__, command, arguments=("[CHECKPOINT]",))


if __name__ == "__main__":
    sys.exit(main())
