"""The console command: `snr-jax train ...` is `python -m snr_jax.main ...`, and so on."""

import ast
import difflib
import importlib.util
import runpy
import sys
from collections.abc import Sequence

from snr_jax import cli
from snr_jax.core.errors import UserError

COMMANDS = {  # name → the module of snr_jax
    "train": "main",
    "evaluate": "evaluate",
    "predict": "predict",
    "doctor": "doctor",
    "compare": "compare",
    "prepare": "prepare",
    "convert": "convert",
    "export": "export",
    "serve": "serve",
}


def listing() -> str:
    """Every command that is there, with the first sentence of its module, which is not imported."""
    lines = ["usage: snr-jax COMMAND ...; snr-jax COMMAND --help lists its flags", ""]
    for name, module in COMMANDS.items():
        if spec := importlib.util.find_spec(f"snr_jax.{module}"):
            text = ast.get_docstring(ast.parse(spec.loader.get_source(spec.name)))
            lines.append(f"  {name:<10}{text.splitlines()[0]}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command in the place of this process's program; without one, lists them."""
    name, *rest = (sys.argv if argv is None else argv)[1:] or ["--help"]
    if name in COMMANDS and importlib.util.find_spec(f"snr_jax.{COMMANDS[name]}"):
        sys.argv = [f"snr-jax {name}", *rest]
        # As python -m does it: what a door does before its slow imports, and at its end, counts.
        runpy.run_module(f"snr_jax.{COMMANDS[name]}", run_name="__main__", alter_sys=True)
        return 0

    def answer() -> None:
        if name not in ("--help", "-h", "help"):
            near = difflib.get_close_matches(name, COMMANDS, n=1)
            guess = f"did you mean {near[0]}? " if near else ""
            raise UserError(f"there is no command {name!r}; {guess}snr-jax --help lists them")
        print(listing())

    return cli.run_command(answer)


if __name__ == "__main__":
    sys.exit(main())
