"""Optuna's side of a study that is set up once: its storage, and its samplers by name."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Literal

import optuna
import sqlalchemy.exc
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.engine import make_url

from adu.errors import UserError

SamplerName = Literal["tpe", "gp", "nsga2", "random", "grid"]

LOCK_SUFFIX = ".lock"


def make_sampler(
    name: SamplerName, seed: int, startup_trials: int, conditional: bool
) -> BaseSampler:
    """Makes a sampler.

    Args:
        name: Which.
        seed: Of its random numbers.
        startup_trials: Random trials before it learns; the population of NSGA-II.
        conditional: Whether some options are searched only where others have certain values.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if name == "tpe":
            return TPESampler(
                seed=seed,
                n_startup_trials=startup_trials,
                multivariate=True,
                group=conditional,
                # Trials that run elsewhere count as bad ones, so that none is proposed twice.
                constant_liar=True,
            )
        if name == "gp":
            return GPSampler(
                seed=seed, n_startup_trials=startup_trials, warn_independent_sampling=False
            )
        if name == "nsga2":
            return NSGAIISampler(population_size=max(startup_trials, 2), seed=seed)
    # A grid's trials are enqueued; there is nothing left to propose.
    return RandomSampler(seed=seed)


def open_storage(url: str | None, journal: Path) -> BaseStorage:
    """Opens the storage of a search's studies.

    Args:
        url: A database; None for the journal.
        journal: File beside the results.

    Raises:
        UserError: If the database cannot be opened.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if url is None:
        _repair(journal)
        return JournalStorage(JournalFileBackend(str(journal)))
    try:
        return RDBStorage(url)
    except (sqlalchemy.exc.SQLAlchemyError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"search.storage {shown(url)}: cannot be opened: {reason}".replace(url, shown(url))
        ) from error


def shown(url: str) -> str:
    """A database's URL without its password."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except sqlalchemy.exc.ArgumentError:
        return url


def _repair(journal: Path) -> None:
    """Mends what a writer that was killed may have left: half a line, and its lock.

    Nobody else writes: a search holds its output folder for itself.
    """
    Path(f"{journal}{LOCK_SUFFIX}").unlink(missing_ok=True)
    if not journal.exists():
        return
    whole = journal.read_bytes()
    end = whole.rfind(b"\n") + 1
    if end < len(whole):
        with journal.open("r+b") as file:
            file.truncate(end)
