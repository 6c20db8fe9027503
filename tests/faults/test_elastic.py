"""A study on a cluster whose nodes come and go: real raylets on this machine, a stub as model."""

from __future__ import annotations

import time

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from pipeline.executors.capacity import NoExecutorsError
from pipeline.executors.cluster import SETTINGS
from tests.faults.stub_job import (
    EPOCHS,
    EXECUTOR_TITLES,
    PATIENCE_S,
    StubJob,
    title,
    trial_states,
)

# A node that is dead refuses at once; one that answers late, on a busy machine, is none.
QUICK_DEATH = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 30_000,
    "health_check_failure_threshold": 4,
}


@pytest.fixture(scope="module")
def cluster():
    """A head without a core for executors."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        head = {"num_cpus": 0, "_system_config": QUICK_DEATH}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        ray.init(cluster.address, log_to_driver=False)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


def in_the_middle(job, key):
    """Waits until a run has begun and is not about to end."""
    epochs = job.watcher.epochs
    job.watcher.wait_for(lambda: (key, 1) in epochs and (key, EPOCHS) not in epochs)


def executors_on(node):
    """The processes on a node that train."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return [each for each in raylet.children() if title(each).startswith(EXECUTOR_TITLES)]


def test_a_study_uses_the_nodes_that_there_are(cluster, tmp_path):
    """One node; another joins; the first dies."""
    old = cluster.add_node(num_cpus=1)
    trials = {"joins": 14}
    job = StubJob(tmp_path, trials)
    watcher = job.watcher

    watcher.wait_for(lambda: watcher.ended)
    assert watcher.most_at_once == 1
    new = cluster.add_node(num_cpus=1)
    watcher.wait_for(lambda: len(watcher.running) == 2)
    assert watcher.most_at_once == 2

    dying = min(watcher.running)
    in_the_middle(job, dying)
    cluster.remove_node(old, allow_graceful=False)
    job.wait()
    job.check_complete(trials)
    assert any("was lost; it goes on with another one" in line for line in watcher.lines)
    assert len(watcher.suspended) == 1
    # Of the epoch that was broken off, and of one that was not told any more.
    assert sum(job.trained().values()) <= 14 * EPOCHS + 1
    cluster.remove_node(new)


@ray.remote(num_cpus=1)
class Neighbour:
    """Somebody else's work on the same cluster."""

    def ping(self):
        pass


def test_a_run_whose_executors_place_is_taken_goes_on(cluster, tmp_path):
    """An executor dies, not its node, and its place goes to whoever has waited for it."""
    node = cluster.add_node(num_cpus=2)
    trials = {"taken": 8}
    job = StubJob(tmp_path, trials, executors=2)
    watcher = job.watcher
    watcher.wait_for(lambda: len(watcher.running) == 2)
    neighbour = Neighbour.remote()
    in_the_middle(job, min(watcher.running))
    executors = executors_on(node)
    assert len(executors) == 2
    executors[0].kill()
    job.wait()
    job.check_complete(trials)
    assert len(watcher.suspended) == 1
    assert any("was lost; it goes on with another one" in line for line in watcher.lines)
    ray.get(neighbour.ping.remote(), timeout=PATIENCE_S)
    ray.kill(neighbour)
    cluster.remove_node(node)


def test_a_group_of_workers_that_loses_one_is_replaced(cluster, tmp_path):
    """Two workers on two nodes; one node dies and another comes: nothing of the group is left."""
    stays, dies = cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)
    trials = {"group": 4}
    job = StubJob(tmp_path, trials, workers_per_trial=2, start_timeout_s=PATIENCE_S)
    watcher = job.watcher
    watcher.wait_for(lambda: watcher.ended)
    in_the_middle(job, "group/1")
    cluster.remove_node(dies, allow_graceful=False)
    comes = cluster.add_node(num_cpus=1)
    job.wait()
    job.check_complete(trials)
    assert len(watcher.suspended) == 1
    for node in (stays, comes):
        cluster.remove_node(node)


def test_a_job_without_executors_waits_for_some_and_then_gives_up(cluster, tmp_path):
    node = cluster.add_node(num_cpus=1)
    trials = {"none": 2}
    job = StubJob(tmp_path, trials, start_timeout_s=30)
    watcher = job.watcher
    watcher.wait_for(lambda: ("none/0", 1) in watcher.epochs)
    cluster.remove_node(node, allow_graceful=False)
    with pytest.raises(NoExecutorsError) as error:
        job.wait()
    assert str(error.value) == (
        "resources: executors all lost, and none back within 30 s: asked for 1 x 1 workers of "
        "1 CPU and 0 GPU, free in the cluster: 0 CPU, 0 GPU"
    )
    # Everything is kept: the trial waits, with its last epoch, for the search to be resumed.
    assert watcher.ended == []
    ((number, state, n_epochs),) = trial_states(job.storage, "none")
    assert (number, state) == (0, "WAITING") and n_epochs >= 1
    assert (tmp_path / "unfinished" / "none" / "0.state").exists()

    node = cluster.add_node(num_cpus=1)
    deadline = time.monotonic() + PATIENCE_S
    while not ray.cluster_resources().get("CPU"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    again = StubJob(tmp_path, trials)
    again.wait()
    again.check_complete(trials, job)
    cluster.remove_node(node)
