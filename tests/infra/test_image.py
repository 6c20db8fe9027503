"""The image: linted, and what it installs is installed in a clean environment.

It cannot be built where there is no container runtime. So the RUN lines of its build stage are
run as they stand, with other folders for /opt/venv and /app.
"""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from infra.cluster.rendering import render_search
from pipeline.tracking.facts import origin
from tests.infra.image import DOCKERFILE, chain, commands, copied_from, image_problems, read_stages
from tests.infra.manifests import SEARCHES, SETTINGS, jobs, pods, ray_job, services
from tests.pipeline.commands import ROOT

TEXT = DOCKERFILE.read_text()
IGNORE = DOCKERFILE.with_name("Dockerfile.dockerignore")


def test_hadolint_finds_nothing():
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [str(hadolint), "--no-color", str(DOCKERFILE)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_it_is_pinned_unprivileged_and_without_build_tools():
    assert image_problems(TEXT) == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("slim-bookworm@${PYTHON_DIGEST} AS runtime", "slim-bookworm AS runtime", "not pinned"),
        ("USER 10001:10001", "USER root", "numbered user"),
        ("USER 10001:10001\n", "", "numbered user"),
        ("WORKDIR /app\nUSER", "RUN apt-get install gcc\nUSER", "installs in the final stage"),
        ("WORKDIR /app\nUSER", "ENV HF_TOKEN=abc\nUSER", "holds a secret"),
        ("WORKDIR /app\nUSER", "RUN curl -s x.sh | sh\nUSER", "just fetched"),
        ("python -m pip uninstall --yes pip", "true", "keeps pip"),
    ],
)
def test_a_careless_image_is_refused(old, new, problem):
    assert old in TEXT
    assert any(problem in text for text in image_problems(TEXT.replace(old, new)))


def test_both_targets_install_the_lock_by_its_hashes_and_nothing_else():
    stages = read_stages(TEXT)
    installs = {
        target: [
            words
            for command in commands(stages, copied_from(stages, target))
            for words in command.split(" && ")
            if words.strip().startswith("uv pip install")
        ]
        for target in ("cpu", "cuda")
    }
    project = "uv pip install --no-deps -e ."
    assert installs["cuda"] == ["uv pip install --require-hashes -r requirements.txt", project]
    assert installs["cpu"] == [
        "uv pip install --require-hashes --no-deps -r requirements-cpu.txt",
        # PyTorch's index has other files than the lock knows.
        "uv pip install --torch-backend cpu --no-deps -r requirements-torch.txt",
        project,
    ]


def test_the_cpu_image_has_the_locks_versions_but_for_cuda(tmp_path):
    """Its awk lines, on the lock as it is."""
    shutil.copy(ROOT / "requirements.txt", tmp_path)
    (command,) = [c for c in commands(read_stages(TEXT), "build-cpu") if c.startswith("awk")]
    lines = " && ".join(part for part in command.split(" && ") if part.strip().startswith("awk"))
    _run(["bash", "-ce", lines], tmp_path, dict(os.environ))
    pin = re.compile(r"^([a-z][^=]*)==", re.MULTILINE)
    names = {file.name: set(pin.findall(file.read_text())) for file in tmp_path.iterdir()}
    cpu, torch = names["requirements-cpu.txt"], names["requirements-torch.txt"]
    assert torch == {"torch", "torchvision"}
    left = names["requirements.txt"] - cpu - torch
    assert left and all(re.match(r"nvidia-|cuda-|triton$", name) for name in left)
    text = (tmp_path / "requirements-cpu.txt").read_text()
    assert text.count("==") <= text.count("--hash=")


def test_the_commit_is_in_the_image_and_in_mlflow(monkeypatch):
    assert "ADU_COMMIT=${COMMIT}" in TEXT
    assert "LABEL org.opencontainers.image.revision=${COMMIT}" in TEXT
    monkeypatch.setenv("ADU_COMMIT", "0f" * 20)
    assert origin()["mlflow.source.git.commit"] == "0f" * 20


