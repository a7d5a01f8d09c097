"""`snr-jax convert` of a clone: python scripts/convert_torch_ckpt.py IN.pth OUT_DIR."""

import sys

from snr_jax.convert import main

if __name__ == "__main__":
    sys.exit(main())
