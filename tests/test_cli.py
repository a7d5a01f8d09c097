"""Command lines: what --config.KEY=VALUE sets, where a file may lie, the compilation cache."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from absl import flags

from snr_jax import cli
from snr_jax.config import keys, reading
from snr_jax.core.errors import UserError
from snr_jax.core.models.backbone import architecture
from snr_jax.core.models.deeplab import DeepLab
from snr_jax.core.state import initial_variables
from snr_jax.workdir import checkpoints
from tests.commands import FAST, PATTERN, ROOT, TINY, bound_by_permissions, config_flags

DG = str(ROOT / "configs/gta5_dg.py")
FLAGS = flags.FlagValues()
cli.define_config(FLAGS)
cli.define_compilation_cache(FLAGS)
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


def test_a_name_is_one_of_the_package(tmp_path, monkeypatch):
    """From any folder; a file counts before it where it is given as a path."""
    monkeypatch.chdir(tmp_path)
    default = run("--config", "gta5_dg")
    assert default == run("--config", DG) and default[1] == "gta5_dg"
    assert run("--config", "gta5_dg:release")[0].recipe == "release"
    assert run("--config", "toy_uda:minent")[0].loss.target == "entropy"
    for name in ("gta5_dg", "gta5_dg.py"):
        Path(name).write_text("from snr_jax.configs import toy_dg\nget_config = toy_dg.get_config")
    assert run("--config", "gta5_dg") == default
    for path in ("gta5_dg.py", "./gta5_dg"):
        assert run("--config", path)[0].model.width == 16


@pytest.mark.parametrize("name, near", [
    ("gta5_gd", "Did you mean gta5_dg"), ("configs/toy_dg.py", "Did you mean toy_dg"), ("zzz", ""),
])
def test_an_unknown_name(name, near, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.run(["command", "--config", name], FLAGS, "A test.", lambda args: None) == 2
    error = capsys.readouterr().err
    assert f"there is no file {name}. {near}" in error and error.count("\n") == 1
    assert "camvid_classmix, camvid_dg, " in error and ("Did you" in error) == bool(near)


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


# ---------------------------------------------------------------- the compilation cache


@pytest.fixture
def setting():
    """The folder that JAX is told, as it is after the test; put back afterwards."""
    before = jax.config.jax_compilation_cache_dir
    yield lambda: jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", before)


def test_the_folder_of_the_cache(setting, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", None)
    run(command=cli.use_compilation_cache)
    assert setting() == str(tmp_path / ".cache/snr_jax")
    run("--compilation_cache=~/mine", command=cli.use_compilation_cache)
    assert setting() == str(tmp_path / "mine")
    run(command=cli.use_compilation_cache)  # JAX knows one: it counts before the default
    assert setting() == str(tmp_path / "mine")
    run("--compilation_cache=", command=cli.use_compilation_cache)
    assert setting() is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("below", ["", "/a/b"])
@pytest.mark.parametrize("module", ["main", "evaluate", "predict"])
def test_a_cache_that_is_a_file(module, below, refused, setting, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "photo.png").touch()
    flags = {
        "main": ["--config", DG], "evaluate": ["--config", DG, "--checkpoint", tmp_path],
        "predict": ["--checkpoint", tmp_path, "--images", tmp_path, "--out", tmp_path / "out"],
    }[module]
    error = refused(module, *flags, f"--compilation_cache={tmp_path}/file{below}")
    assert error == (f"error: --compilation_cache {tmp_path}/file{below}: {tmp_path}/file is a "
                     "file; expected a folder, or nothing for none")


def test_a_file_that_jax_is_told_as_its_cache(refused, setting, tmp_path):
    (tmp_path / "file").touch()
    jax.config.update("jax_compilation_cache_dir", f"{tmp_path}/file/a")
    assert refused("main", "--config", DG) == (
        f"error: JAX_COMPILATION_CACHE_DIR {tmp_path}/file/a: {tmp_path}/file is a file; expected "
        "a folder, or nothing for none")


COMPILING = """
import os, sys
from absl import flags
from snr_jax import cli
def command(args):
    cli.use_compilation_cache(args)
    import jax
    print(jax.jit(lambda x: x + 1)(1.0))
