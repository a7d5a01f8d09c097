"""The core stands on numpy, jax, flax and optax alone, and a room imports lower rooms alone."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "snr_jax/core"
CORE = sorted(
    ".".join(("snr_jax.core", *path.relative_to(FOLDER).with_suffix("").parts))
    for path in FOLDER.rglob("*.py") if path.stem != "__init__"
)
ALLOWED = {"numpy", "jax", "flax", "optax"}
# A room imports itself and the rooms of the lines above its own; a door imports any.
LAYERS = (
    ("core",),
    ("data", "toy", "weights", "report"),
    ("config", "process"),
    ("configs",),
    ("workdir",),
    ("runs",),
    ("inference", "studies", "parity", "portable"),
)
# The one room in which a foreign library is imported.
PLACES = {"orbax": "workdir", "tensorflow": "data", "clu": "workdir", "torch": "weights",
          "safetensors": "weights", "onnx": "portable", "onnxruntime": "portable"}
ABSENT = ["tensorflow", "tensorflow_datasets", "clu", "ml_collections", "torch"]
# What pip brings with snr_jax[train] alone.
OF_TRAINING = ["tensorflow", "tensorflow_datasets", "clu", "tensorboard", "sklearn",
               "threadpoolctl", "importlib_resources"]


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


def rooms_below(room: str) -> set[str]:
    layer = next(i for i, rooms in enumerate(LAYERS) if room in rooms)
    return {room}.union(*LAYERS[:layer])


def modules_of(room: str) -> list[Path]:
    """What belongs to a room; the former place of a door is none of it."""
    former = {"snr_jax/data/doctor.py", "snr_jax/report/__main__.py"}
    paths = (ROOT / "snr_jax" / room).rglob("*.py")
    return [path for path in paths if path.relative_to(ROOT).as_posix() not in former]


@pytest.mark.parametrize("room", [room for rooms in LAYERS for room in rooms])
def test_rooms_import_lower_rooms_alone(room):
    for path in modules_of(room):
        words = (name.split(".") for name in imports(path) if name.startswith("snr_jax."))
        assert {parts[1] for parts in words} <= rooms_below(room), path


@pytest.mark.parametrize(("library", "place"), PLACES.items())
def test_a_foreign_library_is_imported_in_one_room(library, place):
    for room in {path.parent.name for path in (ROOT / "snr_jax").glob("*/__init__.py")} - {place}:
        for path in modules_of(room):
            assert library not in {name.split(".")[0] for name in imports(path)}, path


def test_every_room_has_its_layer():
    rooms = {path.parent.name for path in (ROOT / "snr_jax").glob("*/__init__.py")}
    assert rooms == {room for rooms in LAYERS for room in rooms}


def without(
    absent: list[str], program: str, folder: Path = ROOT, path: str = ""
) -> subprocess.CompletedProcess:
    """Runs a program in a process in which some packages cannot be imported.

    It runs in the folder, with `path` in the place of PYTHONPATH.
    """
    program = f"""
import importlib, sys
from importlib.machinery import PathFinder

def find(name, *more, there=PathFinder.find_spec):
    return None if name.split(".")[0] in {absent!r} else there(name, *more)

PathFinder.find_spec = find
{program}
"""
    return subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True,
                          text=True, env={**os.environ, "PYTHONPATH": path})


def test_core_runs_where_nothing_else_is_installed():
    run = without(ABSENT, f"""
for name in {CORE!r}:
    importlib.import_module(name)
from snr_jax.core.models.deeplab import DeepLab
from snr_jax.core.state import variable_shapes
variable_shapes(DeepLab(stage_sizes=(1, 1, 1, 1), width=4))
assert not set({ABSENT!r}) & set(sys.modules)
""")
    assert run.returncode == 0, run.stderr


def test_every_module_can_be_imported_where_training_is_not_installed():
    """So that a door can say in one line what it needs, and --help needs nothing."""
    run = without(OF_TRAINING, """
import pkgutil, snr_jax
for module in pkgutil.walk_packages(snr_jax.__path__, "snr_jax."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
""")
    assert run.returncode == 0, run.stderr


def test_the_bench_of_a_step_runs_on_a_gpu_machine():
    """Such a one may have PyTorch and JAX alone: its own path, and the twin's."""
    run = without(ABSENT[:-1], """
from scripts import bench_step, check_hlo
import twin.workloads
import snr_jax.core.workloads
assert bench_step.main(["bench_step", "--help"]) == 0
""")
    assert run.returncode == 0, run.stderr
