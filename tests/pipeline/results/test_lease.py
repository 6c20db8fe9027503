"""One search at a time in an output, in a bucket too, whoever dies."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from adu import storage
from adu.errors import UserError
from pipeline.results.lease import LOCK, BucketLease, LeaseLostError

ROOT = Path(__file__).parents[3]

# Short, and long beside what a write takes.
STALE_S = 1.5


def lease(url: str) -> BucketLease:
    return BucketLease(url, STALE_S)


def pretend_other_machine(url: str) -> bytes:
    """Makes the holder a process of which nothing is known here."""
    file = storage.join(url, LOCK)
    holder = json.loads(storage.read_bytes(file))
    data = json.dumps({**holder, "host": "elsewhere", "place": "elsewhere"}).encode()
    storage.write_bytes(file, data)
    return data


@pytest.fixture(params=["bucket", "other store"])
def url(request) -> str:
    """A folder in a real bucket, and one in a store that cannot compare and write in one step."""
    if request.param == "bucket":
        return storage.join(request.getfixturevalue("s3"), "deep", "out")
    return f"memory://{time.monotonic_ns()}/out"


def test_a_holder_that_lives_keeps_others_out(url):
    first = lease(url)
    first.take()
    pretend = threading.Event()

    def live() -> None:
        while not pretend.wait(STALE_S / 5):
            first.beat()

    # As if it were elsewhere: there is no process to look for.
    first._me |= {"host": "elsewhere", "place": "elsewhere"}
    first.beat()
    thread = threading.Thread(target=live)
    thread.start()
    try:
        with pytest.raises(UserError, match=r"another search is at work.*\d+ on elsewhere"):
            lease(url).take()
    finally:
        pretend.set()
        thread.join()


def test_a_holder_that_is_silent_is_gone_and_knows_it_when_it_comes_back(url):
    first = lease(url)
    first.take()
    first._written = pretend_other_machine(url)
    second = lease(url)
    began = time.monotonic()
    second.take()
    assert time.monotonic() - began >= STALE_S
    with pytest.raises(LeaseLostError, match="taken over by another search"):
        first.beat()
    # What it held is no longer its own to give back.
    first.release()
    second.beat()


def test_a_holder_that_leaves_lets_the_next_one_in_at_once(url):
    first = lease(url)
    first.take()
    first.release()
    assert not storage.exists(storage.join(url, LOCK))
    lease(url).take()


def test_nobody_waits_for_a_process_that_was_killed_on_this_machine(s3):
    url = storage.join(s3, "out")
    code = (
        "import os, signal, sys; from pipeline.results.lease import BucketLease\n"
        "BucketLease(sys.argv[1]).take(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, url], cwd=ROOT, check=False)
    assert storage.exists(storage.join(url, LOCK))
    # With half a minute to wait, this test would take as long.
    BucketLease(url).take()


def test_of_those_that_start_at_once_one_holds_it(s3, monkeypatch):
    url = storage.join(s3, "out")
    outcomes: list[str] = []
    n = 6
    # None writes before all have seen that nobody holds it. One that looks later would wait, and
    # take over from a holder that does nothing more.
    all_have_looked = threading.Barrier(n, timeout=60)
    read = BucketLease._read

    def look(own: BucketLease) -> bytes | None:
        found = read(own)
        all_have_looked.wait()
        return found

    monkeypatch.setattr(BucketLease, "_read", look)

    def start() -> None:
        try:
            lease(url).take()
            outcomes.append("held")
        except UserError:
            outcomes.append("refused")

    threads = [threading.Thread(target=start) for _ in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("held") == 1, outcomes


def test_a_lease_that_was_not_renewed_for_long_is_checked_before_something_is_written(s3):
    url = storage.join(s3, "out")
    first = lease(url)
    first.take()
    first.check()
    first._written = pretend_other_machine(url)
    lease(url).take()
    with pytest.raises(LeaseLostError):
        first.check()
