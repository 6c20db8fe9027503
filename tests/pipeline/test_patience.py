"""What is waited for, and what is not: a disk that is really full."""

import threading

import pytest

from adu import storage
from adu.errors import UserError
from pipeline import patience
from pipeline.patience import outlast, patiently
from tests.small_disk import small_disk


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(patience, "RETRY_S", 0.05)


def test_a_file_is_written_when_its_full_disk_has_room_again(tmp_path, capsys):
    with small_disk(tmp_path / "disk") as disk:
        file = str(disk.folder / "outcome.npz")
        disk.fill()
        room = threading.Timer(0.5, disk.free)
        room.start()
        patiently(file, lambda: storage.write_bytes(file, bytes(100_000)))
        room.join()
        assert f"waiting for {file}: " in capsys.readouterr().err
        # Attempts that failed have left nothing.
        assert [each.name for each in disk.folder.iterdir()] == ["outcome.npz"]


def test_what_stays_wrong_is_not_waited_for(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(UserError):
        patiently(str(tmp_path), lambda: storage.write_bytes(str(tmp_path / "file" / "x"), b""))
    with pytest.raises(ZeroDivisionError):
        patiently("s3://bucket/x", lambda: 1 // 0)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(patience, "OUTAGE_S", 0.2)
    with pytest.raises(ZeroDivisionError):
        outlast(lambda: 1 // 0, lambda error: f"a sum: {error}")
    assert "waiting for a sum: " in capsys.readouterr().err
