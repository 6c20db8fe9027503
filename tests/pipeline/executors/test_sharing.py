"""Who gets an executor, shown without Ray: they come and go, and nobody waits for ever."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack

import pytest

from pipeline.executors import sharing
from pipeline.executors.mailbox import MAX_RESTARTS, Command, Event
from pipeline.executors.sharing import Executors, Turns


class Recorder:
    """Stands for a mailbox: keeps what it is asked and answers with events."""

    def __init__(self, index, events=()):
        self.index = index
        self.events = list(events)
        self.asked = []

    def ask(self, method, *arguments):
        self.asked.append((method, *arguments))
        return self.events.pop(0) if method == "advance" else None

    send = ask


def pool(n, n_ready=None):
    executors = Executors()
    for index in range(n):
        executors.add(Recorder(index))
        if n_ready is None or index < n_ready:
            executors.turn(index, "ready")
    return executors


def test_an_executor_is_had_by_one_at_a_time():
    executors = pool(2)
    first, second = executors.try_lease("a"), executors.try_lease("b")
    assert {first.index, second.index} == {0, 1}
    assert executors.try_lease("c") is None
    first.release()
    first.release()
    assert executors.try_lease("c").index == first.index
    assert executors.try_lease("d") is None, "a lease was given back twice"


def test_only_executors_with_workers_are_had():
    executors = pool(2, n_ready=1)
    lease = executors.try_lease("a")
    assert executors.try_lease("b") is None
    executors.turn(1, "ready")
    assert executors.try_lease("b").index == 1
    executors.turn(0, "starting")
    lease.release()
    assert executors.try_lease("c") is None


def test_who_waits_longest_is_next(monkeypatch):
    executors = pool(1)
    lease = executors.try_lease("a")
    assert executors.try_lease("b") is None
    assert executors.try_lease("c") is None
    lease.release()
    assert executors.try_lease("a") is None
    assert executors.try_lease("c") is None
    lease = executors.try_lease("b")
    lease.release()
    assert executors.try_lease("a") is None
    # Whoever asks no more keeps nobody waiting.
    executors.give_up("c")
    executors.try_lease("a").release()
    assert executors.try_lease("c") is not None
    assert executors.try_lease("gone") is None
    monkeypatch.setattr(sharing, "PATIENCE_S", 0.01)
    time.sleep(0.02)
    executors.free(0, "")
    assert executors.try_lease("a") is not None


def test_trials_pass_final_runs_that_have_waited_longer():
    executors = pool(1)
    lease = executors.try_lease("running")
    assert executors.try_lease("final 1", yields=True) is None
    assert executors.try_lease("final 2", yields=True) is None
    assert executors.try_lease("trial") is None
    lease.release()
    assert executors.try_lease("final 1", yields=True) is None
    executors.try_lease("trial").release()
    # Among themselves they keep their order.
    assert executors.try_lease("final 2", yields=True) is None
    assert executors.try_lease("final 1", yields=True) is not None


def test_a_final_run_that_waits_in_a_thread_is_passed_too():
    executors = pool(1)
    lease = executors.try_lease("running")
    found = []
    waiting = threading.Thread(target=lambda: found.append(executors.lease(yields=True)))
    waiting.start()
    while not executors._queue:
        time.sleep(0.001)
    assert executors.try_lease("trial") is None
    lease.release()
    trial = executors.try_lease("trial")
    assert trial is not None
    time.sleep(0.05)
    assert not found
    trial.release()
    waiting.join(5)
    assert len(found) == 1


def test_a_waiting_caller_gets_what_comes():
    executors = pool(1, n_ready=0)
    found = []
    waiting = threading.Thread(target=lambda: found.append(executors.lease()))
    waiting.start()
    executors.turn(0, "ready")
    waiting.join(5)
    assert [lease.index for lease in found] == [0]


def test_nobody_waits_once_the_search_is_interrupted():
    executors = pool(1, n_ready=0)
    found = []
    waiting = threading.Thread(target=lambda: found.append(executors.lease()))
    waiting.start()
    time.sleep(0.05)
    executors.interrupt()
    waiting.join(5)
    (lease,) = found
    lease.start(Command("a", {}))
    assert lease.advance().kind == "interrupted"
    lease.release()
    assert executors.try_lease("b", 5.0) is None


def test_a_run_whose_executor_is_lost_goes_on_with_another():
    executors = Executors()
    moved = Command("a", {}, state=b"1", epochs=({"epoch": 1},))
    lost = Recorder(0, [Event("epoch", epoch={"epoch": 1}), Event("lost", command=moved)])
    other = Recorder(1, [Event("done")])
    for mailbox in (lost, other):
        executors.add(mailbox)
    executors.turn(0, "ready")
    lease = executors.lease()
    lease.start(Command("a", {}))
    assert lease.advance().epoch == {"epoch": 1}
    executors.turn(0, "starting")
    executors.turn(1, "ready")
    assert lease.advance().kind == "done"
    assert other.asked[0] == ("post", moved)
    lease.release()
    assert executors.try_lease("b").index == 1


def test_a_run_that_loses_every_executor_fails_in_the_end():
    # It may be what kills them.
    executors = Executors()
    epoch = Event("epoch", epoch={"epoch": 1})
    lost = [Event("lost", command=Command("a", {})) for _ in range(2 * MAX_RESTARTS + 1)]
    executors.add(Recorder(0, [*lost[:MAX_RESTARTS], epoch, *lost[MAX_RESTARTS:]]))
    executors.turn(0, "ready")
    lease = executors.lease()
    lease.start(Command("a", {}))
    # One that makes progress has its chances anew.
    assert lease.advance() == epoch
    event = lease.advance()
    assert (event.kind, event.error) == ("failed", "its executor was lost 4 times")
    lease.release()
    assert executors.try_lease("b") is not None


@pytest.mark.parametrize(
    ("n_executors", "n_studies", "at_once", "shares"),
    [
        (2, 2, None, [1, 1]),
        (5, 2, None, [3, 2]),
        (2, 3, None, [1, 1]),
        (3, 5, 1, [3]),
        (1, 4, None, [1]),
    ],
)
def test_executors_are_shared_out_evenly(n_executors, n_studies, at_once, shares):
    turns = Turns(pool(n_executors), n_studies, at_once, threading.Event())
    with ExitStack() as stack:
        taken = [stack.enter_context(turns.take(n, str(n))) for n in range(len(shares))]
        assert [len(share) for share in taken] == shares
        assert not turns._is_next(len(shares))


def test_shares_grow_and_shrink_with_the_pool():
    executors = pool(1)
    turns = Turns(executors, 2, None, threading.Event())
    with turns.take(0, "a") as first:
        assert (len(first), turns._is_next(1)) == (1, False)
        for index in range(1, 4):
            executors.add(Recorder(index))
        assert turns._is_next(1)
        with turns.take(1, "b") as second:
            assert (len(first), len(second)) == (2, 2)
            executors.plan(1)
            # A study always may have one; they take turns.
            assert (len(first), len(second)) == (1, 1)


def test_a_study_is_left_alone_with_its_share_when_others_end():
    # What it proposes would depend on when they do.
    turns = Turns(pool(2), 2, None, threading.Event())
    with ExitStack() as ended:
        ended.enter_context(turns.take(0, "a"))
        with turns.take(1, "b") as share:
            ended.close()
            assert len(share) == 1


def test_a_study_that_waits_for_its_turn_is_let_go_at_the_end():
    stop = threading.Event()
    turns = Turns(pool(1), 2, None, stop)
    with turns.take(0, "a"):
        stop.set()
        with turns.take(1, "b"):
            pass
