"""In continuous integration a skip needs its reason on a list."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.skips import is_failure

ROOT = Path(__file__).resolve().parents[1]
TEST = """
import pytest
def test_one():
    pytest.skip({reason!r})
"""


@pytest.mark.parametrize(
    ("reason", "fails"),
    [
        ("Skipped: needs ../shared/data/pacs (1,400 PACS images)", False),
        ("Skipped: PostgreSQL is not installed, and installing it takes root and apt-get", False),
        ("Skipped: I did not feel like it", True),
    ],
)
def test_where_ci_runs_a_skip_nobody_allowed_is_a_failure(monkeypatch, reason, fails):
    monkeypatch.setenv("CI", "true")
    assert is_failure(reason) is fails
    monkeypatch.setenv("CI", "")
    assert not is_failure(reason)


# It imports all that the fixtures need.
@pytest.mark.faults
@pytest.mark.parametrize(("ci", "code"), [("true", 1), ("", 0)])
def test_pytest_says_so(tmp_path, ci, code):
    (tmp_path / "test_one.py").write_text(TEST.format(reason="no reason"))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest"]
    done = subprocess.run(
        [
            *command,
            f"--rootdir={tmp_path}",
            "-p",
            "no:cacheprovider",
            "-c",
            os.devnull,
            str(tmp_path),
        ],
        env={**os.environ, "CI": ci, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
