"""What a person sees while an ingest reads: a bar on a terminal, lines in a log file."""

import io

import pytest
from rich.console import Console

from pipeline.ingestion import report as ingest_report
from pipeline.ingestion.report import ReadProgress


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless it is set."""
    now = [1000.0]
    monkeypatch.setattr(ingest_report.time, "monotonic", lambda: now[0])
    return now


def test_a_log_file_gets_a_line_with_rate_and_time_left_now_and_then(clock):
    out = io.StringIO()
    with ReadProgress(Console(file=out, width=100), 100_000) as progress:
        progress.start(20_000)
        for _ in range(4):
            clock[0] += 20
            progress.advance(1_000)
    assert out.getvalue().splitlines() == [
        "20,000 of 100,000 images were read before",
        "22,000 of 100,000 images, 50/s, 0:26:00 left",
        "24,000 of 100,000 images, 50/s, 0:25:20 left",
    ]


def test_a_terminal_gets_a_bar_that_goes_away():
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=True)
    with ReadProgress(console, 10) as progress:
        progress.start(0)
        progress.advance(10)
    assert "10/10" in out.getvalue()


def test_nothing_is_shown_where_nobody_looks():
    with ReadProgress(None, 10) as progress:
        progress.start(0)
        progress.advance(10)
