"""Toy domains, generalisation: a small SNR network, minutes on two CPU cores.

    python scripts/make_toy_domains.py --out runs/toy/data --style dusk
    python -m snr_jax.main --config configs/toy_dg.py --workdir runs/toy_dg
"""

from ml_collections import ConfigDict

from snr_jax.configs import default

NUM_TRAIN, NUM_VAL = 300, 60  # images per domain that the demo and the study draw


def get_config(recipe: str = "standard") -> ConfigDict:
    config = default.get_config(recipe or "standard")
    config.model.stage_sizes = (1, 2, 2, 1)
    config.model.width = 16
    config.model.head_branches = 2  # on maps of 12x24 the dilations 18 and 24 would see padding
    config.data.root = "runs/toy/data"
    config.source.size = (96, 192)
    config.target.size = (96, 192)
    config.batch_size = 4
    config.optimizer.base_rate = 0.02
    config.optimizer.head_rate = 1.0  # no pretrained backbone: nothing is newer than the rest
    config.num_steps = 500
    config.optimizer.schedule_steps = 500
    config.log_every_steps = 20
    config.eval_every_steps = 250
    config.checkpoint_every_steps = 200
    config.eval.batch_size = 10
    return config
