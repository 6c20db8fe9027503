"""A stack that cannot start says why in one line and leaves nothing behind."""

from __future__ import annotations

import socket

import pytest

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
    (folder / "postgres" / "PG_VERSION").write_text("of another world\n")
    done = run("up", folder, *port_flags())
    assert done.returncode == 1
    log = folder / "logs" / "postgres.log"
    assert done.stderr.startswith("error: postgres: ended at once (")
    assert done.stderr.endswith(f"its log: {log})\n") and done.stderr.count("\n") == 1
    # The object store had been started before.
    assert "s3: starting" in done.stdout
    assert not (folder / "state.json").exists()
    assert run("status", folder).returncode == 1
