"""Optuna's storage: a journal beside the results, or a database.

Both outlast what passes. Optuna itself raises at once where a disk is full or a database restarts,
and a journal with half a line inside it cannot be opened any more.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any, TypeVar

import optuna
import sqlalchemy.exc
from optuna.distributions import BaseDistribution
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, get_storage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import make_url

from adu.errors import UserError
from pipeline.patience import is_full, outlast

LOCK_SUFFIX = ".lock"

# What drivers raise for connections that break or are refused, and servers that start; and what
# SQLAlchemy then raises where Optuna asks in another way after the first of these.
AWAY = (
    sqlalchemy.exc.OperationalError,
    sqlalchemy.exc.InterfaceError,
    sqlalchemy.exc.PendingRollbackError,
)

# Of an error message of a database's driver.
SHOWN_CHARACTERS = 200

T = TypeVar("T")


def open_storage(url: str | None, journal: Path) -> BaseStorage:
    """Opens the storage of a search's studies.

    Args:
        url: A database; None for the journal.
        journal: File beside the results.

    Raises:
        UserError: If the database cannot be opened, or the journal is damaged.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if url is None:
        _repair(journal)
        return _journal(journal, PatientJournal(journal))
    try:
        return PatientDatabase(url)
    except (sqlalchemy.exc.SQLAlchemyError, ImportError) as error:
        raise UserError(
            f"search.storage {shown(url)}: cannot be opened: {_one_line(error)}".replace(
                url, shown(url)
            )
        ) from error


def read_journal(journal: Path) -> BaseStorage:
    """Opens a journal that somebody else may be writing, to read it.

    Raises:
        UserError: If it is damaged.
    """
    return _journal(journal, JournalFileBackend(str(journal)))


def shown(url: str) -> str:
    """A database's URL without its password."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except sqlalchemy.exc.ArgumentError:
        return url


class PatientJournal(JournalFileBackend):
    """A journal that waits while its disk is full, and then has no half of a line inside it.

    Args:
        file: The journal.
    """

    def __init__(self, file: Path) -> None:
        super().__init__(str(file))
        self._file = file
        self._given_up = False

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Writes lines at the end, all of them or none.

        Raises:
            UserError: If they cannot be written.
        """
        try:
            outlast(lambda: self._append(logs), self._outage)
        except OSError as error:
            self._given_up = True
            raise UserError(self._told(error)) from error

    def _append(self, logs: list[dict[str, Any]]) -> None:
        n_bytes = self._file.stat().st_size
        try:
            super().append_logs(logs)
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(self._file, n_bytes)
            raise

    def _outage(self, error: Exception) -> str | None:
        return self._told(error) if is_full(error) and not self._given_up else None

    def _told(self, error: Exception) -> str:
        return f"{self._file}: cannot be written: {getattr(error, 'strerror', error)}"


