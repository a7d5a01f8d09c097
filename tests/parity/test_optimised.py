"""The suite compiles without optimisation, users do not: one recipe as XLA compiles it for them."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import os
import jax
from tests.parity.test_steps import FULL_RECIPE, check_recipe

assert "XLA_FLAGS" not in os.environ
with jax.enable_x64(True):
    check_recipe(FULL_RECIPE, (1, 3))
print("agrees with the twin")
"""


def test_steps_compiled_with_all_optimisations():
    """Float64, steps 1 and 3: SNR, restitution loss, image-wise, multi-level, repeated updates."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    result = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment,
                            capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "agrees with the twin\n"
