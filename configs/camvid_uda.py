"""CamVid by day → CamVid at dusk, adaptation: SNR-MaxSquare from the network of camvid_dg.py.

    python -m snr_jax.main --config configs/camvid_uda.py --workdir runs/camvid_uda \
        --config.init_from=runs/camvid_dg

300 steps, a few minutes on two cores. mIoU at dusk over 3 seeds: 14.4 before, 15.5 after.

A variant, a recipe, "full" and "adamw" follow a colon, in any order, as camvid_uda.py:minent,full:
maxsquare, iw_maxsquare, iw_maxsquare_multi, minent, iw_entropy, hard. "full" goes on from
camvid_dg.py:full in 5,000 steps, on a GPU.
"""

from ml_collections import ConfigDict

from snr_jax.configs import camvid_dg, default


def get_config(argument: str = "standard") -> ConfigDict:
    recipe, variant, full, adamw = default.choose(
        argument, recipe=default.RECIPES, variant=default.VARIANTS, size=camvid_dg.FULL,
        optimizer=camvid_dg.OPTIMIZERS)
    config = camvid_dg.get_config(f"{recipe},{full},{adamw}")
    config.init_from = "runs/camvid_dg"
    default.adapt(config, variant)
    config.target.size = config.source.size  # whatever the variant is published with
    camvid_dg.train(config, 5_000 if full else 300, rate=1e-3 if full else 0.01)
    return config
