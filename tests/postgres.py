"""A real PostgreSQL server on loopback, which can be stopped and started again."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.stack.ports import free_ports
from infra.stack.postgres import as_user, find_program, server_user
from tests.infra.debian import need_postgres


class Postgres:
    """A server.

    Attributes:
        url: A database of it, for SQLAlchemy.
    """

    def __init__(self, folder: Path, port: int) -> None:
        user = server_user() or "postgres"
        options = f"-p {port} -h 127.0.0.1 -c unix_socket_directories="
        self._control = [*as_user(), str(find_program("pg_ctl")), "-w", "-D", str(folder / "data")]
        self._start = ["-o", options, "-l", str(folder / "log"), "start"]
        self.url = f"postgresql+psycopg://{user}@127.0.0.1:{port}/postgres"

    def start(self) -> None:
        """Returns when it answers."""
        self._run(*self._start)

    def stop(self) -> None:
        """Breaks off all connections, as a restart of its machine does."""
        self._run("-m", "immediate", "stop")

    def _run(self, *arguments: str) -> None:
        command = [*self._control, *arguments]
        subprocess.run(command, check=True, cwd="/", stdout=subprocess.DEVNULL)


@contextmanager
def postgres_server() -> Iterator[Postgres]:
    """Runs a server that trusts everybody; skips the test if PostgreSQL is not to be had."""
    need_postgres()
    # pytest's own folders are private, and as root the server runs as another user.
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    server = Postgres(folder, *free_ports(1))
    if user := server_user():
        shutil.chown(folder, user)
    initdb = [*as_user(), str(find_program("initdb")), "--auth=trust", "-D", str(folder / "data")]
    subprocess.run(initdb, check=True, cwd="/", stdout=subprocess.DEVNULL)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)
