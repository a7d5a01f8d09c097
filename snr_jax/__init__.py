"""Domain-generalised and domain-adaptive semantic segmentation in JAX/Flax.

What it has to say goes to the loggers below "snr_jax": nothing is shown unless asked.
"""

import logging

logging.getLogger("snr_jax").addHandler(logging.NullHandler())
