"""MLflow that is away is behind, says so, and catches up."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest

from pipeline.tracking import projection as projection_module
from pipeline.tracking.projection import Projection


class FakeMirror:
    """Fails for as long as it is told to."""

    def __init__(self):
        self.truth = SimpleNamespace(end=lambda: None, output="/the/output")
        self.away = threading.Event()
        self.n_behind = 3
        self.n_syncs = 0
        self.blocked_s = 0.0

    def sync(self, go_on, *, look_again=False):
        self.n_syncs += 1
        deadline = time.monotonic() + self.blocked_s
        while time.monotonic() < deadline and go_on():
            time.sleep(0.01)
        if self.away.is_set():
            raise OSError("http://a:hunter2@host is away")


@pytest.fixture
def lines(monkeypatch):
    monkeypatch.setattr(projection_module, "register", lambda mirror: None)
    return []


def wait_for(true):
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_outage_is_told_once_with_its_beginning_and_its_end(lines):
    mirror = FakeMirror()
    mirror.away.set()
    projection = Projection(mirror, lines.append, period_s=0.01)
    projection.start()
    wait_for(lambda: projection.behind)
    assert projection.behind.startswith("MLflow is behind by 3 runs since ")
    assert "hunter2" not in projection.behind
    n = mirror.n_syncs
    wait_for(lambda: mirror.n_syncs > n + 2)
    mirror.away.clear()
    assert projection.finish(20) == ""
    assert [line[:16] for line in lines] == ["MLflow is behind", "MLflow has caugh"]


def test_at_the_end_it_is_waited_for_no_longer_than_that(lines):
    mirror = FakeMirror()
    mirror.away.set()
    projection = Projection(mirror, lines.append, period_s=0.01)
    projection.start()
    began_at = time.monotonic()
    assert projection.finish(0.3).endswith(
        "http://a:***@host is away (python pipeline/track.py --output /the/output writes the rest)"
    )
    assert time.monotonic() - began_at < 10


def test_a_server_that_is_slow_is_behind(lines, monkeypatch):
    monkeypatch.setattr(projection_module, "SLOW_S", 0.05)
    mirror = FakeMirror()
    mirror.blocked_s = 0.4
    projection = Projection(mirror, lines.append, period_s=0.01)
    projection.start()
    wait_for(lambda: "it answers slowly" in projection.behind)
    mirror.blocked_s = 0.0
    assert projection.finish(20) == ""
