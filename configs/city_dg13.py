"""Cityscapes → CrossCity (NTHU), generalisation: trained on Cityscapes alone, 13 classes.

    python -m snr_jax.main --config configs/city_dg13.py --workdir runs/city_dg13 \
        --config.init_from=checkpoints/init13

The validations of a run score one city: Rome, or that of configs/city_dg13.py:Tokyo. One network
serves all four; scripts/crosscity.py scores it on each.

80,000 steps, from the weights that the README converts, with --num_classes 13. Published, mIoU of
the network without SNR (MaxSquareLoss): Rome 51.0, Rio 48.9, Tokyo 47.8, Taipei 46.3. There is no
published number with SNR.
"""

from ml_collections import ConfigDict

from snr_jax.configs import default
from snr_jax.data.domains import CITIES


def get_config(argument: str = "paper") -> ConfigDict:
    recipe, city = default.choose(argument, recipe=default.RECIPES, city=CITIES)
    config = default.get_config(recipe)
    config.num_classes = 13
    config.source.domain = "cityscapes"
    config.source.dir = "Cityscapes"
    config.source.size = (512, 1024)
    config.target.domain = "crosscity"
    config.target.dir = f"NTHU/{(city or 'rome').capitalize()}"
    return config
