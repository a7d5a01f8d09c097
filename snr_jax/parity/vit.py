"""The transformer, its head and three of its training steps against golden numbers.

    shapes_vit_<kind>.json, shapes_segmenter.json   {tensor name: shape}
    vit.npz   vit/<kind>/<h>x<w>/<cls|patch_tokens|masked>: tokens of a normalised image
              segmenter/<eval|supervised|masked>/<logits|loss|grad/<tensor>|grad_norm/<tensor>>
              training/<rate|loss>/<i>, training/<delta_norm|ema_delta_norm|after>/<tensor>

How many heads the attention has stands in no shape: it is the number with which the first tokens
agree best.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from snr_jax.core.errors import UserError
from snr_jax.core.labels import IGNORE
from snr_jax.core.losses import cross_entropy, mean, weighted_cross_entropy
from snr_jax.core.models.dinov2 import DINOv2
from snr_jax.core.models.light_head import ViTSegmenter, mask_size
from snr_jax.core.optim import adamw, poly_schedule, vit_groups
from snr_jax.core.self_training import teacher_share
from snr_jax.core.state import variable_shapes
from snr_jax.parity.compare import FLOAT64, ROUNDED, Row, error
from snr_jax.parity.golden import Arrays, draw_tensor, generator, load_shapes, nchw, nhwc
from snr_jax.parity.training import TRAINED
from snr_jax.weights import dinov2_names

MASKED = {"vit": 0.4, "segmenter": 0.7}  # share of the patches
MOMENTUM, BASE_RATE, DECAY = 0.999, 5e-5, 0.01
WARMUP_STEPS, NUM_STEPS = 4, 20
# Compiling is nearly all of the time.
quick_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
TOKENS = ("cls_token", "mask_token", "pos_embed", "register_tokens")


def draw_weight(name: str, shape: tuple[int, ...], salt: str) -> np.ndarray:
    """A tensor of the transformer or its head, float32, in the PyTorch layout."""
    leaf = name.rsplit(".", 1)[-1]
    if leaf in TOKENS:
        return (0.2 * generator(name, salt).standard_normal(shape)).astype(np.float32)
    value = draw_tensor(name, shape, salt)
    return value / 2 if leaf == "gamma" else value


class Golden(NamedTuple):
    """A folder: its arrays, and what all of its networks are drawn with."""

    folder: Path
    arrays: Arrays
    salt: str

    def weights(self, kind: str) -> dict[str, np.ndarray]:
        """The drawn state dict of shapes_<kind>.json, float32."""
        shapes = load_shapes(self.folder / f"shapes_{kind}.json")
        return {name: draw_weight(name, shape, self.salt) for name, shape in shapes.items()}

    def image(self, name: str, shape: tuple[int, ...]) -> jax.Array:
        """A normalised image float64 [N,H,W,3] (of float32 numbers); shape [N,3,H,W]."""
        return nhwc(generator(name, self.salt).standard_normal(shape).astype(np.float32))

    def mask(self, name: str, size: tuple[int, int], batch: int, share: float) -> jax.Array:
        """The masked patches, bool [N,h,w]."""
        drawn = generator(name, self.salt).random((batch, size[0] * size[1])) < share
        return jnp.asarray(drawn.reshape(batch, *size))


def load(
    golden: Golden, kind: str, heads: int
) -> tuple[dict, dict, dict[str, np.ndarray]]:
    """(arguments of `ViTSegmenter`, params in float64, state dict) of shapes_<kind>.json."""
    path, state_dict = golden.folder / f"shapes_{kind}.json", golden.weights(kind)
    try:
        found = dinov2_names.read_names(state_dict)
        arguments = dinov2_names.infer_architecture(found.tensors, heads)
        arguments["num_classes"] = arguments["num_classes"] or 1
        initial = variable_shapes(ViTSegmenter(**arguments))
        if kind != "segmenter":
            initial["params"].pop("head")
        variables, account = dinov2_names.fill(initial, found.tensors, found.unused)
    except UserError as problem:
        raise UserError(f"{path}: {problem}") from None
    if strange := (*account.missing, *account.unused):
        raise UserError(f"{path}: {len(account.missing)} tensors missing, {len(account.unused)} of "
                        f"no known place ({', '.join(strange[:3])}); expected those of the "
                        "published network")
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), variables["params"])
    return arguments, params, state_dict


def _tokens(golden: Golden, kind: str, heads: int, size: str, masked: bool) -> dict[str, jax.Array]:
    """What the backbone makes of the image of a size: {"cls", "patch_tokens"}, or {"masked"}."""
    arguments, params, _ = load(golden, f"vit_{kind}", heads)
    arguments.pop("num_classes")
    height, width = map(int, size.split("x"))
    image = golden.image(f"vit_input/{size}", (1, 3, height, width))
    grid = (height // arguments["patch"], width // arguments["patch"])
    mask = golden.mask("vit_mask", grid, 1, MASKED["vit"]) if masked else None
    model = DINOv2(**arguments, dtype=jnp.float64)
    tokens = quick_jit(model.apply)({"params": params["encoder"]}, image, mask)
    patches = tokens.patches.reshape(1, -1, arguments["width"])
    return {"masked": patches} if masked else {"patch_tokens": patches, "cls": tokens.cls}


def find_heads(golden: Golden) -> int:
    """The number of heads with which the first tokens of the folder agree best."""
    key = next((key for key in golden.arrays if key.endswith("/cls")), None)
    if key is None:
        raise UserError(f"{golden.arrays.path}: no array vit/<kind>/<h>x<w>/cls to find the number "
                        "of heads with; copy the folder again")
    _, kind, size, _ = key.split("/")
    width = golden.arrays[key].shape[-1]

    def distance(heads: int) -> float:
        return error(_tokens(golden, kind, heads, size, False)["cls"], golden.arrays[key])

    return min((n for n in range(1, width // 4 + 1) if width % n == 0), key=distance)


def compare_vit(arrays: Arrays, folder: Path, salt: str) -> Iterator[Row]:
    """Tokens, logits, gradients and training steps."""
    golden = Golden(folder, arrays, salt)
    heads = find_heads(golden)
    found = (re.fullmatch(r"(vit/([^/]+)/(\d+x\d+))/(cls|masked)", key) for key in arrays)
    for match in filter(None, found):
        ours = _tokens(golden, match[2], heads, match[3], match[4] == "masked")
        errors = {key: error(value, arrays[key]) for name, value in ours.items()
                  if (key := f"{match[1]}/{name}") in arrays}
        yield Row(match[0].replace("cls", "tokens"), errors, ROUNDED)
    if any(key.startswith("segmenter/") for key in arrays):
        yield from _Steps(golden, heads).rows()


class _Steps:
    """The segmenter on the folder's batch: its two losses, their gradients, and training steps."""

    def __init__(self, golden: Golden, heads: int) -> None:
        self.arrays = golden.arrays
        arguments, self.params, self.before = load(golden, "segmenter", heads)
        self.model = ViTSegmenter(**arguments, dtype=jnp.float64)
        batch, classes, *size = self.arrays["segmenter/eval/logits"].shape
        self.image = golden.image("seg_input", (batch, 3, *size))
        shape = (batch, *size)
        label = generator("seg_labels", golden.salt).integers(0, classes, shape)
        ignored = generator("seg_labels/ignore", golden.salt).random(shape) < 0.1
        self.label = jnp.asarray(np.where(ignored, IGNORE, label))
        weight = generator("seg_weight", golden.salt).random(shape).astype(np.float32)
        self.weight = jnp.asarray(weight, jnp.float64)
        patches = mask_size(size, arguments["patch"])
        self.mask = golden.mask("seg_token_mask", patches, batch, MASKED["segmenter"])

    def rows(self) -> Iterator[Row]:
        """Rows of the segmenter's arrays, then of the training's."""
        forward = quick_jit(partial(self.model.apply, train=False))
        logits = forward({"params": self.params}, self.image).main
        key = "segmenter/eval/logits"
        yield Row(key, {key: error(nchw(logits), self.arrays[key])}, ROUNDED)
        losses = self.losses()
        for name, loss in losses.items():
            (value, logits), gradients = loss(self.params)
            yield from self.gradient_rows(f"segmenter/{name}", value, logits, gradients)
        if any(key.startswith("training/") for key in self.arrays):
            yield from self.training_rows(losses.values())

    def losses(self) -> dict[str, Callable]:
        """f(params) → ((loss, logits), gradients), of the source and of masked consistency."""

        def supervised(params: dict) -> tuple[jax.Array, jax.Array]:
            logits = self.model.apply({"params": params}, self.image, train=True).main
            return mean(cross_entropy(logits, self.label)), logits

        def masked(params: dict) -> tuple[jax.Array, jax.Array]:
            logits = self.model.apply(
                {"params": params}, self.image, train=True, mask=self.mask).main
            return mean(weighted_cross_entropy(logits, self.label, self.weight)), logits

        return {loss.__name__: quick_jit(jax.value_and_grad(loss, has_aux=True))
                for loss in (supervised, masked)}

    def gradient_rows(
        self, title: str, value: jax.Array, logits: jax.Array, gradients: dict
    ) -> Iterator[Row]:
        """Rows of a loss, its logits and its gradients."""
        key = f"{title}/logits"
        yield Row(key, {key: error(nchw(logits), self.arrays[key])}, ROUNDED)
        key = f"{title}/loss"
        yield Row(key, {key: error(value, self.arrays[key])}, FLOAT64)
        found = dinov2_names.to_segmenter({"params": gradients})
        norms = {f"{title}/grad_norm/{name}": np.linalg.norm(x) for name, x in found.items()}
        yield self._row(f"{title}/norms of gradients", norms, FLOAT64)
        values = {f"{title}/grad/{name}": x.reshape(-1) for name, x in found.items()}
        yield self._row(f"{title}/gradients", values, FLOAT64)

    def _row(self, title: str, ours: dict[str, np.ndarray], tolerance: float) -> Row:
        """A row of those arrays that the folder has, of each as many values as it holds."""
        kept = {key: value for key, value in ours.items() if key in self.arrays}
        errors = {key: error(np.asarray(value).reshape(-1)[: self.arrays[key].size],
                             self.arrays[key].reshape(-1)) for key, value in kept.items()}
        return Row(title, errors, tolerance)

    def training_rows(self, parts: Iterable[Callable]) -> Iterator[Row]:
        """Rows of the steps' losses and rates, and of what they made of student and teacher."""
        schedule = poly_schedule(BASE_RATE * np.sqrt(len(self.image)), NUM_STEPS, 1.0,
                                 warmup_steps=WARMUP_STEPS)
        optimizer = adamw(schedule, vit_groups(masked_tokens=True), weight_decay=DECAY)
        update = quick_jit(optimizer.update)
        student, teacher, state = self.params, self.params, optimizer.init(self.params)
        for i in range(sum(key.startswith("training/loss/") for key in self.arrays)):
            found = [loss(student) for loss in parts]
            gradients = jax.tree.map(jnp.add, *(gradients for _, gradients in found))
            updates, state = update(gradients, state, student)
            student = optax.apply_updates(student, updates)
            keep = teacher_share(jnp.asarray(i + 1), MOMENTUM)  # its counter has moved by then
            teacher = optax.incremental_update(student, teacher, 1 - keep)
            rates = [float(schedule(jnp.asarray(i))) * rate for rate in (1, 0.1)]
            values = [float(loss) for (loss, _), _ in found]
            ours = {f"training/loss/{i}": np.array(values), f"training/rate/{i}": np.array(rates)}
            yield self._row(f"training/step {i}", ours, FLOAT64)
        yield from self._change_rows(student, teacher)

    def _change_rows(self, student: dict, teacher: dict) -> Iterator[Row]:
        """Rows of how far each tensor went, and of the first values of some, against their way."""
        before = {name: value.astype(np.float64) for name, value in self.before.items()}
        before["encoder.mask_token"] = before["token_masking.mask_token"]  # one tensor
        for word, params in (("delta_norm", student), ("ema_delta_norm", teacher)):
            after = dinov2_names.to_segmenter({"params": params})
            norms = {f"training/{word}/{name}": np.linalg.norm(value - before[name])
                     for name, value in after.items()}
            yield self._row(f"training/{word}", norms, TRAINED)
        errors = {}
        for name, value in dinov2_names.to_segmenter({"params": student}).items():
            if (key := f"training/after/{name}") in self.arrays:
                golden = self.arrays[key].reshape(-1)
                ours, start = (x.reshape(-1)[: golden.size] for x in (value, before[name]))
                errors[key] = error(ours, golden, scale=golden - start)
        yield Row("training/after", errors, TRAINED)
