"""SYNTHIA → Cityscapes, generalisation: SNR trained on SYNTHIA-RAND-CITYSCAPES alone, 16 classes.

    python -m snr_jax.main --config configs/synthia_dg.py --workdir runs/synthia_dg \
        --config.init_from=checkpoints/init16

80,000 steps, from the weights that the README converts, with --num_classes 16. Every score is the
mean of the 16 classes and, as miou_13, of the 13 of them that all papers have. Published: 34.36
mIoU on Cityscapes val, plain network 31.12 (arXiv 2101.00588, taken from a third-party summary,
which does not state the number of classes; 16 by its baseline).
"""

from ml_collections import ConfigDict

from snr_jax.configs import default


def get_config(recipe: str = "paper") -> ConfigDict:
    config = default.get_config(recipe)
    config.num_classes = 16
    config.source.domain = "synthia"
    config.source.dir = "RAND_CITYSCAPES"
    config.source.size = (760, 1280)
    return config
