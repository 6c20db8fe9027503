"""Slurm, `ray up`, SkyPilot and Compose: what can be asked of their files without such a place.

Slurm's commands are stand-ins here, which write down what they are asked; a script that is right
by them has its signals, its requeue and its options right. `test_slurm.py` has the real ones.
"""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml

from pipeline.command import load_config
from pipeline.jobs.config import SHORTCUTS, SearchConfig
from tests.pipeline.commands import ROOT

SCRIPT = ROOT / "infra" / "slurm" / "search.sbatch"
ELSEWHERE = ROOT / "infra" / "elsewhere"

# Writes down how it was called, and stands for the program named like it.
STAND_IN = """#!/bin/bash
echo "${0##*/} $*" >> "$CALLS"
case "${0##*/} $1 $2" in
    "scontrol show hostnames") printf 'node1\\nnode2\\n' ;;
    srun*) exec sleep 60 ;;
    python*)
        trap 'echo ended >> "$CALLS"; exit ${CODE_ON_TERM:-130}' TERM
        for _ in $(seq ${SEARCH_S:-0}); do sleep 0.1; done
        exit ${CODE:-0} ;;
esac
"""


class Job:
    def __init__(self, tmp_path: Path, **variables: str) -> None:
        for name in ("scontrol", "srun", "ray", "python"):
            program = tmp_path / ".venv" / "bin" / name
            program.parent.mkdir(parents=True, exist_ok=True)
            program.write_text(STAND_IN)
            program.chmod(0o755)
        self.calls = tmp_path / "calls"
        self.home = tmp_path
        self.process = subprocess.Popen(
            ["bash", str(SCRIPT), "--config", "search_spaces/pacs.yaml"],
            env={
                "PATH": "/usr/bin:/bin",
                "HOME": str(tmp_path),
                "CALLS": str(self.calls),
                "SLURM_SUBMIT_DIR": str(tmp_path),
                "SLURM_JOB_ID": "4711",
                "SLURM_JOB_NODELIST": "node[1-2]",
                "SLURM_CPUS_PER_TASK": "8",
                "SLURM_GPUS_ON_NODE": "1",
                **variables,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + 30
        while not self.calls.exists() or text not in self.calls.read_text():
            assert time.monotonic() < deadline and self.process.poll() is None
            time.sleep(0.05)

    def end(self) -> list[str]:
        self.process.communicate(timeout=30)
        assert not list(self.home.glob(".adu-search-*")), "the token is removed"
        return self.calls.read_text().splitlines()


def test_head_and_workers_start_on_their_nodes_and_the_search_after_them(tmp_path):
    job = Job(tmp_path)
    calls = job.end()
    assert job.process.returncode == 0
    head, worker = sorted(
        (c for c in calls if c.startswith("srun")), key=lambda c: "--head" not in c
    )
    assert "--nodelist=node1 ray start --head --block" in head and "--port=24711" in head
    assert "--nodelist=node2 ray start --block --address=node1:24711" in worker
    for call in (head, worker):
        assert "--num-cpus=8 --num-gpus=1" in call
    (search,) = [call for call in calls if call.startswith("python")]
    arguments = shlex.split(search)[2:]
    config = load_config(SearchConfig, SHORTCUTS, arguments)
    assert config.resume_or_start and config.address == "node1:24711"
    assert not [call for call in calls if "requeue" in call]


def test_near_its_end_the_search_is_ended_and_the_job_requeued(tmp_path):
    job = Job(tmp_path, SEARCH_S="300")
    job.wait_for("python")
    time.sleep(0.3)
    job.process.send_signal(signal.SIGUSR1)
    calls = job.end()
    assert job.process.returncode == 0
    assert calls.index("ended") < calls.index("scontrol requeue 4711")


@pytest.mark.parametrize(("variables", "code"), [({"CODE": "2"}, 2), ({"CODE": "1"}, 1)])
def test_a_search_that_fails_by_itself_is_not_requeued(tmp_path, variables, code):
    job = Job(tmp_path, **variables)
    calls = job.end()
    assert job.process.returncode == code
    assert not [call for call in calls if "requeue" in call]


def test_a_search_that_is_over_when_the_warning_comes_is_not_requeued(tmp_path):
    job = Job(tmp_path, SEARCH_S="300", CODE_ON_TERM="0")
    job.wait_for("python")
    time.sleep(0.3)
    job.process.send_signal(signal.SIGUSR1)
    assert not [call for call in job.end() if "requeue" in call]


def test_ray_up_takes_its_file():
    """Against the schema that `ray up` itself has."""
    schema = Path(ray.__file__).parent / "autoscaler" / "ray-schema.json"
    rules = json.loads(schema.read_text())
    values = yaml.safe_load((ELSEWHERE / "ray_up.yaml").read_text())
    jsonschema.validate(values, rules)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**values, "max_worker": 3}, rules)
    assert values["available_node_types"][values["head_node_type"]]["resources"] == {"CPU": 0}


def test_the_search_of_skypilot_is_one_that_the_command_takes():
    values = yaml.safe_load((ELSEWHERE / "skypilot.yaml").read_text())
    known = {"name", "resources", "num_nodes", "workdir", "envs", "setup", "run"}
    assert values.keys() <= known
    text = values["run"].replace("\\\n", " ")
    for name, value in values["envs"].items():
        text = text.replace(f"${name}", value)
    words = shlex.split(text)
    assert words[:2] == [".venv/bin/python", "pipeline/search.py"]
    arguments = [str(ROOT / w) if w.startswith("search_spaces") else w for w in words[2:]]
    config = load_config(SearchConfig, SHORTCUTS, arguments)
    assert config.resume_or_start and config.resources.gpus_per_worker == 1


def test_compose_listens_on_loopback_and_takes_no_password_from_the_file():
    text = (ELSEWHERE / "compose.yaml").read_text()
    services = yaml.safe_load(text)["services"]
    for name, service in services.items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
        assert re.search(r":[^:]*\d", service["image"]), name
        assert set(service.get("depends_on", {})) <= services.keys()
        for variable, value in service["environment"].items():
            if re.search("PASSWORD|SECRET|KEY", variable):
                assert re.fullmatch(r"\$\{\w+:\?[^}]+\}", value), variable
        command = str(service.get("command", ""))
        assert "PASSWORD" not in command and "SECRET" not in command


def test_compose_reads_the_file():
    version = ["docker", "compose", "version"]
    try:
        done = subprocess.run(version, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("docker is not installed")
    if done.returncode:
        pytest.skip("docker compose is not installed")
    command = ["docker", "compose", "-f", str(ELSEWHERE / "compose.yaml"), "config", "--quiet"]
    values = {"S3_KEY": "k", "S3_SECRET": "s", "POSTGRES_PASSWORD": "p", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, env=values, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
