"""Runs the stack's command as a person does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import psutil

from infra.stack.ports import free_ports
from infra.stack.processes import Process
from infra.stack.settings import Ports
from infra.stack.state import load_state

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def stack_folder() -> Iterator[Path]:
    """A folder for a stack that PostgreSQL's user may enter: pytest's own are private."""
    folder = Path(tempfile.mkdtemp(prefix="stack-"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        run("down", folder)
        shutil.rmtree(folder)


def run(command: str, folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Runs the command on a stack's folder."""
    return subprocess.run(
        [sys.executable, str(ROOT / "infra/stack/stack.py"), command, "--folder", str(folder)]
        + list(flags),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "160"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def port_flags() -> list[str]:
    """Flags for ports that are free."""
    names = [port.name for port in fields(Ports)]
    ports = free_ports(len(names))
    return [f"--{name}-port={port}" for name, port in zip(names, ports, strict=True)]


def processes(folder: Path) -> dict[str, Process]:
    """The servers of a stack that runs."""
    state = load_state(folder)
    assert state is not None
    return state.processes


def environment(folder: Path) -> dict[str, str]:
    """The environment of a shell that has sourced the stack's file."""
    found = subprocess.run(
        ["bash", "-c", f". '{folder}/env.sh' && env -0"], capture_output=True, check=True
    )
    lines = found.stdout.decode().rstrip("\0").split("\0")
    return dict(line.split("=", 1) for line in lines)


def is_gone(pid: int) -> bool:
    """Whether a process has ended, even if nobody has taken notice of it."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
