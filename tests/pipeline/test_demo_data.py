"""The demo's manifest is drawn once, whoever asks for it."""

from __future__ import annotations

import pytest

from adu.errors import UserError
from pipeline import demo_data
from pipeline.demo_data import prepare_demo


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    monkeypatch.setattr(demo_data, "IMAGES_PER_CELL", 2)


def test_of_two_commands_at_once_the_slower_takes_what_the_faster_has_written(
    tmp_path, monkeypatch
):
    first: list[str] = []
    ingest = demo_data.ingest

    def overtaken(config):
        first.append(ingest(config).digest)
        # As where the journal is gone that the slower one still reads.
        raise UserError("no such file")

    monkeypatch.setattr(demo_data, "ingest", overtaken)
    assert [prepare_demo(tmp_path).digest] == first


def test_an_ingest_that_fails_is_told(tmp_path, monkeypatch):
    def refused(_config):
        raise UserError("no room")

    monkeypatch.setattr(demo_data, "ingest", refused)
    with pytest.raises(UserError, match="no room"):
        prepare_demo(tmp_path)


def test_a_submitted_job_draws_it_by_itself(tmp_path, monkeypatch):
    """Connected to its cluster by that, it could not begin its own work."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert prepare_demo(tmp_path).synthetic
