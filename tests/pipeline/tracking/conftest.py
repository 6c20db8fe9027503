"""What the tests of MLflow share."""

import pytest

from pipeline.tracking.server import Server


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A database that all of them share: MLflow takes seconds to create one."""
    return Server(f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}")
