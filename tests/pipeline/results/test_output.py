"""Output folders: one search in each, never a half-written or foreign one."""

import json
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from adu import storage
from adu.errors import UserError
from pipeline import patience
from pipeline.results import output as output_module
from pipeline.results.copies import OutputLostError
from pipeline.results.lease import STALE_S
from pipeline.results.output import open_output, point_latest

ROOT = Path(__file__).parents[3]
IDENTITY = {"name": "demo", "train": {"epochs": 6, "lr": 0.1}, "space": {}}


def test_two_searches_at_work_in_one_folder_are_one_too_many(tmp_path):
    open_output(tmp_path / "out", IDENTITY, resume=False)
    code = (
        "import json, sys; from pathlib import Path\n"
        "from pipeline.results.output import open_output\n"
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
    # What another version has written, or not, makes no other search; what the user has named does.
    other |= {"name": "other", "new in this version": 1, "space": {"train.lr": 0.1}}
    with pytest.raises(UserError) as error:
        open_output(folder, other, resume=True)
    assert (
        'holds another search: name is "demo" there and "other" now; space.train.lr is null there '
        "and 0.1 now; train.epochs is 6 there and 12 now (give" in str(error.value)
    )


def test_a_search_has_a_name_of_its_own_that_outlives_its_process_and_not_its_folder(tmp_path):
    first = open_output(tmp_path / "out", IDENTITY, resume=False)
    assert str(uuid.UUID(first.search_id)) == first.search_id
    assert open_output(tmp_path / "out", IDENTITY, resume=True).search_id == first.search_id
    # Another one in the same place is never taken for it.
    first.discard()
    again = open_output(tmp_path / "out", IDENTITY, resume=False)
    assert again.search_id != first.search_id


def test_a_damaged_marker_is_named(tmp_path):
    open_output(tmp_path / "out", IDENTITY, resume=False)
    (tmp_path / "out" / "search.json").write_bytes(b"\xff{")
    with pytest.raises(UserError, match="search.json is damaged"):
        open_output(tmp_path / "out", IDENTITY, resume=True)


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
    assert Path(new.url).exists()
    new.discard()
    assert not Path(new.url).exists()


def test_a_folder_that_was_there_and_empty_is_left_so(tmp_path):
    # Or both a start and a resumption would be refused.
    output = open_output(tmp_path, IDENTITY, resume=False)
    output.ray_log.write_text("what Ray said")
    output.discard()
    assert list(tmp_path.iterdir()) == []
    open_output(tmp_path, IDENTITY, resume=False)


def test_latest_points_to_the_last_one(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        point_latest(tmp_path / name)
    assert (tmp_path / "latest").resolve() == tmp_path / "second"


def test_an_output_in_a_bucket_is_found_by_another_machine(s3):
    url = f"{s3}/deep/out"
    first = open_output(url, IDENTITY, resume=False)
    first.journal.write_text('{"op": 0}\n')
    first.commit()
    # What was not committed is lost with the machine.
    with first.journal.open("a") as stream:
        stream.write('{"op": 1}\n')
    forget_machine(first)
    second = open_output(url, IDENTITY, resume=True)
    assert second.work != first.work
    assert second.journal.read_text() == '{"op": 0}\n'
    with second.journal.open("a") as stream:
        stream.write('{"op": 2}\n')
    second.ray_log.write_text("what Ray said")
    second.close()
    assert not second.work.exists()
    names = storage.names_in(url)
    assert names == ["optuna.journal", "ray.log", "search.json"]
    assert storage.read_bytes(f"{url}/optuna.journal") == b'{"op": 0}\n{"op": 2}\n'


def forget_machine(output) -> None:
    """What the loss of a machine does: its process and its disk are gone."""
    output._copies.stop()
    output_module._held.pop(output.url)
    lock = f"{output.url}/.lock"
    holder = json.loads(storage.read_bytes(lock))
    storage.write_bytes(lock, json.dumps({**holder, "began": "long ago"}).encode())


def test_what_a_bucket_holds_is_resumed_only_when_asked_and_only_as_it_was(s3):
    url = f"{s3}/out"
    with pytest.raises(UserError, match="has no search to resume .--resume-or-start begins one"):
        open_output(url, IDENTITY, resume=True)
    output = open_output(url, IDENTITY, resume=True, or_start=True)
    assert output.created
    output.close()
    with pytest.raises(UserError, match="holds a search already .--resume"):
        open_output(url, IDENTITY, resume=False)
    with pytest.raises(UserError, match='name is "demo" there and "other" now'):
        open_output(url, {**IDENTITY, "name": "other"}, resume=True, or_start=True)
    again = open_output(url, IDENTITY, resume=True, or_start=True)
    assert not again.created
    again.close()


def test_what_is_discarded_in_a_bucket_leaves_nothing_and_touches_nothing_else(s3):
    storage.write_bytes(f"{s3}/images/1.png", b"precious")
    with pytest.raises(UserError, match="holds other files"):
        open_output(f"{s3}/images", IDENTITY, resume=False)
    with pytest.raises(UserError, match="is a whole bucket"):
        open_output(s3, IDENTITY, resume=False)
    output = open_output(f"{s3}/out", IDENTITY, resume=False)
    output.discard()
    assert storage.names_in(f"{s3}/out") == []
    assert storage.read_bytes(f"{s3}/images/1.png") == b"precious"
    open_output(f"{s3}/out", IDENTITY, resume=False).discard()


def test_a_bucket_that_may_not_be_written_is_named(s3, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(UserError, match="/out/.*: the access key or its secret is wrong"):
        open_output(f"{s3}/out", IDENTITY, resume=False)


def test_a_store_that_is_away_is_waited_for_and_then_given_up(s3, monkeypatch):
    output = open_output(f"{s3}/out", IDENTITY, resume=False)
    output.journal.write_text("line\n")
    attempts = []
    real = storage.write_bytes

    def away(url: str, data: bytes) -> None:
        attempts.append(url)
        if len(attempts) < 3:
            raise UserError(f"{url}: cannot connect")
        real(url, data)

    monkeypatch.setattr(storage, "write_bytes", away)
    monkeypatch.setattr(patience, "RETRY_S", 0.01)
    output.commit()
    assert len(attempts) == 3
    output.journal.write_text("line\nline\n")
    attempts.clear()
    monkeypatch.setattr(patience, "OUTAGE_S", 0.0)
    with pytest.raises(OutputLostError, match="cannot connect"):
        output.commit()
    # What came of that is not for the search that goes on from there.
    monkeypatch.setattr(storage, "write_bytes", real)
    output.journal.write_text("line\nline\na failure that is none\n")
    output.close()
    assert storage.read_bytes(f"{s3}/out/optuna.journal") == b"line\n"


def test_a_search_whose_output_was_taken_over_writes_no_more(s3):
    output = open_output(f"{s3}/out", IDENTITY, resume=False)
    output.journal.write_text("line\n")
    lock = f"{output.url}/.lock"
    holder = json.loads(storage.read_bytes(lock))
    storage.write_bytes(lock, json.dumps({**holder, "owner": "another"}).encode())
    # As if it had been away for so long that it must ask.
    output._copies._lease._beat_at -= STALE_S
    for _ in range(2):
        with pytest.raises(OutputLostError, match="taken over by another search"):
            output.commit()
    with pytest.raises(OutputLostError, match="taken over by another search"):
        output.check()
    output.close()
    assert not storage.exists(f"{s3}/out/optuna.journal")
