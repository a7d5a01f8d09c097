"""The study on tiny networks: what is made, what stays, what is made again."""

import json
import signal

import pytest
from PIL import Image

from scripts import study as script
from scripts.study import BENCHMARKS, BUDGET, EVERY, WAYS, keys_of_rows
from snr_jax.config import checks, keys
from snr_jax.configs import camvid_dg, toy_classmix, toy_dg, toy_mic, toy_uda
from snr_jax.core.errors import Stopped, UserError
from snr_jax.studies import study, toys
from snr_jax.studies.study import Benchmark
from tests.commands import said

COLUMNS = ["source", "dusk", "dusk + MaxSquare", "haze", "haze + MaxSquare"]
TINY = {
    "model.stage_sizes": (1, 1, 1, 1), "model.width": 4, "source.size": (33, 65),
    "target.size": (33, 65), "batch_size": 2, "optimizer.base_rate": 0.01, "num_steps": 2,
    "log_every_steps": 1, "eval.batch_size": 2,
}


IN = {"IN": {"model.norm_restitution": "in"}}


@pytest.fixture
def out(tmp_path):
    toys.draw_data(tmp_path / "data", ["dusk", "haze"], 4, 2)
    return tmp_path


def benchmark(out, styles, source, adaptations, variants=IN, **overrides) -> Benchmark:
    for config in (source, *adaptations.values()):
        config.data.root = str(out / "data")
        config.update_from_flattened_dict(TINY | overrides)
    targets = {style: toys.target_keys(style) for style in styles}
    return Benchmark(source, targets, adaptations, variants)


def run(out, styles, stop=study.never, **overrides):
    """The columns that were made, and what was said."""
    of = benchmark(out, styles, toy_dg.get_config(), {"MaxSquare": toy_uda.get_config()},
                   **overrides)
    with said() as lines:
        study.study(out, of, seeds=[0], stop=stop)
    made = [line.split("seed 0, ")[1].split(" (")[0] for line in lines if "===" in line]
    return made, lines


def read(out):
    row = json.loads((out / "results.json").read_text())["IN"]["0"]
    return {column: entry["miou"] for column, entry in row.items()}


def test_what_is_missing_or_made_with_something_else_is_made(out):
    assert run(out, ["dusk"])[0] == COLUMNS[:3]
    first, written = read(out), (out / "IN_0" / "metrics.jsonl").read_bytes()
    assert run(out, ["dusk"])[0] == []
    # A style added later, even as the first: the network of the source is not trained again.
    assert run(out, ["haze", "dusk"])[0] == COLUMNS[3:]
    assert (out / "IN_0" / "metrics.jsonl").read_bytes() == written
    assert {column: read(out)[column] for column in first} == first
    table = (out / "table.md").read_text().splitlines()
    assert table[0] == "| | source | haze | haze + MaxSquare, 2 | dusk | dusk + MaxSquare, 2 |"
    assert "-" not in table[2] and len(read(out)) == 5
    with Image.open(out / "table.png") as picture:
        assert picture.width == 150 * (2.2 + 3 * 3.6)  # the source and two styles

    made, lines = run(out, ["dusk"], **{"optimizer.base_rate": 0.1})
    assert made == COLUMNS[:3]
    assert any("optimizer.base_rate: 0.01 there, 0.1 now" in line for line in lines)
    assert (out / "IN_0.other-1").is_dir() and (out / "IN_0_dusk_MaxSquare.other-1").is_dir()
    assert read(out)["source"] != first["source"]
    assert run(out, ["dusk"], **{"optimizer.base_rate": 0.1})[0] == []


def test_other_data_are_scored_again(out):
    run(out, ["dusk"])
    (out / "data/dusk").rename(out / "data/clear")
    (out / "data/haze").rename(out / "data/dusk")
    assert run(out, ["dusk"])[0] == ["dusk", "dusk + MaxSquare"]


