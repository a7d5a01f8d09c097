"""Toy domains with a small transformer from random values, in place of DINOv2.

    python scripts/make_toy_domains.py --out runs/toy/data --style dusk
    python -m snr_jax.main --config configs/toy_vfm.py:source --workdir runs/toy_vit
    python -m snr_jax.main --config configs/toy_vfm.py --workdir runs/toy_vfm \
        --config.init_from=runs/toy_vit

It shows gta2city_vfm.py at work, minutes on two CPU cores; what such backbones are good for comes
with their weights. '--config.model.snr_after=(0,1)' puts SNR after its first two blocks.
"""

from ml_collections import ConfigDict

from snr_jax.configs import gta2city_vfm, toy_dg


def get_config(task: str = "") -> ConfigDict:
    config, toys = gta2city_vfm.get_config(task), toy_dg.get_config()
    adapts = bool(config.loss.target)
    for key in ("batch_size", "log_every_steps", "checkpoint_every_steps", "eval"):
        config[key] = toys[key]
    config.data.root = toys.data.root
    config.source.size, config.target.size = toys.source.size, toys.target.size
    config.source.rare_class_temperature = 0.0
    config.data.scale_range = (1.0, 1.0)
    config.data.crop = (0, 0)
    config.data.crop_class_share = 1.0
    config.data.jitter = "none"
    config.model.backbone = "dinov2_s"
    config.model.vit_size = (96, 4, 3)
    config.optimizer.base_rate = 2e-4 if adapts else 5e-4  # times 2, the root of the batch
    config.optimizer.backbone_rate = 1.0  # nothing is pretrained
    config.optimizer.warmup_steps = 50
    config.num_steps = config.optimizer.schedule_steps = 300 if adapts else 1000
    config.eval_every_steps = 100 if adapts else 500
    return config
