"""The probe of scripts/toy_probe.py: what it reads, and that its columns have their names."""

import jax.numpy as jnp
import numpy as np
import pytest

from scripts import toy_probe
from snr_jax.core.models.backbone import architecture
from snr_jax.core.state import initial_variables
from snr_jax.toy import writer
from snr_jax.workdir import checkpoints
from tests.core.tiny import network


def test_accuracy_of_what_is_there_and_of_noise():
    rng = np.random.default_rng(0)
    green, green_val = rng.random(300) < 0.5, rng.random(200) < 0.5

    def numbers(of: np.ndarray, strength: float) -> np.ndarray:
        return rng.normal(size=(len(of), 8)) + strength * of[:, None]

    read = toy_probe.accuracy(numbers(green, 3), green, numbers(green_val, 3), green_val)
    guessed = toy_probe.accuracy(numbers(green, 0), green, numbers(green_val, 0), green_val)
    assert read > 0.98 and 0.35 < guessed < 0.65


def test_the_three_kinds_tell_apart_what_differs():
    flat = np.array([0.0, 2.0]).repeat(32).reshape(1, 8, 8, 1)  # mean 1, deviation 1, no skew
    skewed = flat.copy()
    skewed[0, 0, 0, 0] = 10
    numbers, others = (toy_probe.describe(x) for x in (flat, flat + 1))
    assert others["mean"] - numbers["mean"] == pytest.approx(1)
    assert others["deviation"] == pytest.approx(numbers["deviation"])
    assert numbers["shape"][0] == pytest.approx([1, 4])  # mean of what is positive, of x cubed
    assert (toy_probe.describe(skewed)["shape"] > numbers["shape"]).all()


def test_columns_stand_under_their_names(tmp_path, monkeypatch, capsys, cache):
    writer.write("gta5", tmp_path / "GTA5", style="source", num_train=2, num_val=2, seed=3,
                 height=64, width=128, content="tint")
    model = network(norm_restitution="in")
    meta = {"model": architecture(model)}
    checkpoints.save_variables(tmp_path / "network", initial_variables(model, 0), meta)
    number = {kind: i + 1.0 for i, kind in enumerate(toy_probe.KINDS)}
    monkeypatch.setattr(toy_probe, "describe", lambda features: {
        kind: jnp.full((len(features), 1), number[kind]) for kind in sorted(number)})
    monkeypatch.setattr(toy_probe, "accuracy", lambda x, *others: float(x[0, 0]))
    assert toy_probe.main(["", f"--data={tmp_path}", f"--checkpoint={tmp_path / 'network'}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "| | mean | deviation | shape |" in lines
    rows = [line for line in lines if line.startswith("| layer")]
    assert len(rows) == 6 and all(row.endswith("| 100% | 200% | 300% |") for row in rows)


def test_a_network_without_blocks_is_refused(tmp_path, capsys, cache):
    model = network(norm_restitution="none")
    meta = {"model": architecture(model)}
    checkpoints.save_variables(tmp_path / "network", initial_variables(model, 0), meta)
    args = [f"--data={tmp_path}", f"--checkpoint={tmp_path / 'network'}"]
    assert toy_probe.main(["", *args]) == 2
    assert "has no SNR blocks" in capsys.readouterr().err
