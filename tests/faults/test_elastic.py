"""A study on a cluster whose nodes come and go: real raylets on this machine, a stub as model."""

from __future__ import annotations

import threading
import time
from collections import Counter

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from adu.trainer import RunConfig, TrainConfig
from pipeline.executors import pool as pool_module
from pipeline.executors.cluster import SETTINGS
from pipeline.executors.pool import ExecutorPool, ResourcesConfig, count_executors
from pipeline.executors.sharing import Share
from pipeline.studies.samplers import open_storage
from pipeline.studies.searcher import Study, StudyConfig
from pipeline.studies.space import Parameter
from pipeline.studies.study_run import register_trials, run_study

SESSION = "tests.pipeline.stub_session:open_search_session"
EPOCHS = 4
EPOCH_S = 0.4
PATIENCE_S = 120

# How soon a dead node is noticed: at once, for a test.
QUICK_DEATH = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 2,
}


@pytest.fixture(scope="module")
def cluster():
    """A head without a core for executors."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        patch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "5")
        head = {"num_cpus": 0, "_system_config": QUICK_DEATH}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        ray.init(cluster.address, log_to_driver=False)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


def nodes():
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


class Watcher:
    """A study's listener that keeps what it is told, and how many trials had an executor then."""

    def __init__(self, pool):
        self.pool = pool
        self.changed = threading.Condition()
        self.running = set()
        self.ended = []
        self.suspended = []
        self.epochs = Counter()
        self.replayed = Counter()
        self.most_at_once = 0
        self.ran_ahead = False

    def trial_restored(self, trial, scores):
        raise AssertionError("nothing is resumed here")

    def trial_started(self, number, params):
        with self.changed:
            self.running.add(number)
            self.most_at_once = max(self.most_at_once, len(self.running))
            self.ran_ahead |= len(self.running) > self.pool.executors.n_ready
            self.changed.notify_all()

    def epoch_ended(self, number, report, replayed):
        with self.changed:
            (self.replayed if replayed else self.epochs)[number, report.epoch] += 1
            self.changed.notify_all()

    def trial_ended(self, trial):
        with self.changed:
            self.running.remove(trial.number)
            self.ended.append(trial)
            self.changed.notify_all()

    def trial_suspended(self, number):
        with self.changed:
            self.running.remove(number)
            self.suspended.append(number)
            self.changed.notify_all()

    def wait_for(self, true):
        with self.changed:
            assert self.changed.wait_for(true, PATIENCE_S), (self.ended, self.running)


class StudyThread:
    """A study that runs in a thread of its own."""

    def __init__(self, pool, folder, name, trials):
        base = RunConfig(forget=("sketch",), train=TrainConfig(epochs=EPOCHS))
        space = {"method.gamma": Parameter(low=0.1, high=30, log=True, default=30)}
        config = StudyConfig(trials=trials, scheduler="none")
        storage = open_storage(None, folder / "optuna.journal")
        study = Study(name, base, space, config, storage, name, str(folder / "savepoints"))
        self.watcher = Watcher(pool)
        self.stop = threading.Event()
        self.run = None
        share = Share(pool.executors, name)

        def work():
            self.run = run_study(study, share, self.watcher, self.stop)

        self._thread = threading.Thread(target=work)
        self._thread.start()

    def wait(self):
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        return self.run


def start_pool(**resources):
    resources = ResourcesConfig(**resources)
    config = {"seconds": EPOCH_S}
    pool = ExecutorPool(SESSION, config, resources, count_executors(resources, nodes()))
    pool.start()
    pool.wait_ready()
    register_trials(pool.mailboxes)
    return pool


def close(pool):
    pool.close(60)
    assert not any(executor.thread.is_alive() for executor in pool._crew.values())


