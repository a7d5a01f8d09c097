"""The training state: a value that holds all a run needs besides its configuration."""

import re
import zlib
from dataclasses import field
from functools import partial

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict


@flax.struct.dataclass
class TrainState:
    """step int32 [], and the trees of parameters, batch statistics and optimiser state.

    teacher: the variables of a mean teacher, {"params", "batch_stats"}; empty without one.
    """

    step: jax.Array
    params: dict
    batch_stats: dict
    opt_state: optax.OptState
    teacher: dict = field(default_factory=dict)

    @property
    def variables(self) -> dict:
        return {"params": self.params, "batch_stats": self.batch_stats}


def variable_shapes(model: nn.Module) -> dict:
    """The tree of ShapeDtypeStructs that `model.init` would fill, without computing anything."""
    image = jax.ShapeDtypeStruct((1, 33, 33, 3), jnp.float32)
    init = partial(model.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), image)
    return {"params": shapes["params"], "batch_stats": shapes.get("batch_stats", {})}


_DEVIATIONS = (  # of normal initial values: (pattern of the whole path, deviation)
    (r"params/head/out/kernel", 0.1),
    (r"params/(encoder|head)/.*(kernel|token|tokens|pos_embed)", 0.02),
    (r".*kernel", 0.01),
)


def initial_variables(model: nn.Module, seed: int) -> dict:
    """Initial values as numpy float32, each drawn from the seed and its own path.

    Kernels and tokens N(0, 0.01) or as _DEVIATIONS says, biases of convolutions uniform in
    ±1/sqrt(fan-in), norms 1 and 0, layer scales 1. Every run starts from these. The modules' own
    initialisers name the same distributions, for whoever calls `model.init` (ten times as slow);
    here they give shapes alone.
    """
    flat = flatten_dict(variable_shapes(model), sep="/")

    def draw(path: str, shape: tuple[int, ...]) -> np.ndarray:
        random = np.random.default_rng([seed, zlib.crc32(path.encode())])
        parent, leaf = path.rsplit("/", 1)
        for pattern, deviation in _DEVIATIONS:
            if re.fullmatch(pattern, path):
                return (deviation * random.standard_normal(shape)).astype(np.float32)
        if leaf == "bias" and f"{parent}/kernel" in flat:
            bound = 1 / np.sqrt(np.prod(flat[f"{parent}/kernel"].shape[:-1]))
            return random.uniform(-bound, bound, shape).astype(np.float32)
        return np.full(shape, leaf in ("scale", "var", "gamma"), np.float32)

    drawn = {path: draw(path, leaf.shape) for path, leaf in flat.items()}
    return {"batch_stats": {}} | unflatten_dict(drawn, sep="/")  # which drops what is empty


def create_state(
    variables: dict, tx: optax.GradientTransformation, *, with_teacher: bool = False
) -> TrainState:
    """variables {"params", "batch_stats"} → TrainState at step 0; a teacher begins as a copy."""
    params = jax.tree.map(jnp.asarray, variables["params"])
    batch_stats = jax.tree.map(jnp.asarray, variables["batch_stats"])
    state = TrainState(jnp.zeros([], jnp.int32), params, batch_stats, tx.init(params))
    # Arrays of its own: a step takes over the memory of each array that it is given, once.
    teacher = jax.tree.map(jnp.array, state.variables) if with_teacher else {}
    return state.replace(teacher=teacher)
