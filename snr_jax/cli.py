"""Flags of the command lines, and mistakes in them told in one line."""

import contextlib
import io
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from snr_jax.core.errors import UserError, run_command

flags.disclaim_key_flags()  # --config is listed by --help of the command that defines it


def define_config(**options):
    """The flag --config FILE.py[:RECIPE] with --config.KEY=VALUE for every key of it."""
    return config_flags.DEFINE_config_file(
        "config", None, "Experiment file, as configs/gta5_dg.py or configs/gta5_dg.py:release",
        lock_config=True, **options,
    )


def run(argv: Sequence[str], description: str, command: Callable[[], int | None]) -> None:
    """Parses the flags, runs the command, exits. A user's mistake is one line and code 2."""

    def parsed() -> int | None:
        _quiet_libraries()
        if {"--help", "-h", "-help", "--helpfull"} & set(argv[1:]):
            print(f"{description.strip()}\n\nflags:\n{flags.FLAGS.main_module_help()}")
            return 0
        _parse(argv)
        return command()

    run_command(parsed)


def _quiet_libraries() -> None:
    """Orbax and TensorStore raise their errors, and print the tracebacks besides."""
    logging.set_verbosity(logging.FATAL)
    default = sys.unraisablehook

    def hook(unraisable) -> None:
        # Writes that end after one of them has failed find their event loop gone.
        if str(unraisable.exc_value) != "Event loop is closed":
            default(unraisable)

    sys.unraisablehook = hook


def _parse(argv: Sequence[str]) -> None:
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # its tracebacks
            rest = flags.FLAGS(list(argv))
    except (AttributeError, KeyError) as error:
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
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}; flags begin with --, see --help")


def require(flag, name: str, example: str):
    """The value of a flag that must be given."""
    if not flag.value:
        raise UserError(f"--{name} is missing; for instance {example}")
    if name == "config" and not isinstance(flag.value, ConfigDict):
        path = config_flags.get_config_filename(flags.FLAGS[name])
        raise UserError(f"--config: there is no file {path}; for instance {example}")
    return flag.value


def config_name() -> str:
    """The name of the configuration file, without folder and .py."""
    return Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem


def to_dict(config: ConfigDict) -> dict:
    """Plain nested dict, lists for tuples: what JSON gives back."""
    return json.loads(config.to_json())
