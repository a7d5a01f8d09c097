"""The former name of `snr_jax.compare`: python -m snr_jax.report goes on working."""

import sys

if __name__ == "__main__":
    print("note: python -m snr_jax.report is python -m snr_jax.compare now", file=sys.stderr)
    from snr_jax.compare import main

    sys.exit(main())