FLAGS = flags.FlagValues()
cli.define_compilation_cache(FLAGS)
sys.exit(cli.run(None, FLAGS, "A test.", command))
"""


def _compiled(folder: Path, *before: str) -> str:
    """What a process says that compiles a program with this cache; before: of its command line."""
    process = subprocess.run(
        [*before, sys.executable, "-c", COMPILING, "--compilation_cache", str(folder)],
        cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, **{k.upper(): str(v) for k, v in FAST.items()},
             "PYTHONPATH": str(ROOT)},
    )
    assert process.returncode == 0 and process.stderr == "", process.stderr
    assert process.stdout.endswith("2.0\n")
    return process.stdout.removesuffix("2.0\n")


@pytest.mark.parametrize("damage", [lambda whole: whole[:90], lambda whole: b"", lambda whole: (
    whole[:300] + bytes([whole[300] ^ 1]) + whole[301:])])
def test_a_damaged_program_is_replaced(damage, tmp_path):
    assert _compiled(tmp_path) == ""
    wholes = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert wholes
    for path, whole in wholes.items():
        path.write_bytes(damage(whole))
    said = _compiled(tmp_path)
    assert said.count("WARNING: the compilation cache held a damaged program, jit_") > 0
    assert said.count("\n") == said.count(": removed, and made anew\n") <= len(wholes)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in wholes}
    assert _compiled(tmp_path) == ""


@pytest.mark.parametrize("holds", ["nothing", "damage", "no folder"])
def test_a_cache_that_cannot_be_written(holds, tmp_path):
    folder = tmp_path if holds != "no folder" else tmp_path / "a"
    if holds == "damage":
        _compiled(tmp_path)
        for path in tmp_path.iterdir():
            path.write_bytes(b"")
    tmp_path.chmod(0o555)
    said = _compiled(folder, *bound_by_permissions())
    assert said.startswith(f"WARNING: the compilation cache {folder} cannot be used (")
    assert said.count("\n") == 1


def test_importing_sets_no_cache():
    doors = [path.stem for path in (ROOT / "snr_jax").glob("*.py") if path.stem != "__init__"]
    program = "\n".join(f"import snr_jax.{door}" for door in doors)
    program += "\nimport jax\nassert jax.config.jax_compilation_cache_dir is None"
    without = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=without, check=True)


@pytest.mark.parametrize("module", ["evaluate", "predict"])
def test_a_second_process_takes_from_the_cache(module, data_root, tmp_path):
    model = DeepLab(stage_sizes=(1, 1, 1, 1), width=4)
    meta = {"model": architecture(model), "source": {}}
    checkpoints.save_variables(tmp_path / "network", initial_variables(model, 0), meta)
    flags = ["--checkpoint", str(tmp_path / "network"), "--out", str(tmp_path / "out"),
             "--compilation_cache", str(tmp_path / "cache")]
    flags += {
        "evaluate": ["--config", DG, "--protocol=network", "--flip=no",
                     *config_flags(TINY | {"data.root": data_root})],
        "predict": ["--images", str(data_root / "GTA5/images"), "--size=33,65"],
    }[module]

    def hits() -> int:
        """Programs that a process takes from the cache, by JAX's own log."""
        environment = {**os.environ, **{k.upper(): str(v) for k, v in FAST.items()},
                       "JAX_LOGGING_LEVEL": "DEBUG"}
        process = subprocess.run(
            [sys.executable, "-m", f"snr_jax.{module}", *flags], cwd=ROOT, text=True,
            capture_output=True, env=environment | {"PYTHONPATH": str(ROOT)},
        )
        assert process.returncode == 0, process.stderr
        return process.stderr.count("cache hit for")

    def kept() -> set[str]:
        return {path.name for path in (tmp_path / "cache").glob("*-cache")}

    assert hits() == 0
    programs = kept()
    assert hits() >= len(programs) > 0
    assert kept() == programs


