"""Every command answers --help, in a process of its own."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = {  # command → what its help must speak of
    "snr_jax.main": ["--config", "--workdir", "--compilation_cache", "configs/default.py"],
    "snr_jax.evaluate": ["--config", "--checkpoint", "--protocol", "<network|full|both>", "--flip"],
    "snr_jax.predict": ["--checkpoint", "--images", "--out", "--[no]confidence", "_labelIds.png"],
    "snr_jax.data.doctor": ["--domain", "--dir", "--split"],
}
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
