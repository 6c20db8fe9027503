"""How many executors may work now: nodes come and go, and executors break."""

import pytest

from adu.errors import UserError
from pipeline.executors import capacity as capacity_module
from pipeline.executors.capacity import Capacity, NoExecutorsError
from pipeline.executors.resources import ResourcesConfig
from pipeline.executors.run import Event

REFUSED = Event("broken", error="manifest x: has no card.json", user_error=True)
BROKEN = Event("broken", error="CUDA error: uncorrectable ECC error")


@pytest.fixture
def at(monkeypatch):
    """Sets the clock, and the nodes that are alive."""

    def set_to(time_s, cpus=()):
        monkeypatch.setattr(capacity_module.time, "monotonic", lambda: time_s)
        nodes = [{"Alive": True, "Resources": {"CPU": each}} for each in cpus]
        monkeypatch.setattr(capacity_module.ray, "nodes", lambda: nodes)

    set_to(0.0)
    return set_to


def cpus(*counts):
    return [{"CPU": count} for count in counts]


def test_it_follows_the_nodes(at):
    capacity = Capacity(ResourcesConfig(), cpus(2))
    assert capacity.look(2) == 2
    at(10.0, [2, 2])
    assert capacity.look(2) == 4
    at(20.0, [2])
    assert capacity.look(4) == 2


def test_no_more_than_asked_for_and_all_of_it_where_the_cluster_grows(at):
    assert Capacity(ResourcesConfig(executors=1), cpus(8)).size == 1
    capacity = Capacity(ResourcesConfig(executors=8, autoscale=True), cpus(0))
    at(10.0, [0])
    assert capacity.look(0) == 8


def test_a_cluster_that_does_not_answer_has_what_it_had(at, monkeypatch):
    capacity = Capacity(ResourcesConfig(), cpus(2))
    at(10.0)
    monkeypatch.setattr(capacity_module.ray, "nodes", lambda: 1 / 0)
    assert capacity.look(2) == 2


def test_one_broken_executor_costs_itself_and_is_tried_again_later(at):
    capacity = Capacity(ResourcesConfig(), cpus(64))
    capacity.broken(BROKEN)
    assert capacity.size == 63
    at(capacity_module.REST_S + 1, [64])
    assert capacity.look(63) == 64


def test_with_all_executors_broken_there_is_no_job(at):
    capacity = Capacity(ResourcesConfig(), cpus(2))
    capacity.broken(BROKEN)
    with pytest.raises(NoExecutorsError, match="no executor can start: CUDA error"):
        capacity.broken(BROKEN)


def test_what_the_user_can_mend_is_told_at_once_unless_others_work(at):
    capacity = Capacity(ResourcesConfig(), cpus(64))
    with pytest.raises(UserError, match=r"^manifest x: has no card\.json$"):
        capacity.broken(REFUSED)
    capacity.has_worked = True
    capacity.broken(REFUSED)


def test_executors_are_waited_for_as_long_as_it_was_said(at, monkeypatch):
    free = {"CPU": 1.0}
    monkeypatch.setattr(capacity_module.ray, "available_resources", lambda: free)
    capacity = Capacity(ResourcesConfig(start_timeout_s=60), cpus(2))
    at(59.0, [2])
    capacity.look(0)
    at(61.0, [2])
    with pytest.raises(NoExecutorsError) as error:
        capacity.look(0)
    assert str(error.value) == (
        "resources: executors not ready within 60 s: asked for 2 x 1 workers of 1 CPU and 0 GPU, "
        "free in the cluster: 1 CPU, 0 GPU"
    )
    capacity.has_worked = True
    capacity.look(1)
    at(100.0, [])
    capacity.look(0)
    at(122.0, [])
    with pytest.raises(NoExecutorsError, match="executors all lost, and none back within 60 s"):
        capacity.look(0)
