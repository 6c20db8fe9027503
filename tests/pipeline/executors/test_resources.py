"""How many executors fit on the nodes of a cluster."""

import pytest

from adu.errors import UserError
from pipeline.executors.resources import ResourcesConfig, count_executors


@pytest.mark.parametrize(
    ("resources", "nodes", "expected"),
    [
        ({}, [{"CPU": 2.0}], 2),
        ({"workers_per_trial": 2}, [{"CPU": 3.0}, {"CPU": 3.0}], 3),
        ({"cpus_per_worker": 2}, [{"CPU": 3.0}, {"CPU": 3.0}], 2),
        ({"gpus_per_worker": 0.1}, [{"CPU": 64.0, "GPU": 1.0}], 10),
        ({"gpus_per_worker": 1, "cpus_per_worker": 4}, [{"CPU": 8.0, "GPU": 8.0}, {"CPU": 9}], 2),
        ({"executors": 1}, [{"CPU": 8.0}], 1),
        ({"executors": 4, "autoscale": True}, [], 4),
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
