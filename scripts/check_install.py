"""Installs the wheel into new environments, and uses it there from an empty folder, as a user does.

    python scripts/check_install.py [--pythons 3.11,3.12,3.13] [--train=false]

For each Python that is found: the wheel alone, its size, how long `import snr_jax` takes, a
prediction (with the compilation kept, and before), and the line that says what training needs;
then the extra `train`, and a few steps on toys. It needs the registry that pip uses, and minutes.
Exits 1 where something fails or takes longer than it may.
"""

import glob
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from absl import flags

from snr_jax import cli
from snr_jax.core.errors import UserError
from snr_jax.report import tables

FLAGS = flags.FlagValues()
flags.DEFINE_list("pythons", ["3.11", "3.12", "3.13"], "Versions.", flag_values=FLAGS)
flags.DEFINE_bool("train", True, "Install the extra train too, and train.", flag_values=FLAGS)

ROOT = Path(__file__).resolve().parents[1]
LIMITS = {"import snr_jax, s": 1.0, "predict again, s": 10.0}
# A network like the demo's and one street, as `snr-jax toys` draws them.
CHECKPOINT = """
from snr_jax.core.models.backbone import architecture
from snr_jax.core.models.deeplab import DeepLab
from snr_jax.core.state import initial_variables
from snr_jax.workdir.checkpoints import save_variables
model = DeepLab(num_classes=19, stage_sizes=(1, 2, 2, 1), width=16, head_branches=2)
save_variables("network", initial_variables(model, 0), {"model": architecture(model)})
"""
IMPORT = "import time; t = time.perf_counter(); import snr_jax; print(time.perf_counter() - t)"
TOYS = ["toys", "--out=runs/toy/data", "--num_train=8", "--num_val=2", "--workers=1"]
PREDICT = ["predict", "--checkpoint=network", "--images=runs/toy/data/GTA5/images/00001.png",
           "--out=drawn", "--size=96,192", "--compilation_cache=compiled"]
TRAIN = ["train", "--config=toy_dg", "--config.num_steps=4", "--config.eval_every_steps=4",
         "--compilation_cache=compiled"]


class Place(NamedTuple):
    """An environment, and the folder in which its commands run."""

    venv: Path
    folder: Path

    def run(self, *words: str, code: int = 0) -> tuple[subprocess.CompletedProcess, float]:
        """What a program of the environment answered, and its seconds.

        Raises UserError for another exit code than that.
        """
        program, *rest = words
        start = time.perf_counter()
        done = subprocess.run([self.venv / "bin" / program, *rest], cwd=self.folder, text=True,
                              capture_output=True, env=_environment(), check=False)
        if done.returncode != code:
            raise UserError(f"{self.venv}: {' '.join(words)} ended with {done.returncode}, "
                            f"expected {code}:\n{done.stdout}{done.stderr}")
        return done, time.perf_counter() - start

    def install(self, what: str) -> float:
        """Seconds that pip took."""
        return self.run("pip", "install", "--quiet", "--disable-pip-version-check", what)[1]

    def megabytes(self) -> float:
        """The size of the files that are installed."""
        files = (self.venv / "lib").rglob("*")
        return sum(file.lstat().st_size for file in files if file.is_file()) / 1e6


def _environment() -> dict[str, str]:
    """This process's, without what would let the clone be imported."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def _interpreter(version: str) -> Path | None:
    """Python of that version, on the path or under pyenv; None where there is none."""
    pyenv = os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")
    paths = glob.glob(f"{pyenv}/versions/{version}.*/bin/python")
    for path in filter(None, [shutil.which(f"python{version}"), *paths]):
        asked = subprocess.run([path, "-c", "import venv, sys; print(sys.version)"], text=True,
                               capture_output=True, check=False)
        if asked.returncode == 0 and asked.stdout.startswith(version + "."):
            return Path(path)
    return None


def _used(place: Place, wheel: Path, with_training: bool) -> dict[str, float]:
    """Measures of one environment, by name."""
    measures = {"install, s": place.install(str(wheel)), "installed, MB": place.megabytes()}
    measures["import snr_jax, s"] = min(
        float(place.run("python", "-c", IMPORT)[0].stdout) for _ in range(3))
    place.run("python", "-c", CHECKPOINT)
    place.run("snr-jax", *TOYS)
    for name in ("predict, s", "predict again, s"):
        shutil.rmtree(place.folder / "drawn", ignore_errors=True)
        measures[name] = place.run("snr-jax", *PREDICT)[1]
        if len(list((place.folder / "drawn").iterdir())) != 4:
            raise UserError(f"{place.folder / 'drawn'}: expected four files of the image")
    told = place.run("snr-jax", *TRAIN, code=2)[0].stderr
    if told.count("\n") != 1 or "pip install 'snr_jax[train]'" not in told:
        raise UserError(f"training without its extra says {told!r}; expected one line that names "
                        "snr_jax[train]")
    if with_training:
        measures["install [train], s"] = place.install(f"{wheel}[train]")
        measures["with [train], MB"] = place.megabytes()
        measures["train 4 steps, s"] = place.run("snr-jax", *TRAIN)[1]
        place.run("snr-jax", *PREDICT, "--checkpoint=runs/toy_dg")
    return measures


def _wheel(folder: Path) -> Path:
    """The wheel of this clone, built in a copy of it."""
    tree = folder / "tree"
    shutil.copytree(ROOT / "snr_jax", tree / "snr_jax",
                    ignore=shutil.ignore_patterns("__pycache__"))
    for file in (*ROOT.glob("requirements*.txt"), ROOT / "pyproject.toml", ROOT / "README.md"):
        shutil.copy(file, tree)
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps",
                    "--disable-pip-version-check", "--wheel-dir", folder, tree], check=True)
    return next(folder.glob("*.whl"))


def command(args: flags.FlagValues) -> int:
    found: dict[str, Mapping[str, float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        wheel = _wheel(Path(temporary))
        print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.2f} MB", flush=True)
        for version in args.pythons:
            if (python := _interpreter(version)) is None:
                print(f"Python {version}: not found, left out", flush=True)
                continue
            place = Place(Path(temporary, version), Path(temporary, f"empty {version}"))
            place.folder.mkdir()
            subprocess.run([python, "-m", "venv", place.venv], check=True, env=_environment())
            found[version] = _used(place, wheel, args.train)
            print(f"Python {version}: works", flush=True)
            shutil.rmtree(place.venv)
    if not found:
        raise UserError(f"--pythons {','.join(args.pythons)}: none of them is here")
    names = list(next(iter(found.values())))
    rows = [[name, *(f"{of[name]:.2f}" for of in found.values()), f"{LIMITS.get(name, '')}"]
            for name in names]
    print("\n".join(tables.aligned([["Python", *found, "limit"], *rows])))
    slow = [f"Python {version}, {name}: {of[name]:.2f}" for version, of in found.items()
            for name, limit in LIMITS.items() if of[name] > limit]
    print("\n".join(f"too slow: {one}" for one in slow), end="\n" * bool(slow))
    return 1 if slow else 0


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(argv, FLAGS, __doc__, command)


if __name__ == "__main__":
    sys.exit(main())
