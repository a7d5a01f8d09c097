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
from PIL import Image

from snr_jax.core.models.backbone import architecture
from snr_jax.core.models.deeplab import DeepLab
from snr_jax.core.state import initial_variables
from snr_jax.workdir.checkpoints import save_variables
from tests.test_layering import OF_TRAINING, without

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
    for path in (*REQUIREMENTS, ROOT / "pyproject.toml", ROOT / "README.md"):
        shutil.copy(path, tree)
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
    configs = {path.name for path in (ROOT / "configs").glob("*.py")}
    assert "gta5_dg.py" in configs and {f"snr_jax/configs/{name}" for name in configs} <= held


def test_the_wheel_needs_what_the_requirements_list(wheel):
    """Those of the base always, the others under the name of their extra."""
    (name,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
    metadata = message_from_string(wheel.read(name).decode())
    needed = {}
    for one in map(Requirement, metadata.get_all("Requires-Dist")):
        extra = re.fullmatch('extra == "(.+)"', str(one.marker))[1] if one.marker else "base"
        one.marker = None
        needed.setdefault(extra, set()).add(str(one))
    files = {"base": "-base", "train": "", "cuda": "-cuda", "export": "-export"}
    assert needed == {extra: set(map(str, requirements(ROOT / f"requirements{file}.txt")))
                      for extra, file in files.items()}
    assert metadata["Requires-Python"] == ">=3.11"


def test_requirements_txt_is_everything():
    """In a clone; what predicting needs is in it with the same versions, and no TensorFlow."""
    base, whole = (set(map(str, requirements(ROOT / f"requirements{name}.txt")))
                   for name in ("-base", ""))
    assert base < whole
    rest = {canonicalize_name(Requirement(one).name).replace("-", "_") for one in whole - base}
    assert rest - {"scikit_learn", "tensorflow_cpu"} | {"sklearn", "tensorflow"} == set(OF_TRAINING)


def test_an_installation_without_training(wheel, tmp_path):
    """From the wheel's files, in the folder of a stranger's package `configs`."""
    site, here = tmp_path / "site", tmp_path / "here"
    wheel.extractall(site)
    (here / "configs").mkdir(parents=True)
    (here / "configs/__init__.py").touch()
    model = DeepLab(num_classes=19, stage_sizes=(1, 1, 1, 1), width=4)
    save_variables(here / "network", initial_variables(model, 0), {"model": architecture(model)})
    Image.new("RGB", (65, 33), (90, 120, 40)).save(here / "street.png")
    predict = ["predict", "--checkpoint=network", "--images=street.png", "--out=out",
               "--size=33,65", "--compilation_cache="]
    run = without([*OF_TRAINING, "torch"], f"""
from pathlib import Path
import snr_jax
from snr_jax import __main__
assert Path(snr_jax.__file__).parents[1] == Path({str(site)!r})
try:
    __main__.main(["snr-jax", *{predict!r}])
except SystemExit as end:
    print("predicted", end.code, flush=True)
try:
    __main__.main(["snr-jax", "doctor", "--config=toy_dg"])
except SystemExit as end:
    print("looked", end.code, flush=True)
__main__.main(["snr-jax", "train", "--config=toy_dg"])  # which ends the process
""", here, str(site))
    told = "error: reading data sets and training needs tensorflow: pip install 'snr_jax[train]'\n"
    assert (run.returncode, run.stderr) == (2, told * 2)
    assert {"predicted 0", "looked 2"} <= set(run.stdout.splitlines())
    assert len(list((here / "out").iterdir())) == 4 and not (here / "runs").exists()
    (entry,) = (name for name in wheel.namelist() if name.endswith("/entry_points.txt"))
    assert "snr-jax = snr_jax.__main__:main" in wheel.read(entry).decode()


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
