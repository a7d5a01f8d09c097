"""The published PyTorch names and layouts against this project's variables, as a table.

A state dict here is a mapping from PyTorch names to numpy arrays; PyTorch itself is not needed.
Variables are `{"params": ..., "batch_stats": ...}`, nested dicts of numpy arrays.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from snr_jax.core.errors import UserError

StateDict = Mapping[str, np.ndarray]
Variables = dict[str, dict]

# A module's tensors: (PyTorch's last name, collection, our last name).
# Student and mean teacher, as DACS and its followers save them.
NETWORKS = ("model", "ema_model")
_CONV = (("weight", "params", "kernel"), ("bias", "params", "bias"))
_NORM = (("weight", "params", "scale"), ("bias", "params", "bias"),
         ("running_mean", "batch_stats", "mean"), ("running_var", "batch_stats", "var"))

# (section, PyTorch module, our module, tensors). `{}` is a number, the same on both sides.
# PyTorch lists a state dict by section, then by the numbers, then by the row.
_MODULES = (
    (0, "conv1", "conv1", _CONV),
    (0, "bn1", "bn1", _NORM),
    (1, "layer{}.{}.conv1", "layer{}_{}/conv1", _CONV),
    (1, "layer{}.{}.bn1", "layer{}_{}/bn1", _NORM),
    (1, "layer{}.{}.conv2", "layer{}_{}/conv2", _CONV),
    (1, "layer{}.{}.bn2", "layer{}_{}/bn2", _NORM),
    (1, "layer{}.{}.conv3", "layer{}_{}/conv3", _CONV),
    (1, "layer{}.{}.bn3", "layer{}_{}/bn3", _NORM),
    (1, "layer{}.{}.downsample.0", "layer{}_{}/downsample_conv", _CONV),
    (1, "layer{}.{}.downsample.1", "layer{}_{}/downsample_bn", _NORM),
    (1, "layer{}.conv2d_list.{}", "layer{}/conv2d_list_{}", _CONV),
    (2, "IN{}", "snr{}/norm", _NORM),
    (3, "style_reid_laye{}.fc{}", "snr{}/fc{}", _CONV),  # the typo is the published name
)
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "Scale.")
_PREFIX = re.compile(f"^(?:{'|'.join(map(re.escape, PREFIXES))})+")
_COUNTER = "num_batches_tracked"  # PyTorch's; no value of it changes a result
_GROUPS = (  # what an account counts together: (label, pattern of names)
    ("stem", r"(conv1|bn1)\."),
    *((f"layer{n}", rf"layer{n}\.") for n in (1, 2, 3, 4)),
    ("snr", r"(IN|style_reid_laye)\d|encoder/snr_"),
    ("encoder", r"encoder/"),  # of a transformer, whose variables have no name in this table
    ("head", r"head/"),
    ("layer5 (auxiliary head)", r"layer5\."),
    ("layer6 (main head)", r"layer6\."),
    ("restitution classifiers", r"restitution_?\d"),
    ("other", r""),
)
BACKBONE = ("stem", "layer1", "layer2", "layer3", "layer4")


def _numbers(template: str, text: str) -> tuple[str, ...] | None:
    """The numbers that stand at the `{}` of a template, or None where text does not fit it."""
    match = re.fullmatch(re.escape(template).replace(r"\{\}", r"(\d+)"), text)
    return match and match.groups()


def _path_of(name: str) -> tuple[str, ...] | None:
    """'layer1.0.bn1.weight' -> ('params', 'layer1_0', 'bn1', 'scale'); None for a strange name."""
    module, _, leaf = name.rpartition(".")
    for _section, torch_module, our_module, tensors in _MODULES:
        if (numbers := _numbers(torch_module, module)) is not None:
            for torch_leaf, collection, our_leaf in tensors:
                if leaf == torch_leaf:
                    return (collection, *our_module.format(*numbers).split("/"), our_leaf)
    return None


def _name_of(path: tuple[str, ...]) -> tuple[str, tuple] | None:
    """The inverse of `_path_of`, with the key that sorts names as PyTorch lists them."""
    module = "/".join(path[1:-1])
    for row, (section, torch_module, our_module, tensors) in enumerate(_MODULES):
        if (numbers := _numbers(our_module, module)) is not None:
            for place, (torch_leaf, collection, our_leaf) in enumerate(tensors):
                if (path[0], path[-1]) == (collection, our_leaf):
                    order = (section, tuple(map(int, numbers)), row, place)
                    return f"{torch_module.format(*numbers)}.{torch_leaf}", order
    return None


def _variables(flat: Mapping[tuple[str, ...], np.ndarray]) -> Variables:
    """Both collections, also where one of them is empty."""
    return {"params": {}, "batch_stats": {}} | unflatten_dict(flat)


def strip_prefixes(state_dict: StateDict) -> dict[str, np.ndarray]:
    """The same tensors without the leading PREFIXES; UserError where two names collide.

    `module.` comes from torch.nn.DataParallel, `_orig_mod.` from torch.compile, `model.` from
    Lightning, `backbone.` from OpenMMLab, `Scale.` from the published initial weights; in any order
    and number.
    """
    stripped: dict[str, np.ndarray] = {}
    for name, value in state_dict.items():
        short = _short(name)
        if short in stripped:
            raise UserError(
                f"two tensors are called {short!r} once the prefixes are gone (one is {name!r}); "
                "expected one network in the file: remove the other tensors from it")
        stripped[short] = value
    return stripped


def _short(name: str) -> str:
    return _PREFIX.sub("", name)


def is_of_network(name: str) -> bool:
    """Whether the published network has a tensor of that name, without its prefixes."""
    return _path_of(_short(name)) is not None


def foreign_head(state_dict: StateDict) -> list[str]:
    """Names (without prefixes) of a `layer5` that is not the auxiliary head on layer3's output.

    The published initial weights and single-head networks call their one head, on layer4's
    output, `layer5`; the networks with two heads have a `layer6` as well.
    """
    if any(name.startswith("layer6.") for name in state_dict):
        return []
    return [name for name in state_dict if name.startswith("layer5.")]


def from_torch(state_dict: StateDict) -> tuple[Variables, list[str]]:
    """Variables of a PyTorch state dict, and the names in it that have no place in them.

    Kernels go from [O,I,H,W] to [H,W,I,O]; dtypes stay. `num_batches_tracked` is dropped. A
    `layer5` that is another head (see `foreign_head`) is among the unused.
    Raises UserError for colliding names and for convolutions that are not 4-D.
    """
    state_dict = strip_prefixes(state_dict)
    foreign = set(foreign_head(state_dict))
    flat, unused = {}, []
    for name, value in state_dict.items():
        path = None if name in foreign else _path_of(name)
        if path is not None:
            flat[path] = _hwio(name, value) if path[-1] == "kernel" else np.asarray(value)
        elif not name.endswith("." + _COUNTER):
            unused.append(name)
    return _variables(flat), unused


def _hwio(name: str, value: np.ndarray) -> np.ndarray:
    if np.ndim(value) != 4:
        raise UserError(f"{name} has shape {np.shape(value)}; expected a convolution's four axes "
                        "[out, in, height, width]: is this a ResNet-101 DeepLab-v2?")
    return np.ascontiguousarray(np.transpose(value, (2, 3, 1, 0)))  # [H,W,I,O]


def to_torch(variables: Mapping[str, Mapping]) -> dict[str, np.ndarray]:
    """The PyTorch state dict of variables, in PyTorch's order: the inverse of `from_torch`.

    Kernels go back to [O,I,H,W]; each batch norm gets a `num_batches_tracked` of zero (int64).
    The classifiers of the restitution loss are left out: they are no part of the network.
    Raises UserError for a variable that the published network does not have.
    """
    named = []
    for path, value in flatten_dict(variables).items():
        if (found := _name_of(path)) is not None:
            if path[-1] == "kernel":
                value = np.ascontiguousarray(np.transpose(value, (3, 2, 0, 1)))  # [O,I,H,W]
            named.append((found[1], found[0], np.asarray(value)))
        elif not path[1].startswith("restitution"):
            raise UserError(f"{'/'.join(path)} has no name in the published PyTorch network; "
                            "expected the variables of a DeepLab of this project")
    state_dict = {}
    for _order, name, value in sorted(named, key=lambda item: item[0]):
        state_dict[name] = value
        module, _, leaf = name.rpartition(".")
        if leaf == "running_var":
            state_dict[f"{module}.{_COUNTER}"] = np.zeros((), np.int64)
    return state_dict


def infer_architecture(state_dict: StateDict) -> dict:
    """`num_classes, stage_sizes, width, norm_restitution` of a state dict, from names and shapes.

    `num_classes` is None where the file has neither head. Raises UserError where the stem or a
    layer is missing, or where a layer's blocks have gaps.
    """
    state_dict = strip_prefixes(state_dict)
    if (stem := state_dict.get("conv1.weight")) is None:
        examples = ", ".join(list(state_dict)[:3]) or "nothing"
        stems = [name for name in state_dict
                 if re.search(r"(?<!layer\d\.\d)\.conv1\.weight$", name)]
        prefix = min(stems, key=len, default="").removesuffix("conv1.weight")
        begun = f" ({prefix!r} is one: save the file again without it)" if prefix else ""
        raise UserError("no tensor conv1.weight: expected a ResNet DeepLab-v2 under its published "
                        f"PyTorch names, found {examples} ...; likely another network, or names "
                        f"with a prefix other than {', '.join(PREFIXES)}{begun}")
    stage_sizes = []
    for layer in (1, 2, 3, 4):
        found = (re.match(rf"layer{layer}\.(\d+)\.", name) for name in state_dict)
        blocks = {int(match[1]) for match in found if match}
        if not blocks or blocks != set(range(len(blocks))):
            raise UserError(f"layer{layer} has the blocks {sorted(blocks)}; expected 0, 1, ... "
                            "without gaps: the file is incomplete or another network")
        stage_sizes.append(len(blocks))
    foreign = set(foreign_head(state_dict))
    names = (f"layer{n}.conv2d_list.0.weight" for n in (6, 5))
    heads = {name: state_dict[name] for name in names if name in state_dict and name not in foreign}
    for name, kernel in {"conv1.weight": stem, **heads}.items():
        if np.ndim(kernel) != 4:
            raise UserError(f"{name} has the shape {np.shape(kernel)}; expected a kernel of 4 axes")
    gate = any(name.startswith("style_reid_laye") for name in state_dict)
    norm = any(_numbers("IN{}", name.partition(".")[0]) for name in state_dict)
    return {
        "num_classes": int(next(iter(heads.values())).shape[0]) if heads else None,
        "stage_sizes": tuple(stage_sizes),
        "width": int(stem.shape[0]),
        "norm_restitution": "snr" if gate else "in" if norm else "none",
    }


@dataclass(frozen=True)
class Account:
    """What became of every tensor, by PyTorch name (by path where there is none)."""

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    groups: tuple[tuple[str, str], ...] = _GROUPS

    def by_group(self) -> dict[str, dict[str, list[str]]]:
        """`{group: {"matched" | "missing" | "unused": names}}`, groups without tensors left out."""
        groups: dict[str, dict[str, list[str]]] = {}
        for label, _pattern in self.groups:
            groups[label] = {"matched": [], "missing": [], "unused": []}
        for kind in ("matched", "missing", "unused"):
            for name in getattr(self, kind):
                label = next(label for label, pattern in self.groups
                             if re.match(pattern, name))
                groups[label][kind].append(name)
        return {label: kinds for label, kinds in groups.items() if any(kinds.values())}

    def __str__(self) -> str:
        lines = [f"{'tensors':<26}{'matched':>9}{'missing':>9}{'unused':>9}"]
        for label, kinds in self.by_group().items():
            lines.append(f"{label:<26}" + "".join(f"{len(names):>9}" for names in kinds.values()))
        counts = (len(self.matched), len(self.missing), len(self.unused))
        lines.append(f"{'all':<26}" + "".join(f"{count:>9}" for count in counts))
        return "\n".join(lines)


def merge(initial: Variables, loaded: Variables, unused: Sequence[str] = ()
          ) -> tuple[Variables, Account]:
    """Initial variables with the loaded ones in their places, and an account of every tensor.

    The result has exactly the tensors of `initial`, loaded values with their own dtype. Missing
    ones keep their initial values; loaded ones without a place are reported as unused, together
    with the names given in `unused`. Raises UserError naming tensors whose shapes differ.
    """
    want, have = flatten_dict(initial), flatten_dict(loaded)
    named = {path: _name_of(path) or ("/".join(path[1:]), (len(_MODULES),)) for path in want | have}
    in_order = sorted(named, key=lambda path: named[path][1])
    label = {path: named[path][0] for path in in_order}
    wrong = [f"{label[path]} has {_torch_shape(path, have[path])}, expected "
             f"{_torch_shape(path, want[path])}" for path in in_order
             if path in have and path in want and np.shape(have[path]) != np.shape(want[path])]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise UserError(f"{len(wrong)} tensors do not fit: {'; '.join(wrong[:5])}{more}. Likely "
                        "cause: another number of classes, width or kind of network; set the "
                        "model to what the file holds")
    account = Account(
        matched=tuple(label[path] for path in in_order if path in want and path in have),
        missing=tuple(label[path] for path in in_order if path not in have),
        unused=(*(label[path] for path in in_order if path not in want), *unused),
    )
    merged = unflatten_dict({path: have.get(path, value) for path, value in want.items()})
    return {name: {} for name in initial} | merged, account


def _torch_shape(path: tuple[str, ...], value: np.ndarray) -> tuple[int, ...]:
    """A tensor's shape as PyTorch shows it."""
    shape = np.shape(value)
    return (*shape[:1:-1], *shape[:2]) if path[-1] == "kernel" and len(shape) == 4 else shape
