"""A tiny network and its command lines, for the tests that run whole commands."""

import logging
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A network of seconds: one block per layer, four channels, images of 33x65.
TINY = {
    "model.stage_sizes": (1, 1, 1, 1),
    "model.width": 4,
    "source.size": (33, 65),
    "target.size": (33, 65),
    "batch_size": 2,
    "optimizer.base_rate": 0.01,
    "optimizer.schedule_steps": 20,
    "num_steps": 20,
    "log_every_steps": 1,
    "eval_every_steps": 10,
    "checkpoint_every_steps": 7,
    "eval.batch_size": 2,
    "eval.num_pictures": 1,
}
GENERALISE, ADAPT = "configs/gta5_dg.py", "configs/gta2city_uda.py"
PATTERN = "out[1]*?\\d"  # a folder's name that libraries may read as a pattern of names
# Compiling dominates these tests: half of it without optimisation, most of it from a cache.
FAST = {"jax_disable_most_optimizations": True, "jax_persistent_cache_min_compile_time_secs": 0.0}


class Result(NamedTuple):
    code: int
    out: str
    err: str


class Run(NamedTuple):
    workdir: Path
    arguments: list[str]
    out: str
    err: str
    files: frozenset  # what it left: path and time of writing

    def arguments_in(self, workdir: Path) -> list[str]:
        """The same command in another folder."""
        return [a if a != str(self.workdir) else str(workdir) for a in self.arguments]


def config_flags(overrides: dict) -> list[str]:
    return [f"--config.{key}={value}" for key, value in overrides.items()]


def once(runs, name, command, train_flags, tmp_path_factory, config, overrides) -> Run:
    if name not in runs:
        workdir = tmp_path_factory.mktemp("runs") / name
        arguments = train_flags(config, workdir, overrides)
        result = command("main", *arguments)
        assert result.code == 0, result
        runs[name] = Run(workdir, arguments, result.out, result.err, files_in(workdir))
    return runs[name]


def files_in(folder: Path) -> frozenset[tuple[str, int]]:
    return frozenset((str(p), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file())


def bound_by_permissions() -> list[str]:
    """What begins a command line for permissions to bind it, root's too; skips without a way."""
    if os.getuid():
        return []
    capabilities = "-dac_override,-dac_read_search"
    drop = ["setpriv", "--bounding-set", capabilities, "--inh-caps", capabilities]
    if not shutil.which("setpriv") or subprocess.run([*drop, "true"]).returncode:
        pytest.skip("root may read everything, and cannot leave that off here")
    return drop


@contextmanager
def said() -> Iterator[list[str]]:
    """What the package's log gets within the block, as lines of the terminal."""
    lines, log = [], logging.getLogger("snr_jax")

    class Collect(logging.Handler):
        def emit(self, record):
            mark = "WARNING: " if record.levelno >= logging.WARNING else ""
            lines.append(mark + record.getMessage())

    handler, level = Collect(), log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
