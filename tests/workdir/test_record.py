"""The record of a run: what it holds, what may change when a run goes on, and damage to it."""

import json
import shutil
import subprocess
from pathlib import Path

import jax
import pytest

from snr_jax.config import arguments
from snr_jax.configs import gta5_dg
from snr_jax.core.errors import UserError
from snr_jax.core.models.backbone import architecture
from snr_jax.core.models.deeplab import DeepLab
from snr_jax.core.state import initial_variables
from snr_jax.runs import experiment
from snr_jax.workdir import checkpoints, record
from snr_jax.workdir.run import Run
from tests.commands import said
from tests.data.tiny_sets import write_two_classes

MODEL = DeepLab(stage_sizes=(1, 1, 1, 1), width=4)


def make_config(root: Path, **overrides):
    config = gta5_dg.get_config()
    config.update_from_flattened_dict({"data.root": str(root), **overrides})
    return config


def fingerprint(root: Path, **overrides) -> dict:
    config = make_config(root, **overrides)
    splits = experiment.open_splits(config)
    return json.loads(json.dumps(record.fingerprint(config, splits)))


@pytest.fixture
def moved(data_root, tmp_path):
    shutil.copytree(data_root, tmp_path / "moved")
    return tmp_path / "moved"


# ---------------------------------------------------------------- what is compared


def test_the_same_is_the_same(data_root):
    assert record.differences(fingerprint(data_root), fingerprint(data_root)) == []


def test_the_data_may_move(data_root, moved):
    assert record.differences(fingerprint(data_root), fingerprint(moved)) == []


def test_ones_own_set_may_move_with_its_file(data_root, tmp_path):
    def of(file: Path) -> dict:
        return fingerprint(data_root, num_classes=2, **{"source.domain": str(file)})

    for place in ("one", "two"):
        write_two_classes(tmp_path / place, seed=0)
    before, after = (of(tmp_path / place / "data.yaml") for place in ("one", "two"))
    assert record.differences(before, after) == []
    after["config"]["num_steps"] += 1
    assert [line.partition(":")[0] for line in record.differences(before, after)] == ["num_steps"]
    (tmp_path / "two/data.yaml").rename(tmp_path / "two/lake.yaml")  # another name of its scores
    assert record.differences(before, of(tmp_path / "two/lake.yaml"))
    write_two_classes(tmp_path / "three", seed=1)
    lines = record.differences(before, of(tmp_path / "three/data.yaml"))
    assert "data of source.content: its files hold something else" in lines
    assert any(line.startswith("source.domain: ") for line in lines)


@pytest.mark.parametrize(
    "key, value",
    [
        ("log_every_steps", 7), ("checkpoint_every_steps", 7), ("keep_checkpoints", 7),
        ("eval.batch_size", 7), ("eval.num_pictures", 7),
    ],
)
def test_what_computes_nothing_may_change(data_root, key, value):
    assert record.differences(fingerprint(data_root), fingerprint(data_root, **{key: value})) == []


@pytest.mark.parametrize(
    "key, value, line",
    [
        ("seed", 4, "seed: 0 there, 4 now"),
        ("optimizer.momentum", 0.8, "optimizer.momentum: 0.9 there, 0.8 now"),
        ("source.size", (360, 640), "source.size: [720, 1280] there, [360, 640] now"),
        ("eval.flip", True, "eval.flip: False there, True now"),
        ("eval.max_images", 1, "eval.max_images: 500 there, 1 now"),
        ("target.val_split", "", "target.val_split: 'val' there, '' now"),
        ("loss.target", "maxsquare", "loss.target: '' there, 'maxsquare' now"),
    ],
)
def test_what_changes_results_is_named(data_root, key, value, line):
    changed = fingerprint(data_root, **{key: value})
    lines = record.differences(fingerprint(data_root), changed)
    assert line in lines
    assert all(other == line or other.startswith("data of ") for other in lines)
    assert record.differences(changed, fingerprint(data_root))


def fewer(root: Path) -> tuple[str, str]:
    (root / "GTA5/train.txt").write_text("1\n2\n3\n4\n5\n")
    return "source", "images: 6 there, 5 now"


def another_id(root: Path) -> tuple[str, str]:
    for kind in ("images", "labels"):
        (root / f"GTA5/{kind}/00008.png").rename(root / f"GTA5/{kind}/00009.png")
    (root / "GTA5/val.txt").write_text("7\n9\n")
    return "source_val", "ids: "


