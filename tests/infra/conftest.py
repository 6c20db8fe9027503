"""One stack for all tests that search on it."""

from __future__ import annotations

import pytest

from infra.stack.lifecycle import secrets_of
from infra.stack.secret_files import NAMES
from tests.infra.debian import need_postgres
from tests.infra.stacks import port_flags, run, stack_folder


def planted(name: str) -> str:
    """A secret that cannot be in a file by chance."""
    return f"planted-{name}-7f3c9a1e"


@pytest.fixture(scope="package")
def stack():
    """Folder of a stack that runs, with secrets that are told apart from anything else."""
    need_postgres()
    with stack_folder() as folder:
        secrets = secrets_of(folder)
        secrets.folder.mkdir(mode=0o700)
        for name in NAMES:
            secrets.write(name, planted(name))
        done = run("up", folder, *port_flags())
        assert done.returncode == 0, done.stdout + done.stderr
        yield folder
