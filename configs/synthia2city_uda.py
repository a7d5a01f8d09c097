"""SYNTHIA → Cityscapes, adaptation: SNR-MaxSquare from a network trained on SYNTHIA, 16 classes.

    python -m snr_jax.main --config configs/synthia2city_uda.py --workdir runs/synthia2city_uda \
        --config.init_from=runs/synthia_dg

Recipe and variant follow a colon, in any order: configs/synthia2city_uda.py:release,minent.
Variants: maxsquare, iw_maxsquare, iw_maxsquare_multi, minent, iw_entropy, hard.

29,760 steps. Published mIoU on Cityscapes val: SNR-MaxSquare 45.1 (arXiv 2101.00588, taken from a
third-party summary that does not say of how many classes). Without SNR, of 16 classes: maxsquare
39.3, iw_maxsquare_multi 41.4, and 48.2 of 13 (MaxSquareLoss).
"""

from ml_collections import ConfigDict

from snr_jax.configs import default, synthia_dg


def get_config(argument: str = "paper") -> ConfigDict:
    recipe, variant = default.choose(argument, recipe=default.RECIPES, variant=default.VARIANTS)
    config = synthia_dg.get_config(recipe)
    config.init_from = "runs/synthia_dg"
    default.adapt(config, variant)
    return config
