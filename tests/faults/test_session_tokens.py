"""A server's session tokens end after a while: renewed in the AWS files, reading goes on."""

import io
import threading
import time
import uuid

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adu import storage
from adu.errors import UserError
from adu.storage import persistence
from tests.sts import sts_server

LIFE_S = 20


@pytest.fixture(scope="module")
def sts(tmp_path_factory):
    with sts_server(tmp_path_factory.mktemp("sts"), LIFE_S) as server:
        yield server


@pytest.fixture(scope="module")
def over(sts):
    """A session whose time is over."""
    session = sts[1]()
    time.sleep(LIFE_S + 1)
    return session


@pytest.fixture
def bucket(sts, monkeypatch, tmp_path):
    """URL of a bucket with a file and a table, which the keys in a file alone reach."""
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in sts[0].items():
        monkeypatch.setenv(name, value)
    url = f"s3://test-{uuid.uuid4().hex}"
    storage.filesystem_for(url)[0].mkdir(url)
    table = io.BytesIO()
    pq.write_table(pa.table({"row": range(3)}), table)
    storage.write_bytes(f"{url}/table", table.getvalue())
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    return url


@pytest.fixture
def use(tmp_path):
    """The function that writes a session into the AWS file."""

    def use(session):
        new = tmp_path / "new"
        new.write_text("\n".join(["[default]", *(f"{n}={value}" for n, value in session.items())]))
        new.replace(tmp_path / "credentials")

    return use


def read_in_all_ways(url):
    """Whole, in ranges as pyarrow asks for them, by size and by name."""
    size = len(storage.read_bytes(f"{url}/table"))
    assert storage.size_bytes(f"{url}/table") == size
    with storage.RangeFile(f"{url}/table") as file:
        assert pq.read_table(file)["row"].to_pylist() == [0, 1, 2]
    assert storage.exists(f"{url}/table")
    assert storage.names_in(url) == ["table"]
    assert dict(storage.files_below(url)) == {"table": size}


def test_reading_goes_on_while_tokens_are_renewed(sts, bucket, use, monkeypatch):
    first = sts[1]()
    use(first)
    ended = threading.Event()

    def renew():
        while not ended.wait(LIFE_S / 3):
            use(sts[1]())

    renewing = threading.Thread(target=renew)
    renewing.start()
    try:
        end = time.monotonic() + LIFE_S * 1.5
        while time.monotonic() < end:
            read_in_all_ways(bucket)
            time.sleep(0.1)
    finally:
        ended.set()
        renewing.join()
    monkeypatch.setattr(persistence, "MAX_TRANSFERS", 1)
    use(first)
    with pytest.raises(UserError):
        storage.read_bytes(f"{bucket}/table")


@pytest.mark.parametrize("read", [storage.read_bytes, storage.size_bytes, storage.names_in])
def test_who_renews_them_may_be_late(sts, over, bucket, use, read):
    use(over)
    renewing = threading.Timer(0.3, use, [sts[1]()])
    renewing.start()
    assert read(f"{bucket}/table") is not None
    renewing.join()


@pytest.mark.parametrize(
    "read",
    [storage.read_bytes, storage.size_bytes, storage.exists, storage.names_in, storage.RangeFile],
)
def test_a_token_that_nobody_renews_is_one_line(over, bucket, use, read, monkeypatch):
    monkeypatch.setattr(persistence, "LONGEST_PAUSE_S", 0.01)
    use(over)
    with pytest.raises(UserError, match=r"/table: the session token has expired, and .*$"):
        read(f"{bucket}/table")
