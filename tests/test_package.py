"""What `pip install` makes of this project: every module, the data files, the dependencies."""

import ast
import importlib.metadata
import re
import shutil
import subprocess
import sys
import zipfile
from email import message_from_string
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = sorted(ROOT.glob("requirements*.txt"))
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
CODE = sorted(
    path for folder in ("snr_jax", "scripts", "configs") for path in (ROOT / folder).rglob("*.py")
)


def requirements(path: Path) -> list[Requirement]:
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("-r ")]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """The wheel of a copy of the tree, to which data files and a package were added."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "snr_jax", tree / "snr_jax",
                    ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "requirements.txt", "README.md"):
        shutil.copy(ROOT / name, tree)
    for name in ("report/page.html.j2", "report/published.json", "core/models/added/__init__.py"):
        (tree / "snr_jax" / name).parent.mkdir(exist_ok=True)
        (tree / "snr_jax" / name).touch()
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps",
                    "--no-build-isolation", "--wheel-dir", out, tree], check=True)
    (path,) = out.glob("*.whl")
    shutil.rmtree(tree / "build", ignore_errors=True)
    with zipfile.ZipFile(path) as file:
        file.tree = tree
        yield file


def test_the_wheel_holds_every_file_of_the_package(wheel):
    files = {path.relative_to(wheel.tree).as_posix()
             for path in (wheel.tree / "snr_jax").rglob("*") if path.is_file()}
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == files
    assert {"snr_jax/core/models/added/__init__.py", "snr_jax/report/page.html.j2"} <= held


def test_the_wheel_needs_what_requirements_txt_lists(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
    metadata = message_from_string(wheel.read(name).decode())
    wanted = {str(requirement) for requirement in requirements(ROOT / "requirements.txt")}
    assert {str(Requirement(text)) for text in metadata.get_all("Requires-Dist")} == wanted
    assert metadata["Requires-Python"] == ">=3.11"


def test_every_requirement_has_a_tested_version():
    lines = (ROOT / "constraints.txt").read_text().splitlines()[1:]
    pinned = dict(line.split("==") for line in lines)
    pinned = {canonicalize_name(name): version for name, version in pinned.items()}
    for path in REQUIREMENTS:
        if path.name == "requirements-beam.txt":  # Beam needs an older protobuf than the tests'
            assert all(str(one.specifier).startswith("==") for one in requirements(path))
            continue
        for requirement in requirements(path):
            version = pinned[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), (path.name, str(requirement))


def test_the_tested_versions_are_installed():
    """What these tests run with is what requirements.txt allows."""
    for requirement in requirements(ROOT / "requirements.txt"):
        version = importlib.metadata.version(requirement.name)
        assert requirement.specifier.contains(version), str(requirement)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_import_the_installed_package_and_not_each_other(path):
    others = {script.stem for script in SCRIPTS} | {"scripts"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module.split(".")[0] not in others
        elif isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & others
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) != ("sys", "path"), node.lineno


def test_every_function_is_annotated():
    """Private ones and those within others too."""
    missing = []
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef):
                continue
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            bare = [a.arg for a in arguments if a.annotation is None]
            bare += ["return"] if node.returns is None and node.name != "__init__" else []
            if set(bare) - {"self", "cls"}:
                missing.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name} {bare}")
    assert missing == []


def test_no_function_is_long():
    """Files may be: a limit on files alone makes second halves, not shorter thoughts."""
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in CODE for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 60
    ]
    assert long == []


def test_the_picture_of_the_readme():
    """Predictions, before all text, and small enough to load with it."""
    first = next(line for line in (ROOT / "README.md").read_text().splitlines()[1:] if line)
    path = ROOT / re.fullmatch(r"!\[.+\]\((\S+)\)", first)[1]
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size < 200_000
