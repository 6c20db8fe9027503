"""Programs that come from Debian: installed where a test may, else the test is skipped."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

# Without this the package starts a server of its own, on PostgreSQL's usual port.
NO_CLUSTER = Path("/etc/postgresql-common/createcluster.conf")


def need_postgres() -> None:
    """Has PostgreSQL's programs installed, or skips."""
    if not list(Path("/usr/lib/postgresql").glob("*/bin/initdb")) and not shutil.which("initdb"):
        if os.geteuid() == 0 and not NO_CLUSTER.exists():
            NO_CLUSTER.parent.mkdir(parents=True, exist_ok=True)
            NO_CLUSTER.write_text("create_main_cluster = false\n")
        install("PostgreSQL", "postgresql")


def need_chromium() -> tuple[str, str]:
    """Has Chromium and its driver installed, or skips; gives the paths of both."""
    if not shutil.which("chromedriver") or not shutil.which("chromium"):
        install("Chromium", "chromium", "chromium-driver")
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    assert browser and driver
    return browser, driver


def install(what: str, *packages: str) -> None:
    """Installs packages, or skips the test."""
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        pytest.skip(f"{what} is not installed, and installing it takes root and apt-get")
    apt = ["apt-get", "-q", "-y", "-o", "Dpkg::Options::=--force-confold"]
    commands = (
        [*apt, "update"],
        [*apt, "install", "--no-install-recommends", *packages],
    )
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in commands:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"{what} cannot be installed: {(done.stderr or done.stdout)[-300:]}")
