"""Parity runs in float64 (one thread of PyTorch: the comparison wants no speed)."""

from collections.abc import Iterator

import jax
import pytest
import torch


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    """JAX makes and keeps float64 inside every test of this folder, and nowhere else."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with jax.enable_x64(True):
        yield
    torch.set_num_threads(threads)
