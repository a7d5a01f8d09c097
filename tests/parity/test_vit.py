"""The transformer, its head and its optimiser against their twin, in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from torch.nn import functional as F

from snr_jax.core.losses import cross_entropy, mean
from snr_jax.core.models.dinov2 import cubic_matrix
from snr_jax.core.models.layers import resize_half_pixel
from snr_jax.core.models.light_head import ViTSegmenter, encoder_size, mask_size
from snr_jax.core.optim import adamw, poly_schedule, vit_groups
from snr_jax.parity.vit import draw_weight
from snr_jax.weights import dinov2_names
from tests.core.tiny import quick_jit
from tests.parity.pair import assert_close, to_nhwc, to_torch
from twin.vit import Segmenter

SHAPE = {"num_classes": 5, "width": 16, "depth": 2, "heads": 2, "grid": 5}
SIZE, BATCH = (45, 64), 2  # inside it is 42x70
EQUAL = (64, 64)  # inside it is 70x70, as the positions


def make_pair(remat: bool = False, **changes) -> tuple[Segmenter, ViTSegmenter, dict]:
    """(twin, model, params in float64) with weights drawn from their names."""
    twin = Segmenter(**SHAPE | changes).double()
    twin.load_state_dict({name: torch.from_numpy(draw_weight(name, tuple(x.shape), "pair"))
                          for name, x in twin.state_dict().items()})
    model = ViTSegmenter(**SHAPE | changes, remat=remat, dtype=jnp.float64)
    tensors = {name: x.numpy() for name, x in twin.state_dict().items()}
    initial = {"params": jax.eval_shape(
        partial(model.init, train=False), jax.random.key(0), jnp.zeros((1, 14, 14, 3)))["params"]}
    variables, account = dinov2_names.fill(initial, tensors)
    assert not account.missing and not account.unused
    return twin, model, jax.tree.map(jnp.asarray, variables["params"])


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape)


def draw_mask(size: tuple[int, int]) -> np.ndarray:
    """Half of the second image's patches."""
    return np.random.default_rng(0).random((BATCH, *mask_size(size))) < np.array(
        [0, 0.5])[:, None, None]


@pytest.mark.parametrize("registers", [0, 4])
def test_logits(registers):
    """Of another size than the positions', which both resize in float32."""
    twin, model, params = make_pair(registers=registers)
    image, mask = random(BATCH, *SIZE, 3), draw_mask(SIZE)
    theirs = twin(to_torch(image), torch.from_numpy(mask).flatten(1))
    apply = quick_jit(partial(model.apply, train=False))
    ours = apply({"params": params}, image, mask=mask).main
    assert_close({"logits": ours}, {"logits": to_nhwc(theirs)}, 1e-5)


def test_training_steps():
    """Gradients of all tensors and PyTorch's AdamW over a warm-up and what follows it."""
    twin, model, params = make_pair(remat=True, depth=1)
    image, mask = random(BATCH, *EQUAL, 3), draw_mask(EQUAL)
    label = np.random.default_rng(0).integers(0, SHAPE["num_classes"], (BATCH, *EQUAL))
    rates = [0.1 * x for x in (1e-3, 1.0, 1 - 2 / 4, 1 - 3 / 4)]

    theirs = torch.optim.AdamW([{"params": twin.encoder.parameters(), "part": 0.1},
                                {"params": [*twin.upscale.parameters(), *twin.out.parameters()],
                                 "part": 1.0}], weight_decay=0.01)
    schedule = poly_schedule(0.1, 4, 1.0, warmup_steps=2)
    ours = adamw(schedule, vit_groups(masked_tokens=True), weight_decay=0.01)
    state = ours.init(params)

    @quick_jit
    def gradient(params):
        def loss(params):
            output = model.apply({"params": params}, image, train=True, mask=mask)
            return mean(cross_entropy(output.main, label))
        return jax.value_and_grad(loss)(params)

    update = quick_jit(ours.update)
    for i, rate in enumerate(rates):
        for group in theirs.param_groups:
            group["lr"] = group["part"] * rate
        theirs.zero_grad()
        loss = F.cross_entropy(twin(to_torch(image), torch.from_numpy(mask).flatten(1)),
                               torch.from_numpy(label))
        loss.backward()
        value, gradients = gradient(params)
        assert float(schedule(jnp.asarray(i))) == pytest.approx(rate, rel=1e-14)
        assert_close({"loss": value}, {"loss": loss.detach().numpy()}, 1e-9)
        assert_close(dinov2_names.to_segmenter({"params": gradients}),
                     {name: x.grad.numpy() for name, x in twin.named_parameters()}, 1e-6)
        theirs.step()
        updates, state = update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    after = {name: x.detach().numpy() for name, x in twin.named_parameters()}
    assert_close(dinov2_names.to_segmenter({"params": params}), after, 1e-6)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("size_in", [5, 37])
@pytest.mark.parametrize("size_out", [1, 4, 5, 36, 38, 80])
def test_cubic_matrix(size_in, size_out, antialias):
    """PyTorch's resize of the unit vectors, along one axis."""
    x = torch.eye(size_in)[:, None, None].repeat(1, 1, size_in, 1)
    how = ({"size": (size_in, size_out), "antialias": True} if antialias else
           {"scale_factor": (1.0, (size_out + 0.1) / size_in)})
    theirs = F.interpolate(x, mode="bicubic", **how)[:, 0, size_in // 2].numpy().T
    ours = cubic_matrix(size_in, size_out, offset=0.0 if antialias else 0.1, antialias=antialias)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize(("size", "out"), [
    ((9, 13), (65, 97)), ((5, 8), (5, 8)), ((1, 4), (3, 1)), ((12, 7), (6, 5))])
def test_resize_half_pixel(size, out):
    x, weight = random(2, *size, 3), random(2, *out, 3)
    theirs = to_torch(x).requires_grad_()
    resized = F.interpolate(theirs, out, mode="bilinear", align_corners=False)
    gradient, = torch.autograd.grad((resized * to_torch(weight)).sum(), theirs)
    ours, pullback = jax.vjp(lambda x: resize_half_pixel(x, out), x)
    assert_close({"y": ours, "dx": pullback(weight)[0]},
                 {"y": to_nhwc(resized), "dx": to_nhwc(gradient)}, 1e-12)


def test_encoder_size():
    assert encoder_size((1024, 1024)) == (1120, 1120) and mask_size((1024, 2048)) == (80, 160)
    assert encoder_size(SIZE) == (42, 70) and encoder_size(EQUAL) == (70, 70)
    with pytest.raises(ValueError, match="12x64: expected sides of 14"):
        encoder_size((12, 64))
