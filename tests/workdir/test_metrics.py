"""metrics.jsonl: what a run goes on with where lines of it are gone."""

import json

import pytest

from snr_jax.core.errors import UserError
from snr_jax.workdir.metrics import METRICS_FILE, create_writer, read_scalars
from tests.commands import said

LINES = [json.dumps({"step": step, "train/loss_source": 1.0}) + "\n" for step in range(1, 21)]


def go_on(workdir, step: int) -> list[str]:
    with said() as lines, create_writer(workdir, step):
        pass
    return lines


@pytest.mark.parametrize(
    "text, missing",
    [
        (None, "1 to 15"), ("", "1 to 15"), ("\n\n", "1 to 15"), ("".join(LINES[:12]), "13 to 15"),
        ("".join(LINES[:12]) + LINES[12][:9], "13 to 15"), ("".join(LINES[15:]), "1 to 15"),
    ],
)
def test_lines_that_are_gone_are_told(text, missing, tmp_path):
    if text is not None:
        (tmp_path / METRICS_FILE).write_text(text)
    (line,) = go_on(tmp_path, 15)
    assert line.startswith(f"WARNING: {tmp_path}/{METRICS_FILE} has no lines of steps {missing}, ")


@pytest.mark.parametrize("rest", ["", "\n \n", "".join(LINES[15:]), LINES[15][:9]])
def test_what_comes_after_the_state_may_be_torn(rest, tmp_path):
    (tmp_path / METRICS_FILE).write_text("".join(LINES[:15]) + rest)
    assert go_on(tmp_path, 15) == []
    assert (tmp_path / METRICS_FILE).read_text() == "".join(LINES[:15])


def test_a_new_run_misses_nothing(tmp_path):
    assert go_on(tmp_path, 0) == []


def test_a_blank_line_is_no_damage_and_another_is(tmp_path):
    (tmp_path / METRICS_FILE).write_text(LINES[0] + "\n" + LINES[1])
    assert read_scalars(tmp_path)["train/loss_source"][0].tolist() == [1, 2]
    (tmp_path / METRICS_FILE).write_text(LINES[0] + "{\n" + LINES[1])
    with pytest.raises(UserError, match="line 2 is damaged"):
        read_scalars(tmp_path)
