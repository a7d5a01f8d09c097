"""Every command answers --help, in a process of its own, and all have one spelling of flags."""

import ast
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from snr_jax import __main__

ROOT = Path(__file__).resolve().parents[1]
MODULES = {  # command → what its help must speak of
    "snr_jax.main": ["--config", "--workdir", "--compilation_cache", "--help_config"],
    "snr_jax.evaluate": ["--config", "--checkpoint", "--protocol", "<network|full|both>", "--flip"],
    "snr_jax.predict": ["--checkpoint", "--images", "--out", "--[no]confidence", "_labelIds.png"],
    "snr_jax.doctor": ["--domain", "--dir", "--split"],
    "snr_jax.export": ["--checkpoint", "--out", "MODEL.stablehlo", "--[no]dynamic", "--[no]uint8"],
    "snr_jax.compare": ["RUN", "--out", "--title", "--pictures", "--[no]features"],
    "snr_jax.toys": ["--out", "--layouts", "--style"],
    "snr_jax.prepare": ["--domain", "--out", "--beam_runner"],
    "snr_jax.serve": ["--checkpoint", "--port", "--host", "--max_megabytes"],
    "snr_jax.convert": ["--num_classes", "--variant", "--[no]export"],
}
FORMER = {  # script → the door that it was, for clones and the commands that people know
    "convert_torch_ckpt.py": "snr_jax.convert", "prepare_data.py": "snr_jax.prepare",
    "make_toy_domains.py": "snr_jax.toys",
}  # fmt: skip
SCRIPTS = sorted(path.name for path in (ROOT / "scripts").glob("*.py"))


@pytest.fixture(scope="module")
def helps(tmp_path_factory):
    """The answers of all, asked from another folder, side by side: starting takes seconds."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")

    def help_of(command: list[str]) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, *command, "--help"], cwd=elsewhere,
                              capture_output=True, text=True, timeout=600)

    commands = {name: ["-m", name] for name in MODULES}
    commands |= {name: [str(ROOT / "scripts" / name)] for name in SCRIPTS}
    commands["snr-jax train"] = ["-m", "snr_jax", "train"]
    commands["snr-jax"] = ["-m", "snr_jax"]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(commands, pool.map(help_of, commands.values())))


@pytest.mark.parametrize("name", [*MODULES, *SCRIPTS])
def test_help(name, helps):
    result = helps[name]
    assert result.returncode == 0 and result.stderr == "", result
    for word in MODULES.get(name, [f"scripts/{name}", "\n  --"]):
        assert word in result.stdout
    assert len(result.stdout.splitlines()) > 5


def test_scripts_are_there():
    wanted = {"convert_torch_ckpt.py", "check_parity.py", "make_toy_domains.py", "demo.py"}
    assert wanted <= set(SCRIPTS)


@pytest.mark.parametrize("given, message", [
    (["--variants="],
     "--variants is empty; expected some of plain,IN,SNR,SNR + restitution loss,plain + jitter,"
     "IN + jitter,SNR + jitter,SNR + restitution loss + jitter,plain + exposure,IN + exposure,"
     "SNR + exposure,SNR + restitution loss + exposure,plain + AdamW,IN + AdamW,SNR + AdamW,"
     "SNR + restitution loss + AdamW,plain + exposure + AdamW,IN + exposure + AdamW,"
     "SNR + exposure + AdamW,SNR + restitution loss + exposure + AdamW"),
    (["--benchmark=drawings", "--prepared=x"],
     "--prepared is of CamVid, and --benchmark drawings draws its images; leave it out"),
])  # fmt: skip
def test_a_study_that_cannot_be_made_is_refused(given, message, tmp_path):
    result = subprocess.run(
        [sys.executable, "scripts/study.py", *given, f"--out={tmp_path}"], cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=600,
    )
    assert result.returncode == 2 and not any(tmp_path.iterdir()), result
    assert result.stderr == f"error: {message}\n"


def file_of(command: str) -> Path:
    command = FORMER.get(command, command)
    if command.endswith(".py"):
        return ROOT / "scripts" / command
    return (ROOT / command.replace(".", "/")).with_suffix(".py")


@pytest.mark.parametrize("name", [*MODULES, *SCRIPTS])
def test_one_flag_system_and_one_way_to_end(name, helps):
    """absl's flags at module level, words joined by underscores, and `cli.run` in `main(argv)`."""
    tree = ast.parse(file_of(name).read_text())
    assert "FLAGS = flags.FlagValues()" in map(ast.unparse, tree.body)
    (main,) = (node for node in tree.body if getattr(node, "name", "") == "main")
    assert [argument.arg for argument in main.args.args] == ["argv"]
    assert "cli.run(argv, FLAGS, __doc__, command" in ast.unparse(main)
    assert "argparse" not in file_of(name).read_text()
    listed = re.findall(r"^  --(?:\[no\])?([^:\s]+):", helps[name].stdout, re.MULTILINE)
    assert listed and not [flag for flag in listed if not re.fullmatch("[a-z0-9_]+", flag)]


def test_commands_are_all_there():
    """A module that lies directly in the package can be run, and is one of the list."""
    doors = {path.stem for path in (ROOT / "snr_jax").glob("*.py")} - {
        "__init__", "__main__", "cli"}
    assert {f"snr_jax.{door}" for door in doors} == MODULES.keys()


def test_the_console_command_lists_what_is_there(helps):
    """The names of modules, one aside; what is not written yet has no line."""
    result = helps["snr-jax"]
    assert result.returncode == 0 and result.stderr == ""
    listed = re.findall(r"^  (\w+) +[A-Z].*[.,]", result.stdout, re.MULTILINE)
    assert [f"snr_jax.{__main__.COMMANDS[name]}" for name in listed] == [
        f"snr_jax.{module}" for module in __main__.COMMANDS.values()
        if f"snr_jax.{module}" in MODULES]
    assert set(listed) == {name.removeprefix("snr_jax.") for name in MODULES} ^ {"main", "train"}


def test_a_command_is_the_module(helps):
    assert helps["snr-jax train"].stdout == helps["snr_jax.main"].stdout != helps["snr-jax"].stdout


@pytest.mark.parametrize("words, told", [
    (["trian"], "there is no command 'trian'; did you mean train? snr-jax --help lists them"),
    (["x", "--help"], "there is no command 'x'; snr-jax --help lists them"),
])
def test_an_unknown_command(words, told, capsys):
    assert __main__.main(["snr-jax", *words]) == 2
    assert capsys.readouterr() == ("", f"error: {told}\n")


@pytest.mark.parametrize("former, now", [
    ("snr_jax.data.doctor", "snr_jax.doctor"), ("snr_jax.report", "snr_jax.compare"),
])
def test_a_former_spelling_names_the_new_one_and_works(former, now):
    result = subprocess.run([sys.executable, "-m", former, "--help"], cwd=ROOT,
                            capture_output=True, text=True, timeout=600)
    assert result.returncode == 0 and f"python -m {now}" in result.stdout
    assert result.stderr == f"note: python -m {former} is python -m {now} now\n"
