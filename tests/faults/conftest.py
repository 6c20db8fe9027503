"""All tests of this folder break something, and take minutes."""

from pathlib import Path

import pytest
import ray

from pipeline.executors.cluster import LOCAL_SETTINGS, SETTINGS


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.faults)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="module")
def three_cores():
    """This process, connected to a cluster of its own with room for three executors."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**SETTINGS, **LOCAL_SETTINGS}.items():
            patch.setenv(name, value)
        ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()
