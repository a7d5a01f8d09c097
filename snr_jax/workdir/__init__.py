"""What lies in the folder of a run."""

import importlib

from snr_jax.core.progress import root_log_kept

with root_log_kept():  # before any module of this room imports it
    importlib.import_module("orbax.checkpoint")
