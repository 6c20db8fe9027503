"""What a search needs is away for a while: its database, the room on its disk, an executor."""

from __future__ import annotations

import time

import pytest

from adu.errors import UserError
from pipeline import patience
from pipeline.studies.storage import open_storage
from tests.faults.stub_job import EPOCHS, StubJob, trial_states
from tests.postgres import postgres_server
from tests.small_disk import small_disk

TRIALS = {"a": 5, "b": 5}
AWAY_S = 3.0


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(patience, "RETRY_S", 0.2)


def wait_for_epochs(job, n):
    job.watcher.wait_for(lambda: len(job.watcher.epochs) >= n)


def test_a_database_that_restarts_costs_nothing(three_cores, tmp_path):
    with postgres_server() as server:
        job = StubJob(tmp_path, TRIALS, storage=server.url)
        for n in (3, 12, 22):
            wait_for_epochs(job, n)
            server.stop()
            time.sleep(AWAY_S)
            server.start()
        job.wait()
        job.check_complete(TRIALS)
        assert set(job.trained().values()) == {1}, "an epoch was trained for nothing"
        again = open_storage(server.url, tmp_path / "unused")
        assert trial_states(again, "a") == [(n, "COMPLETE", EPOCHS) for n in range(TRIALS["a"])]


def test_a_disk_that_is_full_for_a_while_costs_nothing(three_cores, tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        job = StubJob(disk.folder, TRIALS)
        for n in (3, 12):
            wait_for_epochs(job, n)
            disk.fill()
            time.sleep(AWAY_S)
            disk.free()
        job.wait()
        job.check_complete(TRIALS)


def test_a_search_that_gives_up_on_a_full_disk_can_be_resumed(three_cores, tmp_path, monkeypatch):
    with small_disk(tmp_path / "disk") as disk:
        job = StubJob(disk.folder, TRIALS)
        wait_for_epochs(job, 6)
        monkeypatch.setattr(patience, "OUTAGE_S", AWAY_S)
        disk.fill()
        with pytest.raises(UserError, match="optuna.journal: cannot be written: No space left"):
            job.wait()
        disk.free()
        again = StubJob(disk.folder, TRIALS)
        again.wait()
        again.check_complete(TRIALS, job)


def test_an_executor_that_cannot_open_its_session_costs_no_run(three_cores, tmp_path):
    job = StubJob(tmp_path, TRIALS, session={"refuse": str(tmp_path / "refused")})
    job.wait()
    assert (tmp_path / "refused").exists()
    assert any("cannot start: RuntimeError: no device is to be had" in x for x in job.watcher.lines)
    job.check_complete(TRIALS)
    assert set(job.trained().values()) == {1}
