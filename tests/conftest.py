"""Tiny data sets, a tiny network, and the command lines on them.

Compiling takes most of the suite's time, and tiny programs run as fast without optimisation.
"""

import os
import signal

from tests.fast import XLA_FLAGS

os.environ.setdefault("XLA_FLAGS", XLA_FLAGS)

# Ignored in a job that a shell starts in the background, or under nohup. Processes inherit that,
# and some tests send these signals.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from tests.commands import (
    ADAPT,
    FAST,
    GENERALISE,
    ROOT,
    TINY,
    Result,
    Run,
    config_flags,
    files_in,
    once,
)


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """The folder of compiled programs: one for the processes, and for the workers of xdist."""
    base = tmp_path_factory.getbasetemp()
    folder = str((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "compiled")
    settings = {**FAST, "jax_compilation_cache_dir": folder}
    before = {name: jax.config.values[name] for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield folder
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture
def command(capfd, monkeypatch, cache):
    """command("main", "--flag=value", ...) → Result, in this process. An exception passes through.

    So a mistake that would end in a traceback fails the test that makes it.
    """

    def run(module: str, *arguments: str) -> Result:
        handler = signal.getsignal(signal.SIGTERM)
        monkeypatch.chdir(ROOT)
        capfd.readouterr()
        try:
            main = importlib.import_module(f"snr_jax.{module}").main
            code = main([module, *map(str, arguments)])
        finally:
            signal.signal(signal.SIGTERM, handler)
        return Result(code, *capfd.readouterr())

    return run


@pytest.fixture
def refused(command):
    """As `command`, for one that must refuse: the error, one line, after exit with code 2."""

    def run(module: str, *arguments: str) -> str:
        result = command(module, *arguments)
        assert result.code == 2, result
        errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and result.err.rstrip().endswith(errors[0]), result.err
        return errors[0]

    return run


@pytest.fixture
def process(cache):
    """Starts a command in a process of its own, that does not outlive the test."""
    started = []

    def start(module: str, *arguments: str, **options) -> subprocess.Popen:
        names = {"PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": cache}
        names |= {k.upper(): str(v) for k, v in FAST.items()}
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", f"snr_jax.{module}", *map(str, arguments)],
                cwd=ROOT, env={**os.environ, **names}, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
            )
        )
        return started[-1]

    yield start
    for one in started:
        one.kill()
        one.communicate()


@pytest.fixture(scope="session")
def data_root(tmp_path_factory) -> Path:
    """Six labelled source images and two more, six bare target images and three labelled ones."""
    from tests.data.tiny_sets import write_cityscapes, write_gta5

    root = tmp_path_factory.mktemp("sets")
    gta5 = write_gta5(root, ids=range(1, 9), height=40, width=72)
    (gta5 / "train.txt").write_text("".join(f"{i}\n" for i in range(1, 7)))
    (gta5 / "val.txt").write_text("7\n8\n")
    write_cityscapes(root, count=6, split="train", height=40, width=80, labels=False)
    write_cityscapes(root, count=3, split="val", height=40, width=80)
    return root


@pytest.fixture
def train_flags(data_root, cache):
    """train_flags(config, workdir, {key: value}) → the arguments of snr_jax.main."""

    def make(config: str, workdir: Path, overrides: dict | None = None) -> list[str]:
        tiny = {**TINY, "data.root": data_root, **(overrides or {})}
        return [
            "--config", config, "--workdir", str(workdir), "--compilation_cache", cache,
            *config_flags(tiny),
        ]  # fmt: skip

    return make


@pytest.fixture
def generalised(shared_runs, command, train_flags, tmp_path_factory) -> Run:
    """The run of 20 steps on the source, made once."""
    return once(shared_runs, "dg", command, train_flags, tmp_path_factory, GENERALISE, {})


@pytest.fixture
def adapted(shared_runs, command, train_flags, tmp_path_factory, generalised) -> Run:
    """The run of 20 steps on both domains from `generalised`, with random scales besides."""
    overrides = {"init_from": generalised.workdir, "data.scale_range": (0.75, 1.5)}
    return once(shared_runs, "uda", command, train_flags, tmp_path_factory, ADAPT, overrides)


@pytest.fixture(scope="session")
def made_runs() -> dict:
    return {}


@pytest.fixture
def shared_runs(made_runs) -> Iterator[dict]:
    """The runs made once, by name. Others read them, in any order: a test leaves them alone."""
    yield made_runs
    for name, run in made_runs.items():
        changed = {path for path, _ in files_in(run.workdir) ^ run.files}
        assert not changed, f"the test wrote into the shared run {name}: {sorted(changed)}"
