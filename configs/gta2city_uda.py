"""GTA5 → Cityscapes, adaptation: SNR-MaxSquare from a network trained on GTA5.

    python -m snr_jax.main --config configs/gta2city_uda.py --workdir runs/gta2city_uda \
        --config.init_from=runs/gta5_dg

Recipe and variant follow a colon, in any order: configs/gta2city_uda.py:release,iw_maxsquare_multi.
Variants: maxsquare, iw_maxsquare, iw_maxsquare_multi, minent, iw_entropy, hard.

29,760 steps. Published, mIoU on Cityscapes val: SNR-MaxSquare 46.5 (arXiv 2101.00588, taken from a
third-party summary). Without SNR: minent 42.2, maxsquare 44.3, iw_maxsquare 45.2,
iw_maxsquare_multi 46.4 (MaxSquareLoss).
"""

from ml_collections import ConfigDict

from snr_jax.configs import default


def get_config(argument: str = "paper") -> ConfigDict:
    recipe, variant = default.choose(argument, recipe=default.RECIPES, variant=default.VARIANTS)
    config = default.get_config(recipe)
    config.init_from = "runs/gta5_dg"
    default.adapt(config, variant)
    return config
