"""`snr-jax prepare` of a clone: python scripts/prepare_data.py --domain gta5 ..."""

import sys

from snr_jax.prepare import main

if __name__ == "__main__":
    sys.exit(main())
