"""Every key of the configuration, seen from outside: a changed key changes what a run leaves."""

import json
from pathlib import Path

import pytest

from snr_jax.config.keys import KEYS
from snr_jax.workdir import checkpoints

BASE = {
    "num_steps": 2, "eval_every_steps": 9, "checkpoint_every_steps": 9,
    "loss.lambda_seg": 0.1, "loss.threshold": 0.0, "optimizer.base_rate": 0.1,
    "eval.max_images": 2, "source.rare_class_pixels": 1,
}  # fmt: skip
# The keys that only an adaptation reads; it takes twice as long to compile.
ADAPTING = {
    "target.domain", "target.train_split", "target.size", "loss.target", "loss.lambda_target",
    "loss.threshold", "loss.iw_ratio",
}  # fmt: skip
MIXING = {"loss.target": "classmix", "loss.lambda_seg": 0.0, "loss.lambda_target": 1.0}
# Key → its other value, and what must go with it.
CHANGES = {
    "seed": {"seed": 1},
    "num_classes": {"num_classes": 16},
    "model.norm_restitution": {"model.norm_restitution": "in"},
    "model.stage_sizes": {"model.stage_sizes": (1, 1, 1, 2)},
    "model.width": {"model.width": 5},
    "model.head_branches": {"model.head_branches": 4},
    "model.stride_in": {"model.stride_in": "conv2"},
    "model.dtype": {"model.dtype": "bfloat16"},
    "data.scale_range": {"data.scale_range": (1.2, 1.5)},
    "data.crop": {"data.crop": (33, 49)},
    "source.domain": {
        "source.domain": "cityscapes", "source.dir": "Cityscapes", "source.train_split": "val",
    },
    "source.train_split": {"source.train_split": "val"},
    "source.val_split": {"source.val_split": "train"},
    "source.size": {"source.size": (33, 49)},
    "target.domain": {
        "target.domain": "gta5", "target.dir": "GTA5", "target.train_split": "train",
    },
    "target.train_split": {"target.train_split": "val"},
    "target.val_split": {"target.val_split": ""},
    "target.size": {"target.size": (33, 49)},
    "batch_size": {"batch_size": 1},
    "accumulate_steps": {"accumulate_steps": 2},
    "freeze_bn": {"freeze_bn": True},
    "optimizer.base_rate": {"optimizer.base_rate": 0.05},
    "optimizer.schedule_steps": {"optimizer.schedule_steps": 2},
    "optimizer.momentum": {"optimizer.momentum": 0.5},
    "optimizer.weight_decay": {"optimizer.weight_decay": 0.1},
    "optimizer.head_rate": {"optimizer.head_rate": 1.0},
    "optimizer.snr_rate": {"optimizer.snr_rate": 5.0},
    "optimizer.train_snr": {"optimizer.train_snr": False},
    "optimizer.repeated_updates": {"optimizer.repeated_updates": False},
    "loss.restitution_weight": {"loss.restitution_weight": 1.0},
    "loss.lambda_seg": {"loss.lambda_seg": 0.5},
    "loss.target": {"loss.target": "entropy"},
    "loss.lambda_target": {"loss.lambda_target": 0.5},
    "loss.threshold": {"loss.threshold": 1.0},
    "loss.iw_ratio": {"loss.iw_ratio": 0.8},
    "num_steps": {"num_steps": 1},
    "log_every_steps": {"log_every_steps": 2},
    "eval_every_steps": {"eval_every_steps": 1},
    "checkpoint_every_steps": {"checkpoint_every_steps": 1},
    "keep_checkpoints": {"keep_checkpoints": 1, "checkpoint_every_steps": 1},
    # At its random values the network predicts several classes, soon after one alone.
    "eval.flip": {"eval.flip": True, "optimizer.base_rate": 1e-6},
    "data.mirror": {"data.mirror": False},
    "data.blur": {"data.blur": False},
    "source.rare_class_temperature": {"source.rare_class_temperature": 0.01},
    "source.rare_class_pixels": {
        "source.rare_class_pixels": 130, "source.rare_class_temperature": 0.01},
    "mix.teacher_momentum": {"mix.teacher_momentum": 0.1},
    "mix.teacher_mode": {"mix.teacher_mode": "eval", "mix.threshold": 0.055},
    # From this probability on some pixels of an untrained network of 19 classes are sure.
    "mix.threshold": {"mix.threshold": 0.055},
    "mix.weight": {"mix.weight": "pixel", "mix.threshold": 0.1},
    "mix.class_share": {"mix.class_share": 0.1, "mix.threshold": 0.055},
    "mix.rows_left_out": {"mix.rows_left_out": (3, 5), "mix.threshold": 0.055},
    "mix.statistics": {"mix.statistics": "teacher"},
    "mix.jitter": {"mix.jitter": False},
    "mix.blur": {"mix.blur": False},
    "eval.max_images": {"eval.max_images": 1},
    "eval.num_pictures": {"eval.num_pictures": 0},
}  # fmt: skip
# What shows the change where it is not the weights.
SHOWN_BY = {
    "source.val_split": "scores", "target.val_split": "scores", "eval.flip": "scores",
    "eval.max_images": "scores", "log_every_steps": "losses", "eval_every_steps": "scores",
    "checkpoint_every_steps": "states", "keep_checkpoints": "states",
    "eval.num_pictures": "pictures", "mix.teacher_momentum": "teacher",
}  # fmt: skip
# Elsewhere: paths (test_main.py: a folder that is not there is named; init_from in test_train.py),
# and what changes how a result is computed but not which (test_keys.py).
NOT_SHOWN = {
    "recipe", "init_from", "data.root", "data.prepared", "source.dir", "target.dir", "model.atrous",
    "model.remat", "sync_batch_norm", "eval.batch_size",
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


def test_every_key_is_here_or_named():
    assert CHANGES.keys() | NOT_SHOWN == KEYS.keys() and not CHANGES.keys() & NOT_SHOWN


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
