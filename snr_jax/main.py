"""Train a network and evaluate it.

    python -m snr_jax.main --config configs/gta5_dg.py
    python -m snr_jax.main --config configs/gta2city_uda.py --config.init_from=runs/gta5_dg

Results go to --workdir, by default runs/gta5_dg and runs/gta2city_uda. The same command goes on
with an interrupted run. Any key of the configuration can be set: --config.batch_size=2;
configs/default.py lists every key. The recipe follows a colon (configs/gta5_dg.py:release).
"""

import os
import sys

import jax
from absl import flags

from snr_jax import cli
from snr_jax.runs.train import train


def command() -> None:
    config = cli.require(CONFIG, "config", "--config configs/gta5_dg.py")
    workdir = WORKDIR.value or f"runs/{cli.config_name()}"
    if CACHE.value:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(CACHE.value))
    if COORDINATOR.value:
        jax.distributed.initialize(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    train(config, workdir)


if __name__ == "__main__":
    CONFIG = cli.define_config()
    WORKDIR = flags.DEFINE_string(
        "workdir", None, "Folder of the run; runs/NAME for configs/NAME.py if none."
    )
    CACHE = flags.DEFINE_string(
        "compilation_cache", "~/.cache/snr_jax", "Compiled programs are kept here; empty: nowhere."
    )
    COORDINATOR = flags.DEFINE_string(
        "coordinator", None, "HOST:PORT of process 0, in a run of several processes."
    )
    NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Of a run of several processes.")
    PROCESS_ID = flags.DEFINE_integer("process_id", None, "This process, from 0.")
    cli.run(sys.argv, __doc__, command)
