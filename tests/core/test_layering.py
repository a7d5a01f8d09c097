"""The core stands on numpy, jax, flax and optax alone, and a room imports lower rooms alone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "snr_jax/core"
CORE = sorted(
    ".".join(("snr_jax.core", *path.relative_to(FOLDER).with_suffix("").parts))
    for path in FOLDER.rglob("*.py") if path.stem != "__init__"
)
ALLOWED = {"numpy", "jax", "flax", "optax"}
# Room → the rooms of snr_jax that it imports. Commands (with FLAGS) stand above all of them.
ROOMS = {
    "core": {"core"},
    "data": {"core", "data"},
    "toy": {"core", "toy"},
    "report": {"core", "report"},
    "runs": {"core", "data", "toy", "report", "runs"},
    "parity": {"core", "runs", "parity"},
}
ABSENT = ["tensorflow", "tensorflow_datasets", "clu", "ml_collections", "torch"]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


@pytest.mark.parametrize("module", CORE)
def test_core_modules_import_the_core_alone(module):
    for name in imports(ROOT / f"{module.replace('.', '/')}.py"):
        package = name.split(".")[0]
        if package == "snr_jax":
            assert f"{name}.".startswith("snr_jax.core."), name
        else:
            assert package in ALLOWED | sys.stdlib_module_names, name


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_lower_rooms_alone(room):
    for path in (ROOT / "snr_jax" / room).rglob("*.py"):
        if "FLAGS = " not in path.read_text():
            words = (name.split(".") for name in imports(path) if name.startswith("snr_jax."))
            assert {parts[1] for parts in words} <= ROOMS[room], path


def test_every_room_is_in_the_table():
    assert {path.parent.name for path in (ROOT / "snr_jax").glob("*/__init__.py")} == ROOMS.keys()


def test_core_runs_where_nothing_else_is_installed():
    program = f"""
import importlib, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
for name in {CORE!r}:
    importlib.import_module(name)
from snr_jax.core.models.deeplab import DeepLab
from snr_jax.core.state import variable_shapes
variable_shapes(DeepLab(stage_sizes=(1, 1, 1, 1), width=4))
assert not set({ABSENT!r}) & set(sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
