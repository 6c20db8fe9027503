"""Brings a stack up and takes it down."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from adu.errors import UserError
from infra.stack import processes
from infra.stack.mlflow_server import MLflow
from infra.stack.ports import is_free
from infra.stack.postgres import Postgres
from infra.stack.ray_nodes import RayHead, RayWorker
from infra.stack.seaweedfs import SeaweedFS
from infra.stack.secret_files import Secrets, shell_script
from infra.stack.server import Server, base_environment
from infra.stack.settings import Settings
from infra.stack.state import State, hold, load_state, new_state

START_TIMEOUT_S = 180
STOP_TIMEOUT_S = 20
POLL_S = 0.2

Say = Callable[[str], None]


class StartError(Exception):
    """A server that did not come to work."""


@dataclass(frozen=True)
class Health:
    """A server as it is just now.

    Attributes:
        name: The server.
        address: Where clients find it.
        pid: Its process; None if it has ended.
        ok: Whether it answers.
        detail: What it answered, or why it does not.
    """

    name: str
    address: str
    pid: int | None
    ok: bool
    detail: str


def secrets_of(folder: Path) -> Secrets:
    """Where a stack's secrets are."""
    return Secrets(folder / "secrets")


def servers_of(state: State) -> list[Server]:
    """The servers of a stack, in the order of their start."""
    settings, secrets = state.settings, secrets_of(state.settings.folder)
    return [
        SeaweedFS(settings, secrets),
        Postgres(settings, secrets),
        RayHead(settings, secrets, state.sockets),
        MLflow(settings, secrets),
        *(RayWorker(1 + i, settings, secrets, state.sockets) for i in range(settings.workers)),
    ]


def bring_up(settings: Settings, say: Say) -> None:
    """Starts every server of a stack that does not run, and waits until all of them work.

    Args:
        settings: The stack; if one runs in its folder, it has the same settings.
        say: Is told what happens.

    Raises:
        UserError: If it cannot start here as asked; nothing has been started.
        StartError: If a server does not work; what was started has been stopped.
    """
    create_folder(settings.folder)
    with hold(settings.folder):
        state = load_state(settings.folder)
        if state is None or not state.running:
            if state is not None:
                _stop(state, list(state.processes))
                state.forget()
            state = new_state(settings)
        elif state.settings != settings:
            raise UserError(
                f"{settings.folder}: the stack that runs there has other ports or sizes "
                "(make down first)"
            )
        before = state.running
        try:
            _start_missing(state, say)
        except BaseException:
            _stop(state, [name for name in state.processes if name not in before])
            if not before:
                state.forget()
            raise


def take_down(folder: Path) -> list[str]:
    """Stops the servers of a stack and whatever they started; gives their names."""
    if not folder.exists():
        return []
    with hold(folder):
        state = load_state(folder)
        if state is None:
            return []
        names = list(state.processes)
        _stop(state, names)
        state.forget()
    return names


def check_all(state: State) -> list[Health]:
    """Asks every server of a stack."""
    return [_health(server, state) for server in servers_of(state)]


def _health(server: Server, state: State) -> Health:
    process = state.processes.get(server.name)
    if process is None or not process.is_alive():
        return Health(server.name, server.address, None, False, "not running")
    try:
        return Health(server.name, server.address, process.pid, True, server.check())
    except Exception as error:
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        return Health(server.name, server.address, process.pid, False, reason)


def create_folder(folder: Path) -> None:
    """Makes a stack's folder, of which neither Git nor Ray takes anything.

    Raises:
        UserError: If it cannot be written.
    """
    try:
        if not folder.exists():
            folder.mkdir(parents=True)
            # Where root starts it, PostgreSQL is another user, who must get to its data.
            folder.chmod(0o711 if os.geteuid() == 0 else 0o700)
        (folder / "logs").mkdir(mode=0o700, exist_ok=True)
        (folder / "ray").mkdir(mode=0o700, exist_ok=True)
        # Neither Git nor Ray, which uploads a job's working directory, shall take any of it.
        (folder / ".gitignore").write_text("*\n")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}") from error


def _start_missing(state: State, say: Say) -> None:
    secrets = secrets_of(state.settings.folder)
    secrets.create()
    secrets.write("../env.sh", shell_script(state.settings, secrets))
    servers = servers_of(state)
    _check_ports([server for server in servers if server.name not in state.running])
    waiting, working = list(servers), set[str]()
    starting: list[Server] = []
    starts = Counter[str]()
    deadline = time.monotonic() + START_TIMEOUT_S
    while waiting or starting:
        for server in [s for s in waiting if working.issuperset(s.needs)]:
            waiting.remove(server)
            starting.append(server)
        for server in list(starting):
            if server.name not in state.running and starts[server.name] < server.starts:
                say(f"{server.name}: starting{' again' if starts[server.name] else ''}")
                starts[server.name] += 1
                _start(server, state)
            elif _works(server, state, time.monotonic() > deadline):
                server.set_up()
                starting.remove(server)
                working.add(server.name)
        time.sleep(POLL_S)


def _check_ports(servers: Sequence[Server]) -> None:
    for server in servers:
        for flag, port in server.ports.items():
            if not is_free(port):
                raise UserError(
                    f"{server.name}: port {port} is in use (give another one: "
                    f'make up ARGS="{flag} N")'
                )


def _start(server: Server, state: State) -> None:
    before = state.processes.get(server.name)
    if before is not None:
        # Its process has ended; what that had started may not have.
        processes.stop([(before, server.stop_signal)], 0)
    server.prepare()
    environment = base_environment() | server.environment()
    log = _log(server, state)
    state.processes[server.name] = processes.start(server.command(), environment, log)
    state.save()


def _works(server: Server, state: State, late: bool) -> bool:
    """Whether a server that was started works by now.

    Raises:
        StartError: If it has ended, or should work by now.
    """
    health = _health(server, state)
    if health.pid is None or (late and not health.ok):
        reason = "ended at once" if health.pid is None else f"does not work: {health.detail}"
        log = _log(server, state)
        raise StartError(f"{server.name}: {reason} ({_last_line(log)}; its log: {log})")
    return health.ok


def _stop(state: State, names: Sequence[str]) -> None:
    servers = [server for server in servers_of(state) if server.name in names]
    users = [server for server in servers if server.needs]
    for chosen in (users, [server for server in servers if not server.needs]):
        processes.stop([(state.processes[s.name], s.stop_signal) for s in chosen], STOP_TIMEOUT_S)


def _log(server: Server, state: State) -> Path:
    return state.settings.logs / f"{server.name}.log"


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    return next((line[:200] for line in reversed(lines) if line), "it said nothing")
