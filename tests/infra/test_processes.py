"""What is started is stopped, with all that it started, and nothing else is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from infra.stack import processes
from tests.infra.stacks import is_gone

# A server whose children leave its process group and outlive it.
SERVER = """
import os, subprocess, sys, time
child = subprocess.Popen(["sleep", "600"], preexec_fn=os.setpgrp)
print(child.pid, flush=True)
time.sleep(600)
"""


def start(tmp_path, code=SERVER):
    log = tmp_path / "log"
    process = processes.start([sys.executable, "-c", code], os.environ, log)
    deadline = time.monotonic() + 60
    while not log.read_text().endswith("\n"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process, int(log.read_text())


def test_a_server_ends_with_all_that_it_started(tmp_path):
    process, child = start(tmp_path)
    assert process.is_alive() and set(process.session()) == {process.pid, child}
    processes.stop([(process, signal.SIGTERM)], 10)
    assert is_gone(process.pid) and is_gone(child)


def test_what_a_killed_server_left_behind_ends_too(tmp_path):
    process, child = start(tmp_path)
    os.kill(process.pid, signal.SIGKILL)
    while process.is_alive():
        time.sleep(0.05)
    assert process.session() == [child]
    processes.stop([(process, signal.SIGTERM)], 10)
    assert is_gone(child)


def test_a_server_that_does_not_listen_is_killed(tmp_path):
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SERVER
    process, child = start(tmp_path, deaf)
    processes.stop([(process, signal.SIGTERM)], 0.5)
    assert is_gone(process.pid) and is_gone(child)


def test_another_process_with_the_same_id_is_left_alone():
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as other:
        try:
            known = processes.Process(other.pid, 1, processes._boot_id())
            assert not known.is_alive() and known.session() == []
            processes.stop([(known, signal.SIGKILL)], 1)
            # Nor is one of before the machine's last start.
            ticks = processes._stat(other.pid).start_ticks
            earlier = processes.Process(other.pid, ticks, "another")
            assert replace(earlier, boot_id=processes._boot_id()).is_alive()
            processes.stop([(earlier, signal.SIGKILL)], 1)
            assert other.poll() is None
        finally:
            other.kill()


def test_what_cannot_be_killed_is_named_in_the_end(monkeypatch):
    """A process that waits for a disk that is gone takes no signal."""
    monkeypatch.setattr(processes, "KILL_TIMEOUT_S", 0.3)
    monkeypatch.setattr(processes, "_signal", lambda *_: None)
    process = processes.start(["sleep", "600"], os.environ, Path(os.devnull))
    try:
        with pytest.raises(processes.StopError, match=f"processes {process.pid} cannot be killed"):
            processes.stop([(process, signal.SIGTERM)], 0.1)
    finally:
        os.kill(process.pid, signal.SIGKILL)
