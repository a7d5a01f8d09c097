"""Command lines: what --config.KEY=VALUE sets, and where a file may lie."""

import os
import subprocess
import sys

import pytest
from absl import flags

from snr_jax import cli
from snr_jax.config import keys
from tests.commands import ROOT

DG = str(ROOT / "configs/gta5_dg.py")
FLAGS = flags.FlagValues()
cli.define_config(FLAGS)
flags.DEFINE_integer("number", 7, "A number.", flag_values=FLAGS)


def run(*words: str, command=None):
    """What the command returns; by default the configuration and its name."""
    kept = []

    def chosen(args) -> None:
        kept.append((cli.require(args, "config", "--config x.py"), cli.config_name(args)))

    assert cli.run(["command", *words], FLAGS, "A test.", command or chosen) == 0
    return kept and kept[0]


@pytest.mark.parametrize(
    "key, typed, value",
    [
        ("seed", "3", 3), ("optimizer.head_rate", "3", 3.0), ("optimizer.head_rate", "1e-3", 1e-3),
        ("data.crop", "(65,97)", (65, 97)), ("data.crop", "[65, 97]", (65, 97)),
        ("data.crop", "65,97", (65, 97)), ("data.crop", "65", (65,)),
        ("data.scale_range", "(1,1.5)", (1, 1.5)),
        ("freeze_bn", "true", True), ("freeze_bn", "1", True), ("data.mirror", "False", False),
        ("data.mirror", "f", False),
        ("target.val_split", "", ""), ("init_from", "runs/a=b", "runs/a=b"),
        ("data.root", "3", "3"), ("init_from", "two\nlines", "two\nlines"),
    ],
)  # fmt: skip
def test_a_value_has_the_type_of_its_key(key, typed, value):
    default = keys.values(run("--config", DG)[0])
    for words in ([f"--config.{key}={typed}"], [f"-config.{key}={typed}"],
                  [f"--config.{key}", typed], [f"--config.{key}=9", f"--config.{key}={typed}"]):
        found = keys.values(run("--config", DG, *words)[0])
        assert found == default | {key: value}
        assert type(found[key]) is type(value) is type(default[key])


def test_a_switch_needs_no_value():
    config, _ = run("--config.freeze_bn", "--config", DG, "--noconfig.data.mirror", "--number=3")
    assert config.freeze_bn is True and config.data.mirror is False


@pytest.mark.parametrize("file", ["mine.py", "no_suffix", "a folder/mine.py"])
def test_a_file_may_lie_anywhere(file, tmp_path, monkeypatch):
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text("from configs import gta5_dg\n\n\n"
                    "def get_config(width='8'):\n"
                    "    config = gta5_dg.get_config()\n"
                    "    config.model.width = int(width)\n"
                    "    return config\n")
    for name in (str(path), f"{path}:16"):
        config, stem = run("--config", name, "--config.seed=3")
        assert (config.model.width, config.seed) == (16 if ":" in name else 8, 3)
        assert stem == path.stem
    path.write_text(path.read_text().replace("'8'", "'4'"))  # as long, in the same second
    monkeypatch.chdir(path.parent)
    assert run("--config", path.name)[0].model.width == 4


def test_a_configuration_is_locked():
    config, _ = run("--config", DG, "--config.seed=3")
    with pytest.raises(AttributeError):
        config.sede = 4
    with pytest.raises(TypeError):
        config.seed = "4"


def test_no_command_line_sees_an_earlier_one():
    numbers = []
    for words in (["--number=3", "--config", DG, "--config.seed=5"], ["--config", DG], []):
        run(*words, command=lambda args: numbers.append(
            (args.number, args["config"].value and args["config"].value.config.seed)))
    assert numbers == [(3, 5), (7, 0), (7, None)]


def test_help_config_into_a_pipe_that_closes():
    process = subprocess.run(
        f"{sys.executable} -m snr_jax.main --help_config | head -1", shell=True, cwd=ROOT,
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout.count("\n") == 1 and process.stderr == ""

