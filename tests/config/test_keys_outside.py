"""Keys of the configuration, seen from outside: a changed key changes what a run leaves.

A key of every part that keys arrive at (`test_keys.py` has them all), and every key that the loop
itself reads.
"""

import json
from pathlib import Path

import pytest

from snr_jax.workdir import checkpoints
from tests.config.test_keys import ARRIVES, PARTS, READ_IN_TRAIN

BASE = {
    "num_steps": 2, "eval_every_steps": 9, "checkpoint_every_steps": 9,
    "loss.lambda_seg": 0.1, "loss.threshold": 0.0, "optimizer.base_rate": 0.1,
    "eval.max_images": 2, "source.rare_class_pixels": 1,
}  # fmt: skip
# The keys that only an adaptation reads; it takes twice as long to compile.
ADAPTING = {"target.train_split", "loss.lambda_target"}
MIXING = {"loss.target": "classmix", "loss.lambda_seg": 0.0, "loss.lambda_target": 1.0}
# Key → its other value, and what must go with it.
CHANGES = {
    "seed": {"seed": 1},
    "model.stride_in": {"model.stride_in": "conv2"},
    "data.crop": {"data.crop": (33, 49)},
    "source.domain": {
        "source.domain": "cityscapes", "source.dir": "Cityscapes", "source.train_split": "val",
    },
    "source.train_split": {"source.train_split": "val"},
    "source.val_split": {"source.val_split": "train"},
    "target.train_split": {"target.train_split": "val"},
    "target.val_split": {"target.val_split": ""},
    "freeze_bn": {"freeze_bn": True},
    "optimizer.kind": {"optimizer.kind": "adamw", "optimizer.repeated_updates": False},
    "optimizer.base_rate": {"optimizer.base_rate": 0.05},
    "optimizer.momentum": {"optimizer.momentum": 0.5},
    "optimizer.head_rate": {"optimizer.head_rate": 1.0},
    "loss.lambda_target": {"loss.lambda_target": 0.5},
    "num_steps": {"num_steps": 1},
    "log_every_steps": {"log_every_steps": 2},
    "eval_every_steps": {"eval_every_steps": 1},
    "checkpoint_every_steps": {"checkpoint_every_steps": 1},
    "keep_checkpoints": {"keep_checkpoints": 1, "checkpoint_every_steps": 1},
    # At its random values the network predicts several classes, soon after one alone.
    "eval.flip": {"eval.flip": True, "optimizer.base_rate": 1e-6},
    "source.rare_class_temperature": {"source.rare_class_temperature": 0.01},
    "mix.masked_weight": {"mix.masked_weight": 1.0},
    "mix.statistics": {"mix.statistics": "teacher"},
    "eval.num_pictures": {"eval.num_pictures": 0},
}  # fmt: skip
# What shows the change where it is not the weights.
SHOWN_BY = {
    "source.val_split": "scores", "target.val_split": "scores", "eval.flip": "scores",
    "log_every_steps": "losses", "eval_every_steps": "scores", "checkpoint_every_steps": "states",
    "keep_checkpoints": "states", "eval.num_pictures": "pictures",
}  # fmt: skip


def observed(workdir: Path) -> dict:
    """What a run leaves: its weights, losses, scores, states and whether it drew."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]

    def of(prefix: str) -> list[dict]:
        kept = [
            {k: v for k, v in line.items() if k.startswith(prefix) or k == "step"}
            for line in lines
        ]
        return [line for line in kept if len(line) > 1]

    kept = checkpoints.folder(workdir, "teacher")
    events = sum(path.stat().st_size for path in workdir.rglob("events.*"))
    return {
        "weights": checkpoints.find(workdir / "checkpoints" / "final").meta["checksums"],
        "teacher": checkpoints.find(kept).meta["checksums"] if kept.exists() else None,
        "losses": of("train/loss"),
        "scores": of("eval/"),
        "states": sorted(path.name for path in (workdir / "checkpoints/latest").iterdir()),
        "pictures": events > 20_000,
    }


@pytest.fixture(scope="module")
def runs() -> dict:
    return {}


@pytest.fixture
def run(runs, command, train_flags, tmp_path_factory):
    """run({key: value}) → what a run with BASE and these leaves; made once."""

    def make(changes: dict, fresh: bool = False) -> dict:
        name = repr(sorted(changes.items()))
        if fresh or name not in runs:
            workdir = tmp_path_factory.mktemp("keys") / "run"
            result = command(
                "main", *train_flags("configs/gta5_dg.py", workdir, {**BASE, **changes})
            )
            assert result.code == 0, result
            runs[name] = observed(workdir)
        return runs[name]

    return make


def test_every_part_and_every_key_of_the_loop_is_here():
    places = [place for key in CHANGES for place in ARRIVES.get(key, ())]
    assert {place.partition(".")[0] for place in places} == PARTS.keys()
    assert READ_IN_TRAIN - {"recipe"} <= CHANGES.keys()


def test_equal_runs_are_equal(run):
    assert run({}) == run({}, fresh=True)


@pytest.mark.parametrize("key", CHANGES)
def test_a_changed_key_changes_the_run(key, run):
    adapting = {"loss.target": "iw_maxsquare"} if key in ADAPTING else {}
    adapting = MIXING if key.startswith("mix.") else adapting
    # What must go with the key is in both runs, but for the folder that another domain needs.
    both = {} if key.endswith(".domain") else {k: v for k, v in CHANGES[key].items() if k != key}
    base, changed = run(adapting | both), run(adapting | CHANGES[key])
    shown_by = SHOWN_BY.get(key, "weights")
    assert base[shown_by] != changed[shown_by]
