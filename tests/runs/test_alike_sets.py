"""Two sets of one name, numbers that are exchanged, and classes in another order."""

import json
import shutil

import jax
import numpy as np
import pytest

from snr_jax.config import arguments
from snr_jax.configs import gta5_dg
from snr_jax.core.errors import UserError
from snr_jax.core.labels import class_names, own_classes
from snr_jax.core.models.backbone import architecture
from snr_jax.core.models.deeplab import DeepLab
from snr_jax.core.state import initial_variables
from snr_jax.runs import network
from snr_jax.runs.validation import incomparable
from snr_jax.workdir import checkpoints
from tests.commands import GENERALISE, TINY, config_flags, said
from tests.data.tiny_sets import write_two_classes


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alike")
    for seed, name in enumerate(("source", "target")):
        write_two_classes(folder / name, seed)
    return folder


def flags(sets, config=GENERALISE, **overrides):
    keys = {**TINY, "num_classes": 2, "num_steps": 2, "eval_every_steps": 2, "init_from": "",
            "checkpoint_every_steps": 1, "source.domain": sets / "source/data.yaml",
            "target.domain": sets / "target/data.yaml", **overrides}
    return ["--config", config, *config_flags(keys)]


@pytest.fixture(scope="module")
def workdir(sets, tmp_path_factory):
    return tmp_path_factory.mktemp("run") / "run"


@pytest.fixture
def trained(sets, workdir, command):
    if not workdir.exists():
        result = command("main", *flags(sets), "--workdir", workdir)
        assert result.code == 0, result
    return workdir


@pytest.fixture
def copied(sets, trained, tmp_path):
    """The run and its sets, with changes to come; the flags of its command."""
    shutil.copytree(trained, tmp_path / "run")
    text = (sets / "source/data.yaml").read_text()
    yield tmp_path / "run"
    (sets / "source/data.yaml").write_text(text)


# ---------------------------------------------------------------- names


def test_two_sets_of_one_name_have_a_column_each(sets, trained):
    lines = (trained / "metrics.jsonl").read_text().splitlines()
    last = {key: value for line in lines for key, value in json.loads(line).items()}
    assert {key.split("/")[1] for key in last if key.startswith("eval/")} == {
        "data_source", "data_target"}
    for name in ("best_source", "oracle_target", "final"):
        scores = checkpoints.find(trained / "checkpoints" / name).meta["scores"]
        for side in ("source", "target"):
            settings = scores[f"data_{side}"]["settings"]
            assert settings["domain"] == str(sets / side / "data.yaml")
            assert len(settings["meaning"]) == 16


def test_a_table_and_the_statistics_have_a_row_for_each(sets, trained, command, refused, tmp_path):
    both = f"--domains={sets}/source/data.yaml,{sets}/target/data.yaml"
    common = ["--checkpoint", trained, "--out", tmp_path, "--size=33,65", "--protocol=network",
              "--flip=no"]
    result = command("evaluate", *flags(sets), *common, both, "--pictures=1")
    assert result.code == 0, result
    rows = json.loads((tmp_path / "evaluation.json").read_text())["domains"]
    assert list(rows) == ["source_data", "target_data"]
    assert rows["source_data"]["network"]["iou"] != rows["target_data"]["network"]["iou"]
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "predictions_source_data.png", "predictions_target_data.png", "reliability.png"}
    link = tmp_path / "link"
    link.symlink_to(sets / "source")
    for again in (f"{sets}/source/../source/data.yaml", f"{link}/data.yaml"):
        assert "twice" in refused("evaluate", *flags(sets), *common, f"{both},{again}")
    assert "there is no directory" in refused(
        "evaluate", *flags(sets), *common, f"--domains={sets}/source/data.yaml=there")
    result = command("doctor", *flags(sets), "--stats", tmp_path / "stats.json")
    assert result.code == 0, result
    assert list(json.loads((tmp_path / "stats.json").read_text())) == [
        "data_source/train", "data_source/val", "data_target/val"]


