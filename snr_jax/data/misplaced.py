"""Why no file of a split is found: what lies near the place where it should, and the mend."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from snr_jax.core.errors import UserError
from snr_jax.data import layouts
from snr_jax.data.layouts import IMAGE_SUFFIXES, Entries, Folders, Layout, ListFolder, Parts

MOST_LOOKED_AT = 2000  # files of one guess
MOST_SHOWN = 200  # characters of names
SIGNS = "[?{\\"  # what the patterns of other programs know


def explain(
    root: Path, tried: Sequence[Layout], split: Folders, what: str, hint: str = ""
) -> str:
    """A sentence about images or labels (`what`) that are near, with the mend; else the hint.

    split: what {split} stands for. hint: the mend where another folder should have been given.
    """
    once = layouts.create_list()

    def listed(folder: Path) -> Entries:
        try:
            return once(folder)
        except UserError:
            return Entries([], [])

    wanted: list[Parts] = []
    for layout, folder in itertools.product(tried, layouts.each(split)):
        images, labels = layouts.patterns(layout, folder)
        wanted += images if what == "images" else [labels]
    patterns = [one for one in dict.fromkeys(wanted) if one]
    near = (next(_near(root, one, what, hint, listed), None) for one in patterns)
    guesses = [guess for guess in near if guess]
    told = [min(guesses, key=lambda guess: guess[0])[1]] if guesses else [hint] if hint else []
    signs = [sign for sign in SIGNS if any(sign in part for one in wanted for part in one)]
    if signs:
        return (f"In a pattern {signs[0]} is a sign like any other: * and ** (folders of any "
                "depth) alone stand for others, / divides folders, images may be a list")
    return ". ".join(told)


def _near(
    root: Path, pattern: Parts, what: str, hint: str, listed: ListFolder
) -> Iterator[tuple[int, str]]:
    """Guesses with their rank, the likeliest first."""
    *folders, last = pattern
    suffix = Path(last).suffix
    names = f"{last.removesuffix(suffix)}.*" if "*" not in suffix else last

    def look(*tried: str) -> list[Path]:
        try:
            found = itertools.islice(layouts.matches(root, tried, listed), MOST_LOOKED_AT)
            images = [path for _, path in found if path.suffix.lower() in IMAGE_SUFFIXES]
            return sorted(images, key=lambda path: path.suffix.lower() != suffix.lower())
        except (UserError, OSError):
            return []

    def told(found: list[Path]) -> str:
        first = found[0].relative_to(root).as_posix()
        more = f" and {len(found) - 1} more as it" if len(found) > 1 else ""
        ending = found[0].suffix
        other = f", {ending} where {suffix} is expected" if ending.lower() != suffix.lower() else ""
        return f"There is {first}{more}{other}"

    if found := look(*folders, names):
        yield 0, (f"{told(found)}: take the data set's own files, or name these in a YAML file of "
                  "your own (docs/data.md)")
    for depth, i in itertools.product((1, 2), reversed(range(len(pattern)))):
        if found := look(*folders[:i], *["*"] * depth, *folders[i:], names):
            inner = found[0].relative_to(root).parts[: i + depth]
            outer = root.joinpath(*inner[:i])
            sure = "" if what == "images" else "if these are the labels meant, "
            move = f"{sure}move what is in {root.joinpath(*inner)} to {outer}"
            given = hint or f"{move}, or give it as the folder where the whole set lies in it"
            yield 1, f"{told(found)}: {move if i else given}"
    here = root.resolve()
    if folders and folders[0] == here.name and look(*folders[1:], names):
        yield 2, f"The folder given is {here.name} itself: give the one above, {here.parent}"
    for i, folder in reversed(list(enumerate(folders))):
        if found := look(*folders[:i], *folders[i + 1 :], names):
            into = "folders" if "*" in folder else f"a folder {folder}"
            yield 3, f"{told(found)}, without {into} at that place: move them into {into}"
    place = root.joinpath(*folders)  # with a star there is none such
    if layouts.is_folder(place) and not layouts.visible(place, listed):
        yield 4, f"The folder {place} is empty"
    for i, folder in enumerate(folders):
        if "*" not in folder and (found := look(*folders[:i], "*", *folders[i + 1 :], names)):
            there = "/".join(found[0].relative_to(root).parts[: i + 1])
            yield 5, f"{told(found)}: {there} in the place of {'/'.join(pattern[: i + 1])}"
    yield from _there(root, pattern, what, listed)


def _there(
    root: Path, pattern: Parts, what: str, listed: ListFolder
) -> Iterator[tuple[int, str]]:
    """What lies in the folders of a pattern in the place of its files, with a rank, the last."""
    *folders, last = pattern
    beside = [path.name for _, path in layouts.matches(root, (*folders, "*"), listed)]
    if beside:
        kinds = {name.rpartition("_")[2]: name for name in beside}
        shown = ", ".join(itertools.islice(kinds.values(), layouts.NUM_SHOWN))
        yield 6, (f"In {'/'.join(folders)} lie {shown}, and no {last}: take the {what} of that "
                  "name, from the release that has them")
    for i, folder in enumerate(folders):
        here = root.joinpath(*folders[:i])
        if "*" in folder or not here.is_dir():
            break
        if not (here / folder).is_dir():
            names = ", ".join(layouts.visible(here, listed)) or "nothing"
            yield 7, f"In {here} there is {names[:MOST_SHOWN]}, and no {folder}"
