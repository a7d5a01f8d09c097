"""Cityscapes → a city of CrossCity (NTHU), adaptation: SNR-MaxSquare, 13 classes.

    python -m snr_jax.main --config configs/city2crosscity_uda.py:Rome \
        --workdir runs/city2crosscity_uda_rome --config.init_from=runs/city_dg13

The city follows a colon: Rio, Rome, Tokyo or Taipei; so do recipe and variant, in any order:
configs/city2crosscity_uda.py:Rome,release,iw_maxsquare. Variants: maxsquare, iw_maxsquare,
iw_maxsquare_multi, minent, iw_entropy, hard. scripts/crosscity.py adapts to the four cities.

29,760 steps, as the adaptations to Cityscapes. Published, mIoU without SNR (MaxSquareLoss),
maxsquare and iw_maxsquare: Rome 53.9, 54.5; Rio 52.0, 53.3; Tokyo 49.7, 50.5; Taipei 49.8, 50.6.
There is no published number with SNR.
"""

from ml_collections import ConfigDict

from snr_jax.configs import city_dg13, default
from snr_jax.data.domains import CITIES


def get_config(argument: str = "") -> ConfigDict:
    recipe, variant, city = default.choose(
        argument, recipe=default.RECIPES, variant=default.VARIANTS, city=CITIES
    )
    if not city:
        raise ValueError(
            "the city is missing; for instance configs/city2crosscity_uda.py:Rome. There are "
            f"{', '.join(name.capitalize() for name in CITIES)}"
        )
    config = city_dg13.get_config(f"{recipe},{city}")
    config.init_from = "runs/city_dg13"
    default.adapt(config, variant)
    return config
