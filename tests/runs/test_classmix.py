"""A run of self-training with class mixing: two networks, kept, scored and gone on with."""

import json
import shutil
import signal

import numpy as np
import pytest

from snr_jax.data import rare
from snr_jax.report.tables import percent
from snr_jax.studies.comparison import compare, rows
from snr_jax.workdir import checkpoints
from tests.commands import ADAPT, once
from tests.runs.test_train import assert_same_state, losses_of, state_of, wait_for

MIXED = {
    "loss.target": "classmix", "loss.lambda_target": 1.0, "mix.threshold": 0.055,
    "data.crop": (33, 49), "data.scale_range": (0.75, 1.5), "num_steps": 12,
    "eval_every_steps": 6, "checkpoint_every_steps": 5, "source.rare_class_temperature": 0.01,
    "source.rare_class_pixels": 1, "data.jitter": "robustnet", "data.strong_blur": True,
    "data.crop_class_share": 0.75, "mix.masked_weight": 1.0, "mix.teacher_flip": True,
    "mix.rim_left_out": (0.03, 0.25, 0.03, 0.03), "optimizer.kind": "adamw",
    "optimizer.repeated_updates": False, "optimizer.warmup_steps": 4,
}  # fmt: skip


@pytest.fixture
def mixed(shared_runs, command, train_flags, tmp_path_factory, generalised):
    """The run of 12 steps from `generalised`, made once."""

    overrides = {"init_from": generalised.workdir, **MIXED}
    return once(shared_runs, "mix", command, train_flags, tmp_path_factory, ADAPT, overrides)


def test_a_network_of_another_kind_is_refused_before_labels_are_counted(
    generalised, refused, train_flags, tmp_path, monkeypatch
):
    monkeypatch.setattr(rare, "count_classes", lambda *_, **__: pytest.fail("labels were read"))
    overrides = {**MIXED, "init_from": generalised.workdir, "model.width": 16}
    error = refused("main", *train_flags(ADAPT, tmp_path / "run", overrides))
    assert "width" in error and str(generalised.workdir) in error


def test_killed_and_started_again_equals_no_interruption(mixed, process, command, tmp_path):
    """The teacher is part of the state: SIGKILL after the checkpoint of step 5."""
    workdir = tmp_path / "killed"
    arguments = mixed.arguments_in(workdir)
    latest = checkpoints.folder(workdir, "latest")
    running = process("main", *arguments)
    wait_for((latest / "5").exists, running)
    running.kill()
    running.communicate()
    assert running.returncode == -signal.SIGKILL
    result = command("main", *arguments)
    assert result.code == 0 and "going on from the checkpoint of step" in result.out
    assert_same_state(mixed.workdir, workdir, step=12)
    assert any(key.startswith("['teacher']['params']") for key in state_of(workdir, 12))
    assert losses_of(workdir) == losses_of(mixed.workdir)
    sums = [checkpoints.find(w / "checkpoints/teacher").meta["checksums"]
            for w in (workdir, mixed.workdir)]
    assert sums[0] == sums[1]


def test_both_networks_are_kept_and_scored(mixed):
    final, teacher = (checkpoints.find(mixed.workdir / "checkpoints" / name)
                      for name in ("final", "teacher"))
    assert checkpoints.find(mixed.workdir).path == final.path  # the student is the run's network
    assert final.step == teacher.step == 12
    scores = final.meta["scores"]
    assert scores.keys() == {"gta5", "cityscapes", "gta5_teacher", "cityscapes_teacher"}
    assert scores == teacher.meta["scores"]
    state = state_of(mixed.workdir, 12)
    for item, checkpoint in (("variables", final), ("teacher", teacher)):
        variables, _ = checkpoints.load_variables(checkpoint)
        kept = state[f"['{item}']['params']['conv1']['kernel']"]
        np.testing.assert_array_equal(variables["params"]["conv1"]["kernel"], kept)
    lines = [json.loads(line) for line in (mixed.workdir / "metrics.jsonl").read_text().split("\n")
             if "teacher/network/miou" in line]
    assert [line["step"] for line in lines] == [6, 12]
    assert lines[-1]["eval/cityscapes_teacher/network/miou"] == scores["cityscapes_teacher"]["miou"]


def test_the_teacher_is_evaluated_by_its_checkpoint(mixed, command, train_flags, tmp_path):
    teacher = mixed.workdir / "checkpoints/teacher"
    keys = [flag for flag in train_flags(ADAPT, tmp_path, MIXED) if flag.startswith("--config.")]
    result = command(
        "evaluate", "--config", ADAPT, *keys, "--checkpoint", teacher, "--out",
        tmp_path / "scores", "--protocol", "network")
    assert result.code == 0, result
    scores = checkpoints.find(teacher).meta["scores"]
    assert f"{100 * scores['cityscapes_teacher']['miou']:.1f}" in result.out


def test_the_report_shows_the_teacher_beside_its_student(generalised, mixed, command, tmp_path):
    """The run's network is the student: it alone has a place in the story of the runs."""
    scores = checkpoints.find(mixed.workdir).meta["scores"]
    source, student = (scores[name]["miou"] for name in ("gta5", "cityscapes"))
    teacher = student + 0.25  # networks as small as these often score alike
    workdir = shutil.copytree(mixed.workdir, tmp_path / "mix")
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if "eval/cityscapes_teacher/network/miou" in line:
            line["eval/cityscapes_teacher/network/miou"] = teacher
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    folders = {"first": [generalised.workdir], "mix": [workdir]}
    found = compare(folders, num_pictures=1)
    assert {name: list(row.values()) for name, row in found["summary"].items()
            if name != "first"} == {"mix": [source, student]}
    assert [len(row) for row in found["summary"].values()] == [2, 2]  # source and target
    assert {name: row["miou"] for name, row in found["results"].items()
            if name != "first"} == {"mix": student, "mix, teacher": teacher}
    curves = found["curves"]
    assert list(curves["source loss"]) == ["first", "mix"]
    assert curves["target mIoU"]["mix, teacher"][1][-1] == pytest.approx(teacher, abs=1e-7)
    assert [list(row) for row in found["images"]] == [["input", "label", "first", "mix"]]
    assert [(row.method, row.score) for row in rows(folders)][1:] == [
        ("mix", percent(student)), ("mix, teacher", percent(teacher))]
    page = tmp_path / "report.html"
    result = command("compare", generalised.workdir, workdir, "--out", page,
                     "--pictures", 0)
    assert result.code == 0 and "mix, teacher" in result.out, result
    assert page.read_text().count("mix, teacher") > 3


def test_the_start_says_what_runs(mixed):
    assert "adaptation (classmix)" in mixed.out
    assert "rare classes      drawn most, in %: " in mixed.out
    assert "sure_share" in mixed.out and "  masked " in mixed.out
