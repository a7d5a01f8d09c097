"""Command lines: parse the flags, run the command, report a user's mistake in one line."""

import contextlib
import copy
import errno
import glob
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from absl import flags
from absl import logging as absl_logging

from snr_jax.core.errors import Stopped, UserError
from snr_jax.core.files import closed_folder, user_path
from snr_jax.core.progress import log_on_terminal

if TYPE_CHECKING:  # a bench runs where ml_collections is not
    from ml_collections import ConfigDict

logger = logging.getLogger("snr_jax.cli")

# What the system says of a disk or a path that the user chose, not of a fault in the program.
_OF_THE_SYSTEM = (
    errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR,
    errno.EISDIR, errno.EEXIST, errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP,
)

# What an installation may be without: what for, what brings it, the packages.
_EXTRAS = (
    ("reading data sets and training", "pip install 'snr_jax[train]'",
     ("tensorflow", "tensorflow_datasets", "clu", "tensorboard", "sklearn", "threadpoolctl")),
    ("reading and writing PyTorch files", "pip install torch", ("torch",)),
)


class Experiment(NamedTuple):
    """The value of --config. name: of the file, without folder and .py."""

    name: str
    config: "ConfigDict"


class _Path(flags.ArgumentParser):
    """A path as `user_path` has it, or a word that stands in the place of one."""

    syntactic_help = "a path"

    def parse(self, argument: str) -> str:
        try:
            return user_path(argument)
        except UserError as error:
            raise ValueError(error) from None


def define_path(
    name: str, default: str | None, help: str, flag_values: flags.FlagValues
) -> None:
    """A flag that takes the path of a file or folder."""
    flags.DEFINE(_Path(), name, default, help, flag_values, flags.ArgumentSerializer())


def define_config(flag_values: flags.FlagValues) -> None:
    """The flag --config FILE.py[:RECIPE], with --config.KEY=VALUE for every key of it."""
    define_path(
        "config", None, "The experiment's file, as configs/gta5_dg.py or "
        "configs/gta5_dg.py:release, or one of the package by its name from any folder, as "
        "gta5_dg. --config.KEY=VALUE sets one of its keys.",
        flag_values=flag_values,
    )
    flags.DEFINE_bool(
        "help_config", False, "List every key, with its value and meaning, and end.",
        flag_values=flag_values,
    )


def define_compilation_cache(flag_values: flags.FlagValues) -> None:
    """The flag --compilation_cache DIR, of a command that calls `use_compilation_cache`."""
    flags.DEFINE_string(
        "compilation_cache", "~/.cache/snr_jax",
        "Folder that keeps compiled programs for the next start; empty: none.",
        flag_values=flag_values,
    )


def use_compilation_cache(args: flags.FlagValues) -> None:
    """Has JAX keep its programs in --compilation_cache and take them from there.

    Where JAX has been told a folder, by JAX_COMPILATION_CACHE_DIR, it counts before the default.
    """
    import jax  # not above: the demo listens to signals before seconds of imports

    flag = args["compilation_cache"]
    told = None if flag.present else jax.config.jax_compilation_cache_dir
    name, value = ("JAX_COMPILATION_CACHE_DIR", told) if told else (f"--{flag.name}", flag.value)
    folder = Path(told or user_path(value)).absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"{name} {value}: {there} is a file; expected a folder, or nothing for "
                        "none")
    if not told:
        jax.config.update("jax_compilation_cache_dir", str(folder) if value else None)


@contextlib.contextmanager
def _cache_mended() -> Iterator[None]:
    """Within the block what JAX warns of its cache is one line, and a damaged program is removed.

    JAX compiles it anew, but writes over no file, and would warn at every start.
    """
    known = re.compile(r"Error (read|writ)ing persistent compilation cache entry for '(.*?)': (.*)")
    with warnings.catch_warnings():
        warnings.filterwarnings("always", known.pattern)
        show, unusable = warnings.showwarning, False

        def mend(message: Warning | str, *rest: Any, **more: Any) -> None:
            nonlocal unusable
            found = known.match(str(message))
            if found is None:
                show(message, *rest, **more)
            elif found[1] == "read" and _remove_programs(found[2]):
                logger.warning("the compilation cache held a damaged program, %s (%s): removed, "
                               "and made anew", *found.groups()[1:])
            elif not unusable:
                unusable = True
                logger.warning("the compilation cache %s cannot be used (%s); programs are made "
                               "anew at every start. --compilation_cache chooses another folder",
                               _cache_folder(), found[3])

        warnings.showwarning = mend
        yield


