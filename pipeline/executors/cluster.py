"""Where a command runs: a Ray cluster that is there already, or one of its own on this machine."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
    # Ray would start every worker through `uv run` if the command was.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    # Ray 2.60 warns that this will be the default.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Tune writes nothing but what it cannot do without, and leaves Ctrl-C to the command.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # All executors start at the same time.
    "TUNE_MAX_PENDING_TRIALS_PG": "100000",
    # A trial that failed has no metric to report.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
}

# How long a cluster may take to take a connection.
ANSWER_S = 10.0

# A cluster on one machine is not preempted; the watchers would cost a process an executor.
LOCAL_SETTINGS = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}


@dataclass(frozen=True)
class Cluster:
    """A connected cluster.

    Attributes:
        local: Whether it was started by, and ends with, this process.
        nodes: Resources of each node that is alive.
        job_id: Ray's name of this job, or that under which it was submitted.
        head: Ray's id of the head, if other nodes have all the cores; else None.
    """

    local: bool
    nodes: tuple[dict[str, float], ...]
    job_id: str
    head: str | None = None


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
    _check_listens(given)
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
    alive = [node for node in ray.nodes() if node["Alive"]]
    nodes = tuple(node["Resources"] for node in alive)
    return Cluster(given is None, nodes, _job_id(), _bare_head(alive))


def _check_listens(address: str | None) -> None:
    """Sees whether there is anything at an address: Ray would wait for it for a quarter of an hour.

    Raises:
        UserError: If there is not.
    """
    host, _, port = (address or "").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_S).close()
    except OSError as error:
        raise UserError(
            f"address '{address}': no Ray cluster answers there: {error.strerror or error}"
        ) from error


def _bare_head(nodes: Sequence[Mapping[str, Any]]) -> str | None:
    (head,) = [node for node in nodes if "node:__internal_head__" in node["Resources"]]
    others = [node for node in nodes if node is not head]
    is_bare = not head["Resources"].get("CPU") and any(n["Resources"].get("CPU") for n in others)
    return str(head["NodeID"]) if is_bare else None


def _job_id() -> str:
    # What `ray job submit` leaves for the command that it starts.
    config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    submitted: str | None = config.get("metadata", {}).get("job_submission_id")
    return submitted or ray.get_runtime_context().get_job_id()
