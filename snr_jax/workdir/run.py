"""A run as a value: what is trained on what, where its results go, and who may stop it."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
from ml_collections import ConfigDict

from snr_jax.core.labels import Classes
from snr_jax.data.splits import Split
from snr_jax.process import signals
from snr_jax.process.signals import Stop, never


@dataclass(frozen=True)
class Run:
    """splits: source, source_val and, if configured, target and target_val."""

    config: ConfigDict
    workdir: str
    splits: Mapping[str, Split]
    stop: Stop = never

    @property
    def classes(self) -> Classes:
        return self.splits["source"].labels.classes

    def unless_stopped(self, message: str) -> None:
        """Raises `Stopped` with the message if a signal has asked to stop.

        Not one of several processes alone: JAX has them stop at one step.
        """
        if not jax.distributed.is_initialized():
            signals.unless_asked(self.stop, message)
