"""A backup of MLflow's database is restored, and one that is worth nothing is noticed.

The scripts that the CronJobs mount run as they stand, on a real PostgreSQL and a real S3 server.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from mlflow import MlflowClient

from adu.storage import filesystem_for
from infra.stack.postgres import as_user, find_program, server_user
from tests.pipeline.commands import ROOT
from tests.postgres import postgres_server

# A server and four restores: a minute on two cores.
pytestmark = pytest.mark.faults

BACKUP = ROOT / "infra" / "backup"


@pytest.fixture(scope="module")
def database():
    """A server with an MLflow of one experiment and one run; libpq's variables of it."""
    with postgres_server() as server:
        url = server.url
        with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute("CREATE DATABASE mlflow")
        url = url.removesuffix("/postgres") + "/mlflow"
        client = MlflowClient(url)
        client.create_run(client.create_experiment("pacs"))
        parts = urlsplit(url)
        yield {
            "PGHOST": parts.hostname,
            "PGPORT": str(parts.port),
            "PGUSER": parts.username,
            "PGDATABASE": "mlflow",
        }


@pytest.fixture
def folder():
    """What the pods share: PostgreSQL's user writes it, too."""
    place = Path(tempfile.mkdtemp(prefix="backup-"))
    if user := server_user():
        shutil.chown(place, user)
    yield place
    shutil.rmtree(place)


def script(name, folder, **variables):
    """Runs a script as the pod does, by PostgreSQL's user."""
    path = f"{find_program('initdb').parent}:/usr/bin:/bin"
    return subprocess.run(
        [*as_user(), "bash", "-s", str(folder)],
        stdin=(BACKUP / name).open(),
        cwd="/",
        env={"PATH": path, **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def dumps(*arguments):
    return subprocess.run(
        [sys.executable, str(BACKUP / "dumps.py"), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_what_was_dumped_and_uploaded_is_restored(database, folder, s3):
    done = script("dump.sh", folder, **database)
    assert done.returncode == 0, done.stderr
    (dump,) = folder.glob("*.dump")
    # Two older ones are there; the oldest goes.
    filesystem, place = filesystem_for(f"{s3}/postgres")
    for day in ("01", "02"):
        filesystem.pipe_file(f"{place}/mlflow-200001{day}T000000Z.dump", b"old")
    done = dumps("upload", folder, f"{s3}/postgres", 2)
    assert done.returncode == 0, done.stderr
    assert "2 dumps, the newest " + dump.name in done.stdout
    dump.unlink()

    done = dumps("fetch", f"{s3}/postgres", folder)
    assert done.returncode == 0, done.stderr
    assert [file.name for file in folder.glob("*.dump")] == [dump.name]
    drill = script("drill.sh", folder)
    assert drill.returncode == 0, drill.stderr
    # MLflow makes an experiment of its own, "Default".
    assert drill.stdout == f"{dump.name}: 2 experiments, 1 runs\n"


def test_a_dump_that_is_worth_nothing_fails_the_drill(database, folder):
    done = script("dump.sh", folder, **database)
    assert done.returncode == 0, done.stderr
    (dump,) = folder.glob("*.dump")
    data = dump.read_bytes()
    dump.write_bytes(data[: len(data) // 2])
    assert script("drill.sh", folder).returncode != 0


def test_a_database_that_cannot_be_dumped_leaves_no_dump(database, folder):
    assert script("dump.sh", folder, **{**database, "PGDATABASE": "nothing"}).returncode != 0
    assert not list(folder.glob("*.dump"))


def test_no_dump_is_an_error(folder, s3):
    assert dumps("upload", folder, f"{s3}/postgres", 2).returncode == 1
    assert "no dump" in dumps("fetch", f"{s3}/postgres", folder).stderr
