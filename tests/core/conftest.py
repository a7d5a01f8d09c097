"""These tests run where the core does; PyTorch is what one of them compares times with."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("torch") else ["test_bench_step.py"]
