"""`snr-jax toys` of a clone: python scripts/make_toy_domains.py --out runs/toy/data."""

import sys

from snr_jax.toys import main

if __name__ == "__main__":
    sys.exit(main())
