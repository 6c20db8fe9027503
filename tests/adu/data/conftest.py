"""Fixtures that tests of manifests share."""

import pytest

from adu.data import rows as manifest_rows
from tests.adu.data.manifests import rows, write


@pytest.fixture
def split_in_files(tmp_path, monkeypatch):
    """Manifests of several files and row groups, of which none is fetched whole."""
    monkeypatch.setattr(manifest_rows, "ROWS_OF_FILE", 10)
    monkeypatch.setattr(manifest_rows, "ROWS_OF_GROUP", 3)
    monkeypatch.setattr(manifest_rows, "WHOLE_FILE_BYTES", 0)
    return write(tmp_path / "split", rows())
