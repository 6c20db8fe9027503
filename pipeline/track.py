"""Writes what an output holds into MLflow: repairs what an outage has left, or exports it.

python pipeline/track.py --output results/demo-20261124-101500 [--tracking-uri URL]
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from optuna.storages import BaseStorage
from pydantic import Field

from adu.config import StrictModel
from adu.errors import UserError
from pipeline.command import EXIT_OK, plain_console, run_and_exit, run_command
from pipeline.results.output import fetch_journal, held, named_output
from pipeline.studies.storage import open_storage, read_journal
from pipeline.tracking.facts import Facts, read_facts
from pipeline.tracking.mirror import Mirror
from pipeline.tracking.registry import register
from pipeline.tracking.server import TrackingConfig, check, server_of, told
from pipeline.tracking.truth import Truth

SHORTCUTS = {"tracking.uri": "tracking-uri"}


class TrackConfig(StrictModel):
    """Write a search, a table or what train.py has trained into MLflow: what is missing there."""

    output: str = Field(description="the output: a folder or a URL")
    tracking: TrackingConfig = TrackingConfig()
    storage: str | None = Field(
        None, description="database of Optuna's studies; unset: the file in the output"
    )


def track(config: TrackConfig) -> int:
    """Writes what is missing; returns the exit code."""
    output = named_output(config.output)
    facts = read_facts(output)
    server = server_of(config.tracking, Path(output))
    check(config.tracking, facts.data_set)
    with held(output), tempfile.TemporaryDirectory() as folder:
        database = studies_of(facts, output, config.storage, Path(folder))
        mirror = Mirror(server, Truth(facts, output, database))
        try:
            mirror.sync()
            # What was created twice shows only now.
            mirror.sync(look_again=True)
            register(mirror)
        except UserError:
            raise
        except Exception as error:
            left = f"{mirror.n_behind} of {mirror.n_wanted} runs are still to be written"
            raise UserError(f"tracking.uri {server.shown}: {told(error)} ({left})") from error
    console = plain_console(sys.stdout)
    console.print(f"{mirror.n_wanted} runs are in {server.shown}", soft_wrap=True)
    console.print(f"browse    {server.ui_command()}", soft_wrap=True)
    return EXIT_OK


def studies_of(facts: Facts, output: str, storage: str | None, folder: Path) -> BaseStorage | None:
    """Optuna's storage of a search.

    Args:
        facts: Of the output.
        output: Folder or URL.
        storage: The database that a person names.
        folder: Where a journal may be copied to.

    Raises:
        UserError: If it cannot be opened, or is not named.
    """
    if facts.kind != "search":
        return None
    if storage is not None:
        return open_storage(storage, folder / "unused")
    if facts.in_database:
        raise UserError(f"output {output}: its studies are in a database (name it with --storage)")
    return read_journal(fetch_journal(output, folder))


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    return run_command(TrackConfig, track, SHORTCUTS, argv)


if __name__ == "__main__":
    run_and_exit(main)
