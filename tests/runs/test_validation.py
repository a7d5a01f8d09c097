"""Which variables are kept as the best: a rule on numbers, and the folders it rules."""

import math
from pathlib import Path

import pytest

from snr_jax.core.models.backbone import architecture
from snr_jax.core.models.deeplab import DeepLab
from snr_jax.core.state import initial_variables
from snr_jax.data.splits import Split
from snr_jax.runs import validation
from snr_jax.workdir import checkpoints
from snr_jax.workdir.run import Run
from tests.commands import said

MODEL = DeepLab(stage_sizes=(1, 1, 1, 1), width=4)
VARIABLES = initial_variables(MODEL, 0)
SPLITS = {
    "source": Split("gta5", "gta5", "train", (33, 65), [], None),
    "source_val": Split("gta5", "gta5", "val", (33, 65), [], None),
    "target_val": Split("cityscapes", "cityscapes", "val", (33, 65), [], None),
}


def meta(step: int, gta5: float, cityscapes: float = 0.5, **settings) -> dict:
    scores = {
        name: {"settings": {"flip": False, "images": 500, **settings, "step": step}, "miou": miou}
        for name, miou in (("gta5", gta5), ("cityscapes", cityscapes))
    }
    return {"model": architecture(MODEL), "source": {"step": step}, "scores": scores}


@pytest.mark.parametrize(
    "best, new, expected",
    [
        (meta(10, 0.3), meta(20, 0.4), True),
        (meta(10, 0.4), meta(20, 0.3), False),
        (meta(10, 0.4), meta(20, 0.4), False),  # the earlier of equals
        (meta(20, 0.4), meta(20, 0.4), True),  # a validation made again
        (meta(30, 0.9), meta(20, 0.1), True),  # of steps that were lost
        (meta(10, math.nan), meta(20, 0.1), True),
        (meta(10, 0.1), meta(20, math.nan), False),
        (meta(10, math.nan), meta(20, math.nan), False),
        # The other domain disagrees, and has no say.
        (meta(10, 0.3, 0.9), meta(20, 0.4, 0.1), True),
        (meta(10, 0.4, 0.1), meta(20, 0.3, 0.9), False),
    ],
)
def test_which_is_better(best, new, expected):
    assert validation.is_better(best, new, "gta5") is expected


def test_each_domain_has_its_own_best():
    best, new = meta(10, 0.3, 0.9), meta(20, 0.4, 0.1)
    assert validation.is_better(best, new, "gta5")
    assert not validation.is_better(best, new, "cityscapes")


def keep(workdir: Path, new: dict, splits=SPLITS) -> list[str]:
    with said() as lines:
        validation.keep_best(Run(None, str(workdir), splits), VARIABLES, new)
    return lines


def kept(workdir: Path) -> dict[str, int]:
    found = (checkpoints.folder(workdir, name) for name in ("best_source", "oracle_target"))
    return {path.name: checkpoints.find(path).step for path in found if path.exists()}


def test_source_and_target_that_disagree(tmp_path):
    """Source rises while target falls, then the other way."""
    for step, source, target, best in (
        (10, 0.3, 0.5, (10, 10)), (20, 0.4, 0.4, (20, 10)), (30, 0.2, 0.6, (20, 30)),
        (40, 0.1, 0.1, (20, 30)),
    ):  # fmt: skip
        assert keep(tmp_path, meta(step, source, target)) == []
        assert kept(tmp_path) == dict(zip(("best_source", "oracle_target"), best, strict=True))


def test_without_target_labels_there_is_no_oracle(tmp_path):
    keep(tmp_path, meta(10, 0.3), {k: v for k, v in SPLITS.items() if k != "target_val"})
    assert kept(tmp_path) == {"best_source": 10}


@pytest.mark.parametrize("settings", [{"flip": True}, {"images": 10}, {"size": [1, 2]}])
def test_scores_of_other_settings_are_never_compared(tmp_path, settings):
    keep(tmp_path, meta(10, 0.9, 0.9))
    lines = keep(tmp_path, meta(20, 0.1, 0.1, **settings))
    assert kept(tmp_path) == {"best_source": 20, "oracle_target": 20}
    (name, value), path = next(iter(settings.items())), checkpoints.folder(tmp_path, "best_source")
    assert lines[0].startswith(f"WARNING: {path} cannot be compared: its score of gta5 is with ")
    assert f"{name} " in lines[0] and f"not {value!r}" in lines[0]
    assert "set aside" in lines[1]
    aside = checkpoints.find(checkpoints.folder(tmp_path, "set_aside") / "best_source-1")
    assert aside.step == 10


@pytest.mark.parametrize("scores", [{}, {"gta5": {}}, {"gta5": {"settings": {"step": 1}}}])
def test_a_best_without_a_score_is_set_aside(tmp_path, scores):
    broken = {**meta(10, 0.9), "scores": scores}
    path = checkpoints.folder(tmp_path, "best_source")
    checkpoints.save_variables(path, VARIABLES, broken)
    lines = keep(tmp_path, meta(20, 0.1))
    assert "it has no score of gta5" in lines[0] and kept(tmp_path)["best_source"] == 20
    assert len(lines) == 2
