"""The core stands on numpy, jax, flax and optax alone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = ["labels", "errors", "augment", "losses", "metrics", "optim", "state", "steps", "parallel",
        "torch_names", "models.layers", "models.resnet", "models.snr", "models.deeplab"]
ALLOWED = {"numpy", "jax", "flax", "optax"}
ABSENT = ["tensorflow", "tensorflow_datasets", "clu", "ml_collections", "torch"]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def test_every_module_of_the_models_is_named_here():
    files = {f"models.{p.stem}" for p in (ROOT / "snr_jax/models").glob("*.py")}
    assert files - {"models.__init__"} == {name for name in CORE if name.startswith("models.")}


@pytest.mark.parametrize("module", CORE)
def test_core_modules_import_the_core_alone(module):
    for name in imports(ROOT / "snr_jax" / f"{module.replace('.', '/')}.py"):
        package = name.split(".")[0]
        if package == "snr_jax":
            inside = name.removeprefix("snr_jax").removeprefix(".")
            assert not inside or any(f"{inside}.".startswith((f"{core}.", f"{core.split('.')[0]}."))
                                     for core in CORE), name
        else:
            assert package in ALLOWED | sys.stdlib_module_names, name


def test_core_runs_where_nothing_else_is_installed():
    program = f"""
import importlib, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
for name in {CORE!r}:
    importlib.import_module("snr_jax." + name)
from snr_jax.core.models.deeplab import DeepLab
from snr_jax.core.state import variable_shapes
variable_shapes(DeepLab(stage_sizes=(1, 1, 1, 1), width=4))
assert not set({ABSENT!r}) & set(sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
