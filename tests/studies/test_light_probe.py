"""What light costs a network: the changes of colours, and the scores beside evaluation's."""

import numpy as np
import pytest

from scripts import light_probe
from snr_jax.core.models.backbone import architecture
from snr_jax.core.models.deeplab import DeepLab
from snr_jax.core.parallel import create_parallel
from snr_jax.core.state import initial_variables
from snr_jax.data.domains import create_domain
from snr_jax.data.splits import open_split
from snr_jax.runs import network
from snr_jax.runs.evaluation import evaluate
from snr_jax.toy import writer
from snr_jax.workdir import checkpoints

RANDOM = np.random.default_rng(0)
BRIGHT = RANDOM.integers(100, 200, (3, 9, 12, 3)).astype(np.uint8)
DARK = RANDOM.integers(10, 80, (4, 9, 12, 3)).astype(np.uint8)


@pytest.mark.parametrize("change, within", [(light_probe.gain, 1), (light_probe.gamma, 8)])
def test_each_image_gets_the_others_brightness(change, within):
    images = np.stack([BRIGHT[0], BRIGHT[0] // 2])
    changed = change(images, DARK)
    np.testing.assert_allclose(changed.mean((1, 2, 3)), DARK.mean(), atol=within)
    order = np.argsort(images[0].ravel(), kind="stable")
    assert (np.diff(changed[0].ravel()[order].astype(int)) >= 0).all()  # what is brighter stays so


def test_a_histogram_is_taken_over_channel_by_channel():
    other = DARK.copy()
    other[..., 1] = 7
    changed = light_probe.histogram(BRIGHT, other)
    assert (changed[..., 1] == 7).all()
    for c in (0, 2):
        np.testing.assert_allclose(np.percentile(changed[..., c], [10, 50, 90]),
                                   np.percentile(other[..., c], [10, 50, 90]), atol=3)


def test_the_table_has_the_scores_of_evaluation(tmp_path, capsys):
    root = tmp_path / "CamVid"
    writer.write("camvid_ids", root, style="dusk", num_train=12, num_val=3, seed=0, height=48,
                 width=64, workers=1)
    model = DeepLab(num_classes=11, stage_sizes=(1, 1, 1, 1), width=4)
    domain = create_domain("camvid", root)
    checkpoints.save_variables(tmp_path / "net", initial_variables(model, 0), {
        "model": architecture(model), "source": {"input_size": (33, 49)},
        "class_names": [c.name for c in domain.classes]})
    assert light_probe.main(["x", "--checkpoints", str(tmp_path / "net"), "--dir", str(root)]) == 0
    printed = dict(line.split("|")[1:3] for line in capsys.readouterr().out.splitlines()
                   if line.startswith("|"))
    table = {title.strip(): value.strip() for title, value in printed.items()}
    assert len(table) == 14 and {"day, gain of dusk", "dusk, statistics of dusk"} <= table.keys()
    model, variables, _ = network.load(str(tmp_path / "net"))
    for light in ("day", "dusk"):
        split = open_split(domain, f"{light}_val", size=(33, 49), classes=domain.classes)
        scores = evaluate(model, variables, split, parallel=create_parallel())
        assert table[light] == f"{100 * scores['miou']:.1f}"
    assert table["day"] != table["day, statistics of day"]
