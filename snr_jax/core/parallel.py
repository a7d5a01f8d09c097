"""One device or many: the only module that knows. `jax.jit` on one, `jax.pmap` over several."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "replica"
OHWI, HWIO = (3, 0, 1, 2), (1, 2, 3, 0)  # of a kernel [kh,kw,I,O], to its place in memory and back


class Parallel(NamedTuple):
    """How functions and values are laid over the devices of all hosts.

    axis_name: for the step factories; None on one device.
    compile(function, donate=()): jit or pmap; the first argument is state, the second a batch.
    replicate, unreplicate: state to the devices, and back to the host as numpy. On a GPU kernels
    lie there as cuDNN reads them, [O,kh,kw,I]: compiled functions see them as everybody else.
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


def with_kernels(tree: Any, axes: tuple[int, ...]) -> Any:
    """The tree with the axes of its convolutions' kernels in another order."""

    def moved(path: tuple, x: Any) -> Any:
        is_kernel = getattr(path[-1], "key", "") == "kernel" if path else False
        return x.transpose(axes) if is_kernel and np.ndim(x) == 4 else x

    return jax.tree_util.tree_map_with_path(moved, tree)


def in_hwio(function: Callable) -> Callable:
    """The function of a state and more, for a state whose kernels lie as OHWI, as in its result.

    The compiler turns no array for that: the function's own layouts follow. Without it each step
    turns every kernel, its gradient and its velocity.
    """

    def stored(state: Any, *others: Any) -> Any:
        return with_kernels(function(with_kernels(state, HWIO), *others), OHWI)

    return stored


def create_parallel(
    devices: Sequence[jax.Device] | None = None, *, ohwi: bool | None = None
) -> Parallel:
    """One device if only one is there in all, else a pmap over the devices of every host.

    ohwi: whether kernels lie on the devices as [O,kh,kw,I]; by default on GPUs alone.
    """
    devices = list(devices or jax.devices())
    if devices[0].platform == "gpu" if ohwi is None else ohwi:
        plain = create_parallel(devices, ohwi=False)
        return plain._replace(
            compile=lambda function, donate=(): plain.compile(in_hwio(function), donate),
            replicate=lambda tree: plain.replicate(with_kernels(tree, OHWI)),
            unreplicate=lambda tree: with_kernels(plain.unreplicate(tree), HWIO),
        )
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
