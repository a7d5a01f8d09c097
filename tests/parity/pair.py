"""One network twice, the PyTorch twin's and this project's, with the same weights."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch

import twin as torch_twin
from snr_jax.core.models.deeplab import DeepLab
from snr_jax.parity.compare import error
from snr_jax.parity.golden import draw_tensor
from snr_jax.weights import torch_names

CLASSES = 5
IGNORE = torch_twin.IGNORE


class Pair(NamedTuple):
    twin: torch_twin.DeepLab
    phi: torch_twin.Restitution | None
    model: DeepLab
    variables: dict


def make_pair(
    variant: str = "snr",
    *,
    stage_sizes: tuple[int, ...] = (1, 1, 1, 1),
    width: int = 4,
    num_classes: int = CLASSES,
    head_branches: int = 2,
    restitution: bool = False,
    dtype: type = np.float64,
    salt: str = "pair",
    **options,
) -> Pair:
    """Both networks with weights drawn from their names; `options` go to this project's alone."""
    shape = {"num_classes": num_classes, "stage_sizes": stage_sizes, "width": width,
             "norm_restitution": variant, "head_branches": head_branches}
    torch_dtype = {np.float64: torch.float64, np.float32: torch.float32}[dtype]
    twin = torch_twin.DeepLab(**shape).to(torch_dtype)
    phi = torch_twin.Restitution(num_classes, width).to(torch_dtype) if restitution else None
    for module in filter(None, (twin, phi)):
        module.load_state_dict({
            name: torch.from_numpy(draw_tensor(name, tuple(value.shape), salt))
            for name, value in module.state_dict().items()
        })
    model = DeepLab(**shape, restitution_heads=restitution, dtype=dtype, **options)
    variables, unused = torch_names.from_torch(arrays(twin))
    assert not unused
    if phi is not None:
        for name, module in phi.named_children():
            variables["params"][name] = {
                "kernel": module.weight.detach().numpy().transpose(2, 3, 1, 0),
                "bias": module.bias.detach().numpy(),
            }
    return Pair(twin, phi, model, jax.tree.map(jnp.array, variables))


def arrays(twin: torch.nn.Module, phi: torch.nn.Module | None = None) -> dict[str, np.ndarray]:
    """The state of the twin by PyTorch names, copied."""
    state = {**twin.state_dict(), **(phi.state_dict() if phi is not None else {})}
    return {name: value.numpy().copy() for name, value in state.items()}


def torch_named(params: dict, batch_stats: dict | None = None) -> dict[str, np.ndarray]:
    """Variables by PyTorch names, those of the restitution loss too."""
    named = torch_names.to_torch({"params": params, "batch_stats": batch_stats or {}})
    for k in (1, 2, 3):
        if (phi := params.get(f"restitution{k}")) is not None:
            named[f"restitution{k}.weight"] = np.transpose(phi["kernel"], (3, 2, 0, 1))
            named[f"restitution{k}.bias"] = np.asarray(phi["bias"])
    return {name: value for name, value in named.items() if "num_batches" not in name}


def assert_close(ours: dict, theirs: dict, tolerance: float, *, scale: dict | None = None) -> None:
    """Every array of `theirs`, relative to its largest magnitude or to that of `scale`."""
    theirs = {name: value for name, value in theirs.items() if "num_batches" not in name}
    assert ours.keys() == theirs.keys() and theirs
    errors = {name: error(ours[name], value, None if scale is None else scale[name])
              for name, value in theirs.items()}
    worst = max(errors, key=errors.get)
    assert errors[worst] <= tolerance, f"{worst}: {errors[worst]:.1e} > {tolerance:.0e}"


def to_torch(x) -> torch.Tensor:
    """[N,H,W,C] → [N,C,H,W], a copy."""
    return torch.from_numpy(np.transpose(x, (0, 3, 1, 2)).copy())


def to_nhwc(x: torch.Tensor) -> np.ndarray:
    return x.detach().numpy().transpose(0, 2, 3, 1)


def random_image(seed: int, *shape: int) -> np.ndarray:
    """BGR minus mean in its usual range, float32 [N,H,W,3]."""
    return (50 * np.random.default_rng(seed).standard_normal((*shape, 3))).astype(np.float32)


def random_label(seed: int, *shape: int, num_classes: int = CLASSES) -> np.ndarray:
    """uint8 [N,H,W], a tenth ignored."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, num_classes, shape)
    return np.where(rng.random(shape) < 0.1, IGNORE, label).astype(np.uint8)
