"""What the report shows of real runs."""

import json
import shutil

import numpy as np
import pytest

from snr_jax.core.errors import UserError
from snr_jax.report.html import render
from snr_jax.studies.comparison import compare, group_by_seed, rows, setting
from snr_jax.workdir import checkpoints
from tests.commands import PATTERN


def copy(run, folder, **changes):
    """The folder of the run with other keys in its record; "init_from" also of its start."""
    shutil.copytree(run.workdir, folder)
    record = json.loads((folder / "run.json").read_text())
    for key, value in changes.items():
        *path, last = key.split("__")
        place = record["config"]
        for part in path:
            place = place[part]
        place[last] = value
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def scale_scores(folder, factor):
    path = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines = [
        {k: v * factor if k.startswith("eval/") and isinstance(v, float) else v
         for k, v in line.items()} for line in lines
    ]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_report_of_two_runs(generalised, adapted):
    found = compare({"first": [generalised.workdir], "second": [adapted.workdir]}, num_pictures=2)
    lines = (adapted.workdir / "metrics.jsonl").read_text().splitlines()
    last = {k: v for line in lines for k, v in json.loads(line).items()}
    assert found["summary"]["second"] == {
        "source (gta5)": last["eval/gta5/network/miou"],
        "target (cityscapes)": last["eval/cityscapes/network/miou"],
    }
    road = found["results"]["second"]["iou"]["road"]
    assert road == last["eval/cityscapes/network/iou/road"]
    assert found["results"]["first"]["iou"]["road"] != road  # another network
    assert list(found["curves"]) == ["source loss", "target mIoU"]
    steps, _ = found["curves"]["source loss"]["first"]
    assert steps.tolist() == list(range(1, 21))
    assert [list(row) for row in found["images"]] == [["input", "label", "first", "second"]] * 2
    first, second = found["images"]
    assert first["input"].shape == (33, 65, 3) and (first["input"] != second["input"]).any()
    page = render(title="two runs", **found)
    assert page.count("<img") == 8 and page.count("<svg") == 2
    score = f"{100 * last['eval/cityscapes/network/miou']:.1f}<small>"
    assert score in page and np.isfinite(last["eval/cityscapes/network/miou"])


def test_a_run_without_scores_is_told(generalised, tmp_path):
    (tmp_path / "run.json").write_text((generalised.workdir / "run.json").read_text())
    with pytest.raises(UserError, match="has no score on gta5"):
        compare({"a": [tmp_path]})


def test_runs_that_differ_in_the_seed_alone_are_one_row(generalised, tmp_path):
    one = generalised.workdir
    two = copy(generalised, tmp_path / "two", seed=7)
    again = copy(generalised, tmp_path / "again", seed=7)
    other = copy(generalised, tmp_path / "other", seed=8, optimizer__base_rate=0.02)
    groups = group_by_seed([one, other, two, again])
    assert list(groups.values()) == [[one, two], [other], [again]]
    assert list(groups) == [f"{one.name} (2 seeds)", "other", "again"]
    with pytest.raises(UserError, match="named twice"):
        group_by_seed([one, one])
    with pytest.raises(UserError, match="holds no run"):
        group_by_seed([tmp_path])


def test_the_runs_that_they_were_begun_from_may_differ_in_the_seed(
    generalised, adapted, tmp_path
):
    start = copy(generalised, tmp_path / "start", seed=7)
    wrong = copy(generalised, tmp_path / "wrong", seed=7, optimizer__momentum=0.5)
    for folder, begun in (("right", start), ("off", wrong)):
        made = copy(adapted, tmp_path / folder, seed=7, init_from=str(begun))
        record = json.loads((made / "run.json").read_text())
        (made / "run.json").write_text(json.dumps({**record, "initial": "12345678"}))
    groups = group_by_seed([adapted.workdir, tmp_path / "right", tmp_path / "off"])
    assert list(groups.values()) == [[adapted.workdir, tmp_path / "right"], [tmp_path / "off"]]


def test_seeds_are_averaged(generalised, tmp_path):
    one, two = generalised.workdir, copy(generalised, tmp_path / "two", seed=7)
    scale_scores(two, 3)
    alone = compare({"a": [one]}, num_pictures=0)
    both = compare({"a": [one, two]}, num_pictures=0)
    for key, value in alone["summary"]["a"].items():
        assert both["summary"]["a"][key] == pytest.approx(2 * value)
    road = alone["results"]["a"]["iou"]["road"]
    assert both["results"]["a"]["iou"]["road"] == pytest.approx(2 * road)
    (steps, values), (there, mean) = (f["curves"]["target mIoU"]["a"] for f in (alone, both))
    assert steps.tolist() == there.tolist() and mean == pytest.approx(2 * values)
    (row,) = rows({"a": [one, two]})
    assert row.mious[1] == pytest.approx(3 * row.mious[0]) and " ± " in row.score