def test_a_stopped_study_keeps_its_numbers(out):
    calls = []

    def stop():
        calls.append(True)
        done = out / "results.json"
        return signal.SIGTERM if done.exists() and "source" in read(out) else None

    with pytest.raises(Stopped) as stopped:
        run(out, ["dusk"], stop=stop)
    assert stopped.value.exit_code == 143 and calls
    assert list(read(out)) == ["source"]
    assert "| - | - |" in (out / "table.md").read_text().splitlines()[2]
    assert run(out, ["dusk"])[0] == COLUMNS[1:3]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"IN": {"0": {"source": 0.5}}}', '{"IN": {"0": {"source": {"miou": 0.5}}}}',
     '{"IN": {"0": {"source": {"miou": 0.5, "made_with": {"config": []}}}}}',
     '{"IN": {"0": {"source": {"miou": 0.5, "made_with": {"config": {}, "initial": null, '
     '"data": {}}}}}}'],
)
def test_damaged_numbers_are_told(out, text):
    (out / "results.json").write_text(text)
    with pytest.raises(UserError, match=r"results\.json is damaged.*Remove it"):
        run(out, ["dusk"])


def test_the_table_has_mean_and_deviation():
    def made(**scores):
        return {name: {"miou": miou} for name, miou in scores.items()}

    runs = {"0": made(source=0.40, dusk=0.1), "1": made(source=0.44, dusk=0.2)}
    titles = {"source": "source", "dusk": "dusk", "dusk + MaxSquare": "dusk + MaxSquare, 150"}
    table = study.table({"plain": runs, "SNR": {"0": made(source=0.5)}}, titles).splitlines()
    assert table[0] == "| | source | dusk | dusk + MaxSquare, 150 |"
    # Deviation of a sample of two: half the difference times sqrt(2).
    assert table[2] == "| plain | 42.0 ± 2.8 | 15.0 ± 7.1 | - |"
    assert table[3:] == ["| SNR | 50.0 | - | - |"]


def test_the_picture_has_a_panel_for_each_domain():
    def made(**scores):
        return {name.replace("_", " "): {"miou": miou} for name, miou in scores.items()}

    results = {"plain": {"0": made(source=0.4, at_dusk=0.1), "1": made(source=0.44)},
               "SNR": {"0": {"at dusk + MaxSquare": {"miou": 0.2}}}}
    assert study.panels(results, study.columns(["at dusk"], ["MaxSquare"])) == {
        "source": {"plain": {"before": [0.4, 0.44]}, "SNR": {"before": []}},
        "at dusk": {"plain": {"before": [0.1], "MaxSquare": []},
                    "SNR": {"before": [], "MaxSquare": [0.2]}},
    }


def test_without_adaptation_and_with_the_classes_of_a_content(tmp_path):
    toys.draw_data(tmp_path / "data", ["dusk"], 4, 2, content="tint")
    for folder in ("GTA5", "dusk/Cityscapes"):
        marker = json.loads((tmp_path / "data" / folder / "toy.json").read_text())
        assert marker["content"] == "tint"
    named = ("road", "sky")
    of = benchmark(tmp_path, ["dusk"], toy_dg.get_config(), {})
    text = study.study(tmp_path, of, seeds=[0], classes=named)
    row = json.loads((tmp_path / "results.json").read_text())["IN"]["0"]
    assert list(row) == ["source", "dusk"]  # nothing is adapted
    assert text + "\n" == (tmp_path / "table.md").read_text()
    all_classes, some = text.split("Mean IoU of road, sky:")
    for part, score in (
        (all_classes, lambda entry: entry["miou"]),
        (some, lambda entry: (entry["iou"]["road"] + entry["iou"]["sky"]) / 2),
    ):
        lines = part.strip().splitlines()
        assert lines[0] == "| | source | dusk |"
        numbers = " | ".join(f"{100 * score(entry):.1f}" for entry in row.values())
        assert lines[2] == f"| IN | {numbers} |"


