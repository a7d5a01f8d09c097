"""CamVid by day → CamVid at dusk, generalisation: real photographs on two CPU cores.

    python -m snr_jax.main --config configs/camvid_dg.py --workdir runs/camvid_dg

CamVid lies in datasets/CamVid in either public form (docs/data.md). The demo's network sees
120x160 in 1,200 steps of 4 images, 3 minutes on a quiet core. From copies in JPEG, mIoU of the 11
classes over 3 seeds: by day 42.6, at dusk 14.4. Best at dusk (24.7; by day 45.3) is

    camvid_dg.py:adamw --config.model.norm_restitution=none --config.model.exposure

and with drawn streets before it (docs/photos.md) 30.1 at dusk, 47.3 by day.

A recipe, "full" and "adamw" follow a colon, in any order, as configs/camvid_dg.py:full,adamw. With
"adamw" the optimiser is AdamW, at a twentieth of SGD's rates. "full" is for a GPU and wants weights
of ImageNet (--config.init_from=checkpoints/init): ResNet-101 at 360x480, 20,000 steps of 4 images,
as many images as the published 80,000 steps of one, at four times their rate. Nobody has published
day → dusk, and "full" has no measured score yet.
"""

from ml_collections import ConfigDict

from snr_jax.configs import default, toy_dg

FULL = ("full",)
OPTIMIZERS = ("adamw",)
# A twentieth of SGD's rates, whatever they are, and of all groups the same.
ADAMW = {"optimizer.kind": "adamw", "optimizer.weight_decay": 0.01, "optimizer.warmup_steps": 100,
         "optimizer.backbone_rate": 0.05, "optimizer.head_rate": 0.05, "optimizer.snr_rate": 0.05}


def get_config(argument: str = "standard") -> ConfigDict:
    recipe, full, adamw = default.choose(
        argument, recipe=default.RECIPES, size=FULL, optimizer=OPTIMIZERS)
    config = default.get_config(recipe or "standard") if full else toy_dg.get_config(recipe)
    config.data.root = "datasets"
    config.num_classes = 11
    for side, light in ((config.source, "day"), (config.target, "dusk")):
        side.domain, side.dir = "camvid", "CamVid"
        side.train_split, side.val_split = f"{light}_train", f"{light}_val"
        side.size = (360, 480) if full else (120, 160)
    config.batch_size = 4
    train(config, 20_000 if full else 1_200, rate=1e-3 if full else 0.02)
    config.update_from_flattened_dict(ADAMW if adamw else {})
    return config


def train(config: ConfigDict, num_steps: int, *, rate: float) -> None:
    """Sets the length of the training and of its schedule, and the rate at its beginning."""
    config.num_steps = num_steps
    config.optimizer.schedule_steps = num_steps
    config.optimizer.base_rate = rate
    config.eval_every_steps = num_steps // 3
