"""Toy domains, adaptation: self-training with class mixing from the network of toy_dg.py.

    python -m snr_jax.main --config configs/toy_classmix.py --workdir runs/toy_classmix \
        --config.init_from=runs/toy_dg
"""

from ml_collections import ConfigDict

from snr_jax.configs import default, toy_uda


def get_config(recipe: str = "standard") -> ConfigDict:
    config = toy_uda.get_config(recipe)
    default.self_train(config)
    config.data.crop = (96, 96)  # half of the width, half of the time
    config.data.mirror = True  # 300 images are few
    config.data.blur = True
    config.batch_size = 4
    config.mix.statistics = "teacher"  # the styles differ in the statistics of whole images
    config.optimizer.base_rate = 0.01
    config.num_steps = 300
    config.optimizer.schedule_steps = 300
    config.eval_every_steps = 100
    return config
