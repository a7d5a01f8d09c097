"""Domain-generalised and domain-adaptive semantic segmentation in JAX/Flax.

    segmenter = snr_jax.load("runs/gta2city_uda")
    segmenter("street.jpg").overlay().save("street_overlay.png")

To segment: load, Segmenter, Result; save writes what travels. To train: create_model,
initial_variables, create_state, TrainState, make_source_step, make_adaptation_step,
make_classmix_step, make_eval_step, Output, and the modules losses, optim and metrics. Data:
create_domain, open_split, train_batches, eval_batches (TensorFlow). A user's mistake is a
UserError. docs/library.md shows all of them at work.

Importing it imports nothing else: each name comes with its module when it is first used. What the
package has to say goes to the loggers below "snr_jax": nothing is shown unless asked.
"""

import importlib
import logging
from typing import Any

_PLACES = {  # name → its module, or the module that it is
    "load": "inference.segmenter", "Segmenter": "inference.segmenter",
    "Result": "inference.segmenter", "save": "runs.weights", "UserError": "core.errors",
    "create_model": "core.models.create", "Output": "core.models.deeplab",
    "initial_variables": "core.state", "create_state": "core.state", "TrainState": "core.state",
    "make_source_step": "core.steps", "make_adaptation_step": "core.steps",
    "make_classmix_step": "core.self_training", "make_eval_step": "core.steps",
    "losses": "core.losses", "optim": "core.optim", "metrics": "core.metrics",
    "create_domain": "data.domains", "open_split": "data.splits",
    "train_batches": "data.pipeline", "eval_batches": "data.pipeline",
}  # fmt: skip
__all__ = list(_PLACES)

logging.getLogger("snr_jax").addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    place = _PLACES[name]
    module = importlib.import_module(f"{__name__}.{place}")
    value = module if place.endswith(f".{name}") else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
