"""Training on two folders of one's own with five classes; nobody opens the target's labels."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.commands import ADAPT, TINY, config_flags
from tests.data.tiny_sets import natural_image

SOURCE = """
images: {folder}/*.png
labels: {masks}/*.png
splits: [train, val]
classes: {{water: [0, 90, 200], boat: , shore: , sky: , person: }}
ids: {{1: water, 2: boat, 3: shore, 4: sky, 5: person}}
"""


@pytest.fixture
def own(tmp_path) -> Path:
    """lake.yaml with labels in train and val; sea.yaml of the same kind, its labels as well."""
    for name in ("lake", "sea"):
        for split in ("train", "val"):
            for number in range(3):
                images, masks = (tmp_path / name / kind / split for kind in ("images", "masks"))
                images.mkdir(parents=True, exist_ok=True)
                masks.mkdir(parents=True, exist_ok=True)
                ids = np.random.default_rng(number).integers(1, 6, (33, 65)).astype(np.uint8)
                Image.fromarray(natural_image(number, 33, 65)).save(images / f"{number}.png")
                Image.fromarray(ids).save(masks / f"{number}.png")
        (tmp_path / f"{name}.yaml").write_text(SOURCE.format(
            folder=f"{name}/images/{{split}}", masks=f"{name}/masks/{{split}}"))
    return tmp_path


@pytest.mark.parametrize("labels", ["unreadable", "absent", "not_named"])
def test_training_opens_no_label_of_the_target(labels, own, command):
    if labels == "unreadable":
        for path in (own / "sea/masks/train").iterdir():
            path.write_text("whoever opens this fails")
    else:
        shutil.rmtree(own / "sea/masks")
    if labels == "not_named":
        (own / "sea.yaml").write_text("images: sea/images/{split}/*.png\n")
    flags = config_flags({
        **TINY, "num_classes": 5, "init_from": "", "num_steps": 2, "eval_every_steps": 2,
        "source.domain": own / "lake.yaml", "target.domain": own / "sea.yaml",
        "target.val_split": "",
    })
    config = ["--config", ADAPT, *flags]
    result = command("doctor", *config, "--stats", own / "stats.json")
    assert result.code == 0 and "no faults" in result.out, result
    result = command("main", *config, "--workdir", own / "run")
    assert result.code == 0, result
    photos = own / "sea/images/val"
    result = command("predict", "--checkpoint", own / "run", "--images", photos,
                     "--out", own / "out")
    assert result.code == 0 and list((own / "out").iterdir()), result
    if labels == "unreadable":  # of train alone: the sea's validation can be scored
        result = command(
            "evaluate", *config, "--checkpoint", own / "run", "--out", own / "scores",
            f"--domains={own}/lake.yaml,{own}/sea.yaml", "--size=33,65", "--protocol=network",
            "--flip=no", "--pictures=0",
        )
        assert result.code == 0, result
        rows = json.loads((own / "scores/evaluation.json").read_text())["domains"]
        assert list(rows) == ["lake", "sea"]
        for row in rows.values():
            assert list(row["network"]["iou"]) == ["water", "boat", "shore", "sky", "person"]
            assert row["network"]["settings"]["images"] == 3
