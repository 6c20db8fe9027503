"""More rows than memory holds come in order, block by block."""

import random
import tempfile

import pyarrow as pa
import pytest

from adu.data import sorting
from adu.data.sorting import RowSorter


@pytest.mark.parametrize("n", [0, 1, 7, 999])
def test_rows_come_in_the_order_of_their_keys(monkeypatch, tmp_path, n):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sorting, "ROWS_OF_RUN", 100)
    monkeypatch.setattr(sorting, "ROWS_OF_BLOCK", 8)
    rng = random.Random(0)
    letters = "a é写👩 /"
    keys = ["".join(rng.choices(letters, k=rng.randint(0, 4))) for _ in range(n)]
    with RowSorter("key") as rows:
        for start in range(0, n, 30):
            part = keys[start : start + 30]
            rows.add(pa.table({"key": part, "number": range(start, start + len(part))}))
        blocks = list(rows.ordered())
        assert [key for block in blocks for key in block["key"].to_pylist()] == sorted(keys)
        numbers = [number for block in blocks for number in block["number"].to_pylist()]
        assert sorted(numbers) == list(range(n))
        assert all(keys[i] == key for i, key in zip(numbers, sorted(keys), strict=True))
        # Blocks of ten runs, and no more than what has the same key.
        assert max((block.num_rows for block in blocks), default=0) <= 200
        for _ in range(2):
            again = [key for block in rows.ordered(again=True) for key in block["key"].to_pylist()]
            assert again == sorted(keys)
        # Merged for good.
        assert len(list(tmp_path.rglob("*.arrow"))) == min(n // 100, 1)
        rows.add(pa.table({"key": ["zz"] * 100, "number": range(100)}))
        assert sum(block.num_rows for block in rows.ordered(again=True)) == n + 100
    assert not list(tmp_path.iterdir())
