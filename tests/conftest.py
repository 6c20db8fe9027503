"""Fixtures that several test folders use."""

import uuid
from collections.abc import Iterator

import pytest
from hypothesis import settings

from adu.storage import filesystem_for
from infra.stack.ports import free_ports
from tests.fault_proxy import FaultProxy, fault_proxy
from tests.s3 import s3_server
from tests.skips import is_failure

# The same inputs each time, however busy the machine is; chance has its place in tests/faults.
settings.register_profile("same", derandomize=True, deadline=None, database=None)
settings.load_profile("same")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """A skip that nobody has allowed is a failure where CI=true."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = str(report.longrepr[2])
        if is_failure(reason):
            report.outcome = "failed"
            report.longrepr = f"{reason}: CI skips only what tests/skips.py allows"
    return report


@pytest.fixture
def free_port() -> int:
    """A TCP port of loopback that nothing listens on."""
    (port,) = free_ports(1)
    return port


@pytest.fixture(scope="session")
def s3_environment(tmp_path_factory):
    """The AWS variables of a real S3 server that runs for the whole test session."""
    with s3_server(tmp_path_factory.mktemp("s3")) as environment:
        yield environment


@pytest.fixture
def s3(s3_environment, monkeypatch) -> str:
    """URL of an empty bucket, with the environment set so that it is reached."""
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in s3_environment.items():
        monkeypatch.setenv(name, value)
    bucket = f"test-{uuid.uuid4().hex}"
    filesystem_for(f"s3://{bucket}")[0].mkdir(bucket)
    return f"s3://{bucket}"


@pytest.fixture
def s3_proxy(s3, s3_environment, monkeypatch) -> Iterator[FaultProxy]:
    """A proxy that counts and breaks what goes to the bucket `s3`; whole until told otherwise."""
    with fault_proxy(s3_environment["AWS_ENDPOINT_URL_S3"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        monkeypatch.setenv("ADU_READ_TIMEOUT_S", "1")
        yield proxy
