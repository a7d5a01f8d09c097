"""The published numbers, and what is said where they stand beside runs."""

import json
from pathlib import Path

import pytest

from snr_jax.report import published
from snr_jax.report.published import Row, Setting, beside, cells

ENTRIES = json.loads(Path(published.__file__).with_name("published.json").read_text())
ADAPTATION = Setting("synthia", "cityscapes", "adaptation", 16)
THIRD = "through a third party's summary"


def run(miou=(0.4,), setting=ADAPTATION, protocol="network", network=published.NETWORK, **more):
    return Row(setting, "mine", miou, protocol, network, "val, 500 images, 512x1024", **more)


def test_every_entry_has_its_setting_protocol_network_and_source():
    kinds = {
        "source": str, "target": str, "task": str, "classes": int | None, "method": str,
        "miou": int | float, "protocol": str, "network": str, "reference": str, "note": str,
    }  # fmt: skip
    for entry in ENTRIES:
        assert list(entry) == list(kinds)
        assert all(isinstance(entry[key], kind) for key, kind in kinds.items()), entry
        assert entry["task"] in ("generalisation", "adaptation")
        assert entry["protocol"] in ("network", "full") and entry["classes"] in (19, 16, 13, None)
        assert entry["network"] == published.NETWORK and "arXiv" in entry["reference"]
        assert ("SNR" in entry["reference"]) == (THIRD in entry["reference"])
    keys = [tuple(entry[k] for k in ("source", "target", "task", "classes", "method"))
            for entry in ENTRIES]
    assert len(set(keys)) == len(keys)


def numbers(source, target, task, classes):
    return {
        e["method"]: e["miou"] for e in ENTRIES
        if (e["source"], e["target"], e["task"], e["classes"]) == (source, target, task, classes)
    }


def test_the_numbers():
    multi = "MaxSquare + IW + multi"
    table = {
        ("gta5", "cityscapes", "generalisation", 19):
            {"plain": 36.94, "instance norm alone": 39.46, "SNR": 42.68},
        ("synthia", "cityscapes", "generalisation", 16): {"plain": 31.12, "SNR": 34.36},
        ("gta5", "cityscapes", "adaptation", 19): {
            "MinEnt": 42.2, "MaxSquare": 44.3, "MaxSquare + IW": 45.2, multi: 46.4,
            "SNR-MaxSquare": 46.5, "class mixing": 52,
            "class mixing, released model": 53.0, "class mixing, released model, best": 53.7,
        },
        ("synthia", "cityscapes", "adaptation", 16): {"MaxSquare": 39.3, multi: 41.4},
        ("synthia", "cityscapes", "adaptation", 13): {multi: 48.2},
        ("synthia", "cityscapes", "adaptation", None): {"SNR-MaxSquare": 45.1},
    }  # fmt: skip
    cities = {"rome": (51.0, 53.9, 54.5), "rio": (48.9, 52.0, 53.3), "tokyo": (47.8, 49.7, 50.5),
              "taipei": (46.3, 49.8, 50.6)}
    for city, (plain, maxsquare, weighted) in cities.items():
        setting = ("cityscapes", f"crosscity_{city}")
        table[(*setting, "generalisation", 13)] = {"plain": plain}
        table[(*setting, "adaptation", 13)] = {"MaxSquare": maxsquare, "MaxSquare + IW": weighted}
    for setting, scores in table.items():
        assert numbers(*setting) == scores, setting
    assert sum(map(len, table.values())) == len(ENTRIES)
    noted = {e["method"] for e in ENTRIES if e["note"] and e["source"] != "synthia"}
    assert noted == {m for m in table["gta5", "cityscapes", "adaptation", 19] if "mixing" in m}
    snr = {e["method"] for e in ENTRIES if THIRD in e["reference"]}
    assert snr == {"plain", "instance norm alone", "SNR", "SNR-MaxSquare"}


def test_only_the_same_setting_stands_beside_a_run():
    (block,) = beside([run()], published.published())
    scores = [(row.method, row.score, row.setting.classes) for row in block.rows]
    assert scores == [
        ("mine", "40.0", 16), ("MaxSquare", "39.3", 16), ("MaxSquare + IW + multi", "41.4", 16),
        ("SNR-MaxSquare", "45.1", None),
    ]  # fmt: skip
    assert block.title == "synthia → cityscapes, adaptation, 16 classes"
    told = "\n".join(block.warnings)
    assert "third party's summary" in told
    assert "SNR-MaxSquare 45.1: class count not stated" in told
    assert "differ" not in told
    assert THIRD in " ".join(cells(block.rows[-1])) and cells(block.rows[0])[-1] == "this report"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"protocol": "full"}, "protocols differ (full, network)"),
        ({"protocol": "network+flip"}, "protocols differ (network+flip, network)"),
        ({"network": "small"}, "networks differ"),
    ],
)
def test_what_cannot_be_compared_is_said(change, words):
    (block,) = beside([run(**change)], published.published())
    assert any(words in line for line in block.warnings)
    (same,) = beside([run()], published.published())
    assert not any(words in line for line in same.warnings)


def test_runs_on_other_images_are_said():
    other = run()._replace(scored="val, 20 images, 512x1024")
    (block,) = beside([run(), other], [])
    assert any("different images" in line for line in block.warnings)


def test_an_unknown_setting_has_its_runs_alone():
    mine = run(setting=Setting("mine", "theirs", "generalisation", 5))
    (block,) = beside([mine], published.published())
    assert block.rows == [mine] and "No published number" in block.warnings[0]


def test_a_block_for_each_setting():
    other = run(setting=ADAPTATION._replace(task="generalisation"))
    blocks = beside([run(), other, run()], published.published())
    assert [len(block.rows) for block in blocks] == [5, 3]


def test_seeds_have_mean_and_sample_deviation():
    assert run(miou=(0.40, 0.42, 0.47)).score == "43.0 ± 3.6"
    assert run(miou=(0.4321,)).score == "43.2"
