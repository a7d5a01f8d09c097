"""Toy domains, adaptation: SNR-MaxSquare from the network of toy_dg.py.

    python -m snr_jax.main --config configs/toy_uda.py --workdir runs/toy_uda \
        --config.init_from=runs/toy_dg
"""

from configs import toy_dg


def get_config(recipe: str = "standard"):
    config = toy_dg.get_config(recipe)
    config.init_from = "runs/toy_dg"
    config.loss.target = "maxsquare"
    config.loss.lambda_target = 0.1
    config.optimizer.base_rate = 0.005
    config.num_steps = 150
    config.optimizer.schedule_steps = 150
    config.eval_every_steps = 50
    return config