def test_a_study_uses_the_nodes_that_there_are(cluster, tmp_path):
    """One node; another joins; the first dies; then none is left."""
    old = cluster.add_node(num_cpus=1)
    pool = start_pool(start_timeout_s=60)
    news = []
    pool.listen(news.append, lambda: None)
    study = StudyThread(pool, tmp_path, "joins", trials=14)
    watcher = study.watcher

    watcher.wait_for(lambda: watcher.ended)
    assert watcher.most_at_once == 1
    new = cluster.add_node(num_cpus=1)
    watcher.wait_for(lambda: len(watcher.running) == 2)

    # In the middle of a trial on the old node, which restarts nowhere.
    dying = min(watcher.running)
    watcher.wait_for(lambda: watcher.epochs[dying, 1] and not watcher.epochs[dying, EPOCHS])
    cluster.remove_node(old, allow_graceful=False)
    run = study.wait()
    close(pool)
    assert not watcher.ran_ahead
    assert set(run.overheads_s) == {0, 1}
    assert [trial.state for trial in run.trials] == ["complete"] * 14
    assert sorted(trial.number for trial in run.trials) == list(range(14))
    assert set(watcher.epochs) == {(n, e) for n in range(14) for e in range(1, EPOCHS + 1)}
    assert set(watcher.epochs.values()) == {1}, "an epoch was trained for nothing"
    assert any("lost its workers" in line for line in news)
    cluster.remove_node(new)


@ray.remote(num_cpus=1)
class Neighbour:
    """Somebody else's work on the same cluster."""

    def ping(self):
        pass


def test_a_trial_whose_executors_place_is_taken_goes_on(cluster, tmp_path, monkeypatch):
    """A worker dies, not its node, and what it stood on goes to whoever has waited for it."""
    monkeypatch.setattr(pool_module, "RETURN_S", 3.0)
    node = cluster.add_node(num_cpus=2)
    pool = start_pool(executors=2, start_timeout_s=60)
    news = []
    pool.listen(news.append, lambda: None)
    while pool.executors.n_ready < 2:
        time.sleep(0.1)
    study = StudyThread(pool, tmp_path, "taken", trials=6)
    watcher = study.watcher
    watcher.wait_for(lambda: len(watcher.running) == 2)
    neighbour = Neighbour.remote()
    victim = min(watcher.running)
    watcher.wait_for(lambda: watcher.epochs[victim, 1])
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    workers = [each for each in raylet.children() if each.name().startswith("ray::RayTrain")]
    assert len(workers) == 2
    workers[0].kill()
    ray.get(neighbour.ping.remote(), timeout=PATIENCE_S)
    run = study.wait()
    assert [trial.state for trial in run.trials] == ["complete"] * 6
    assert len(watcher.suspended) == 1
    assert set(watcher.epochs.values()) == {1}, "an epoch was trained for nothing"
    assert any("lost its workers" in line for line in news)
    # With its place back, the executor is there again.
    ray.kill(neighbour)
    deadline = time.monotonic() + PATIENCE_S
    while pool.executors.n_ready < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    close(pool)
    cluster.remove_node(node)


def test_a_search_without_executors_waits_for_some_and_then_gives_up(cluster, tmp_path):
    node = cluster.add_node(num_cpus=1)
    pool = start_pool(start_timeout_s=PATIENCE_S)
    # Once there is an executor, so short a wait is enough.
    pool._resources = pool._resources.model_copy(update={"start_timeout_s": 3})
    study = StudyThread(pool, tmp_path, "none", trials=4)
    failed = threading.Event()

    def give_up():
        study.stop.set()
        failed.set()

    pool.listen(lambda _: None, give_up)
    study.watcher.wait_for(lambda: study.watcher.epochs[0, 1])
    cluster.remove_node(node, allow_graceful=False)
    assert failed.wait(PATIENCE_S)
    # Everything is kept: the trial waits, with its last epoch, for the search to be resumed.
    run = study.wait()
    assert run.trials == []
    assert study.watcher.suspended == [0]
    assert (tmp_path / "savepoints" / "0").exists()
    assert str(pool.failure) == (
        "resources: executors all lost, and none back within 3 s: asked for 1 x 1 workers of "
        "1 CPU and 0 GPU, free in the cluster: 0 CPU, 0 GPU"
    )
    assert pool.executors.lease().index == -1
    pool.close(1)

    # Their threads wait for capacity, and Ray must not be shut down under them.
    node = cluster.add_node(num_cpus=1)
    deadline = time.monotonic() + PATIENCE_S
    while any(executor.thread.is_alive() for executor in pool._crew.values()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
