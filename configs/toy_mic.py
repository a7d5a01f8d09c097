"""Toy domains, adaptation: class mixing with masked consistency from the network of toy_dg.py.

    python -m snr_jax.main --config configs/toy_mic.py --workdir runs/toy_mic \
        --config.init_from=runs/toy_dg

As toy_classmix.py, with a third loss in the same update: pseudo labels for target images of which
most blocks are hidden (MIC, arXiv 2212.01322). A step takes a third longer.
"""

from ml_collections import ConfigDict

from snr_jax.configs import toy_classmix


def get_config(recipe: str = "standard") -> ConfigDict:
    config = toy_classmix.get_config(recipe)
    config.mix.masked_weight = 1.0
    config.mix.mask_block = 16  # two cells of the network's map; a car has two to four of them
    return config