def test_settings_and_protocols_are_those_of_the_record(generalised, adapted, tmp_path):
    first, second = rows({"a": [generalised.workdir], "b": [adapted.workdir]})
    assert first.setting == ("gta5", "cityscapes", "generalisation", 19)
    assert second.setting == ("gta5", "cityscapes", "adaptation", 19)
    assert first.protocol == "network" and first.scored == "val, 3 images, 33x65"
    assert first.network == "DeepLab-v2, blocks 1-1-1-1, 4 channels"
    flipped = copy(generalised, tmp_path / "flipped", eval__flip=True, num_steps=40)
    (row,) = rows({"flipped": [flipped]})
    assert row.protocol == "network+flip" and row.method == "flipped, at step 20 of 40"
    there = json.loads((flipped / "run.json").read_text())
    there["config"]["target"] |= {"domain": "crosscity", "dir": "NTHU/Rome"}
    assert setting(there).target == "crosscity_rome"
    # The target without labels is named, and that the scores are none of it.
    there = json.loads((adapted.workdir / "run.json").read_text())
    del there["data"]["target_val"]
    assert setting(there).target == "cityscapes without labels, scored on gta5"


def test_a_score_on_13_of_16_classes_is_a_row_of_its_own(generalised, tmp_path):
    folder = copy(generalised, tmp_path / "sixteen", num_classes=16)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 20, "eval/cityscapes/network/miou_13": 0.625}\n')
    sixteen, thirteen = rows({"a": [folder]})
    assert (sixteen.setting.classes, thirteen.setting.classes) == (16, 13)
    assert thirteen.mious == (0.625,) and sixteen.mious != (0.625,)


def test_the_command_writes_the_page(generalised, adapted, command, tmp_path):
    out = tmp_path / "page" / "report.html"
    two = copy(generalised, tmp_path / "two", seed=7)
    runs = [generalised.workdir, two, adapted.workdir]
    result = command("compare", *runs, "--out", out, "--pictures", 1)
    assert result.code == 0, result
    assert list(out.parent.iterdir()) == [out]
    page = out.read_text()
    for text in (page, result.out):
        assert "(2 seeds)" in text and " ± 0.0" in text
        assert "42.68" in text and "46.5" in text and "34.36" not in text
        assert "Other networks" in text and "protocols differ" not in text
        # Jinja writes an apostrophe as an entity.
        assert "through a third party" in text
    assert page.count("<img") == 4
    assert f"snr_jax.compare {generalised.workdir}" in page and "--pictures=1</" in page
    assert "--features" not in page and "--title" not in page


def test_the_page_says_that_its_runs_are_scored_unlike(generalised, adapted, command, tmp_path):
    out = tmp_path / "report.html"
    flipped = copy(generalised, tmp_path / "flipped", eval__flip=True)
    result = command("compare", flipped, adapted.workdir, "--out", out, "--pictures", 0)
    assert result.code == 0, result
    lead = out.read_text().split('<p class="lead">')[1].split("</p>")[0]
    assert "The protocols differ (network+flip, network)" in lead


def test_a_page_in_a_folder_that_is_a_pattern(generalised, command, tmp_path):
    page = tmp_path / PATTERN / "page.html"
    result = command("compare", generalised.workdir, "--out", page, "--pictures", 0)
    assert result.code == 0 and "<svg" in page.read_text(), result


def test_the_command_refuses_what_it_cannot_show(generalised, refused, tmp_path):
    run = generalised.workdir
    other = copy(generalised, tmp_path / "other", source__domain="synthia")
    assert "Make a report for each" in refused("compare", run, other)
    assert "expected RUN..." in refused("compare")
    assert "is a folder" in refused("compare", run, "--out", tmp_path)
    assert "holds no run.json" in refused("compare", tmp_path / "none")
    assert "named twice" in refused("compare", run, run)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("role, key, value, words", [
    ("target_val", "content", "another", "target_val: other files"),
    ("source_val", "numbers", {"7": "sidewalk"},
     "source_val: the number 7 in labels is road there, sidewalk now"),
])  # fmt: skip
def test_runs_on_other_data_under_one_name_are_no_page(
    role, key, value, words, generalised, refused, tmp_path
):
    other = copy(generalised, tmp_path / "other", seed=7)
    there = json.loads((other / "run.json").read_text())
    there["data"][role][key] = value
    (other / "run.json").write_text(json.dumps(there))
    error = refused("compare", generalised.workdir, other, "--out", tmp_path / "page.html")
    assert words in error and "of other data under one name" in error


def test_the_page_shows_the_calibration_of_runs_that_were_evaluated(
    generalised, adapted, train_flags, command, tmp_path
):
    """Of the same settings as the validation; another score of the same run is none of it."""
    one = copy(generalised, tmp_path / "one")
    path = one / "evaluation" / "final" / "target" / "evaluation.json"
    path.parent.mkdir(parents=True)
    settings = checkpoints.find(one).meta["scores"]["cityscapes"]["settings"]
    bins = {"pixels": [0] * 14 + [8], "accuracy": [None] * 14 + [0.5],
            "confidence": [None] * 14 + [0.95]}
    scores = {
        "network": {"settings": settings, "ece": 0.456, "reliability": bins},
        "network+flip": {"settings": {**settings, "flip": True}, "ece": 0.123, "reliability": bins},
    }
    path.write_text(json.dumps({"results": scores}))
    folders = {"evaluated": [one], "not": [adapted.workdir]}
    found = compare(folders, num_pictures=0)
    assert found["calibration"] == {"evaluated": {"ece": 0.456, "reliability": bins}}
    page = render(title="page", **found)
    assert "Calibration" in page and "<td>45.6</td>" in page and "12.3" not in page
    scores["network"]["settings"] = {**settings, "step": 1}
    for text in (json.dumps({"results": scores}), "{}", "no JSON"):
        path.write_text(text)
        assert compare(folders, num_pictures=0)["calibration"] == {}
    assert "Calibration" not in render(title="page", **compare(folders, num_pictures=0))