def test_every_way_to_adapt_has_a_column_and_a_run(out):
    """Class mixing beside MaxSquare: from one network, in folders of their own."""
    source, *others = (m.get_config() for m in (toy_dg, toy_uda, toy_classmix))
    adaptations = dict(zip(("MaxSquare", "class mixing"), others))
    of = benchmark(out, ["dusk"], source, adaptations, **{"data.crop": (0, 0)})
    text = study.study(out, of, seeds=[0])
    assert text.splitlines()[0] == (
        "| | source | dusk | dusk + MaxSquare, 2 | dusk + class mixing, 2 |")
    row = json.loads((out / "results.json").read_text())["IN"]["0"]
    assert list(row) == ["source", "dusk", "dusk + MaxSquare", "dusk + class mixing"]
    made_with = [row[name]["made_with"]["config"]["loss"]["target"] for name in list(row)[2:]]
    assert made_with == ["maxsquare", "classmix"]
    assert (out / "IN_0_dusk_classmixing" / "checkpoints" / "teacher").is_dir()


def test_masked_consistency_is_class_mixing_with_masks():
    """That of its configuration on the toys; of whole photographs too it is legal."""
    module, masks = WAYS["masked consistency"]
    config = toy_classmix.get_config()
    assert module == "classmix" == WAYS["class mixing"][0] and "camvid" in BENCHMARKS
    config.update_from_flattened_dict(masks)
    assert keys.values(config) == keys.values(toy_mic.get_config())
    for name, (way, changes) in WAYS.items():
        config = {"classmix": toy_classmix, "uda": toy_uda}[way].get_config()
        config.update_from_flattened_dict(BUDGET | changes)
        checks.check(config), name


def test_a_row_has_the_network_and_the_training_that_it_names():
    """Read from its configuration; in the study's order, the first eight unless told."""
    networks = {"plain": ("none", 0.01), "IN": ("in", 0.01), "SNR": ("snr", 0.0),
                "SNR + restitution loss": ("snr", 0.01)}
    # jitter, exposure, optimiser and its rate of the heads
    trainings = {"": ("none", False, "sgd", 1.0), " + jitter": ("custom", False, "sgd", 1.0),
                 " + exposure": ("none", True, "sgd", 1.0),
                 " + AdamW": ("none", False, "adamw", 0.05),
                 " + exposure + AdamW": ("none", True, "adamw", 0.05)}
    found = {}
    for name, changes in keys_of_rows().items():
        config = camvid_dg.get_config()
        config.update_from_flattened_dict(changes)
        model, optimizer = config.model, config.optimizer
        found[name] = (model.norm_restitution, config.loss.restitution_weight, config.data.jitter,
                       model.exposure, optimizer.kind, optimizer.head_rate)
    assert found == {network + training: (*networks[network], *trainings[training])
                     for training in trainings for network in networks}
    assert list(found) == list(EVERY) and BENCHMARKS["camvid"][1] == EVERY[:8]


