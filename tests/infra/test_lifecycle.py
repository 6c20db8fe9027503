"""A stack that cannot start says why in one line and leaves nothing behind."""

from __future__ import annotations

import socket

import pytest

from infra.stack.postgres import find_program, major_version
from tests.infra.debian import need_postgres
from tests.infra.stacks import port_flags, run, stack_folder


@pytest.fixture
def folder():
    with stack_folder() as folder:
        yield folder


def test_where_nothing_runs(folder):
    done = run("status", folder)
    assert (done.returncode, done.stdout) == (1, f"nothing runs in {folder} (make up)\n")
    done = run("down", folder)
    assert (done.returncode, done.stdout) == (0, "nothing runs\n")


def test_a_port_in_use_is_named(folder):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = run("up", folder, *port_flags(), f"--mlflow-port={port}")
    assert done.returncode == 2
    assert done.stderr == (
        f'error: mlflow: port {port} is in use (give another one: make up ARGS="--mlflow-port N")\n'
    )
    assert not (folder / "state.json").exists()


def test_a_server_that_does_not_start_takes_the_others_down(folder):
    need_postgres()
    (folder / "postgres").mkdir()
    version = major_version(find_program("postgres"))
    # A cluster that has lost all but its name.
    (folder / "postgres" / "PG_VERSION").write_text(f"{version}\n")
    done = run("up", folder, *port_flags())
    assert done.returncode == 1
    log = folder / "logs" / "postgres.log"
    assert done.stderr.startswith("error: postgres: ended at once (")
    assert done.stderr.endswith(f"its log: {log})\n") and done.stderr.count("\n") == 1
    # The object store had been started before.
    assert "s3: starting" in done.stdout
    assert not (folder / "state.json").exists()
    assert run("status", folder).returncode == 1


def test_data_of_another_postgresql_are_left_alone_and_the_way_out_is_told(folder):
    need_postgres()
    (folder / "postgres").mkdir()
    (folder / "postgres" / "PG_VERSION").write_text("9\n")
    done = run("up", folder, *port_flags())
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"{folder}/postgres is of PostgreSQL 9, here is" in done.stderr
    assert "install postgresql-9 beside it" in done.stderr
    assert (folder / "postgres" / "PG_VERSION").read_text() == "9\n"
    assert not (folder / "state.json").exists()
    assert run("down", folder).returncode == 0
