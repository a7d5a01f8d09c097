"""Segment images: those of a folder and of the folders in it, of a pattern, or one.

    python -m snr_jax.predict --checkpoint runs/gta5_dg --images photos --out predictions

For each image, whatever its size, in --out: NAME_color.png (official colours), NAME_overlay.png,
NAME_trainIds.png and NAME_labelIds.png (for the benchmark's server), and with --confidence
NAME_confidence.png (probability of the predicted class, 0-255). Results have the image's size.
NAME is the file's name without its suffix, or with it where two images would share the name; the
folders of the results are those of the images. --images also takes a file, several of them, and
'photos/*/*.jpg'.
An image that cannot be read is left out and named at the end; the exit code is 1 then.
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from snr_jax import cli
from snr_jax.core.errors import UserError
from snr_jax.core.labels import Classes
from snr_jax.core.progress import make_progress
from snr_jax.core.shapes import SQUEEZE, is_squeezed
from snr_jax.inference.photos import (
    Photos,
    find_images,
    printable,
    read_image,
    result_names,
    write_results,
)
from snr_jax.inference.tiles import Network, create_network, segment
from snr_jax.runs import network
from snr_jax.workdir import checkpoints

logger = logging.getLogger("snr_jax.predict")

PUBLISHED_SIZE = (512, 1024)  # at which the published Cityscapes numbers are scored
LEAST = 33  # pixels a side that the network sees

FLAGS = flags.FlagValues()
cli.define_compilation_cache(FLAGS)
cli.define_path("checkpoint", None, "The network: a run, or a checkpoint.", flag_values=FLAGS)
cli.define_path(
    "images", None, "Folder of the images, of any size, read in depth; or a file, or a pattern. "
    "Further ones may follow.",
    flag_values=FLAGS,
)
cli.define_path("out", None, "Folder for the results.", flag_values=FLAGS)
flags.DEFINE_list(
    "size", None,
    "HEIGHT,WIDTH at which the network sees each image (or tile), or own. By default own with "
    "--tile, else the target size of its training, or 512,1024 where none is recorded.",
    flag_values=FLAGS,
)
flags.DEFINE_list(
    "tile", None,
    "HEIGHT,WIDTH of tiles of the image at its own size, each seen alone and then averaged.",
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "overlap", None,
    "Pixels that neighbouring tiles share at least; by default an eighth of their shorter side.",
    flag_values=FLAGS,
)
flags.DEFINE_bool("flip", False, "Average with the mirrored image's prediction.", flag_values=FLAGS)
flags.DEFINE_bool("confidence", False, "Write confidence maps as well.", flag_values=FLAGS)
flags.DEFINE_enum(
    "dtype", "auto", ["auto", "float32", "bfloat16"],
    "Precision of the computation; auto: float32 on a CPU, bfloat16 elsewhere.",
    flag_values=FLAGS,
)


def command(args: flags.FlagValues, *further: str) -> int:
    if further and not args.images:
        raise UserError(f"unexpected argument {further[0]!r}; images are named by --images")
    where = cli.require(args, "checkpoint", "--checkpoint runs/gta5_dg")
    images = cli.require(args, "images", "--images photos")
    photos = find_images([images, *further], Path(args.out) if args.out else None)
    out = Path(cli.require(args, "out", "--out predictions"))
    tile, overlap = _tiles(args.tile, args.overlap)
    size = _pixels("size", args.size) if args.size not in (None, ["own"]) else None
    _refuse_among_images(photos, out)
    cli.use_compilation_cache(args)
    checkpoint = checkpoints.find(where)
    model, variables, meta = network.load(checkpoint, dtype=args.dtype)
    why = ""
    if not args.size and not tile:
        size, why = _default_size(meta)
    seen = f"at {size[0]}x{size[1]}" if size else "at their own size"
    if tile:
        seen = f"in tiles of {tile[0]}x{tile[1]} that share {overlap} pixels or more, {seen}"
    _make_folder(out)
    print(f"{checkpoint.path}: {len(photos.paths)} images, seen by the network {seen}{why}; "
          f"results go to {out}")
    if others := photos.others:
        shown = ", ".join(map(printable, others[:3])) + (", ..." if len(others) > 3 else "")
        print("left out, since hidden, a folder without images or read already, or of another "
              f"suffix: {len(others)} ({shown})")
    net = create_network(model, variables)
    if size or tile:  # that it does not fit is told before the first image
        net(*(size or tile))
    failures, squeezed = _segment_all(
        photos, out, net, network.classes_of(meta), args.confidence,
        size=size, tile=tile, overlap=overlap, flip=args.flip,
    )
    if squeezed:
        print(f"note: to be seen at {size[0]}x{size[1]}, {squeezed} images were squeezed or "
              f"stretched by more than {SQUEEZE}; --size, or --tile, keeps their shape")
    if failures:
        whole = len(photos.paths)
        print(f"error: {len(failures)} of {whole} images have no result:", file=sys.stderr)
        print("\n".join(f"  {failure}" for failure in failures), file=sys.stderr, flush=True)
    return 1 if failures else 0


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be made: {error.strerror}; choose another") from None


def _refuse_among_images(photos: Photos, out: Path) -> None:
    folders = {path.parent for path in photos.paths}
    images = {(photos.folder / folder).resolve() for folder in folders}
    if any((out / folder).resolve() in images for folder in folders):
        raise UserError(f"--out {out} is the folder of the images; choose another for the results")


def _segment_all(
    photos: Photos,
    out: Path,
    net: Network,
    known: Classes,
    with_confidence: bool,
    **options: Any,
) -> tuple[list[str], int]:
    """Segments every image and writes its results; options as of `segment`.

    What went wrong, a line per image without a result; and how many images were squeezed.
    """
    failures, squeezed = [], 0
    show = make_progress("images", logger, every_seconds=5)
    names = result_names(photos.paths)
    for done, (inner, name) in enumerate(zip(photos.paths, names, strict=True), start=1):
        path = photos.folder / inner
        try:
            image = read_image(path)
            classes, confidence = segment(net, image, **options)
        except UserError as error:
            failures.append(f"{path}: {error}")
            print(f"left out: {printable(str(inner))}", flush=True)
        else:
            have = options["tile"] or image.size[::-1]
            squeezed += is_squeezed(have, options["size"] or have)
            files = {"confidence": confidence} if with_confidence else {}
            _make_folder((out / name).parent)
            write_results(out / name, np.asarray(image), classes, known, **files)
        show(done, len(names))
    return failures, squeezed


def _default_size(meta: dict) -> tuple[tuple[int, int], str]:
    recorded = meta.get("source", {}).get("input_size")
    if recorded:
        return tuple(recorded), " as in its training"
    return PUBLISHED_SIZE, " as the published numbers are scored (the checkpoint records no size)"


def _tiles(tile: list[str] | None, overlap: int | None) -> tuple[tuple[int, int] | None, int]:
    if tile is None:
        if overlap is not None:
            raise UserError("--overlap is of tiles; give --tile HEIGHT,WIDTH as well")
        return None, 0
    pixels = _pixels("tile", tile)
    overlap = min(pixels) // 8 if overlap is None else overlap
    if not 0 <= overlap <= min(pixels) // 2:
        raise UserError(
            f"--overlap is {overlap}; expected 0 to {min(pixels) // 2}, half of the tile's shorter "
            "side"
        )
    return pixels, overlap


def _pixels(flag: str, value: list[str]) -> tuple[int, int]:
    try:
        height, width = map(int, value)
        if min(height, width) < LEAST:
            raise ValueError
    except ValueError:
        own = ", or own" if flag == "size" else ""
        raise UserError(
            f"--{flag} is {','.join(value)}; expected HEIGHT,WIDTH in pixels, as 512,1024, of at "
            f"least {LEAST} each{own}"
        ) from None
    return height, width


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(argv, FLAGS, __doc__, command, arguments=("[IMAGES...]",))


if __name__ == "__main__":
    sys.exit(main())
