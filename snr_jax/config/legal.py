"""What the value of a key may be: a test, and the words that messages and docs have for it."""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from snr_jax.data.domains import DOMAINS


class Legal(NamedTuple):
    """words: as in "expected a whole number, at least 1". names: the values that have a name."""

    words: str
    accepts: Callable[[Any], bool]
    example: str = ""
    names: tuple[str, ...] = ()


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def _is_domain(value: Any) -> bool:
    return value in DOMAINS or (isinstance(value, str) and value.endswith((".yaml", ".yml")))


def _range(least: float, most: float) -> str:
    return f"at least {least}" if most == math.inf else f"{least} to {most}"


def whole(least: int, most: float = math.inf) -> Legal:
    """A whole number within the bounds."""

    def accepts(value: Any) -> bool:
        return _is_whole(value) and least <= value <= most

    return Legal(f"a whole number, {_range(least, most)}", accepts)


def number(least: float, most: float, *, without: float | None = None) -> Legal:
    """A number within the bounds. without: the one of them that is itself no legal value."""

    def accepts(value: Any) -> bool:
        return _is_number(value) and least <= value <= most and value != without

    but = f", but not {without}" if without is not None else ""
    return Legal(f"a number, {_range(least, most)}{but}", accepts)


def several(count: int, of: Legal, *, rising: bool = False, also: tuple | None = None) -> Legal:
    """`count` values of `of`. rising: the smaller first. also: a further value that is legal."""

    def accepts(value: Any) -> bool:
        if not isinstance(value, tuple | list) or len(value) != count:
            return False
        ordered = not rising or list(value) == sorted(value)
        return tuple(value) == also or (ordered and all(map(of.accepts, value)))

    words = of.words.replace("a ", f"{count} ", 1).replace("number", "numbers", 1)
    words += ", the smaller first" if rising else ""
    words += f", or {also} for none" if also else ""
    least = re.search(r"[\d.]+", of.words)[0]
    return Legal(words, accepts, f"({','.join([least] * count)})")


def any_number_of(of: Legal) -> Legal:
    """Values of `of`, as many as there are, all different."""

    def accepts(value: Any) -> bool:
        return (isinstance(value, tuple | list) and all(map(of.accepts, value))
                and len(set(value)) == len(value))

    return Legal(f"none or more, all different, each {of.words}", accepts, "(2,5)")


def one_of(*values: Any) -> Legal:
    """One of the values, of its very type."""

    def accepts(value: Any) -> bool:
        return any(type(value) is type(v) and value == v for v in values)

    names = tuple(v for v in values if v and isinstance(v, str))
    return Legal("one of " + ", ".join(str(v) or '""' for v in values), accepts, names=names)


def text(*, empty: bool) -> Legal:
    """Any text. empty: or none."""

    def accepts(value: Any) -> bool:
        return isinstance(value, str) and (empty or bool(value.strip()))

    return Legal("a text" if empty else "a text that is not empty", accepts)


SWITCH = Legal("True or False", lambda value: isinstance(value, bool))
DOMAIN = Legal(
    f"one of {', '.join(DOMAINS)}, or a file as my_domain.yaml", _is_domain, names=tuple(DOMAINS)
)
