"""A production-like stack on this machine: object store, database, MLflow and a Ray cluster.

python infra/stack/stack.py up|down|status [--folder results/stack]
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.table import Table

from adu.errors import UserError
from infra.stack.lifecycle import (
    Health,
    StartError,
    bring_up,
    check_all,
    secrets_of,
    take_down,
)
from infra.stack.processes import StopError
from infra.stack.settings import SEARCH_BUCKET, Ports, Settings
from infra.stack.state import load_state

EXIT_OK, EXIT_FAILED, EXIT_USER_ERROR, EXIT_INTERRUPTED = 0, 1, 2, 130

FOLDER = Path("results/stack")


def up(arguments: argparse.Namespace, console: Console) -> int:
    """Starts what does not run yet."""
    settings = _settings(arguments)
    bring_up(settings, lambda line: console.print(line, highlight=False, soft_wrap=True))
    _show_status(settings.folder, console)
    console.print(_next_steps(settings), highlight=False, soft_wrap=True)
    return EXIT_OK


def down(arguments: argparse.Namespace, console: Console) -> int:
    """Stops it."""
    names = take_down(_folder(arguments))
    text = f"stopped {', '.join(names)}" if names else "nothing runs"
    console.print(text, highlight=False, soft_wrap=True)
    return EXIT_OK


def status(arguments: argparse.Namespace, console: Console) -> int:
    """Shows addresses and health; exit code 1 if a server does not work."""
    folder = _folder(arguments)
    if load_state(folder) is None:
        console.print(f"nothing runs in {folder} (make up)", highlight=False, soft_wrap=True)
        return EXIT_FAILED
    return EXIT_OK if _show_status(folder, console) else EXIT_FAILED


COMMANDS = {"up": up, "down": down, "status": status}


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    arguments = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return COMMANDS[arguments.command](arguments, Console())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except (StartError, StopError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAILED
    except OSError as error:
        # A disk that is full, or gone.
        print(f"error: {error.filename or arguments.folder}: {error.strerror}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, function in COMMANDS.items():
        command = commands.add_parser(name, help=function.__doc__, allow_abbrev=False)
        command.add_argument(
            "--folder", type=Path, default=FOLDER, help=f"of all its data (default: {FOLDER})"
        )
        if name == "up":
            defaults = Settings(FOLDER)
            for port in fields(Ports):
                _add_number(command, f"--{port.name}-port", getattr(defaults.ports, port.name))
            _add_number(command, "--workers", defaults.workers)
            _add_number(command, "--cpus", defaults.cpus)
            _add_number(command, "--gpus", defaults.gpus)
    return parser


HELP = {
    "--workers": "Ray worker nodes",
    "--cpus": "cores of each worker node",
    "--gpus": "GPUs of each worker node",
}


def _add_number(parser: argparse.ArgumentParser, flag: str, default: int) -> None:
    text = HELP.get(flag, "where it listens, on 127.0.0.1")
    parser.add_argument(flag, type=int, metavar="N", help=f"{text} (default: {default})")


def _folder(arguments: argparse.Namespace) -> Path:
    folder: Path = arguments.folder.absolute()
    return folder


def _settings(arguments: argparse.Namespace) -> Settings:
    """The settings of the stack that runs there, or the defaults, under the flags given."""
    folder = _folder(arguments)
    state = load_state(folder)
    settings = state.settings if state is not None and state.running else Settings(folder)
    given: dict[str, Any] = {k: v for k, v in vars(arguments).items() if v is not None}
    ports = {f.name: given[f"{f.name}_port"] for f in fields(Ports) if f"{f.name}_port" in given}
    sizes = {name: given[name] for name in ("workers", "cpus", "gpus") if name in given}
    return replace(settings, ports=replace(settings.ports, **ports), **sizes)


def _show_status(folder: Path, console: Console) -> bool:
    state = load_state(folder)
    assert state is not None
    healths = check_all(state)
    console.print(_table(healths))
    console.print(f"data and logs in {folder}", highlight=False, soft_wrap=True)
    return all(health.ok for health in healths)


def _table(healths: Sequence[Health]) -> Table:
    table = Table()
    for column in ("server", "address", "pid", "health", "it says"):
        table.add_column(column, overflow="fold")
    for health in healths:
        pid = "" if health.pid is None else str(health.pid)
        word = "[green]ok[/green]" if health.ok else "[red]down[/red]"
        table.add_row(health.name, health.address, pid, word, health.detail)
    return table


def _next_steps(settings: Settings) -> str:
    folder = _shown(settings.folder)
    secrets = _shown(secrets_of(settings.folder).folder)
    return f"""
The MLflow UI asks for user 'search' (password in {secrets}/mlflow-search), Ray's dashboard for
the token in {secrets}/ray-token. A search there:

    . .venv/bin/activate
    . {folder}/env.sh
    ray job submit --working-dir . -- python pipeline/search.py \\
        --tracking-uri $MLFLOW_TRACKING_URI --search.storage $OPTUNA_STORAGE \\
        --output s3://{SEARCH_BUCKET}/results/demo

make status shows how it is, make down stops it."""


def _shown(path: Path) -> Path:
    """A path as people type it here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _interrupt(number: int, _: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)
