"""The batch script on a real slurmctld and slurmd on loopback: warned, requeued, and finished."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.stack.ports import free_ports
from tests.pipeline.commands import ROOT
from tests.tiny import tiny_backbone, tiny_manifest

pytestmark = pytest.mark.faults

START_TIMEOUT_S = 60
JOB_TIMEOUT_S = 600
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={daemon}
SlurmUser=root
AuthType=auth/none
CredType=cred/none
CryptoType=crypto/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=requeue_delay=1
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/controller.pid
SlurmdPidFile={folder}/daemon.pid
SlurmctldLogFile={folder}/controller.log
SlurmdLogFile={folder}/daemon.log
MpiDefault=none
KillWait=10
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus}
PartitionName=all Nodes=ALL Default=YES State=UP
"""


@contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """Runs a controller and one node; gives the environment of its clients."""
    programs = [shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") for name in DAEMONS]
    if not all(programs) or os.geteuid() != 0:
        pytest.skip("slurmctld and slurmd are not installed, or we are not root")
    controller, daemon = free_ports(2)
    host = socket.gethostname().split(".")[0]
    file = folder / "slurm.conf"
    file.write_text(
        CONFIGURATION.format(
            host=host, controller=controller, daemon=daemon, folder=folder, cpus=os.cpu_count()
        )
    )
    for name in ("state", "spool"):
        (folder / name).mkdir()
    environment = {**os.environ, "SLURM_CONF": str(file)}
    flags = (["-D"], ["-D", "-N", host])
    daemons = [
        subprocess.Popen([str(program), *more, "-f", str(file)], env=environment)
        for program, more in zip(programs, flags, strict=True)
    ]
    try:
        wait(START_TIMEOUT_S, lambda: "idle" in client(environment, "sinfo", "-h", "-o", "%T"))
        yield environment
    finally:
        for process in daemons:
            process.terminate()
        for process in daemons:
            process.wait(30)


DAEMONS = ("slurmctld", "slurmd")


def client(environment: dict[str, str], *command: str, folder: Path | None = None) -> str:
    done = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


def wait(timeout_s: float, condition) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_a_warned_job_is_requeued_and_goes_on(tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    (project / ".venv").symlink_to(sys.prefix)
    for name in ("pipeline", "search_spaces"):
        (project / name).symlink_to(ROOT / name)
    output, log, config = tmp_path / "results", tmp_path / "job.log", tmp_path / "job.yaml"
    config.write_text(yaml.safe_dump(configuration(tmp_path)))
    with slurm(tmp_path) as environment:
        environment |= {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
        said = client(
            environment,
            "sbatch",
            f"--output={log}",
            f"--cpus-per-task={os.cpu_count()}",
            str(ROOT / "infra" / "slurm" / "search.sbatch"),
            *["--config", str(config), "--output", str(output)],
            folder=project,
        )
        assert said.startswith("Submitted batch job "), said
        job = said.split()[-1]
        wait(JOB_TIMEOUT_S, lambda: log.exists() and "trial 0" in log.read_text())
        client(environment, "scancel", "--signal=USR1", "--batch", job)
        wait(JOB_TIMEOUT_S, lambda: (output / "summary.json").exists() and complete(output))
        state = client(environment, "scontrol", "show", "job", job)
        assert "Restarts=1" in state, state
        wait(
            60, lambda: "JobState=COMPLETED" in client(environment, "scontrol", "show", "job", job)
        )
    assert not list(tmp_path.glob(".adu-search-*.token"))


def configuration(folder: Path) -> dict[str, Any]:
    """A search that is short, and long enough to be warned on its way."""
    return {
        "name": "tiny",
        "context": {
            "backbone": {"name": str(tiny_backbone(folder / "model"))},
            "data": {"manifest": str(tiny_manifest(folder)), "shots": 2, "val_shots": 1},
        },
        "forget": [["sketch"]],
        "train": {"epochs": 2, "batch_size": 8},
        "space": {"method.gamma": {"low": 0.1, "high": 30, "log": True, "default": 30}},
        "search": {"trials": 40, "scheduler": "none", "tries": 0},
        "final": {"seeds": [1]},
    }


def complete(output: Path) -> bool:
    studies = json.loads((output / "summary.json").read_text())["studies"]
    return bool(studies) and all(study["complete"] for study in studies)