def _cache_folder() -> Path:
    import jax

    return Path(jax.config.jax_compilation_cache_dir)


def _remove_programs(name: str) -> bool:
    """Removes a program's files, of every form that it has had; whether there was one."""
    files = list(_cache_folder().glob(f"{glob.escape(name)}-*cache"))  # NAME-HASH-cache
    try:
        for file in files:
            file.unlink(missing_ok=True)  # another process may have met it as well
    except OSError:
        return False
    return bool(files)


def run(
    argv: Sequence[str] | None,
    flag_values: flags.FlagValues,
    description: str,
    command: Callable[..., int | None],
    arguments: Sequence[str] = (),
) -> int:
    """Parses `argv` (the process's own if None) and runs the command; the exit code.

    command: takes the flags, and each of the named `arguments` that stand without a flag; a last
    name as "RUN..." stands for one or more, as "[RUN...]" for any number.
    A user's mistake is one line on stderr and code 2.
    """
    argv = list(sys.argv if argv is None else argv)

    def parsed() -> int | None:
        if {"--help", "-h", "-help", "--helpfull"} & set(argv[1:]):
            print(f"{description.strip()}\n\nflags:\n{_listed(flag_values)}")
            return 0
        args = copy.deepcopy(flag_values)  # so that no command line sees what an earlier one set
        words = _parse(argv, args, arguments)
        if "config" in args and args.help_config:
            return _print_keys(args["config"].value)
        return command(args, *words)

    return run_command(parsed)


def _listed(flag_values: flags.FlagValues) -> str:
    """The flags in the order of their definition, with help and default."""
    lines = []
    for flag in (flag_values[name] for name in flag_values):
        text = f"--{'[no]' * flag.boolean}{flag.name}: {flag.help}"
        if flag.default is not False and flag.default not in (None, "", []):
            text += f" (default: {flag.default_as_str.strip(chr(39))})"
        lines.append(flags.text_wrap(text, 88, indent="      ", firstline_indent="  "))
    return "\n".join(lines)


def _print_keys(experiment: Experiment | None) -> None:
    from snr_jax.config import listing

    print(listing.for_terminal(experiment and experiment.config))


def run_command(command: Callable[[], int | None]) -> int:
    """The exit code of a command: its own, 2 after a user's mistake, 128 + N after signal N.

    It goes on, silently, where nobody reads what it says any more, as after `| head`.
    """
    with _unread("stdout"), _unread("stderr"):
        return _answered(command)


def _answered(command: Callable[[], int | None]) -> int:
    try:
        _quiet_libraries()
        with log_on_terminal(), _cache_mended():
            return command() or 0
    except UserError as error:
        return _refuse(str(error))
    except ModuleNotFoundError as error:
        absent = (error.name or "").partition(".")[0]
        for what, remedy, packages in _EXTRAS:
            if absent in packages:
                return _refuse(f"{what} needs {absent}: {remedy}")
        raise
    except OSError as error:
        if error.errno not in _OF_THE_SYSTEM:
            raise
        where = f"{error.filename}: " if error.filename else ""
        closed = closed_folder(error.filename) if isinstance(error.filename, str) else None
        mend = f"open the folder {closed} (chmod +rx {closed})" if closed else "mend this"
        remedy = f"Choose another folder, or {mend} and start the same command again"
        return _refuse(f"{where}{error.strerror}. {remedy}")
    except Stopped as stopped:
        print(stopped, file=sys.stderr, flush=True)
        return stopped.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        return 130


