"""How strongly each target loss pulls at a network, beside the cross-entropy of the source.

    python scripts/loss_gradients.py --config configs/toy_uda.py --checkpoint runs/toy_dg

Prints the norm of the gradient of every loss at weight 1, over all parameters, as a mean over
training batches, and the weight at which the loss pulls as strongly as the cross-entropy. No label
of the target is read: this is how to choose loss.lambda_target without them.
"""

import sys
from collections.abc import Sequence

from absl import flags

from snr_jax import cli
from snr_jax.config import checks

FLAGS = flags.FlagValues()
cli.define_config(FLAGS)
cli.define_path("checkpoint", None, "The network: a run, or a checkpoint.", flag_values=FLAGS)
flags.DEFINE_integer("batches", 8, "Batches to average over.", lower_bound=1, flag_values=FLAGS)
cli.define_compilation_cache(FLAGS)


def command(args: flags.FlagValues) -> None:
    from snr_jax.studies.gradients import gradient_norms

    cli.use_compilation_cache(args)
    config = cli.require(args, "config", "--config configs/toy_uda.py")
    checkpoint = cli.require(args, "checkpoint", "--checkpoint runs/toy_dg")
    checks.check(config)
    norms = gradient_norms(config, checkpoint, args.batches)
    base = norms["cross_entropy"]
    print(f"{'loss':<16}{'norm':>12}{'weight':>10}")
    for name, norm in norms.items():
        print(f"{name:<16}{norm:>12.4g}{base / norm:>10.3g}" if norm else f"{name:<16}{norm:>12}")


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(argv, FLAGS, __doc__, command)


if __name__ == "__main__":
    sys.exit(main())
