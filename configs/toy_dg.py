"""Toy domains, generalisation: a small SNR network, minutes on two CPU cores.

    python scripts/make_toy_domains.py --out runs/toy/data --style dusk
    python -m snr_jax.main --config configs/toy_dg.py --workdir runs/toy/snr
"""

from configs import default


def get_config(recipe: str = "standard"):
    config = default.get_config(recipe or "standard")
    config.model.stage_sizes = (1, 2, 2, 1)
    config.model.width = 16
    config.data.root = "runs/toy/data"
    config.source.size = (96, 192)
    config.target.size = (96, 192)
    config.batch_size = 4
    config.optimizer.base_rate = 0.02
    config.optimizer.head_rate = 1.0  # no pretrained backbone: nothing is newer than the rest
    config.num_steps = 800
    config.optimizer.schedule_steps = 800
    config.log_every_steps = 20
    config.eval_every_steps = 400
    config.checkpoint_every_steps = 200
    config.eval.batch_size = 10
    return config