def another_image(root: Path) -> tuple[str, str]:
    shutil.copy(root / "GTA5/images/00001.png", root / "GTA5/images/00002.png")
    return "source", "content: "


def another_label(root: Path) -> tuple[str, str]:
    label = next((root / "Cityscapes/gtFine/val").rglob("*_labelIds.png"))
    label.write_bytes(label.read_bytes() + b"more")
    return "target_val", "content: "


@pytest.mark.parametrize("change", [fewer, another_id, another_image, another_label])
def test_other_data_is_named(data_root, moved, change):
    role, what = change(moved)
    lines = record.differences(fingerprint(data_root), fingerprint(moved))
    assert any(line.startswith(f"data of {role}.{what}") for line in lines)
    assert {line.split(".")[0] for line in lines} == {f"data of {role}"}


def test_labels_that_adaptation_does_not_read_may_appear(data_root, moved):
    before = fingerprint(moved, **{"loss.target": "maxsquare"})
    for image in (moved / "Cityscapes/leftImg8bit/train").rglob("*.png"):
        label = Path(str(image).replace("leftImg8bit/", "gtFine/"))
        label = label.with_name(image.name.replace("leftImg8bit", "gtFine_labelIds"))
        label.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, label)
    assert record.differences(before, fingerprint(moved, **{"loss.target": "maxsquare"})) == []


def test_initial_values_are_compared_and_may_move(data_root, tmp_path):
    def save(name: str, seed: int) -> Path:
        meta = {"model": architecture(MODEL), "source": {}}
        checkpoints.save_variables(tmp_path / name, initial_variables(MODEL, seed), meta)
        return tmp_path / name

    def started(path: Path) -> dict:
        return fingerprint(data_root, init_from=str(path))

    one, copied, other = save("one", 0), save("copied", 0), save("other", 1)
    before, different = started(one), started(other)
    assert record.differences(before, started(copied)) == []
    assert record.differences(before, different)[0].startswith("init_from: ")
    assert record.differences(before, fingerprint(data_root))[0].startswith("init_from: ")
    shutil.rmtree(one)  # no longer needed, nor to be had
    assert record.differences(before, started(one)) == []
    assert record.differences(before, started(tmp_path / "nowhere"))[0].startswith("init_from: ")
    save("one", 1)
    assert record.differences(before, started(one))[0].startswith("init_from: ")


# ---------------------------------------------------------------- the file


def claim(root: Path, workdir: Path, **overrides) -> list[str]:
    config = make_config(root, **overrides)
    with said() as lines:
        record.claim(Run(config, str(workdir), experiment.open_splits(config)))
    return lines


def pretend_state(workdir: Path, step: int) -> None:
    (checkpoints.folder(workdir, "latest") / str(step)).mkdir(parents=True)


def test_the_record_says_what_the_run_is(data_root, tmp_path):
    assert claim(data_root, tmp_path) == []
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    found = record.read(tmp_path)
    config = arguments.to_dict(make_config(data_root))
    assert config["model"].pop("dtype") == "auto"
    assert found["config"]["model"].pop("dtype") == "float32" and found["config"] == config
    assert found["initial"] == "random"
    assert set(found["data"]) == {"source", "source_val", "target_val"}
    assert found["data"]["source"]["images"] == 6
    assert found["data"]["target_val"]["split"] == "val"
    (start,) = found["starts"]
    assert start["step"] == 0 and start["libraries"]["jax"] == jax.__version__
    assert start["devices"]["platform"] == "cpu"
    assert start["devices"]["count"] == jax.device_count()


def test_the_commit_is_that_of_this_code_alone():
    here = Path(record.__file__).parent
    command = ["git", "-C", str(here), "rev-parse", "HEAD"]
    git = subprocess.run(command, capture_output=True, text=True)
    if git.returncode:
        assert record._commit() == {"commit": None, "modified": None}
    else:
        assert record._commit()["commit"] == git.stdout.strip()


def test_code_within_another_repository_has_no_commit(tmp_path, monkeypatch):
    """As a package installed below somebody's project."""
    package = tmp_path / "project/site-packages/snr_jax/runs"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text("")
    for command in (["init", "-q"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit",
                                     "-q", "--allow-empty", "-m", "a"]):
        subprocess.run(["git", "-C", str(tmp_path / "project"), *command], check=True)
    monkeypatch.setattr(record, "__file__", str(package / "record.py"))
    assert record._commit() == {"commit": None, "modified": None}
    monkeypatch.setenv("PATH", "")
    assert record._commit() == {"commit": None, "modified": None}


