"""The former place of `snr_jax.doctor`: python -m snr_jax.data.doctor goes on working."""

import sys

if __name__ == "__main__":
    print("note: python -m snr_jax.data.doctor is python -m snr_jax.doctor now", file=sys.stderr)
    from snr_jax.doctor import main

    sys.exit(main())
