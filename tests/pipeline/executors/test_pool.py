"""Executors on a real Ray: they stay warm, and one that breaks mends itself.

All tests share one cluster; each pool costs a start of its workers.
"""

from __future__ import annotations

import pickle
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import ray

from adu.errors import UserError
from pipeline.executors.cluster import LOCAL_SETTINGS, SETTINGS
from pipeline.executors.mailbox import Command
from pipeline.executors.pool import ExecutorPool, ResourcesConfig, count_executors

SESSION = "tests.pipeline.stub_session:open_session"


@pytest.fixture(scope="module")
def cluster():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (SETTINGS | LOCAL_SETTINGS).items():
            patch.setenv(name, value)
        # More cores than there are: the stub needs none.
        ray.init("local", num_cpus=5, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def pools(cluster):
    """Two executors of one worker, and one of two; started at the same time."""
    singles = ExecutorPool(SESSION, {}, ResourcesConfig(executors=2), 2)
    double = ExecutorPool(SESSION, {}, ResourcesConfig(workers_per_trial=2, executors=1), 1)
    for pool in (singles, double):
        pool.start()
    for pool in (singles, double):
        pool.wait_ready()
    yield {1: singles, 2: double}
    with ThreadPoolExecutor() as threads:
        list(threads.map(close, (singles, double)))


def close(pool):
    """Ray must not be shut down under a thread that waits in it."""
    pool.close(60)
    assert not any(executor.thread.is_alive() for executor in pool._crew.values())


@pytest.fixture(params=[1, 2], ids=["1 worker", "2 workers"])
def lease(pools, request):
    lease = pools[request.param].executors.lease()
    lease.world_size = request.param
    yield lease
    lease.release()


def follow(lease, run, kind="train", until=None):
    """Runs a command to its end, or to an epoch; returns its events."""
    lease.start(Command(f"run-{time.monotonic_ns()}", run, kind))
    events = [lease.advance()]
    while events[-1].kind == "epoch" and events[-1].epoch["epoch"] != until:
        events.append(lease.advance())
    return events


def epochs(events):
    return [event.epoch["epoch"] for event in events if event.epoch]


def pids(events):
    return {event.epoch["pid"] for event in events if event.epoch}


def test_run_after_run_on_the_same_workers(lease):
    first = follow(lease, {})
    events = follow(lease, {"epochs": 5})
    assert epochs(events) == [1, 2, 3, 4, 5]
    assert events[-1].kind == "done"
    assert pids(events) == pids(first)
    assert events[0].epoch["world_size"] == lease.world_size


def test_a_run_that_is_stopped_begins_no_epoch_more(lease):
    stopped = follow(lease, {"epochs": 100}, until=1)
    following = follow(lease, {"epochs": 1})
    assert pids(stopped) == pids(following)
    assert following[0].epoch["begun"] == stopped[0].epoch["begun"] + 1


def test_a_tested_run_gives_its_result(lease):
    events = follow(lease, {"epochs": 2}, kind="test")
    assert epochs(events) == [1, 2]
    assert pickle.loads(events[-1].result) == ("tested", 2)


def test_a_configuration_that_does_not_fit_is_the_users_mistake(lease):
    (event,) = follow(lease, {"refuse": True}, kind="check")
    assert (event.kind, event.user_error) == ("failed", True)
    assert event.error == "option = 3: must be at most 2"
    assert follow(lease, {}, kind="check")[-1].kind == "done"


def test_an_exception_fails_the_run_and_keeps_the_workers(pools):
    lease = pools[1].executors.lease()
    before = follow(lease, {})
    failed = follow(lease, {"raise_in": 2})
    after = follow(lease, {})
    lease.release()
    assert epochs(failed) == [1]
    assert failed[-1].error == "ValueError: boom in epoch 2"
    assert pids(before) == pids(after)


@pytest.mark.parametrize(("workers", "rank"), [(1, 0), (2, 1)])
def test_a_killed_worker_costs_its_run_no_epoch(pools, tmp_path, workers, rank):
    lease = pools[workers].executors.lease()
    run = {"die_in": 2, "rank": rank, "flag": str(tmp_path / "died")}
    events = follow(lease, run, kind="test")
    lease.release()
    assert epochs(events) == [1, 2, 3]
    assert len(pids(events)) == 2, "the workers were not replaced"
    assert pickle.loads(events[-1].result) == ("tested", 3)


def test_executors_work_side_by_side(pools, tmp_path):
    leases = [pools[1].executors.lease() for _ in range(2)]
    for number, lease in enumerate(leases):
        lease.start(Command(f"side-{number}", {"epochs": 1, "meet": str(tmp_path)}))
    events = [lease.advance() for lease in leases]
    for lease in leases:
        lease.release()
    assert [event.kind for event in events] == ["epoch", "epoch"], events
    assert len(pids(events)) == 2


def test_an_executor_is_its_workers_alone(pools):
    # Ray's controllers, barriers and coordinators would be a process each.
    actors = ray._private.state.actors().values()
    alive = {actor["ActorClassName"] for actor in actors if actor["State"] == "ALIVE"}
    assert alive == {"Mailboxes", "RayTrainWorker"}


def test_executors_that_are_dismissed_leave_their_cores_to_others(pools):
    def free_cores():
        # Ray leaves out what is used up.
        return ray.available_resources().get("CPU", 0)

    before = free_cores()
    pool = ExecutorPool(SESSION, {}, ResourcesConfig(executors=1), 1)
    pool.start()
    pool.wait_ready()
    during = free_cores()
    pool.dismiss()
    deadline = time.monotonic() + 60
    while free_cores() < before and time.monotonic() < deadline:
        time.sleep(0.1)
    after = free_cores()
    close(pool)
    assert (during, after) == (before - 1, before)


def test_a_session_that_cannot_be_opened_says_why(cluster):
    pool = ExecutorPool(SESSION, {"refuse": True}, ResourcesConfig(executors=1), 1)
    pool.start()
    with pytest.raises(UserError, match=r"^manifest x: has no card\.json$"):
        pool.wait_ready()
    close(pool)


@pytest.mark.parametrize(
    ("resources", "nodes", "expected"),
    [
        ({}, [{"CPU": 2.0}], 2),
        ({"workers_per_trial": 2}, [{"CPU": 3.0}, {"CPU": 3.0}], 3),
        ({"cpus_per_worker": 2}, [{"CPU": 3.0}, {"CPU": 3.0}], 2),
        ({"gpus_per_worker": 0.1}, [{"CPU": 64.0, "GPU": 1.0}], 10),
        ({"gpus_per_worker": 1, "cpus_per_worker": 4}, [{"CPU": 8.0, "GPU": 8.0}, {"CPU": 9}], 2),
        ({"executors": 1}, [{"CPU": 8.0}], 1),
    ],
)
def test_as_many_executors_as_fit_on_the_nodes(resources, nodes, expected):
    assert count_executors(ResourcesConfig(**resources), nodes) == expected


@pytest.mark.parametrize(
    ("resources", "says"),
    [
        (
            {"workers_per_trial": 4, "cpus_per_worker": 2},
            "1 executor of 4 workers need 4 x 2 CPU; the cluster has 2 CPU on 1 node, enough for 0",
        ),
        ({"gpus_per_worker": 0.5}, "1 x 1 CPU and 1 x 0.5 GPU; the cluster has 2 CPU and 0 GPU"),
        ({"executors": 3}, "3 executors of 1 worker need 3 x 1 CPU"),
    ],
)
def test_what_never_fits_is_refused_with_the_arithmetic(resources, says):
    with pytest.raises(UserError) as error:
        count_executors(ResourcesConfig(**resources), [{"CPU": 2.0}])
    assert says in str(error.value)
