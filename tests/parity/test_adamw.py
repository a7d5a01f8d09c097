"""AdamW and its schedule against PyTorch's, and against numbers of the published code."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from snr_jax.core import losses, optim
from snr_jax.core.optim import Group
from snr_jax.parity.golden import generator, nhwc

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden_vit" / "vit.npz"
GROUPS = ((r"encoder/.*", Group(0.1, 1)), (r"out/.*", Group(1.0, 1)))
BASE_RATE, STEPS, WARMUP = 3e-3, 12, 5


def test_steps_are_pytorchs():
    """Twelve, with warm-up, of a backbone and a head; torch's rates from numpy's linspace."""
    random = np.random.default_rng(0)
    start = {name: random.normal(size=(4, 3)) for name in ("encoder", "out")}
    theirs = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in start.items()}
    optimizer = torch.optim.AdamW(
        [{"params": [theirs["encoder"]], "lr": 0.1 * BASE_RATE},
         {"params": [theirs["out"]], "lr": BASE_RATE}], betas=(0.8, 0.99), weight_decay=0.05)
    shares = np.concatenate([np.linspace(1e-3, 1, WARMUP),
                             np.linspace(1, 0, STEPS + 1)[WARMUP:]])
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: shares[step])
    tx = optim.adamw(optim.poly_schedule(BASE_RATE, STEPS, 1.0, WARMUP), GROUPS,
                     betas=(0.8, 0.99), weight_decay=0.05)
    ours = {name: {"kernel": jnp.asarray(value)} for name, value in start.items()}
    state, update = tx.init(ours), jax.jit(tx.update)
    for _ in range(STEPS):
        gradients = {name: random.normal(size=(4, 3)) for name in start}
        for name, parameter in theirs.items():
            parameter.grad = torch.tensor(gradients[name])
        optimizer.step()
        scheduler.step()
        updates, state = update(
            {name: {"kernel": jnp.asarray(g)} for name, g in gradients.items()}, state, ours)
        ours = optax.apply_updates(ours, updates)
        for name, parameter in theirs.items():
            moved = parameter.detach().numpy() - start[name]
            np.testing.assert_allclose(ours[name]["kernel"] - start[name], moved, rtol=1e-9)


@pytest.fixture
def golden():
    if not GOLDEN.exists():
        pytest.skip(f"{GOLDEN} is not there")
    return np.load(GOLDEN)


def test_the_published_rates(golden):
    """Of decoder and encoder in three steps of 20, 4 of them a warm-up, at a batch of 2."""
    schedule = optim.poly_schedule(5e-5 * np.sqrt(2), 20, 1.0, 4)
    for step in range(3):
        rate = float(schedule(step))
        np.testing.assert_allclose([rate, 0.1 * rate], golden[f"training/rate/{step}"], rtol=1e-12)


def test_the_published_masked_loss(golden):
    """Of the published logits; the file holds them in float32."""
    logits = golden["segmenter/masked/logits"]
    shape = (logits.shape[0], *logits.shape[2:])
    label = generator("seg_labels", "dev").integers(0, logits.shape[1], shape)
    label[generator("seg_labels/ignore", "dev").random(shape) < 0.1] = 255
    weight = generator("seg_weight", "dev").random(shape).astype(np.float32)
    found = losses.mean(losses.weighted_cross_entropy(nhwc(logits), label, weight))
    assert float(found) == pytest.approx(float(golden["segmenter/masked/loss"]), rel=1e-7)
