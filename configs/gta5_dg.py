"""GTA5 → Cityscapes, generalisation: SNR trained on GTA5 alone.

    python -m snr_jax.main --config configs/gta5_dg.py --workdir runs/gta5_dg \
        --config.init_from=checkpoints/init

80,000 steps. Published: 42.68 mIoU on Cityscapes val, plain network 36.94, instance norm 39.46
(arXiv 2101.00588, taken from a third-party summary).
"""

from ml_collections import ConfigDict

from snr_jax.configs import default


def get_config(recipe: str = "paper") -> ConfigDict:
    return default.get_config(recipe)