# ---------------------------------------------------------------- paths


def test_a_tilde_after_an_equals_sign_is_the_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    paths = flags.FlagValues()
    cli.define_config(paths)
    cli.define_path("out", None, "A folder.", paths)
    found = []

    def chosen(args, word) -> None:
        config = args["config"].value.config
        found.append([args.out, word, config.data.root, config.init_from, config.source.domain])

    words = ["--out=~/out", "--config", DG, "--config.data.root=~/sets", "--config.init_from=~/a",
             "--config.source.domain=~/mine.yaml", "~/word"]
    assert cli.run(["command", *words], paths, "A test.", chosen, ("IN",)) == 0
    assert found == [[f"{tmp_path}/{name}" for name in ("out", "word", "sets", "a", "mine.yaml")]]


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("main", ["--config", DG, "--workdir=gs://b/x"]),
        ("main", ["--config", DG, "--config.data.root=s3://b"]),
        ("main", ["--config", DG, "--config.init_from=https://a.org/x"]),
        ("evaluate", ["--config", DG, "--checkpoint=gs://b/x"]),
        ("predict", ["--checkpoint=x", "--images=gs://b", "--out=y"]),
        ("compare", ["gs://b/x"]),
    ],
)
def test_addresses_are_refused(module, words, refused, tmp_path, monkeypatch):
    assert "is the address of a bucket or a server" in refused(module, *words)


def test_a_run_in_a_folder_that_is_a_pattern(refused, train_flags, tmp_path):
    error = refused("main", *train_flags(DG, tmp_path / "exp[1]"))
    assert f"{tmp_path}/exp[1] holds [, for which nothing" in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("module", ["evaluate", "predict", "doctor"])
def test_results_in_a_folder_that_is_a_pattern(module, command, data_root, tmp_path):
    model = DeepLab(stage_sizes=(1, 1, 1, 1), width=4)
    meta = {"model": architecture(model), "source": {}}
    checkpoints.save_variables(tmp_path / "network", initial_variables(model, 0), meta)
    network, out = ["--checkpoint", tmp_path / "network"], tmp_path / PATTERN
    words, files = {
        "evaluate": ([*network, "--out", out, "--config", DG, "--protocol=network", "--flip=no",
                      *config_flags(TINY | {"data.root": data_root})],
                     {"evaluation.json", "predictions.png", "reliability.png"}),
        "predict": ([*network, "--out", out, "--images", data_root / "GTA5/images/00001.png",
                     "--size=33,65"],
                    {f"00001_{kind}.png" for kind in ("color", "overlay", "trainIds", "labelIds")}),
        "doctor": (["--domain=gta5", "--dir", data_root / "GTA5", "--stats", out / "stats.json",
                    "--html", out / "found.html"], {"stats.json", "found.html"}),
    }[module]
    result = command(module, *words)
    assert result.code == 0, result
    assert {path.name for path in out.iterdir()} == files
    assert {path.name for path in tmp_path.iterdir()} == {"network", PATTERN}


