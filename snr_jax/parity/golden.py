"""A folder of golden numbers, and the weights and inputs that are drawn again from their names.

scripts/check_parity.py describes the files and their keys.
"""

import json
import re
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from snr_jax.core.errors import UserError
from snr_jax.core.labels import IGNORE
from snr_jax.core.models.deeplab import DeepLab
from snr_jax.core.state import variable_shapes
from snr_jax.weights import torch_names

FILES = ("losses", "metrics", "forward", "training")


class Arrays(dict):
    """The arrays of one file by their keys; a key that is not there is the user's mistake."""

    def __init__(self, path: Path, arrays: dict[str, np.ndarray]) -> None:
        super().__init__(arrays)
        self.path = path

    def __missing__(self, key: str) -> NoReturn:
        raise UserError(f"{self.path}: no array {key!r}; expected the form that "
                        "`check_parity.py --help` describes")


def generator(name: str, salt: str) -> np.random.Generator:
    """The random numbers of one name: the same in every process and order."""
    return np.random.default_rng(zlib.crc32(f"{salt}/{name}".encode()))


def draw_tensor(name: str, shape: tuple[int, ...], salt: str) -> np.ndarray:
    """A tensor of the network, float32, in the PyTorch layout."""
    rng, leaf = generator(name, salt), name.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return np.zeros((), np.int64)
    if leaf == "running_var":
        value = 1.0 + 0.4 * rng.random(shape)
    elif leaf in ("running_mean", "bias"):
        value = 0.1 * rng.standard_normal(shape)
    elif len(shape) == 1:  # the scale of a norm
        value = 1.0 + 0.1 * rng.standard_normal(shape)
    else:
        value = rng.standard_normal(shape) * np.sqrt(2.0 / np.prod(shape[1:]))
    return value.astype(np.float32)


def draw_image(name: str, size: tuple[int, int], salt: str, batch: int = 1) -> jax.Array:
    """BGR minus mean as the network takes it, float64 [N,H,W,3] (of float32 numbers)."""
    image = 50 * generator(name, salt).standard_normal((batch, 3, *size))
    return nhwc(image.astype(np.float32))


def draw_labels(name: str, num_classes: int, size: tuple[int, int], salt: str) -> np.ndarray:
    """Labels uint8 [1,H,W], a tenth of them ignored."""
    shape = (1, *size)
    labels = generator(name, salt).integers(0, num_classes, shape)
    labels[generator(f"{name}/ignore", salt).random(shape) < 0.1] = IGNORE
    return labels.astype(np.uint8)


def nhwc(array: np.ndarray) -> jax.Array:
    """[N,C,H,W] → float64 [N,H,W,C]."""
    return jnp.asarray(np.transpose(array, (0, 2, 3, 1)), jnp.float64)


def nchw(array: jax.Array | np.ndarray) -> np.ndarray:
    """[N,H,W,C] → [N,C,H,W]."""
    return np.transpose(array, (0, 3, 1, 2))


def with_ignore(labels: np.ndarray) -> np.ndarray:
    """The folder's labels, -1 where ignored → this project's."""
    return np.where(labels < 0, IGNORE, labels.astype(np.int32))


def load_npz(path: Path) -> Arrays:
    """All arrays of a file. Raises UserError where it is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return Arrays(path, dict(file))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected a folder of golden numbers with "
                        f"{', '.join(f'{name}.npz' for name in FILES)}: check --golden, or leave "
                        "the part out with --only") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as problem:
        raise UserError(f"{path}: not a readable npz file ({problem}); copy the folder again") \
            from None


def load_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """{tensor name: shape}. Raises UserError where the file is missing or of another form."""
    try:
        return {name: tuple(shape) for name, shape in json.loads(path.read_text()).items()}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected a JSON object {{tensor name: shape}}: "
                        "check --golden") from None
    except (ValueError, AttributeError, TypeError) as problem:
        raise UserError(f"{path}: expected a JSON object {{tensor name: shape}} ({problem}); "
                        "copy the folder again") from None


def find_salt(folder: Path) -> str | None:
    """What the folder's README calls its salt."""
    readme = folder / "README.md"
    text = readme.read_text(errors="replace") if readme.is_file() else ""
    found = re.search(r"\bsalt\s+`([\w.-]+)`|crc32\(\"([\w.-]+)/<name>\"\)", text)
    return found and (found[1] or found[2])


class Network(NamedTuple):
    """A network with its drawn weights. state_dict: PyTorch names, float32."""

    model: DeepLab
    state_dict: Arrays
    variables: dict  # float64


def draw_network(folder: Path, kind: str, salt: str, atrous: str = "native") -> Network:
    """The network that shapes_<kind>.json describes, through the converter's names.

    Raises UserError where the shapes are not those of the published network.
    """
    path = folder / f"shapes_{kind}.json"
    shapes = load_shapes(path)
    state_dict = {name: draw_tensor(name, shape, salt) for name, shape in shapes.items()}
    try:
        found = torch_names.infer_architecture(state_dict)
        model = DeepLab(**found, atrous=atrous, dtype=jnp.float64)
        loaded, unused = torch_names.from_torch(state_dict)
        variables, report = torch_names.merge(variable_shapes(model), loaded, unused)
    except UserError as problem:
        raise UserError(f"{path}: {problem}") from None
    if report.missing or report.unused:
        strange = ", ".join((*report.missing, *report.unused)[:3])
        raise UserError(f"{path}: {len(report.missing)} tensors missing, {len(report.unused)} of "
                        f"no known place ({strange}); expected those of the published network")
    variables = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), variables)
    return Network(model, state_dict, variables)
