"""One of two processes that count a split together: PORT INDEX FOLDER OUT on the command line."""

import os
import sys

from snr_jax.data import splits
from snr_jax.data.domains import create_domain

if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import numpy as np

from snr_jax.core.labels import classes
from snr_jax.core.metrics import Counts
from snr_jax.core.parallel import create_parallel
from snr_jax.core.tiles import Averaging
from snr_jax.process import several
from snr_jax.runs import evaluation
from tests.core.tiny import network, variables

WAYS = {
    "network": {}, "full": {"protocol": "full"},
    "tiles": {"protocol": "full", "averaging": Averaging((33, 40), 4), "calibrated": True},
}


def count(folder: str, way: str) -> Counts:
    split = splits.open_split(
        create_domain("gta5", folder), "all", size=(33, 49), classes=classes(19)
    )
    model = network(num_classes=19)
    own = evaluation.own_devices(create_parallel())
    on_devices = own.replicate(variables(model))
    return evaluation.count(
        model, on_devices, split, parallel=own, batch_size=4, **WAYS[way]
    )


def main(port: str, index: str, folder: str, out: str) -> None:
    with several.joined(("127.0.0.1", int(port)), 2, int(index), 120):
        counts = {way: count(folder, way) for way in WAYS}
        reliability = counts["tiles"].reliability
        np.savez(out, reliability=reliability, **{way: counts[way].confusion for way in WAYS})


if __name__ == "__main__":
    main(*sys.argv[1:])
