"""Two steps of each benchmark with its evaluation, on tiny files in the sets' own formats."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts import crosscity
from snr_jax.core import labels, metrics
from snr_jax.core.labels import class_names
from snr_jax.core.metrics import Counts
from snr_jax.data.decode import import_tensorflow
from snr_jax.runs import evaluation
from snr_jax.studies.crosscity import table as cities_table
from snr_jax.workdir import checkpoints
from tests.commands import TINY, config_flags
from tests.data.tiny_sets import natural_image, random_ids, write_cityscapes

TWO_STEPS = TINY | {
    "num_steps": 2, "eval_every_steps": 2, "batch_size": 1, "eval.num_pictures": 0,
}  # fmt: skip
SYNTHIA_IDS = np.arange(23, dtype=np.uint16)
TRAIN_IDS = np.array([*range(19), 255], np.uint8)


def save(array: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def write_synthia(root: Path, numbers: list[int]) -> None:
    """Labels of 16 bits: the class, an instance of the full range, nothing."""
    for number in numbers:
        save(natural_image(number, 38, 64), root / "RGB" / f"{number:07d}.png")
        classes = random_ids(number, 38, 64, SYNTHIA_IDS)
        instances = np.random.default_rng(number).integers(0, 2**16, (38, 64))
        label = np.stack([classes, instances, np.zeros((38, 64))], -1).astype(np.uint16)
        path = root / "GT" / "LABELS" / f"{number:07d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(import_tensorflow().io.encode_png(label).numpy())


def write_city(root: Path, seed: int) -> None:
    """Train without labels; the test set with them."""
    for number in range(2):
        name = f"pano_{seed}{number}"
        save(natural_image(seed + number, 40, 80), root / "Images" / "Train" / f"{name}.jpg")
        save(natural_image(seed + number + 2, 40, 80), root / "Images" / "Test" / f"{name}.png")
        save(random_ids(seed + number, 40, 80), root / "Labels" / "Test" / f"{name}_eval.png")


def write_acdc(root: Path) -> None:
    """One image of fog and night, two of rain and snow."""
    for number, condition in enumerate(("fog", "night", "rain", "rain", "snow", "snow")):
        end = Path(condition) / "val" / "GP01"
        save(natural_image(number, 40, 72), root / "rgb_anon" / end / f"{number}_rgb_anon.png")
        save(random_ids(number, 40, 72, TRAIN_IDS),
             root / "gt" / end / f"{number}_gt_labelTrainIds.png")


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("benchmarks")
    write_synthia(root / "RAND_CITYSCAPES", [0, 1, 9000])
    write_cityscapes(root, count=2, split="train", height=40, width=80)
    write_cityscapes(root, count=2, split="val", height=40, width=80)
    for seed, city in enumerate(("Rio", "Rome")):
        write_city(root / "NTHU" / city, seed)
    write_acdc(root / "ACDC")
    for number in range(2):
        folder = root / "BDD100K"
        save(natural_image(number, 36, 64), folder / "images/10k/val" / f"{number}.jpg")
        save(random_ids(number, 36, 64, TRAIN_IDS),
             folder / "labels/sem_seg/masks/val" / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def trained(sets, workdirs, command, cache):
    """trained(argument, source) → the folder of two steps of configs/ARGUMENT, made once."""

    def run(argument: str, source: str = "") -> Path:
        workdir = workdirs / argument.replace(":", "_")
        if not workdir.exists():
            start = trained_from(source)
            overrides = TWO_STEPS | {"data.root": sets, "init_from": start}
            name, colon, words = argument.partition(":")
            result = command(
                "main", "--config", f"configs/{name}.py{colon}{words}", "--workdir", workdir,
                "--compilation_cache", cache, *config_flags(overrides),
            )
            assert result.code == 0, result
        return workdir

    def trained_from(source: str) -> str:
        return str(run(source)) if source else ""

    return run


def final(workdir: Path) -> dict:
    return checkpoints.find(workdir).meta


def flags_for(sets: Path, checkpoint: Path, *others: str) -> list[str]:
    """Of snr_jax.evaluate, one protocol."""
    keys = {k: v for k, v in TWO_STEPS.items() if k.startswith(("model", "eval.batch"))}
    return ["--checkpoint", str(checkpoint), "--protocol=network", "--flip=no", "--pictures=0",
            *config_flags(keys | {"data.root": sets}), *others]  # fmt: skip


def read(folder: Path) -> dict:
    return json.loads((folder / "evaluation.json").read_text())


def test_synthia(trained):
    """Sixteen classes, scored on both domains, with the mean of thirteen."""
    meta = final(trained("synthia_dg"))
    assert meta["class_names"] == list(class_names(16)) and meta["source"]["step"] == 2
    for domain, images in (("synthia", 1), ("cityscapes", 2)):
        scores = meta["scores"][domain]
        assert scores["settings"]["images"] == images and scores["settings"]["classes"] == 16
        assert scores["miou_13"] >= 0 and tuple(scores["iou"]) == class_names(16)
    adapted = final(trained("synthia2city_uda:iw_maxsquare_multi,release", "synthia_dg"))
    assert adapted["source"]["recipe"] == "release" and adapted["source"]["step"] == 2
    assert adapted["scores"].keys() == {"synthia", "cityscapes"}


def test_crosscity(trained):
    """Thirteen classes; a target whose training images have no labels."""
    meta = final(trained("city_dg13"))
    assert meta["class_names"] == list(class_names(13))
    adapted = final(trained("city2crosscity_uda:iw_maxsquare,RIO", "city_dg13"))
    assert adapted["class_names"] == list(class_names(13))
    for scores in (meta["scores"], adapted["scores"]):
        assert scores.keys() == {"cityscapes", "crosscity"}
        assert scores["crosscity"]["settings"]["images"] == 2
    contents = [m["scores"]["crosscity"]["settings"]["content"] for m in (meta, adapted)]
    assert contents[0] != contents[1]  # Rome by default, and Rio


def test_domains_in_one_command(trained, sets, command, tmp_path):
    """A row per domain, ACDC by condition and as the sum of their pixels, and the mean."""
    result = command(
        "evaluate", "--config", "configs/synthia_dg.py",
        *flags_for(sets, trained("synthia_dg"), "--domains=cityscapes,bdd100k,acdc",
                   "--size=33,65", "--out", str(tmp_path), "--pictures=1"),
    )
    assert result.code == 0, result
    record = read(tmp_path)
    rows = record["domains"]
    conditions = [f"acdc_{name}" for name in ("fog", "night", "rain", "snow")]
    assert list(rows) == ["cityscapes", "bdd100k", *conditions, "acdc"]
    assert record["mean_of"] == ["cityscapes", "bdd100k", "acdc"]
    images = {name: row["network"]["settings"]["images"] for name, row in rows.items()}
    assert list(images.values()) == [2, 2, 1, 1, 2, 2, 6]
    for name, row in rows.items():
        settings = row["network"]["settings"]
        assert (settings["domain"], settings["size"], settings["step"]) == (name, [33, 65], 2)
    for key in ("miou", "miou_13"):
        each = [rows[name]["network"][key] for name in record["mean_of"]]
        assert record["mean"]["network"][key] == pytest.approx(np.mean(each))
    table = [line.split() for line in result.out.splitlines()]
    for name, scores in [*((n, r["network"]) for n, r in rows.items()),
                         ("mean", record["mean"]["network"])]:  # fmt: skip
        shown = [f"{100 * scores[key]:.1f}" for key in ("miou", "miou_13")]
        assert [name, *shown] in table
    assert ["domain", "network", "network", "(13)"] in table
    drawn = {path.name for path in tmp_path.glob("*.png")}
    assert drawn == {f"predictions_{name}.png" for name in rows if name != "acdc"} | {
        "reliability.png"}
    # The final network scores as at the end of its training.
    then = final(trained("synthia_dg"))["scores"]["cityscapes"]
    assert rows["cityscapes"]["network"]["miou"] == pytest.approx(then["miou"])


def test_sums_are_of_pixels_not_of_scores(sets):
    """Hand-made counts: the row of the sum is the score of all pixels."""
    rows = evaluation.open_rows(
        ["acdc"], root=str(sets), split="val", size=None, max_images=1, classes=labels.CLASSES
    )
    assert {split.size for split in rows.splits.values()} == {(540, 960)}  # its own
    assert [len(split.samples) for split in rows.splits.values()] == [1, 1, 1, 1, 4]
    rng = np.random.default_rng(0)
    counts = {name: rng.integers(0, 9**number, (19, 19))
              for number, name in enumerate(rows.parts["acdc"], 1)}
    confusions = {name: Counts(each, None) for name, each in counts.items()}
    results = evaluation.with_sums(confusions, rows)
    assert results["acdc"]["miou"] == metrics.named_scores(sum(counts.values()))["miou"]
    parts = [results[name]["miou"] for name in counts]
    assert parts == [metrics.named_scores(count)["miou"] for count in counts.values()]
    assert results["acdc"]["miou"] != pytest.approx(np.mean(parts), abs=1e-4)


def test_another_folder(trained, sets, command, tmp_path):
    result = command(
        "evaluate", "--config", "configs/city_dg13.py",
        *flags_for(sets, trained("city_dg13"), "--size=33,65", "--out", str(tmp_path),
                   "--domains=crosscity=NTHU/Rio,crosscity=NTHU/Rome", "--max_images=1"),
    )
    assert result.code == 0, result
    rio, rome = read(tmp_path)["domains"].values()
    contents = [row["network"]["settings"]["content"] for row in (rio, rome)]
    assert contents[0] != contents[1]
    assert list(read(tmp_path)["domains"]) == ["crosscity=NTHU/Rio", "crosscity=NTHU/Rome"]


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--domains=cityscapes,bdd10k"], "Did you mean 'bdd100k'"),
        (["--domains=cityscapes,cityscapes"], "names cityscapes twice"),
        (["--domains=mapillary"], "there is no directory"),
        (["--domains=cityscapes", "--domain=target"], "exclude each other"),
        (["--domains=cityscapes", "--size=33"], "2 whole numbers, 33 to 8192"),
        (["--domains=cityscapes", "--size=33,x"], "2 whole numbers, 33 to 8192"),
        (["--size=33,65"], "--config.target.size"),
        (["--domains=crosscity"], "Images/<split>/*.png"),
    ],
)
def test_mistakes_in_domains(flags, words, trained, sets, refused):
    config = ["--config", "configs/synthia_dg.py"]
    assert words in refused(
        "evaluate", *config, *flags_for(sets, trained("synthia_dg")), *flags
    )


@pytest.fixture
def cities(trained, sets, cache, tmp_path):
    """The arguments of scripts/crosscity.py for two cities."""
    overrides = TWO_STEPS | {"data.root": sets, "init_from": trained("city_dg13")}
    return ["crosscity", "--config=configs/city2crosscity_uda.py:Tokyo,iw_maxsquare",
            "--out", str(tmp_path / "out"), "--cities=Rio,rome", "--compilation_cache", cache,
            *config_flags(overrides)]  # fmt: skip


def test_the_cities(cities, trained, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    assert crosscity.main(cities) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(results) == ["rio", "rome"]
    before = final(trained("city_dg13"))["scores"]["crosscity"]
    assert results["rome"]["source"] == before
    after = final(tmp_path / "out" / "rio")["scores"]["crosscity"]
    assert results["rio"]["adapted"] == after
    table = (tmp_path / "out" / "table.md").read_text().splitlines()
    assert table[0] == "| | Rio | Rome | mean |"
    for line, name, key in ((2, "source", "source"), (3, "iw_maxsquare", "adapted")):
        values = [100 * results[city][key]["miou"] for city in results]
        cells = [f"{value:.1f}" for value in [*values, np.mean(values)]]
        assert table[line] == f"| {name} | {' | '.join(cells)} |"
    assert table[5] == "| iw_maxsquare, published without SNR | 53.3 | 54.5 | 53.9 |"
    assert cities_table(results, "iw_maxsquare + multi").count("published") == 1
    capfd.readouterr()
    assert crosscity.main(cities) == 0  # what is finished stays
    assert "step 1" not in capfd.readouterr().out
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == results


@pytest.mark.parametrize(
    "flag, words",
    [
        ("--cities=paris", "expected some of rio,rome,tokyo,taipei"),
        ("--cities=tokyo", "there is no directory"),
        ("--config.init_from=", "init_from is empty"),
        ("--config.num_classes=19", "num_classes 13 there, 19 here"),
        ("--config=configs/city_dg13.py", "adapts to no city"),
        ("--config=configs/city2crosscity_uda.py", "the city is missing"),
    ],
)
def test_mistakes_with_cities(flag, words, cities, monkeypatch, capfd, tmp_path):
    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    given = [word for word in cities if not (flag.startswith("--config=") and "onfig" in word)]
    assert crosscity.main([*given, flag]) == 2
    assert words in capfd.readouterr().err
    assert not (tmp_path / "out").exists()
