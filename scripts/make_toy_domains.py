"""Draws the toy domains: OUT/GTA5 (the source) and OUT/Cityscapes (the target, in a style).

    python scripts/make_toy_domains.py --out datasets/toy --style dusk
"""

import argparse
import sys
import time
from pathlib import Path

from snr_jax.core.errors import UserError
from snr_jax.toy import writer as toy_domains
from snr_jax.toy.styles import STYLES


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True, type=Path, help="folder of the two data sets")
    styles = ", ".join(STYLES)
    parser.add_argument("--style", default="dusk", help=f"of the target: {styles}")
    parser.add_argument("--num-train", default=240, type=int, help="images per domain")
    parser.add_argument("--num-val", default=60, type=int, help="images per domain")
    parser.add_argument("--seed", default=0, type=int)
    parser.add_argument("--height", default=128, type=int, help="pixels")
    parser.add_argument("--width", default=256, type=int, help="pixels")
    parser.add_argument("--only", choices=("source", "target"), help="draw one of the two")
    parser.add_argument("--workers", default=2, type=int, help="processes")
    parser.add_argument("--replace", action="store_true", help="overwrite another toy data set")
    return parser


def _progress(name: str):
    """Shows images drawn, rate and time left, on one line."""
    start = time.monotonic()

    def show(done: int, total: int) -> None:
        if done % 20 and done != total:
            return
        rate = done / (time.monotonic() - start)
        line = f"\r{name}: {done}/{total} images, {rate:.0f}/s, {(total - done) / rate:.0f} s left "
        print(line, end="\n" if done == total else "", flush=True)

    return show


def main(argv: list[str] | None = None) -> None:
    args = _parser().parse_args(argv)
    same = {key: getattr(args, key) for key in
            ("num_train", "num_val", "seed", "height", "width", "workers", "replace")}  # fmt: skip
    if args.only != "target":
        path = args.out / "GTA5"
        drawn = toy_domains.write_gta5(path, **same, progress=_progress(f"{path} (source)"))
        print(f"{path}: {'done' if drawn else 'already there'}")
    if args.only != "source":
        path = args.out / "Cityscapes"
        drawn = toy_domains.write_cityscapes(
            path, style=args.style, **same, progress=_progress(f"{path} ({args.style})")
        )
        print(f"{path}: {'done' if drawn else 'already there'}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
