"""The loop: what a run leaves behind, and that stopping and going on leave no trace."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util

from snr_jax import main
from snr_jax.configs import gta5_dg
from snr_jax.core.labels import class_names
from snr_jax.core.optim import SGDState
from snr_jax.core.state import TrainState
from snr_jax.runs import experiment
from snr_jax.runs.train import padding
from snr_jax.workdir import checkpoints, states


def lines_of(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def losses_of(workdir: Path) -> list[tuple]:
    """Step and losses of every line of training."""
    return [
        (line["step"], *(line[key] for key in sorted(line) if key.startswith("train/loss")))
        for line in lines_of(workdir) if "train/loss_source" in line
    ]


def state_of(workdir: Path, step: int) -> dict:
    """Every array of the state of a step, by its path."""
    import orbax.checkpoint as ocp

    path = checkpoints.folder(workdir, "latest") / str(step)
    names = [name for name in ("variables", "training", "teacher") if (path / name).is_dir()]
    items = {name: ocp.args.StandardRestore() for name in names}
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        restored = checkpointer.restore(path, ocp.args.Composite(**items))
    leaves = jax.tree_util.tree_leaves_with_path({name: restored[name] for name in items})
    return {jax.tree_util.keystr(key): np.asarray(leaf) for key, leaf in leaves}


def assert_same_state(one: Path, other: Path, step: int = 20) -> None:
    first, second = state_of(one, step), state_of(other, step)
    assert first.keys() == second.keys() and len(first) > 150
    different = [key for key in first if first[key].tobytes() != second[key].tobytes()]
    assert not different


def wait_for(condition, process, seconds=300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.002)


# ---------------------------------------------------------------- stopping and going on


def test_killed_twice_and_started_again_equals_no_interruption(
    adapted, process, command, train_flags, tmp_path
):
    """SIGKILL after the checkpoint of step 7, then while that of step 14 is written."""
    workdir = tmp_path / "killed"
    arguments = adapted.arguments_in(workdir)
    latest = checkpoints.folder(workdir, "latest")
    for done in (
        lambda: (latest / "7").exists(),
        lambda: any(path.name.startswith("14") for path in latest.glob("*")),
    ):
        running = process("main", *arguments)
        wait_for(done, running)
        running.kill()
        running.communicate()
        assert running.returncode == -signal.SIGKILL
    assert not checkpoints.folder(workdir, "final").exists()
    result = command("main", *arguments)
    assert result.code == 0, result
    assert "going on from the checkpoint of step" in result.out
    assert_same_state(adapted.workdir, workdir)
    assert losses_of(workdir) == losses_of(adapted.workdir)
    assert [step for step, *_ in losses_of(workdir)] == list(range(1, 21))
    evaluated = [line["step"] for line in lines_of(workdir) if "train/loss_source" not in line]
    assert evaluated == [10, 20]
    names = set(checkpoints.NAMES) - {"teacher"}
    for name in names:
        ours, theirs = (checkpoints.find(checkpoints.folder(w, name)).meta
                        for w in (workdir, adapted.workdir))
        assert ours["scores"] == theirs["scores"] and ours["checksums"] == theirs["checksums"]
    assert {path.name for path in latest.parent.iterdir()} == {"latest", *names}
    assert {path.name for path in latest.iterdir()} == {"14", "20"}


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_and_the_same_command_goes_on(sent, generalised, process, command, tmp_path):
    workdir = tmp_path / "stopped"
    arguments = generalised.arguments_in(workdir)
    running = process("main", *arguments)
    metrics = workdir / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") >= 2, running)
    running.send_signal(sent)
    _, err = running.communicate(timeout=300)
    assert running.returncode == 128 + sent, err
    step = losses_of(workdir)[-1][0]
    assert 2 <= step < 20
    assert err == f"{sent.name}: step {step} is saved; the same command goes on from there\n"
    result = command("main", *arguments)
    assert f"going on from the checkpoint of step {step} " in result.out
    assert f"steps             {step} → 20" in result.out
    assert_same_state(generalised.workdir, workdir)
    assert losses_of(workdir) == losses_of(generalised.workdir)


@pytest.fixture
def stopping_when(monkeypatch):
    """stopping_when(condition): from then on a signal has asked the commands to stop."""

    def use(condition) -> None:
        @contextlib.contextmanager
        def on_signals():
            yield lambda: signal.SIGTERM if condition() else None

        monkeypatch.setattr(main.signals, "on_signals", on_signals)

    return use


def test_stopped_before_the_first_step(generalised, command, stopping_when, tmp_path):
    arguments = generalised.arguments_in(tmp_path / "run")
    stopping_when(lambda: True)
    result = command("main", *arguments)
    assert result.code == 143
    assert result.err == "SIGTERM: stopped before the network was made; nothing is lost\n"
    stopping_when(lambda: (tmp_path / "run/checkpoints").exists())
    result = command("main", *arguments)
    assert result.code == 143
    assert result.err == "SIGTERM: stopped before step 1; nothing is lost\n"


@pytest.mark.parametrize("step", [10, 20])
def test_stopped_in_a_validation(step, generalised, command, stopping_when, tmp_path):
    """Its step is saved, and going on begins with it; not a line is there twice."""
    workdir = tmp_path / "run"
    arguments = generalised.arguments_in(workdir)
    saved = checkpoints.folder(workdir, "latest") / str(step)
    stopping_when(saved.exists)
    result = command("main", *arguments)
    assert result.code == 143
    assert result.err.startswith(f"SIGTERM: stopped in the validation of step {step}, which is")
    assert not any("eval/gta5/network/miou" in line for line in lines_of(workdir)[-2:])
    assert not checkpoints.folder(workdir, "final").exists()
    stopping_when(lambda: False)
    assert command("main", *arguments).code == 0
    assert_same_state(generalised.workdir, workdir)

    def scores(workdir):
        return [{k: v for k, v in line.items() if k.startswith(("step", "eval/"))}
                for line in lines_of(workdir) if "eval/gta5/network/miou" in line]

    assert scores(workdir) == scores(generalised.workdir)
    assert [line["step"] for line in scores(workdir)] == [10, 20]
    assert losses_of(workdir) == losses_of(generalised.workdir)


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file's bytes and every folder, by its path."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
            for path in folder.rglob("*")}


@pytest.fixture
def copied(generalised, tmp_path):
    """A copy of the complete run, and the command for it."""
    workdir = tmp_path / "copied"
    shutil.copytree(generalised.workdir, workdir)
    return workdir, generalised.arguments_in(workdir)


def test_a_complete_run_tells_its_record_and_writes_nothing(copied, command, generalised):
    workdir, arguments = copied
    before = contents(workdir)
    result = command("main", *arguments)
    assert result.code == 0 and result.err == ""
    assert f"the run in {workdir} is complete since step 20" in result.out
    table = generalised.out[generalised.out.index("class  ") :]
    table = table[: table.index("done: ")]
    assert len(table) > 500 and table in result.out
    assert contents(workdir) == before


def test_a_complete_run_of_other_settings_or_data_is_refused(copied, refused, data_root, tmp_path):
    workdir, arguments = copied
    before = contents(workdir)
    error = refused("main", *arguments, "--config.eval.flip=true")
    assert "eval.flip: False there, True now" in error
    shutil.copytree(data_root, tmp_path / "other")
    (tmp_path / "other/GTA5/val.txt").write_text("7\n")
    error = refused("main", *arguments, f"--config.data.root={tmp_path / 'other'}")
    assert "data of source_val.images: 2 there, 1 now" in error
    assert contents(workdir) == before


def without_final(workdir: Path) -> None:
    """As after a kill between the last validation's best and its final."""
    shutil.rmtree(checkpoints.folder(workdir, "final"))