@contextlib.contextmanager
def _unread(name: str) -> Iterator[None]:
    """Within the block the stream sys.NAME loses what it cannot hand on any more."""
    stream = getattr(sys, name)
    if stream is None:  # closed by the shell: print says nothing then
        yield
        return
    if hasattr(stream, "reconfigure"):  # a terminal without a path's letters shows their codes
        stream.reconfigure(errors="backslashreplace")
    setattr(sys, name, guarded := _Guarded(stream))
    try:
        yield
    finally:
        guarded.flush()
        setattr(sys, name, stream)


class _Guarded:
    """A stream that goes to nowhere once its reader has left: a pipe, or a terminal."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._lost():
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._lost():
            self._stream.flush()

    @contextlib.contextmanager
    def _lost(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                error.filename = error.filename or self._stream.name
                raise
            # What is in its buffer has somewhere to go, at the end of the process too.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


def _refuse(message: str) -> int:
    print(f"error: {message}", file=sys.stderr, flush=True)
    return 2


def _quiet_libraries() -> None:
    """Orbax and TensorStore raise their errors, and print the tracebacks besides."""
    absl_logging.set_verbosity(absl_logging.FATAL)
    # It tells of reads that failed after the one which was raised, at a time that varies.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    default = sys.unraisablehook

    def hook(unraisable: "sys.UnraisableHookArgs") -> None:
        # Writes that end after one of them has failed find their event loop gone.
        if str(unraisable.exc_value) != "Event loop is closed":
            default(unraisable)

    sys.unraisablehook = hook


def _parse(
    argv: Sequence[str], args: flags.FlagValues, arguments: Sequence[str]
) -> list[str]:
    """Sets the flags; what stands without one, a value for each name of `arguments`."""
    argv, texts = _without_keys(argv) if "config" in args else (argv, {})
    try:
        words = args(argv)[1:]
    except (flags.Error, ValueError) as error:
        raise UserError(str(error)) from None
    if "config" in args and args.config:
        from snr_jax.config import reading  # imports JAX, which the demo's signals come before

        name = Path(args.config.partition(":")[0]).stem
        args["config"].value = Experiment(name, reading.read(args.config, texts))
    elif texts:
        raise UserError(f"--config.{next(iter(texts))} is a key of no configuration; name its "
                        "file, as --config configs/gta5_dg.py")
    if not arguments and words:
        raise UserError(f"unexpected argument {words[0]!r}; flags begin with --, see --help")
    more = bool(arguments) and arguments[-1].endswith(("...", "...]"))
    least = sum(not name.startswith("[") for name in arguments)
    if len(words) < least or (len(words) > len(arguments) and not more):
        raise UserError(f"expected {' '.join(arguments)}, got {' '.join(words) or 'nothing'}; "
                        "see --help")
    return [user_path(word) for word in words]


def _without_keys(argv: Sequence[str]) -> tuple[list[str], dict[str, str | None]]:
    """The command line without --config.KEY=VALUE and --config.KEY VALUE, and KEY → VALUE.

    VALUE is None for a key that stands alone, and "false" for --noconfig.KEY. The last counts.
    """
    rest: list[str] = []
    texts: dict[str, str | None] = {}
    key = None
    for word in argv:
        if found := re.fullmatch(r"--?(no)?config\.([^=]*)(?:=(.*))?", word, re.DOTALL):
            key = found[2]
            texts[key] = "false" if found[1] else found[3]
        elif key and texts[key] is None and not re.match(r"-[^\d.]", word):
            texts[key] = word
        else:
            rest.append(word)
            key = None
    return rest, texts


def require(args: flags.FlagValues, name: str, example: str) -> Any:
    """The value of a flag that must be given; of --config the configuration."""
    value = args[name].value
    if not value:
        raise UserError(f"--{name} is missing; for instance {example}")
    return value.config if name == "config" else value


def config_name(args: flags.FlagValues) -> str:
    """The name of the configuration file, without folder and .py."""
    return args["config"].value.name
