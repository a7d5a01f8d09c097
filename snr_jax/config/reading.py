"""A configuration from an experiment's file and the keys that a command line sets."""

import ast
import difflib
import logging
import os
import runpy
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from snr_jax.config import keys
from snr_jax.core.errors import UserError
from snr_jax.core.files import user_path
from snr_jax.data import domains

logger = logging.getLogger(__name__)

CONFIGS = Path(__file__).parents[1] / "configs"


def read(file: str, texts: Mapping[str, str | None]) -> ConfigDict:
    """The configuration of FILE.py[:ARGUMENT], with keys set. texts: key → its value as typed.

    A bare NAME[:ARGUMENT] is one of the package. The value is None for a key that stands alone,
    which switches it on. Raises UserError for a file that is no experiment, an unknown key, and a
    text that is no value of the key's type.
    """
    path, colon, argument = file.partition(":")
    config = _from_file(path, [argument] if colon else [])
    with config.unlocked(), config.ignore_type():
        for key, text in texts.items():
            if key == "recipe":  # sets switches when the file makes the configuration
                raise UserError(f"--config.recipe={text} changes no switch; choose the recipe as "
                                f"--config {path}:{text}")
            config.update_from_flattened_dict({key: _value(key, text)})
        config.update_from_flattened_dict(_paths(config))
    _tell_unused_folders(config, texts)
    return config.lock()


def _tell_unused_folders(config: ConfigDict, texts: Mapping[str, str | None]) -> None:
    """Warns of a folder that is set for an own set and does not count (`create_domains`)."""
    found = keys.values(config)
    for key in sorted({"source.dir", "target.dir"} & texts.keys()):
        spec, folder = str(found.get(key.replace("dir", "domain"))), found[key]
        if folder and domains.is_own(spec) and domains.is_usual(folder):
            whole = os.path.abspath(os.path.join(str(found.get("data.root", "")), folder))
            logger.warning(
                "--config.%s=%s does not count: it is the usual folder of another set, and the "
                "files of %s are read from %s. As a whole path it counts: --config.%s=%s",
                key, folder, spec, os.path.dirname(os.path.abspath(spec)), key, whole)


def _paths(config: ConfigDict) -> dict[str, str]:
    """The keys that hold paths, each as the path that is meant."""
    found = keys.values(config)
    meant = {}
    for key in keys.PATHS:
        if isinstance(found.get(key), str):
            try:
                meant[key] = user_path(found[key])
            except UserError as error:
                raise UserError(f"{key}: {error}") from None
    return meant


def _from_file(path: str, arguments: Sequence[str]) -> ConfigDict:
    """What the file's get_config returns for the arguments."""
    file = _located(path)
    try:
        config = runpy.run_path(file).get("get_config", lambda *_: None)(*arguments)
    except UserError:
        raise
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "configs":
            raise _unreadable(error) from None
        raise UserError(f"--config {path}: {error}; the project's configurations are imported by "
                        "from snr_jax.configs import default") from None
    except ValueError as error:  # a word after the colon that the experiment does not know
        raise UserError(f"--config {':'.join([path, *arguments])}: {error}") from None
    except Exception as error:  # whatever the code of a configuration raises
        raise _unreadable(error) from None
    if not isinstance(config, ConfigDict):
        raise UserError(f"--config: {path} has no function get_config that returns a ConfigDict; "
                        "configs/gta5_dg.py is an example")
    return config


def _located(path: str) -> str:
    """The file of a path, or of a bare name the package's configuration of that name."""
    names = sorted(file.stem for file in CONFIGS.glob("*.py") if file.stem != "__init__")
    if path in names:
        return str(CONFIGS / f"{path}.py")
    if path.endswith(".json") and os.path.isfile(path):  # as run.json
        raise UserError(f"--config: {path} is a record and no experiment; give the file, or the "
                        "name, that the run began with, as gta5_dg, and its keys")
    if os.path.isfile(path):
        return path
    near = difflib.get_close_matches(Path(path).stem, names, n=3)
    guess = f"Did you mean {' or '.join(near)}? " if near else ""
    raise UserError(f"--config: there is no file {path}. {guess}By name, from any folder, there "
                    f"are {', '.join(names)}")


def _unreadable(error: Exception) -> UserError:
    reason = f"{type(error).__name__}: {error}"
    if not isinstance(error, SyntaxError):  # which names its place itself
        place = traceback.extract_tb(error.__traceback__)[-1]
        reason += f" ({place.filename}, line {place.lineno})"
    return UserError(f"--config cannot be read: {reason}")


def _tuple(text: str) -> tuple:
    value = ast.literal_eval(text)
    return tuple(value) if isinstance(value, tuple | list) else (value,)


PARSERS: dict[type, Callable[[str], Any]] = {  # of a command line's numbers and switches
    bool: flags.BooleanParser().parse, int: flags.IntegerParser().parse,
    float: flags.FloatParser().parse, str: str, tuple: _tuple,
}  # fmt: skip


def _value(key: str, text: str | None) -> Any:
    """The text as a value of the key's type; whether it is legal is asked when all keys are set."""
    if key not in keys.KEYS:
        near = difflib.get_close_matches(key, keys.KEYS, n=1)
        guess = f"Did you mean {near[0]!r}? " if near else ""
        raise UserError(f"the configuration has no key {key!r}. {guess}"
                        "docs/configuration.md lists every key")
    default, legal, _ = keys.KEYS[key]
    if text is None and not isinstance(default, bool):
        raise UserError(f"--config.{key} has no value; expected {legal.words}")
    try:
        return PARSERS[type(default)]("true" if text is None else text)
    except (ValueError, SyntaxError):
        raise UserError(keys.refusal(key, text)) from None
