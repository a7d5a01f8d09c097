"""Command lines: parse the flags, run the command, report a user's mistake in one line."""

import contextlib
import errno
import io
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from snr_jax.core.errors import Stopped, UserError

# What the system says of a disk or a path that the user chose, not of a fault in the program.
_OF_THE_SYSTEM = (
    errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR,
    errno.EISDIR, errno.EEXIST, errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP,
)

_ARGV: list[str] = []  # the command line that is being parsed: config_flags looks its keys up here


def define_config(flag_values: flags.FlagValues) -> None:
    """The flag --config FILE.py[:RECIPE] with --config.KEY=VALUE for every key of it."""
    config_flags.DEFINE_config_file(
        "config", None, "Experiment file, as configs/gta5_dg.py or configs/gta5_dg.py:release",
        flag_values=flag_values, lock_config=True, sys_argv=_ARGV,
    )


def run(
    argv: Sequence[str] | None,
    flag_values: flags.FlagValues,
    description: str,
    command: Callable[..., int | None],
    arguments: Sequence[str] = (),
) -> int:
    """Parses `argv` (the process's own if None) and runs the command; the exit code.

    command: takes the flags, and each of the named `arguments` that stand without a flag; a last
    name that ends in "..." stands for one or more.
    A user's mistake is one line on stderr and code 2.
    """
    argv = list(sys.argv if argv is None else argv)

    def parsed() -> int | None:
        if {"--help", "-h", "-help", "--helpfull"} & set(argv[1:]):
            print(f"{description.strip()}\n\nflags:\n{flag_values.get_help()}")
            return 0
        return command(flag_values, *_parse(argv, flag_values, arguments))

    return run_command(parsed)


def run_command(command: Callable[[], int | None]) -> int:
    """The exit code of a command: its own, 2 after a user's mistake, 128 + N after signal N."""
    try:
        _quiet_libraries()
        return command() or 0
    except UserError as error:
        return _refuse(str(error))
    except OSError as error:
        if error.errno not in _OF_THE_SYSTEM:
            raise
        where = f"{error.filename}: " if error.filename else ""
        remedy = "Choose another folder, or mend this and start the same command again"
        return _refuse(f"{where}{error.strerror}. {remedy}")
    except Stopped as stopped:
        print(stopped, file=sys.stderr, flush=True)
        return stopped.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        return 130


def _refuse(message: str) -> int:
    print(f"error: {message}", file=sys.stderr, flush=True)
    return 2


def _quiet_libraries() -> None:
    """Orbax and TensorStore raise their errors, and print the tracebacks besides."""
    logging.set_verbosity(logging.FATAL)
    default = sys.unraisablehook

    def hook(unraisable: "sys.UnraisableHookArgs") -> None:
        # Writes that end after one of them has failed find their event loop gone.
        if str(unraisable.exc_value) != "Event loop is closed":
            default(unraisable)

    sys.unraisablehook = hook


def _parse(
    argv: list[str], flag_values: flags.FlagValues, arguments: Sequence[str]
) -> list[str]:
    """Sets the flags; what stands without one, a value for each name of `arguments`."""
    _reset(flag_values)
    argv = _last_of_each_key(argv)
    _ARGV[:] = argv
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # its tracebacks
            rest = flag_values(argv)
    except (AttributeError, KeyError) as error:
        if getattr(error, "name", None) == "get_config":
            raise UserError("--config: the file has no function get_config; configs/gta5_dg.py is "
                            "an example") from None
        if "does not support indexing" in str(error):
            raise UserError("--config: the file's get_config returns no ConfigDict") from None
        text = str(error).replace("\\n", " ").replace("\\", "")
        missing = re.findall(r"\w+", text)[0]
        guess = re.search(r'Did you mean "(\w+)"', text)
        hint = f"Did you mean {guess[1]!r}? " if guess else ""
        raise UserError(
            f"the configuration has no key {missing!r}. {hint}configs/default.py lists every key"
        ) from None
    except OSError as error:
        raise UserError(f"--config cannot be read: {str(error).splitlines()[-1].strip()}") from None
    except (flags.Error, TypeError, ValueError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        head = lines[0].removesuffix(": Error whilst parsing config file:")
        raise UserError(f"{head}: {lines[-1].strip()}" if len(lines) > 1 else head) from None
    except Exception as error:  # whatever the code of a configuration raises
        reason = f"{type(error).__name__}: {error}"
        if not isinstance(error, SyntaxError):  # which names its place itself
            place = traceback.extract_tb(error.__traceback__)[-1]
            reason += f" ({place.filename}, line {place.lineno})"
        raise UserError(f"--config cannot be read: {reason}") from None
    if not arguments and len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}; flags begin with --, see --help")
    more = bool(arguments) and arguments[-1].endswith("...")
    if len(rest) - 1 < len(arguments) or (len(rest) - 1 > len(arguments) and not more):
        raise UserError(f"expected {' '.join(arguments)}, got {' '.join(rest[1:]) or 'nothing'}; "
                        "see --help")
    return rest[1:]


def _last_of_each_key(argv: Sequence[str]) -> list[str]:
    """Of a configuration key that is set twice the last counts; two tuples would be joined."""
    joined: list[str] = []
    for argument in argv:  # --config.KEY VALUE becomes one argument
        bare = joined and re.fullmatch(r"--?config\.[\w.]+", joined[-1])
        if bare and re.match(r"[^-]|-[\d.]", argument):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    names = [argument.partition("=")[0].lstrip("-") for argument in joined]
    last = {name: i for i, name in enumerate(names)}
    return [
        argument for i, (name, argument) in enumerate(zip(names, joined, strict=True))
        if last[name] == i or not name.startswith("config.")
    ]


def _reset(flag_values: flags.FlagValues) -> None:
    """Forgets what an earlier command line of this process set."""
    sys.modules.pop("config_config", None)  # a file is read into the module of the last one
    for name in list(flag_values):
        if "." in name:  # an override of an earlier configuration
            delattr(flag_values, name)
        else:
            flag_values[name].unparse()


def require(flag_values: flags.FlagValues, name: str, example: str) -> Any:
    """The value of a flag that must be given."""
    value = flag_values[name].value
    given = any(re.match(rf"--?{name}(=|$)", argument) for argument in _ARGV)
    if not value and not (name == "config" and given):  # its function may have returned None
        raise UserError(f"--{name} is missing; for instance {example}")
    if name == "config" and not isinstance(value, ConfigDict):
        path = config_flags.get_config_filename(flag_values[name]).partition(":")[0]
        if not os.path.exists(path):
            raise UserError(f"--config: there is no file {path}; for instance {example}")
        try:
            hasattr(value, "keys")  # an error of reading the file waits for the first look
            reason = f"its get_config returns {type(value).__name__}, expected ConfigDict"
        except OSError as error:
            reason = str(error).splitlines()[-1].strip()
        raise UserError(f"--config: {path} gives no configuration: {reason}")
    if name == "config":
        _refuse_recipe(flag_values[name])
    return value


def _refuse_recipe(flag: flags.Flag) -> None:
    """The recipe sets switches when the configuration is made; as a key it would set none."""
    recipe = config_flags.get_override_values(flag).get("recipe")
    if recipe is not None:
        path = config_flags.get_config_filename(flag).partition(":")[0]
        raise UserError(
            f"--config.recipe={recipe} changes no switch; choose the recipe as --config "
            f"{path}:{recipe}"
        )


def config_name(flag_values: flags.FlagValues) -> str:
    """The name of the configuration file, without folder and .py."""
    return Path(config_flags.get_config_filename(flag_values["config"])).stem
