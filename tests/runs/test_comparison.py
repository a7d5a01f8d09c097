"""What the report shows of two real runs."""

import json

import numpy as np
import pytest

from snr_jax.core.errors import UserError
from snr_jax.report.html import render
from snr_jax.runs.comparison import compare


def test_the_report_of_two_runs(generalised, adapted):
    found = compare({"first": generalised.workdir, "second": adapted.workdir}, num_pictures=2)
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
        compare({"a": tmp_path})
