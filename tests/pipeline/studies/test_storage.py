"""Optuna's storages outlast full disks and databases that restart: real ones of both."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import optuna
import pytest
import sqlalchemy.exc
from optuna.distributions import FloatDistribution
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from adu.errors import UserError
from pipeline import patience
from pipeline.studies.storage import PatientDatabase, open_storage, read_journal, shown
from tests.postgres import postgres_server
from tests.small_disk import small_disk

SPACE = {"x": FloatDistribution(0, 1)}


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(patience, "RETRY_S", 0.05)


def new_study(storage):
    return optuna.create_study(
        storage=storage, study_name="sketch", direction="maximize", load_if_exists=True
    )


def run_trial(study, value):
    """All that a study tells its storage of a trial."""
    trial = study.ask(SPACE)
    for epoch in range(1, 4):
        trial.report(value * epoch / 3, epoch)
        trial.set_user_attr(f"epoch {epoch}", {"h": value, "note": "x" * 100})
    study.tell(trial, value)


def values(storage):
    study = new_study(storage)
    return [(trial.number, trial.state.name, trial.value) for trial in study.get_trials()]


# --- the journal --------------------------------------------------------------------------------


def test_a_journal_whose_writer_was_killed_is_mended(tmp_path):
    journal = tmp_path / "optuna.journal"
    new_study(open_storage(None, journal)).ask()
    with journal.open("a") as file:
        file.write('{"op_code": 4, "worker')
    Path(f"{journal}.lock").symlink_to(journal)
    new_study(open_storage(None, journal)).ask()
    assert len(new_study(open_storage(None, journal)).trials) == 2


def test_a_last_line_that_cannot_be_read_is_cut_before_another_makes_it_an_inner_one(tmp_path):
    journal = tmp_path / "optuna.journal"
    new_study(open_storage(None, journal)).ask()
    with journal.open("a") as file:
        file.write('{"op_code": 4, "wor{"op_code": 4}\n')
    new_study(open_storage(None, journal)).ask()
    assert len(new_study(open_storage(None, journal)).trials) == 2


def test_a_damaged_line_inside_a_journal_is_told_with_its_number(tmp_path):
    journal = tmp_path / "optuna.journal"
    run_trial(new_study(open_storage(None, journal)), 0.5)
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[3] = lines[3][:20] + lines[3]
    journal.write_bytes(b"".join(lines))
    for open_it in (lambda: open_storage(None, journal), lambda: read_journal(journal)):
        with pytest.raises(UserError) as error:
            open_it()
        assert str(error.value).startswith(f"{journal}: line 4 is damaged: ")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("line", [b"5\n", b'{"a": 1}\n', b'{"op_code": 4, "study_id": 9}\n'])
def test_a_file_that_is_no_journal_is_told(tmp_path, line):
    journal = tmp_path / "optuna.journal"
    journal.write_bytes(line)
    with pytest.raises(UserError, match=r"optuna\.journal: is no journal of Optuna's: "):
        open_storage(None, journal)


def test_a_journal_waits_while_its_disk_is_full(tmp_path, capsys):
    with small_disk(tmp_path / "disk") as disk:
        journal = disk.folder / "optuna.journal"
        study = new_study(open_storage(None, journal))
        run_trial(study, 0.1)
        # Some lines still fit into the last page, and one is cut at its end.
        disk.fill()
        room = threading.Timer(1.0, disk.free)
        room.start()
        for number in range(1, 12):
            run_trial(study, number / 10)
        room.join()
        assert f"waiting for {journal}: cannot be written: No space left" in capsys.readouterr().err
        assert all(json.loads(line) for line in journal.read_bytes().splitlines())
        found = values(open_storage(None, journal))
        assert found == [(0, "COMPLETE", 0.1)] + [(n, "COMPLETE", n / 10) for n in range(1, 12)]


def test_a_disk_that_stays_full_is_told_once_and_the_journal_can_be_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(patience, "OUTAGE_S", 0.2)
    with small_disk(tmp_path / "disk") as disk:
        journal = disk.folder / "optuna.journal"
        study = new_study(open_storage(None, journal))
        disk.fill()
        with pytest.raises(UserError, match="optuna.journal: cannot be written: No space left"):
            for number in range(100):
                run_trial(study, number)
        monkeypatch.setattr(patience, "OUTAGE_S", 600.0)
        # Not another ten minutes for each thing that is tidied up.
        with pytest.raises(UserError, match="No space left"):
            while True:
                study.set_user_attr("searched_s", 1.0)
        disk.free()
        assert values(open_storage(None, journal))


# --- databases ----------------------------------------------------------------------------------


def test_a_database_that_cannot_be_opened_is_named_without_its_password(tmp_path):
    url = "postgresql://me:secret@127.0.0.1:9/studies"
    with pytest.raises(UserError) as error:
        open_storage(url, tmp_path / "journal")
    assert str(error.value).startswith("search.storage postgresql://me:***@127.0.0.1:9/studies: ")
    assert "secret" not in str(error.value)
    with pytest.raises(UserError, match="search.storage nonsense: cannot be opened"):
        open_storage("nonsense", tmp_path / "journal")
    assert shown("nonsense") == "nonsense"


@pytest.fixture(scope="module")
def postgres():
    with postgres_server() as server:
        yield server


@pytest.fixture
def database(postgres, tmp_path):
    storage = open_storage(postgres.url, tmp_path / "journal")
    yield storage
    optuna.delete_study(study_name="sketch", storage=storage)
    assert not (tmp_path / "journal").exists()


def test_a_database_that_restarts_is_waited_for_in_every_call(postgres, database, capsys):
    study = new_study(database)
    run_trial(study, 0.0)
    for number in range(1, 4):
        trial = study.ask(SPACE)
        postgres.stop()
        back = threading.Timer(0.7, postgres.start)
        back.start()
        trial.report(0.5, 1)
        back.join()
        postgres.stop()
        postgres.start()
        study.tell(trial, number / 10)
    postgres.stop()
    back = threading.Timer(0.7, postgres.start)
    back.start()
    study.enqueue_trial({"x": 0.25})
    back.join()
    assert study.ask(SPACE).params == {"x": 0.25}
    shown_waits = capsys.readouterr().err
    assert f"waiting for search.storage {postgres.url}: " in shown_waits
    # Seen by somebody else, too.
    found = values(open_storage(postgres.url, Path("unused")))
    expected = [(0, "COMPLETE", 0.0), *((n, "COMPLETE", n / 10) for n in range(1, 4))]
    assert found == [*expected, (4, "RUNNING", None)]


def test_a_database_that_stays_away_is_told_once(postgres, tmp_path, monkeypatch):
    storage = open_storage(postgres.url, tmp_path / "journal")
    study = new_study(storage)
    monkeypatch.setattr(patience, "OUTAGE_S", 0.2)
    postgres.stop()
    try:
        with pytest.raises(UserError, match="search.storage postgres.*: "):
            study.ask(SPACE)
        monkeypatch.setattr(patience, "OUTAGE_S", 600.0)
        with pytest.raises(UserError, match="search.storage"):
            study.set_user_attr("searched_s", 1.0)
    finally:
        postgres.start()
        optuna.delete_study(study_name="sketch", storage=open_storage(postgres.url, tmp_path / "j"))


class Deaf:
    """Has the answer to the first call of some methods get lost, after it was carried out."""

    def __init__(self, stored, broken, *methods):
        self._stored = stored
        self._broken = broken
        self._left = set(methods)

    def __getattr__(self, name):
        method = getattr(self._stored, name)

        def call(*arguments, **options):
            answer = method(*arguments, **options)
            if name in self._left:
                self._left.remove(name)
                raise StorageInternalError("during the commit") from self._broken
            return answer

        return call


@pytest.mark.parametrize(
    "broken",
    [
        sqlalchemy.exc.OperationalError("COMMIT", {}, OSError("connection lost")),
        # Optuna asks for trials again in another way where a connection broke in the middle.
        sqlalchemy.exc.PendingRollbackError("Can't reconnect until it is rolled back"),
    ],
    ids=["connection", "second question"],
)
def test_what_was_done_is_not_done_again_if_the_answer_was_lost(tmp_path, broken):
    url = f"sqlite:///{tmp_path}/studies.db"
    storage = PatientDatabase(url)
    study = new_study(storage)
    study.enqueue_trial({"x": 0.25})

    # A trial that is taken, told and made.
    storage._stored = Deaf(storage._stored, broken, "set_trial_state_values", "set_trial_param")
    taken = study.ask(SPACE)
    assert (taken.number, taken.params) == (0, {"x": 0.25})
    storage._stored = Deaf(storage._stored, broken, "set_trial_state_values")
    study.tell(taken, 0.5)
    storage._stored = Deaf(storage._stored, broken, "create_new_trial")
    assert study.ask(SPACE).number == 1
    storage._stored = Deaf(storage._stored, broken, "create_new_trial")
    study.enqueue_trial({"x": 0.75})
    states = [trial.state for trial in new_study(RDBStorage(url)).get_trials()]
    assert states == [TrialState.COMPLETE, TrialState.RUNNING, TrialState.WAITING]


def test_what_is_no_outage_is_raised_at_once(tmp_path):
    study = new_study(PatientDatabase(f"sqlite:///{tmp_path}/studies.db"))
    trial = study.ask(SPACE)
    study.tell(trial, 0.5)
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        trial.report(0.5, 1)
