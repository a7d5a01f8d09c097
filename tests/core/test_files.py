"""Written whole or not at all, files and folders alike."""

import os
import re
import subprocess
import sys

import pytest

from snr_jax.core.errors import UserError
from snr_jax.core.files import refuse_pattern, user_path, write_text, written_whole
from tests.commands import ROOT, bound_by_permissions


def test_a_file_has_its_name_when_it_is_whole(tmp_path):
    path = tmp_path / "new/folders/a.txt"
    with written_whole(path) as unfinished:
        unfinished.write_text("new")
        assert unfinished.parent == path.parent and not path.exists()
    assert path.read_text() == "new" and list(path.parent.iterdir()) == [path]


def test_a_folder_has_its_name_when_it_is_whole(tmp_path):
    with written_whole(tmp_path / "a") as unfinished:
        (unfinished / "b").mkdir(parents=True)
        assert not (tmp_path / "a").exists()
    assert (tmp_path / "a/b").is_dir() and os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("kind", ["file", "folder", "nothing"])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failed_write_leaves_what_was_there_and_no_other(tmp_path, kind, error):
    write_text(tmp_path / "a", "old")
    with pytest.raises(error), written_whole(tmp_path / "a") as unfinished:
        if kind == "file":
            unfinished.write_text("new")
        elif kind == "folder":
            (unfinished / "b").mkdir(parents=True)
        raise error
    assert (tmp_path / "a").read_text() == "old" and os.listdir(tmp_path) == ["a"]


def test_a_folder_in_the_way_stays(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    with pytest.raises(OSError, match="irectory"):
        write_text(tmp_path / "a", "new")
    assert os.listdir(tmp_path) == ["a"] and os.listdir(tmp_path / "a") == ["b"]


def test_the_next_start_does_not_mix_with_what_a_kill_left(tmp_path):
    (tmp_path / "a.partial/killed").mkdir(parents=True)
    with written_whole(tmp_path / "a", mark="partial") as unfinished:
        assert unfinished == tmp_path / "a.partial"
        unfinished.mkdir()
    assert os.listdir(tmp_path) == ["a"] and os.listdir(tmp_path / "a") == []


def test_text_is_utf_8_or_nothing(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "Straße")
    assert path.read_bytes() == "Straße".encode()
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new \ud800")
    assert path.read_text("utf-8") == "Straße" and list(tmp_path.iterdir()) == [path]


# ---------------------------------------------------------------- what a user's words mean


def test_a_tilde_is_the_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    words = {"~/runs": "/home/me/runs", "~": "/home/me", "runs/~": "runs/~", "a:b": "a:b", "": ""}
    assert {word: user_path(word) for word in words} == words


@pytest.mark.parametrize("word", ["gs://bucket/x", "s3://b", "https://a.org/x.pth", "gs:/b/x",
                                  "hdfs://name/x", "abfss://a@b/x", "file:///tmp", "HTTP://x"])
def test_the_address_of_a_bucket(word):
    with pytest.raises(UserError, match=rf"^{re.escape(word)} is the address of a bucket.*mount"):
        user_path(word)


def test_a_folder_below_one_that_is_read_as_a_pattern(tmp_path, monkeypatch):
    refuse_pattern(tmp_path / "a")
    (tmp_path / "exp[1]").mkdir()
    monkeypatch.chdir(tmp_path / "exp[1]")
    with pytest.raises(UserError, match=r"exp\[1\]/runs/a holds \[, for which nothing"):
        refuse_pattern("runs/a")
    refuse_pattern(tmp_path / "a")


def test_the_folder_that_may_not_be_entered(tmp_path):
    """Of r--, of --x (read is asked of the last one alone), and of none."""
    (tmp_path / "a/b/c").mkdir(parents=True)
    (tmp_path / "a/b/c/file").touch()
    told = {}
    for rights in (0o444, 0o111, 0o000, 0o755):
        (tmp_path / "a/b").chmod(rights)
        paths = [str(tmp_path / inner) for inner in ("a", "a/b", "a/b/c", "a/b/c/file", "a/b/none")]
        program = (f"from snr_jax.core.files import closed_folder\n"
                   f"for path in {paths}: print(closed_folder(path))")
        told[rights] = subprocess.run(
            [*bound_by_permissions(), sys.executable, "-c", program], cwd=ROOT, text=True,
            capture_output=True, check=True).stdout.split()
    closed, none = str(tmp_path / "a/b"), "None"
    assert told == {
        0o444: [none, closed, closed, closed, closed], 0o111: [none, closed, none, none, none],
        0o000: [none, closed, closed, closed, closed], 0o755: [none] * 5,
    }
