"""The library's face: its names, what importing it leaves alone, and the page that shows it."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import snr_jax
from snr_jax.core.models.backbone import architecture
from snr_jax.core.models.deeplab import DeepLab
from snr_jax.core.state import initial_variables
from snr_jax.workdir import checkpoints
from tests.commands import ROOT

PAGE = (ROOT / "docs/library.md").read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the page's paths are right: a run and a photograph."""
    folder = tmp_path_factory.mktemp("library")
    model = DeepLab(stage_sizes=(1, 1, 1, 1), width=4)
    meta = {"model": architecture(model), "source": {"step": 0, "input_size": (33, 65)}}
    path = folder / "runs/gta2city_uda/checkpoints/final"
    checkpoints.save_variables(path, initial_variables(model, 0), meta)
    pixels = np.random.default_rng(0).integers(0, 256, (45, 80, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "street.jpg")
    return folder


def test_the_page_runs_from_its_first_line_to_its_last(folder, monkeypatch, cache, capsys):
    monkeypatch.chdir(folder)
    space = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(block, "docs/library.md", "exec"), space)
    assert Image.open("street_tuned.png").size == Image.open("street_overlay.png").size == (80, 45)
    told = capsys.readouterr()
    assert "six drawn streets" in Path("street_tuned_weights/README.md").read_text()
    assert "step 3: " in told.out and "loss_target" in told.out and told.err == ""
    # Training has taken over arrays, but none of the network that it began with.
    before = checkpoints.load_variables("runs/gta2city_uda")[0]["params"]["conv1"]["kernel"]
    assert (space["segmenter"].variables["params"]["conv1"]["kernel"] == before).all()
    assert (space["tuned"].variables["params"]["conv1"]["kernel"] != before).any()


def test_every_public_name_is_there_documented_and_on_the_page():
    assert set(snr_jax.__all__) <= set(dir(snr_jax))
    for name in snr_jax.__all__:
        value = getattr(snr_jax, name)
        assert value.__doc__ and not value.__doc__.startswith(f"{name}("), name
        assert re.search(rf"\b{name}\b", snr_jax.__doc__), name
        assert re.search(rf"\b{name}\b", PAGE), name
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        snr_jax.lode  # noqa: B018


STATE = """
import logging, os, signal, sys, threading, warnings

def state(with_jax):
    import numpy
    found = {
        "signals": [signal.getsignal(s) for s in sorted(signal.valid_signals())],
        "root log": (logging.root.handlers[:], logging.root.level, logging.getLoggerClass()),
        "environment": dict(os.environ), "warnings": warnings.filters[:], "path": sys.path[:],
        "hooks": (sys.excepthook, sys.unraisablehook, sys.stdout, sys.stderr),
        "numpy": numpy.geterr(), "folder": os.getcwd(),
    }
    if with_jax:
        import jax
        found["jax"] = dict(jax.config.values)
    return found

def same(before, after):
    for key, value in before.items():
        assert value == after[key], (key, value, after[key])
"""
IMPORT = STATE + """
before = state(False)
import snr_jax
snr_jax.__all__, dir(snr_jax), snr_jax.UserError
same(before, state(False))
heavy = {"jax", "tensorflow", "orbax", "flax", "PIL", "scipy"} & set(sys.modules)
assert not heavy, heavy
"""
CALL = STATE + """
import jax, PIL.Image  # what these set is theirs
before = state(True)
import snr_jax
results = snr_jax.load("runs/gta2city_uda")(["street.jpg"] * 2)
results[0].overlay()
same(before, state(True))
heavy = {"tensorflow", "tensorflow_datasets", "clu", "torch", "absl.app"} & set(sys.modules)
assert not heavy, heavy
try:
    snr_jax.load("street.jpg")
except snr_jax.UserError as error:
    assert "street.jpg holds no checkpoint" in str(error)
"""


@pytest.mark.parametrize("program", [IMPORT, CALL], ids=["import", "call"])
def test_nothing_is_said_and_nothing_of_the_process_is_set(program, folder):
    run = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True,
                         text=True, env={"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"})
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