def test_going_on_adds_a_start_and_tells_what_changed(data_root, moved, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    claim(data_root, workdir)
    pretend_state(workdir, 3)
    pretend_state(workdir, 12)
    assert claim(moved, workdir, keep_checkpoints=9) == []
    monkeypatch.setattr(record, "_version", lambda name: "0.0.1" if name == "flax" else None)
    lines = claim(data_root, workdir)
    assert any(line.startswith("since the last start libraries.flax has changed from ")
               and line.endswith(" to 0.0.1") for line in lines)
    found = record.read(workdir)
    assert [start["step"] for start in found["starts"]] == [0, 12, 12]


def test_other_settings_and_other_data_are_refused(data_root, moved, tmp_path):
    workdir = tmp_path / "run"
    claim(data_root, workdir)
    claim(data_root, workdir, seed=3)  # no state yet: no run yet
    pretend_state(workdir, 3)
    before = (workdir / "run.json").read_bytes()
    fewer(moved)
    with pytest.raises(UserError) as error:
        claim(moved, workdir, **{"eval.flip": True})
    message = str(error.value)
    assert "eval.flip: False there, True now" in message and "seed: 3 there, 0 now" in message
    assert "data of source.images: 6 there, 5 now" in message
    assert str(workdir) in message and "Choose another --workdir" in message
    assert (workdir / "run.json").read_bytes() == before


def test_another_backend_is_another_run_where_it_computes_in_another_format(
    data_root, tmp_path, monkeypatch
):
    """With "auto" a run of a GPU is not gone on with on a CPU in float32, unless that is asked."""
    with monkeypatch.context() as patch:
        patch.setattr(jax, "default_backend", lambda: "gpu")
        claim(data_root, tmp_path)
        pretend_state(tmp_path, 3)
        assert record.read(tmp_path)["config"]["model"]["dtype"] == "bfloat16"
    with pytest.raises(UserError, match=r"model.dtype: 'bfloat16' there, 'float32' now"):
        claim(data_root, tmp_path)
    claim(data_root, tmp_path, **{"model.dtype": "bfloat16"})


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"3", b"{", b"\xff\xfe", b"{}", b'{"config": []}',
     b'{"config": {}, "initial": "random", "data": {}, "starts": []}',
     b'{"config": {}, "initial": "random", "data": {}, "starts": [{}]}',
     b'{"config": {}, "initial": "random", "data": {}, "starts": [3]}',
     b'{"config": {}, "initial": "random", "data": {}, "starts": [{"time": "now"}]}',
     pytest.param(b"[" * 100_000, id="deep")],
)
def test_a_damaged_record(data_root, tmp_path, content):
    claim(data_root, tmp_path)
    (tmp_path / "run.json").write_bytes(content)
    claim(data_root, tmp_path)  # no run yet: written anew
    record.read(tmp_path)
    (tmp_path / "run.json").write_bytes(content)
    pretend_state(tmp_path, 3)
    with pytest.raises(UserError) as error:
        claim(data_root, tmp_path)
    message = str(error.value)
    assert f"{tmp_path}/run.json is damaged" in message and "\n" not in message
    assert "remove it to go on" in message
    (tmp_path / "run.json").unlink()
    (line,) = claim(data_root, tmp_path)
    assert line.startswith(f"WARNING: {tmp_path} holds states of a run and no run.json")
    assert claim(data_root, tmp_path) == []


