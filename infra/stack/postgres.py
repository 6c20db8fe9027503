"""PostgreSQL: Optuna's studies and MLflow's runs, each with a database and a role of its own."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import ClassVar

import psycopg
from psycopg import sql

from adu.errors import UserError
from infra.stack.server import CHECK_TIMEOUT_S, Server

DEBIAN = Path("/usr/lib/postgresql")

# The database of each role.
DATABASES = {"search": "studies", "mlflow": "mlflow"}


class Postgres(Server):
    """Takes passwords only (SCRAM), over TCP on loopback only."""

    name = "postgres"
    # Ends sessions and saves; SIGTERM would wait for clients to leave.
    stop_signal: ClassVar[int] = signal.SIGINT

    @property
    def address(self) -> str:
        """Where clients connect."""
        return f"127.0.0.1:{self.settings.ports.postgres}"

    @property
    def ports(self) -> dict[str, int]:
        """One for clients."""
        return {"--postgres-port": self.settings.ports.postgres}

    def prepare(self) -> None:
        """Creates the cluster of databases, once."""
        if (self._data / "PG_VERSION").exists():
            self._program("postgres")
            return
        initdb = find_program("initdb")
        # One that was killed on its way is no cluster.
        data = self._data.with_name("postgres.unfinished")
        shutil.rmtree(data, ignore_errors=True)
        data.mkdir(mode=0o700)
        user = server_user()
        if user is not None:
            shutil.chown(data, user, pwd.getpwnam(user).pw_gid)
            _check_entrance(data, user)
        command = [*as_user(), str(initdb), f"--pgdata={data}", "--username=postgres"]
        command += ["--auth=scram-sha-256", "--pwfile=/dev/stdin", "--encoding=UTF8", "--locale=C"]
        password = self._password_pipe()
        done = subprocess.run(
            command, cwd="/", stdin=password, capture_output=True, text=True, check=False
        )
        os.close(password)
        if done.returncode:
            shutil.rmtree(data, ignore_errors=True)
            raise UserError(f"postgres: initdb failed: {' '.join(done.stderr.split())[-300:]}")
        data.replace(self._data)

    def command(self) -> list[str]:
        """The server, as a user that is not root."""
        return [
            *as_user(),
            str(self._program("postgres")),
            "-D",
            str(self._data),
            "-h",
            "127.0.0.1",
            "-p",
            str(self.settings.ports.postgres),
            # No socket: its path may be too long, and a port is what other machines have too.
            "-c",
            "unix_socket_directories=",
        ]

    def check(self) -> str:
        """Connects and asks for the databases."""
        with self._connect() as connection:
            rows = connection.execute(
                "SELECT datname FROM pg_database WHERE NOT datistemplate ORDER BY datname"
            ).fetchall()
        return "databases " + ", ".join(name for (name,) in rows if name != "postgres")

    def set_up(self) -> None:
        """Creates the roles and their databases."""
        with self._connect() as connection:
            for role, database in DATABASES.items():
                self._create_role(connection, role)
                self._create_database(connection, database, role)

    def _create_role(self, connection: psycopg.Connection, role: str) -> None:
        found = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role])
        if found.fetchone() is None:
            # Encrypted here: what fails is written to the server's log as it came.
            password = self.secrets.read(f"postgres-{role}").encode()
            verifier = connection.pgconn.encrypt_password(password, role.encode(), b"scram-sha-256")
            connection.execute(
                sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(
                    sql.Identifier(role), sql.Literal(verifier.decode())
                )
            )

    @staticmethod
    def _create_database(connection: psycopg.Connection, database: str, role: str) -> None:
        found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [database])
        if found.fetchone() is not None:
            return
        names = {"database": sql.Identifier(database), "role": sql.Identifier(role)}
        connection.execute(sql.SQL("CREATE DATABASE {database} OWNER {role}").format(**names))
        # Otherwise every role may connect to every database.
        connection.execute(
            sql.SQL("REVOKE CONNECT ON DATABASE {database} FROM PUBLIC").format(**names)
        )

    def _program(self, name: str) -> Path:
        """A program of the major version that has written the data.

        Raises:
            UserError: If it is not here: another one does not read them.
        """
        version = (self._data / "PG_VERSION").read_text().strip()
        own = DEBIAN / version / "bin" / name
        if own.exists():
            return own
        newest = find_program(name)
        there = major_version(newest)
        if there == version:
            return newest
        raise UserError(
            f"postgres: {self._data} is of PostgreSQL {version}, here is {there} (install "
            f"postgresql-{version} beside it, or start anew: make down, move that folder away)"
        )

    def _password_pipe(self) -> int:
        """A pipe with the administrator's password: it never lies in a file of another user."""
        end, start = os.pipe()
        if (user := server_user()) is not None:
            os.fchown(end, pwd.getpwnam(user).pw_uid, -1)
        os.write(start, self.secrets.read("postgres-admin").encode())
        os.close(start)
        return end

    @property
    def _data(self) -> Path:
        return self.settings.folder / "postgres"

    def _connect(self) -> psycopg.Connection:
        return psycopg.connect(
            host="127.0.0.1",
            port=self.settings.ports.postgres,
            user="postgres",
            password=self.secrets.read("postgres-admin"),
            dbname="postgres",
            connect_timeout=CHECK_TIMEOUT_S,
            autocommit=True,
        )


def find_program(name: str) -> Path:
    """A program of the newest PostgreSQL here.

    Raises:
        UserError: If there is none.
    """
    debian = sorted(DEBIAN.glob(f"*/bin/{name}"), key=lambda p: float(p.parts[-3]))
    found = shutil.which(name)
    if debian:
        return debian[-1]
    if found:
        return Path(found)
    raise UserError(
        "postgres: PostgreSQL is not installed (on Debian: apt-get install postgresql; its own "
        "server need not run)"
    )


def major_version(program: Path) -> str:
    """The major version of a PostgreSQL that a program belongs to."""
    done = subprocess.run([str(program), "--version"], capture_output=True, text=True, check=True)
    found = re.search(r"(\d+)(?:\.\d+|devel|beta|rc)", done.stdout)
    return found[1] if found else done.stdout.strip()


def server_user() -> str | None:
    """Who runs the server if we are root, as which it refuses to; None: whoever we are."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def as_user() -> list[str]:
    """Goes before a command to run it as the server's user."""
    user = server_user()
    if user is None:
        return []
    entry = pwd.getpwnam(user)
    return ["setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups"]


def _check_entrance(data: Path, user: str) -> None:
    """Sees whether the server's user can get to its data at all."""
    if subprocess.run([*as_user(), "test", "-w", str(data)], cwd="/", check=False).returncode == 0:
        return
    data.rmdir()
    closed = next(p for p in reversed(data.parents) if not p.stat().st_mode & 0o001)
    raise UserError(
        f"postgres: as root it runs as user '{user}', who may not enter {closed} "
        f"(chmod o+x {closed}, or put the stack elsewhere: make up STACK=/var/tmp/stack)"
    )
