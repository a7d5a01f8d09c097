"""Compiling takes most of the suite's time, and tiny programs run as fast without optimisation."""

import os

os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
)
