"""Output folders: one search in each, never a half-written or foreign one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from adu.errors import UserError
from pipeline.output import open_output, point_latest

ROOT = Path(__file__).parents[2]
IDENTITY = {"name": "demo", "train": {"epochs": 6, "lr": 0.1}}


def test_two_searches_at_work_in_one_folder_are_one_too_many(tmp_path):
    open_output(tmp_path / "out", IDENTITY, resume=False)
    code = (
        "import json, sys; from pathlib import Path; from pipeline.output import open_output\n"
        "open_output(Path(sys.argv[1]), json.loads(sys.argv[2]), resume=True)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out"), json.dumps(IDENTITY)]
    other = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert f"output {tmp_path / 'out'}: another search is at work in it" in other.stderr


def test_a_start_that_was_killed_at_once_can_be_made_again(tmp_path):
    (tmp_path / "out" / "studies").mkdir(parents=True)
    (tmp_path / "out" / ".lock").touch()
    open_output(tmp_path / "out", IDENTITY, resume=False)


def test_a_search_is_resumed_only_when_asked_and_only_as_it_was(tmp_path):
    folder = tmp_path / "out"
    assert open_output(folder, IDENTITY, resume=False).created
    with pytest.raises(UserError, match="holds a search already .--resume"):
        open_output(folder, IDENTITY, resume=False)
    assert not open_output(folder, IDENTITY, resume=True).created
    other = {**IDENTITY, "train": {"epochs": 12, "lr": 0.1}}
    with pytest.raises(UserError, match="train.epochs is 6 there and 12 now"):
        open_output(folder, other, resume=True)


def test_there_must_be_something_to_resume(tmp_path):
    with pytest.raises(UserError, match="has no search to resume"):
        open_output(tmp_path / "out", IDENTITY, resume=True)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="holds other files"):
        open_output(tmp_path, IDENTITY, resume=False)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"output .*file/out: cannot be written"):
        open_output(tmp_path / "file" / "out", IDENTITY, resume=False)


def test_only_what_was_created_is_discarded(tmp_path):
    new = open_output(tmp_path / "new", IDENTITY, resume=False)
    again = open_output(tmp_path / "new", IDENTITY, resume=True)
    again.discard()
    assert new.folder.exists()
    new.discard()
    assert not new.folder.exists()


def test_latest_points_to_the_last_one(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        point_latest(tmp_path / name)
    assert (tmp_path / "latest").resolve() == tmp_path / "second"