def broken_final(workdir: Path) -> None:
    (checkpoints.folder(workdir, "final") / "meta" / "metadata").write_text("[]")


def without_last_scores(workdir: Path) -> None:
    """As after a kill between final and the last line of the validation."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
    assert "settings" in json.loads(lines[-1])
    (workdir / "metrics.jsonl").write_text("".join(lines[:-1]))


def broken_survivors(age: str, content: str) -> Callable[[Path], None]:
    """As after a kill between the two renamings of a save, on a disk that lost what it wrote."""

    def cut(workdir: Path) -> None:
        for name in ("final", "best_source"):
            path = checkpoints.folder(workdir, name)
            path.rename(path.with_name(f"{name}.{age}-checkpoint"))
            survivor = path.with_name(f"{name}.{age}-checkpoint")
            (survivor / "meta" / "metadata").write_text(content)

    return cut


@pytest.mark.parametrize(
    ("cut", "aside"),
    [
        (without_final, set()),
        (broken_final, {"final-1"}),
        (without_last_scores, set()),
        (broken_survivors("old", "{"),
         {"final.old-checkpoint-1", "best_source.old-checkpoint-1"}),
        (broken_survivors("new", "{}"),
         {"final.new-checkpoint-1", "best_source.new-checkpoint-1"}),
    ],
    ids=["no final", "broken final", "no last scores", "broken old ones", "broken new ones"],
)
def test_an_end_that_was_cut_short_is_made_up_for_once(copied, command, generalised, cut, aside):
    workdir, arguments = copied
    cut(workdir)
    result = command("main", *arguments)
    assert result.code == 0 and "is complete" not in result.out
    shelf = checkpoints.folder(workdir, "set_aside")
    assert {path.name for path in shelf.glob("*")} == aside
    for name in aside:
        assert f"was set aside as {shelf / name}" in result.out

    def scored(folder: Path) -> list[dict]:
        return [{k: v for k, v in line.items() if k != "time" and "per_second" not in k}
                for line in lines_of(folder)]

    assert scored(workdir) == scored(generalised.workdir)
    for name in ("final", "best_source", "oracle_target"):
        one, other = (checkpoints.find(checkpoints.folder(w, name)).meta
                      for w in (workdir, generalised.workdir))
        assert one["scores"] == other["scores"] and one["checksums"] == other["checksums"]
    before = contents(workdir)
    assert "is complete" in command("main", *arguments).out
    assert contents(workdir) == before


def test_the_batches_of_one_domain_end_with_its_stream(monkeypatch):
    monkeypatch.setattr(
        experiment.pipeline, "train_batches", lambda *_, **__: iter([{"image": 1, "label": 2}]))
    source = SimpleNamespace(samples=[], labels=None, size=(33, 65), prepared=None)
    found = experiment.batches(gta5_dg.get_config(), {"source": source}, 0)
    assert list(found) == [{"source_image": 1, "source_label": 2}]


@pytest.mark.parametrize(
    "crop, scale_range, share",
    [((0, 0), (1.0, 1.0), 0), ((60, 80), (1.0, 1.0), 0), ((120, 80), (1.0, 1.0), 0.5),
     ((120, 160), (1.0, 1.0), 0.75), ((120, 160), (0.5, 1.5), 1 - 0.75**2)],
)  # fmt: skip
def test_the_padding_of_a_crop(crop, scale_range, share):
    config = gta5_dg.get_config()
    config.source.size, config.data.crop, config.data.scale_range = (60, 80), crop, scale_range
    assert padding(config, "source") == pytest.approx(share)


def test_a_crop_that_is_mostly_padding_is_told(generalised, command, stopping_when, tmp_path):
    stopping_when(lambda: (tmp_path / "run/checkpoints").exists())  # before the first step
    result = command("main", *generalised.arguments_in(tmp_path / "run"),
                     "--config.data.crop=(99,99)")
    assert "WARNING: 78 % of a crop of 99x99 is padding beside source images of 33x65" in result.out
    assert "target images" not in result.out  # of which none is trained on


def test_every_score_carries_its_settings(generalised):
    scored = [line for line in lines_of(generalised.workdir) if "settings" in line]
    assert [line["step"] for line in scored] == [10, 20]
    for line in scored:
        assert {name.split("/")[1] for name in line if name.startswith("eval/")} == {
            "gta5", "cityscapes"
        }  # fmt: skip
        for domain, images in (("gta5", 2), ("cityscapes", 3)):
            settings = line["settings"][domain]
            assert settings["domain"] == domain and settings["split"] == "val"
            assert settings["images"] == images and settings["size"] == [33, 65]
            assert settings["flip"] is False and settings["protocol"] == "network"
            assert settings["step"] == line["step"]


def test_a_damaged_record_is_one_line(copied, refused, data_root):
    workdir, arguments = copied
    shutil.rmtree(checkpoints.folder(workdir, "final"))
    whole = (workdir / "metrics.jsonl").read_text()
    lines = whole.splitlines(keepends=True)
    for broken in ('{"step": 3, "tr\n', "[]\n", "{}\n", '{"step": 3, "train/x": "y"}\n'):
        (workdir / "metrics.jsonl").write_text("".join([*lines[:2], broken, *lines[3:]]))
        error = refused("main", *arguments)
        assert f"{workdir}/metrics.jsonl, line 3 is damaged" in error and "Remove that" in error
    (workdir / "metrics.jsonl").write_text(whole)
    for broken in ("", "[]"):
        (workdir / "run.json").write_text(broken)
        error = refused("main", *arguments)
        assert f"{workdir}/run.json is damaged" in error and "remove it to go on" in error
    best = checkpoints.folder(workdir, "best_source")
    (best / "meta" / "metadata").write_text("{")
    images = ("--images", str(data_root / "GTA5/images"), "--out", str(workdir / "out"))
    for door, more in (("evaluate", arguments[:2]), ("predict", images)):
        assert f"{best} cannot be read" in refused(door, *more, "--checkpoint", str(best))


def test_keys_that_compute_nothing_may_change(generalised, command, tmp_path):
    workdir = tmp_path / "free"
    shutil.copytree(generalised.workdir, workdir)
    arguments = generalised.arguments_in(workdir)
    changed = {"log_every_steps": 5, "keep_checkpoints": 1, "eval.num_pictures": 0}
    arguments += [f"--config.{key}={value}" for key, value in changed.items()]
    assert command("main", *arguments).code == 0


def test_workdir_of_another_configuration(generalised, refused):
    error = refused("main", *generalised.arguments, "--config.seed=4", "--config.batch_size=1")
    assert str(generalised.workdir) in error and "another --workdir" in error
    assert "seed: 0 there, 4 now" in error and "batch_size: 2 there, 1 now" in error


def test_workdir_of_a_mistaken_start_can_be_used(refused, train_flags, tmp_path):
    """No step was made there, so there is nothing that the next configuration could differ from."""
    wrong = {"data.root": tmp_path / "nowhere"}
    for seed in (0, 1):
        error = refused("main", *train_flags("configs/gta5_dg.py", tmp_path / "run",
                                             {**wrong, "seed": seed}))
        assert "there is no directory" in error


def test_run_with_its_only_checkpoints_damaged(generalised, refused, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(generalised.workdir, workdir)
    shutil.rmtree(checkpoints.folder(workdir, "final"))  # a finished run needs no state
    for path in checkpoints.folder(workdir, "latest").iterdir():
        shutil.rmtree(path / "variables")
    error = refused("main", *generalised.arguments_in(workdir))
    assert "none of the 2 checkpoints" in error and "choose another --workdir" in error


def test_loss_that_is_not_finite_stops_the_run(generalised, refused, tmp_path):
    """The state of step 15 is broken: step 16 shows it, and the good one is that of step 14."""
    workdir = tmp_path / "broken"
    shutil.copytree(generalised.workdir, workdir)
    latest = checkpoints.folder(workdir, "latest")
    variables, meta = checkpoints.load_variables(latest / "14")
    shutil.rmtree(latest / "20")
    shutil.rmtree(checkpoints.folder(workdir, "final"))
    with states.open_manager(workdir, 3) as manager:
        state = _restore(manager, latest / "14")
        broken = {**variables["params"], "conv1": {"kernel": np.full((7, 7, 3, 4), np.nan, "f4")}}
        state = state.replace(step=np.int32(15), params=broken)
        states.save_state(manager, state, meta)
    before = (latest / "14" / "meta" / "metadata").read_bytes()
    arguments = generalised.arguments_in(workdir)
    error = refused("main", *arguments)
    rate = 0.01 * (1 - 15 / 20) ** 0.9
    assert "is nan at step 16" in error and f"at the rate {rate:.3g}" in error
    assert f"The last good checkpoint: {latest / '14'}" in error
    assert "optimizer.base_rate" in error
    assert (latest / "14" / "meta" / "metadata").read_bytes() == before
    assert [line["step"] for line in lines_of(workdir)][-1] < 16


def _restore(manager, path: Path) -> TrainState:
    import orbax.checkpoint as ocp

    trees = {name: ocp.args.StandardRestore() for name in ("variables", "training")}
    found = manager.restore(int(path.name), args=ocp.args.Composite(**trees))
    training = jax.tree.map(np.asarray, found["training"])
    variables = jax.tree.map(np.asarray, found["variables"])
    return TrainState(training["step"], **variables, opt_state=SGDState(**training["opt_state"]))


# ---------------------------------------------------------------- what a run tells and leaves


@pytest.mark.parametrize("num_steps", [8, 15])
def test_profile_of_six_steps(num_steps, command, train_flags, tmp_path):
    flags = train_flags("configs/gta5_dg.py", tmp_path / "run", {"num_steps": num_steps})
    folder = tmp_path / "profile"
    result = command("main", *flags, f"--profile_dir={folder}")
    assert result.code == 0, result
    traces = list(folder.rglob("*.xplane.pb"))
    assert len(traces) == (num_steps == 15)
    if traces:
        planes = jax.profiler.ProfileData.from_file(str(traces[0])).planes
        events = [event for plane in planes for line in plane.lines for event in line.events]
        steps = [dict(event.stats)["step_num"] for event in events if event.name == "train"]
        assert sorted(steps) == [10, 11, 12, 13, 14, 15]
        assert f"profile           steps 10 to 15 (tensorboard --logdir {folder}" in result.out
    else:
        wanted = "a trace is of steps 10 to 15; this start ended with step 8"
        assert f"WARNING: --profile_dir: {wanted}" in result.out


def test_start_says_what_will_run(generalised, adapted, data_root):
    out = generalised.out
    assert f"gta5/train: 6 images in {data_root}/GTA5; split 'train' from train.txt" in out
    assert "cityscapes/val: 3 images" in out and "cityscapes/train" not in out
    assert "167,676 parameters" in out
    assert "computes in       float32 (model.dtype auto)" in out
    assert "recipe            paper: generalisation" in out
    assert "devices           1 x cpu" in out and "steps             0 → 20, batch 2" in out
    assert f"results           {generalised.workdir}" in out
    assert "step 20/20" in out and " left  loss " in out and "restitution " in out
    assert "adaptation (maxsquare)" in adapted.out and "cityscapes/train: 6 images" in adapted.out
    assert "6 of 6 images have no label" in adapted.out  # and need none
    assert f"initial values from {generalised.workdir}/checkpoints/final" in adapted.out


def test_the_terminal_is_quiet(generalised, adapted):
    assert generalised.err == adapted.err == ""
    assert "WARNING" not in generalised.out + adapted.out


def test_metrics_for_scripts(adapted):
    lines = lines_of(adapted.workdir)
    training = [line for line in lines if "train/loss_source" in line]
    assert [line["step"] for line in training] == list(range(1, 21))
    for line in training:
        for name in ("loss_target", "loss_restitution", "steps_per_second"):
            assert np.isfinite(line[f"train/{name}"])
    rates = [line["train/learning_rate"] for line in training]
    np.testing.assert_allclose(rates, 0.01 * (1 - np.arange(20) / 20) ** 0.9, rtol=1e-6)
    names = class_names(19)
    for domain in ("gta5", "cityscapes"):
        prefix = f"eval/{domain}/network"
        scored = [line for line in lines if f"{prefix}/miou" in line]
        assert [line["step"] for line in scored] == [10, 20]
        for line in scored:
            per_class = [line[f"{prefix}/iou/{name}"] for name in names]
            known = [value for value in per_class if value is not None]
            assert line[f"{prefix}/miou"] == pytest.approx(np.mean(known))
            assert 0 <= line[f"{prefix}/pixel_accuracy"] <= 1


def test_events_for_tensorboard(adapted):
    events = EventAccumulator(str(adapted.workdir), size_guidance={"tensors": 0})
    events.Reload()
    for tag in ("train/loss_source", "train/loss_target", "train/learning_rate"):
        assert [event.step for event in events.Tensors(tag)] == list(range(1, 21))
    written = [line for line in lines_of(adapted.workdir) if "eval/cityscapes/network/miou" in line]
    shown = events.Tensors("eval/cityscapes/network/miou")
    np.testing.assert_allclose(
        [float(tensor_util.make_ndarray(e.tensor_proto)) for e in shown],
        [line["eval/cityscapes/network/miou"] for line in written], rtol=1e-6,
    )  # fmt: skip
    for domain in ("gta5", "cityscapes"):
        images = events.Tensors(f"eval/{domain}")
        assert [event.step for event in images] == [10, 20]
        picture = tensor_util.make_ndarray(images[0].tensor_proto)[2]
        width, height = Image.open(io.BytesIO(picture)).size
        assert width == 3 * 65 + 2 * 4 and height > 33  # input, label, prediction
    hparams = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"optimizer.base_rate" in hparams


def test_checkpoints_say_what_they_are(adapted):
    lines = lines_of(adapted.workdir)

    def scores(domain):
        key = f"eval/{domain}/network/miou"
        return {line["step"]: line[key] for line in lines if key in line}

    for name, domain in (("best_source", "gta5"), ("oracle_target", "cityscapes")):
        meta = checkpoints.find(checkpoints.folder(adapted.workdir, name)).meta
        by_step = scores(domain)
        kept = meta["scores"][domain]["miou"]
        assert kept == max(by_step.values()) == by_step[meta["source"]["step"]]
    variables, meta = checkpoints.load_variables(adapted.workdir)
    assert meta["source"]["step"] == 20 and meta["source"]["recipe"] == "paper"
    assert meta["source"]["input_size"] == [33, 65]
    final = {domain: of_domain["miou"] for domain, of_domain in meta["scores"].items()}
    assert final == {d: scores(d)[20] for d in ("gta5", "cityscapes")}
    assert meta["model"] == {
        "backbone": "resnet", "num_classes": 19, "stage_sizes": (1, 1, 1, 1), "width": 4,
        "norm_restitution": "snr", "head_branches": 2, "stride_in": "conv1", "exposure": False,
    }  # fmt: skip
    newest = state_of(adapted.workdir, 20)
    assert (newest["['variables']['params']['conv1']['kernel']"]
            == variables["params"]["conv1"]["kernel"]).all()
    kept = {path.name for path in checkpoints.folder(adapted.workdir, "latest").iterdir()}
    assert kept == {"14", "20"}
    recorded = json.loads((adapted.workdir / "run.json").read_text())["config"]
    assert recorded["loss"]["target"] == "maxsquare" and recorded["model"]["width"] == 4
    assert recorded["recipe"] == "paper" and recorded["data"]["scale_range"] == [0.75, 1.5]


def test_adaptation_starts_from_the_run_and_moves(generalised, adapted):
    start, _ = checkpoints.load_variables(generalised.workdir)
    end, _ = checkpoints.load_variables(adapted.workdir)
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), start, end)
    assert moved["params"]["layer1_0"]["conv1"]["kernel"] > 0
    assert moved["batch_stats"]["bn1"]["mean"] > 0
    assert moved["params"]["bn1"] == {"scale": 0, "bias": 0}  # never trained
    assert max(jax.tree.leaves(moved["params"]["layer5"])) == 0  # no loss reaches it
    first, untrained = (
        next(line["train/loss_source"] for line in lines_of(run.workdir) if line["step"] == 1)
        for run in (adapted, generalised)
    )
    assert first < untrained


def test_a_target_without_any_labels(command, train_flags, tmp_path):
    steps = {"num_steps": 1, "target.val_split": ""}
    assert command("main", *train_flags("configs/gta5_dg.py", tmp_path / "run", steps)).code == 0
    names = {name for line in lines_of(tmp_path / "run") for name in line}
    assert "eval/gta5/network/miou" in names
    assert not any("cityscapes" in name for name in names)
    kept = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert kept == {"latest", "final", "best_source"}


def test_two_domains_of_one_layout_have_scores_of_their_own(data_root):
    config = gta5_dg.get_config()
    config.data.root = str(data_root)
    config.source.update({"domain": "cityscapes", "dir": "Cityscapes", "train_split": "val"})
    splits = experiment.open_splits(config)
    assert splits["source_val"].name == "cityscapes_source"
    assert splits["target_val"].name == "cityscapes_target"


def test_the_folder_of_a_run_is_named_after_its_configuration(data_root, tmp_path):
    """Seen where it cannot be made."""
    root = Path.cwd()
    (tmp_path / "runs").write_text("")
    result = subprocess.run(
        [sys.executable, "-m", "snr_jax.main", "--config", root / "configs" / "gta5_dg.py",
         f"--config.data.root={data_root}"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True,
    )
    assert result.returncode == 2 and "error: runs/gta5_dg: " in result.stderr
