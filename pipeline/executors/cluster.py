"""Where a command runs: a Ray cluster that is there already, or one of its own on this machine."""

from __future__ import annotations

import json
import logging
import os
import threading
from dataclasses import dataclass

import ray

from adu.errors import UserError

# Read by Ray in this process or inherited by the processes that it starts.
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_PROMPT_ENABLED": "0",
    # Configurations may hold relative paths: workers stay where the command was started.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # How fast a dead worker is noticed.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    # Ray Train's controllers run in this process, and its log is ours to keep.
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    # Ray would start every worker through `uv run` if the command was.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    # Ray 2.60 warns that this will be the default.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Tune writes nothing but what it cannot do without, and leaves Ctrl-C to the command.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # A trial that failed has no metric to report.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
}

# A cluster on one machine is not preempted; the watchers would cost a process an executor.
LOCAL_SETTINGS = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}


# Names of the threads that wait inside Ray for as long as an executor lives.
EXECUTOR_THREAD = "executor"


@dataclass(frozen=True)
class Cluster:
    """A connected cluster.

    Attributes:
        local: Whether it was started by, and ends with, this process.
        nodes: Resources of each node that is alive.
        job_id: Ray's name of this job, or that under which it was submitted.
    """

    local: bool
    nodes: tuple[dict[str, float], ...]
    job_id: str


def connect(address: str | None) -> Cluster:
    """Connects to a cluster, or starts one on this machine with all its cores.

    Args:
        address: ``HOST:PORT`` or ``auto``; if unset, ``RAY_ADDRESS``, which ``ray job submit``
            sets; if that is unset too, a cluster of its own is started.

    Raises:
        UserError: If no cluster answers at the address, or none starts here.
    """
    given = address or os.environ.get("RAY_ADDRESS") or None
    if given == "local":
        given = None
    settings = SETTINGS if given else SETTINGS | LOCAL_SETTINGS
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    if given and "://" in given:
        raise UserError(
            f"address '{given}': must be HOST:PORT or auto (from outside a cluster, use "
            "'ray job submit --address URL --working-dir . -- python pipeline/search.py ...')"
        )
    try:
        ray.init(
            address=given or "local",
            # The dashboard of a cluster that ends with its search is a GB for a page nobody opens.
            include_dashboard=None if given else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except Exception as error:
        # Ray raises a bare Exception where a node takes longer than 30 s to start.
        reason = " ".join(str(error).split())[:200]
        if given is None:
            raise UserError(f"Ray does not start on this machine: {reason}") from error
        raise UserError(f"address '{given}': no Ray cluster answers there: {reason}") from error
    nodes = tuple(node["Resources"] for node in ray.nodes() if node["Alive"])
    return Cluster(given is None, nodes, _job_id())


def _job_id() -> str:
    # What `ray job submit` leaves for the command that it starts.
    config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    submitted: str | None = config.get("metadata", {}).get("job_submission_id")
    return submitted or ray.get_runtime_context().get_job_id()


def leave() -> None:
    """Leaves the cluster at the end of a command.

    ``ray.shutdown`` under a thread that still waits for an executor crashes the process now and
    then. It is about to end anyway: a cluster of its own ends with it, and any other takes back
    what it held.
    """
    if not any(thread.name.startswith(EXECUTOR_THREAD) for thread in threading.enumerate()):
        ray.shutdown()
