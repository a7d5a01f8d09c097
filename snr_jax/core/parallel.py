"""One device or many: the only module that knows. `jax.jit` on one, `jax.pmap` over several."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "replica"


class Parallel(NamedTuple):
    """How functions and values are laid over the devices of all hosts.

    axis_name: for the step factories; None on one device.
    compile(function, donate=()): jit or pmap; the first argument is state, the second a batch.
    replicate, unreplicate: state to the devices, and back to the host as numpy.
    shard: a host batch (arrays [B,...]) to the devices; B a multiple of this host's.
    """

    axis_name: str | None
    num_devices: int
    compile: Callable[..., Callable]
    replicate: Callable[[Any], Any]
    unreplicate: Callable[[Any], Any]
    shard: Callable[[Any], Any]
    must_wait: bool  # steps in flight on several CPU devices deadlock in their collectives


def _first_replica(x: jax.Array | np.ndarray) -> np.ndarray:
    # Indexing the replicated array itself is a thousand times slower.
    return np.asarray(x.addressable_shards[0].data)[0] if hasattr(x, "addressable_shards") else x


def create_parallel(devices: Sequence[jax.Device] | None = None) -> Parallel:
    """One device if only one is there in all, else a pmap over the devices of every host."""
    devices = list(devices or jax.devices())
    local = [d for d in devices if d.process_index == jax.process_index()]
    if len(devices) == 1:
        return Parallel(
            axis_name=None,
            num_devices=1,
            compile=lambda function, donate=(): jax.jit(function, donate_argnums=donate),
            replicate=lambda tree: jax.device_put(tree, devices[0]),
            unreplicate=jax.device_get,
            shard=lambda batch: jax.device_put(batch, devices[0]),
            must_wait=False,
        )

    over_devices = NamedSharding(Mesh(np.array(local), (AXIS,)), PartitionSpec(AXIS))

    def shard(batch: dict) -> dict:
        pieces = jax.tree.map(lambda x: x.reshape(len(local), -1, *x.shape[1:]), batch)
        return jax.device_put(pieces, over_devices)

    def replicate(tree: Any) -> Any:
        # Laid out as pmap's own results: another sharding would compile the step a second time.
        def copies(x: jax.Array | np.ndarray) -> jax.Array:
            return jax.device_put(np.broadcast_to(x, (len(local), *np.shape(x))), over_devices)

        return jax.tree.map(copies, tree)

    return Parallel(
        axis_name=AXIS,
        num_devices=len(devices),
        compile=lambda function, donate=(): jax.pmap(
            function, axis_name=AXIS, donate_argnums=donate, devices=devices
        ),
        replicate=replicate,
        unreplicate=lambda tree: jax.tree.map(_first_replica, tree),
        shard=shard,
        must_wait=devices[0].platform == "cpu",
    )
