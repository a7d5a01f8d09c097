"""Toy domains, adaptation: SNR-MaxSquare from the network of toy_dg.py.

    python -m snr_jax.main --config configs/toy_uda.py --workdir runs/toy_uda \
        --config.init_from=runs/toy_dg

A variant follows a colon, as configs/toy_uda.py:minent: maxsquare, iw_maxsquare,
iw_maxsquare_multi, minent, iw_entropy, hard.
"""

from ml_collections import ConfigDict

from snr_jax.configs import default, toy_dg


def get_config(argument: str = "standard") -> ConfigDict:
    recipe, variant = default.choose(argument, recipe=default.RECIPES, variant=default.VARIANTS)
    config = toy_dg.get_config(recipe)
    config.init_from = "runs/toy_dg"
    default.adapt(config, variant)
    config.target.size = config.source.size  # whatever the variant is published with
    config.optimizer.base_rate = 0.005
    config.num_steps = 150
    config.optimizer.schedule_steps = 150
    config.eval_every_steps = 50
    return config