def test_the_build_sees_what_it_copies_and_no_more():
    lines = IGNORE.read_text().splitlines()
    assert lines[1] == "*", "everything is left out that is not named"
    named = {line[1:] for line in lines if line.startswith("!")}
    copied = {
        word
        for stage in read_stages(TEXT).values()
        for step in stage.steps
        if step.instruction == "COPY" and "--from" not in step.arguments
        for word in step.arguments.split()[:-1]
    }
    assert copied == named
    assert not any(fnmatch.fnmatch(secret, name) for secret in (".git", "s3.env") for name in named)


def test_its_user_is_that_of_the_manifests():
    (user,) = re.findall(r"^USER (\d+):(\d+)$", TEXT, re.MULTILINE)
    searches = {name: render_search(SETTINGS, name) for name in SEARCHES}
    objects = [*services(), *jobs(), *(o for found in searches.values() for o in found)]
    ours = [
        pod
        for pod in pods(objects)
        if any("adu-search:" in container["image"] for container in pod.containers)
    ]
    assert ours
    for pod in ours:
        context = pod.spec["securityContext"]
        assert (str(context["runAsUser"]), str(context["runAsGroup"])) == user
    for found in searches.values():
        spec = ray_job(found)["rayClusterSpec"]
        assert f"ray[default,tune,train]=={spec['rayVersion'][:4]}" in _project()


def _project() -> str:
    return (ROOT / "pyproject.toml").read_text()


def _uv() -> str:
    return shutil.which("uv") or str(Path(sys.executable).with_name("uv"))


@pytest.fixture
def scratch(tmp_path):
    """A folder that is removed at once: it takes gigabytes."""
    yield tmp_path
    for folder in (tmp_path / "app").rglob("*"):
        folder.chmod(0o755)
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.mark.faults
def test_its_install_steps_make_an_environment_that_runs_the_command(scratch):
    stages = read_stages(TEXT)
    app, venv = scratch / "app", scratch / "venv"
    app.mkdir()
    places = {"/opt/venv": str(venv), "/app": str(app), "/usr/local/bin/python": sys.executable}

    def here(text: str) -> str:
        for place, other in places.items():
            text = text.replace(place, other)
        return text

    # How the registry is reached is this machine's business.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PATH"] = f"{Path(_uv()).parent}:{os.environ['PATH']}"
    for stage in chain(stages, copied_from(stages, "cuda")):
        for step in stage.steps:
            if step.instruction == "ENV":
                pairs = (pair.split("=", 1) for pair in step.arguments.split())
                environment |= {name: here(value) for name, value in pairs}
                # A test need not pay for copies and compiled files.
                environment |= {"UV_LINK_MODE": "hardlink", "UV_COMPILE_BYTECODE": "0"}
            elif step.instruction == "COPY":
                *sources, _ = step.arguments.split()
                for source in sources:
                    place = ROOT / source
                    copy = shutil.copytree if place.is_dir() else shutil.copy
                    copy(place, app / source)
            elif step.instruction == "RUN":
                command = commands({"one": stage._replace(name="one", steps=[step])}, "one")[0]
                # uv itself is here already.
                command = re.sub(r"^pip install --no-cache-dir uv==\S+ && ", "", command)
                _run(["bash", "-ce", here(command)], app, environment)

    # As in a pod: code that cannot be written, from another folder's point of view.
    clean = {"PATH": f"{venv}/bin:/usr/bin:/bin", "HOME": str(scratch), "CUDA_VISIBLE_DEVICES": ""}
    clean["PYTHONDONTWRITEBYTECODE"] = "1"
    for file in app.rglob("*"):
        file.chmod(0o555 if file.is_dir() else 0o444)
    out = _run(["python", "pipeline/search.py", "--help"], app, clean)
    assert "--resume-or-start" in out
    where = "import adu, pipeline, torch; print(adu.__file__, pipeline.__file__, torch.__file__)"
    adu_file, pipeline_file, torch_file = _run(["python", "-c", where], scratch, clean).split()
    assert (Path(adu_file).parents[1], Path(pipeline_file).parents[1]) == (app, app)
    assert Path(torch_file).is_relative_to(venv)


def _run(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout
