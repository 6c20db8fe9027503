"""Executors on a real Ray: they stay warm, and say what has become of a run or of themselves.

All tests share one cluster, and each executor costs a start of its workers.
"""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import ray
from ray import tune
from ray.exceptions import RayActorError

from pipeline.executors.capacity import Capacity
from pipeline.executors.cluster import LOCAL_SETTINGS, SETTINGS
from pipeline.executors.executor import Executor, ExecutorSetup
from pipeline.executors.resources import ResourcesConfig
from pipeline.executors.run import Attacked
from pipeline.executors.worker import WorkerSetup
from tests.pipeline.stub_session import make_run

SESSION = "tests.pipeline.stub_session:open_session"


@pytest.fixture(scope="module")
def cluster():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (SETTINGS | LOCAL_SETTINGS).items():
            patch.setenv(name, value)
        # More cores than there are: the stub needs none.
        ray.init("local", num_cpus=8, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


def start(run, n_workers=1, timeout_s=100, **config):
    """An executor as Tune puts one up."""
    resources = ResourcesConfig(workers_per_trial=n_workers, start_timeout_s=timeout_s)
    setup = ExecutorSetup(WorkerSetup(SESSION, config), resources)
    executor = ray.remote(tune.with_parameters(Executor, setup=setup))
    return executor.options(num_cpus=1 if n_workers == 1 else 0).remote({"run": run})


@pytest.fixture(scope="module")
def warm(cluster, tmp_path_factory):
    """An executor of one worker, and one of two; started at the same time."""
    place = tmp_path_factory.mktemp("warm") / "first"
    executors = {n: start(make_run("first", f"{place}-{n}"), n) for n in (1, 2)}
    for executor in executors.values():
        follow(executor)
    return executors


@pytest.fixture(params=[1, 2], ids=["1 worker", "2 workers"])
def executor(warm, request):
    return warm[request.param]


def follow(executor, run=None, until=None):
    """Has an executor run something to its end, or to an epoch; returns Tune's results."""
    if run is not None:
        assert ray.get(executor.reset.remote({"run": run}))
    results = [ray.get(executor.train.remote())]
    while not results[-1]["done"] and results[-1].get("epoch") != until:
        results.append(ray.get(executor.train.remote()))
    return results


def epochs(results):
    return [result["event"].epoch["epoch"] for result in results if result["event"].epoch]


def pids(results):
    return {result["event"].epoch["pid"] for result in results if result["event"].epoch}


def test_run_after_run_on_the_same_workers(executor, tmp_path):
    first = follow(executor, make_run("a", tmp_path / "a"))
    results = follow(executor, make_run("b", tmp_path / "b", epochs=5))
    assert epochs(results) == [1, 2, 3, 4, 5]
    assert pids(results) == pids(first)
    assert (results[-1]["done"], results[-1]["h"]) == (True, 0.5)


def test_a_group_of_workers_is_one_run(warm, tmp_path):
    for n, executor in warm.items():
        (result,) = follow(executor, make_run("a", tmp_path / str(n), epochs=1))
        assert result["event"].epoch["world_size"] == n
        # Of a placement group of its own, which the driver must know to remove it.
        assert (result["group"] is None) == (n == 1)


def test_a_run_that_is_stopped_begins_no_epoch_more(executor, tmp_path):
    stopped = follow(executor, make_run("a", tmp_path / "a", epochs=100), until=1)
    following = follow(executor, make_run("b", tmp_path / "b", epochs=1))
    (last,) = following
    assert last["event"].epoch["begun"] == stopped[-1]["event"].epoch["begun"] + 1


def test_a_tested_run_leaves_its_outcome(executor, tmp_path):
    results = follow(executor, make_run("a", tmp_path / "a", tested=True))
    assert epochs(results) == [1, 2, 3]
    assert results[-1]["event"].kind == "done"
    assert (tmp_path / "a.npz").read_bytes() == b"tested after 3"


def test_a_run_goes_on_from_its_last_epoch_which_is_told_again(executor, tmp_path):
    follow(executor, make_run("a", tmp_path / "a", epochs=5), until=2)
    results = follow(executor, make_run("a again", tmp_path / "a", epochs=5))
    assert epochs(results) == [2, 3, 4, 5]
    # Nobody may have heard of the epochs before, or decided whether it goes on.
    assert [report["epoch"] for report in results[0]["event"].before] == [1]


def test_an_exception_fails_the_run_and_keeps_the_workers(warm, tmp_path):
    before = follow(warm[1], make_run("a", tmp_path / "a"))
    failed = follow(warm[1], make_run("b", tmp_path / "b", raise_in=2))
    after = follow(warm[1], make_run("c", tmp_path / "c"))
    assert epochs(failed) == [1]
    assert failed[-1]["event"].error == "ValueError: boom in epoch 2"
    assert pids(before) == pids(after)


def test_a_model_is_attacked_by_one_worker_and_the_others_stay_in_step(executor, tmp_path):
    before = follow(executor, make_run("a", tmp_path / "a"))
    attacked = Attacked("untouched", 0, {}, {})
    results = follow(executor, replace(make_run("b", tmp_path / "b"), attacked=attacked), until=0)
    assert [result["event"].attacks for result in results] == [(1, 2), (2, 2), None]
    assert (results[-1]["event"].kind, results[-1]["done"]) == ("done", True)
    failing = replace(make_run("c", tmp_path / "c", raise_in=2), attacked=attacked)
    results = follow(executor, failing, until=0)
    assert results[-1]["event"].error == "ValueError: boom in attack 2"
    assert pids(follow(executor, make_run("d", tmp_path / "d"))) == pids(before)


def test_a_configuration_that_does_not_fit_is_the_users_mistake(executor, tmp_path):
    (result,) = follow(executor, make_run("a", tmp_path / "a", refuse=True))
    event = result["event"]
    assert (event.kind, event.user_error) == ("failed", True)
    assert event.error == "option = 3: must be at most 2"


@pytest.mark.parametrize(
    ("n_workers", "rank"), [(1, 0), pytest.param(2, 1, marks=pytest.mark.faults)]
)
def test_an_executor_that_has_lost_a_worker_is_gone_and_its_run_is_not(
    cluster, tmp_path, n_workers, rank
):
    run = make_run("a", tmp_path / "a", die_in=2, rank=rank, flag=str(tmp_path / "died"))
    executor = start(run, n_workers)
    first = ray.get(executor.train.remote())
    # Its process, or an exception that has Tune put up another.
    with pytest.raises((RayActorError, ray.exceptions.RayTaskError)):
        ray.get(executor.train.remote())
    ray.kill(executor)
    other = start(run, n_workers)
    results = [first, *follow(other)]
    assert epochs(results) == [1, 1, 2, 3]
    assert len(pids(results)) == 2
    end(other)


def test_executors_work_side_by_side(warm, tmp_path):
    for n, executor in warm.items():
        run = make_run(f"side-{n}", tmp_path / str(n), epochs=1, meet=str(tmp_path / "meet"))
        (tmp_path / "meet").mkdir(exist_ok=True)
        ray.get(executor.reset.remote({"run": run}))
    results = ray.get([executor.train.remote() for executor in warm.values()])
    assert [result["event"].kind for result in results] == ["epoch", "epoch"]


def test_a_session_that_cannot_be_opened_says_why(cluster, tmp_path):
    executor = start(make_run("a", tmp_path / "a"), refuse=True)
    event = ray.get(executor.train.remote())["event"]
    assert (event.kind, event.user_error) == ("broken", True)
    assert event.error == "manifest x: has no card.json"
    # Tune is to take it away.
    with pytest.raises(ray.exceptions.RayTaskError, match="has no card.json"):
        ray.get(executor.train.remote())
    ray.kill(executor)


def test_workers_that_find_no_room_are_not_waited_for_for_ever(cluster, tmp_path):
    executor = start(make_run("a", tmp_path / "a"), n_workers=50, timeout_s=3)
    event = ray.get(executor.train.remote())["event"]
    assert (event.kind, event.error) == ("broken", "its workers are not there within 3 s")
    ray.kill(executor)


def test_an_executor_that_is_stopped_leaves_its_cores_to_others(warm, tmp_path):
    before = free_cores()
    executor = start(make_run("a", tmp_path / "a", epochs=1), n_workers=2)
    follow(executor)
    assert free_cores() == before - 2
    end(executor)
    assert freed(before)


def test_the_cores_of_a_group_that_was_killed_are_freed(warm, tmp_path):
    # Ray would keep them until the end of the job, and another executor would wait for them.
    before = free_cores()
    executor = start(make_run("a", tmp_path / "a", epochs=1), n_workers=2)
    (result,) = follow(executor)
    capacity = Capacity(ResourcesConfig(workers_per_trial=2), [{"CPU": 8}])
    capacity.seen(result["executor"], result["group"])
    ray.kill(executor)

    def look():
        capacity._looked_at = 0.0
        capacity.look(n_at_work=1)

    assert freed(before, look)


def end(executor):
    ray.get(executor.stop.remote())
    ray.kill(executor)


def free_cores():
    # Ray leaves out what is used up.
    return ray.available_resources().get("CPU", 0)


def freed(n_cores, look=lambda: None):
    deadline = time.monotonic() + 60
    while free_cores() < n_cores and time.monotonic() < deadline:
        look()
        time.sleep(0.2)
    return free_cores() == n_cores