@pytest.mark.parametrize(
    "name, folder, splits",
    [("camvid", "CamVid", ["day_train", "day_val", "dusk_train", "dusk_val"]),
     ("camvid_back", "CamVid", ["dusk_train", "dusk_val", "day_train", "day_val"]),
     ("drawings", "OUT/data/CamVid", ["day_train", "day_val", "day_train", "day_val"])],
)  # fmt: skip
def test_a_benchmark_of_photographs_is_of_the_lights_that_it_names(
    name, folder, splits, tmp_path, monkeypatch
):
    """By the command; the adaptations have a length of their own."""
    asked = []
    monkeypatch.setattr(toys, "draw", lambda *args, **keys: None)
    monkeypatch.setattr(study, "study", lambda out, of, **rest: asked.append((of, rest["seeds"])))
    flags = ["--data=photos", "--seeds=3,4", f"--out={tmp_path}"]
    assert script.main(["study", f"--benchmark={name}", *flags]) == 0
    ((made, seeds),) = asked
    assert seeds == [3, 4] and tuple(made.variants) == EVERY[:8]
    for config in (made.source, *made.adaptations.values()):
        found = [config[side][f"{part}_split"] for side in ("source", "target")
                 for part in ("train", "val")]
        assert found == splits and config.data.root == "photos"
        assert config.source.dir == folder.replace("OUT", str(tmp_path))
        assert config.target.dir == "CamVid"
        assert config.num_steps == (1200 if config is made.source else 300)
    losses = {way: (c.loss.target, c.loss.lambda_target) for way, c in made.adaptations.items()}
    assert losses.pop("class mixing")[0] == "classmix"
    assert losses == {"statistics": ("maxsquare", 0.0), "MaxSquare": ("maxsquare", 0.1),
                      "MaxSquare IW x 10": ("iw_maxsquare", 10.0)}


def test_rows_stand_in_the_order_of_the_benchmark_and_keep_what_it_leaves_out(out):
    """Also of a variant whose colours change, and of a set that is source and target at once."""
    half = {f"{side}.{key}": value for side in ("source", "target")
            for key, value in (("domain", "gta5"), ("dir", "GTA5"), ("val_split", "val"))}
    jitter = {"IN + jitter": IN["IN"] | study.JITTER}
    of = benchmark(out, ["dusk"], toy_dg.get_config(), {}, jitter | IN)
    of = of._replace(targets={"itself": half})
    table = study.study(out, of, seeds=[0]).splitlines()
    assert [line.split(" | ")[0] for line in table[2:]] == ["| IN + jitter", "| IN"]
    rows = json.loads((out / "results.json").read_text())
    jittered, plain = (rows[name]["0"]["source"] for name in ("IN + jitter", "IN"))
    assert jittered["made_with"]["config"]["data"]["jitter"] == "custom"
    assert plain["made_with"]["config"]["data"]["jitter"] == "none"
    assert rows["IN"]["0"]["itself"]["miou"] == plain["miou"]
    table = study.study(out, of._replace(variants=IN), seeds=[0]).splitlines()
    assert [line.split(" | ")[0] for line in table[2:]] == ["| IN", "| IN + jitter"]


def test_trainings_begin_from_the_networks_of_another_study(out):
    """Of the same row and seed; what is missing there is told before anything is trained."""
    first = out / "first"
    source = toy_dg.get_config()
    study.study(first, benchmark(out, [], source, {}), seeds=[0, 1])
    then = benchmark(out, ["dusk"], source, {"MaxSquare": toy_uda.get_config()})
    then = then._replace(init_from=first)
    with pytest.raises(UserError, match=r"first: IN_2 has no network yet.*--seeds 2"):
        study.study(out, then, seeds=[0, 2])
    with pytest.raises(UserError, match=r"is --out as well.*another --out"):
        study.study(first, then, seeds=[0])
    assert not (out / "results.json").exists()

    study.study(out, then, seeds=[1])
    row = json.loads((out / "results.json").read_text())["IN"]["1"]
    begun = {column: entry["made_with"]["config"]["init_from"] for column, entry in row.items()}
    earlier, base = (str(folder / "IN_1/checkpoints/final") for folder in (first, out))
    assert begun == {"source": earlier, "dusk": earlier, "dusk + MaxSquare": base}
    # Another network there: all that began from it is made again.
    (first / "IN_1").rename(first / "IN_3")
    (first / "IN_0").rename(first / "IN_1")
    before = json.loads((out / "results.json").read_text())["IN"]["1"]
    study.study(out, then, seeds=[1])
    row = json.loads((out / "results.json").read_text())["IN"]["1"]
    assert all(row[column]["made_with"] != before[column]["made_with"] for column in row)
