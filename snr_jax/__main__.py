"""The console command: `snr-jax train ...` is `python -m snr_jax.main ...`, and so on."""

import ast
import difflib
import runpy
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from importlib.util import find_spec

from snr_jax import cli
from snr_jax.core.errors import UserError

COMMANDS = {  # name → the module of snr_jax
    "train": "main",
    "evaluate": "evaluate",
    "predict": "predict",
    "doctor": "doctor",
    "compare": "compare",
    "toys": "toys",
    "prepare": "prepare",
    "convert": "convert",
    "export": "export",
    "serve": "serve",
}


def there() -> dict[str, ModuleSpec]:
    """Every command that this installation has, with its module, which is not imported."""
    found = {name: find_spec(f"snr_jax.{module}") for name, module in COMMANDS.items()}
    return {name: spec for name, spec in found.items() if spec}


def listing() -> str:
    """Every command with the first sentence of its module."""
    lines = ["usage: snr-jax COMMAND ...; snr-jax COMMAND --help lists its flags", ""]
    for name, spec in there().items():
        text = ast.get_docstring(ast.parse(spec.loader.get_source(spec.name)))
        lines.append(f"  {name:<10}{text.splitlines()[0]}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command in the place of this process's program; without one, lists them."""
    name, *rest = (sys.argv if argv is None else argv)[1:] or ["--help"]
    if name in (commands := there()):
        sys.argv = [f"snr-jax {name}", *rest]
        # As python -m does it: what a door does before its slow imports, and at its end, counts.
        runpy.run_module(commands[name].name, run_name="__main__", alter_sys=True)
        return 0

    def answer() -> None:
        if name not in ("--help", "-h"):
            near = difflib.get_close_matches(name, commands, n=1)
            guess = f"did you mean {near[0]}? " if near else ""
            raise UserError(f"there is no command {name!r}; {guess}snr-jax --help lists them")
        print(listing())

    return cli.run_command(answer)


if __name__ == "__main__":
    sys.exit(main())