def test_the_doctor_leaves_the_statistics_of_another_set(sets, command, tmp_path, monkeypatch):
    stats = tmp_path / "runs/class_stats"
    monkeypatch.setattr("tests.conftest.ROOT", tmp_path)  # where commands run
    for name in ("source", "target", "source"):
        assert command("doctor", "--domain", sets / name / "data.yaml").code == 0
    assert {path.name for path in stats.iterdir()} == {"data.json", "target_data.json"}


@pytest.mark.parametrize("keys, names", [
    ({}, ["gta5", "cityscapes"]),
    ({"target.domain": "gta5"}, ["gta5_source", "gta5_target"]),
    ({"source.domain": "a/data.yaml"}, ["data", "cityscapes"]),
    ({"source.domain": "a/data.yaml", "target.domain": "b/data.yaml"},
     ["data_source", "data_target"]),
    # Nothing of the target is scored.
    ({"source.domain": "a/data.yaml", "target.domain": "b/data.yaml", "target.val_split": ""},
     ["data", "data"]),
    ({"target.domain": "a/gta5.yaml"}, ["gta5_source", "gta5_target"]),
    ({"target.domain": "gta5_teacher.yaml"}, ["gta5", "gta5_teacher"]),
    ({"target.domain": "gta5_teacher.yaml", "loss.target": "classmix"},
     ["gta5_source", "gta5_teacher_target"]),
], ids=str)  # fmt: skip
def test_the_sides_of_a_run_are_called(keys, names):
    config = gta5_dg.get_config()
    config.update_from_flattened_dict(keys)
    assert [arguments.split_name(config, side) for side in ("source", "target")] == names


# ---------------------------------------------------------------- what the numbers mean


def exchange(path, *words):
    text = path.read_text()
    for old, new in words:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)


IDS = ("0: ground, 9: thing", "9: ground, 0: thing")
ORDER = ("ground: , thing: ", "thing: , ground: ")


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_does_not_go_on_with_other_numbers(finished, sets, copied, command, refused):
    if not finished:
        shutil.rmtree(copied / "checkpoints/final")
        shutil.rmtree(copied / "checkpoints/latest/2")
    again = [*flags(sets), "--workdir", copied]
    exchange(sets / "source/data.yaml", IDS)
    error = refused("main", *again)
    assert "the number 0 in labels is ground there, thing now" in error
    assert "Choose another --workdir" in error
    exchange(sets / "source/data.yaml", IDS[::-1], ORDER)
    assert "class 0 is ground there, thing now" in refused("main", *again)
    exchange(sets / "source/data.yaml", ORDER[::-1], ("thing", "object"))
    assert "class 1 is thing there, object now" in refused("main", *again)
    if finished:
        exchange(sets / "source/data.yaml", ("object", "thing"))
        assert command("main", *again).code == 0


def test_a_run_of_before_goes_on(sets, copied, command):
    record = json.loads((copied / "run.json").read_text())
    for of_split in record["data"].values():
        assert of_split.pop("classes") and of_split.pop("numbers")
    (copied / "run.json").write_text(json.dumps(record))
    result = command("main", *flags(sets), "--workdir", copied)
    assert result.code == 0 and "is complete since step 2" in result.out, result


def test_scores_of_other_meanings_are_not_compared():
    def meta(**settings):
        return {"scores": {"data": {"miou": 0.5, "settings": {"step": 1, **settings}}}}

    assert incomparable(meta(meaning="a"), meta(meaning="a"), "data") == []
    assert incomparable(meta(), meta(meaning="a"), "data") == []  # of before
    (line,) = incomparable(meta(meaning="b"), meta(meaning="a"), "data")
    assert line == "its score of data is with meaning 'b', not 'a'"


def test_scores_of_a_set_that_moved_are_compared():
    def meta(domain):
        settings = {"step": 1, "domain": domain, "meaning": "a"}
        return {"scores": {"data": {"miou": 0.5, "settings": settings}}}

    assert incomparable(meta("a/data.yaml"), meta("b/data.yaml"), "data") == []
    assert incomparable(meta("data"), meta("b/lake.yaml"), "data")


# ---------------------------------------------------------------- the order of the classes

MODEL = DeepLab(num_classes=3, stage_sizes=(1, 1, 1, 1), width=4, restitution_heads=True)


