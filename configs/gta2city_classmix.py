"""GTA5 → Cityscapes, adaptation: self-training with class mixing (DACS), from initial weights.

    python -m snr_jax.main --config configs/gta2city_classmix.py --workdir runs/gta2city_classmix \
        --config.init_from=checkpoints/init

The published setting: 250,000 steps, 2 images per domain, crops of 512x512 from 720x1280 and
512x1024, scored with the student at 512x1024. Published, mIoU on Cityscapes val, for the plain
network (--config.model.norm_restitution=none): 52 in the paper (arXiv 2007.08702), 53.0 for the
released model, 53.7 at its best. With SNR, the default here: not known, nobody has published it.
"""

from ml_collections import ConfigDict

from snr_jax.configs import default


def get_config(recipe: str = "paper") -> ConfigDict:
    config = default.get_config(recipe or "paper")
    default.self_train(config)
    return config