def spoil_key(key, value):
    def spoil(there: dict) -> None:
        *tables, last = key.split("/")
        for table in tables:
            there = there[int(table) if table.isdecimal() else table]
        there[last] = value

    return spoil


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("config", {}, "its 'config' lacks 'seed'"),
        ("config/model", 3, "its 'config' has no table 'model'"),
        ("config/seed", "0", "its 'config' has seed is '0'; expected a whole number"),
        ("config/source", {"domain": 5}, "its 'config' has source.domain is 5; expected one of"),
        ("data", {}, "its 'data' has no images and split of source"),
        ("data/source", {}, "its 'data' has no images and split of source"),
        ("data/source/images", "6", "its 'data' has no images and split of source"),
        ("data/target_val", None, "its 'data' has no images and split of target_val"),
        ("starts", ["at a time"], "its 'starts' lack a time"),
        ("starts/0/time", 5, "its 'starts' lack a time"),
        ("lengthened", "often", "its 'lengthened' is no list"),
    ],
)
def test_a_record_that_is_wrong_inside(key, value, words, data_root, tmp_path):
    claim(data_root, tmp_path)
    pretend_state(tmp_path, 3)
    there = json.loads((tmp_path / "run.json").read_text())
    spoil_key(key, value)(there)
    (tmp_path / "run.json").write_text(json.dumps(there))
    for read in (lambda: claim(data_root, tmp_path), lambda: record.read(tmp_path)):
        with pytest.raises(UserError) as error:
            read()
        message = str(error.value)
        assert f"{tmp_path}/run.json is damaged ({words}" in message and "\n" not in message


def test_a_record_of_before_a_key_came(data_root, tmp_path):
    """The run had the key's default, and has it now."""
    claim(data_root, tmp_path)
    pretend_state(tmp_path, 3)
    there = json.loads((tmp_path / "run.json").read_text())
    for key in ("remat", "dtype", "stage_sizes"):
        del there["config"]["model"][key]
    del there["config"]["mix"]
    (tmp_path / "run.json").write_text(json.dumps(there))
    found = record.configuration(record.read(tmp_path))
    assert found.model.remat is False and found.mix.threshold == 0.968
    with pytest.raises(UserError, match=r"\(model.remat: False there, True now\)"):
        claim(data_root, tmp_path, **{"model.remat": True})
    assert claim(data_root, tmp_path) == []


# ---------------------------------------------------------------- a run that is lengthened


def longer(root: Path, workdir: Path, num_steps: int, schedule_steps: int, lengthen=True):
    keys = {"num_steps": num_steps, "optimizer.schedule_steps": schedule_steps}
    config = make_config(root, **keys)
    with said() as lines:
        record.claim(Run(config, str(workdir), experiment.open_splits(config)), lengthen)
    return lines, record.read(workdir)


def test_a_longer_schedule_is_told_and_recorded(data_root, tmp_path):
    longer(data_root, tmp_path, 20, 20, lengthen=False)
    pretend_state(tmp_path, 20)
    with pytest.raises(UserError, match=r"or add --lengthen, which goes on"):
        longer(data_root, tmp_path, 40, 40, lengthen=False)
    lines, there = longer(data_root, tmp_path, 40, 40)
    assert lines[0].startswith("lengthened        from 20 to 40 steps")
    assert lines[1].startswith("learning rate     jumps at step 20 from 0 to 0.536 of base_rate")
    assert there["config"]["num_steps"] == 40
    assert there["lengthened"] == ["from step 20 on schedule_steps 40, before 20"]
    for lengthen in (False, True):  # the same command, and the one without the flag
        assert longer(data_root, tmp_path, 40, 40, lengthen) == ([], record.read(tmp_path))
        assert record.read(tmp_path)["lengthened"] == there["lengthened"]
    longer(data_root, tmp_path / "whole", 40, 40, lengthen=False)
    (line,) = record.differences(there, record.read(tmp_path / "whole"))
    assert line.startswith("lengthened: ['from step 20 on")


def test_more_steps_of_the_same_schedule_are_a_longer_run(data_root, tmp_path):
    longer(data_root, tmp_path, 20, 90, lengthen=False)
    pretend_state(tmp_path, 20)
    lines, there = longer(data_root, tmp_path, 40, 90)
    assert lines[1] == "learning rate     as before: the run is that of 40 steps from its start"
    assert "lengthened" not in there and there["config"]["num_steps"] == 40


@pytest.mark.parametrize("steps", [(10, 90), (20, 180), (40, 80), (40, 90, "seed")])
def test_what_is_no_lengthening_is_refused(data_root, tmp_path, steps):
    longer(data_root, tmp_path, 20, 90, lengthen=False)
    pretend_state(tmp_path, 20)
    if len(steps) == 3:
        there = json.loads((tmp_path / "run.json").read_text())
        there["config"]["seed"] = 7
        (tmp_path / "run.json").write_text(json.dumps(there))
    for lengthen in (False, True):
        with pytest.raises(UserError, match=r"to go on with it$"):
            longer(data_root, tmp_path, *steps[:2], lengthen)
