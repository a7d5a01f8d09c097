"""Train a network and evaluate it.

    python -m snr_jax.main --config configs/gta5_dg.py
    python -m snr_jax.main --config configs/gta2city_uda.py --config.init_from=runs/gta5_dg

Results go to --workdir, by default runs/gta5_dg and runs/gta2city_uda. The same command goes on
with an interrupted run; SIGTERM and Ctrl-C save the state first. Any key of the configuration can
be set: --config.batch_size=2; --help_config lists every key. The recipe follows a colon
(configs/gta5_dg.py:release).
"""

import logging
import signal
from collections.abc import Sequence

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Until a run listens, Ctrl-C just ends: Python's own error is lost where JAX's callbacks run.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import jax
from absl import flags

from snr_jax import cli
from snr_jax.data.decode import import_tensorflow
from snr_jax.process import several, signals
from snr_jax.runs.train import train

FLAGS = flags.FlagValues()
cli.define_config(FLAGS)
cli.define_path(
    "workdir", None, "Folder of the run; by default runs/NAME for configs/NAME.py.",
    flag_values=FLAGS,
)
cli.define_compilation_cache(FLAGS)
cli.define_path(
    "profile_dir", "", "Folder for a trace of steps 10 to 15, for TensorBoard's profiler.",
    flag_values=FLAGS,
)
flags.DEFINE_bool(
    "lengthen", False, "Go on with a run to more steps than it had, by a larger num_steps and, "
    "for a longer fall of the learning rate, schedule_steps.", flag_values=FLAGS,
)
flags.DEFINE_bool(
    "distributed", False, "Join the other processes that SLURM, Open MPI or Kubernetes started.",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, for several processes that you start yourself.",
    flag_values=FLAGS,
)
flags.DEFINE_integer("num_processes", None, "How many they are.", flag_values=FLAGS)
flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.", flag_values=FLAGS)
flags.DEFINE_integer(
    "join_timeout", 120, "Seconds to wait for the other processes.", lower_bound=1,
    flag_values=FLAGS,
)


def command(args: flags.FlagValues) -> None:
    config = cli.require(args, "config", "--config configs/gta5_dg.py")
    import_tensorflow()  # where it is absent that is said before a run is begun
    number, index = args.num_processes, args.process_id
    address = several.check(args.coordinator, number, index)
    workdir = args.workdir or f"runs/{cli.config_name(args)}"
    cli.use_compilation_cache(args)
    if address is None and not args.distributed:
        with signals.on_signals() as stop:
            train(config, workdir, stop, args.profile_dir, args.lengthen)
            # What follows it in a shell, as `train && adapt`, was asked to stop as well.
            signals.unless_asked(stop, "the run had come to its end, which is saved")
        return
    # JAX listens to SIGTERM itself, so that all processes stop at the same step.
    asked = signals.on_signals([signal.SIGINT, signal.SIGHUP], forward=signal.SIGTERM)
    with asked as stop, several.joined(address, number, index, args.join_timeout):
        if jax.process_index() > 0:  # the first one speaks for all
            logging.getLogger("snr_jax").setLevel(logging.CRITICAL)
        train(config, workdir, stop, args.profile_dir, args.lengthen)


def main(argv: Sequence[str] | None = None) -> int:
    return several.leave(cli.run(argv, FLAGS, __doc__, command))


if __name__ == "__main__":
    several.end(main())
