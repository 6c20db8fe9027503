"""What an executor and its workers say to each other, shown in one process."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.executors.mailbox import Event, Mailbox
from tests.pipeline.stub_session import make_run

WAIT_S = 10.0


@pytest.fixture
def worker():
    with ThreadPoolExecutor(4) as threads:
        yield threads


def epoch(number):
    return Event("epoch", {"epoch": number, "epochs": 3})


def train(mailbox, ticket, last=3):
    """What a worker does with a run; returns the last epoch it has trained."""
    for number in range(1, last + 1):
        if not mailbox.report(ticket, epoch(number)):
            return number
    mailbox.finish(ticket, Event("done"))
    return last


def test_a_run_waits_for_its_executor_after_every_epoch(worker):
    mailbox = Mailbox(1)
    mailbox.post(make_run("a"))
    ticket, run = mailbox.take()
    assert run.name == "a"
    trained = worker.submit(train, mailbox, ticket)
    assert mailbox.advance(WAIT_S) == epoch(1)
    assert not mailbox._events, "the worker went on before the executor said so"
    assert [mailbox.advance(WAIT_S) for _ in range(3)] == [epoch(2), epoch(3), Event("done")]
    assert trained.result(WAIT_S) == 3


def test_the_next_run_stops_the_one_before_after_the_epoch_it_has_reported(worker):
    mailbox = Mailbox(1)
    mailbox.post(make_run("a"))
    ticket, _ = mailbox.take()
    trained = worker.submit(train, mailbox, ticket)
    assert mailbox.advance(WAIT_S) == epoch(1)
    mailbox.post(make_run("b"))
    assert trained.result(WAIT_S) == 1
    _, following = mailbox.take()
    assert following.name == "b"
    # Whatever the one before has still to say, nobody hears.
    mailbox.finish(ticket, Event("done"))
    assert mailbox.advance(0.01) is None


def test_an_executor_that_waits_looks_at_the_clock():
    assert Mailbox(1).advance(0.01) is None


def test_workers_that_are_gone_are_told_of_once_all_they_have_said_is_heard(worker):
    mailbox = Mailbox(1)
    mailbox.post(make_run("a"))
    ticket, _ = mailbox.take()
    worker.submit(train, mailbox, ticket)
    while not mailbox._events:
        pass
    lost = Event("lost", error="killed")
    mailbox.end(lost)
    mailbox.end(Event("lost", error="later"))
    assert [mailbox.advance(WAIT_S) for _ in range(2)] == [epoch(1), lost]
    mailbox.close()


def test_workers_leave_when_the_mailbox_is_closed(worker):
    mailbox = Mailbox(1)
    waiting = worker.submit(mailbox.take)
    mailbox.close()
    assert waiting.result(WAIT_S) is None


def test_an_exception_of_all_ranks_fails_the_run_and_keeps_the_workers(worker):
    mailbox = Mailbox(2)
    mailbox.post(make_run("a"))
    ticket, _ = mailbox.take()
    failures = [Event("failed", error=f"rank {rank}") for rank in (0, 1)]
    stays = [worker.submit(mailbox.fail, ticket, rank, failures[rank]) for rank in (0, 1)]
    assert [each.result(WAIT_S) for each in stays] == [True, True]
    assert mailbox.advance(WAIT_S) == failures[0]


def test_an_exception_of_some_ranks_is_the_end_of_the_workers(monkeypatch):
    monkeypatch.setattr("pipeline.executors.mailbox.FAILURE_WINDOW_S", 0.05)
    mailbox = Mailbox(2)
    mailbox.post(make_run("a"))
    ticket, _ = mailbox.take()
    assert not mailbox.fail(ticket, 1, Event("failed", error="rank 1"))
    assert mailbox.advance(0.01) is None


def test_ranks_meet_where_rank_0_says(worker):
    mailbox = Mailbox(2)
    other = worker.submit(mailbox.meet, None)
    assert mailbox.meet("10.0.0.1:4711") == "10.0.0.1:4711"
    assert other.result(WAIT_S) == "10.0.0.1:4711"
    assert threading.active_count() < 10
