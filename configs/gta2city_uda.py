"""GTA5 → Cityscapes, adaptation: SNR-MaxSquare from a network trained on GTA5.

    python -m snr_jax.main --config configs/gta2city_uda.py --workdir runs/gta2city_uda \
        --config.init_from=runs/gta5_dg

29,760 steps. Published: 46.5 mIoU on Cityscapes val (MaxSquare without SNR 44.3).
"""

from configs import default


def get_config(recipe: str = "paper"):
    config = default.get_config(recipe)
    config.init_from = "runs/gta5_dg"
    config.loss.target = "maxsquare"
    config.num_steps = 29_760
    config.optimizer.schedule_steps = 29_760
    config.eval_every_steps = 2_976
    return config