@pytest.mark.parametrize("module", ["doctor", "predict"])
def test_a_folder_that_may_be_listed_and_not_entered(module, data_root, tmp_path):
    shutil.copytree(data_root / "GTA5", tmp_path / "GTA5")
    closed = tmp_path / "GTA5/images"
    words = {"doctor": ["--domain=gta5", "--dir", tmp_path / "GTA5"],
             "predict": ["--images", tmp_path / "GTA5", "--checkpoint=x", "--out=y"]}[module]
    closed.chmod(0o444)
    process = subprocess.run(
        [*bound_by_permissions(), sys.executable, "-m", f"snr_jax.{module}", *map(str, words)],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.returncode == 2 and process.stderr == (
        f"error: {closed}/00001.png: Permission denied. Choose another folder, or open the folder "
        f"{closed} (chmod +rx {closed}) and start the same command again\n")


def test_another_package_configs(tmp_path):
    """In the current folder, which Python puts before all others, it does no harm."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/__init__.py").touch()
    (tmp_path / "mine.py").write_text("from configs import gta5_dg\nget_config = None\n")
    for file, words in {DG: "is the address", "gta5_dg": "is the address",
                        "mine.py": "imported by from snr_jax.configs import default"}.items():
        process = subprocess.run(
            [sys.executable, "-m", "snr_jax.main", "--config", file, "--config.data.root=gs://x"],
            cwd=tmp_path, capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert process.returncode == 2 and words in process.stderr
        assert process.stderr.startswith("error: ") and process.stderr.count("\n") == 1


def test_a_record_is_no_experiment(tmp_path):
    (tmp_path / "run.json").write_text('{"config": {"sync_batch_norm": false}}')
    with pytest.raises(UserError, match=r"run\.json is a record .* the run began with"):
        reading.read(str(tmp_path / "run.json"), {})


# ---------------------------------------------------------------- output that nobody reads


LISTENING = """
import sys, time
from snr_jax import cli
from absl import flags
FLAGS = flags.FlagValues()
def command(args):
    for number in range(3000):
        print("line", number, "." * 90, flush=number % 2)
        print("line", number, "." * 90, file=sys.stderr)
    open(sys.argv[1], "w").write("done")
    return 3
sys.exit(cli.run(["command"], FLAGS, "A test.", command))
"""


def test_a_command_goes_on_where_nobody_reads_it(tmp_path):
    for pipe in ("2>err | head -1", "2>&1 | head -1", "2>&1 >/dev/null | head -1", ">&- 2>err"):
        (tmp_path / "err").write_text("")
        (tmp_path / "end").unlink(missing_ok=True)
        program = f'"{sys.executable}" -c "$CODE" end {pipe}; echo "${{PIPESTATUS[0]}}" >code'
        process = subprocess.run(
            ["bash", "-c", program], cwd=tmp_path, capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "CODE": LISTENING}, timeout=120,
        )
        assert process.stdout.count("\n") == ("head" in pipe) and process.stderr == ""
        assert "Error" not in (tmp_path / "err").read_text()
        assert (tmp_path / "end").read_text() == "done", pipe
        assert (tmp_path / "code").read_text() == "3\n", pipe


def test_help_into_a_pipe_that_closes():
    process = subprocess.run(
        f"{sys.executable} -m snr_jax.main --help | head -1", shell=True, cwd=ROOT,
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout.count("\n") == 1 and process.stderr == ""


def test_a_full_disk_names_what_it_is_of():
    process = subprocess.run(
        f"{sys.executable} -m snr_jax.main --help >/dev/full", shell=True, cwd=ROOT,
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stderr.startswith("error: <stdout>: No space left on device")
    assert process.returncode == 2 and process.stderr.count("\n") == 1


def test_letters_that_a_terminal_lacks_are_shown_by_their_codes():
    code = ("import sys\nfrom absl import flags\nfrom snr_jax import cli\n"
            "cli.run(['x'], flags.FlagValues(), 'x', lambda args: print('f\\xfcr'))")
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                             env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert (process.stdout, process.stderr) == ("f\\xfcr\n", "")


# ---------------------------------------------------------------- libraries


ABANDONING = """
import asyncio
from absl import flags
from snr_jax import cli
from snr_jax.core.errors import UserError
async def fail():
    raise ValueError("a second read failed as well")
async def restore():
    asyncio.ensure_future(fail())
    await asyncio.sleep(0)
def command(args):
    asyncio.run(restore())
    raise UserError("cannot be read")
cli.run(["command"], flags.FlagValues(), "A test.", command)
"""


def test_what_a_library_abandons_is_not_told():
    """Orbax leaves the reads that fail after the first, and asyncio says so, sooner or later."""
    process = subprocess.run([sys.executable, "-c", ABANDONING], cwd=ROOT, capture_output=True,
                             text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert process.stderr == "error: cannot be read\n"
