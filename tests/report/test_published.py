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
        assert entry["protocol"] in ("network", "full", published.UNSTATED)
        assert entry["classes"] in (19, 16, 13, None) and entry["network"]
        assert "arXiv" in entry["reference"] or "read in" in entry["reference"]
        assert entry["reference"].startswith("SNR") == (THIRD in entry["reference"])
    keys = [tuple(entry[k] for k in ("source", "target", "task", "classes", "method"))
            for entry in ENTRIES]
    assert len(set(keys)) == len(keys)


def numbers(source, target, task, classes, *, same=True):
    """Of the network that most are published with, or of the others."""
    return {
        e["method"]: e["miou"] for e in ENTRIES
        if (e["source"], e["target"], e["task"], e["classes"]) == (source, target, task, classes)
        and (e["network"] == published.NETWORK) == same
    }


def test_the_numbers():
    multi = "MaxSquare + IW + multi"
    table = {
        ("gta5", "cityscapes", "generalisation", 19):
            {"plain": 36.94, "instance norm alone": 39.46, "SNR": 42.68},
        ("synthia", "cityscapes", "generalisation", 16): {"plain": 31.12, "SNR": 34.36},
        ("gta5", "cityscapes", "adaptation", 19): {
            "MinEnt": 42.2, "MaxSquare": 44.3, "MaxSquare + IW": 45.2, multi: 46.4,
            "SNR-MaxSquare": 46.5, "class mixing": 52.1,
            "class mixing, released model": 53.0, "class mixing, released model, best": 53.7,
            "AdvEnt": 43.8, "AdvEnt + MinEnt, ensemble": 45.5, "PixMatch": 47.8,
            "PixMatch, features aligned": 48.0, "BDL": 48.5, "FDA": 50.5, "ProDA": 57.5,
        },
        ("synthia", "cityscapes", "adaptation", 16): {
            "MaxSquare": 39.3, multi: 41.4, "AdvEnt + MinEnt": 41.2, "IntraDA": 41.7,
            "class mixing": 48.3, "IAST": 49.8, "ProDA": 55.5,
        },
        ("synthia", "cityscapes", "adaptation", 13): {
            multi: 48.2, "AdvEnt + MinEnt": 48.0, "IntraDA": 48.9, "IAST": 57.0, "ProDA": 62.0,
        },
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
    same = [e for e in ENTRIES if e["network"] == published.NETWORK]
    assert sum(map(len, table.values())) == len(same)
    noted = {e["method"] for e in same if e["note"] and e["source"] != "synthia"}
    assert noted == {
        "MinEnt", "class mixing, released model", "class mixing, released model, best", "PixMatch",
        "PixMatch, features aligned",
    }
    snr = {e["method"] for e in ENTRIES if THIRD in e["reference"]}
    assert snr == {"plain", "instance norm alone", "SNR", "SNR-MaxSquare"}


def test_the_numbers_of_other_networks():
    table = {
        ("gta5", "cityscapes", "generalisation", 19): {
            "IBN": 37.37, "ISW": 37.20, "ISW, its own README": 37.09, "DRPC": 42.53,
            "SAN-SAW": 45.33, "SHADE": 46.66, "DAFormer": 52.65, "HRDA": 57.41, "Rein": 66.7,
            "VLTSeg": 66.69,
        },
        ("gta5", "bdd100k", "generalisation", 19): {
            "IBN": 34.21, "ISW": 33.36, "ISW, its own README": 35.37, "DRPC": 38.72,
            "SAN-SAW": 41.18, "SHADE": 43.66, "DAFormer": 47.89, "HRDA": 49.11, "VLTSeg": 60.16,
        },
        ("gta5", "mapillary", "generalisation", 19): {
            "IBN": 36.81, "ISW": 35.57, "ISW, its own README": 38.50, "DRPC": 38.05,
            "SAN-SAW": 40.77, "SHADE": 45.50, "DAFormer": 54.66, "HRDA": 61.16, "VLTSeg": 66.49,
        },
        ("gta5", "acdc", "generalisation", 19): {"VLTSeg": 60.12},
        ("gta5", "cityscapes", "adaptation", 19): {
            "DAFormer": 68.3, "HRDA": 73.8, "MIC": 75.9, "VFM-UDA, ViT-B": 77.1,
            "VFM-UDA, ViT-L": 78.4, "VFM-UDA++": 79.8,
        },
        ("synthia", "cityscapes", "adaptation", 16): {"DAFormer": 60.9, "HRDA": 65.8},
        ("cityscapes", "acdc", "adaptation", 19): {
            "ADVENT": 32.7, "BDL": 37.7, "MGCDA": 48.7, "DANNet": 50.0, "DAFormer": 55.4,
            "HRDA": 68.0,
        },
        ("cityscapes", "dark_zurich", "adaptation", 19): {
            "ADVENT": 29.7, "BDL": 30.8, "MGCDA": 42.5, "DANNet": 45.2, "DAFormer": 53.8,
            "HRDA": 55.9,
        },
    }  # fmt: skip
    for setting, scores in table.items():
        assert numbers(*setting, same=False) == scores, setting
    assert sum(map(len, table.values())) == sum(e["network"] != published.NETWORK for e in ENTRIES)
    assert all("test split" in e["note"] for e in ENTRIES
               if e["source"] == "cityscapes" and e["target"] in ("acdc", "dark_zurich"))


def test_where_the_corrected_ones_were_read():
    of = {(e["source"], e["classes"], e["method"]): e for e in ENTRIES if e["task"] == "adaptation"}
    assert of["gta5", 19, "MinEnt"]["note"] == "MaxSquare's own run of it"
    assert "read in a summary of SNR" in of["synthia", 16, "MaxSquare"]["reference"]
    for classes in (16, 13):
        multi = of["synthia", classes, "MaxSquare + IW + multi"]
        assert "read in a leaderboard" in multi["reference"]


def test_only_the_same_setting_stands_beside_a_run():
    (block,) = beside([run()], published.published())
    scores = [(row.method, row.score, row.setting.classes) for row in block.rows]
    assert scores == [
        ("mine", "40.0", 16), ("MaxSquare", "39.3", 16), ("MaxSquare + IW + multi", "41.4", 16),
        ("AdvEnt + MinEnt", "41.2", 16), ("IntraDA", "41.7", 16), ("class mixing", "48.3", 16),
        ("IAST", "49.8", 16), ("ProDA", "55.5", 16), ("SNR-MaxSquare", "45.1", None),
    ]  # fmt: skip
    assert block.title == "synthia → cityscapes, adaptation, 16 classes"
    told = "\n".join(block.warnings)
    assert "third party's summary" in told
    assert "SNR-MaxSquare 45.1: class count not stated" in told
    assert "differ" not in told
    assert THIRD in " ".join(cells(block.rows[-1])) and cells(block.rows[0])[-1] == "this report"
    assert "protocol is not stated" in told


def test_other_networks_stand_apart():
    (block,) = beside([run()], published.published())
    assert [(row.method, row.network) for row in block.others] == [
        ("DAFormer", "MiT-B5, DAFormer"), ("HRDA", "MiT-B5, HRDA")]
    assert block.notes[0] == published.APART
    (small,) = beside([run(network="small")], published.published())
    assert [row.method for row in small.rows] == ["mine"]
    assert small.others == [*block.rows[1:-1], *block.others, block.rows[-1]]
    assert "No published number of this network" in small.warnings[0]
    assert any("third party's summary" in note for note in small.notes)
    both = [run(), run(network="small")]
    (block,) = beside(both, published.published())
    assert any("networks differ" in line for line in block.warnings)


def test_equal_notes_are_told_once():
    setting = Setting("cityscapes", "acdc", "adaptation", 19)
    (block,) = beside([run(setting=setting)], published.published())
    (note,) = [line for line in block.notes if "test split" in line]
    assert note.startswith("ADVENT 32.7, BDL 37.7, ") and len(block.others) == 6


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"protocol": "full"}, "protocols differ (full, network)"),
        ({"protocol": "network+flip"}, "protocols differ (network+flip, network)"),
        ({"network": "small"}, "No published number of this network"),
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
    assert [len(block.rows) for block in blocks] == [10, 3]


def test_seeds_have_mean_and_sample_deviation():
    assert run(miou=(0.40, 0.42, 0.47)).score == "43.0 ± 3.6"
    assert run(miou=(0.4321,)).score == "43.2"
