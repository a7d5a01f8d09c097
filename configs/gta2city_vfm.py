"""GTA5 → Cityscapes with DINOv2: class mixing and masked tokens, as VFM-UDA (arXiv 2406.09896).

    python scripts/convert_torch_ckpt.py dinov2_vitb14_pretrain.pth checkpoints/dinov2_b
    python -m snr_jax.main --config configs/gta2city_vfm.py --workdir runs/gta2city_vfm \
        --config.init_from=checkpoints/dinov2_b
    python -m snr_jax.evaluate --config configs/gta2city_vfm.py --checkpoint runs/gta2city_vfm \
        --tile 1024,1024 --overlap 512

`--config configs/gta2city_vfm.py:source` trains on the source alone, which is where to begin for
generalisation; --config.model.backbone=dinov2_l takes ViT-L/14, and
'--config.model.snr_after=(2,5,8)' puts SNR after these blocks. The published setting: 40,000 steps
of 8 images per domain, crops of 1024x1024, scored in windows. Published, mIoU on Cityscapes val:
77.1 with ViT-B/14, 78.4 with ViT-L/14. None of that was repeated here: it needs the data and GPUs.
"""

from ml_collections import ConfigDict

from snr_jax.configs import default

TASKS = ("adapt", "source")


def get_config(task: str = "") -> ConfigDict:
    (task,) = default.choose(task, task=TASKS)
    config = default.get_config("paper")
    config.recipe = "vfm_uda"
    config.model.backbone = "dinov2_b"
    config.source.size = (1024, 1863)  # GTA5's 1052x1914, the shorter side as long as the crop's
    config.target.size = (1024, 2048)
    config.data.scale_range = (0.9, 1.1)
    config.data.crop = (1024, 1024)
    config.data.crop_class_share = 0.75
    config.data.blur = False
    config.data.jitter = "vfm_uda"
    config.source.rare_class_temperature = 0.01
    config.batch_size = 8
    config.optimizer.kind = "adamw"
    config.optimizer.base_rate = 5e-5
    config.optimizer.rate_by_batch = True
    config.optimizer.backbone_rate = 0.1
    config.optimizer.head_rate = 1.0
    config.optimizer.weight_decay = 0.01
    config.optimizer.repeated_updates = False
    config.optimizer.warmup_steps = 1_500
    config.optimizer.schedule_power = 1.0
    config.optimizer.schedule_steps = 40_000
    config.num_steps = 40_000
    if task != "source":
        _adapt(config)
    return config


def _adapt(config: ConfigDict) -> None:
    config.loss.target = "classmix"
    config.loss.lambda_target = 1.0
    config.mix.teacher_momentum = 0.999
    config.mix.teacher_count = 2
    config.mix.teacher_flip = True
    config.mix.jitter_strength = 0.2
    config.mix.rim_left_out = (0.03, 0.25, 0.03, 0.03)
    config.mix.masked_weight = 1.0
    config.mix.mask = "tokens"
