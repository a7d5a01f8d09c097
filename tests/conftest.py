"""Compiling takes most of the suite's time, and tiny programs run as fast without optimisation."""

import os
import signal

os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
)

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # As in a job that a shell starts in the background. Processes inherit it, and some tests send
    # them SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