def save(path, names=None, **source):
    variables = initial_variables(MODEL, 5)
    meta = {"model": architecture(MODEL), "source": source}
    checkpoints.save_variables(path, variables, meta | ({"class_names": names} if names else {}))
    return variables


def test_heads_are_reordered_by_name(tmp_path):
    there = save(tmp_path / "a", ["a", "b", "c"])["params"]
    with said() as lines:
        here = network.initialize(
            MODEL, 0, str(tmp_path / "a"), classes=own_classes(["c", "a", "b"]))["params"]
    assert any("stand in another order (a, b, c there; c, a, b here)" in line for line in lines)
    moved = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(there):
        now, name = here, path[0].key
        for key in path:
            now = now[key.key]
        head = name.startswith(("layer5", "layer6", "restitution"))
        assert np.array_equal(now, leaf[..., [2, 0, 1]] if head else leaf), path
        moved += head
    assert moved == 2 * 4 * 2 + 3 * 2  # kernels and biases: two heads of four branches, three 1x1


def test_other_names_are_refused(tmp_path):
    save(tmp_path / "a", ["a", "b", "c"])
    with pytest.raises(UserError) as error:
        network.initialize(MODEL, 0, str(tmp_path / "a"), classes=own_classes(["a", "d", "c"]))
    assert "b there alone, d here alone" in str(error.value)
    assert "--config.reset_heads" in str(error.value) and str(tmp_path / "a") in str(error.value)
    with pytest.raises(UserError) as error:  # of another number
        network.initialize(MODEL.clone(num_classes=5), 0, str(tmp_path / "a"))
    assert "num_classes 3 there, 5 here" in str(error.value)
    assert "--config.reset_heads" in str(error.value)
    save(tmp_path / "new_heads", ["a", "b", "c"], heads=[])
    network.initialize(MODEL, 0, str(tmp_path / "new_heads"), classes=own_classes(["d", "e", "f"]))


@pytest.mark.parametrize("names", [["d", "e"], ["a", "b", "c"]])
def test_reset_heads_takes_the_backbone_alone(names, tmp_path):
    """Of other classes and of the same; what has an output for each class stays random."""
    there = save(tmp_path / "a", ["a", "b", "c"])["params"]
    model = MODEL.clone(num_classes=len(names))
    random, here = (
        network.initialize(model, 7, path, reset_heads=True, classes=own_classes(names))["params"]
        for path in ("", str(tmp_path / "a"))
    )
    for path, leaf in jax.tree_util.tree_leaves_with_path(here):
        head = path[0].key.startswith(("layer5", "layer6", "restitution"))
        expected = random if head else there
        for key in path:
            expected = expected[key.key]
        assert np.array_equal(leaf, expected), path


def test_without_names_the_classes_are_the_protocols(tmp_path):
    model = MODEL.clone(num_classes=13)
    variables = initial_variables(model, 5)
    checkpoints.save_variables(
        tmp_path / "a", variables, {"model": architecture(model), "source": {}})
    names = class_names(13)
    start = network.initialize(
        model, 0, str(tmp_path / "a"), classes=own_classes(names[::-1]))["params"]
    bias = variables["params"]["layer6"]["conv2d_list_0"]["bias"]
    assert np.array_equal(start["layer6"]["conv2d_list_0"]["bias"], bias[::-1])


def test_scores_are_those_of_the_names_in_any_order(sets, copied, command, tmp_path):
    def scores(name):
        result = command("evaluate", *flags(sets), "--checkpoint", copied, "--domain=source",
                         "--protocol=network", "--flip=no", "--pictures=0",
                         "--out", tmp_path / name)
        assert result.code == 0, result
        found = json.loads((tmp_path / name / "evaluation.json").read_text())["results"]
        return result.out, found["network"]["iou"]

    _, before = scores("before")
    exchange(sets / "source/data.yaml", ORDER)
    told, after = scores("after")
    assert "its heads are reordered by name" in told
    assert list(after) == ["thing", "ground"] and after == before
    exchange(sets / "source/data.yaml", ORDER[::-1], IDS)
    told, _ = scores("exchanged")
    assert ("note: the labels of data are read otherwise than in training: the number 0 in labels "
            "is ground there, thing now") in told