class PatientDatabase(BaseStorage):
    """A database that may be away for a while, in the middle of anything.

    A call whose answer was lost may have been carried out. Most may be repeated all the same; the
    others look first.

    Args:
        url: The database, which must answer now.
    """

    def __init__(self, url: str) -> None:
        self._shown = shown(url)
        # With the cache that Optuna itself puts around it.
        self._stored = get_storage(RDBStorage(url, {"pool_pre_ping": True}))
        self._given_up = False

    # Studies.

    def create_new_study(
        self, directions: Sequence[StudyDirection], study_name: str | None = None
    ) -> int:
        """See `BaseStorage`."""
        return self._patiently(lambda: self._stored.create_new_study(directions, study_name))

    def delete_study(self, study_id: int) -> None:
        """See `BaseStorage`."""
        self._patiently(lambda: self._stored.delete_study(study_id))

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """See `BaseStorage`."""
        self._patiently(lambda: self._stored.set_study_user_attr(study_id, key, value))

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """See `BaseStorage`."""
        self._patiently(lambda: self._stored.set_study_system_attr(study_id, key, value))

    def get_study_id_from_name(self, study_name: str) -> int:
        """See `BaseStorage`."""
        return self._patiently(lambda: self._stored.get_study_id_from_name(study_name))

    def get_study_name_from_id(self, study_id: int) -> str:
        """See `BaseStorage`."""
        return self._patiently(lambda: self._stored.get_study_name_from_id(study_id))

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """See `BaseStorage`."""
        return self._patiently(lambda: self._stored.get_study_directions(study_id))

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """See `BaseStorage`."""
        return self._patiently(lambda: self._stored.get_study_user_attrs(study_id))

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """See `BaseStorage`."""
        return self._patiently(lambda: self._stored.get_study_system_attrs(study_id))

    def get_all_studies(self) -> list[Any]:
        """See `BaseStorage`."""
        return self._patiently(self._stored.get_all_studies)

    # Trials.

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """See `BaseStorage`. Nobody else writes to a search's studies."""
        number = self._patiently(lambda: self._stored.get_n_trials(study_id))

        def created() -> int | None:
            if self._stored.get_n_trials(study_id) == number:
                return None
            return self._stored.get_trial_id_from_study_id_trial_number(study_id, number)

        return self._once(lambda: self._stored.create_new_trial(study_id, template_trial), created)

    def set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
    ) -> None:
        """See `BaseStorage`."""
        self._patiently(
            lambda: self._stored.set_trial_param(
                trial_id, param_name, param_value_internal, distribution
            )
        )

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """See `BaseStorage`. A trial that has ended cannot be ended again."""
        return self._once(
            lambda: self._stored.set_trial_state_values(trial_id, state, values),
            lambda: self._stored.get_trial(trial_id).state == state or None,
        )

    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        """See `BaseStorage`."""
        self._patiently(
            lambda: self._stored.set_trial_intermediate_value(trial_id, step, intermediate_value)
        )

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """See `BaseStorage`."""
        self._patiently(lambda: self._stored.set_trial_user_attr(trial_id, key, value))

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """See `BaseStorage`."""
        self._patiently(lambda: self._stored.set_trial_system_attr(trial_id, key, value))

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """See `BaseStorage`."""
        return self._patiently(lambda: self._stored.get_trial(trial_id))

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        """See `BaseStorage`."""
        return self._patiently(lambda: self._stored.get_all_trials(study_id, deepcopy, states))

    # Helpers.

    def _once(self, write: Callable[[], T], written: Callable[[], T | None]) -> T:
        """Carries out what must not be done twice.

        Args:
            write: Does it.
            written: What that gives if it is done already, else None.
        """
        tried = False

        def attempt() -> T:
            nonlocal tried
            found = written() if tried else None
            tried = True
            return write() if found is None else found

        return self._patiently(attempt)

    def _patiently(self, call: Callable[[], T]) -> T:
        try:
            return outlast(call, self._outage)
        except Exception as error:
            if (reason := self._away(error)) is None:
                raise
            self._given_up = True
            raise UserError(reason) from error

    def _outage(self, error: Exception) -> str | None:
        # Once is enough: what is tidied up at the end would wait as long again.
        return None if self._given_up else self._away(error)

    def _away(self, error: Exception) -> str | None:
        cause = error.__cause__ if isinstance(error, StorageInternalError) else error
        if not isinstance(cause, AWAY):
            return None
        reason = getattr(cause, "orig", None) or cause
        return f"search.storage {self._shown}: {_one_line(reason)}"


def _journal(file: Path, backend: JournalFileBackend) -> JournalStorage:
    try:
        return JournalStorage(backend)
    # Optuna reads what is no journal of its own with whatever exception comes of it.
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: {_damage(file, error)}") from error


def _repair(journal: Path) -> None:
    """Mends what a writer that was killed may have left: half a line, and its lock.

    Nobody else writes: a search holds its output folder for itself.
    """
    Path(f"{journal}{LOCK_SUFFIX}").unlink(missing_ok=True)
    if not journal.exists():
        return
    whole = journal.read_bytes()
    end = whole.rfind(b"\n") + 1
    # Optuna passes over a last line that it cannot read, until another one is behind it.
    last = whole.rfind(b"\n", 0, max(end - 1, 0)) + 1
    if _fault(whole[last:end]):
        end = last
    if end < len(whole):
        os.truncate(journal, end)


def _damage(journal: Path, error: Exception) -> str:
    """What is wrong with a journal that Optuna cannot read."""
    with journal.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if fault := _fault(line):
                return f"line {number} is damaged: {fault}"
    return f"is no journal of Optuna's: {type(error).__name__}: {_one_line(error)}"


def _fault(line: bytes) -> str | None:
    """What keeps a line of a journal from being read."""
    try:
        json.loads(line)
    except ValueError as error:
        return str(error)
    return None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:SHOWN_CHARACTERS]
